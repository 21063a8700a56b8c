"""DMCVR (He et al. 2023): DiffAE that is also told the morphology, the deepest features of a frozen segmenter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calid.errors import WeightsError
from calid.heart.medformer import PAPER, MedFormer, features
from calid.heart.segmentation import DEFAULT_MODEL, load_segmenter
from calid.method.weights import ModelEntry, find_model, models_folder, read_manifest
from calid.run.device import Device
from torch import Tensor

from calid_benchmark.rivals import diffae, placed
from calid_benchmark.rivals.diffae import DiffAE
from calid_benchmark.rivals.diffae_network import PAPER_DMCVR, DiffAEConfig, DiffAENetwork
from calid_benchmark.segmenters import network_of

STEPS = 128
"""As CaLID's paper ran it, for the inversion and for the decoding."""

MORPHOLOGY_WIDTH = 24
"""Channels in which l_mor joins our small network."""


@dataclass(frozen=True, eq=False)
class MedFormerMorphology:
    """E_mor: the deepest of a MedFormer's encoder features. A plain object, so that no network counts it as its part.

    Args:
        model: frozen, in evaluation mode.
    """

    model: MedFormer

    def __call__(self, images: Tensor) -> Tensor:
        """l_mor of images (N, 1, Y, X) in [-1, 1]: (N, C, Y / 16, X / 16)."""
        return features(self.model, (images + 1) / 2)[-1]


def morphology_of(device: Device, models: Path | None = None) -> MedFormerMorphology:
    """The features of the segmenter in a folder of models; None takes the bundled one."""
    return MedFormerMorphology(network_of(load_segmenter(device, models_folder=models)))


def restore(
    state: Mapping[str, Tensor], entry: ModelEntry, *, steps: int | None, device: Device, models: Path | None
) -> DiffAE:
    """See the contract in `calid_benchmark.rivals`.

    Raises:
        WeightsError: "other-segmenter" if the segmenter that these weights were trained with is not there.
    """
    morphology = morphology_of(device, _folder_with(entry.config["segmenter_sha256"], models))
    network = diffae.restored_network(state, entry, device)
    return DiffAE("DMCVR", network, device, steps or STEPS, morphology)


def _folder_with(sha256: str, models: Path | None) -> Path | None:
    """The folder that holds the segmenter with this SHA-256: `models`, else the bundled one."""
    folders = dict.fromkeys((models, None))
    for folder in folders:
        segmenter = read_manifest(folder).get(DEFAULT_MODEL)
        if segmenter is not None and segmenter.sha256 == sha256:
            return folder
    places = " or ".join(str(models_folder(folder)) for folder in folders)
    raise WeightsError(
        "other-segmenter",
        f"DMCVR was trained with another segmenter ({sha256[:12]}) than there is in {places}.",
        "Name the folder that holds it, or train DMCVR again: calid-train dmcvr.",
    )


def untrained(*, paper: bool, steps: int | None, device: Device) -> DiffAE:
    """See the contract in `calid_benchmark.rivals`; at the paper's size with the paper's MedFormer."""
    if paper:
        config, morphology = PAPER_DMCVR, MedFormerMorphology(placed(MedFormer(PAPER), device))
    else:
        morphology = morphology_of(device)
        width = morphology.model.config.widths[3]
        config = replace(DiffAEConfig(), morphology_channels=width, morphology_width=MORPHOLOGY_WIDTH)
    return DiffAE("DMCVR", placed(DiffAENetwork(config), device), device, steps or STEPS, morphology)


def manifest_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """See the contract in `calid_benchmark.rivals`."""
    models = Path(model["models"]) if model.get("models") else None
    return diffae.manifest_config(model) | {"segmenter_sha256": find_model(DEFAULT_MODEL, models).sha256}
