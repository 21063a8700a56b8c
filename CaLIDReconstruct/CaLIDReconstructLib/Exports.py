"""What leaves the scene as files: surfaces of all frames, and the figures as a table. File names name no patient."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import slicer
import vtk
from calid.heart.meshes import write_gltf
from calid.heart.surfaces import write_surface
from calid.heart.volumes import cardiac_function
from calid.heart.wall import SEGMENTS
from calid.labels import LABELS

from .Figures import segmentValues
from .LaxPlanes import toWorld
from .RunResult import RunResult
from .Segmentations import SURFACE, halfTurned, nodesOfFrame


def writeSurfaces(result: RunResult, folder: Path, suffix: str) -> int:
    """Write every frame's surfaces; returns the number of files.

    Args:
        result: a result with a segmentation.
        folder: existing; files of the same names are replaced.
        suffix: ".stl", ".obj" or ".vtp" for one file per structure such as `frame00-LV.stl`, in LPS mm in the world;
            ".glb" for one glTF file per frame, `frame00.glb`, in meters.

    Raises:
        OutputError: a file could not be written.
        ModuleError: the transform above the result is not linear.
    """
    world = toWorld(result.volume)
    count = result.sequence.GetNumberOfDataNodes() if result.sequence is not None else 1
    written = 0
    for frame in range(count):
        meshes = _surfaces(result, frame, world)
        if suffix == ".glb" and meshes:
            write_gltf(meshes, folder / f"frame{frame:02d}.glb", overwrite=True)
            written += 1
            continue
        for key, mesh in meshes.items():
            write_surface(mesh, folder / f"frame{frame:02d}-{key}{suffix}", overwrite=True)
        written += len(meshes)
    return written


def _surfaces(result: RunResult, frame: int, world: np.ndarray) -> dict:
    """Label key -> surface of one frame in LPS mm in the world, for the structures that have one."""
    segmentation = nodesOfFrame(result.segmentation, frame)[-1].GetSegmentation()
    found = {}
    for label in LABELS:
        segment = segmentation.GetSegment(label.key)
        mesh = segment.GetRepresentation(SURFACE) if segment is not None else None
        if mesh is not None and mesh.GetNumberOfPoints():
            found[label.key] = _inWorldLps(mesh, world)
    return found


def _inWorldLps(mesh, world: np.ndarray):
    transform = vtk.vtkTransform()
    transform.SetMatrix(slicer.util.vtkMatrixFromArray(world))
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetTransform(transform)
    moved.SetInputData(mesh)
    moved.Update()
    return halfTurned(moved.GetOutput())


def writeFigures(result: RunResult, path: Path) -> int:
    """Write the figures as rows of quantity, where, value and unit (CSV, UTF-8); returns 1, the number of files.

    Args:
        result: a result with a segmentation; its labels are measured as they are now.
        path: is replaced where it exists.

    Raises:
        OSError: the file could not be written.
    """
    rows = [("quantity", "frame", "time_ms", "segment", "value", "unit"), *_volumeRows(result), *_segmentRows(result)]
    rows.append(("note", "", "", "", "research use only; not for diagnosis", ""))
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return 1


def _volumeRows(result: RunResult) -> list[tuple]:
    labels = result.labels
    function = cardiac_function(labels)
    rows = []
    for name, ventricle in (("LV", function.lv), ("RV", function.rv)):
        for quantity, value, unit in (
            ("EDV", ventricle.edv_ml, "ml"),
            ("ESV", ventricle.esv_ml, "ml"),
            ("SV", ventricle.sv_ml, "ml"),
            ("EF", ventricle.ef_percent, "%"),
        ):
            rows.append((f"{name} {quantity}", "", "", "", _number(value), unit))
        for frame, (time, value) in enumerate(zip(labels.frame_times_ms, ventricle.volumes_ml, strict=True)):
            rows.append((f"{name} volume", frame, f"{time:.6g}", "", _number(value), "ml"))
    rows.append(("LV mass", "", "", "", _number(function.mass_g), "g"))
    return rows


def _segmentRows(result: RunResult) -> list[tuple]:
    if result.segmentTable is None:
        return []
    rows = []
    for column, values in segmentValues(result.segmentTable).items():
        quantity, _, unit = column.partition(" (")
        for segment, value in zip(SEGMENTS, values, strict=True):
            name = f"LV wall {quantity}" if quantity == "thickening" else f"LV wall thickness {quantity}"
            rows.append((name, "", "", f"{segment.number} {segment.name}", _number(value), unit.rstrip(")")))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.6g}"
