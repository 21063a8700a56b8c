"""Files of a caller on another computer: they come and go through the lines, and lie in a folder that goes with us."""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calid.errors import Cancelled, OutputError
from calid.images.whole_file import sweep, temporary_name
from calid.serve.commands import Command, Emit, Request, bad_request

PIECE_BYTES = 512 * 1024
"""Of a file in one line, which base64 makes a third longer."""

MAX_NAMES = 10_000

_NAME = re.compile(r"(?:\w[\w .+-]{0,79}/)?\w[\w .+-]{0,79}", re.ASCII)


class Exchange:
    """The folder in which the files of one caller lie; its name tells by which process, so that others can sweep it.

    Args:
        parent: where the folder is made; None takes the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        sweep(parent)
        self.folder = parent.resolve() / temporary_name(".serve")
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise _unwritable(error) from error
        self._sent: set[Path] = set()

    def remove(self) -> None:
        """Remove every file of the caller."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name: Any) -> Path:
        """Where a file or folder of the caller lies.

        Args:
            name: "NAME", or "FOLDER/NAME".

        Raises:
            SettingsError: it is no such name.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            remedy = "Send 'NAME' or 'FOLDER/NAME' of letters, digits, blanks and . _ + -."
            raise bad_request(f"{str(name)[:200]!r} is no name of a file of yours.", remedy)
        return self.folder / name

    def put(self, request: Request) -> None:
        """Add a piece to a file.

        Args:
            request: `name`; `at`, the number of bytes that the file has before, 0 begins it anew; `data`, base64.

        Raises:
            SettingsError: a field is wrong, or a piece is missing.
            OutputError: the disk is full or fails; the file is gone then.
        """
        path, at = self.path(request.get("name")), request.get("at")
        try:
            data = base64.b64decode(request.get("data", ""), validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise bad_request("The 'data' are no base64.", "Send the file again.") from error
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            there = path.stat().st_size if at and path.is_file() else 0
            if at != there:
                raise bad_request(f"{request['name']} has {there} bytes and not {at}.", "Send the file again.")
            with path.open("ab" if at else "wb") as file:
                file.write(data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _unwritable(error) from error

    def drop(self, request: Request) -> None:
        """Remove files and folders that the caller no longer needs.

        Raises:
            SettingsError: `names` is no list of names.
        """
        names = request.get("names")
        if not isinstance(names, list) or len(names) > MAX_NAMES:
            raise bad_request("'names' is no list of names.", "Send the names of files that you sent or got.")
        for path in map(self.path, names):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def request_here(self, command: Command, request: Request) -> Request:
        """A request whose paths are those of the caller's files, as a request with paths of this machine.

        Raises:
            SettingsError: a path is none of theirs.
        """
        paths = {key: str(self.path(request[key])) for key in (*command.reads, *command.writes) if request.get(key)}
        for key in command.writes:
            # Folders to write into are theirs to have; a file's folder is this one.
            if key in paths and key.endswith("folder"):
                Path(paths[key]).mkdir(mode=0o700, exist_ok=True)
        return {**request, **paths}

    def values_there(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of an event, with the names that the caller knows in place of our paths."""
        inside = f"{self.folder}{os.sep}"
        return {
            key: value.removeprefix(inside).replace(os.sep, "/")
            if isinstance(value, str) and value.startswith(inside)
            else value
            for key, value in values.items()
        }

    def send(self, path: str, emit: Emit, is_cancelled: Callable[[], bool]) -> None:
        """Send a file, or the files of a folder that were not sent yet, as `file` events.

        Raises:
            Cancelled: if `is_cancelled` said so.
        """
        whole = Path(path)
        for file in sorted(whole.iterdir()) if whole.is_dir() else [whole]:
            if file in self._sent or not file.is_file():
                continue
            name, size, at = file.relative_to(self.folder).as_posix(), file.stat().st_size, 0
            with file.open("rb") as opened:
                while True:
                    if is_cancelled():
                        raise Cancelled
                    data = opened.read(PIECE_BYTES)
                    text = base64.b64encode(data).decode("ascii")
                    emit("file", name=name, at=at, size=size, data=text)
                    at += len(data)
                    if at >= size or not data:
                        break
            if whole.is_dir() or file.parent != self.folder:
                self._sent.add(file)  # frames and surfaces are written once; a result may be asked for again


def _unwritable(error: OSError) -> OutputError:
    return OutputError(
        "unwritable", f"The other computer cannot keep your files ({error.strerror}).", "Free some space there."
    )
