"""Training of the regression U-Net: L1 on triplets."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch.nn.functional as F
from calid.method.weights import read_motion
from calid_training.rates import learning
from calid_training.validation import log_slices_between
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from calid_benchmark.rivals.moved_regression import MovedRegressionNetwork
from calid_benchmark.rivals.regression import RegressionConfig, RegressionNetwork


class RegressionStage(L.LightningModule):
    """Fits the slice between to its neighbors.

    Args:
        network: widths of the U-Net.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises.
        motion: motion file, or a whole model's, which brings the neighbors half-way first; None shows them as they are.
    """

    def __init__(
        self,
        network: RegressionConfig,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
        motion: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = RegressionNetwork(network)
        if motion is not None:
            self.network = MovedRegressionNetwork(network, read_motion(motion))
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a warm-up."""
        return learning(self.network, self.learning_rate, self.warmup_steps)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """Mean absolute error of the slices half-way."""
        loss = F.l1_loss(self.network(batch["before"], batch["after"]), batch["target"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Log figures of the slices half-way beside those of linear interpolation."""
        before, after = batch["before"], batch["after"]
        made = {"linear": (before + after) / 2, "between": self.network(before, after).float()}
        log_slices_between(self, batch, made, index=index)
