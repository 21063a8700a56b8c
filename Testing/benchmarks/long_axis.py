"""Upsampled stacks against what the scanner saw from the side, and against fitted meshes.

`python Testing/benchmarks/long_axis.py STUDY [--meshes FOLDER] [--phases 5] [--json OUT]`

STUDY is a DICOM folder with short-axis and long-axis cines. For every long-axis image: agreement of nearest, linear and
CaLID+ with it (see `calid.longaxis.agreement`; the first column, edge agreement, is the headline). With `--meshes` (a
folder of `*_LV_ENDOCARDIAL_NNN.vtk` and `*_RV_ENDOCARDIAL_NNN.vtk`, one pair per phase, LPS mm): mean distance between
the surfaces of our labels and the meshes within the slab that both cover, and Dice of the labels' cuts through the
long-axis planes with the meshes' own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from calid.anatomy import clean_labels
from calid.case import acquired_slices
from calid.comparison import Column, ViewAgreement, compare_views
from calid.files import LaxImage, read_study
from calid.labels import LV_CAVITY, RV_CAVITY
from calid.longaxis import at_phases_of, cut, dice
from calid.reconstruct import upsample
from calid.segmentation import segment
from calid.settings import Settings
from calid.stack import Stack
from calid.surfaces import distances_mm, surfaces
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.util.vtkConstants import VTK_UNSIGNED_CHAR
from vtkmodules.vtkCommonDataModel import vtkImageData, vtkPolyData
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter
from vtkmodules.vtkImagingStencil import vtkImageStencil, vtkPolyDataToImageStencil
from vtkmodules.vtkIOLegacy import vtkPolyDataReader

MESHES = {"LV": (LV_CAVITY.value, "LV_ENDOCARDIAL"), "RV": (RV_CAVITY.value, "RV_ENDOCARDIAL")}
CAP_MM = 6.0


def phases_of(stack: Stack, count: int) -> np.ndarray:
    """Indices of `count` phases spread over the cycle."""
    return np.unique(np.linspace(0, stack.num_frames - 1, min(count, stack.num_frames)).astype(int))


def few(stack: Stack, frames: np.ndarray) -> Stack:
    return Stack(stack.voxels[frames], stack.affine, stack.frame_times_ms[frames], provenance=stack.provenance)


def report_agreement(figures: list[ViewAgreement]) -> dict:
    """Print the table, count the views in which each column is best."""
    names = list(figures[0].columns)
    print(f"{'view':34s}" + "".join(f"{name:>24s}" for name in names))
    for one in figures:
        cells = [one.columns[name] for name in names]
        print(
            f"{one.view[:33]:34s}"
            + "".join(f"{c.gradient_correlation:10.3f} {c.correlation:6.3f} {c.sharpness:6.2f}" for c in cells)
        )
    means = [np.mean([one.columns[name].gradient_correlation for one in figures]) for name in names]
    print(f"{'mean edge agreement':34s}" + "".join(f"{mean:10.3f}{'':14s}" for mean in means))
    best = {name: sum(one.best == name for one in figures) for name in names}
    print(f"best in: {best}")
    return {one.view: {name: asdict(figure) for name, figure in one.columns.items()} for one in figures}


def read_mesh(path: Path) -> vtkPolyData:
    reader = vtkPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return reader.GetOutput()


def distance_within(stack: Stack, mesh: vtkPolyData, other: vtkPolyData) -> float:
    """Area-weighted mean distance from `mesh` to `other`, away from the stack's ends, where surfaces are capped."""
    places, distances, areas = distances_mm(mesh, other)
    heights = stack.to_index(places)[:, 2] * stack.spacing_mm[2]
    inside = (heights > CAP_MM) & (heights < (stack.num_slices - 1) * stack.spacing_mm[2] - CAP_MM)
    return float(np.average(distances[inside], weights=areas[inside]))


def filled(mesh: vtkPolyData, grid: Stack) -> np.ndarray:
    """(Z, Y, X) bool: voxel centres of `grid` inside a mesh, whose small open valve rings are closed by scan lines."""
    matrix = vtkMatrix4x4()
    matrix.DeepCopy(np.linalg.inv(grid.affine).ravel())
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


def mesh_labels(grid: Stack, frames: np.ndarray, folder: Path) -> Stack:
    """The meshes' cavities as labels on a dense grid."""
    voxels = np.zeros(grid.voxels.shape, np.uint8)
    for index, frame in enumerate(frames):
        for label, kind in MESHES.values():
            mesh = read_mesh(next(folder.glob(f"*_{kind}_{frame:03d}.vtk")))
            voxels[index][filled(mesh, grid)] = label
    return grid.with_voxels(voxels)


def distances_to_meshes(labels: Stack, frames: np.ndarray, folder: Path) -> dict[str, float]:
    """Symmetric mean surface distance in mm per ventricle, over the phases."""
    found: dict[str, list[float]] = {side: [] for side in MESHES}
    for index, frame in enumerate(frames):
        ours = surfaces(labels, index)
        for side, (label, kind) in MESHES.items():
            theirs = read_mesh(next(folder.glob(f"*_{kind}_{frame:03d}.vtk")))
            both = distance_within(labels, ours[label], theirs), distance_within(labels, theirs, ours[label])
            found[side].append(float(np.mean(both)))
    return {side: float(np.mean(values)) for side, values in found.items()}


def dice_in_planes(labels: Stack, truth: Stack, lax: tuple[LaxImage, ...]) -> dict[str, float]:
    """Mean Dice over the long-axis planes per ventricle."""
    found: dict[str, list[float]] = {side: [] for side in MESHES}
    for image in lax:
        plane = at_phases_of(image.stack, labels)
        cuts = cut(labels, plane, order=0), cut(truth, plane, order=0)
        for side, (label, _) in MESHES.items():
            found[side].append(dice(*cuts, label))
    return {side: float(np.nanmean(values)) for side, values in found.items()}


def report_anatomy(stacks: dict[str, Stack], frames: np.ndarray, folder: Path, lax: tuple[LaxImage, ...]) -> dict:
    """Segment every stack and print how near its labels come to the meshes."""
    truth = mesh_labels(list(stacks.values())[-1], frames, folder)
    results = {}
    for name, stack in stacks.items():
        labels = clean_labels(segment(stack))
        distances = distances_to_meshes(labels, frames, folder)
        overlaps = dice_in_planes(labels, truth, lax)
        results[name] = {"distance_mm": distances, "dice": overlaps}
        cells = (f"  {side} {distances[side]:.2f} mm, Dice {overlaps[side]:.3f}" for side in MESHES)
        print(f"{name:10s}" + "".join(cells))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--meshes", type=Path)
    parser.add_argument("--phases", type=int, default=5, help="cardiac phases compared (default 5)")
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["calid+"], choices=["calid", "calid+"])
    parser.add_argument("--mode", default="detail", choices=["detail", "fidelity"])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    study = read_study(options.study)
    frames = phases_of(study.sax, options.phases)
    sparse = few(study.sax, frames)
    stacks = {}
    for method in ["linear", *options.methods]:
        mode = "detail" if method == "linear" else options.mode
        settings = Settings(factor=options.factor, method=method, mode=mode)
        stacks[method] = upsample(sparse, settings, models_folder=options.models).stack
    columns = [Column("nearest", sparse, order=0), *(Column(name, stack) for name, stack in stacks.items())]
    print(f"edge agreement, correlation, sharpness; {len(frames)} phases, x{options.factor}, {options.mode}")
    results = {"agreement": report_agreement(compare_views(study.lax, columns))}
    if options.meshes:
        print("labels against the fitted meshes: mean surface distance, Dice in the long-axis planes")
        acquired = acquired_slices(stacks["linear"])
        results["anatomy"] = report_anatomy({"sparse": acquired, **stacks}, frames, options.meshes, study.lax)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
