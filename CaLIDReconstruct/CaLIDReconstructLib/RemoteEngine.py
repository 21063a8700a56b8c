"""An engine on another computer behind `EngineTransport`: lines of JSON through ssh, and the files in these lines.

Only volumes and long-axis images that this module wrote for a run leave: voxels, their place, the times of their frames
and the settings, under names that say nothing. Keys and host keys are ssh's own business and never bypassed.
"""

from __future__ import annotations

import base64
import contextlib
import queue
import re
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calid import __version__
from calid.serve.commands import COMMANDS
from calid.serve.exchange import PIECE_BYTES
from calid.serve.server import PROTOCOL

from .EngineProcess import MODULE_FOLDER, EngineCommand, EngineNotStarted, EngineProcess, parseEvent

SSH = "ssh"
OPTIONS = (
    *("-T", "-a", "-x"),  # no terminal, no agent and no windows of ours over there
    *("-o", "BatchMode=yes"),  # there is no terminal to ask a password in
    *("-o", "StrictHostKeyChecking=yes"),  # whatever the user's own settings let pass
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
)
DEFAULT_PROGRAM = "calid"
ALIVE_S = 20.0
TOLD_EVERY_S = 0.2
SENT_SUFFIX = ".nrrd"
_HOST = re.compile(r"(?:ssh://)?(?:[A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[][\w.:\[\]%-]*/?", re.ASCII)

_FILE = re.compile(r"\w[\w .+-]*", re.ASCII)

# What ssh says, and what that is for the user: see `Messages`.
_SAID = (
    ("remote-changed-key", ("REMOTE HOST IDENTIFICATION HAS CHANGED",)),
    ("remote-unknown-key", ("Host key verification failed", "No matching host key", "host key is known")),
    ("remote-denied", ("Permission denied", "Too many authentication failures")),
    ("remote-not-found", ("Could not resolve hostname", "Name or service not known")),
    ("remote-unreachable", ("Connection refused", "timed out", "No route to host", "Network is unreachable")),
)
_NO_ENGINE = ("command not found", "not found", "No such file or directory", "No module named calid", "not recognized")


def isHost(text: str) -> bool:
    """Whether this can be the name of a computer as ssh takes it, and nothing that ssh would take for an option."""
    return bool(_HOST.fullmatch(text))


def sshCommand(host: str, program: str, *, environment: Mapping[str, str]) -> EngineCommand:
    """The command that starts an engine on another computer.

    Args:
        host: "computer", "user@computer", a name of ssh's configuration, or "ssh://user@computer:port".
        program: command that is `calid` there, such as "calid" or "~/calid/bin/calid"; its shell reads it.
        environment: environment of the user and not Slicer's, whose libraries are not those that ssh wants.

    Raises:
        EngineNotStarted: there is no ssh on this computer, or the host is none.
    """
    ssh = shutil.which(SSH, path=environment.get("PATH"))
    if ssh is None:
        raise EngineNotStarted("remote-no-ssh", SSH)
    if not isHost(host):
        raise EngineNotStarted("remote-not-found", host)
    there = f"{program.strip() or DEFAULT_PROGRAM} serve --apart"
    return EngineCommand((ssh, *OPTIONS, "--", host, there), environment, str(MODULE_FOLDER))


class _Withdrawn(Exception):
    """The request was cancelled while its files were on their way."""


@dataclass
class _Names:
    """What files are called on the other computer. The threads that write and read share it.

    Args:
        there: local file or folder -> its name there, and by what it can be told whether it is still the same.
        wanted: name there -> local file or folder that it is to become.
    """

    there: dict[Path, tuple[str, tuple | None]] = field(default_factory=dict)
    wanted: dict[str, Path] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0

    def new(self, path: Path) -> str:
        """A name that says nothing but the format."""
        with self.lock:
            self.count += 1
            return f"{self.count}{path.name[path.name.find('.') :] if '.' in path.name else ''}"

    def known(self, path: Path) -> str | None:
        """The name of a file that lies there already."""
        with self.lock:
            name, stamp = self.there.get(path, ("", None))
        return name if name and stamp == _stamp(path) else None

    def note(self, path: Path, name: str) -> None:
        with self.lock:
            self.there[path] = (name, _stamp(path))

    def expect(self, path: Path, name: str) -> None:
        with self.lock:
            self.wanted[name] = path
            self.there[path] = (name, None)

    def place(self, name: str) -> Path | None:
        """Where a file from there goes; None for one that nobody asked for."""
        folder, _, inside = name.rpartition("/")
        with self.lock:
            if not folder:
                return self.wanted.get(name)
            parent = self.wanted.get(folder)
        return parent / inside if parent is not None and _FILE.fullmatch(inside) else None

    def takeGone(self) -> list[str]:
        """The names of what has been removed here, and is forgotten."""
        with self.lock:
            gone = [path for path in self.there if not path.exists() and not path.parent.exists()]
            names = [self.there.pop(path)[0] for path in gone]
            for name in names:
                self.wanted.pop(name, None)
        return names


class RemoteEngine(EngineProcess):
    """`ssh HOST calid serve --apart`. Whoever uses it names files of this computer, as with an engine at home.

    Args:
        command: see `sshCommand`.
    """

    def __init__(self, command: EngineCommand) -> None:
        super().__init__(command)
        self._outgoing: queue.Queue[dict | None] = queue.Queue()
        self._names = _Names()
        self._withdrawn: set[str] = set()
        self._isReady = False
        self._refusal: tuple[str, str] | None = None
        self._told = 0.0
        self._writer = threading.Thread(target=self._passOn, daemon=True)

    def start(self) -> None:
        """Start ssh, and the thread that sends."""
        super().start()
        self._writer.start()

    def send(self, request: dict) -> None:
        """Put a request into the line; files may take their time, and the application does not wait for them."""
        if request["command"] == "cancel":
            self._withdrawn.add(str(request["target"]))
        self._outgoing.put(request)

    def receive(self) -> list[dict]:
        """The events since the last call; the end of ssh is told in the user's words."""
        events = super().receive()
        return [{**event, **self._reason(event)} if event["event"] == "exit" else event for event in events]

    def kill(self) -> None:
        """Cut the connection, which ends the engine there."""
        self._outgoing.put(None)
        super().kill()

    def close(self, timeout_s: float = 2.0) -> None:
        """Ask the engine to end, wait, then cut the connection, which ends it as well."""
        if self.process is None:
            return
        self._outgoing.put({"command": "shutdown"})
        self._outgoing.put(None)
        self._writer.join(timeout=timeout_s)
        if self._writer.is_alive():
            self.kill()  # a pipe that nobody empties could not even be closed
        else:
            super().close(timeout_s)

    # --- there: a thread of its own ---

    def _passOn(self) -> None:
        while True:
            try:
                request = self._outgoing.get(timeout=ALIVE_S)
            except queue.Empty:
                self._drop()
                super().send({"command": "alive"})
                continue
            if request is None:
                return
            try:
                self._pass(request)
            except _Withdrawn:
                self._events.put({"event": "cancelled", "id": request.get("id")})
            except (OSError, EngineNotStarted) as error:
                code = getattr(error, "code", "unwritable")
                self._events.put({"event": "error", "id": request.get("id"), "code": code, "message": str(error)})

    def _pass(self, request: dict) -> None:
        command = COMMANDS.get(request["command"])
        if command is not None:
            if str(request["id"]) in self._withdrawn:
                raise _Withdrawn
            self._drop()
            paths = {key: Path(request[key]) for key in command.reads if request.get(key)}
            sent = self._sent(paths, str(request["id"]))
            request = {**request, **sent}
            for key in command.writes:
                if request.get(key):
                    path = Path(request[key])
                    request[key] = self._names.new(path)
                    self._names.expect(path, request[key])
        super().send(request)

    def _drop(self) -> None:
        names = self._names.takeGone()
        if names:
            super().send({"command": "drop", "names": names})

    def _sent(self, paths: Mapping[str, Path], requestId: str) -> dict[str, str]:
        """Send what is not there yet; returns the names there.

        Raises:
            EngineNotStarted: "remote-files", a file is none that this module made for a run.
        """
        names = {key: self._names.known(path) or self._names.new(path) for key, path in paths.items()}
        pieces = [
            (file, f"{names[key]}/{file.name}" if path.is_dir() else names[key])
            for key, path in paths.items()
            if self._names.known(path) is None
            for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        ]
        if not all(file.name.endswith(SENT_SUFFIX) for file, _ in pieces):
            raise EngineNotStarted("remote-files", "")
        size, done = sum(file.stat().st_size for file, _ in pieces), 0
        for file, name in pieces:
            done = self._sendFile(file, name, requestId, (done, size))
        for key, path in paths.items():
            self._names.note(path, names[key])
        return names

    def _sendFile(self, file: Path, name: str, requestId: str, progress: tuple[int, int]) -> int:
        done, size = progress
        length = file.stat().st_size
        with file.open("rb") as opened:
            for at in range(0, max(1, length), PIECE_BYTES):
                if requestId in self._withdrawn:
                    raise _Withdrawn
                text = base64.b64encode(opened.read(PIECE_BYTES)).decode("ascii")
                super().send({"id": requestId, "command": "put", "name": name, "at": at, "data": text})
                self._tell(requestId, 0.0, "sending", done + at, size)
        return done + length

    def _tell(self, requestId: str, fraction: float, stage: str, done: int, size: int) -> None:
        """How far files are on their way, where that can be seen."""
        if size > 2 * PIECE_BYTES and time.monotonic() - self._told > TOLD_EVERY_S:
            self._told = time.monotonic()
            text = f"{stage} {done / 1e6:.0f} of {size / 1e6:.0f} MB"
            self._events.put({"event": "progress", "id": requestId, "fraction": fraction, "stage": text})

    # --- back: the thread that reads ---

    def _readMessages(self, pipe) -> None:
        for line in self._lines(pipe):
            event = parseEvent(line)
            if event["event"] == "file":
                self._keep(event)
                continue
            if event["event"] == "ready":
                self._judge(event)
            elif event["event"] == "frame":
                event["path"] = str(self._names.place(str(event.get("path"))) or "")
            self._events.put(event)

    def _judge(self, event: dict) -> None:
        """Another version may understand a request in another way, so it is not spoken to."""
        self._isReady = True
        version = str(event.get("version"))
        if (event.get("protocol"), version) != (PROTOCOL, __version__):
            self._refusal = ("remote-version", f"{version[:40]} / {__version__}")
            self.process.kill()

    def _keep(self, event: dict) -> None:
        """Write a piece of a file; the last one gives it its name."""
        path = self._names.place(str(event.get("name")))
        if path is None:
            return
        draft = path.with_name(f".{path.name}.part")
        try:
            data, at, size = base64.b64decode(event["data"]), int(event["at"]), int(event["size"])
            with draft.open("ab" if at else "wb") as file:
                file.write(data)
            if at + len(data) < size:
                if "/" not in event["name"]:
                    self._tell(str(event.get("id")), 1.0, "receiving", at, size)
                return
            draft.replace(path)
            if "/" not in event["name"]:
                self._names.note(path, event["name"])
        except (OSError, ValueError, KeyError) as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            full = isinstance(error, OSError) and error.errno is not None and path.parent.is_dir()
            code = "disk-full" if full else "result-unreadable"
            self._events.put({"event": "error", "id": event.get("id"), "code": code, "message": str(error)})

    def _reason(self, event: dict) -> dict:
        """What the end of ssh means, where it says more than the end of an engine would."""
        if self._refusal is not None:
            return {"kind": self._refusal[0], "message": self._refusal[1]}
        code, said = event.get("code"), event.get("stderr", "")
        if code == 255:  # ssh's own end
            known = (kind for kind, words in _SAID if any(word in said for word in words))
            return {"kind": "remote-lost" if self._isReady else next(known, "remote-lost")}
        if not self._isReady and "--apart" in said:
            return {"kind": "remote-version", "message": __version__}
        if not self._isReady and (code in (126, 127) or any(word in said for word in _NO_ENGINE)):
            return {"kind": "remote-no-engine"}
        return {}


def _stamp(path: Path) -> tuple | None:
    """Changes with a file, or with the files of a folder; None where there is nothing."""
    if not path.exists():
        return None
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
