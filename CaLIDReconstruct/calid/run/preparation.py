"""From a stack to what the networks see, and exactly back.

A `Preparation` is a plan drawn once from the stack (intensity window, region, working grid) and then only applied:
`prepare` turns frames into normalized images, `restore` turns generated images back into intensities on its grid.
Acquired slices never pass through it on their way to the output. Codec and denoiser may have to work in a region only;
it fades into what surrounds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from calid.errors import InputError
from calid.run.region import GRID_MULTIPLE, MIN_PADDED_PIXELS, Box, Region, region_around
from calid.stack import WINDOW_PERCENTILES, Stack

WORKING_PIXEL_MM = (1.0, 2.2)  # the networks saw 1.2 to 2.0 mm; a little beyond is harmless, further is resampled


def intensity_window(voxels: np.ndarray) -> tuple[float, float]:
    """The intensities that become -1 and 1: `WINDOW_PERCENTILES`.

    Raises:
        InputError: "constant" if the two are equal, so that there is nothing to see.
    """
    low, high = np.percentile(voxels, WINDOW_PERCENTILES)
    if not high > low:
        low, high = float(voxels.min()), float(voxels.max())
    if not high > low:
        raise InputError("constant", f"Every voxel has the value {low:g}.", "Choose an image that shows something.")
    return float(low), float(high)


@dataclass(frozen=True)
class Preparation:
    """How one stack is shown to the networks.

    Args:
        low, high: intensities mapped to -1 and 1; what lies beyond is carried by linear interpolation.
        size: (rows, columns) of the stack's images.
        working_shape: (rows, columns) on the networks' grid, before padding.
        padded_shape: the same, padded to multiples of `GRID_MULTIPLE`, at least `MIN_PADDED_PIXELS`.
        slice_mm: distance of the acquired slices.
        region: where codec and denoiser work; None is everywhere.
    """

    low: float
    high: float
    size: tuple[int, int]
    working_shape: tuple[int, int]
    padded_shape: tuple[int, int]
    slice_mm: float = 10.0
    region: Region | None = None

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Show (N, Y, X) images to the networks: (N, 1, *padded_shape) float32 in [-1, 1]."""
        pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
        scaled = ((pixels - self.low) / (self.high - self.low) * 2 - 1).clamp(-1, 1)
        if self.working_shape != self.size:
            scaled = F.interpolate(scaled, self.working_shape, mode="bilinear", antialias=True, align_corners=False)
        rows, columns = (padded - size for padded, size in zip(self.padded_shape, self.working_shape, strict=True))
        return F.pad(scaled, (0, columns, 0, rows), mode="replicate")

    def restore(self, generated: torch.Tensor) -> np.ndarray:
        """Undo `prepare` for (N, 1, *padded_shape) images: (N, Y, X) float32 in the stack's intensities."""
        rows, columns = self.working_shape
        images = generated[..., :rows, :columns].float() + 1
        if self.working_shape != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=False)
        return images[:, 0].cpu().numpy() * (self.high - self.low) / 2 + self.low

    def excess(self, images: np.ndarray) -> np.ndarray:
        """What lies beyond the intensity window: (N, Y, X) float32, zero inside it."""
        images = images.astype(np.float32)
        return images - images.clip(self.low, self.high)

    def within(self, roi: Box) -> Preparation:
        """The same plan, with codec and denoiser in a region around columns and rows of the stack."""
        rows, columns = (working / pixels for working, pixels in zip(self.working_shape, self.size, strict=True))
        return replace(self, region=region_around(roi, shape=self.padded_shape, scale=(rows, columns)))

    @property
    def region_shape(self) -> tuple[int, int]:
        """(rows, columns) of what codec and denoiser are shown."""
        if self.region is None:
            return self.padded_shape
        return self.region.inner_shape

    @property
    def box(self) -> Box | None:
        """The region in the stack's columns and rows; None is everywhere."""
        if self.region is None:
            return None
        (y0, y1), (x0, x1) = (
            (round(start * pixels / working), min(round(stop * pixels / working), pixels))
            for (start, stop), pixels, working in zip(self.region.extents, self.size, self.working_shape, strict=True)
        )
        return x0, x1, y0, y1


def plan_preparation(stack: Stack, *, roi: Box | None = None) -> Preparation:
    """Draw the plan for a stack: one intensity window for all its slices and frames, one grid.

    Args:
        stack: a checked stack.
        roi: (x0, x1, y0, y1) half-open columns and rows where codec and denoiser have to work, what lies beyond the
            image is left out; None is the whole field of view.

    Raises:
        InputError: "constant" if the stack shows nothing.
    """
    rows, columns = stack.voxels.shape[2:]
    low, high = intensity_window(stack.voxels)
    x_mm, y_mm, z_mm = (float(mm) for mm in stack.spacing_mm)
    working = _working_size(rows, y_mm), _working_size(columns, x_mm)
    padded = tuple(max(-(-size // GRID_MULTIPLE) * GRID_MULTIPLE, MIN_PADDED_PIXELS) for size in working)
    plan = Preparation(low, high, (rows, columns), working, (padded[0], padded[1]), z_mm)
    return plan if roi is None else plan.within(roi)


def _working_size(pixels: int, pixel_mm: float) -> int:
    """Pixels on the networks' grid: the stack's own, unless its pixel size is far from what they know."""
    return max(1, round(pixels * pixel_mm / float(np.clip(pixel_mm, *WORKING_PIXEL_MM))))
