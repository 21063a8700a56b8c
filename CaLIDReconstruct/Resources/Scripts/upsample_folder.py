"""Upsample every short-axis stack of a folder in 3D Slicer, without a window: `calid cohort` in the engine's Python.

    Slicer --no-splash --no-main-window --python-script upsample_folder.py IN_FOLDER OUT_FOLDER --factor 8

Takes the arguments of `calid cohort` (docs/cohort.md), and the interpreter and models that the panel has chosen. Unless
`--keep` says otherwise, the dense stacks are kept: OUT_FOLDER/cases/NAME/dense.seq.nrrd. The same command goes on where
it stopped; a case that fails does not stop the others, and OUT_FOLDER/failures.csv names it with its reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import slicer
from CaLIDReconstructLib.EngineProcess import engineCommand, killTree, startProcess
from CaLIDReconstructLib.Parameters import Preferences


def main(arguments: Sequence[str], preferences: Preferences | None = None) -> int:
    """Run the whole folder; returns the exit code of `calid cohort`."""
    preferences = preferences or Preferences()
    more = [] if "--keep" in arguments else ["--keep", "dense"]
    if preferences.modelsFolder and "--models" not in arguments:
        more += ["--models", preferences.modelsFolder]
    environment = slicer.util.startupEnvironment() if preferences.interpreter else os.environ
    command = engineCommand(
        preferences.interpreter, environment=environment, arguments=("-m", "calid", "cohort", *arguments, *more)
    )
    process = startProcess(replace(command, folder=str(Path.cwd())))  # so that relative paths are the user's
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            killTree(process)


def run() -> None:
    """Run and leave, after an exception too: Slicer without a window would stay, unseen."""
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        slicer.util.exit(code)


if __name__ == "__main__":
    run()
