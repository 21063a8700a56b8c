"""Where the left ventricle ends, as long-axis images show it: the mitral valve plane, and the tip of the cavity.

A short-axis stack ends a ventricle at a slice; the long axis shows where it ends between slices. In a long-axis (LAX)
image the wall is a dark band on both sides of bright blood, and at the mitral annulus it ends. Levels of blood and wall
are taken from where the labels of the slices cross the image; the inner border of the wall is followed from slice to
slice and beyond the last of them, until the band is no longer as dark and as thick as a wall. These hinge points, of
all views, are smoothed over the beat, and a plane is laid through them.

Where a view does not show it (another contrast, no wall that can be followed, or no end of it in sight) it says
nothing, and where no view does, nothing is known: no plane and no apex is ever assumed.

The right ventricle's base is not looked for: its wall is as thin as the pixels of these images, and ends beside fat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from calid.heart.anatomy import HeartAxes, heart_axes
from calid.labels import LV_CAVITY, MYOCARDIUM
from calid.run.alignment import PROVENANCE_KEY, align
from calid.run.intersections import images_of
from calid.stack import LaxImage, Stack, acquired_slices, frames_at_phases_of

LV, WALL = LV_CAVITY.value, MYOCARDIUM.value

STEP_MM = 1.0
MAX_AXIS_OFFSET_MM = 12.0
"""An image that passes the LV axis at a greater distance cuts the ventricle aside, where its wall ends elsewhere."""

BEYOND_MM = 30.0  # of the labels' ends: so far base and apex are looked for
HALF_WIDTH_MM = 60.0
MIN_CONTRAST = 1.4  # blood over wall
MIN_WALL_MM = 3.0  # thinner is an atrium, a valve or the septum between the atria
WALL_SHARE = 0.5  # of a wall's own thickness below which it has ended
HINGE_NOISE_MM = 3.0  # of a hinge point, beside its plane
MAX_TILT = 0.35  # standard deviation of the plane's slope against the LV axis
MAX_MISFIT_MM = 8.0  # root mean square of the hinge points beside their plane: beyond, they are no annulus
HARMONICS = 2  # of the beat, that an annulus moves with


@dataclass(frozen=True, eq=False)
class Ends:
    """The ends of the left ventricle, seen in long-axis images.

    Args:
        apexward: (3,) unit vector along the LV axis.
        base_points_lps: (T, 3) mm, where the mitral valve plane meets the LV axis; None where no view shows it.
        base_normals: (T, 3) unit vectors of the plane, towards the atrium; None likewise.
        misfit_mm: root mean square of the hinge points beside their planes.
        apex_lps: (T, 3) mm, the tip of the cavity; None where no view shows it.
        base_views, apex_views: names of the images that did.
    """

    apexward: np.ndarray
    base_points_lps: np.ndarray | None = None
    base_normals: np.ndarray | None = None
    misfit_mm: float = float("nan")
    apex_lps: np.ndarray | None = None
    base_views: tuple[str, ...] = ()
    apex_views: tuple[str, ...] = ()

    @property
    def excursion_mm(self) -> float | None:
        """How far the valve plane moves along the LV axis over the beat (MAPSE, of the plane's middle)."""
        if self.base_points_lps is None or len(self.base_points_lps) < 2:
            return None
        return float(np.ptp(self.base_points_lps @ self.apexward))

    @property
    def words(self) -> str:
        """What is seen, and in which images."""
        seen = [("mitral valve plane", self.base_views), ("tip of the cavity", self.apex_views)]
        return " and ".join(f"the {what} ({', '.join(views)})" for what, views in seen if views)

    def as_json(self) -> dict[str, Any]:
        """JSON values: which images show what."""
        return {
            "valve_plane": None
            if self.base_points_lps is None
            else {"views": list(self.base_views), "misfit_mm": self.misfit_mm, "excursion_mm": self.excursion_mm},
            "apex": None if self.apex_lps is None else {"views": list(self.apex_views)},
        }


def where_the_slices_want_them(stack: Stack, lax: Iterable[LaxImage]) -> dict[str, Stack]:
    """{name: long-axis image}, moved to where it fits a short-axis stack, sparse or dense.

    By how much, the stack's provenance tells, if an alignment was part of what made it; else it is found here.
    """
    views = {image.name: image.stack for image in lax if image.stack.num_slices == 1}
    told = stack.provenance.get(PROVENANCE_KEY)
    if told is None and views:
        told = align(acquired_slices(stack) or stack, views).as_json()
    shifts = {one["name"]: np.array(one["mm"], float) for one in (told or {}).get("views", ())}
    return {
        name: replace(view, affine=images_of(view)[0].shifted(shifts[name]).affine) if name in shifts else view
        for name, view in views.items()
    }


def find_ends(labels: Stack, views: Mapping[str, Stack]) -> Ends | None:
    """The ends of the LV in every frame of labels, from the long-axis images that pass its axis.

    Args:
        labels: cleaned, 1 LV cavity, 2 LV myocardium, 3 RV cavity; sparse or dense.
        views: {name: long-axis image}, moved to where the slices want them, if that is known.

    Returns:
        What is seen of them; None where no view shows either.

    Raises:
        InputError: if the heart's axes cannot be told.
    """
    axes = heart_axes(labels)
    seen = {name: _seen(labels, view, axes) for name, view in views.items() if view.num_slices == 1}
    told = {name: view for name, view in seen.items() if view is not None}
    hinges = {name: view.hinges() for name, view in told.items()}
    hinges = {name: found for name, found in hinges.items() if np.isfinite(found).any()}
    apices = {name: found for name, found in ((n, v.tips()) for n, v in told.items()) if np.isfinite(found).all()}
    apex = np.median(np.stack(list(apices.values())), axis=0) if apices else None
    plane = _plane(np.concatenate(list(hinges.values()), axis=1), axes) if hinges else None
    apex_views = tuple(apices)
    if plane is None:
        return None if apex is None else Ends(axes.apexward, apex_lps=apex, apex_views=apex_views)
    points, normals, misfit = plane
    return Ends(axes.apexward, points, normals, misfit, apex, tuple(hinges), apex_views)


def _plane(hinges_lps: np.ndarray, axes: HeartAxes) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Planes through hinge points (T, N, 3), NaN where unknown: points on the axis, normals, misfit; None without.

    Heights along the axis are a constant and a slope each frame; the slope is that of all frames, for an annulus
    tilts little while it descends by a centimetre.
    """
    across = np.stack([axes.septal, axes.anterior], axis=1)
    places = (hinges_lps - axes.center_lps) @ across  # (T, N, 2)
    heights = -(hinges_lps - axes.center_lps) @ axes.apexward
    known = np.isfinite(heights)
    if not known.any(axis=1).all() or known.any(axis=0).sum() < 2:
        return None
    frames = len(heights)
    frame, _ = np.nonzero(known)
    design = np.concatenate([np.eye(frames)[frame], places[known]], axis=1)
    prior = np.diag([0.0] * frames + [(HINGE_NOISE_MM / MAX_TILT) ** 2] * 2)
    weight = np.ones(len(frame))
    for _ in range(10):
        weighed = design * weight[:, None]
        found = np.linalg.solve(weighed.T @ design + prior, weighed.T @ heights[known])
        rest = heights[known] - design @ found
        weight = 1 / (1 + (rest / (2 * HINGE_NOISE_MM)) ** 2)
    misfit = float(np.sqrt(np.average(rest**2, weights=weight)))
    if misfit > MAX_MISFIT_MM:
        return None
    points = axes.center_lps - found[:frames, None] * axes.apexward
    normal = -axes.apexward - across @ found[frames:]
    return points, np.tile(normal / np.linalg.norm(normal), (frames, 1)), misfit


@dataclass(frozen=True, eq=False)
class _View:
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
    middle: float

    def hinges(self) -> np.ndarray:
        """(T, 2, 3) LPS mm where the wall ends on both sides, smooth over the beat; NaN where it is not seen."""
        found = np.full((len(self.pictures), 2, 2), np.nan)
        for frame in range(len(self.pictures)):
            for side in (0, 1):
                found[frame, side] = self._hinge(frame, -1 if side == 0 else 1)
        smooth = np.stack([_smooth_over_the_beat(found[:, side]) for side in (0, 1)], axis=1)
        return self._lps(smooth)

    def tips(self) -> np.ndarray:
        """(T, 3) LPS mm of the cavity's end, smooth over the beat; NaN where it is not seen in most frames."""
        found = np.stack([self._tip(frame) for frame in range(len(self.pictures))])
        return self._lps(_smooth_over_the_beat(found))

    def _lps(self, places: np.ndarray) -> np.ndarray:
        return self.origin_lps + STEP_MM * (places[..., :1] * self.down + places[..., 1:] * self.side)

    def _hinge(self, frame: int, sign: int) -> np.ndarray:
        """(row, column) of the basal end of the wall on one side, or NaN."""
        nothing = np.full(2, np.nan)
        picture, labels = self.pictures[frame], self.labels[frame]
        both = np.flatnonzero((labels == LV).any(axis=1) & ((labels == WALL).sum(axis=1) * STEP_MM >= 6))
        if both.size < 20:
            return nothing
        start = both[0] + round(0.25 * np.ptp(both))
        inside = np.flatnonzero(labels[start] == LV)
        border = inside.max() if sign > 0 else inside.min()
        thick: list[float] = []
        row, last, place = start, (start, int(border)), border
        for row in range(start, -1, -1):
            place, run = self._border(picture[row], place, sign)
            if place is None:
                break
            if len(thick) < 15:
                thick.append(run)
                if len(thick) == 15 and np.median(thick) < MIN_WALL_MM:
                    return nothing
                last = row, place
                continue
            if run < max(MIN_WALL_MM, WALL_SHARE * float(np.median(thick))):
                if last[0] - row >= 3 or row == 0:
                    break
                continue
            last = row, place
        if len(thick) < 15 or last[0] <= 1:
            return nothing
        return np.array([last[0], last[1]], float)

    def _border(self, line: np.ndarray, near: int, sign: int) -> tuple[int | None, float]:
        """The inner border of the wall within 3 mm of where it was one row before, and the wall's thickness there."""
        best, place = -np.inf, None
        for candidate in range(near - 3, near + 4):
            outwards = candidate + sign * np.arange(-4, 5)
            if outwards.min() < 0 or outwards.max() >= len(line):
                continue
            step = line[outwards[:4]].mean() - line[outwards[5:]].mean() - 0.02 * abs(candidate - near) * self.middle
            if step > best:
                best, place = step, candidate
        if place is None:
            return None, 0.0
        outwards = place + sign * np.arange(0, 15)
        outwards = outwards[(outwards >= 0) & (outwards < len(line))]
        dark = line[outwards] < self.middle
        first = int(np.argmax(dark)) if dark[:3].any() else 0
        return place, float(np.argmin(np.append(dark[first:], False))) * STEP_MM

    def _tip(self, frame: int) -> np.ndarray:
        """(row, column) of the apical end of the blood, or NaN."""
        nothing = np.full(2, np.nan)
        labels = self.labels[frame]
        rows = np.flatnonzero((labels == LV).any(axis=1))
        if rows.size < 20:
            return nothing
        inside = np.flatnonzero(labels[rows[-1]] == LV)
        bright = self.pictures[frame] > self.middle
        bright[:, : max(0, inside.min() - 5)] = False
        bright[:, inside.max() + 6 :] = False
        bright = ndimage.binary_opening(bright, np.ones((3, 3)))
        components, _ = ndimage.label(bright)
        middle = components[rows[-1] - 8 : rows[-1] - 3, inside.min() : inside.max() + 1]
        own = np.bincount(middle.ravel(), minlength=2)
        if own[1:].sum() == 0:
            return nothing
        cavity = components == 1 + own[1:].argmax()
        last = int(np.flatnonzero(cavity.any(axis=1)).max())
        if last > rows[-1] + BEYOND_MM / STEP_MM - 3 or last < rows[-1] - 15:
            return nothing
        return np.array([last + 0.5, np.flatnonzero(cavity[last]).mean()])


def _seen(labels: Stack, view: Stack, axes: HeartAxes) -> _View | None:
    """A view along the LV axis; None where it passes aside, or does not tell blood from wall."""
    normal = view.directions_lps[:, 2]
    offset = float((axes.center_lps - view.origin_lps) @ normal)
    lean = float(axes.apexward @ normal)
    if abs(offset) > MAX_AXIS_OFFSET_MM or abs(lean) > 0.5:
        return None
    down = axes.apexward - lean * normal
    down /= np.linalg.norm(down)
    side = np.cross(normal, down)
    on_plane = axes.center_lps - offset * normal
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
    blood, wall = (pictures[ndimage.binary_erosion(shown == label, np.ones((1, 3, 3)))] for label in (LV, WALL))
    if min(blood.size, wall.size) < 50 or np.median(blood) < MIN_CONTRAST * np.median(wall):
        return None
    middle = float(np.median(blood) + np.median(wall)) / 2
    return _View(pictures, shown, origin, down, side, middle)


def _smooth_over_the_beat(places: np.ndarray) -> np.ndarray:
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
