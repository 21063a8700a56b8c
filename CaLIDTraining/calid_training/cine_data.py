"""Clips for the 2D+T model: the same crop of three neighboring slices over some frames of a cine.

Real cines (UK Biobank, M&Ms, ACDC's 4D files) and the semi-synthetic ones (`cine.py`) are read alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from calid_training.crops import (
    SHIPPED,
    Batch,
    BatchMaker,
    Triplet,
    Triplets,
    Variety,
    apply_crop,
    draw_crop,
    draw_members,
)
from calid_training.data import TripletData
from calid_training.prepare import AnyCase, spans_cycle

MAX_FRAMES = sys.maxsize


@dataclass(frozen=True, eq=False)
class Moving:
    """Slices (n-k, n, n+k) of all frames of a cine.

    Args:
        triplet: the three slices, of the cine's first frame.
        spans_cycle: whether the last frame is followed by the first.
    """

    triplet: Triplet
    spans_cycle: bool

    @property
    def num_frames(self) -> int:
        """How many frames the cine has."""
        return self.triplet.case.entry.shape[0]


class Movements(Sequence[Moving]):
    """Every triplet of slices of the cines that have at least some frames, made when it is asked for.

    Args:
        cases: prepared cines.
        frames: fewest frames of a cine; those with fewer are left out.
        max_gap_mm: largest distance between the outer slices, see `crops.Triplets`.
    """

    def __init__(self, cases: Sequence[AnyCase], *, frames: int, max_gap_mm: float) -> None:
        self.triplets = Triplets(
            [case for case in cases if case.entry.shape[0] >= frames],
            max_gap_mm=max_gap_mm,
            frame_step=MAX_FRAMES,  # one triplet for all frames
        )

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> Moving:  # type: ignore[override]  # no slices of it are needed
        triplet = self.triplets[index]
        return Moving(triplet, spans_cycle(triplet.case))


def draw_frames(
    rng: np.random.Generator, source: Moving, *, count: int, pace: float, whole_cycle: bool = False
) -> tuple[np.ndarray, bool]:
    """Indices of `count` frames of a cine at an even pace, and whether they go once around the cycle.

    Args:
        rng: draws where they start.
        source: slices of the cine.
        count: frames of the clip.
        pace: 0 to 1, from consecutive frames to as far apart as the cine is long.
        whole_cycle: spread the frames over the whole cine instead, as evenly as whole frames allow (the paper's "we
            uniformly subsample 32 frames"). A cine that goes on from its end may begin anywhere.
    """
    total = source.num_frames
    if whole_cycle:
        start = rng.integers(total) if source.spans_cycle else 0
        last = total if source.spans_cycle else total - 1
        steps = np.linspace(0, last, count, endpoint=not source.spans_cycle)
        return (start + np.round(steps).astype(int)) % total, source.spans_cycle
    stride = 1 + int(pace * (total // count))
    stride = min(stride, total // count)
    if source.spans_cycle:
        start = rng.integers(total)
        return (start + stride * np.arange(count)) % total, stride * count == total
    start = rng.integers(total - stride * (count - 1))
    return start + stride * np.arange(count), False


def clip_batch(
    rng: np.random.Generator,
    sources: Sequence[Moving],
    count: int,
    size: int,
    *,
    frames: int,
    identity: float,
    whole_cycle: bool = False,
    variety: Variety = SHIPPED,
) -> Batch:
    """{"before", "target", "after"}: (N, 1, frames, size, size) each, "gap_mm": (N,), and "is_periodic" of all of them.

    As in `crops.triplet_batch`, a share `identity` is one slice three times, and either end may come first.
    """
    drawing = partial(draw_frames, rng, count=frames, pace=rng.random(), whole_cycle=whole_cycle)
    drawn = [_random_clip(rng, sources, size, drawing, identity, variety) for _ in range(count)]
    before, target, after = torch.stack([clip for clip, _, _ in drawn], dim=1)
    return {
        "before": before,
        "target": target,
        "after": after,
        "gap_mm": torch.tensor([gap_mm for _, gap_mm, _ in drawn]),
        "is_periodic": all(closed for _, _, closed in drawn),
    }


def _random_clip(
    rng: np.random.Generator,
    sources: Sequence[Moving],
    size: int,
    drawing: Callable[[Moving], tuple[np.ndarray, bool]],
    identity: float,
    variety: Variety,
) -> tuple[torch.Tensor, float, bool]:
    """Slices (3, 1, frames, size, size), the gap between the outer two in mm, and whether the frames are a cycle."""
    source = sources[int(rng.integers(len(sources)))]
    triplet = source.triplet
    members = draw_members(rng, triplet, identity=identity)
    chosen, closed = drawing(source)
    native_mm, _, spacing_mm = triplet.case.entry.spacing_mm
    plan = draw_crop(rng, center=triplet.center, native_mm=native_mm, size=size, variety=variety)
    images = triplet.case.images[np.ix_(chosen, np.array(members))].swapaxes(0, 1)
    crops = apply_crop(images.reshape(-1, *images.shape[2:]), plan, native_mm=native_mm)
    gap_mm = float(abs(members[2] - members[0]) * spacing_mm)
    return crops.reshape(3, 1, len(chosen), size, size), gap_mm, closed


class ClipData(TripletData):
    """Clips of slices with their neighbors, for the 2D+T denoiser.

    Args:
        frames: number of frames of a clip; cines with fewer are left out. The paper trains on 32.
        whole_cycle: whether they are spread over the whole cycle, as in the paper; otherwise at a drawn pace.
    """

    def __init__(self, frames: int = 10, whole_cycle: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frames, self.whole_cycle = frames, whole_cycle

    def batch_maker(self, split: str) -> BatchMaker:
        """`clip_batch`; one slice three times only in training."""
        return partial(
            clip_batch,
            frames=self.frames,
            identity=self.identity if split == "train" else 0.0,
            whole_cycle=self.whole_cycle,
            variety=self.variety,
        )

    def sources(self, split: str) -> Sequence:
        """The triplets of the split's cines."""
        return Movements(self.cases(split), frames=self.frames, max_gap_mm=self.max_gap_mm)


class ClipImages(ClipData):
    """Clips of single slices, for the autoencoder of the paper's 2D+T model."""

    def batch_maker(self, split: str) -> BatchMaker:
        """The middle slices of `clip_batch` alone, as "images"."""
        return partial(_targets, super().batch_maker(split))


def _targets(make: BatchMaker, rng: np.random.Generator, sources: Sequence, count: int, size: int) -> Batch:
    return {"images": make(rng, sources, count, size)["target"]}
