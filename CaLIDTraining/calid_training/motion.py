"""Training of the motion between slices: both neighbors are brought onto the slice that lies between them."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from calid.method.motion import Fields, Motion, MotionConfig, warped
from calid.method.weights import read_motion
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from monai.losses import SSIMLoss

from calid_training.lpips import lpips_network
from calid_training.rates import learning
from calid_training.validation import log_slices_between

WIDTHS = MotionConfig()
"""Those that ship."""


class MotionStage(L.LightningModule):
    """Fits the fields of triplets.

    Args:
        network: widths of the motion network.
        start: motion file, or a whole model's, that is trained on; None starts from nothing.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises.
        muon_rate: Muon's rate for the weights of layers; 0 leaves them to Adam.
        own_weight: weight of each neighbor's own error beside that of their mean: both have to arrive.
        structure_weight: weight of one minus the mean's SSIM: walls count as much where they are faint.
        perceptual_weight: weight of the mean's LPIPS, which is lower where both neighbors agree; 0 leaves it out.
        alexnet: weights of LPIPS's AlexNet, see `lpips`, where it has a weight.
        smoothness: weight of the fields' roughness, their squared derivatives (pixels per pixel).
        anneals: whether the rate falls to nothing by the end of the run.
    """

    def __init__(
        self,
        network: MotionConfig = WIDTHS,
        start: Path | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
        muon_rate: float = 0.0,
        own_weight: float = 0.5,
        structure_weight: float = 0.5,
        perceptual_weight: float = 0.0,
        alexnet: Path | None = None,
        smoothness: float = 0.02,
        anneals: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "start", "alexnet"])
        self.network = Motion(network)
        if start is not None:
            self.network.load_state_dict(read_motion(start).state_dict())
        self.dissimilarity = SSIMLoss(2, data_range=2.0, kernel_type="uniform", win_size=7)
        self.learning_rate, self.warmup_steps, self.anneals = learning_rate, warmup_steps, anneals
        self.muon_rate = muon_rate
        self.own_weight, self.structure_weight, self.smoothness = own_weight, structure_weight, smoothness
        self.perceptual_weight = perceptual_weight
        self.lpips = lpips_network(alexnet) if perceptual_weight else None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a warm-up, Muon if asked for."""
        total = self.trainer.estimated_stepping_batches if self.anneals else math.inf
        return learning(self.network, self.learning_rate, self.warmup_steps, total=total, muon_rate=self.muon_rate)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Errors of both moved neighbors and of their mean against the slice between, and the fields' roughness."""
        fields, before, after = self.moved(batch)
        truth = batch["target"]
        between = (before + after) / 2
        mean = F.l1_loss(between, truth)
        with torch.autocast(self.device.type, enabled=False):  # half precision would lose the local variances
            structure = self.dissimilarity(between, truth)
        own = (F.l1_loss(before, truth) + F.l1_loss(after, truth)) / 2
        rough = sum(x.diff(dim=axis).square().mean() for x in fields for axis in (-1, -2))
        self.log_dict({"train/mean": mean, "train/own": own, "train/structure": structure, "train/roughness": rough})
        loss = mean + self.own_weight * own + self.structure_weight * structure + self.smoothness * rough
        if self.lpips is None:
            return loss
        perceptual = self.lpips((truth + 1) / 2, (between + 1) / 2).float().mean()
        self.log("train/lpips", perceptual)
        return loss + self.perceptual_weight * perceptual

    def moved(self, batch: dict[str, torch.Tensor]) -> tuple[Fields, torch.Tensor, torch.Tensor]:
        """The fields of a batch, and both neighbors half-way."""
        fields = self.network(batch["before"], batch["after"])
        return fields, warped(batch["before"], fields.before), warped(batch["after"], fields.after)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Log figures of the moved mean and of one moved neighbor, beside linear interpolation."""
        _, before, after = self.moved(batch)
        made = {"linear": (batch["before"] + batch["after"]) / 2, "moved": (before + after) / 2, "one": before}
        log_slices_between(self, batch, made, index=index)
