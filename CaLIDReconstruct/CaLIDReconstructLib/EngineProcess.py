"""The engine as a child process: lines of JSON in and out, and the end of its whole process tree."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MODULE_FOLDER = Path(__file__).resolve().parents[1]
STDERR_LINES_KEPT = 60


class EngineTransport(Protocol):
    """How the module talks with an engine.

    Contract: `receive` never blocks and gives events in order; after the engine ended it gives one
    {"event": "exit", "code": int, "stderr": str} as the last; `kill` ends the engine and all its children.
    """

    def start(self) -> None:
        """Start the engine.

        Raises:
            OSError: it cannot be started; `EngineNotStarted` where the reason is known.
        """

    def isRunning(self) -> bool:
        """Whether the engine has been started and has not ended."""

    def send(self, request: dict) -> None:
        """Pass a request on; a connection that is gone is no error here, `receive` reports the end."""

    def receive(self) -> list[dict]:
        """The events since the last call."""

    def kill(self) -> None:
        """End the engine at once."""

    def close(self, timeout_s: float) -> None:
        """Ask the engine to end; it is killed after `timeout_s` seconds."""


class EngineNotStarted(OSError):
    """The engine cannot be started, or not be given what it is asked for.

    Args:
        code: a code of `Messages`.
        message: what the code is about, such as the host.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class EngineCommand:
    """How the engine is started: program and arguments, environment, working folder."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str


def slicerPython() -> str:
    """Slicer's own interpreter: PythonSlicer in the application, this interpreter elsewhere."""
    return shutil.which("PythonSlicer") or sys.executable


def engineCommand(
    interpreter: str = "",
    *,
    environment: Mapping[str, str],
    moduleFolder: Path = MODULE_FOLDER,
    arguments: tuple[str, ...] = ("-m", "calid", "serve"),
) -> EngineCommand:
    """The command for `python -m calid serve`.

    An interpreter outside Slicer gets an environment without PYTHONHOME and without Slicer's PYTHONPATH: with them it
    would load Slicer's standard library and packages. Only the module's folder is added, so that it finds `calid`.

    Args:
        interpreter: path of a Python; empty for Slicer's own.
        environment: Slicer's environment, or for another interpreter the one Slicer was started in.
        moduleFolder: the folder that holds the package `calid`.
        arguments: what the interpreter is told to run.
    """
    variables = dict(environment)
    if interpreter:
        variables.pop("PYTHONHOME", None)
        variables.pop("PYTHONPATH", None)
    inherited = variables.get("PYTHONPATH")
    variables["PYTHONPATH"] = os.pathsep.join([str(moduleFolder)] + ([inherited] if inherited else []))
    variables["PYTHONIOENCODING"] = "utf-8"
    variables["PYTHONUNBUFFERED"] = "1"
    return EngineCommand((interpreter or slicerPython(), *arguments), variables, str(moduleFolder))


def startProcess(command: EngineCommand, **streams) -> subprocess.Popen:
    """Start a process that has no window and can be ended with all its children."""
    options: dict = {"start_new_session": True}
    if os.name == "nt":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return subprocess.Popen(command.arguments, env=dict(command.environment), cwd=command.folder, **streams, **options)


def killTree(process: subprocess.Popen) -> None:
    """End a process of `startProcess` and its children: PythonSlicer is only a launcher, the interpreter its child."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


class EngineProcess:
    """`python -m calid serve` behind `EngineTransport`. Reader threads only fill a queue; no callback runs in them."""

    def __init__(self, command: EngineCommand) -> None:
        self.command = command
        self.process: subprocess.Popen | None = None
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES_KEPT)
        self._readers: list[threading.Thread] = []
        self._exitReported = False

    def start(self) -> None:
        """Start the process and the threads that read what it says."""
        pipe = subprocess.PIPE
        self.process = startProcess(self.command, stdin=pipe, stdout=pipe, stderr=pipe)
        self._readers = [
            threading.Thread(target=self._readMessages, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._readLog, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def isRunning(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def send(self, request: dict) -> None:
        """Write one request; a broken pipe is left to `receive`, which reports the engine's end."""
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self.process.stdin.flush()

    def receive(self) -> list[dict]:
        """The events since the last call; "exit" comes once all output before it is read."""
        events = []
        hasEnded = not self.isRunning() and not any(reader.is_alive() for reader in self._readers)
        while not self._events.empty():
            events.append(self._events.get())
        if hasEnded and not self._exitReported and self.process is not None:
            self._exitReported = True
            events.append({"event": "exit", "code": self.process.returncode, "stderr": "\n".join(self._stderr)})
        return events

    def kill(self) -> None:
        """End the process with its children, and close its pipes."""
        if self.process is not None:
            killTree(self.process)
            self._closePipes()

    def close(self, timeout_s: float = 2.0) -> None:
        """Ask the engine to end, wait, then end it."""
        if self.process is None:
            return
        self.send({"command": "shutdown"})
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=timeout_s)
        self.kill()

    def _closePipes(self) -> None:
        deadline = time.monotonic() + 1
        for reader in self._readers:
            reader.join(timeout=max(0.0, deadline - time.monotonic()))
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()

    def _readMessages(self, pipe) -> None:
        for line in self._lines(pipe):
            self._events.put(parseEvent(line))

    def _readLog(self, pipe) -> None:
        for line in self._lines(pipe):
            self._stderr.append(line)
            self._events.put({"event": "log", "id": None, "level": "debug", "message": line})

    @staticmethod
    def _lines(pipe):
        with contextlib.suppress(OSError, ValueError):
            for line in pipe:
                text = line.decode("utf-8", errors="replace").rstrip()
                if text:
                    yield text


def parseEvent(line: str) -> dict:
    """One event; a line that is none becomes a warning in the log instead of ending the run."""
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return {"event": "log", "id": None, "level": "warning", "message": f"unexpected output of the engine: {line[:500]}"}
