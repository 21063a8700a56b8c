"""The plain regression U-Net: two neighbors in, their mean plus a learned residual out; the rival in pixel error.

It predicts one slice per gap in one evaluation, the one half-way; more are made by bisection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from calid.method.networks import zero_unet
from calid.method.weights import ModelEntry, config_from
from calid.run.device import Device
from torch import Tensor, nn

from calid_benchmark.rivals import filled, placed
from calid_benchmark.rivals.slices import as_images, as_slices, bisected


@dataclass(frozen=True)
class RegressionConfig:
    """Widths of MONAI's BasicUNet.

    Args:
        features: feature maps of the five levels, finest first, then of the last block.
        norm_num_groups: groups of every group norm; divides all features.
    """

    features: tuple[int, ...] = (16, 16, 32, 64, 96, 16)
    norm_num_groups: int = 8


PAPER_SIZE = RegressionConfig(features=(32, 32, 64, 128, 256, 32))
"""MONAI's own widths, 2.6 M parameters; no paper names this baseline's size."""


class RegressionNetwork(nn.Module):
    """(before, after) (N, 1, Y, X) in [-1, 1] -> the slices half-way; rows and columns are multiples of 16."""

    def __init__(self, config: RegressionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = zero_unet(2, 1, features=config.features, norm_num_groups=config.norm_num_groups)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """The mean of both neighbors and what the U-Net adds to it, (N, 1, Y, X)."""
        return (before + after) / 2 + self.unet(torch.cat([before, after], dim=1))


@dataclass(frozen=True, eq=False)
class Regression:
    """The trained network on a device: a `Baseline`.

    Args:
        network: trained network in evaluation mode, on the device.
        device: where it runs.
    """

    network: RegressionNetwork
    device: Device
    name: str = "regression U-Net"

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Baseline`."""
        images = [as_images(slices) for slices in (before, after)]
        size = self.device.batch_size(images[0][0].numel())
        pairs = zip(*(side.split(size) for side in images), strict=True)
        return as_slices(torch.cat([self._made(*pair) for pair in pairs]))

    @torch.inference_mode()
    def _made(self, before: Tensor, after: Tensor) -> Tensor:
        here = [side.to(self.device.torch_device, memory_format=torch.channels_last) for side in (before, after)]
        with self.device.autocast():
            return self.network(*here).float().cpu()

    def whole_heart(self, slices: np.ndarray, factor: int, *, naive: bool = False) -> np.ndarray:
        """See `Baseline`; by bisection, so the factor is a power of two. There are no codes that could be kept."""
        del naive
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"the regression U-Net bisects: the factor must be a power of two, got {factor}")
        return bisected(self.between, slices, factor)

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """See `Baseline`."""
        del naive
        return (acquired - 1) * (factor - 1)


def restore(state: Mapping[str, Tensor], entry: ModelEntry, *, steps: int | None, device: Device) -> Regression:
    """See the contract in `calid_benchmark.rivals`."""
    del steps
    network = filled(RegressionNetwork(config_from(RegressionConfig, entry.config["network"])), state, entry)
    return Regression(placed(network, device), device)


def untrained(*, paper: bool, steps: int | None, device: Device) -> Regression:
    """See the contract in `calid_benchmark.rivals`."""
    del steps
    return Regression(placed(RegressionNetwork(PAPER_SIZE if paper else RegressionConfig()), device), device)


def manifest_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """See the contract in `calid_benchmark.rivals`."""
    return {"network": asdict(config_from(RegressionConfig, model["network"]))}
