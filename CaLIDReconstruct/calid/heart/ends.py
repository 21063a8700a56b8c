"""Where the ventricles end, as long-axis images show it: mitral valve plane, tip of the LV, tricuspid valve plane.

A short-axis stack ends a ventricle at a slice; the long axis shows where it ends between slices. In a long-axis (LAX)
image the wall is a dark band on both sides of bright blood, and at the mitral annulus it ends. Levels of blood and wall
are taken from where the labels of the slices cross the image; the inner border of the wall is followed from slice to
slice and beyond the last of them, until the band is no longer as dark and as thick as a wall. These hinge points, of
all views, are smoothed over the beat, and a plane is laid through them.

Where a view does not show it (another contrast, no wall that can be followed, or no end of it in sight) it says
nothing, and where no view does, nothing is known: no plane and no apex is ever assumed.

The right ventricle's base is found in `rv_base.py`, from where the septum ends on its side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from calid.heart.anatomy import HeartAxes, heart_axes
from calid.heart.annulus import plane_through
from calid.heart.rv_base import MAX_ANTERIOR, RVBase, find_rv_base
from calid.heart.straightened import BEYOND_MM, STEP_MM, Straightened, smooth_over_the_beat, straightened
from calid.labels import LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.run.alignment import align
from calid.run.intersections import images_of
from calid.run.shifts import PROVENANCE_KEY
from calid.stack import LaxImage, Stack, acquired_slices

LV, WALL, RV = LV_CAVITY.value, MYOCARDIUM.value, RV_CAVITY.value
SEPTALWARDS_MM = 40.0  # from the LV axis: the middle of a picture of the RV and its base

MAX_AXIS_OFFSET_MM = 12.0
"""An image that passes the LV axis at a greater distance cuts the ventricle aside, where its wall ends elsewhere."""

MIN_CONTRAST = 1.4  # blood over wall
MIN_WALL_MM = 3.0  # thinner is an atrium, a valve or the septum between the atria
WALL_SHARE = 0.5  # of a wall's own thickness below which it has ended


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
        rv_base: the tricuspid valve plane; None where no view shows it.
    """

    apexward: np.ndarray
    base_points_lps: np.ndarray | None = None
    base_normals: np.ndarray | None = None
    misfit_mm: float = float("nan")
    apex_lps: np.ndarray | None = None
    base_views: tuple[str, ...] = ()
    apex_views: tuple[str, ...] = ()
    rv_base: RVBase | None = None

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
        if self.rv_base is not None:
            seen.append(("tricuspid valve plane", self.rv_base.views))
        return " and ".join(f"the {what} ({', '.join(views)})" for what, views in seen if views)

    def as_json(self) -> dict[str, Any]:
        """JSON values: which images show what."""
        return {
            "valve_plane": None
            if self.base_points_lps is None
            else {"views": list(self.base_views), "misfit_mm": self.misfit_mm, "excursion_mm": self.excursion_mm},
            "apex": None if self.apex_lps is None else {"views": list(self.apex_views)},
            "tricuspid_plane": None if self.rv_base is None else self.rv_base.as_json(),
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
        labels: cleaned labels, 1 LV cavity, 2 LV myocardium, 3 RV cavity; sparse or dense.
        views: {name: long-axis image}, moved to where the slices want them, if that is known.

    Returns:
        What is seen of them; None where no view shows either.

    Raises:
        InputError: if the heart's axes cannot be told.
    """
    axes = heart_axes(labels)
    seen = {name: _along_the_axis(labels, view, axes) for name, view in views.items() if view.num_slices == 1}
    told = {name: view for name, view in seen.items() if view is not None}
    hinges = {name: _hinges(view) for name, view in told.items()}
    hinges = {name: found for name, found in hinges.items() if np.isfinite(found).any()}
    apices = {name: found for name, found in ((n, _tips(v)) for n, v in told.items()) if np.isfinite(found).all()}
    apex = np.median(np.stack(list(apices.values())), axis=0) if apices else None
    plane = plane_through(np.concatenate(list(hinges.values()), axis=1), axes) if hinges else None
    found = Ends(axes.apexward, apex_lps=apex, apex_views=tuple(apices), rv_base=_rv_base(labels, views, axes))
    if plane is not None:
        points, normals, misfit = plane
        found = replace(found, base_points_lps=points, base_normals=normals, misfit_mm=misfit, base_views=tuple(hinges))
    return None if plane is None and apex is None and found.rv_base is None else found


def _rv_base(labels: Stack, views: Mapping[str, Stack], axes: HeartAxes) -> RVBase | None:
    """The tricuspid plane, from the images that pass the LV axis and the inflow of the RV."""
    found, smooth = {}, {}
    for name, view in views.items():
        seen = _along_the_axis(labels, view, axes, RV, SEPTALWARDS_MM) if view.num_slices == 1 else None
        if seen is None:
            continue
        towards_rv = 1 if seen.side @ axes.septal > 0 else -1
        if towards_rv * float(seen.side @ axes.anterior) > MAX_ANTERIOR:
            continue
        hinges = np.stack([_hinge(seen, frame, -towards_rv, RV) for frame in range(len(seen.pictures))])
        course = smooth_over_the_beat(hinges)
        if np.isfinite(course).all():
            found[name], smooth[name] = seen.lps(hinges), seen.lps(course)
    return find_rv_base(found, smooth, axes)


def _along_the_axis(
    labels: Stack, view: Stack, axes: HeartAxes, blood_label: int = LV, septalwards_mm: float = 0.0
) -> Straightened | None:
    """A view along the LV axis; None where it passes aside, or does not tell blood from wall.

    Args:
        labels: labels of the slices.
        view: long-axis image.
        axes: the heart's axes.
        blood_label: the cavity whose blood is told from the wall.
        septalwards_mm: so far from the axis the middle of the straightened view lies.
    """
    if abs(float((axes.center_lps - view.origin_lps) @ view.directions_lps[:, 2])) > MAX_AXIS_OFFSET_MM:
        return None
    found = straightened(labels, view, axes, axes.center_lps + septalwards_mm * axes.septal)
    if found is None:
        return None
    blood, wall = (found.level(label) for label in (blood_label, WALL))
    if blood is None or wall is None or blood < MIN_CONTRAST * wall:
        return None
    return replace(found, middle=(blood + wall) / 2)


def _hinges(view: Straightened) -> np.ndarray:
    """(T, 2, 3) LPS mm where the wall ends on both sides, smooth over the beat; NaN where it is not seen."""
    found = np.full((len(view.pictures), 2, 2), np.nan)
    for frame in range(len(view.pictures)):
        for side in (0, 1):
            found[frame, side] = _hinge(view, frame, -1 if side == 0 else 1, LV)
    smooth = np.stack([smooth_over_the_beat(found[:, side]) for side in (0, 1)], axis=1)
    return view.lps(smooth)


def _tips(view: Straightened) -> np.ndarray:
    """(T, 3) LPS mm of the cavity's end, smooth over the beat; NaN where it is not seen in most frames."""
    found = np.stack([_tip(view, frame) for frame in range(len(view.pictures))])
    return view.lps(smooth_over_the_beat(found))


def _hinge(view: Straightened, frame: int, sign: int, cavity: int) -> np.ndarray:
    """(row, column) of the basal end of the wall on one side of a cavity, or NaN."""
    nothing = np.full(2, np.nan)
    picture, labels = view.pictures[frame], view.labels[frame]
    both = np.flatnonzero((labels == cavity).any(axis=1) & ((labels == WALL).sum(axis=1) * STEP_MM >= 6))
    if both.size < 20:
        return nothing
    start = both[0] + round(0.25 * np.ptp(both))
    inside = np.flatnonzero(labels[start] == cavity)
    border = inside.max() if sign > 0 else inside.min()
    thick: list[float] = []
    row, last, place = start, (start, int(border)), border
    for row in range(start, -1, -1):
        place, run = _border(view, picture[row], place, sign)
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


def _border(view: Straightened, line: np.ndarray, near: int, sign: int) -> tuple[int | None, float]:
    """The inner border of the wall within 3 mm of where it was one row before, and the wall's thickness there."""
    best, place = -np.inf, None
    for candidate in range(near - 3, near + 4):
        outwards = candidate + sign * np.arange(-4, 5)
        if outwards.min() < 0 or outwards.max() >= len(line):
            continue
        step = line[outwards[:4]].mean() - line[outwards[5:]].mean() - 0.02 * abs(candidate - near) * view.middle
        if step > best:
            best, place = step, candidate
    if place is None:
        return None, 0.0
    outwards = place + sign * np.arange(0, 15)
    outwards = outwards[(outwards >= 0) & (outwards < len(line))]
    dark = line[outwards] < view.middle
    first = int(np.argmax(dark)) if dark[:3].any() else 0
    return place, float(np.argmin(np.append(dark[first:], False))) * STEP_MM


def _tip(view: Straightened, frame: int) -> np.ndarray:
    """(row, column) of the apical end of the blood, or NaN."""
    nothing = np.full(2, np.nan)
    labels = view.labels[frame]
    rows = np.flatnonzero((labels == LV).any(axis=1))
    if rows.size < 20:
        return nothing
    inside = np.flatnonzero(labels[rows[-1]] == LV)
    bright = view.pictures[frame] > view.middle
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
