"""Clips for the 2D+T model: the same crop of three neighboring slices over some frames of a cine.

Real cines (UK Biobank, M&Ms, ACDC's 4D files) and the semi-synthetic ones (`cine.py`) are read alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from calid.run.windows import closes

from calid_training.crops import Batch, BatchMaker, Triplet, apply_crop, draw_crop, draw_members, triplets
from calid_training.data import TripletData
from calid_training.prepare import PreparedCase


@dataclass(frozen=True, eq=False)
class Moving:
    """Slices (n-k, n, n+k) of all frames of a cine.

    Args:
        triplet: the slices.
        spans_cycle: whether the last frame is followed by the first.
    """

    triplet: Triplet
    spans_cycle: bool

    @property
    def num_frames(self) -> int:
        return len(self.triplet.case.images)


def moving(cases: Sequence[PreparedCase], *, frames: int, max_gap_mm: float) -> list[Moving]:
    """Every triplet of slices of the cases that have at least `frames` frames."""
    cines = [case for case in cases if len(case.images) >= frames]
    spans = {id(case): closes(case.images) for case in cines}
    firsts = [triplet for triplet in triplets(cines, max_gap_mm=max_gap_mm) if triplet.frame == 0]
    return [Moving(triplet, spans[id(triplet.case)]) for triplet in firsts]


def draw_frames(rng: np.random.Generator, source: Moving, *, count: int, pace: float) -> tuple[np.ndarray, bool]:
    """Indices of `count` frames of a cine at an even pace, and whether they go once around the cycle.

    Args:
        rng: draws where they start.
        source: the cine.
        count: frames of the clip.
        pace: 0 to 1, from consecutive frames to as far apart as the cine is long.
    """
    total = source.num_frames
    stride = 1 + int(pace * (total // count))
    stride = min(stride, total // count)
    if source.spans_cycle:
        start = rng.integers(total)
        return (start + stride * np.arange(count)) % total, stride * count == total
    start = rng.integers(total - stride * (count - 1))
    return start + stride * np.arange(count), False


def clip_batch(
    rng: np.random.Generator, sources: Sequence[Moving], count: int, size: int, *, frames: int, identity: float
) -> Batch:
    """{"before", "target", "after"}: (N, 1, frames, size, size) each, and "is_periodic" of all of them.

    As in `crops.triplet_batch`, a share `identity` is one slice three times, and either end may come first.
    """
    pace = rng.random()
    drawn = [_random_clip(rng, sources, size, frames, pace, identity) for _ in range(count)]
    before, target, after = torch.stack([clip for clip, _ in drawn], dim=1)
    return {"before": before, "target": target, "after": after, "is_periodic": all(closed for _, closed in drawn)}


def _random_clip(
    rng: np.random.Generator, sources: Sequence[Moving], size: int, frames: int, pace: float, identity: float
) -> tuple[torch.Tensor, bool]:
    source = sources[rng.integers(len(sources))]
    triplet = source.triplet
    members = draw_members(rng, triplet, identity=identity)
    chosen, closed = draw_frames(rng, source, count=frames, pace=pace)
    native_mm = triplet.case.entry.spacing_mm[0]
    plan = draw_crop(rng, center=triplet.center, native_mm=native_mm, size=size)
    images = triplet.case.images[np.ix_(chosen, members)].swapaxes(0, 1)
    crops = apply_crop(images.reshape(-1, *images.shape[2:]), plan, native_mm=native_mm)
    return crops.reshape(3, 1, frames, size, size), closed


class ClipData(TripletData):
    """Clips of slices with their neighbors, for the 2D+T denoiser.

    Args:
        frames: of a clip; cines with fewer are left out. The paper trains on 32.
    """

    def __init__(self, frames: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frames = frames

    def batch_maker(self, split: str) -> BatchMaker:
        return partial(clip_batch, frames=self.frames, identity=self.identity if split == "train" else 0.0)

    def sources(self, split: str) -> Sequence:
        cases = [triplet.case for triplet in super().sources(split)]
        return moving(list(dict.fromkeys(cases)), frames=self.frames, max_gap_mm=self.max_gap_mm)


class ClipImages(ClipData):
    """Clips of single slices, for the autoencoder of the paper's 2D+T model."""

    def batch_maker(self, split: str) -> BatchMaker:
        make = super().batch_maker(split)
        return lambda rng, sources, count, size: {"images": make(rng, sources, count, size)["target"]}
