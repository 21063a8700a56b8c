"""The temporary folder of one run, and the removal of what a killed Slicer left behind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

import slicer

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
        if owner and folder.is_dir() and not _isAlive(int(owner.group(1))):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _isAlive(pid: int) -> bool:
    if os.name == "nt":
        return _isAliveOnWindows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _isAliveOnWindows(pid: int) -> bool:
    import ctypes

    # os.kill(pid, 0) would end the process on Windows; 0x1000 is PROCESS_QUERY_LIMITED_INFORMATION.
    handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
    if handle:
        ctypes.windll.kernel32.CloseHandle(handle)
    return bool(handle)
