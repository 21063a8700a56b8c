"""Thickness of the left ventricle's wall, from labels, in the 17 segments of the American Heart Association.

Thickness is measured across the wall in planes perpendicular to the LV axis: in a narrow sector around the axis, an
area A has the mean radius sqrt(2 A / angle), so the radii of the cavity and of the cavity with its wall follow from
counted voxels far more finely than from the voxel where a ray meets a border. Papillary muscles count as their label
says.

Segments: Cerqueira et al., "Standardized myocardial segmentation and nomenclature for tomographic imaging of the
heart", Circulation 105 (2002) 539. Basal, mid and apical ring are the thirds of the cavity's length, frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calid.heart.anatomy import HeartAxes, heart_axes
from calid.labels import LV_CAVITY, MYOCARDIUM
from calid.stack import Stack

LV, WALL = LV_CAVITY.value, MYOCARDIUM.value
NUM_SECTORS = 24
"""Sectors around the axis: the borders of the rings' six and four segments are all borders of these."""

MIN_WALL_SHARE = 0.5
"""Below this share of its sectors with a wall, a segment has no thickness: the outflow tract, or beyond the stack."""

MAX_APEX_SPACING_MM = 3.0
"""The apex is measured along the axis, which slices further apart than this do not resolve."""

_APEX_RADIUS = 0.5  # of the cavity in its last slice: so far from the axis is the apex measured
_MIN_APEX_RADIUS_MM = 3.0


@dataclass(frozen=True)
class Segment:
    """One of the 17 segments.

    Args:
        number: 1 to 17, as the American Heart Association counts.
        name: such as "basal anterior".
        ring: "basal", "mid", "apical" or "apex".
        angle_deg: angle of its middle about the LV axis, from the middle of the septum towards the anterior wall.
        width_deg: angle that it covers of its ring.
    """

    number: int
    name: str
    ring: str
    angle_deg: float
    width_deg: float

    @property
    def sectors(self) -> np.ndarray:
        """(NUM_SECTORS,) bool: the sectors that lie in it."""
        middles = (np.arange(NUM_SECTORS) + 0.5) * 360 / NUM_SECTORS
        away = (middles - self.angle_deg + 180) % 360 - 180
        return np.abs(away) < self.width_deg / 2


_SIX = {
    "anterior": 90.0,
    "anteroseptal": 30.0,
    "inferoseptal": -30.0,
    "inferior": -90.0,
    "inferolateral": -150.0,
    "anterolateral": 150.0,
}
_FOUR = {"anterior": 90.0, "septal": 0.0, "inferior": -90.0, "lateral": 180.0}
_PLACES = [
    *(("basal", wall, angle, 60.0) for wall, angle in _SIX.items()),
    *(("mid", wall, angle, 60.0) for wall, angle in _SIX.items()),
    *(("apical", wall, angle, 90.0) for wall, angle in _FOUR.items()),
]
SEGMENTS: tuple[Segment, ...] = (
    *(
        Segment(number, f"{ring} {wall}", ring, angle, width)
        for number, (ring, wall, angle, width) in enumerate(_PLACES, start=1)
    ),
    Segment(17, "apex", "apex", 0.0, 360.0),
)
RINGS = ("basal", "mid", "apical")


@dataclass(frozen=True)
class WallThickness:
    """Thickness of the LV wall over the cycle.

    Args:
        thickness_mm: (T, 17) mean per frame and segment, in the order of `SEGMENTS`; NaN where it cannot be measured.
        ed_frame: frame with the largest LV cavity.
        es_frame: frame with the smallest, None where only one phase was labeled.
    """

    thickness_mm: np.ndarray
    ed_frame: int
    es_frame: int | None

    @property
    def ed_mm(self) -> np.ndarray:
        """(17,) at end-diastole."""
        return self.thickness_mm[self.ed_frame]

    @property
    def es_mm(self) -> np.ndarray | None:
        """(17,) at end-systole; None without a second phase."""
        return None if self.es_frame is None else self.thickness_mm[self.es_frame]

    @property
    def thickening_percent(self) -> np.ndarray | None:
        """(17,) how much thicker the wall is at end-systole than at end-diastole, in percent of the latter."""
        return None if self.es_mm is None else 100 * (self.es_mm - self.ed_mm) / self.ed_mm


def wall_thickness(labels: Stack) -> WallThickness:
    """The LV wall's thickness in every frame and segment.

    Args:
        labels: (T, Z, Y, X), 1 LV cavity, 2 LV myocardium, 3 RV cavity; cleaned, sparse or dense. The apex is measured
            in dense stacks only. In a stack whose apex was closed by `clean_labels`, it is what that put there.

    Raises:
        InputError: "no-left-ventricle", "no-right-ventricle" or "unclear-apex": the segments need the heart's axes.
    """
    axes = heart_axes(labels)
    cavity = (labels.voxels == LV).sum(axis=(1, 2, 3))
    thickness = np.stack([_frame_thickness(labels, frame, axes) for frame in labels.voxels])
    return WallThickness(thickness, int(cavity.argmax()), int(cavity.argmin()) if labels.num_frames > 1 else None)


def _frame_thickness(labels: Stack, frame: np.ndarray, axes: HeartAxes) -> np.ndarray:
    """(17,) mm of one (Z, Y, X) frame."""
    found = np.flatnonzero((frame == LV).any(axis=(1, 2)))
    if not found.size:
        return np.full(len(SEGMENTS), np.nan)
    if labels.directions_lps[:, 2] @ axes.apexward < 0:
        found = found[::-1]
    sectors = np.stack([_sector_thickness(labels, frame[index], index, axes) for index in found.tolist()])
    third = np.minimum((np.arange(found.size) + 0.5) / found.size * 3, 2.999).astype(int)
    thickness = [_mean(sectors[third == RINGS.index(segment.ring)][:, segment.sectors]) for segment in SEGMENTS[:-1]]
    return np.array([*thickness, _apex_thickness(labels, frame, found, axes)])


def _mean(values: np.ndarray) -> float:
    """The mean of what is known, NaN where that is too little."""
    known = np.isfinite(values)
    return float(values[known].mean()) if known.size and known.mean() >= MIN_WALL_SHARE else np.nan


def _sector_thickness(labels: Stack, image: np.ndarray, index: int, axes: HeartAxes) -> np.ndarray:
    """(NUM_SECTORS,) mm between the radii of the cavity and of cavity and wall in one slice; NaN without a wall."""
    rows, columns = np.nonzero((image == LV) | (image == WALL))
    is_wall = image[rows, columns] == WALL
    points = labels.to_lps(np.stack([columns, rows, np.full_like(rows, index)], axis=-1))
    points = points - points[~is_wall].mean(axis=0)
    angles = np.degrees(np.arctan2(points @ axes.anterior, points @ axes.septal)) % 360
    sector = np.minimum((angles * NUM_SECTORS / 360).astype(int), NUM_SECTORS - 1)
    pixel_mm2 = float(np.prod(labels.spacing_mm[:2])) * abs(float(labels.directions_lps[:, 2] @ axes.apexward))
    wall, cavity = (np.bincount(sector[chosen], minlength=NUM_SECTORS) * pixel_mm2 for chosen in (is_wall, ~is_wall))
    per_radius = 2 * NUM_SECTORS / (2 * np.pi)
    thickness = np.sqrt(per_radius * (cavity + wall)) - np.sqrt(per_radius * cavity)
    return np.where(wall > 0, thickness, np.nan)


def _apex_thickness(labels: Stack, frame: np.ndarray, found: np.ndarray, axes: HeartAxes) -> float:
    """Mean length of the wall beyond the end of the cavity, along the slice direction near the axis; NaN if unknown.

    Args:
        labels: gives the geometry.
        frame: (Z, Y, X) labels.
        found: indices of the slices with a cavity, from base to apex.
        axes: the heart's axes.
    """
    if labels.spacing_mm[2] > MAX_APEX_SPACING_MM:
        return np.nan
    last = frame[found[-1]] == LV
    beyond = frame[found[-1] + 1 :] if found[-1] >= found[0] and len(found) > 1 else frame[: found[-1]][::-1]
    rows, columns = np.indices(last.shape)
    center = [rows[last].mean(), columns[last].mean()]
    away = np.hypot((rows - center[0]) * labels.spacing_mm[1], (columns - center[1]) * labels.spacing_mm[0])
    radius = np.sqrt(last.sum() * np.prod(labels.spacing_mm[:2]) / np.pi)
    near = away <= max(_APEX_RADIUS * radius, _MIN_APEX_RADIUS_MM)
    is_wall = (beyond == WALL)[:, near]
    if not len(is_wall) or is_wall[-1].any():  # the stack ends within the wall
        return np.nan
    lengths = np.cumprod(is_wall, axis=0).sum(axis=0)
    if (lengths > 0).mean() < MIN_WALL_SHARE:
        return np.nan
    tilt = abs(float(labels.directions_lps[:, 2] @ axes.apexward))
    return float(lengths[lengths > 0].mean() * labels.spacing_mm[2] * tilt)
