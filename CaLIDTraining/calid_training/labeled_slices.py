"""What the segmenter is trained on: labeled slices of every set, and random views of them.

A view is a random place, pixel size, rotation and handedness (the sets disagree on orientation), and another scanner's
look: window, gamma, shading, blur as in generated slices, coarse pixels, noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from calid.heart.segmentation import PIXEL_MM, WINDOW_PIXELS, intensity_range, scaled
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from calid_training.datasets import RawCase


@dataclass(frozen=True, eq=False)
class LabeledSlice:
    """One slice as training sees it.

    Args:
        image: (Y, X) float16, 0..1 between the percentiles near the heart, not clipped below -0.5 and above 2.
        labels: (Y, X) uint8.
        spacing_mm: pixel size along rows (y) and columns (x).
        heart: (row, column), voxels: the middle of the whole stack's labels.
        annotated: (4,) bool by class.
        dataset: the set it comes from.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float]
    heart: tuple[float, float]
    annotated: tuple[bool, ...]
    dataset: str


def labeled_slices(case: RawCase) -> list[LabeledSlice]:
    """The slices of a case that can teach something.

    Where only some structures were drawn, slices without any contour are left out: there "not there" and "not drawn"
    look the same.
    """
    spacing = case.stack.spacing_mm[[1, 0]]
    annotated = tuple(k in case.annotated or k == 0 for k in range(4))
    box = _heart_box(case, margin_mm=35.0)
    heart = ((box[0].start + box[0].stop - 1) / 2, (box[1].start + box[1].stop - 1) / 2)
    slices = []
    for images, labels in zip(case.stack.voxels, case.drawn.voxels, strict=True):
        shared = None if case.per_slice_intensity else intensity_range(images[:, box[0], box[1]])
        for image, label in zip(images, labels, strict=True):
            if label.any() or all(annotated):
                picture = _unclipped(image, shared or intensity_range(image[box]), spacing)
                slices.append(LabeledSlice(picture, label, tuple(spacing), heart, annotated, case.dataset))
    return slices


def _heart_box(case: RawCase, *, margin_mm: float) -> tuple[slice, slice]:
    """In-plane box of all labels of the case, with a margin."""
    box = ndimage.find_objects((case.drawn.voxels.max(axis=(0, 1)) > 0).astype(np.uint8))[0]
    margins = np.round(margin_mm / case.stack.spacing_mm[[1, 0]]).astype(int)
    rows, columns = (
        slice(max(0, s.start - m), min(n, s.stop + m))
        for s, m, n in zip(box, margins, case.drawn.voxels.shape[2:], strict=True)
    )
    return rows, columns


def _unclipped(image: np.ndarray, intensities: tuple[float, float], spacing_mm: np.ndarray) -> np.ndarray:
    """Scaled to 0..1 without clipping there (augmentation moves the limits); fine pixels are smoothed to 1.2 mm."""
    low, high = intensities
    image = np.clip((image.astype(np.float32) - low) / (high - low), -0.5, 2)
    sigmas = 0.5 * np.sqrt(np.maximum((1.2 / spacing_mm) ** 2 - 1, 0))
    return ndimage.gaussian_filter(image, sigmas).astype(np.float16)


@dataclass(frozen=True)
class Augmentation:
    """How far training images stray from the originals.

    Args:
        pixel_mm: log-uniform range of the pixel size of most crops.
        wide_pixel_mm: log-uniform range of the pixel size of the crops that show a wide view, for finding the heart.
        wide_share: share of those.
        stretch: largest relative difference between the axes' scales.
        offset_mm: largest distance, per axis, from the heart to the crop's center.
        wide_offset_mm: largest such distance of wide and of far-off crops.
        far_share: share of crops at the usual scale that are this far off.
        bend_mm: standard deviation of the smooth displacement of bent crops (three in ten).
        gamma: log-uniform range of the exponent on the [0, 1] intensities.
        noise: largest standard deviation of added Gaussian noise.
        blur_mm: largest standard deviation of the blur of three crops in ten (generated slices are smooth).
        shading: largest slope of the log brightness across the crop.
    """

    pixel_mm: tuple[float, float] = (1.15, 2.0)
    wide_pixel_mm: tuple[float, float] = (2.0, 2.9)
    wide_share: float = 0.12
    stretch: float = 0.1
    offset_mm: float = 25.0
    wide_offset_mm: float = 80.0
    far_share: float = 0.1
    bend_mm: float = 2.5
    gamma: tuple[float, float] = (0.6, 1.6)
    noise: float = 0.06
    blur_mm: float = 2.0
    shading: float = 0.5


SHIPPED_AUGMENTATION = Augmentation()


def sampling_grid(item: LabeledSlice, settings: Augmentation, rng: np.random.Generator, *, size: int) -> Tensor:
    """Where a random crop looks: (1, size, size, 2) in `grid_sample`'s coordinates (x first, corners aligned).

    Any rotation, either handedness, a random pixel size and place, sometimes smoothly bent.
    """
    wide = rng.random() < settings.wide_share
    far = wide or rng.random() < settings.far_share
    pixel_mm = np.exp(rng.uniform(*np.log(settings.wide_pixel_mm if wide else settings.pixel_mm)))
    stretch = np.exp(rng.uniform(-settings.stretch, settings.stretch) * np.array([0.5, -0.5]))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mirror = np.diag([1.0, rng.choice((-1.0, 1.0))])
    offset = rng.uniform(-1, 1, 2) * (settings.wide_offset_mm if far else settings.offset_mm)
    axis = (np.arange(size) - (size - 1) / 2) * pixel_mm
    millimeters = np.stack(np.meshgrid(axis, axis), axis=-1) @ (turn @ mirror * stretch).T + offset
    if rng.random() < 0.3:
        millimeters = millimeters + _smooth_field(rng, size) * rng.uniform(0, settings.bend_mm)
    spacing, heart, shape = (np.array(v)[::-1] for v in (item.spacing_mm, item.heart, item.image.shape))
    return torch.from_numpy(2 * (heart + millimeters / spacing) / (shape - 1) - 1)[None].float()


def _smooth_field(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 2) random displacements of about unit deviation that change over a quarter of the crop."""
    coarse = torch.from_numpy(rng.standard_normal((1, 2, 5, 5)))
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0].permute(1, 2, 0).numpy()


def changed_look(image: np.ndarray, settings: Augmentation, rng: np.random.Generator, *, pixel_mm: float) -> np.ndarray:
    """Another scanner's look of a crop (H, W): window, gamma, shading, blur or coarse pixels, noise; 0..1."""
    image = scaled(image, (rng.uniform(-0.08, 0.08), rng.uniform(0.75, 1.35)))
    image = image ** np.float32(np.exp(rng.uniform(*np.log(settings.gamma))))
    if rng.random() < 0.3:
        ramp = np.linspace(-0.5, 0.5, image.shape[0], dtype=np.float32)
        slopes = rng.uniform(-settings.shading, settings.shading, 2).astype(np.float32)
        image = image * np.exp(slopes[0] * ramp[:, None] + slopes[1] * ramp)
    kind = rng.random()
    if kind < 0.3:
        image = ndimage.gaussian_filter(image, rng.uniform(0.2, settings.blur_mm) / pixel_mm)
    elif kind < 0.4:
        image = _coarse(image, rng.uniform(1.2, 2.2))
    if rng.random() < 0.5:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, settings.noise))
    return np.clip(image, 0, 1, dtype=np.float32)


def _coarse(image: np.ndarray, factor: float) -> np.ndarray:
    """As if acquired with pixels `factor` times larger and interpolated back."""
    tensor = torch.from_numpy(image)[None, None]
    small = F.interpolate(tensor, scale_factor=1 / factor, mode="bilinear", antialias=True)
    return F.interpolate(small, size=image.shape, mode="bicubic")[0, 0].numpy()


def random_crop(
    item: LabeledSlice, settings: Augmentation, rng: np.random.Generator, *, size: int = WINDOW_PIXELS
) -> tuple[Tensor, Tensor]:
    """A random view of a slice: image (1, size, size) float32 in 0..1, labels (size, size) int64."""
    grid = sampling_grid(item, settings, rng, size=size)
    whole, drawn = (torch.from_numpy(x.astype(np.float32))[None, None] for x in (item.image, item.labels))
    image = F.grid_sample(whole, grid, align_corners=True)[0, 0].numpy()
    labels = F.grid_sample(drawn, grid, mode="nearest", align_corners=True)[0, 0].long()
    return torch.from_numpy(changed_look(image, settings, rng, pixel_mm=PIXEL_MM))[None], labels


class RandomCrops(Dataset):
    """Random crops; the i-th is fixed by (seed, epoch, i), whatever the batches and workers.

    Args:
        slices: slices that crops are cut from.
        weights: share of the crops by set; slices of one set are equally likely.
        length: crops in an epoch.
        seed, epoch: seed and epoch of the random numbers.
        augmentation: how far crops stray from the originals.
        size: edge of a crop in pixels.
    """

    def __init__(
        self,
        slices: Sequence[LabeledSlice],
        *,
        weights: dict[str, float],
        length: int,
        seed: int,
        epoch: int,
        augmentation: Augmentation,
        size: int,
    ) -> None:
        self.slices, self.length, self.key = slices, length, (seed, epoch)
        self.augmentation, self.size = augmentation, size
        names = np.array([s.dataset for s in slices])
        chances = np.array([weights[s.dataset] / (names == s.dataset).sum() for s in slices])
        self.chances = chances / chances.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if index >= self.length:
            raise IndexError(index)
        rng = np.random.default_rng((*self.key, index))
        item = self.slices[rng.choice(len(self.slices), p=self.chances)]
        image, labels = random_crop(item, self.augmentation, rng, size=self.size)
        return image, labels, torch.tensor(item.annotated)
