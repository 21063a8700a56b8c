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
from torch.utils.data import IterableDataset, get_worker_info

from calid_training.prepare import AnyCase, case_center


@dataclass(frozen=True)
class Variety:
    """How much crops differ from the slices that they are cut from.

    Args:
        pixel_mm: range of pixel sizes, within which drawn ones are kept.
        zoom: range of the pixel size relative to the case's own.
        tilt_degrees: largest rotation beside the turns, of every second crop.
        turns: directions that a crop may look in: 4 are quarter turns, 2 half turns, 1 is upright.
        mirrors: whether half of the crops are mirrored.
        gamma: range of the exponent on the [0, 1] intensities, drawn evenly in its logarithm.
        white: range of the intensity that becomes the brightest, drawn evenly in its logarithm; all above is cut.
        shading: largest logarithm of the ratio between the brightness at opposite edges of a crop, as receiver coils
            leave it.
        bend_mm: largest size of a smooth displacement of all slices of a crop alike: another anatomy.
        jitter_pixels: largest distance, per axis, from the heart to the crop's center.
        anywhere: share of the field of view, around its middle, in which crops of single slices are centered; 0 centers
            them on the heart.
    """

    pixel_mm: tuple[float, float] = (1.15, 2.05)
    zoom: tuple[float, float] = (0.7, 1.4)
    tilt_degrees: float = 15.0
    turns: int = 4
    mirrors: bool = True
    gamma: tuple[float, float] = (0.8, 1.25)
    white: tuple[float, float] = (1.0, 1.0)
    shading: float = 0.0
    bend_mm: float = 0.0
    jitter_pixels: float = 18.0
    anywhere: float = 0.4


BEND_NODES = 5  # of a smooth displacement, along each side of a crop

SHIPPED = Variety()
"""That of the models that ship."""


@dataclass(frozen=True, eq=False)
class CropPlan:
    """One drawn crop; applying it involves no chance.

    Args:
        center: (column, row) in the case's pixels.
        pixel_mm: pixel size of the crop.
        angle: rotation of the crop in radians.
        mirrored: whether the columns run backwards.
        gamma: exponent on the [0, 1] intensities.
        size: rows and columns of the crop.
        white: intensity that becomes the brightest.
        shading: logarithms of the ratio between the brightness at opposite edges, across columns and across rows.
        bend: (2, nodes, nodes) displacements in pixels of the crop, columns then rows, smooth in between; None is none.
    """

    center: tuple[float, float]
    pixel_mm: float
    angle: float
    mirrored: bool
    gamma: float
    size: int
    white: float = 1.0
    shading: tuple[float, float] = (0.0, 0.0)
    bend: np.ndarray | None = None


def draw_crop(
    rng: np.random.Generator, *, center: np.ndarray, native_mm: float, size: int, variety: Variety = SHIPPED
) -> CropPlan:
    """Draw a crop near `center` (column, row)."""
    tilt = rng.uniform(-variety.tilt_degrees, variety.tilt_degrees) if rng.random() < 0.5 else 0.0
    column, row = center + rng.uniform(-variety.jitter_pixels, variety.jitter_pixels, 2)
    bend = rng.uniform(0, variety.bend_mm) / native_mm * rng.standard_normal((2, BEND_NODES, BEND_NODES))
    return CropPlan(
        center=(float(column), float(row)),
        pixel_mm=float(np.clip(native_mm * rng.uniform(*variety.zoom), *variety.pixel_mm)),
        angle=float(np.deg2rad(360 / variety.turns * rng.integers(variety.turns) + tilt)),
        mirrored=bool(rng.random() < 0.5) and variety.mirrors,
        gamma=float(np.exp(rng.uniform(*np.log(variety.gamma)))),
        white=float(np.exp(rng.uniform(*np.log(variety.white)))),
        shading=(float(rng.uniform(-1, 1) * variety.shading), float(rng.uniform(-1, 1) * variety.shading)),
        size=size,
        bend=bend.astype(np.float32) if variety.bend_mm else None,
    )


def apply_crop(images: np.ndarray, plan: CropPlan, *, native_mm: float) -> torch.Tensor:
    """Cut (N, Y, X) images in [0, 1]: (N, 1, size, size) float32 in [-1, 1], zero (air) outside the image."""
    scale = plan.pixel_mm / native_mm
    cos, sin = scale * np.cos(plan.angle), scale * np.sin(plan.angle)
    half = (plan.size - 1) / 2
    offset = torch.arange(plan.size, dtype=torch.float32) - half
    rows, columns = torch.meshgrid(offset, -offset if plan.mirrored else offset, indexing="ij")
    if plan.bend is not None:
        bend = F.interpolate(torch.from_numpy(plan.bend)[None], size=(plan.size, plan.size), mode="bicubic")[0]
        columns, rows = columns + bend[0], rows + bend[1]
    x = plan.center[0] + cos * columns - sin * rows
    y = plan.center[1] + sin * columns + cos * rows
    height, width = images.shape[1:]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32))[None]
    cut = F.grid_sample(pixels, grid[None], mode="bicubic", padding_mode="zeros", align_corners=True)[0]
    return _seen_anew(cut.clamp(0, 1)[:, None], plan) * 2 - 1


def _seen_anew(images: torch.Tensor, plan: CropPlan) -> torch.Tensor:
    """Images (N, 1, size, size) in [0, 1] as another scanner and another window would show them."""
    ramp = torch.linspace(-0.5, 0.5, plan.size)
    shade = torch.exp(plan.shading[0] * ramp + plan.shading[1] * ramp[:, None])
    return (images * (shade / plan.white)).clamp(0, 1) ** plan.gamma


Batch = dict[str, torch.Tensor]
BatchMaker = Callable[[np.random.Generator, Sequence, int, int], Batch]
"""(generator, sources, number of crops, crop size) -> batch."""


class CropStream(IterableDataset):
    """An endless supply of batches, cut into epochs of `batches` batches.

    Args:
        sources: cases, triplets or clips that `make_batch` draws from; opaque to the stream.
        make_batch: the `BatchMaker` of the stage.
        batch_size: crops per batch at the first of `sizes`; batches of other sizes hold about as many pixels.
        sizes: crop sizes, multiples of 16.
        size_weights: share of the batches of each size; they need not sum to 1.
        batches: batches of an epoch.
        seed: seed of the whole stream.
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
        """The batches; every loader process makes its share, and the loader puts them back into their order."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, self.batches, step):
            rng = np.random.default_rng((self.seed, self.epoch, self.rank, index))
            size = int(rng.choice(self.sizes, p=self.size_weights))
            count = max(1, round(self.batch_size * (self.sizes[0] / size) ** 2))
            yield self.make_batch(rng, self.sources, count, size)


def image_batch(
    rng: np.random.Generator,
    cases: Sequence[AnyCase],
    count: int,
    size: int,
    *,
    variety: Variety = SHIPPED,
    frame_step: int = 1,
) -> Batch:
    """Single slices, for the autoencoder: {"images": (N, 1, size, size)}."""
    return {"images": torch.cat([_random_image(rng, cases, size, variety, frame_step) for _ in range(count)])}


def _random_image(
    rng: np.random.Generator, cases: Sequence[AnyCase], size: int, variety: Variety, frame_step: int
) -> torch.Tensor:
    case = cases[int(rng.integers(len(cases)))]
    frames, slices, height, width = case.entry.shape
    native_mm = case.entry.spacing_mm[0]
    image = case.images[frame_step * rng.integers(-(-frames // frame_step)), rng.integers(slices)]
    center = case_center(case)
    if variety.anywhere:
        center = np.array([width, height]) * rng.uniform(0.5 - variety.anywhere / 2, 0.5 + variety.anywhere / 2, 2)
    plan = draw_crop(rng, center=center, native_mm=native_mm, size=size, variety=variety)
    return apply_crop(image[None], plan, native_mm=native_mm)


@dataclass(frozen=True, eq=False)
class Triplet:
    """Slices (n-k, n, n+k) of one frame: the outer two are given, the middle one is to be made."""

    case: AnyCase
    center: np.ndarray
    frame: int
    middle: int
    stride: int


class Triplets(Sequence[Triplet]):
    """Every triplet whose outer slices are at most some distance apart; neighbors always, whatever their gap.

    A triplet is made when it is asked for: what is kept is one number for every case and stride, not an object for
    every frame and slice of ten thousand subjects.

    Args:
        cases: prepared stacks.
        max_gap_mm: largest distance between the outer slices of a triplet, but for neighbors.
        frame_step: every how many-th frame takes part.
    """

    def __init__(self, cases: Sequence[AnyCase], *, max_gap_mm: float = 22.0, frame_step: int = 1) -> None:
        self.cases, self.frame_step = list(cases), frame_step
        owners, strides, counts = [], [], []
        for number, case in enumerate(self.cases):
            frames, slices = case.entry.shape[:2]
            for stride in range(1, max(1, int(max_gap_mm / (2 * case.entry.spacing_mm[2]))) + 1):
                owners.append(number)
                strides.append(stride)
                counts.append(-(-frames // frame_step) * max(0, slices - 2 * stride))
        self._owners, self._strides = np.array(owners, int), np.array(strides, int)
        self._ends = np.cumsum(np.array(counts, int))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Triplet:  # type: ignore[override]  # no slices of it are needed
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[block - 1]) if block else 0)
        case, stride = self.cases[self._owners[block]], int(self._strides[block])
        frame, place = divmod(within, case.entry.shape[1] - 2 * stride)
        return Triplet(case, case_center(case), self.frame_step * frame, stride + place, stride)


def triplet_batch(
    rng: np.random.Generator,
    sources: Sequence[Triplet],
    count: int,
    size: int,
    *,
    identity: float = 0.1,
    variety: Variety = SHIPPED,
) -> Batch:
    """{"before", "target", "after"}: (N, 1, size, size) each, and "gap_mm": (N,) between both neighbors.

    A share `identity` of the triplets is (s, s, s): at the finest bisection levels neighbors are nearly equal, and the
    inversion of CaLID+ asks for a slice given itself. Either end may come first: the problem is symmetric.
    """
    drawn = [_random_triplet(rng, sources, size, identity, variety) for _ in range(count)]
    before, target, after = torch.stack([images for images, _ in drawn], dim=1)
    return {"before": before, "target": target, "after": after, "gap_mm": torch.tensor([gap for _, gap in drawn])}


def _random_triplet(
    rng: np.random.Generator, sources: Sequence[Triplet], size: int, identity: float, variety: Variety
) -> tuple[torch.Tensor, float]:
    """Slices (3, 1, size, size) and the gap between the outer two in mm."""
    triplet = sources[int(rng.integers(len(sources)))]
    members = draw_members(rng, triplet, identity=identity)
    native_mm, _, spacing_mm = triplet.case.entry.spacing_mm
    plan = draw_crop(rng, center=triplet.center, native_mm=native_mm, size=size, variety=variety)
    images = apply_crop(triplet.case.images[triplet.frame, members], plan, native_mm=native_mm)
    return images, float(abs(members[2] - members[0]) * spacing_mm)


def draw_members(rng: np.random.Generator, triplet: Triplet, *, identity: float) -> list[int]:
    """The slices (before, target, after) of a triplet, either end first; a share `identity` is one slice thrice."""
    step = triplet.stride * (-1 if rng.random() < 0.5 else 1)
    if rng.random() < identity:
        step = 0
    return [triplet.middle - step, triplet.middle, triplet.middle + step]
