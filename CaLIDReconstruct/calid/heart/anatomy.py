"""The heart in a label volume: cleaned of what cannot be, and its own axes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from calid.errors import InputError
from calid.labels import BACKGROUND, LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.stack import Stack

LV, WALL, RV = LV_CAVITY.value, MYOCARDIUM.value, RV_CAVITY.value

_MAX_DROPOUT_MM = 6.0
_MAX_OPEN_SHARE = 0.5  # a ring open over more than this is the outflow tract or a basal crescent, not a gap
_MAX_CAP_SPACING_MM = 3.0
_MAX_CAP_MM = 6.0
_MIN_CAP_COVER = 0.5
_WITHIN_SLICE = np.ones((1, 3, 3), bool)
_CROSS = ndimage.generate_binary_structure(2, 1)

_MIN_LV_SLICES = 3
_MAX_APICAL_SHARE = 0.9
_MIN_RV_OFFSET_MM = 5.0


# --- cleaning ---------------------------------------------------------------------------------------------------------


def clean_labels(labels: Stack) -> Stack:
    """Labels as an anatomist would leave them, frame by frame.

    One connected LV cavity, with the myocardium that touches it; one connected RV cavity. A slice in which the
    ventricle was lost between two in which it was found is filled in from them. Holes are filled; where the ring of
    myocardium around the cavity is open it is closed with its own thickness, unless it is open for more than half of
    its length (the outflow tract). Myocardium above the base is removed, and in a dense stack the apex is closed below
    the cavity.

    Args:
        labels: (T, Z, Y, X) unsigned integers, sparse or dense.

    Returns:
        The same grid, uint8. Cleaning a clean stack changes nothing.
    """
    frames = [_clean_frame(frame.astype(np.uint8), labels.spacing_mm) for frame in labels.voxels]
    return labels.with_voxels(np.stack(frames))


def _clean_frame(frame: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    frame = _without_dropouts(frame, spacing_mm)
    frame = _one_of_each(frame)
    frame = np.stack([_closed_ring(_without_holes(image), spacing_mm[:2]) for image in frame])
    return _tidy_ends(frame, spacing_mm)


def _without_dropouts(frame: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Fill slices without an LV cavity between slices with one, over at most `_MAX_DROPOUT_MM` or one slice."""
    frame = frame.copy()
    found = np.flatnonzero((frame == LV).any(axis=(1, 2)))
    longest = max(1, int(_MAX_DROPOUT_MM // spacing_mm[2]))
    for before, after in pairwise(found):
        if 1 < after - before <= longest + 1:
            for index in range(before + 1, after):
                weight = (index - before) / (after - before)
                frame[index] = _between(frame[before], frame[after], weight, spacing_mm[:2])
    return frame


def _between(first: np.ndarray, second: np.ndarray, weight: float, spacing_mm: np.ndarray) -> np.ndarray:
    """Labels between two slices, from the weighted mean of their signed distances (shape-based interpolation)."""
    depths = [
        (1 - weight) * signed_distance(first == label, spacing_mm)
        + weight * signed_distance(second == label, spacing_mm)
        for label in (LV, WALL, RV)
    ]
    deepest = np.argmax(depths, axis=0)
    return np.where(np.max(depths, axis=0) > 0, deepest + 1, BACKGROUND).astype(np.uint8)


def signed_distance(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(Y, X) mm from the mask's outline, positive inside; far negative where the mask is empty.

    Args:
        mask: (Y, X) bool.
        spacing_mm: (2,) distances between columns (x) and rows (y).
    """
    if not mask.any():
        return np.full(mask.shape, -float(np.hypot(*(np.array(mask.shape[::-1]) * spacing_mm))))
    sampling = spacing_mm[::-1]
    half = spacing_mm.min() / 2  # the outline runs between pixel centers
    inside = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=sampling)[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask, sampling=sampling)
    return np.where(mask, inside - half, half - outside)


def _one_of_each(frame: np.ndarray) -> np.ndarray:
    """Only the largest LV cavity, the myocardium that touches it, and the largest RV cavity."""
    lv = _largest(frame == LV)
    rv = _largest(frame == RV)
    myocardium, _ = ndimage.label(frame == WALL, np.ones((3, 3, 3), bool))
    touching = np.unique(myocardium[ndimage.binary_dilation(lv, np.ones((3, 3, 3), bool))])
    kept = np.isin(myocardium, touching[touching > 0])
    return np.select([lv, kept, rv], [LV, WALL, RV], BACKGROUND).astype(np.uint8)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component, diagonals included."""
    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim, bool))
    if count < 2:
        return mask
    return components == 1 + np.argmax(np.bincount(components.ravel())[1:])


def _without_holes(image: np.ndarray) -> np.ndarray:
    """Fill what a slice's cavities enclose with the cavity, what the myocardium encloses beside it with myocardium."""
    lv = ndimage.binary_fill_holes(image == LV)
    epicardium = ndimage.binary_fill_holes(lv | (image == WALL)) if lv.any() else image == WALL
    rv = ndimage.binary_fill_holes(image == RV)
    return np.select([lv, epicardium, rv], [LV, WALL, RV], BACKGROUND).astype(np.uint8)


def _closed_ring(image: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Close gaps in the myocardium around the LV cavity of one slice, as thick as the ring is elsewhere.

    An RV that touches the LV cavity gives up only the pixels that touch it.
    """
    lv, myocardium = image == LV, image == WALL
    around = ndimage.binary_dilation(lv, _CROSS) & ~lv
    gap = around & ~myocardium
    if not gap.any() or gap.sum() > _MAX_OPEN_SHARE * around.sum():
        return image
    distance, nearest = ndimage.distance_transform_edt(~lv, sampling=spacing_mm[::-1], return_indices=True)
    outline = myocardium & ndimage.binary_dilation(~(lv | myocardium), _CROSS)
    thickness = np.median(distance[outline]) if outline.any() else 0.0
    beside_gap = ndimage.binary_dilation(gap, _CROSS)[tuple(nearest)]
    added = beside_gap & (distance <= thickness) & (image == BACKGROUND)
    return np.where(added | gap, np.uint8(WALL), image)


def _tidy_ends(frame: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Remove myocardium beyond the LV cavity at the base and, in a dense stack, close the apex with it."""
    found = np.flatnonzero((frame == LV).any(axis=(1, 2)))
    if found.size < _MIN_LV_SLICES:
        return frame
    first, last = _end_areas(frame)
    if first == last:
        return frame
    towards_apex = frame if first > last else frame[::-1]
    tidy = towards_apex.copy()
    found = np.flatnonzero((tidy == LV).any(axis=(1, 2)))
    above = tidy[: found[0]]
    above[above == WALL] = BACKGROUND
    if spacing_mm[2] <= _MAX_CAP_SPACING_MM:
        _close_apex(tidy, int(found[-1]), spacing_mm)
    return tidy if first > last else tidy[::-1]


def _close_apex(tidy: np.ndarray, last: int, spacing_mm: np.ndarray) -> None:
    """Put a cap of myocardium below the last slice with a cavity, in place, if most of the cavity lies open there."""
    lv = tidy[last] == LV
    if last + 1 == len(tidy) or (tidy[last + 1][lv] == WALL).mean() > _MIN_CAP_COVER:
        return
    depth = signed_distance(lv | (tidy[last] == WALL), spacing_mm[:2])
    for index in range(last + 1, len(tidy)):
        below_mm = (index - last) * spacing_mm[2]
        if below_mm > _MAX_CAP_MM:
            break
        tidy[index][(depth > below_mm) & (tidy[index] == BACKGROUND)] = WALL


def _end_areas(frame: np.ndarray) -> tuple[float, float]:
    """Mean area in pixels of the whole LV (cavity and wall) in the first and the last third of its slices."""
    areas = np.isin(frame, (LV, WALL)).sum(axis=(1, 2)).astype(float)
    areas = areas[areas > 0]
    third = max(1, areas.size // 3)
    return float(areas[:third].mean()), float(areas[-third:].mean())


# --- axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeartAxes:
    """The heart's own frame in patient space, from labels.

    Args:
        center_lps: (3,) mm, the middle of the LV cavity.
        apexward: (3,) unit vector along the LV long axis, base to apex.
        septal: (3,) unit vector across the axis, towards the middle of the septum.
        anterior: (3,) unit vector across both, towards the anterior wall.
    """

    center_lps: np.ndarray
    apexward: np.ndarray
    septal: np.ndarray
    anterior: np.ndarray


def heart_axes(labels: Stack) -> HeartAxes:
    """LV axis, septum and anterior wall of the frame with the largest LV cavity.

    Raises:
        InputError: no-left-ventricle, unclear-apex or no-right-ventricle.
    """
    frame = labels.voxels[(labels.voxels == LV).sum(axis=(1, 2, 3)).argmax()]
    center, axis = _lv_axis(labels, frame)
    apexward = axis * _apexward_sign(labels, frame, axis)
    septal = _across(_septum_lps(labels, frame, center, apexward) - center, apexward)
    return HeartAxes(center, apexward, septal, np.cross(septal, apexward))


def _lv_axis(labels: Stack, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Center and direction of the line through the LV cavity's centroids, slice by slice."""
    slices = [index for index in range(frame.shape[0]) if (frame[index] == LV).any()]
    if len(slices) < _MIN_LV_SLICES:
        raise InputError(
            "no-left-ventricle",
            f"Long-axis planes need the LV cavity in {_MIN_LV_SLICES} slices or more; it is labeled in {len(slices)}.",
            "Load acquired long-axis images instead, or a stack that covers the ventricle.",
        )
    centroids = np.array([_points(labels, frame == LV, index).mean(axis=0) for index in slices])
    weights = np.sqrt([(frame[index] == LV).sum() for index in slices])
    center = np.average(centroids, axis=0, weights=weights)
    axis = np.linalg.svd((centroids - center) * weights[:, None])[2][0]
    return center, axis


def _apexward_sign(labels: Stack, frame: np.ndarray, axis: np.ndarray) -> float:
    """+1 where `axis` points to the apex: the end towards which the ventricle (cavity and wall) tapers."""
    first, last = _end_areas(frame)
    if min(first, last) > _MAX_APICAL_SHARE * max(first, last):
        raise InputError(
            "unclear-apex",
            f"Base and apex cannot be told apart: the left ventricle is {first:.0f} pixels wide in area at one end and "
            f"{last:.0f} at the other.",
            "Load acquired long-axis images instead, or a stack that reaches nearer to the apex.",
        )
    return float(np.sign((first - last) * (labels.directions_lps[:, 2] @ axis)))


def _septum_lps(labels: Stack, frame: np.ndarray, center: np.ndarray, apexward: np.ndarray) -> np.ndarray:
    """(3,) a point in the direction of the mid septum: midway between the RV insertions, as angles about the LV axis.

    Without a wall between the ventricles (myocardium unlabeled) the RV's centroid stands in for it.
    """
    right = _points(labels, frame == RV)
    offset = 0.0 if not len(right) else np.linalg.norm(_perpendicular(right.mean(axis=0) - center, apexward))
    if offset < _MIN_RV_OFFSET_MM:
        raise InputError(
            "no-right-ventricle",
            f"Long-axis planes are turned by the right ventricle, and {len(right)} voxels of it are labeled "
            f"{offset:.0f} mm beside the LV axis; at least {_MIN_RV_OFFSET_MM:.0f} mm are needed.",
            "Load acquired long-axis images instead, or segment the right ventricle.",
        )
    towards = _across(right.mean(axis=0) - center, apexward)
    beside = ndimage.binary_dilation(frame == RV, _WITHIN_SLICE) & (frame == WALL)
    if not beside.any():
        return center + towards
    across = _points(labels, beside) - center
    angles = np.arctan2(across @ np.cross(towards, apexward), across @ towards)
    middle = np.percentile(angles, [2, 98]).mean()
    return center + np.cos(middle) * towards + np.sin(middle) * np.cross(towards, apexward)


def _points(labels: Stack, mask: np.ndarray, index: int | None = None) -> np.ndarray:
    """(N, 3) LPS mm of the voxels of a (Z, Y, X) mask, of one slice or of all."""
    if index is not None:
        mask = mask & (np.arange(mask.shape[0]) == index)[:, None, None]
    return labels.to_lps(np.argwhere(mask)[:, ::-1])


def _perpendicular(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return vector - axis * (vector @ axis)


def _across(vector: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Unit vector: the part of `vector` perpendicular to the unit vector `axis`."""
    across = _perpendicular(vector, axis)
    return across / np.linalg.norm(across)
