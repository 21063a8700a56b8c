"""The segmenter that judges slices: that of the models in question, or the bundled one where these have none."""

from __future__ import annotations

from pathlib import Path

from calid.heart.segmentation import DEFAULT_MODEL, Segmenter, warm_segmenter
from calid.method.weights import read_manifest
from calid.run.device import Device


def segmenter_folder(models: Path | None) -> Path | None:
    """The folder whose segmenter judges; None is the bundled models'."""
    return models if models is not None and DEFAULT_MODEL in read_manifest(models) else None


def judging_segmenter(device: Device, models: Path | None) -> Segmenter:
    """The segmenter that judges what the models of a folder made.

    Raises:
        WeightsError: if there is none.
    """
    return warm_segmenter(device, segmenter_folder(models))
