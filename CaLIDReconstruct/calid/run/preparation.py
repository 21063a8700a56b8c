"""From a stack to what the networks see, and exactly back.

A `Preparation` is a plan drawn once from the stack (intensity window, region, working grid) and then only applied:
`prepare` turns frames into normalised images, `restore` turns generated images back into intensities on its grid.
Acquired slices never pass through it on their way to the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from calid.errors import InputError, SettingsError
from calid.stack import WINDOW_PERCENTILES, Stack

WORKING_PIXEL_MM = (1.0, 2.2)  # the networks saw 1.2 to 2.0 mm; a little beyond is harmless, further is resampled
GRID_MULTIPLE = 16  # the autoencoder halves twice, the denoiser twice more
MIN_PADDED_PIXELS = 32  # the motion halves five times
ROI_FEATHER_PIXELS = 6  # over which the generated region fades into the linear interpolation around it
MIN_ROI_PIXELS = 16


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
        roi: (x0, x1, y0, y1), half-open column and row ranges of the generated region.
        working_shape: (rows, columns) of the region on the networks' grid, before padding.
        padded_shape: the same, padded to multiples of `GRID_MULTIPLE`, at least `MIN_PADDED_PIXELS`.
        slice_mm: distance of the acquired slices.
    """

    low: float
    high: float
    roi: tuple[int, int, int, int]
    working_shape: tuple[int, int]
    padded_shape: tuple[int, int]
    slice_mm: float = 10.0

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Show the region of (N, Y, X) images to the networks: (N, 1, *padded_shape) float32 in [-1, 1]."""
        x0, x1, y0, y1 = self.roi
        region = torch.from_numpy(np.ascontiguousarray(images[:, y0:y1, x0:x1], dtype=np.float32))[:, None]
        scaled = ((region - self.low) / (self.high - self.low) * 2 - 1).clamp(-1, 1)
        if self.working_shape != region.shape[-2:]:
            scaled = F.interpolate(scaled, self.working_shape, mode="bilinear", antialias=True, align_corners=False)
        rows, columns = (padded - size for padded, size in zip(self.padded_shape, self.working_shape, strict=True))
        return F.pad(scaled, (0, columns, 0, rows), mode="replicate")

    def restore(self, generated: torch.Tensor) -> np.ndarray:
        """Undo `prepare` for (N, 1, *padded_shape) images: (N, y1-y0, x1-x0) float32 in the stack's intensities."""
        rows, columns = self.working_shape
        images = generated[..., :rows, :columns].float() + 1
        x0, x1, y0, y1 = self.roi
        if (rows, columns) != (y1 - y0, x1 - x0):
            images = F.interpolate(images, (y1 - y0, x1 - x0), mode="bicubic", align_corners=False)
        return images[:, 0].cpu().numpy() * (self.high - self.low) / 2 + self.low

    def excess(self, images: np.ndarray) -> np.ndarray:
        """What lies beyond the intensity window: (N, Y, X) float32, zero inside it."""
        images = images.astype(np.float32)
        return images - images.clip(self.low, self.high)

    def blend_weights(self, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) weights of the generated region in the full field of view: 1 inside, fading to 0 outside.

        A side of the region that is also a side of the image does not fade.
        """
        x0, x1, y0, y1 = self.roi
        return np.outer(_fade(rows, y0, y1), _fade(columns, x0, x1)).astype(np.float32)


def _fade(size: int, start: int, stop: int) -> np.ndarray:
    position = np.arange(size)
    rise = np.full(size, np.inf) if start == 0 else position - start + 1
    fall = np.full(size, np.inf) if stop == size else stop - position
    return np.clip(np.minimum(rise, fall) / (ROI_FEATHER_PIXELS + 1), 0, 1)


def plan_preparation(stack: Stack, *, roi: tuple[int, int, int, int] | None = None) -> Preparation:
    """Draw the plan for a stack: one intensity window for all its slices and frames, one grid.

    Args:
        stack: a checked stack.
        roi: (x0, x1, y0, y1) half-open column and row ranges; None generates the whole field of view.

    Raises:
        SettingsError: "roi" if the region is not inside the image or too small.
        InputError: "constant" if the region shows nothing.
    """
    rows, columns = stack.voxels.shape[2:]
    region = (0, columns, 0, rows) if roi is None else _checked_roi(roi, rows=rows, columns=columns)
    x0, x1, y0, y1 = region
    low, high = intensity_window(stack.voxels[:, :, y0:y1, x0:x1])
    x_mm, y_mm, z_mm = stack.spacing_mm
    working = _working_size(y1 - y0, y_mm), _working_size(x1 - x0, x_mm)
    padded = tuple(max(-(-size // GRID_MULTIPLE) * GRID_MULTIPLE, MIN_PADDED_PIXELS) for size in working)
    return Preparation(
        low=low, high=high, roi=region, working_shape=working, padded_shape=(padded[0], padded[1]), slice_mm=float(z_mm)
    )


def _checked_roi(roi: tuple[int, int, int, int], *, rows: int, columns: int) -> tuple[int, int, int, int]:
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


def _working_size(pixels: int, pixel_mm: float) -> int:
    """Pixels on the networks' grid: the stack's own, unless its pixel size is far from what they know."""
    return max(1, round(pixels * pixel_mm / float(np.clip(pixel_mm, *WORKING_PIXEL_MM))))
