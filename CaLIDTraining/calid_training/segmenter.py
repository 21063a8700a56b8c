"""Trains the segmenter of short-axis slices from fully and partly labeled sets.

Most sets label only some structures: what their experts did not draw hides in the background. The loss therefore
merges, image by image, every class that was not annotated with the background (marginal loss; Fang & Yan 2020, Shi et
al. 2021) and asks only for what is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from calid.heart.medformer import COMPACT, MedFormer, MedFormerConfig
from calid.heart.segmentation import PIXEL_MM, WINDOW_PIXELS, Segmenter, segment_with
from calid.run.device import Device
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from calid_training.datasets import RawCase, read_cases
from calid_training.labeled_slices import (
    SHIPPED_AUGMENTATION,
    Augmentation,
    LabeledSlice,
    RandomCrops,
    labeled_slices,
)

MIRRORED = True
"""Whether the exported segmenter averages with the mirror image: Dice 0.908 against 0.903 on ACDC 055-060."""
STRUCTURE_NAMES = {1: "lv", 2: "myocardium", 3: "rv"}
CLASS_WEIGHTS = (0.5, 1.0, 1.0, 1.0)
"""Cross-entropy weights of background, LV cavity, myocardium and RV cavity, as in the authors' training."""


def marginal_log_probabilities(logits: Tensor, annotated: Tensor) -> Tensor:
    """Log-probabilities after merging, per image, all classes that were not annotated with the background.

    log q_0 = log sum_{k = 0 or not annotated} p_k;  log q_k = log p_k for annotated k.

    Args:
        logits: (B, C, H, W).
        annotated: (B, C) bool, which classes the expert drew; the background's entry is not looked at.

    Returns:
        (B, C, H, W); about -1e4 (a probability of 0) for classes that were not annotated.
    """
    merged = ~annotated.bool()
    merged[:, 0] = True
    merged = merged[:, :, None, None]
    log_p = logits.float().log_softmax(dim=1)
    background = log_p.masked_fill(~merged, -1e4).logsumexp(dim=1, keepdim=True)
    return torch.cat((background, log_p.masked_fill(merged, -1e4)[:, 1:]), dim=1)


def segmentation_loss(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Weighted cross-entropy plus one minus the soft Dice, both on merged classes.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64; 0 wherever no annotated structure is.
        annotated: (B, C) bool.
    """
    log_q = marginal_log_probabilities(logits, annotated)
    cross_entropy = F.nll_loss(log_q, labels, weight=log_q.new_tensor(CLASS_WEIGHTS[: log_q.shape[1]]))
    return cross_entropy + 1 - soft_dice(log_q.exp(), labels, annotated)


def soft_dice(probabilities: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Mean over structures of the Dice of the whole batch's pixels, over the images where each was annotated."""
    scores = []
    for k in range(1, probabilities.shape[1]):
        known = annotated[:, k].bool()
        if known.any():
            p, truth = probabilities[known, k], (labels[known] == k).float()
            scores.append((2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
    return torch.stack(scores).mean() if scores else probabilities.new_ones(())


@dataclass(frozen=True)
class SegmenterSets:
    """Which patients train and which choose.

    Args:
        weights: share of the training crops by set.
        choosing: the set whose validation patients choose; those of the others are left out.
    """

    weights: dict[str, float] = field(
        default_factory=lambda: {"acdc": 0.68, "chla": 0.16, "sunnybrook": 0.09, "autofd": 0.07}
    )
    choosing: str = "acdc"

    def split(self, cases: Iterable[RawCase]) -> tuple[list[RawCase], list[RawCase]]:
        """Training and validation cases; cases of the other splits and without labels are left out."""
        train, validation = [], []
        for case in cases:
            if case.labels is None or not case.labels.voxels.any():
                continue
            if case.split == "validation" and case.dataset == self.choosing:
                validation.append(case)
            elif case.split == "train":
                train.append(case)
        return train, validation


class SegmenterData(L.LightningDataModule):
    """Random crops of all labeled slices, kept in memory; whole ACDC stacks for validation.

    Args:
        data: folder that holds one folder per set.
        sets: which of them, how much of each, and who chooses.
        augmentation: how far crops stray from the originals.
        batch_size: crops per step.
        steps_per_epoch: steps between validations.
        seed: seed of the crops.
        num_workers: processes that make crops; 0 makes them in the training process.
        size: edge of a crop in pixels.
    """

    def __init__(
        self,
        data: Path = Path("data"),
        sets: SegmenterSets = SegmenterSets(),
        augmentation: Augmentation = SHIPPED_AUGMENTATION,
        batch_size: int = 16,
        steps_per_epoch: int = 400,
        seed: int = 0,
        num_workers: int = 0,
        size: int = WINDOW_PIXELS,
    ) -> None:
        super().__init__()
        self.data, self.sets, self.augmentation = Path(data), sets, augmentation
        self.batch_size, self.steps_per_epoch, self.size = batch_size, steps_per_epoch, size
        self.seed, self.num_workers = seed, num_workers
        self.slices: list[LabeledSlice] = []
        self.validation: list[RawCase] = []

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (Lightning's signature)
        """Read all labeled slices, once."""
        if self.slices:
            return
        cases = (case for name in self.sets.weights for case in read_cases(self.data, name))
        train, self.validation = self.sets.split(cases)
        self.slices = [item for case in train for item in labeled_slices(case)]

    def provenance(self) -> dict[str, dict[str, Any]]:
        """{set: how many labeled slices of it train, and the SHA-256 over them}."""
        found = {}
        for name in self.sets.weights:
            digests = [_digest(item) for item in self.slices if item.dataset == name]
            if digests:
                sha256 = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
                found[name] = {"slices": len(digests), "sha256": sha256}
        return found

    def train_dataloader(self) -> DataLoader:
        """Needs `reload_dataloaders_every_n_epochs: 1`, so that every epoch has its own crops."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        crops = RandomCrops(
            self.slices,
            weights=self.sets.weights,
            length=self.batch_size * self.steps_per_epoch,
            seed=self.seed,
            epoch=epoch,
            augmentation=self.augmentation,
            size=self.size,
        )
        return DataLoader(crops, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Whole stacks of the patients who choose, one at a time."""
        cases = cast(Dataset[RawCase], self.validation)  # a list is one: it has a length and items
        return DataLoader(cases, batch_size=None, collate_fn=lambda case: case)


def _digest(item: LabeledSlice) -> str:
    return hashlib.sha256(item.image.tobytes() + item.labels.tobytes()).hexdigest()


class SegmenterModule(L.LightningModule):
    """One step of training the MedFormer, its schedule and its moving average.

    Args:
        network: the network's widths.
        learning_rate: highest learning rate, reached after the warm-up.
        weight_decay: weight decay of AdamW.
        total_steps: length of the schedule, (1 - step / total_steps) ** 0.9.
        warmup_steps: steps over which the learning rate rises linearly.
        average_decay: decay of the exponential moving average of the weights, which is what is validated and exported.
        auxiliary_weight: weight of the deep-supervision output, at a quarter of the resolution.
    """

    def __init__(
        self,
        network: MedFormerConfig = COMPACT,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        total_steps: int = 5000,
        warmup_steps: int = 200,
        average_decay: float = 0.999,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.network = MedFormer(network)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only
        self.average = AveragedModel(self.network, multi_avg_fn=_moving_average(average_decay), use_buffers=True)
        self.average.requires_grad_(False)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.total_steps, self.warmup_steps, self.auxiliary_weight = total_steps, warmup_steps, auxiliary_weight
        self.dice: list[dict[str, float]] = []

    @property
    def averaged(self) -> MedFormer:
        """The network with averaged weights."""
        network = self.average.module
        assert isinstance(network, MedFormer)
        return network

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Both outputs' `segmentation_loss`, weighted; the auxiliary one against every fourth pixel's label."""
        images, labels, annotated = batch
        logits, auxiliary = self.network.forward_with_auxiliary(images.contiguous(memory_format=torch.channels_last))
        coarse_labels = labels[:, 2::4, 2::4]
        main = segmentation_loss(logits, labels, annotated)
        deep = segmentation_loss(auxiliary, coarse_labels, annotated)
        return (1 - self.auxiliary_weight) * main + self.auxiliary_weight * deep

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """The loss of a batch of crops."""
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Move the average towards the weights."""
        self.average.update_parameters(self.network)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Cases stay where they are: `segment_with` moves their slices."""
        return batch if isinstance(batch, RawCase) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def validation_step(self, case: RawCase, batch_idx: int) -> None:  # noqa: ARG002
        """Segment a whole stack as the engine does, with the averaged weights."""
        dtype = torch.bfloat16 if self.trainer.precision.startswith("bf16") else None
        segmenter = Segmenter(self.averaged.eval(), Device(self.device, "training", dtype))
        labels = segment_with(segmenter, case.stack).voxels
        self.dice.append(dice_by_structure(labels, case.drawn.voxels))

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice of every structure, and of all."""
        for name in STRUCTURE_NAMES.values():
            values = [scores[name] for scores in self.dice if name in scores]
            if values:
                self.log(f"dice_{name}", float(np.mean(values)), prog_bar=True)
        if self.dice:
            self.log("dice", float(np.mean([value for scores in self.dice for value in scores.values()])))
        self.dice = []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a linear warm-up and a polynomial decay."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.learning_rate, betas=(0.9, 0.999), weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Linear warm-up, then (1 - progress) ** 0.9."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return max(1 - step / self.total_steps, 1e-3) ** 0.9


def _moving_average(decay: float):
    """Update for `AveragedModel`: slower with every step up to `decay`, so that the random start is soon forgotten."""

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for average, value in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    return torch.no_grad()(update)


def segmenter_config(network: MedFormerConfig) -> dict[str, Any]:
    """The manifest's configuration of a trained segmenter."""
    return {"network": asdict(network), "pixel_mm": PIXEL_MM, "mirrored": MIRRORED}


def dice_by_structure(labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of each structure over a whole stack; a structure absent from both is left out."""
    scores = {}
    for value, name in STRUCTURE_NAMES.items():
        found, there = labels == value, truth == value
        if found.any() or there.any():
            scores[name] = float(2 * (found & there).sum() / (found.sum() + there.sum()))
    return scores
