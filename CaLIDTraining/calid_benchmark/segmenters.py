"""The segmenter that judges slices: that of the models in question, or the bundled one where these have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from calid.heart.medformer import MedFormer
from calid.heart.segmentation import DEFAULT_MODEL, Segmenter, most_likely, warm_segmenter
from calid.method.weights import read_manifest
from calid.run.device import Device


def segmenter_folder(models: Path | None) -> Path | None:
    """The folder whose segmenter judges; None is the bundled models'."""
    return models if models is not None and DEFAULT_MODEL in read_manifest(models) else None


def network_of(segmenter: Segmenter) -> MedFormer:
    """The network of a segmenter, whose features are asked for.

    Raises:
        TypeError: if it is another than MedFormer.
    """
    if not isinstance(segmenter.model, MedFormer):
        raise TypeError(f"features are those of a MedFormer, not of a {type(segmenter.model).__name__}")
    return segmenter.model


def judging_segmenter(device: Device, models: Path | None) -> Segmenter:
    """The segmenter that judges what the models of a folder made.

    Raises:
        WeightsError: if there is none.
    """
    return warm_segmenter(device, segmenter_folder(models))


def segmented(segmenter: Segmenter, images: np.ndarray) -> np.ndarray:
    """Labels (N, Y, X) of images (N, Y, X) in [0, 1]."""
    foreground = segmenter.foreground(torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None])
    return most_likely(foreground)
