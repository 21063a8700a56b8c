"""Planes in patient space, their order and gaps, and affines: pure maths.

Points are LPS millimeters (x to the patient's Left, y to Posterior, z to Superior), pixel indices count from 0 at the
pixel's center, and an affine maps (column, row, slice, 1) to LPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calid.stack import Stack

PARALLEL_TOLERANCE_DEGREES = 0.5
"""Half a degree lifts a pixel 60 mm from the center by half a millimeter, less than half a pixel."""

LONG_AXIS_DEGREES = 45.0
"""An image tilted by at least this against the short-axis slices is a long-axis view."""

GAP_TOLERANCE = 0.05
"""Gaps may differ from their median by this share of it; scanners write positions to about 0.001 mm."""

SAME_POSITION_MM = 0.05
"""Planes nearer than this are one position: slices are millimeters apart, rounding errors are microns."""

LATERAL_TOLERANCE_PIXELS = 0.5
"""How far a slice may lie beside the straight line through the others before an affine would misplace its pixels."""

SPACING_TOLERANCE = 3e-3
"""Pixel spacings may differ by this share, as rounding makes them; over 256 pixels that is less than half of one."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Plane:
    """One image plane: where its pixels lie in the patient.

    Args:
        origin_lps: (3,) mm, center of the pixel in column 0, row 0.
        row_lps: (3,) unit vector along a row, that is towards growing columns.
        column_lps: (3,) unit vector along a column, that is towards growing rows.
        spacing_mm: (2,) distance between columns, distance between rows.
        size: (columns, rows).
    """

    origin_lps: np.ndarray
    row_lps: np.ndarray
    column_lps: np.ndarray
    spacing_mm: np.ndarray
    size: tuple[int, int]

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector, right-handed with the row and column directions."""
        normal = np.cross(self.row_lps, self.column_lps)
        return normal / np.linalg.norm(normal)

    @property
    def center_lps(self) -> np.ndarray:
        """(3,) LPS mm of the middle of the image."""
        column, row = (np.array(self.size) - 1) / 2
        return self.to_lps(np.array([column, row]))

    def to_lps(self, pixels: np.ndarray) -> np.ndarray:
        """Map (..., 2) pixel indices (column, row) to (..., 3) LPS mm."""
        axes = np.stack([self.row_lps, self.column_lps]) * np.reshape(self.spacing_mm, (2, 1))
        return np.asarray(pixels) @ axes + self.origin_lps

    def distance_mm(self, points_lps: np.ndarray) -> np.ndarray:
        """(...) signed distances of (..., 3) LPS points from the plane, along its normal."""
        return (np.asarray(points_lps) - self.origin_lps) @ self.normal


def plane_of(stack: Stack, index: int = 0) -> Plane:
    """The plane of slice `index` of a stack.

    Example:
        >>> stack = Stack(np.zeros((1, 3, 4, 5)), np.diag([1.5, 1.5, 10.0, 1.0]))
        >>> plane_of(stack, 2).origin_lps.tolist(), plane_of(stack).size
        ([0.0, 0.0, 20.0], (5, 4))
    """
    directions = stack.directions_lps
    rows, columns = stack.voxels.shape[2:]
    return Plane(
        origin_lps=stack.slice_affine(index)[:3, 3],
        row_lps=directions[:, 0],
        column_lps=directions[:, 1],
        spacing_mm=stack.spacing_mm[:2],
        size=(columns, rows),
    )


def lps_to_ras(matrix: np.ndarray) -> np.ndarray:
    """The (4, 4) matrix that gives RAS where `matrix` gives LPS; it is its own inverse, see `ras_to_lps`."""
    return _LPS_TO_RAS @ matrix


def ras_to_lps(matrix: np.ndarray) -> np.ndarray:
    """The (4, 4) matrix that gives LPS where `matrix` gives RAS."""
    return _LPS_TO_RAS @ matrix


def affine_from(axes: np.ndarray, origin: Sequence[float] | np.ndarray) -> np.ndarray:
    """The (4, 4) affine with (3, 3) axes, the steps from voxel to voxel as columns, and the place of the first voxel.

    Example:
        >>> affine_from(np.diag([1.5, 1.5, 8.0]), (0, 0, 40.0))[2].tolist()
        [0.0, 0.0, 8.0, 40.0]
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    return affine


def angle_degrees(first: np.ndarray, second: np.ndarray) -> float:
    """The angle between two directions, 0 to 180 degrees, accurate for tiny angles too.

    Example:
        >>> round(angle_degrees(np.array([1, 0, 0]), np.array([0, 2, 0])), 6)
        90.0
    """
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), np.dot(first, second))))


def tilt_degrees(first: Plane, second: Plane) -> float:
    """The angle between two planes, 0 (parallel) to 90 degrees, whichever way their normals point."""
    angle = angle_degrees(first.normal, second.normal)
    return min(angle, 180.0 - angle)


def turn_degrees(first: Plane, second: Plane) -> float:
    """By how much the pixel axes of two planes differ in direction, 0 to 180 degrees."""
    return max(
        angle_degrees(first.row_lps, second.row_lps),
        angle_degrees(first.column_lps, second.column_lps),
    )


def is_same_position(first: Plane, second: Plane) -> bool:
    """Whether two planes are one: the same pixels at the same place, within rounding."""
    return (
        first.size == second.size
        and float(np.linalg.norm(first.origin_lps - second.origin_lps)) < SAME_POSITION_MM
        and turn_degrees(first, second) < PARALLEL_TOLERANCE_DEGREES / 5
        and np.allclose(first.spacing_mm, second.spacing_mm, rtol=1e-3)
    )


def is_same_grid(first: Plane, second: Plane) -> bool:
    """Whether two planes have as many pixels of one size, but for rounding to hundredths of a millimeter.

    Example:
        >>> def plane(mm):
        ...     return Plane(np.zeros(3), np.eye(3)[0], np.eye(3)[1], np.full(2, mm), (256, 208))
        >>> is_same_grid(plane(1.5625), plane(1.563)), is_same_grid(plane(1.5625), plane(1.57))
        (True, False)
    """
    return first.size == second.size and np.allclose(
        first.spacing_mm, second.spacing_mm, rtol=SPACING_TOLERANCE, atol=0
    )


def typical_plane(planes: Sequence[Plane]) -> int:
    """The index of the plane whose normal and axes agree best with all the others (the medoid)."""
    # One minus the cosine orders angles as well as the angle does, and all pairs are two matrix products.
    rows = np.stack([plane.row_lps for plane in planes])
    columns = np.stack([plane.column_lps for plane in planes])
    disagreement = (1 - rows @ rows.T) + (1 - columns @ columns.T)
    return int(np.sqrt(np.maximum(disagreement, 0)).sum(axis=1).argmin())


def positions_along(normal: np.ndarray, planes: Sequence[Plane]) -> np.ndarray:
    """(n,) mm: where each plane's center lies along a normal, measured from the patient origin."""
    return np.array([plane.center_lps @ normal for plane in planes])


def order_along_normal(planes: Sequence[Plane]) -> np.ndarray:
    """(n,) indices that sort planes by position along their common normal, lowest first.

    With the right-handed normal of DICOM's row and column directions the sorted stack has a right-handed affine.
    """
    return np.argsort(positions_along(planes[typical_plane(planes)].normal, planes), kind="stable")


def typical_gap(gaps_mm: np.ndarray) -> float:
    """The median gap; of two middle ones the smaller, so that one wide gap of two is the odd one out.

    Example:
        >>> typical_gap(np.array([10.0, 20.0]))
        10.0
    """
    return float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])


def uneven_gaps(gaps_mm: np.ndarray) -> np.ndarray:
    """Indices of the gaps that differ from the typical one by more than `GAP_TOLERANCE`."""
    usual = typical_gap(gaps_mm)
    return np.flatnonzero(np.abs(gaps_mm - usual) > GAP_TOLERANCE * usual)


def lateral_offsets_mm(planes: Sequence[Plane]) -> np.ndarray:
    """(n, 2) mm in-plane offsets (along rows, along columns) of each plane's origin from the first one's."""
    first = planes[0]
    offsets = np.stack([plane.origin_lps - first.origin_lps for plane in planes])
    return offsets @ np.stack([first.row_lps, first.column_lps], axis=1)


def affine_of(planes: Sequence[Plane], thickness_mm: float) -> np.ndarray:
    """The (4, 4) affine, (column, row, slice, 1) -> LPS mm, of planes that are sorted and evenly spaced.

    The distance between slices is that of their positions; thickness serves only for a single slice, which has none.
    """
    first = planes[0]
    step_mm = thickness_mm
    if len(planes) > 1:
        step_mm = float(first.distance_mm(planes[-1].origin_lps)) / (len(planes) - 1)
    directions = np.stack([first.row_lps, first.column_lps, first.normal], axis=1)
    return affine_from(directions * [*first.spacing_mm, step_mm], first.origin_lps)


def shear_degrees(affine: np.ndarray) -> float:
    """By how much the least perpendicular pair of voxel axes misses 90 degrees.

    Example:
        >>> sheared = np.array([[1.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        >>> round(shear_degrees(sheared), 6)
        45.0
    """
    x, y, z = np.asarray(affine)[:3, :3].T
    return max(abs(90.0 - angle_degrees(a, b)) for a, b in ((x, y), (x, z), (y, z)))


def straightened(affine: np.ndarray, num_slices: int) -> np.ndarray:
    """The (4, 4) affine with its axes at right angles, where they miss them by rounding.

    A program that computes the slice axis from the corners of two slices tilts it by thousandths of a degree. The first
    slice keeps its place, and the others go along its normal, as DICOM's slices do in `affine_of`; of row and column,
    the nearest perpendicular pair is taken.

    Args:
        affine: (column, row, slice, 1) -> LPS mm.
        num_slices: number of slices of the stack.

    Returns:
        `affine` itself where it misses a right angle by more than `PARALLEL_TOLERANCE_DEGREES`, or where the last slice
        would move aside by more than `LATERAL_TOLERANCE_PIXELS`.

    Example:
        >>> tilted = np.array([[1.5, 0, 0.01, 0], [0, 1.5, 0, 0], [0, 0, 10, 0], [0, 0, 0, 1]])
        >>> straightened(tilted, 5)[:3, 2].round(6).tolist()
        [0.0, 0.0, 10.0]
    """
    if shear_degrees(affine) > PARALLEL_TOLERANCE_DEGREES:
        return affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column, _ = (affine[:3, :3] / spacing).T
    both, across = (pair / np.linalg.norm(pair) for pair in (row + column, row - column))
    axes = np.stack([both + across, both - across], axis=1) / np.sqrt(2)
    normal = np.cross(axes[:, 0], axes[:, 1])
    straight = np.array(affine, dtype=np.float64)
    straight[:3, :2] = axes * spacing[:2]
    straight[:3, 2] = normal * (normal @ affine[:3, 2])
    aside = (num_slices - 1) * np.linalg.norm(affine[:3, 2] - straight[:3, 2])
    return affine if aside > LATERAL_TOLERANCE_PIXELS * spacing[:2].min() else straight


def cropped_affine(affine: np.ndarray, first_index: Sequence[int]) -> np.ndarray:
    """The (4, 4) affine of the part of a volume that starts at (column, row, slice) `first_index`."""
    cropped = np.array(affine, dtype=np.float64)
    cropped[:3, 3] += cropped[:3, :3] @ np.asarray(first_index, dtype=np.float64)
    return cropped


def heart_center(stack: Stack, planes: Sequence[Stack]) -> np.ndarray:
    """(3,) LPS mm: the point nearest to all long-axis planes in the middle of the short-axis slab.

    Long-axis planes are planned through the heart, so it lies where they meet; the middle of the short-axis image
    decides what they leave open.
    """
    middle = stack.to_lps((np.array(stack.voxels.shape[:0:-1]) - 1) / 2)
    normals = [plane.directions_lps[:, 2] for plane in planes] + [stack.directions_lps[:, 2]]
    offsets = [plane.origin_lps @ normal for plane, normal in zip(planes, normals, strict=False)]
    offsets.append(middle @ normals[-1])
    weak = 0.1  # so that open directions follow the image's middle without pulling on the others
    return np.linalg.lstsq(np.vstack([normals, weak * np.eye(3)]), np.hstack([offsets, weak * middle]), rcond=None)[0]
