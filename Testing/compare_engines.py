"""Do two source trees make the same voxels? `python Testing/compare_engines.py OLD NEW [--models FOLDER]`.

Each tree's own `calid upsample`, with its own models or, where these differ, with those of one folder, makes the
middle of the demo case dense: a static stack and a cine, by CaLID, CaLID+, fidelity, with the uncertainty, over time,
frame by frame and linear. Every voxel is compared. Exit code 0 if all agree.

Networks run on one thread, so that a difference is one of the code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nrrd
import numpy as np

DEMO = Path("CaLIDReconstruct", "Resources", "Demo", "sax.seq.nrrd")
COLUMNS, ROWS = slice(40, 88), slice(44, 92)
COMMON = ("--device", "cpu", "--steps", "4")


@dataclass(frozen=True)
class Case:
    """One run of `calid upsample`.

    Args:
        name: what is tried.
        arguments: of the command.
        uncertainty: whether the standard deviation is written and compared too.
    """

    name: str
    arguments: tuple[str, ...]
    uncertainty: bool = False


STATIC, CINE, CYCLE = ("--frames", "9:10"), ("--frames", "0:10"), ("--frames", "0:25")
CASES = (
    Case("static stack, CaLID+", (*STATIC, "--method", "calid+", "--factor", "8")),
    Case("static stack, CaLID", (*STATIC, "--method", "calid", "--factor", "8")),
    Case("static stack, fidelity", (*STATIC, "--mode", "fidelity", "--samples", "8")),
    Case("static stack, CaLID+, uncertainty", (*STATIC, "--samples", "6", "--factor", "2"), uncertainty=True),
    Case("static stack, fidelity, uncertainty", (*STATIC, "--mode", "fidelity", "--factor", "2"), uncertainty=True),
    Case("static stack, linear", (*STATIC, "--method", "linear")),
    Case("cine, 2D, CaLID+", (*CINE, "--model", "2d", "--factor", "4")),
    Case("cine, 2D+T, CaLID+", (*CINE, "--model", "2d+t", "--factor", "4")),
    Case("cine, 2D+T, CaLID, uncertainty", (*CINE, "--method", "calid", "--factor", "2", "--samples", "3"), True),
    Case("cine, 2D+T, fidelity", (*CINE, "--mode", "fidelity", "--samples", "8", "--factor", "2")),
    Case("whole cycle, 2D+T, CaLID+", (*CYCLE, "--factor", "2")),
)


RUN_ALL = """
import json, sys, time
from calid.__main__ import main
for arguments in json.load(sys.stdin):
    start = time.monotonic()
    assert main(arguments) == 0, arguments
    print(f"{time.monotonic() - start:.1f}", file=sys.stderr, flush=True)
"""


def made(tree: Path, cases: Sequence[Case], folder: Path, models: Path | None) -> list[list[np.ndarray]]:
    """What a tree's engine makes of every case, in one process."""
    chosen = [] if models is None else ["--models", str(models.resolve())]
    folder.mkdir()
    sparse = folder / "sparse.seq.nrrd"
    voxels, header = nrrd.read(str(Path(__file__).parents[1] / DEMO))
    nrrd.write(str(sparse), voxels[..., COLUMNS, ROWS, :], header)
    outputs, commands = [], []
    for number, case in enumerate(cases):
        paths = [folder / f"{number}.nrrd", folder / f"{number}-uncertainty.nrrd"][: 1 + case.uncertainty]
        spread = ["--uncertainty", str(paths[1])] if case.uncertainty else []
        commands.append(["upsample", str(sparse), str(paths[0]), *COMMON, *chosen, *case.arguments, *spread])
        outputs.append(paths)
    environment = os.environ | {"PYTHONPATH": str(tree / "CaLIDReconstruct"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(commands), check=True, env=environment, cwd=folder, text=True
    )
    return [[nrrd.read(str(path))[0] for path in paths] for paths in outputs]


def difference(old: list[np.ndarray], new: list[np.ndarray]) -> str:
    """Where the voxels of two runs differ; empty if nowhere."""
    said = []
    for name, a, b in zip(("result", "uncertainty"), old, new, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype:
            said.append(f"{name}: {a.dtype} {a.shape} became {b.dtype} {b.shape}")
        elif not np.array_equal(a, b):
            off = np.abs(a.astype(np.float64) - b)
            said.append(f"{name}: {np.count_nonzero(off)} of {off.size} voxels, by at most {off.max():g}")
    return "; ".join(said)


def main() -> int:
    """Compare, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="source tree to compare with")
    parser.add_argument("new", type=Path, help="source tree that should make the same")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this text")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="models for both trees, instead of their own")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    with tempfile.TemporaryDirectory() as folder:
        old, new = (
            made(getattr(options, side).resolve(), cases, Path(folder, side), options.models) for side in ("old", "new")
        )
    said = [difference(before, after) for before, after in zip(old, new, strict=True)]
    for case, voxels, found in zip(cases, new, said, strict=True):
        print(f"{case.name:40} {sum(x.size for x in voxels):9} voxels  {found or 'identical'}")
    differ = sum(map(bool, said))
    print(f"{differ} cases differ" if differ else "all identical")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
