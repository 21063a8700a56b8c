"""Labels for every slice and frame of a short-axis stack: LV cavity, LV myocardium, RV cavity, by the 2D MedFormer.

The heart is found first, on the whole field of view at a coarse pixel size; then every slice is segmented in one
common window around it at the pixel size the network was trained at. Probabilities, not labels, go back to the
stack's own pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from calid.errors import is_out_of_memory
from calid.heart.medformer import NUM_SCALES, MedFormer, MedFormerConfig
from calid.images.checks import check_stack
from calid.method.weights import ModelEntry, built_for, config_from, find_model, load_model
from calid.run.device import Device, choose_device
from calid.run.progress import Progress, Watch
from calid.stack import Stack

DEFAULT_MODEL = "segmenter"
PIXEL_MM = 1.5
"""Pixel size at which the network works; ACDC's are 1.4 to 1.9 mm."""
COARSE_PIXEL_MM = 2.5
"""Pixel size at which the heart is looked for: 128 pixels then show 320 mm."""
WINDOW_PIXELS = 128
"""Smallest window around the heart; 192 mm, as in training."""
HEART_MARGIN_MM = 25.0
"""Room between the heart found and the window's edge: the network needs to see the surroundings."""
SEARCH_SLICES = 16
"""Slices of a frame that are looked at to find the heart."""
INTENSITY_PERCENTILES = (1.0, 99.0)
"""What becomes 0 and 1, as in the segmenter's training; slices are made and shown by `stack.WINDOW_PERCENTILES`."""
PERCENTILE_SAMPLES = 1_000_000
HARMLESS_HERE = ("one-slice", "already-isotropic")
"""Findings that forbid upsampling but not segmenting."""


@dataclass(frozen=True)
class PlaneGrid:
    """A regular in-plane grid laid over the rows and columns of a stack.

    Args:
        shape: rows and columns of the grid.
        center: (row, column) of the stack, fractional voxel indices, under the grid's center.
        step: stack voxels per grid pixel along rows and columns.
    """

    shape: tuple[int, int]
    center: tuple[float, float]
    step: tuple[float, float]

    def indices(self, axis: int) -> np.ndarray:
        """Stack voxel index under each grid row (axis 0) or column (axis 1)."""
        return self.center[axis] + (np.arange(self.shape[axis]) - (self.shape[axis] - 1) / 2) * self.step[axis]

    def inverse_indices(self, axis: int, size: int) -> np.ndarray:
        """Grid index over each of the `size` stack rows (axis 0) or columns (axis 1)."""
        return (np.arange(size) - self.center[axis]) / self.step[axis] + (self.shape[axis] - 1) / 2


def whole_view(stack: Stack, pixel_mm: float) -> PlaneGrid:
    """The window that covers the stack's full field of view, its size rounded up to what the network takes."""
    rows, columns = stack.voxels.shape[2:]
    spacing = stack.spacing_mm[[1, 0]]
    return _window(((rows - 1) / 2, (columns - 1) / 2), np.array([rows, columns]) * spacing, spacing, pixel_mm)


def _window(center: tuple[float, float], size_mm: np.ndarray, spacing_mm: np.ndarray, pixel_mm: float) -> PlaneGrid:
    multiple = 2**NUM_SCALES
    rows, columns = (max(1, math.ceil(s / pixel_mm / multiple - 1e-6)) * multiple for s in size_mm)
    return PlaneGrid((rows, columns), center, (pixel_mm / spacing_mm[0], pixel_mm / spacing_mm[1]))


def intensity_range(voxels: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile of finite voxels (of a regular sample of them where there are very many)."""
    flat = voxels.reshape(-1)
    flat = flat[:: max(1, flat.size // PERCENTILE_SAMPLES)].astype(np.float32)
    low, high = np.percentile(flat[np.isfinite(flat)], INTENSITY_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def scaled(voxels: np.ndarray, intensities: tuple[float, float]) -> np.ndarray:
    """Intensities mapped so that `intensities` becomes 0..1, and clipped to it; float32."""
    low, high = intensities
    return np.clip((voxels.astype(np.float32) - low) / (high - low), 0, 1)


def sample(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Bilinear values of (B, C, H, W) images at the crossings of fractional `rows` and `columns`; 0 outside."""
    height, width = images.shape[2:]
    y = torch.as_tensor(2 * rows / max(height - 1, 1) - 1, dtype=images.dtype, device=images.device)
    x = torch.as_tensor(2 * columns / max(width - 1, 1) - 1, dtype=images.dtype, device=images.device)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (rows, columns, 2), x first
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=True)


def into_window(images: np.ndarray, window: PlaneGrid) -> Tensor:
    """Slices (B, Y, X) as (B, 1, rows, columns) on the window's grid, smoothed first where it is coarser."""
    sigmas = [0.0, *(0.5 * math.sqrt(max(step * step - 1, 0)) for step in window.step)]
    if max(sigmas) > 0.3:
        images = ndimage.gaussian_filter(images, sigmas)
    return sample(torch.from_numpy(images)[:, None], window.indices(0), window.indices(1))


def out_of_window(foreground: Tensor, window: PlaneGrid, shape: tuple[int, int]) -> Tensor:
    """Foreground probabilities (B, C, rows, columns) back on the stack's (B, C, Y, X); 0 outside the window."""
    rows, columns = (window.inverse_indices(axis, shape[axis]) for axis in (0, 1))
    return sample(foreground, rows, columns)


@dataclass(frozen=True)
class Segmenter:
    """A trained network on a device.

    Args:
        model: images (B, 1, rows, columns) -> logits (B, 4, rows, columns); in evaluation mode, on the device.
        device: where it runs.
        pixel_mm: the pixel size it was trained at.
        mirrored: whether every prediction is averaged with that of the mirrored image, at twice the cost.
        entry: what the manifest says of the weights, None for a network still in training.
    """

    model: nn.Module
    device: Device
    pixel_mm: float = PIXEL_MM
    mirrored: bool = False
    entry: ModelEntry | None = None

    def foreground(self, images: Tensor) -> Tensor:
        """Probabilities of the structures: (B, 1, rows, columns) in [0, 1] -> (B, 3, rows, columns), on the CPU.

        A batch that does not fit the device is halved and tried again.
        """
        try:
            with torch.inference_mode(), self.device.autocast():
                return self._foreground(images.to(self.device.torch_device)).cpu()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(images) == 1:
                raise
        return torch.cat([self.foreground(half) for half in images.chunk(2)])

    def _foreground(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        probabilities = self.model(images).float().softmax(dim=1)
        if self.mirrored:
            flipped = self.model(images.flip(3)).float().softmax(dim=1).flip(3)
            probabilities = (probabilities + flipped) / 2
        return probabilities[:, 1:]


def load_segmenter(device: Device, *, name: str = DEFAULT_MODEL, models_folder: Path | None = None) -> Segmenter:
    """The segmenter `name` of the manifest, checked, on a device.

    Raises:
        WeightsError: if it is missing, damaged or does not fit.
    """
    state, entry = load_model(name, models_folder)
    with built_for(name):
        model = MedFormer(config_from(MedFormerConfig, entry.config["network"]))
        model.load_state_dict(state)
        pixel_mm, mirrored = float(entry.config["pixel_mm"]), bool(entry.config["mirrored"])
    model = model.eval().to(device.torch_device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Segmenter(model, device, pixel_mm, mirrored, entry)


@lru_cache(maxsize=2)
def warm_segmenter(device: Device, models_folder: Path | None = None, name: str = DEFAULT_MODEL) -> Segmenter:
    """`load_segmenter`, kept for the next stack."""
    return load_segmenter(device, name=name, models_folder=models_folder)


def license_notice(models_folder: Path | None = None) -> str:
    """What the user must know before the weights are used: their license and where it comes from.

    Raises:
        WeightsError: if there is no segmenter.
    """
    entry = find_model(DEFAULT_MODEL, models_folder)
    return f"The segmentation weights are licensed {entry.license}. They were trained on {entry.trained_on}."


def find_heart(segmenter: Segmenter, stack: Stack) -> PlaneGrid:
    """The window to segment in: around the heart, or the whole view where no heart is found or nothing is saved.

    Looks at some slices of the first frame and of one a third into the cycle (about end systole).
    """
    view = whole_view(stack, COARSE_PIXEL_MM)
    slices = np.unique(np.linspace(0, stack.num_slices - 1, min(stack.num_slices, SEARCH_SLICES)).round().astype(int))
    frames = sorted({0, stack.num_frames // 3})
    images = stack.voxels[frames][:, slices].reshape(-1, *stack.voxels.shape[2:])
    images = scaled(images, intensity_range(images))
    shadow = np.zeros(view.shape)
    for part in _batches(len(images), segmenter.device.batch_size(math.prod(view.shape))):
        inside = segmenter.foreground(into_window(images[part], view)).sum(dim=1)
        shadow += (inside > 0.5).numpy().sum(axis=0)
    return _window_around(shadow, view, stack, segmenter.pixel_mm)


def _window_around(shadow: np.ndarray, view: PlaneGrid, stack: Stack, pixel_mm: float) -> PlaneGrid:
    """The window around the weightiest connected part of `shadow` (votes per pixel of `view`)."""
    whole = whole_view(stack, pixel_mm)
    parts, count = ndimage.label(shadow >= min(2, shadow.max()) if shadow.max() else shadow)
    if count == 0:
        return whole
    heaviest = 1 + int(np.argmax(ndimage.sum_labels(shadow, parts, np.arange(1, count + 1))))
    box = ndimage.find_objects((parts == heaviest).astype(np.uint8))[0]
    spacing = stack.spacing_mm[[1, 0]]
    edges = np.array([[view.indices(axis)[box[axis].start], view.indices(axis)[box[axis].stop - 1]] for axis in (0, 1)])
    size_mm = np.ptp(edges, axis=1) * spacing + 2 * HEART_MARGIN_MM
    center = edges.mean(axis=1)
    around = _window(
        (float(center[0]), float(center[1])), np.maximum(size_mm, WINDOW_PIXELS * pixel_mm), spacing, pixel_mm
    )
    return around if math.prod(around.shape) < math.prod(whole.shape) else whole


def segment(
    stack: Stack,
    *,
    device: str = "auto",
    models_folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    source: str = "",
) -> Stack:
    """Label every slice and frame, each for itself; `anatomy.clean_labels` makes volumes of them.

    Args:
        stack: short-axis slices, sparse or dense, static or cine, in any intensity units.
        device: "auto", "cpu", "cuda" or "mps".
        models_folder: where the manifest lies; None takes the bundled models.
        progress: function told after every batch how far the run is.
        is_cancelled: function asked at every batch whether to stop.
        source: name of the input in error messages.

    Returns:
        The stack with uint8 voxels: 0 background, 1 LV cavity, 2 LV myocardium, 3 RV cavity.

    Raises:
        InputError: if the stack is no image of parallel slices.
        WeightsError, ResourceError: if the model or the device is not usable.
        Cancelled: if `is_cancelled` said so.
    """
    check_stack(stack, source=source, harmless=HARMLESS_HERE)
    segmenter = warm_segmenter(choose_device(device), models_folder)
    watch = Watch(stack.num_frames * stack.num_slices, progress, is_cancelled)
    watch.stage = "segmenting"
    watch.tick(0)
    return segment_with(segmenter, stack, tick=watch.tick)


def segment_with(segmenter: Segmenter, stack: Stack, *, tick: Callable[[int], None] | None = None) -> Stack:
    """`segment` with a segmenter at hand and no questions asked.

    Args:
        segmenter: a trained network.
        stack: images of finite voxels.
        tick: called after each batch with the number of its slices; may raise to stop.
    """
    window = find_heart(segmenter, stack)
    shape = stack.voxels.shape[2:]
    images = stack.voxels.reshape(-1, *shape)
    intensities = intensity_range(_inside(stack.voxels, window))
    labels = np.zeros(images.shape, np.uint8)
    for part in _batches(len(images), segmenter.device.batch_size(math.prod(window.shape))):
        foreground = segmenter.foreground(into_window(scaled(images[part], intensities), window))
        foreground = out_of_window(foreground, window, shape)
        labels[part] = most_likely(foreground)
        if tick is not None:
            tick(part.stop - part.start)
    entry = segmenter.entry
    told = ("name", "sha256", "license")
    origin = {} if entry is None else {"segmenter": {key: getattr(entry, key) for key in told}}
    return stack.with_voxels(labels.reshape(stack.voxels.shape)).noted(**origin)


def most_likely(foreground: Tensor) -> np.ndarray:
    """The label of each pixel, (B, rows, columns) uint8, from the structures' probabilities (B, 3, rows, columns)."""
    background = 1 - foreground.sum(dim=1, keepdim=True)
    return torch.cat((background, foreground), dim=1).argmax(dim=1).numpy().astype(np.uint8)


def _batches(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover range(count)."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _inside(voxels: np.ndarray, window: PlaneGrid) -> np.ndarray:
    """The voxels (T, Z, Y, X) that lie under the window."""
    bounds = [
        (max(0, math.floor(window.indices(axis)[0])), max(1, math.ceil(window.indices(axis)[-1]) + 1))
        for axis in (0, 1)
    ]
    return voxels[:, :, slice(*bounds[0]), slice(*bounds[1])]
