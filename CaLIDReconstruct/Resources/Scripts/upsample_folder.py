"""Upsample every short-axis stack of a folder in 3D Slicer, without a window.

    Slicer --no-splash --no-main-window --python-script upsample_folder.py IN_FOLDER OUT_FOLDER --factor 8

Every volume file (.nrrd, .seq.nrrd, .nii, .nii.gz, .mha) and every sub-folder of DICOM files in IN_FOLDER is one case.
Cases whose result is already in OUT_FOLDER are left out, so the same command goes on where it stopped. A case that
fails is noted in OUT_FOLDER/failed.txt and does not stop the others. One engine serves all cases.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import slicer
from calid import files
from calid.errors import CalidError
from CaLIDReconstructLib import Nodes
from CaLIDReconstructLib.Logic import Reconstruction
from CaLIDReconstructLib.Messages import ModuleError
from CaLIDReconstructLib.Results import readResult


def main(arguments: Sequence[str], reconstruction: Reconstruction | None = None) -> int:
    """Run the whole folder; returns the number of cases that failed."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    logic = reconstruction or Reconstruction()
    failed = 0
    for case, name in find_cases(options.input):
        if any((options.output / f"{name}{suffix}").is_file() for suffix in (".nrrd", ".seq.nrrd")):
            print(f"{name}: already there", flush=True)
            continue
        try:
            upsample_case(logic, case, name, options)
            print(f"{name}: done", flush=True)
        except (ModuleError, CalidError, OSError) as error:
            failed += 1
            print(f"{name}: {error}", flush=True)
            with (options.output / "failed.txt").open("a", encoding="utf-8") as file:
                file.write(f"{name}: {error}\n")
        finally:
            slicer.mrmlScene.Clear()
    if reconstruction is None:
        logic.close()
    return failed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Upsample every short-axis stack of a folder.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--factor", default="isotropic", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--method", default="calid+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--segment", action="store_true", help="also write NAME.seg.nrrd")
    return parser.parse_args(arguments)


def find_cases(folder: Path) -> list[tuple[Path, str]]:
    """(path, name) of every volume file and sub-folder, in alphabetical order."""
    paths = sorted(path for path in folder.iterdir() if path.is_dir() or files.suffix_of(path))
    return [(path, path.name if path.is_dir() else path.name[: -len(files.suffix_of(path))]) for path in paths]


def upsample_case(logic: Reconstruction, case: Path, name: str, options: argparse.Namespace) -> None:
    """Load, upsample and save one case; the result's file appears last, so that a broken-off case is done again."""
    node, _sequence = Nodes.addStack(files.read_stack(case), name)
    result = logic.upsample(
        node, factor=options.factor, method=options.method, device=options.device, segment=options.segment
    )
    if result.labels is not None:
        labels = options.output / f"{name}.seg.nrrd"
        files.write_labels(result.labels, labels, overwrite=True)
    suffix = ".seq.nrrd" if result.sequence is not None else ".nrrd"
    files.write_stack(readResult(result.node), options.output / f"{name}{suffix}")


if __name__ == "__main__":
    code = min(main(sys.argv[1:]), 1)
    if hasattr(slicer.app, "exit"):
        slicer.util.exit(code)
    else:
        sys.exit(code)
