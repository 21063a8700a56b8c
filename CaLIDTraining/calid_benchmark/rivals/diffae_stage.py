"""Training of DiffAE and DMCVR: one loss, E and the U-Net together (DiffAE, Eq. 6; DMCVR, Eq. 4)."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from calid.heart.segmentation import DEFAULT_MODEL
from calid.method.weights import below, find_model
from calid.run.device import Device, choose_device
from calid_training.rates import learning
from calid_training.runs import checkpoint_of
from calid_training.validation import log_slices_between
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from calid_benchmark.rivals.diffae import SCHEDULE, DiffAE, Morphology
from calid_benchmark.rivals.diffae_network import DiffAEConfig, DiffAENetwork
from calid_benchmark.rivals.dmcvr import morphology_of
from calid_benchmark.rivals.slices import as_images, as_slices

PICTURED = 4  # validation triplets that are interpolated: each costs three walks


class DiffAEStage(L.LightningModule):
    """Trains on every slice of the triplets for itself; interpolation is only validated.

    Args:
        network: widths and depths.
        learning_rate, warmup_steps: Adam's rate and the steps over which it rises.
        noise_draws: times and noises drawn for each slice; E runs once for all of them.
        validation_steps: number of steps of the interpolation that is pictured.
    """

    def __init__(
        self,
        network: DiffAEConfig,
        learning_rate: float = 1e-4,
        warmup_steps: int = 500,
        noise_draws: int = 1,
        validation_steps: int = 16,
    ) -> None:
        super().__init__()
        self.network = DiffAENetwork(network)
        self.learning_rate, self.warmup_steps = learning_rate, warmup_steps
        self.noise_draws, self.validation_steps = noise_draws, validation_steps
        self.morphology: Morphology | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a warm-up."""
        return learning(self.network, self.learning_rate, self.warmup_steps)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        """The loss over all slices of the triplets: each is a slice of its own here."""
        loss = self.loss(_slices(batch))
        self.log("train/loss", loss)
        return loss

    def loss(self, x_0: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean squared error of the predicted noise, at times drawn uniformly."""
        codes = [self.network.encode(x_0), x_0] + ([] if self.morphology is None else [self.morphology(x_0)])
        z_sem, x_0, *l_mor = (code.repeat_interleave(self.noise_draws, dim=0) for code in codes)
        t = torch.randint(SCHEDULE.num_times, (len(x_0),), generator=generator).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=generator).to(x_0.device)
        predicted = self.network(SCHEDULE.add_noise(x_0, noise, t), t, z_sem, *l_mor)
        return F.mse_loss(predicted.float(), noise)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Log the loss at the same times and noises in every epoch and, of the first batch, some slices between."""
        x_0 = _slices(batch)
        self.log("val/loss", self.loss(x_0, torch.Generator().manual_seed(index)), batch_size=len(x_0), sync_dist=True)
        if index > 0:
            return
        few = {name: images[:PICTURED].cpu() for name, images in batch.items()}
        before, after = few["before"], few["after"]
        between = as_images(self._between(as_slices(before), as_slices(after)))
        log_slices_between(self, few, {"linear": (before + after) / 2, "between": between}, index=index)

    def _between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        here = Device(self.device, "where it is trained", None)
        return DiffAE("in training", self.network, here, self.validation_steps, self.morphology).between(before, after)


class DMCVRStage(DiffAEStage):
    """DiffAE's stage with the morphology of a segmenter.

    Args:
        network: widths, with the segmenter's morphology channels.
        start: run folder of a DiffAE of the same widths, whose weights save most of the training; what has another
            shape, because l_mor joins there, begins anew.
        models: folder with the segmenter; None takes the bundled one.
        learning_rate, warmup_steps, noise_draws, validation_steps: see `DiffAEStage`.
    """

    def __init__(
        self,
        network: DiffAEConfig,
        start: Path | None = None,
        models: Path | None = None,
        learning_rate: float = 1e-4,
        warmup_steps: int = 500,
        noise_draws: int = 1,
        validation_steps: int = 16,
    ) -> None:
        super().__init__(network, learning_rate, warmup_steps, noise_draws, validation_steps)
        segmenter = find_model(DEFAULT_MODEL, models)
        self.foundations = ({"name": segmenter.name, "sha256": segmenter.sha256, "license": segmenter.license},)
        self._segmenter = morphology_of(choose_device("cpu"), models)
        self.morphology = self._segmenter
        if start is not None:
            mine = self.network.state_dict()
            theirs = below(checkpoint_of(start), "network.")
            fitting = {key: value for key, value in theirs.items() if mine[key].shape == value.shape}
            self.network.load_state_dict(fitting, strict=False)

    def on_fit_start(self) -> None:
        """Bring the segmenter, which is no part of this module, to its device."""
        self._segmenter.model.to(self.device)


def _slices(batch: dict[str, Tensor]) -> Tensor:
    """Every slice of a batch of triplets."""
    return torch.cat([batch["before"], batch["target"], batch["after"]])
