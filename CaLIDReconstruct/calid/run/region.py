"""Where codec and denoiser work: a part of the image, found by the beat or given, and how it fades into the rest.

Chest wall, lungs and liver are the same from slice to slice but for what the motion moves; the heart is not. So the
motion, too, looks around the region once only, and not in a mirror and again at what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from calid.errors import SettingsError
from calid.stack import Stack

Box = tuple[int, int, int, int]
"""(x0, x1, y0, y1), half-open columns and rows of a stack."""

GRID_MULTIPLE = 16  # codec and denoiser together halve four times
MIN_PADDED_PIXELS = 32  # the motion halves five times
FEATHER_PIXELS = 6  # over which the region fades into what surrounds it
MIN_ROI_PIXELS = 16
WORTH_SHARE = 0.75  # of the image: a region that has more of it is the whole

SMOOTHING_MM = 12.0  # over which motion is gathered: walls move, the blood between them and the muscle behind hardly
NEAR_MM = 75.0  # from the middle of the image, near which hearts are planned: chest walls move with the breath, too
MOVING_SHARE = 0.15  # of the strongest motion, from which a place counts as moving
STILL_SHARE = 0.01  # of the contrast of an image, below which nothing moves
MARGIN_MM = 25.0  # around what moves
LEAST_MM = 160.0  # of a side: hearts that hardly move are no smaller


@dataclass(frozen=True)
class Region:
    """Where codec and denoiser work: half-open rows and columns of the networks' grid, multiples of `GRID_MULTIPLE`.

    Args:
        rows, columns: first and last + 1 of the region.
        shape: (rows, columns) of the whole grid.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    shape: tuple[int, int]

    def cut(self, images: torch.Tensor, mirror: Sequence[int] = ()) -> torch.Tensor:
        """The region of images (..., H, W), which are mirrored along some of the axes -2 and -1."""
        return images[(..., *self._slices(mirror))]

    def paste(self, around: torch.Tensor, inside: torch.Tensor, mirror: Sequence[int] = ()) -> torch.Tensor:
        """Images (..., H, W) around the region with others inside, faded into each other within the region.

        A side of the region that is also a side of the image does not fade.
        """
        weights = torch.outer(*(_fade(n, *extent) for n, extent in zip(self.shape, self.extents, strict=True)))
        pasted = around.clone()
        pasted[(..., *self._slices(mirror))] += weights.flip(tuple(mirror)) * (inside - self.cut(around, mirror))
        return pasted

    @property
    def extents(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows and the columns."""
        return self.rows, self.columns

    @property
    def inner_shape(self) -> tuple[int, int]:
        """How many rows and columns the region has."""
        rows, columns = (stop - start for start, stop in self.extents)
        return rows, columns

    def _slices(self, mirror: Sequence[int]) -> tuple[slice, slice]:
        rows, columns = (
            slice(n - stop, n - start) if axis in mirror else slice(start, stop)
            for axis, n, (start, stop) in zip((-2, -1), self.shape, self.extents, strict=True)
        )
        return rows, columns


def _fade(size: int, start: int, stop: int) -> torch.Tensor:
    """(stop - start,) weights of a region in an image of so many rows or columns."""
    place = torch.arange(stop - start, dtype=torch.float32)
    rise = torch.full_like(place, torch.inf) if start == 0 else place + 1
    fall = torch.full_like(place, torch.inf) if stop == size else len(place) - place
    return (torch.minimum(rise, fall) / (FEATHER_PIXELS + 1)).clamp(0, 1)


def region_around(box: Box, *, shape: tuple[int, int], scale: tuple[float, float]) -> Region | None:
    """The part of the networks' grid in which a box does not fade; None if that is nearly all of it.

    Args:
        box: columns and rows of the stack; what lies beyond the image is left out.
        shape: (rows, columns) of the grid.
        scale: rows and columns of the grid for each of the stack.
    """
    x0, x1, y0, y1 = box
    rows, columns = (
        _on_grid(start * per, stop * per, size)
        for start, stop, per, size in zip((y0, x0), (y1, x1), scale, shape, strict=True)
    )
    region = Region(rows, columns, shape)
    return region if math.prod(region.inner_shape) < WORTH_SHARE * math.prod(shape) else None


def _on_grid(start: float, stop: float, size: int) -> tuple[int, int]:
    """Whole multiples of the grid around an extent that does not fade, within so many rows or columns."""
    first = max(math.floor((start - FEATHER_PIXELS) / GRID_MULTIPLE) * GRID_MULTIPLE, 0)
    last = min(math.ceil((stop + FEATHER_PIXELS) / GRID_MULTIPLE) * GRID_MULTIPLE, size)
    if last - first < MIN_PADDED_PIXELS:
        first = max(last - MIN_PADDED_PIXELS, 0)
        last = first + MIN_PADDED_PIXELS
    return first, last


def checked_box(roi: Box, *, rows: int, columns: int) -> Box:
    """A box that a user gave, if it lies in an image of so many rows and columns.

    Raises:
        SettingsError: "roi" if it does not, or is too small.
    """
    x0, x1, y0, y1 = roi
    if not (0 <= x0 < x1 <= columns and 0 <= y0 < y1 <= rows):
        raise SettingsError(
            "roi",
            f"The region {x0}:{x1},{y0}:{y1} does not lie inside the {columns} x {rows} image.",
            f"Give columns and rows as x0:x1,y0:y1 within 0:{columns},0:{rows}.",
        )
    if min(x1 - x0, y1 - y0) < MIN_ROI_PIXELS:
        raise SettingsError(
            "roi",
            f"The region {x0}:{x1},{y0}:{y1} is smaller than {MIN_ROI_PIXELS} pixels.",
            "Choose a region that holds the heart.",
        )
    return x0, x1, y0, y1


def heart_box(stack: Stack) -> Box | None:
    """Columns and rows that hold the heart with a margin, by how much the first harmonic of the beat changes them.

    Args:
        stack: a cine, or two phases of it.

    Returns:
        None if nothing moves, as in a static stack.
    """
    if stack.num_frames < 2:
        return None
    motion = np.mean([_motion(frames, stack.spacing_mm) for frames in stack.voxels.swapaxes(0, 1)], axis=0)
    rows, columns = (
        (np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(motion.shape, stack.spacing_mm[1::-1], strict=True)
    )
    motion = motion * np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * NEAR_MM**2))
    if not motion.max() > STILL_SHARE * float(stack.voxels[0].std()):
        return None
    parts, _ = ndimage.label(motion > MOVING_SHARE * motion.max())
    here = parts == parts[np.unravel_index(motion.argmax(), motion.shape)]
    found = ndimage.find_objects(here.astype(int))[0]
    y, x = (_widened(extent, mm) for extent, mm in zip(found, stack.spacing_mm[1::-1], strict=True))
    return (*x, *y)


def _motion(frames: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(Y, X) amplitude of the first harmonic over the frames (T, Y, X) of one slice."""
    turning = np.exp(-2j * np.pi * np.arange(len(frames)) / len(frames)).astype(np.complex64)
    amplitude = 2 / len(frames) * np.abs(np.tensordot(turning, frames.astype(np.float32), axes=1))
    return ndimage.gaussian_filter(amplitude, SMOOTHING_MM / 2.355 / spacing_mm[1::-1])


def _widened(extent: slice, pixel_mm: float) -> tuple[int, int]:
    middle, half = (extent.start + extent.stop) / 2, (extent.stop - extent.start) / 2
    half = max(half + MARGIN_MM / pixel_mm, LEAST_MM / 2 / pixel_mm)
    return round(middle - half), round(middle + half)
