"""Build the bundled demo case from the biv-me example heart: crop, name, and note where it comes from.

    python -m calid_training.demo_case BIVME_FOLDER OUT_FOLDER

BIVME_FOLDER holds `dicoms/` (one series per slice or view) and `meshes/` (fitted surfaces of 25 phases, LPS mm). Voxels
are copied as they are; only windows around the heart are cut out, so each remaining voxel keeps its place.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import vtk
from calid.errors import CalidError, OutputError
from calid.geometry import cropped_affine
from calid.images.files import read_study, write_stack
from calid.stack import Stack
from vtk.util.numpy_support import vtk_to_numpy

SAX_SIZE, VIEW_SIZE = 128, 120
"""Pixels of the square windows; the heart measures at most 93 in any of them (131 mm), in all phases together."""

MAX_BYTES = 5_000_000

VIEWS = ("4ch", "3ch", "2ch", "rv-2ch", "rvot")
"""What the long-axis images show, in the order of their series; the second one's series is named 4CH, too."""

SURFACES = ("LV_ENDOCARDIAL", "RV_ENDOCARDIAL", "EPICARDIAL")
CASE = "biv-me example case (Auckland Bioengineering Institute), patient1"
LICENSE = "Apache-2.0"

NOTICE = """# The demo case

A human heart, from the example data of **biv-me** (Auckland Bioengineering Institute, University of Auckland,
https://github.com/UOA-Heart-Mechanics-Research/biv-me), licensed under Apache-2.0. Identifiers had been removed there.

Acquired at 3 T by cine steady-state free precession, retrospectively gated, {frames} phases of one heart beat:

| file | what |
|---|---|
| `sax.seq.nrrd` | short axis, {slices} slices, {spacing:.1f} mm apart, {thickness:g} mm thick |
| {views} | long-axis views: 4-chamber, 3-chamber, 2-chamber, RV 2-chamber, RV outflow tract |
| `meshes/*.vtp` | surfaces that biv-me fitted at end-diastole (frame {ed}) and end-systole (frame {es}), LPS mm |
| `demo.json` | these frames and the LV volumes of the surfaces |

Frames are counted from 0.

Changes: a square window around the heart was cut out of each image ({sax_size} pixels wide of the short axis,
{view_size} of the long-axis views); voxels are as acquired, with their place in the patient. Slices were put in order,
frame times averaged over the slices. Surfaces of other phases were left out, points rounded to 32 bits.

Rebuild it with `python -m calid_training.demo_case BIVME_FOLDER OUT_FOLDER`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Build the case; 0 when done, 2 when the input or output is at fault."""
    parser = argparse.ArgumentParser(prog="calid_training.demo_case", description=__doc__.splitlines()[0])
    parser.add_argument("bivme", type=Path, help="folder with dicoms/ and meshes/")
    parser.add_argument("output", type=Path, help="folder for the case; files of an earlier one are replaced")
    options = parser.parse_args(arguments)
    try:
        total = build(options.bivme, options.output)
    except CalidError as error:
        print(f"demo_case: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {total / 1e6:.2f} MB")
    return 0


def build(bivme: Path, output: Path) -> int:
    """Write the case and return its size in bytes.

    Raises:
        InputError: the DICOM images do not make a stack and its views.
        OutputError: the case would be too large to be bundled.
    """
    study = read_study(bivme / "dicoms")
    surfaces = {name: _read_surfaces(bivme / "meshes", name, study.sax.num_frames) for name in SURFACES}
    volumes_ml = [_volume_ml(surface) for surface in surfaces["LV_ENDOCARDIAL"]]
    frames = {"ed_frame": 0, "es_frame": int(np.argmin(volumes_ml))}
    heart_lps = np.concatenate([_points(surface) for name in SURFACES for surface in surfaces[name]])
    output.mkdir(parents=True, exist_ok=True)
    stacks = {"sax": study.sax} | dict(zip(VIEWS, (image.stack for image in study.lax), strict=True))
    for name, stack in stacks.items():
        size = SAX_SIZE if name == "sax" else VIEW_SIZE
        cropped = _cropped(stack, heart_lps, size).noted(case=CASE, license=LICENSE, view=name, **frames)
        write_stack(cropped, output / f"{name}.seq.nrrd", overwrite=True)
    _write_surfaces(surfaces, frames, output / "meshes")
    _write_notes(study.sax, frames, volumes_ml, output)
    total = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise OutputError("too-large", f"The demo case has {total} bytes, more than {MAX_BYTES}.", "Crop it more.")
    return total


def _cropped(stack: Stack, heart_lps: np.ndarray, size: int) -> Stack:
    """The window of `size` x `size` pixels whose middle is the heart's, as far as the image reaches.

    Args:
        stack: a stack or a single slice.
        heart_lps: (n, 3) points of the heart in all phases; those within the slices count.
        size: size of the window, in pixels.
    """
    indices = stack.to_index(heart_lps)
    half = max(0.5, 3.0 / stack.spacing_mm[2])
    inside = indices[(indices[:, 2] >= -half) & (indices[:, 2] <= stack.num_slices - 1 + half), :2]
    middle = (inside.min(axis=0) + inside.max(axis=0)) / 2
    columns, rows = stack.voxels.shape[:1:-1]
    x, y = (int(np.clip(round(m - size / 2), 0, n - size)) for m, n in zip(middle, (columns, rows), strict=True))
    return Stack(
        voxels=stack.voxels[:, :, y : y + size, x : x + size],
        affine=cropped_affine(stack.affine, (x, y, 0)),
        frame_times_ms=stack.frame_times_ms,
        provenance={**stack.provenance, "cropped_from": [columns, rows], "crop_start": [x, y]},
    )


def _read_surfaces(folder: Path, name: str, count: int) -> list[vtk.vtkPolyData]:
    """One fitted surface in every phase."""
    surfaces = []
    for frame in range(count):
        reader = vtk.vtkPolyDataReader()
        reader.SetFileName(str(folder / f"patient1_{name}_{frame:03d}.vtk"))
        reader.Update()
        surfaces.append(reader.GetOutput())
    return surfaces


def _points(surface: vtk.vtkPolyData) -> np.ndarray:
    """(n, 3) LPS mm."""
    return vtk_to_numpy(surface.GetPoints().GetData())


def _volume_ml(surface: vtk.vtkPolyData) -> float:
    """Enclosed volume as VTK estimates it; the surfaces are open at the valves, alike in all phases."""
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(surface)
    properties = vtk.vtkMassProperties()
    properties.SetInputConnection(triangles.GetOutputPort())
    return properties.GetVolume() / 1000


def _write_surfaces(surfaces: dict[str, list[vtk.vtkPolyData]], frames: dict[str, int], folder: Path) -> None:
    """The surfaces of the named frames, without their scalars, compressed."""
    folder.mkdir(exist_ok=True)
    for moment, frame in frames.items():
        for name, phases in surfaces.items():
            bare = vtk.vtkPolyData()
            points = vtk.vtkPoints()
            points.SetDataTypeToFloat()
            points.DeepCopy(phases[frame].GetPoints())
            bare.SetPoints(points)
            bare.SetPolys(phases[frame].GetPolys())
            writer = vtk.vtkXMLPolyDataWriter()
            writer.SetFileName(str(folder / f"{moment.removesuffix('_frame')}-{name.lower().replace('_', '-')}.vtp"))
            writer.SetInputData(bare)
            writer.SetCompressorTypeToLZMA()
            writer.SetDataModeToAppended()
            writer.EncodeAppendedDataOff()
            writer.Write()


def _write_notes(sax: Stack, frames: dict[str, int], volumes_ml: list[float], output: Path) -> None:
    """`NOTICE.md` for people and `demo.json` for programs."""
    facts = {
        "case": CASE,
        "license": LICENSE,
        "frames": sax.num_frames,
        **frames,
        "mesh_lv_volume_ml": {moment: round(volumes_ml[frame], 1) for moment, frame in frames.items()},
    }
    (output / "demo.json").write_text(json.dumps(facts, indent=2) + "\n")
    notice = NOTICE.format(
        frames=sax.num_frames,
        slices=sax.num_slices,
        spacing=sax.spacing_mm[2],
        thickness=sax.provenance["slice_thickness_mm"],
        views=", ".join(f"`{view}.seq.nrrd`" for view in VIEWS),
        sax_size=SAX_SIZE,
        view_size=VIEW_SIZE,
        ed=frames["ed_frame"],
        es=frames["es_frame"],
    )
    (output / "NOTICE.md").write_text(notice)


if __name__ == "__main__":
    sys.exit(main())
