"""Long-axis images straightened along the axis of the left ventricle, with the labels of the slices beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from calid.heart.anatomy import HeartAxes
from calid.stack import Stack, frames_at_phases_of

STEP_MM = 1.0
BEYOND_MM = 30.0
"""So far beyond the labels' ends a straightened image goes on."""

HALF_WIDTH_MM = 60.0
HARMONICS = 2  # of the beat, that an annulus moves with
MIN_PIXELS = 50  # of a label, that tell an intensity


@dataclass(frozen=True, eq=False)
class Straightened:
    """A long-axis image straightened along the LV axis.

    Args:
        pictures: (T, U, V) at the labels' phases; rows run along the axis from base to apex, columns across it.
        labels: (T, U, V) of the slices there, 0 also where there are none.
        origin_lps: (3,) mm of row 0, column 0.
        down, side: (3,) unit vectors along rows' growing numbers and columns'.
        middle: intensity half-way between the medians of blood and wall.
    """

    pictures: np.ndarray
    labels: np.ndarray
    origin_lps: np.ndarray
    down: np.ndarray
    side: np.ndarray
    middle: float = 0.0

    def lps(self, places: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm of (..., 2) rows and columns."""
        return self.origin_lps + STEP_MM * (places[..., :1] * self.down + places[..., 1:] * self.side)

    def level(self, label: int) -> float | None:
        """Median intensity within a label, away from its edges; None where there is too little of it."""
        inside = self.pictures[ndimage.binary_erosion(self.labels == label, np.ones((1, 3, 3)))]
        return float(np.median(inside)) if inside.size >= MIN_PIXELS else None


def straightened(labels: Stack, view: Stack, axes: HeartAxes, middle_lps: np.ndarray) -> Straightened | None:
    """A view turned so that its rows run along the LV axis, 60 mm to both sides of a point; None if it lies across.

    Args:
        labels: labels of the slices.
        view: long-axis image.
        axes: the heart's axes.
        middle_lps: (3,) mm, brought into the view along its normal.
    """
    normal = view.directions_lps[:, 2]
    offset = float((middle_lps - view.origin_lps) @ normal)
    lean = float(axes.apexward @ normal)
    if abs(lean) > 0.5:
        return None
    down = axes.apexward - lean * normal
    down /= np.linalg.norm(down)
    side = np.cross(normal, down)
    on_plane = middle_lps - offset * normal
    ends = np.array([labels.to_lps(np.array([0, 0, index])) for index in (0, labels.num_slices - 1)])
    heights = np.sort((ends - on_plane) @ labels.directions_lps[:, 2] * np.sign(down @ labels.directions_lps[:, 2]))
    rows = int((np.ptp(heights) + 2 * BEYOND_MM) / STEP_MM) + 1
    columns = int(2 * HALF_WIDTH_MM / STEP_MM) + 1
    origin = on_plane + (heights[0] - BEYOND_MM) * down - HALF_WIDTH_MM * side
    row, column = np.indices((rows, columns))
    points = origin + STEP_MM * (row[..., None] * down + column[..., None] * side)
    x, y, _ = np.moveaxis(view.to_index(points), -1, 0)
    frames = frames_at_phases_of(view, labels)
    pictures = np.stack(
        [ndimage.map_coordinates(view.voxels[f, 0], [y, x], np.float32, order=1, mode="nearest") for f in frames]
    )
    x, y, z = np.moveaxis(labels.to_index(points), -1, 0)
    shown = np.stack(
        [ndimage.map_coordinates(one, [z, y, x], order=0, mode="constant", cval=0) for one in labels.voxels]
    )
    return Straightened(pictures, shown, origin, down, side)


def smooth_over_the_beat(places: np.ndarray) -> np.ndarray:
    """(T, 2) places as a course of few harmonics, outliers with less weight; NaN if most frames say nothing."""
    frames = len(places)
    known = np.isfinite(places).all(axis=1)
    if known.sum() < max(1, frames / 2):
        return np.full_like(places, np.nan)
    if frames < 4 * HARMONICS + 2:
        return places
    phase = 2 * np.pi * np.arange(frames) / frames
    waves = [f(k * phase) for k in range(1, HARMONICS + 1) for f in (np.cos, np.sin)]
    design = np.stack([np.ones(frames), *waves], axis=1)
    weight = known.astype(float)
    for _ in range(10):
        root = np.sqrt(weight[known])[:, None]
        found = np.linalg.lstsq(design[known] * root, places[known] * root, rcond=None)[0]
        rest = np.linalg.norm(places[known] - design[known] @ found, axis=1)
        weight[known] = 1 / (1 + (rest / 4) ** 2)
    return design @ found
