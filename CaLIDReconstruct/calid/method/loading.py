"""From a manifest's entry to the model that it describes; which form it has, its configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from calid.method.coded import CodedCaLID
from calid.method.model import CaLID
from calid.method.motion import Motion
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.weights import (
    ModelEntry,
    below,
    build_codec,
    build_latent_space,
    build_motion,
    built_for,
    config_from,
    load_model,
)


def load_calid(name: str, models_folder: Path | None = None) -> tuple[CaLID | CodedCaLID, ModelEntry]:
    """The model `name` of a manifest, checked, in evaluation mode on the CPU, and what the manifest says of it.

    Raises:
        WeightsError: if it is missing, damaged or does not fit.
    """
    state, entry = load_model(name, models_folder)
    with built_for(name):
        denoiser = Denoiser(config_from(DenoiserConfig, entry.config["denoiser"]))
        denoiser.load_state_dict(below(state, "denoiser."))
        if "codec" not in entry.config:
            space = build_latent_space(entry.config["autoencoder"], below(state, "latent_space."))
            motion = _motion_of(entry, state) if "motion" in entry.config else None
            return CaLID(space, denoiser, motion=motion).eval(), entry
        codec = build_codec(entry.config["codec"], below(state, "codec."))
        return CodedCaLID(codec, denoiser, _motion_of(entry, state)).eval(), entry


def _motion_of(entry: ModelEntry, state: Mapping[str, torch.Tensor]) -> Motion:
    return build_motion(entry.config["motion"], below(state, "motion."))
