"""Batches of augmented crops for training: what is drawn is a small plan, what is done with it is pure.

Streams yield whole batches, because crops of one batch share a size and sizes vary between batches: the networks are
convolutional and are used on whole fields of view. A stream is a function of (seed, epoch, rank, batch), so that a
resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import IterableDataset

from calid_training.prepare import PreparedCase

PIXEL_MM = (1.15, 2.05)  # pixel sizes the networks are trained for
ZOOM = (0.7, 1.4)  # drawn pixel size relative to the case's own
MAX_TILT_DEGREES = 15.0
GAMMA = (0.8, 1.25)
HEART_JITTER_PIXELS = 18.0


@dataclass(frozen=True)
class CropPlan:
    """One drawn crop; applying it involves no chance.

    Args:
        center: (column, row) in the case's pixels.
        pixel_mm: of the crop.
        angle: radians.
        mirrored: whether the columns run backwards.
        gamma: exponent on the [0, 1] intensities.
        size: rows and columns of the crop.
    """

    center: tuple[float, float]
    pixel_mm: float
    angle: float
    mirrored: bool
    gamma: float
    size: int


def draw_crop(rng: np.random.Generator, *, center: np.ndarray, native_mm: float, size: int) -> CropPlan:
    """Draw a crop near `center` (column, row)."""
    tilt = rng.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES) if rng.random() < 0.5 else 0.0
    column, row = center + rng.uniform(-HEART_JITTER_PIXELS, HEART_JITTER_PIXELS, 2)
    return CropPlan(
        center=(float(column), float(row)),
        pixel_mm=float(np.clip(native_mm * rng.uniform(*ZOOM), *PIXEL_MM)),
        angle=float(np.deg2rad(90 * rng.integers(4) + tilt)),
        mirrored=bool(rng.random() < 0.5),
        gamma=float(np.exp(rng.uniform(*np.log(GAMMA)))),
        size=size,
    )


def apply_crop(images: np.ndarray, plan: CropPlan, *, native_mm: float) -> torch.Tensor:
    """Cut (N, Y, X) images in [0, 1]: (N, 1, size, size) float32 in [-1, 1], zero (air) outside the image."""
    scale = plan.pixel_mm / native_mm
    cos, sin = scale * np.cos(plan.angle), scale * np.sin(plan.angle)
    half = (plan.size - 1) / 2
    offset = torch.arange(plan.size, dtype=torch.float32) - half
    rows, columns = torch.meshgrid(offset, -offset if plan.mirrored else offset, indexing="ij")
    x = plan.center[0] + cos * columns - sin * rows
    y = plan.center[1] + sin * columns + cos * rows
    height, width = images.shape[1:]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))[None]
    cut = F.grid_sample(pixels, grid[None], mode="bicubic", padding_mode="zeros", align_corners=True)[0]
    return cut.clamp(0, 1)[:, None] ** plan.gamma * 2 - 1


def heart_center(case: PreparedCase) -> np.ndarray:
    """(column, row) of the labelled structures' centroid over all slices, or the image centre without labels."""
    height, width = case.images.shape[2:]
    if case.labels is None or not case.labels.any():
        return np.array([(width - 1) / 2, (height - 1) / 2])
    _, _, rows, columns = np.nonzero(case.labels)
    return np.array([columns.mean(), rows.mean()])


Batch = dict[str, torch.Tensor]
BatchMaker = Callable[[np.random.Generator, Sequence, int, int], Batch]
"""(generator, sources, number of crops, crop size) -> batch."""


class CropStream(IterableDataset):
    """An endless supply of batches, cut into epochs of `batches` batches.

    Args:
        sources: what can be drawn from; opaque to the stream.
        make_batch: see `BatchMaker`.
        batch_size: crops per batch at the first of `sizes`; batches of other sizes hold about as many pixels.
        sizes: crop sizes, multiples of 16.
        size_weights: how often each is drawn.
        batches: per epoch.
        seed: of the whole stream.
    """

    def __init__(
        self,
        sources: Sequence,
        make_batch: BatchMaker,
        *,
        batch_size: int,
        sizes: Sequence[int],
        size_weights: Sequence[float],
        batches: int,
        seed: int,
    ) -> None:
        self.sources, self.make_batch = sources, make_batch
        self.batch_size, self.sizes, self.batches, self.seed = batch_size, tuple(sizes), batches, seed
        self.size_weights = np.asarray(size_weights, float) / np.sum(size_weights)
        self.epoch, self.rank = 0, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.batches):
            rng = np.random.default_rng((self.seed, self.epoch, self.rank, index))
            size = int(rng.choice(self.sizes, p=self.size_weights))
            count = max(1, round(self.batch_size * (self.sizes[0] / size) ** 2))
            yield self.make_batch(rng, self.sources, count, size)


def image_batch(rng: np.random.Generator, cases: Sequence[PreparedCase], count: int, size: int) -> Batch:
    """Single slices from anywhere in the field of view, for the autoencoder: {"images": (N, 1, size, size)}."""
    return {"images": torch.cat([_random_image(rng, cases, size) for _ in range(count)])}


def _random_image(rng: np.random.Generator, cases: Sequence[PreparedCase], size: int) -> torch.Tensor:
    case = cases[rng.integers(len(cases))]
    frames, slices, height, width = case.images.shape
    native_mm = case.entry.spacing_mm[0]
    image = case.images[rng.integers(frames), rng.integers(slices)]
    anywhere = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    return apply_crop(image[None], draw_crop(rng, center=anywhere, native_mm=native_mm, size=size), native_mm=native_mm)


@dataclass(frozen=True, eq=False)
class Triplet:
    """Slices (n-k, n, n+k) of one frame: the outer two are given, the middle one is to be made."""

    case: PreparedCase
    center: np.ndarray
    frame: int
    middle: int
    stride: int


def triplets(cases: Sequence[PreparedCase], *, max_gap_mm: float = 22.0) -> list[Triplet]:
    """Every triplet whose outer slices are at most `max_gap_mm` apart; neighbors always, whatever their gap."""
    found = []
    for case in cases:
        frames, slices = case.images.shape[:2]
        spacing, center = case.entry.spacing_mm[2], heart_center(case)
        strides = max(1, int(max_gap_mm / (2 * spacing)))
        found += [
            Triplet(case, center, frame, middle, stride)
            for stride in range(1, strides + 1)
            for frame in range(frames)
            for middle in range(stride, slices - stride)
        ]
    return found


def triplet_batch(
    rng: np.random.Generator, sources: Sequence[Triplet], count: int, size: int, *, identity: float = 0.1
) -> Batch:
    """{"before", "target", "after"}: (N, 1, size, size) each.

    A share `identity` of the triplets is (s, s, s): at the finest bisection levels neighbors are nearly equal, and the
    inversion of CaLID+ asks for a slice given itself. Either end may come first: the problem is symmetric.
    """
    drawn = [_random_triplet(rng, sources, size, identity) for _ in range(count)]
    before, target, after = torch.stack(drawn, dim=1)
    return {"before": before, "target": target, "after": after}


def _random_triplet(rng: np.random.Generator, sources: Sequence[Triplet], size: int, identity: float) -> torch.Tensor:
    triplet = sources[rng.integers(len(sources))]
    members = draw_members(rng, triplet, identity=identity)
    native_mm = triplet.case.entry.spacing_mm[0]
    plan = draw_crop(rng, center=triplet.center, native_mm=native_mm, size=size)
    return apply_crop(triplet.case.images[triplet.frame, members], plan, native_mm=native_mm)


def draw_members(rng: np.random.Generator, triplet: Triplet, *, identity: float) -> list[int]:
    """The slices (before, target, after) of a triplet, either end first; a share `identity` is one slice thrice."""
    step = triplet.stride * (-1 if rng.random() < 0.5 else 1)
    if rng.random() < identity:
        step = 0
    return [triplet.middle - step, triplet.middle, triplet.middle + step]
