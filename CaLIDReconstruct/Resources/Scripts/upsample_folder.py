"""Upsample every short-axis stack of a folder in 3D Slicer, without a window.

    Slicer --no-splash --no-main-window --python-script upsample_folder.py IN_FOLDER OUT_FOLDER --factor 8

Every volume file (.nrrd, .seq.nrrd, .nii, .nii.gz, .mha) and every sub-folder of DICOM files in IN_FOLDER is one case.
Cases whose result is already in OUT_FOLDER are left out, so the same command goes on where it stopped. A case that
fails does not stop the others; OUT_FOLDER/failed.txt names those of the last run. One engine serves all cases.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import slicer
from calid.images import files
from CaLIDReconstructLib import Nodes
from CaLIDReconstructLib.Logic import Reconstruction
from CaLIDReconstructLib.Results import readResult
from CaLIDReconstructLib.Settings import DEVICES, FACTORS, METHODS


def main(arguments: Sequence[str], reconstruction: Reconstruction | None = None) -> int:
    """Run the whole folder; returns the number of cases that failed."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    failures = options.output / "failed.txt"
    failures.unlink(missing_ok=True)
    logic = reconstruction or Reconstruction()
    failed = 0
    try:
        for case, name in find_cases(options.input):
            if any((options.output / f"{name}{suffix}").is_file() for suffix in (".nrrd", ".seq.nrrd")):
                print(f"{name}: already there", flush=True)
                continue
            reason = failure_of(logic, case, name, options)
            print(f"{name}: {reason or 'done'}", flush=True)
            if reason:
                failed += 1
                with failures.open("a", encoding="utf-8") as file:
                    file.write(f"{name}: {reason}\n")
    finally:
        if reconstruction is None:
            logic.close()
    return failed


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Upsample every short-axis stack of a folder.")
    parser.add_argument("input", type=folder)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--factor", default="isotropic", choices=FACTORS, type=lambda text: int(text) if text.isdigit() else text
    )
    parser.add_argument("--method", default="calid+", choices=METHODS)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--segment", action="store_true", help="also write NAME.seg.nrrd")
    return parser.parse_args(arguments)


def folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


def find_cases(folder: Path) -> list[tuple[Path, str]]:
    """(path, name) of every volume file and sub-folder, in alphabetical order."""
    paths = sorted(path for path in folder.iterdir() if path.is_dir() or files.suffix_of(path))
    return [(path, path.name if path.is_dir() else path.name[: -len(files.suffix_of(path))]) for path in paths]


def failure_of(logic: Reconstruction, case: Path, name: str, options: argparse.Namespace) -> str:
    """Upsample one case; returns the reason why it failed, or an empty text."""
    try:
        upsample_case(logic, case, name, options)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one case, a night's other cases go on
        return str(error) or type(error).__name__
    finally:
        slicer.mrmlScene.Clear()
    return ""


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


def run() -> None:
    """Run and leave, after an exception too: Slicer without a window would stay, unseen."""
    code = 1
    try:
        code = min(main(sys.argv[1:]), 1)
    finally:
        slicer.util.exit(code)


if __name__ == "__main__":
    run()
