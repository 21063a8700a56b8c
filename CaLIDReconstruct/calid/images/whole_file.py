"""Files that appear whole or not at all, and never in place of another unless asked."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from calid.errors import OutputError


def check_output(path: Path, suffixes: Sequence[str], *, overwrite: bool = False) -> None:
    """Return if a result can be written to `path`; to be asked before a long run.

    Args:
        path: of the file to be.
        suffixes: what its name may end in, `files.SUFFIXES` for volumes.
        overwrite: whether it may replace what exists.

    Raises:
        OutputError: the extension is unknown, the folder is missing or not writable, or something exists there.
    """
    path = Path(path)
    if not path.name.lower().endswith(tuple(suffixes)):
        remedy = f"End the file name in {' or '.join(suffixes)}."
        raise OutputError("unknown-extension", f"The extension of {path.name} does not say a known format.", remedy)
    if not path.parent.is_dir():
        raise OutputError("missing-folder", f"The folder {path.parent} does not exist.", "Create it first.")
    if path.is_dir():
        raise OutputError("is-a-folder", f"{path} is a folder.", "Name a file in it.")
    if path.exists() and not overwrite:
        raise OutputError("exists", f"{path} exists already.", "Choose another name, or ask to overwrite it.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError("unwritable", f"The folder {path.parent} cannot be written to.", "Choose another folder.")


@contextmanager
def whole_file(path: Path, suffixes: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`: written under it, a file takes its final name when all is well, else it vanishes.

    Args:
        path: of the file to be.
        suffixes: what its name may end in.
        overwrite: whether it may replace what exists.

    Raises:
        OutputError: as for `check_output`, or the disk is full or fails.
    """
    path = Path(path)
    check_output(path, suffixes, overwrite=overwrite)
    # The temporary name ends like the final one, since SimpleITK goes by the extension.
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_output(path, suffixes, overwrite=overwrite)
        temporary.replace(path)
    except OSError as err:
        raise _output_error(path, err) from err
    finally:
        temporary.unlink(missing_ok=True)


def _output_error(path: Path, err: OSError) -> OutputError:
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            "disk-full", f"There is no room to write {path}.", "Free some space, or choose another disk."
        )
    message = f"{path} cannot be written ({err.strerror or err})."
    return OutputError("unwritable", message, "Choose another folder, or change its permissions.")
