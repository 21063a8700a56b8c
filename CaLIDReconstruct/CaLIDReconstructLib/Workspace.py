"""The temporary folder of one run, and the removal of what a killed Slicer left behind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import slicer
from calid.images.whole_file import is_at_work

from .Messages import ModuleError, failureFromError

_PREFIX = "CaLID-"
_NAME = re.compile(rf"{_PREFIX}(\d+)-")


def temporaryFolder() -> str:
    """Slicer's own, which the user can set in its preferences; the system's where Slicer has none."""
    folder = getattr(slicer.app, "temporaryPath", "")
    return folder if folder and Path(folder).is_dir() else tempfile.gettempdir()


class Workspace:
    """A folder that exists while one run needs it. Its name holds the number of the process that owns it.

    Raises:
        ModuleError: "unwritable" or "disk-full".
    """

    def __init__(self, parent: str | None = None) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent or temporaryFolder()))
        except OSError as error:
            raise ModuleError(failureFromError(error, otherwise="unwritable")) from error

    def file(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.folder / name

    def subfolder(self, name: str) -> Path:
        """A folder in the folder, which is made."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def removeStale(parent: str | None = None) -> int:
    """Remove folders whose process is gone; returns how many were removed."""
    removed = 0
    for folder in Path(parent or temporaryFolder()).glob(f"{_PREFIX}*"):
        owner = _NAME.match(folder.name)
        if owner and folder.is_dir() and not is_at_work(int(owner.group(1))):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
