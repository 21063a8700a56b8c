"""Smooth closed surfaces of the ventricles from labels, and their files.

Labels become signed distances: exact within each slice, carried from slice to slice by a shape-preserving spline (so
the gaps of a sparse stack are bridged by shape, not by steps), smoothed a little, and compared. The surface of a label
lies where its distance equals the largest of the others, so neighbors share their border without gap or overlap. An
offset per label, found by iteration, gives every surface the volume of its labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkDoubleArray, vtkPoints
from vtkmodules.vtkCommonDataModel import vtkDataObject, vtkImageData, vtkPolyData
from vtkmodules.vtkFiltersCore import (
    vtkFlyingEdges3D,
    vtkImplicitPolyDataDistance,
    vtkPolyDataNormals,
    vtkReverseSense,
    vtkWindowedSincPolyDataFilter,
)
from vtkmodules.vtkIOGeometry import vtkOBJWriter, vtkSTLWriter
from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

from calid.errors import InputError, OutputError
from calid.heart.anatomy import signed_distance
from calid.images.whole_file import whole_file
from calid.labels import LABELS
from calid.stack import Stack

SMOOTHING_MM = 1.5
"""Standard deviation of the Gaussian on the distances: takes away voxel corners, leaves a wall's shape."""

MAX_VOLUME_ERROR = 0.005
"""Relative difference between a surface's volume and its labels' at which the offsets are good enough."""

SHOWN_GRID_MM = 2.0
"""Grid of surfaces that are looked at: a finer one looks the same and is heavy for a cine."""

_GRID_MM = (1.0, 2.0)
_MARGIN_MM = 6.0
_MAX_ROUNDS = 8
_MAX_STEP_MM = 2.0
_JACOBIAN_STEP_MM = 0.3


def surface(labels: Stack, label: int, frame: int = 0) -> vtkPolyData:
    """The closed surface of one label in one frame, in LPS mm, with outward normals (see `surfaces`)."""
    found = surfaces(labels, frame)
    if label not in found:
        count = int((labels.voxels[frame] == label).sum())
        what = (
            f"only {count} voxels with label {label}, too few for a surface"
            if count
            else f"no voxel with label {label}"
        )
        raise InputError("label-missing", f"Frame {frame} has {what}.", "Choose a label or a frame that is segmented.")
    return found[label]


def surfaces(
    labels: Stack, frame: int = 0, *, smoothing_mm: float = SMOOTHING_MM, grid_mm: float | None = None
) -> dict[int, vtkPolyData]:
    """Closed surfaces of all labels present in a frame, in LPS mm, with outward normals.

    Args:
        labels: 1 LV cavity, 2 LV myocardium, 3 RV cavity; sparse or dense.
        frame: index.
        smoothing_mm: standard deviation of the smoothing.
        grid_mm: edge of the grid on which the surfaces are found; None takes the pixels', within 1 to 2 mm.

    Returns:
        label -> watertight triangles; the volume of each is that of its voxels within about `MAX_VOLUME_ERROR`. Labels
        of a few voxels, which vanish when their distances are smoothed, are left out; `without_surface` says so.
    """
    image = labels.voxels[frame]
    present = [label.value for label in LABELS if (image == label.value).any()]
    while present:
        fields = _smooth_fields(labels, image, present, (smoothing_mm, grid_mm or _grid_mm(labels)))
        start = _meshes_at(fields, np.zeros(len(present)))
        tiny = [label for label, volume in zip(present, start[1], strict=True) if volume == 0]
        if not tiny:
            break
        image = np.where(np.isin(image, tiny), 0, image)
        present = [label for label in present if label not in tiny]
    if not present:
        return {}
    voxel_ml = float(np.prod(labels.spacing_mm)) / 1000
    targets = np.array([(image == label).sum() * voxel_ml for label in present])
    meshes = zip(present, _with_volumes(fields, targets, *start), strict=True)
    return {label: _finished(mesh, fields.affine) for label, mesh in meshes if mesh.GetNumberOfPolys()}


def without_surface(labels: Stack, found: Sequence[Collection[int]]) -> list[str]:
    """Sentences that name the labels without a surface although they are there.

    Args:
        labels: as for `surfaces`.
        found: the labels with a surface, frame by frame.
    """
    sentences = []
    for label in LABELS:
        frames = [
            t for t, there in enumerate(found) if label.value not in there and (labels.voxels[t] == label.value).any()
        ]
        if frames:
            where = "" if labels.num_frames == 1 else f" in {len(frames)} of {labels.num_frames} frames"
            sentences.append(f"{label.name} is too small for a surface{where} and was left out.")
    return sentences


def distances_mm(mesh: vtkPolyData, other: vtkPolyData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far a surface lies from another, triangle by triangle.

    Returns:
        (N, 3) triangle centers in LPS mm, (N,) distance of each to `other` in mm, (N,) triangle areas in mm^2, by which
        means are weighted.
    """
    points, triangles = points_and_triangles(mesh)
    corners = points[triangles]
    centers = corners.mean(axis=1)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    return centers, np.abs(heights_mm(other, centers)), areas


def heights_mm(mesh: vtkPolyData, points_lps: np.ndarray) -> np.ndarray:
    """(...) mm by which points (..., 3) lie above a closed surface, negative inside."""
    distance = vtkImplicitPolyDataDistance()
    distance.SetInput(mesh)
    found = vtkDoubleArray()
    distance.EvaluateFunction(numpy_to_vtk(points_lps.reshape(-1, 3), deep=True), found)
    return vtk_to_numpy(found).reshape(points_lps.shape[:-1])


# --- fields -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fields:
    """Signed distances on a fine grid around the heart.

    Args:
        depths_mm: (L, Z, Y, X) one per label present, positive inside.
        outside_mm: (Z, Y, X) the same for the background.
        affine: (column, row, slice) of this grid -> LPS.
    """

    depths_mm: np.ndarray
    outside_mm: np.ndarray
    affine: np.ndarray

    def margin(self, index: int, offsets_mm: np.ndarray) -> np.ndarray:
        """(Z, Y, X) how much deeper a point is in label `index` than in any other, each made deeper by its offset."""
        depths = self.depths_mm + offsets_mm[:, None, None, None]
        others = np.concatenate([np.delete(depths, index, axis=0), self.outside_mm[None]])
        return _bordered(largest_piece(depths[index] - others.max(axis=0)))


def _smooth_fields(labels: Stack, image: np.ndarray, present: list[int], scales_mm: tuple[float, float]) -> _Fields:
    """Fields of the labels present; `scales_mm` are the smoothing and the grid."""
    smoothing_mm, fine_mm = scales_mm
    low, high = _box(image > 0, labels.spacing_mm)
    image = np.pad(image, [(1, 1), (0, 0), (0, 0)])[:, low[1] : high[1], low[2] : high[2]]
    heights, rows, columns = _fine_positions(image.shape, labels.spacing_mm, fine_mm)
    masks = [image == label for label in present] + [image > 0]
    fine = []
    for mask in masks:
        depths = _depth_slices(mask, labels.spacing_mm[:2])
        tall = PchipInterpolator(np.arange(len(depths)), depths, axis=0)(heights)
        where = np.meshgrid(np.arange(len(heights)), rows, columns, indexing="ij")
        grid_mm = np.array([(step[1] - step[0]) for step in (heights, rows, columns)]) * labels.spacing_mm[::-1]
        sampled = ndimage.map_coordinates(tall, where, order=1, mode="nearest", output=np.float32)
        fine.append(ndimage.gaussian_filter(sampled, smoothing_mm / grid_mm, mode="nearest"))
    start = np.array([columns[0] + low[2], rows[0] + low[1], heights[0] - 1])
    step = np.array([columns[1] - columns[0], rows[1] - rows[0], heights[1] - heights[0]])
    affine = labels.affine.copy()
    affine[:3, :3] = labels.affine[:3, :3] * step
    affine[:3, 3] = labels.to_lps(start)
    return _Fields(np.stack(fine[:-1]), -fine[-1], affine)


def _box(mask: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 (slice, row, column) of the labels with a margin; all slices."""
    where = np.argwhere(mask)
    margin = np.ceil(_MARGIN_MM / spacing_mm[::-1]).astype(int)
    low = np.maximum(where.min(axis=0) - margin, 0)
    high = np.minimum(where.max(axis=0) + 1 + margin, mask.shape)
    return low, high


def _grid_mm(labels: Stack) -> float:
    return float(np.clip(labels.spacing_mm[:2].min(), *_GRID_MM))


def _fine_positions(shape: tuple[int, ...], spacing_mm: np.ndarray, step_mm: float) -> list[np.ndarray]:
    """Index positions along slices, rows and columns of a nearly isotropic grid over the same extent."""
    extents = (np.array(shape) - 1) * spacing_mm[::-1]
    counts = np.maximum(np.ceil(extents / step_mm).astype(int) + 1, 3)
    return [np.linspace(0, size - 1, count) for size, count in zip(shape, counts, strict=True)]


def _depth_slices(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(Z, Y, X) signed distance within each slice; slices beyond the structure sink so that it ends half a slice on."""
    found = mask.any(axis=(1, 2))
    depths = np.zeros(mask.shape)
    for index in np.flatnonzero(found):
        depths[index] = signed_distance(mask[index], spacing_mm)
    for index in np.flatnonzero(~found):
        nearest = np.flatnonzero(found)[np.abs(np.flatnonzero(found) - index).argmin()]
        depths[index] = depths[nearest] - 2 * depths[nearest].max() * abs(index - nearest)
    return depths


def largest_piece(field: np.ndarray) -> np.ndarray:
    """The field with everything but its largest positive region made negative."""
    inside, count = ndimage.label(field > 0)
    if count < 2:
        return field
    largest = 1 + np.argmax(np.bincount(inside.ravel())[1:])
    return np.where((inside > 0) & (inside != largest), -1e-3, field)


def _bordered(field: np.ndarray) -> np.ndarray:
    """The field with one cell of negative border around it, so that its surface is closed."""
    closed = np.full(np.array(field.shape) + 2, min(-1.0, float(field.min())), np.float32)
    closed[1:-1, 1:-1, 1:-1] = field
    return closed


# --- meshes -----------------------------------------------------------------------------------------------------------


def _with_volumes(
    fields: _Fields, targets_ml: np.ndarray, meshes: list[vtkPolyData], volumes: np.ndarray
) -> list[vtkPolyData]:
    """Surfaces in grid indices whose volumes are the targets, by Broyden's method on the labels' offsets.

    Labels share borders, so the offset of one changes the volumes of its neighbors; the Jacobian is measured once.
    `meshes` and their `volumes` are those without offsets.
    """
    offsets = np.zeros(len(targets_ml))
    steps = _JACOBIAN_STEP_MM * np.eye(len(offsets))
    jacobian = np.stack([(_meshes_at(fields, step)[1] - volumes) / _JACOBIAN_STEP_MM for step in steps], axis=1)
    for _ in range(_MAX_ROUNDS):
        if (np.abs(volumes / targets_ml - 1) <= MAX_VOLUME_ERROR).all():
            break
        change = np.clip(np.linalg.lstsq(jacobian, targets_ml - volumes, rcond=None)[0], -_MAX_STEP_MM, _MAX_STEP_MM)
        offsets = offsets + change
        meshes, changed = _meshes_at(fields, offsets)
        missed = changed - volumes - jacobian @ change
        jacobian = jacobian + np.outer(missed, change) / max(float(change @ change), 1e-12)
        volumes = changed
    return meshes


def _meshes_at(fields: _Fields, offsets_mm: np.ndarray) -> tuple[list[vtkPolyData], np.ndarray]:
    """The surfaces in grid indices, and their volumes in ml."""
    cell_ml = abs(np.linalg.det(fields.affine[:3, :3])) / 1000
    margins = (fields.margin(index, offsets_mm) for index in range(len(offsets_mm)))
    meshes = [_evened(zero_level(margin, (-1, -1, -1), 1.0)) for margin in margins]
    return meshes, np.array([abs(_signed_volume(mesh)) * cell_ml for mesh in meshes])


def _evened(mesh: vtkPolyData) -> vtkPolyData:
    """Windowed-sinc smoothing at the scale of the grid: evens out the triangles, above all where three labels meet."""
    if not mesh.GetNumberOfPolys():
        return mesh
    smoother = vtkWindowedSincPolyDataFilter()
    smoother.SetInputData(mesh)
    smoother.SetNumberOfIterations(12)
    smoother.SetPassBand(0.08)
    smoother.NormalizeCoordinatesOn()
    smoother.FeatureEdgeSmoothingOff()
    smoother.Update()
    return smoother.GetOutput()


def zero_level(field: np.ndarray, origin: Sequence[float] | np.ndarray, step: float) -> vtkPolyData:
    """Triangles on which a field (z, y, x) is zero, whose first value lies at `origin` and the others `step` apart."""
    image = vtkImageData()
    image.SetDimensions(*field.shape[::-1])
    image.SetOrigin(*origin)
    image.SetSpacing(step, step, step)
    image.GetPointData().SetScalars(numpy_to_vtk(field.ravel(), deep=True))
    edges = vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, 0.0)
    edges.ComputeNormalsOff()
    edges.ComputeScalarsOff()
    edges.Update()
    return edges.GetOutput()


def points_and_triangles(mesh: vtkPolyData) -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) points and (N, 3) point indices."""
    if not mesh.GetNumberOfPolys():
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    points = vtk_to_numpy(mesh.GetPoints().GetData()).astype(float)
    return points, vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)


def with_points(mesh: vtkPolyData, points: np.ndarray) -> vtkPolyData:
    """The same triangles with their (P, 3) points elsewhere."""
    moved, places = vtkPolyData(), vtkPoints()
    moved.DeepCopy(mesh)
    places.SetData(numpy_to_vtk(points, deep=True))
    moved.SetPoints(places)
    return moved


def _signed_volume(mesh: vtkPolyData) -> float:
    """Volume by the divergence theorem, positive where the triangles face outwards."""
    points, triangles = points_and_triangles(mesh)
    a, b, c = (points[triangles[:, corner]] for corner in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def _finished(mesh: vtkPolyData, affine: np.ndarray) -> vtkPolyData:
    """The mesh in LPS, its triangles facing outwards, with point normals."""
    points, _ = points_and_triangles(mesh)
    moved = with_points(mesh, points @ affine[:3, :3].T + affine[:3, 3])
    if _signed_volume(moved) < 0:
        turned = vtkReverseSense()
        turned.SetInputData(moved)
        turned.ReverseCellsOn()
        turned.Update()
        moved = turned.GetOutput()
    normals = vtkPolyDataNormals()
    normals.SetInputData(moved)
    normals.SplittingOff()
    normals.ConsistencyOff()
    normals.Update()
    return normals.GetOutput()


# --- files ------------------------------------------------------------------------------------------------------------


_WRITERS: dict[str, Any] = {".vtp": vtkXMLPolyDataWriter, ".stl": vtkSTLWriter, ".obj": vtkOBJWriter}


def write_surface(mesh: vtkPolyData, path: Path, *, overwrite: bool = False) -> None:
    """Write a surface as .vtp, .stl or .obj, coordinates in LPS mm; the file appears whole or not at all.

    Raises:
        OutputError: if the extension is unknown, the file exists already or the folder cannot be written.
    """
    writer = _WRITERS.get(Path(path).suffix.lower(), vtkXMLPolyDataWriter)()
    if hasattr(writer, "SetFileTypeToBinary"):
        writer.SetFileTypeToBinary()
    save(writer, mesh, path, tuple(_WRITERS), overwrite=overwrite)


def save(writer: Any, data: vtkDataObject, path: Path, suffixes: tuple[str, ...], *, overwrite: bool) -> None:
    """Let one of VTK's writers write a file, whole or not at all, whose name has one of these endings.

    Raises:
        OutputError: as for `write_surface`.
    """
    with whole_file(path, suffixes, overwrite=overwrite) as draft:
        writer.SetInputData(data)
        writer.SetFileName(str(draft))
        if not writer.Write() or not draft.is_file():
            raise OutputError("unwritable", f"{path} could not be written.", "Check free space and permissions.")


def arrays(meshes: Mapping[int, vtkPolyData]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Points (P, 3) float32 in LPS mm and triangles (N, 3) int32 of each label, for drawing elsewhere."""
    result = {}
    for label, mesh in meshes.items():
        points, triangles = points_and_triangles(mesh)
        result[label] = points.astype(np.float32), triangles.astype(np.int32)
    return result
