"""Fitted surfaces of the ventricles as ground truth: `*_LV_ENDOCARDIAL_NNN.vtk` and `*_RV_...`, one pair per phase."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from calid.heart.surfaces import distances_mm, surfaces
from calid.labels import LV_CAVITY, RV_CAVITY
from calid.stack import Stack
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.util.vtkConstants import VTK_UNSIGNED_CHAR
from vtkmodules.vtkCommonDataModel import vtkImageData, vtkPolyData
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter
from vtkmodules.vtkImagingStencil import vtkImageStencil, vtkPolyDataToImageStencil
from vtkmodules.vtkIOLegacy import vtkPolyDataReader

SIDES = {"LV": (LV_CAVITY.value, "LV_ENDOCARDIAL"), "RV": (RV_CAVITY.value, "RV_ENDOCARDIAL")}
CAP_MM = 6.0
"""Surfaces are not compared this near to the stack's ends, where they are capped."""


def mesh_labels(grid: Stack, frames: Sequence[int], folder: Path) -> Stack:
    """The meshes' cavities as labels on a dense grid, in LPS mm as the meshes; `frames` are the meshes' numbers."""
    voxels = np.zeros(grid.voxels.shape, np.uint8)
    for index, frame in enumerate(frames):
        for label, kind in SIDES.values():
            voxels[index][inside_of(_find(folder, kind, frame), grid)] = label
    return grid.with_voxels(voxels)


def distances_to_meshes(labels: Stack, frames: Sequence[int], folder: Path) -> dict[str, list[float]]:
    """Symmetric mean surface distance in mm per ventricle and phase; phases without the ventricle are left out."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for index, frame in enumerate(frames):
        ours = surfaces(labels, index)
        for side, (label, kind) in SIDES.items():
            if label in ours:
                theirs = _find(folder, kind, frame)
                both = _within(labels, ours[label], theirs), _within(labels, theirs, ours[label])
                found[side].append(float(np.mean(both)))
    return found


def _find(folder: Path, kind: str, frame: int) -> vtkPolyData:
    """The mesh of one kind and phase.

    Raises:
        FileNotFoundError: if there is none, with the name that was looked for.
    """
    pattern = f"*_{kind}_{frame:03d}.vtk"
    path = next(folder.glob(pattern), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no {pattern}")
    reader = vtkPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return reader.GetOutput()


def _within(stack: Stack, mesh: vtkPolyData, other: vtkPolyData) -> float:
    """Area-weighted mean distance from `mesh` to `other`, away from the stack's ends."""
    places, distances, areas = distances_mm(mesh, other)
    heights = stack.to_index(places)[:, 2] * stack.spacing_mm[2]
    inside = (heights > CAP_MM) & (heights < (stack.num_slices - 1) * stack.spacing_mm[2] - CAP_MM)
    return float(np.average(distances[inside], weights=areas[inside]))


def inside_of(mesh: vtkPolyData, grid: Stack) -> np.ndarray:
    """(Z, Y, X) bool: voxel centers of `grid` inside a mesh, whose small open valve rings are closed by scan lines."""
    matrix = vtkMatrix4x4()
    matrix.DeepCopy(np.linalg.inv(grid.affine).ravel().tolist())
    transform, moved = vtkTransform(), vtkTransformPolyDataFilter()
    transform.SetMatrix(matrix)
    moved.SetTransform(transform)
    moved.SetInputData(mesh)
    columns, rows, slices = grid.voxels.shape[:0:-1]
    outline = vtkPolyDataToImageStencil()
    outline.SetInputConnection(moved.GetOutputPort())
    outline.SetOutputWholeExtent(0, columns - 1, 0, rows - 1, 0, slices - 1)
    blank, stencil = vtkImageData(), vtkImageStencil()
    blank.SetDimensions(columns, rows, slices)
    blank.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(blank.GetPointData().GetScalars())[:] = 1
    stencil.SetInputData(blank)
    stencil.SetStencilConnection(outline.GetOutputPort())
    stencil.SetBackgroundValue(0)
    stencil.Update()
    return vtk_to_numpy(stencil.GetOutput().GetPointData().GetScalars()).reshape(slices, rows, columns) > 0
