"""Files that appear whole or not at all, never in place of another unless asked, and never in place of an input."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from calid.errors import OutputError

LONGEST_NAME = 255
"""Bytes of a file's name, where the system does not say."""

_QUERY_LIMITED_INFORMATION, _ACCESS_DENIED = 0x1000, 5  # as Windows has them

ABANDONED_SECONDS = 24 * 3600
"""A temporary file that nobody has touched for so long has no owner, whatever machine it ran on."""

_TEMPORARY = re.compile(r"\.calid-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}(\.se[qg])?\.[a-z]{2,5}(\.gz)?")


def check_new_file(
    path: Path, suffixes: Sequence[str], *, overwrite: bool = False, sources: Iterable[Path | None] = ()
) -> None:
    """Return if a result can be written to `path`; to be asked before a long run.

    Args:
        path: name of the file to be.
        suffixes: endings that its name may have, `files.SUFFIXES` for volumes.
        overwrite: whether it may replace what exists.
        sources: files and folders that the run reads; the result may neither replace one nor lie in one.

    Raises:
        OutputError: the extension is unknown, the name is too long, the folder is missing or not writable, something
            exists there, or it is an input.
    """
    path = Path(path)
    if not path.name.lower().endswith(tuple(suffixes)):
        remedy = f"End the file name in {' or '.join(suffixes)}."
        raise OutputError("unknown-extension", f"The extension of {path.name} does not say a known format.", remedy)
    if "\0" in str(path):
        raise OutputError("bad-name", "The name of the output holds a zero character.", "Choose another name.")
    try:
        _check_place(path, overwrite=overwrite, sources=[Path(source) for source in sources if source is not None])
    except OSError as err:  # a folder's name that is too long, a loop of links, a folder that may not be entered
        raise _output_error(path, err) from err


def _check_place(path: Path, *, overwrite: bool, sources: list[Path]) -> None:
    if not path.parent.is_dir():
        raise OutputError("missing-folder", f"The folder {path.parent} does not exist.", "Create it first.")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else LONGEST_NAME
    if len(os.fsencode(path.name)) > longest:
        message = f"The name {path.name[:40]}... has {len(os.fsencode(path.name))} bytes; {longest} are possible there."
        raise OutputError("name-too-long", message, "Choose a shorter name.")
    if path.is_dir():
        raise OutputError("is-a-folder", f"{path} is a folder.", "Name a file in it.")
    need_apart(path, sources)
    if path.exists() and not overwrite:
        raise OutputError("exists", f"{path} exists already.", "Choose another name, or ask to overwrite it.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError("unwritable", f"The folder {path.parent} cannot be written to.", "Choose another folder.")


def need_apart(path: Path, sources: Iterable[Path]) -> None:
    """Return if a file that is to be written is none of the sources and does not lie in one, nor below.

    Raises:
        OutputError: "output-is-input".
    """
    for source in sources:
        if _lies_in(path, source):
            where = f"lies in the folder {source}, which is an input." if source.is_dir() else "is an input."
            raise OutputError("output-is-input", f"{path} {where}", "Write the result to another folder.")


def _lies_in(path: Path, source: Path) -> bool:
    """Whether a file is the source, by whatever link or spelling, or lies in it or below."""
    if not source.exists():
        return False
    if source.is_dir():
        return any(folder.exists() and folder.samefile(source) for folder in path.resolve().parents)
    return path.exists() and path.samefile(source)


def need_room(path: Path, num_bytes: int) -> None:
    """Return if the disk has room for a file of so many bytes.

    Raises:
        OutputError: "disk-full".
    """
    free = shutil.disk_usage(Path(path).parent).free
    if num_bytes > free:
        message = f"{path} takes {num_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there."
        raise OutputError("disk-full", message, "Free some space, or choose another disk.")


@contextmanager
def whole_file(path: Path, suffixes: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`: written under it, a file takes its final name when all is well, else it vanishes.

    What a process that was killed left in the folder vanishes as well.

    Args:
        path: name of the file to be.
        suffixes: endings that its name may have.
        overwrite: whether it may replace what exists.

    Raises:
        OutputError: as for `check_new_file`, or the disk is full or fails.
    """
    path = Path(path)
    check_new_file(path, suffixes, overwrite=overwrite)
    # The temporary name ends like the final one, since VTK's writers go by the extension.
    suffix = next(suffix for suffix in suffixes if path.name.lower().endswith(suffix))
    with draft_beside(path, suffix) as temporary:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_new_file(path, suffixes, overwrite=overwrite)
        temporary.replace(path)


@contextmanager
def draft_beside(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary name beside `path` for a file or folder, which is gone afterwards if it did not take another name.

    Raises:
        OutputError: the disk is full or fails.
    """
    sweep(path.parent)
    draft = path.with_name(temporary_name(suffix))
    try:
        yield draft
    except OSError as err:
        raise _output_error(path, err) from err
    finally:
        _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _this_machine() -> str:
    """Eight letters that tell this machine, or this container on it, from others that write into the same folder."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def temporary_name(suffix: str) -> str:
    """A name for what is being written; it tells by which process, so that `sweep` can tell whether that has ended."""
    return f".calid-{_this_machine()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def sweep(folder: Path) -> None:
    """Remove our temporary files and folders whose process is gone; those of other machines only when they are old."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _TEMPORARY.fullmatch(path.name)
            if found and _is_abandoned(path, found["host"], int(found["process"])):
                _remove(path)


def _is_abandoned(path: Path, host: str, process: int) -> bool:
    if host == _this_machine() and not is_at_work(process):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def is_at_work(process: int) -> bool:
    """Whether a process of this machine is there and has not ended.

    In a container, where nobody may ask after orphans, one that has ended can keep its number for good.
    """
    if sys.platform == "win32":  # where os.kill(process, 0) would end it
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, ctypes.c_ulong(process))
        if handle:
            kernel.CloseHandle(handle)
        return bool(handle) or ctypes.get_last_error() == _ACCESS_DENIED  # somebody else's
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _output_error(path: Path, err: OSError) -> OutputError:
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            "disk-full", f"There is no room to write {path}.", "Free some space, or choose another disk."
        )
    message = f"{path} cannot be written ({err.strerror or err})."
    return OutputError("unwritable", message, "Choose another folder, or change its permissions.")
