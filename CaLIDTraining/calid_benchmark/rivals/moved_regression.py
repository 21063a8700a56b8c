"""The regression U-Net on neighbors that CaLID's motion has brought half-way: what is left for a diffusion to add.

The motion is part of the weights, so that the row stays what it was when another motion ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calid.method.motion import Motion, MotionConfig, halfway
from calid.method.weights import ModelEntry, config_from, read_motion
from calid.run.device import Device
from torch import Tensor

from calid_benchmark.rivals import filled, placed
from calid_benchmark.rivals.regression import PAPER_SIZE, Regression, RegressionConfig, RegressionNetwork

NAME = "regression U-Net, moved neighbors"


class MovedRegressionNetwork(RegressionNetwork):
    """(before, after) (N, 1, Y, X) in [-1, 1] -> the slices half-way, from both neighbors as the motion moves them."""

    def __init__(self, config: RegressionConfig, motion: Motion) -> None:
        super().__init__(config)
        self.motion = motion.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MovedRegressionNetwork:
        """Switch the U-Net's mode; the motion stays in evaluation."""
        super().train(mode)
        self.motion.eval()
        return self

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """The slices half-way (N, 1, Y, X); no gradient reaches the motion."""
        return super().forward(*(side.detach() for side in halfway(self.motion, before, after, refined=False)))


def restore(state: Mapping[str, Tensor], entry: ModelEntry, *, steps: int | None, device: Device) -> Regression:
    """See the contract in `calid_benchmark.rivals`."""
    del steps
    motion = Motion(config_from(MotionConfig, entry.config["motion"]))
    network = MovedRegressionNetwork(config_from(RegressionConfig, entry.config["network"]), motion)
    return Regression(placed(filled(network, state, entry), device), device, NAME)


def untrained(*, paper: bool, steps: int | None, device: Device) -> Regression:
    """See the contract in `calid_benchmark.rivals`."""
    del steps
    network = MovedRegressionNetwork(PAPER_SIZE if paper else RegressionConfig(), Motion(MotionConfig()))
    return Regression(placed(network, device), device, NAME)


def manifest_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """See the contract in `calid_benchmark.rivals`."""
    motion = read_motion(Path(model["motion"])).config
    return {"network": asdict(config_from(RegressionConfig, model["network"])), "motion": asdict(motion)}
