"""Lightning data modules: prepared sets -> streams of crops, one for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from calid_training.crops import SHIPPED, BatchMaker, CropStream, Triplets, Variety, image_batch, triplet_batch
from calid_training.datasets import LICENSE_CLEAN
from calid_training.errors import UsageError
from calid_training.prepare import StoredCase, load_cases, provenance_of, read_index
from calid_training.runs import data_module_of

VALIDATION_SEED = 7


class Reseeding(L.Callback):
    """Makes what stages draw with torch (times, noises, codes), like crops, a function of (seed, epoch, rank, batch).

    So every process draws its own, and a resumed run draws what an uninterrupted one would have drawn. Each batch is
    seeded and not each epoch, because loaders draw too, and not always before an epoch starts.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed torch's generator for one batch."""
        del pl_module, batch
        key = (data_module_of(trainer).seed, trainer.current_epoch, trainer.global_rank, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class CropData(L.LightningDataModule):
    """Crops of the prepared sets; the validation stream is the same crops every time.

    Args:
        prepared: folder made by `calid-train prepare`.
        datasets: sets to draw from. What ships is trained on the license-clean ones.
        batch_size: crops per batch at the first of `sizes`.
        sizes, size_weights: crop sizes and how often each is drawn.
        batches: training batches per epoch.
        validation_batches: validation batches of the first size.
        workers: loader processes; 0 loads in the training process. How many there are changes no batch.
        seed: seed of the streams.
        variety: how much the crops differ from the slices that they are cut from.
        frame_step: every how many-th frame of a cine takes part; the paper takes every fifth of 50.
    """

    def __init__(
        self,
        prepared: Path = Path("prepared"),
        datasets: Sequence[str] = LICENSE_CLEAN,
        batch_size: int = 8,
        sizes: Sequence[int] = (128, 64, 192),
        size_weights: Sequence[float] = (0.5, 0.3, 0.2),
        batches: int = 500,
        validation_batches: int = 16,
        workers: int = 0,
        seed: int = 1,
        variety: Variety = SHIPPED,
        frame_step: int = 1,
    ) -> None:
        super().__init__()
        self.variety, self.frame_step = variety, frame_step
        self.prepared, self.datasets = Path(prepared), tuple(datasets)
        self.batch_size, self.sizes, self.size_weights = batch_size, tuple(sizes), tuple(size_weights)
        self.batches, self.validation_batches = batches, validation_batches
        self.workers, self.seed = workers, seed

    def cases(self, split: str) -> list[StoredCase]:
        """The prepared cases of a split."""
        return list(load_cases(self.prepared, datasets=self.datasets, split=split))

    def sources(self, split: str) -> Sequence:
        """What a stream of this split draws from."""
        return self.cases(split)

    def batch_maker(self, split: str) -> BatchMaker:  # noqa: ARG002 (for those whose splits differ)
        """What turns drawn sources into a batch."""
        return partial(image_batch, variety=self.variety, frame_step=self.frame_step)

    def provenance(self) -> dict[str, dict[str, Any]]:
        """{set: how many cases and patients of it train, and the SHA-256 over these cases' files}."""
        return provenance_of(read_index(self.prepared), self.datasets)

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's signature)
        """Make both streams, so that a split without cases is told before anything learns."""
        _ = self.train_stream, self.validation_stream

    @cached_property
    def train_stream(self) -> CropStream:
        """The crops that train."""
        return self._stream(
            "train", sizes=self.sizes, size_weights=self.size_weights, batches=self.batches, seed=self.seed
        )

    @cached_property
    def validation_stream(self) -> CropStream:
        """The crops that judge, the same every time."""
        sizes = {"sizes": self.sizes[:1], "size_weights": [1.0]}
        return self._stream("validation", **sizes, batches=self.validation_batches, seed=VALIDATION_SEED)

    def _stream(self, split: str, **drawing: Any) -> CropStream:
        sources = self.sources(split)
        if not sources:
            raise UsageError(
                f"{self.prepared} holds nothing to draw crops from for the {split} of {', '.join(self.datasets)}: "
                "prepare more patients, or name a set that has some (the split of each is in datasets.py)"
            )
        return CropStream(sources, self.batch_maker(split), batch_size=self.batch_size, **drawing)

    def train_dataloader(self) -> DataLoader:
        """The training stream of the epoch and the process that ask."""
        if self.trainer is not None:
            self.train_stream.epoch, self.train_stream.rank = self.trainer.current_epoch, self.trainer.global_rank
        return DataLoader(self.train_stream, batch_size=None, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        """The validation stream."""
        return DataLoader(self.validation_stream, batch_size=None)


class ImageData(CropData):
    """Single slices, for the autoencoder."""


class TripletData(CropData):
    """Slices with their neighbors, for the denoiser.

    Args:
        identity: share of triplets made of one slice three times, see `crops.triplet_batch`.
        max_gap_mm: largest distance between the outer slices where the set allows a choice.
    """

    def __init__(self, identity: float = 0.1, max_gap_mm: float = 22.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.identity, self.max_gap_mm = identity, max_gap_mm

    def batch_maker(self, split: str) -> BatchMaker:
        """`triplet_batch`; one slice three times only in training."""
        return partial(triplet_batch, identity=self.identity if split == "train" else 0.0, variety=self.variety)

    def sources(self, split: str) -> Sequence:
        """The triplets of the split's cases."""
        return Triplets(self.cases(split), max_gap_mm=self.max_gap_mm, frame_step=self.frame_step)
