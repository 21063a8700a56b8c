"""Meshes for engineers: the closed wall of both ventricles with tags, its tetrahedra, and `calid mesh`.

The wall is the solid between the endocardia and the epicardium, cut off by a plane near the base, so that both cavities
are open there. The RV's wall is not in the labels: it is taken as `RV_WALL_MM` thick.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.optimize import brentq
from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import (
    VTK_TETRA,
    vtkCellArray,
    vtkMultiBlockDataSet,
    vtkPolyData,
    vtkUnstructuredGrid,
)
from vtkmodules.vtkIOGeometry import vtkGLTFWriter
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridWriter

from calid.errors import InputError, OutputError, ResourceError, SettingsError
from calid.heart.anatomy import heart_axes
from calid.heart.surfaces import (
    heights_mm,
    largest_piece,
    points_and_triangles,
    save,
    surfaces,
    with_points,
    write_surface,
    zero_level,
)
from calid.images.files import read_stack
from calid.labels import KEYS, LABELS, LV_CAVITY, MYOCARDIUM, RV_CAVITY, Label
from calid.stack import Stack

RV_WALL_MM = 3.0
"""The free wall of a normal right ventricle measures 2 to 5 mm."""

BASE_CUT_MM = 3.0
"""The wall ends so far below the middle of the most basal slice with LV cavity, where surfaces are not rounded yet."""

SEAM_MM = 0.5
"""Surfaces of neighbors may leave so little between them; it belongs to the wall."""

MAX_SHIFT_MM = 2.0
"""So far at most an endocardium is moved to keep the volume of its cavity."""

GRID_MM = 1.5
MARGIN_MM = 8.0
TAGS = {"lv_endo": 1, "rv_endo": 2, "epi": 3, "base": 4}
FORMATS = ("vtp", "stl", "obj", "glb")
_MM_PER_M = 1000.0


def biventricular_wall(labels: Stack, frame: int = 0) -> vtkPolyData:
    """The closed surface of the ventricles' wall, in LPS mm, each triangle with a `tag` of `TAGS`.

    Args:
        labels: 1 LV cavity, 2 LV myocardium, 3 RV cavity; cleaned, sparse or dense.
        frame: index.

    Raises:
        InputError: a structure is missing in this frame, or base and apex cannot be told apart.
    """
    closed = surfaces(labels, frame)
    missing = [label.name for label in LABELS if label.value not in closed]
    if missing:
        message = f"Frame {frame} has no surface of {' and '.join(missing)}."
        raise InputError("label-missing", message, "Choose a frame in which both ventricles and the wall are labeled.")
    origin, places = _grid(closed)
    lv, wall, rv = (-heights_mm(closed[label.value], places) for label in (LV_CAVITY, MYOCARDIUM, RV_CAVITY))
    apexward, base = _base_plane(labels, frame)
    below = (places - base) @ apexward
    cavities = {
        label.key: _of_volume(depth, below, _volume_below(labels, frame, label, apexward, base))
        for label, depth in ((LV_CAVITY, lv), (RV_CAVITY, rv))
    }
    fields = {
        "lv_endo": -cavities["LV"],
        "rv_endo": -cavities["RV"],
        "epi": np.maximum(np.maximum(lv + SEAM_MM, wall), cavities["RV"] + RV_WALL_MM),
        "base": below,
    }
    mesh = zero_level(largest_piece(np.minimum.reduce(list(fields.values()))), origin, GRID_MM)
    return _tagged(mesh, fields, origin)


def _grid(closed: Mapping[int, vtkPolyData]) -> tuple[np.ndarray, np.ndarray]:
    """Origin and points (z, y, x, 3) of a grid of `GRID_MM` around all surfaces."""
    bounds = np.array([mesh.GetBounds() for mesh in closed.values()])
    low, high = bounds[:, ::2].min(axis=0) - MARGIN_MM, bounds[:, 1::2].max(axis=0) + MARGIN_MM
    counts = np.ceil((high - low) / GRID_MM).astype(int) + 1
    z, y, x = np.indices(counts[::-1])
    return low, low + GRID_MM * np.stack([x, y, z], axis=-1)


def _base_plane(labels: Stack, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal of the slices, pointing to the apex, and a point of the plane that cuts the wall off."""
    found = np.flatnonzero((labels.voxels[frame] == LV_CAVITY.value).any(axis=(1, 2)))
    normal = labels.directions_lps[:, 2]
    is_apexward = bool(normal @ heart_axes(labels).apexward > 0)
    apexward = normal if is_apexward else -normal
    basal = labels.to_lps(np.array([0, 0, found[0] if is_apexward else found[-1]]))
    return apexward, basal + BASE_CUT_MM * apexward


def _volume_below(labels: Stack, frame: int, label: Label, apexward: np.ndarray, base: np.ndarray) -> float:
    """Volume of a label on the apex' side of the base plane in mm^3: each slice stands for half a gap on both sides."""
    corners = labels.to_lps(np.eye(3)[2] * np.arange(labels.num_slices)[:, None])
    shares = ((corners - base) @ apexward / labels.spacing_mm[2] + 0.5).clip(0, 1)
    counts = (labels.voxels[frame] == label.value).sum(axis=(1, 2))
    return float((counts * shares).sum() * np.prod(labels.spacing_mm))


def _of_volume(depth: np.ndarray, below: np.ndarray, volume_mm3: float) -> np.ndarray:
    """Depths in a cavity, all changed by one distance, so that what lies below the base plane has a volume.

    A closed surface is rounded at the base, and for that wider elsewhere: cut off, it would hold too much. Where no
    change up to `MAX_SHIFT_MM` does it, such as for a cavity that hardly reaches below the plane, nothing is changed.
    """

    def surplus(shift: float) -> float:
        inside = (0.5 + np.minimum(depth + shift, below) / GRID_MM).clip(0, 1)
        return float(inside.sum()) * GRID_MM**3 - volume_mm3

    if surplus(-MAX_SHIFT_MM) > 0 or surplus(MAX_SHIFT_MM) < 0:
        return depth
    return depth + brentq(surplus, -MAX_SHIFT_MM, MAX_SHIFT_MM, xtol=1e-3)


def _tagged(mesh: vtkPolyData, grids: Mapping[str, np.ndarray], origin: np.ndarray) -> vtkPolyData:
    """The mesh with the tag of the nearest border on each triangle."""
    points, triangles = points_and_triangles(mesh)
    where = ((points[triangles].mean(axis=1) - origin) / GRID_MM).T[::-1]
    away = [np.abs(ndimage.map_coordinates(grids[name], where, order=1)) for name in TAGS]
    tags = np.array(list(TAGS.values()), np.int32)[np.argmin(away, axis=0)]
    carried = numpy_to_vtk(tags, deep=True)
    carried.SetName("tag")
    mesh.GetCellData().AddArray(carried)
    return mesh


def tetrahedra(mesh: vtkPolyData) -> vtkUnstructuredGrid:
    """A closed surface filled with tetrahedra of good shape, by TetGen.

    Raises:
        ResourceError: "no-tetgen" if it is not installed.
    """
    try:
        import tetgen
    except ImportError as error:
        raise ResourceError("no-tetgen", "TetGen is not installed.", 'pip install "calid[mesh]"') from error
    points, triangles = points_and_triangles(mesh)
    made = tetgen.TetGen(points, triangles.astype(np.int32)).tetrahedralize(order=1, mindihedral=10, minratio=1.5)
    nodes, cells = np.asarray(made[0], float), np.asarray(made[1], np.int64)
    grid, carried, array = vtkUnstructuredGrid(), vtkPoints(), vtkCellArray()
    carried.SetData(numpy_to_vtk(nodes, deep=True))
    array.SetData(
        numpy_to_vtkIdTypeArray(np.arange(0, 4 * len(cells) + 1, 4, dtype=np.int64), deep=True),
        numpy_to_vtkIdTypeArray(cells.ravel(), deep=True),
    )
    grid.SetPoints(carried)
    grid.SetCells(VTK_TETRA, array)
    return grid


# --- files ------------------------------------------------------------------------------------------------------------


def write_gltf(meshes: Mapping[str, vtkPolyData], path: Path, *, overwrite: bool = False) -> None:
    """Write surfaces as binary glTF, in meters, the head up and the chest to the front, as glTF has it.

    Raises:
        OutputError: it cannot be written there.
    """
    scene = vtkMultiBlockDataSet()
    for number, mesh in enumerate(meshes.values()):
        inner = vtkMultiBlockDataSet()
        inner.SetBlock(0, _in_gltf_axes(mesh))
        scene.SetBlock(number, inner)
    writer = vtkGLTFWriter()
    writer.SetInlineData(True)
    save(writer, scene, path, (".glb",), overwrite=overwrite)


def _in_gltf_axes(mesh: vtkPolyData) -> vtkPolyData:
    """Left, head and front as x, y and z; meters."""
    points, _ = points_and_triangles(mesh)
    return with_points(mesh, (points[:, [0, 2, 1]] * [1, 1, -1] / _MM_PER_M).astype(np.float32))


def write_tetrahedra(grid: vtkUnstructuredGrid, path: Path, *, overwrite: bool = False) -> None:
    """Write tetrahedra as .vtu, coordinates in LPS mm.

    Raises:
        OutputError: it cannot be written there.
    """
    save(vtkXMLUnstructuredGridWriter(), grid, path, (".vtu",), overwrite=overwrite)


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid mesh`."""
    parser.add_argument("input", type=Path, help="labels, as `calid segment` writes them")
    parser.add_argument("output", type=Path, help="folder for the meshes, made if it is not there")
    parser.add_argument("--format", default="vtp", choices=FORMATS, help="of the surfaces (default vtp)")
    parser.add_argument("--frame", type=int, action="append", metavar="N", help="only this frame; may be repeated")
    parser.add_argument(
        "--wall", action="store_true", help="also the closed wall of both ventricles, tagged: frameNNNN-wall.vtp"
    )
    parser.add_argument("--tetrahedra", action="store_true", help="also the wall's tetrahedra: frameNNNN-wall.vtu")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the meshes of each frame; exit code 0."""
    labels = read_stack(options.input)
    known = [0, *(label.value for label in LABELS)]
    if not np.isin(labels.voxels, known).all():
        raise InputError("not-labels", f"{options.input.name} holds no labels.", "Make them first: calid segment.")
    labels = labels.with_voxels(labels.voxels.astype(np.uint8))
    frames = range(labels.num_frames) if options.frame is None else options.frame
    for frame in frames:
        if not 0 <= frame < labels.num_frames:
            remedy = f"Choose from 0 to {labels.num_frames - 1}."
            raise SettingsError("frames", f"There is no frame {frame}.", remedy)
    try:
        options.output.mkdir(exist_ok=True)
    except OSError as error:
        message = f"The folder {options.output} cannot be made ({error.strerror})."
        raise OutputError("unwritable", message, "Choose another.") from error
    count = sum(_write_frame(labels, frame, options) for frame in frames)
    print(f"{options.output}: {count} meshes of {len(frames)} frame(s), in LPS mm{_units(options.format)}.")
    return 0


def _units(form: str) -> str:
    return "; .glb in meters, y to the head" if form == "glb" else ""


def _write_frame(labels: Stack, frame: int, options: argparse.Namespace) -> int:
    """Write what is asked for of one frame; returns the number of files."""
    meshes = {KEYS[value]: mesh for value, mesh in surfaces(labels, frame).items()}
    stem, kept = f"frame{frame:04d}", {"overwrite": options.overwrite}
    for key, mesh in meshes.items():
        path = options.output / f"{stem}-{key}.{options.format}"
        if options.format == "glb":
            write_gltf({key: mesh}, path, **kept)
        else:
            write_surface(mesh, path, **kept)
    if not (options.wall or options.tetrahedra):
        return len(meshes)
    wall = biventricular_wall(labels, frame)
    write_surface(wall, options.output / f"{stem}-wall.vtp", **kept)
    if options.tetrahedra:
        write_tetrahedra(tetrahedra(wall), options.output / f"{stem}-wall.vtu", **kept)
    return len(meshes) + 1 + options.tetrahedra
