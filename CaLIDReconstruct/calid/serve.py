"""`calid serve`: the engine as a process that stays warm between runs and is spoken to in lines of JSON.

A request is one line on stdin, `{"id": ..., "command": ..., ...}`; answers are events, one ASCII line each on stdout:
`ready`, `progress`, `log`, `frame`, `result`, `error`, `cancelled`. Requests are served one after another; `cancel`
and the end of stdin are seen while one runs and take effect at its next network evaluation. Voxels travel through
files. `docs/protocol.md` lists every request and event.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from calid import __version__
from calid.errors import CalidError, Cancelled, SettingsError, is_out_of_memory, out_of_memory
from calid.run.settings import OPTIONS, checked, from_json

PROTOCOL = 1
PROGRESS_INTERVAL_S = 0.1
SURFACE_GRID_MM = 2.0  # finer looks the same and is heavy for a cine
FRAME_NAME = "frame{index:04d}.nrrd"
SEGMENTING_SHARE = 0.5  # of the time of labels with surfaces
SETTINGS = tuple(OPTIONS)
FLAGS = ("overwrite", "raw", "uncertainty")
MAX_LINE = 1 << 20  # bytes of a request; it holds names of files, and no voxels
MAX_FRAMES = 10_000  # of a cine whose length an estimate is told
Request = dict[str, Any]
Emit = Callable[..., None]


def main() -> int:
    """Serve stdin until it ends. Whatever else prints to stdout is sent to stderr, so that the events stay clean."""
    events = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)
    Server(events).serve(sys.stdin.buffer)
    return 0


class Server:
    """Takes requests from lines and answers with events.

    Args:
        events: where events are written.
    """

    def __init__(self, events: TextIO) -> None:
        self._events, self._lock = events, threading.Lock()
        self._requests: queue.Queue[tuple[Request, threading.Event] | None] = queue.Queue()
        self._stops: dict[str, threading.Event] = {}
        self._closed = threading.Event()

    def serve(self, stream: BinaryIO) -> None:
        """Answer requests until the stream ends or a `shutdown` comes."""
        logging.getLogger().addHandler(_LogEvents(self.emit))
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()
        self.emit("ready", protocol=PROTOCOL, version=__version__)
        while (waiting := self._requests.get()) is not None:
            self._answer(*waiting)

    def emit(self, event: str, **values: Any) -> None:
        """Write one event; a reader that is gone ends the engine."""
        line = json.dumps({"event": event, **values}, ensure_ascii=True)
        try:
            with self._lock:
                self._events.write(line + "\n")
                self._events.flush()
        except (OSError, ValueError):
            self._closed.set()
            self._requests.put(None)

    def _read(self, stream: BinaryIO) -> None:
        """Take in requests until there are no more; whatever the lines hold, their end ends the engine."""
        try:
            while (line := stream.readline(MAX_LINE)) and self._take(line, stream):
                pass
        finally:
            self._closed.set()
            self._requests.put(None)

    def _take(self, line: bytes, stream: BinaryIO) -> bool:
        """Take in one line; whether there may be more."""
        if not line.strip():
            return True
        try:
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                remedy = "Send names of files, not what is in them."
                raise _bad_request(f"A line of more than {MAX_LINE} bytes is no request.", remedy)
            request = _parsed(line)
        except SettingsError as error:
            self._refuse(None, error)
            return True
        command, name = request["command"], str(request.get("id"))
        if command == "cancel":
            self._stops.get(str(request.get("target")), threading.Event()).set()
        elif command != "shutdown":
            stop = self._stops[name] = threading.Event()
            self._requests.put((request, stop))
        return command != "shutdown"

    def _answer(self, request: Request, stop: threading.Event) -> None:
        """Serve one request; a cancel that comes after its answer must not stop a later one of the same name."""
        identity = request.get("id")
        try:
            if not stop.is_set():
                self._work(request, lambda: self._closed.is_set() or stop.is_set())
            else:
                self.emit("cancelled", id=identity)
        finally:
            if self._stops.get(str(identity)) is stop:
                del self._stops[str(identity)]

    def _work(self, request: Request, is_cancelled: Callable[[], bool]) -> None:
        identity = request.get("id")
        try:
            answer = _answer_of(request)
            started = time.monotonic()
            result = answer(request, is_cancelled, self._emit_for(identity))
            self.emit("result", id=identity, **{"seconds": round(time.monotonic() - started, 3), **result})
        except Cancelled:
            self.emit("cancelled", id=identity)
        except CalidError as error:
            self._refuse(identity, error)
        except Exception as error:
            if is_out_of_memory(error):
                return self._refuse(identity, out_of_memory())
            logging.getLogger("calid").exception("unexpected")
            self.emit(
                "error",
                id=identity,
                code="internal",
                message=f"Unexpected {type(error).__name__}: {error}",
                remedy="Copy the log and report it.",
            )

    def _refuse(self, identity: Any, error: CalidError) -> None:
        self.emit("error", id=identity, code=error.code, message=error.message, remedy=error.remedy)

    def _emit_for(self, identity: Any) -> Emit:
        return lambda event, **values: self.emit(event, id=identity, **values)


def _parsed(line: bytes) -> Request:
    """The request on a line.

    Raises:
        SettingsError: "bad-request" if there is none.
    """
    try:
        request = json.loads(line.decode("utf-8"))
        if isinstance(request["command"], str) and _is_name(request.get("id")):
            return request
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    shown = line.strip()[:200].decode("ascii", "backslashreplace")
    raise _bad_request(
        f"Not a request: {shown}", "Send one JSON object with a 'command' per line, its 'id' a text or a number."
    )


def _is_name(identity: Any) -> bool:
    """Whether an id can be sent back in JSON and told from others."""
    if isinstance(identity, float):
        return math.isfinite(identity)
    return identity is None or isinstance(identity, str | int)


class _LogEvents(logging.Handler):
    """Log records as `log` events."""

    def __init__(self, emit: Emit) -> None:
        super().__init__(level=logging.INFO)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit("log", id=None, level=record.levelname.lower(), message=self.format(record))


Answer = Callable[[Request, Callable[[], bool], Emit], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """What a request may ask, field by field.

    Args:
        answer: does it.
        required: paths it cannot do without.
        paths: further paths it takes.
        others: further fields it takes.
    """

    answer: Answer
    required: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def check(self, request: Request) -> None:
        """A misspelt field would otherwise be a setting that is silently not used.

        Raises:
            SettingsError: "bad-request" naming what is missing, unknown, no path, no flag or no number, or the name of
                a setting that is not possible.
        """
        missing = [key for key in self.required if not request.get(key)]
        if missing:
            raise _bad_request(f"The request lacks {', '.join(missing)}.", "Name the file.")
        known = {"id", "command", *self.required, *self.paths, *self.others}
        unknown = sorted(request.keys() - known)
        if unknown:
            raise _bad_request(f"The request has unknown fields: {', '.join(unknown)}.", f"Known: {sorted(known)}.")
        for key, value in request.items():
            if value is not None and key in known - {"id", "command"}:
                self._check_field(key, value)

    def _check_field(self, key: str, value: Any) -> None:
        """Settings are checked by `settings.checked`; paths, flags and numbers here."""
        if key in (*self.required, *self.paths):
            if not isinstance(value, str) or not _is_file_name(value):
                raise _bad_request(f"'{key}' is no path: {str(value)[:200]!r}.", "Send a text.")
        elif key in SETTINGS:
            checked(key, value)
        elif key in FLAGS:
            if not isinstance(value, bool):
                raise _bad_request(f"'{key}' is neither true nor false: {str(value)[:200]!r}.", "Send one of both.")
        elif key == "num_frames" and not (type(value) is int and 1 <= value <= MAX_FRAMES):
            message = f"'num_frames' is {str(value)[:200]!r}."
            raise _bad_request(message, f"Send a whole number from 1 to {MAX_FRAMES}.")


def _is_file_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _bad_request(message: str, remedy: str) -> SettingsError:
    return SettingsError("bad-request", message, remedy)


def _answer_of(request: Request) -> Answer:
    name = request["command"]
    if name not in COMMANDS:
        raise SettingsError(
            "unknown-command", f"The command '{name}' is not known.", f"Send one of: {', '.join(COMMANDS)}."
        )
    COMMANDS[name].check(request)
    return COMMANDS[name].answer


def _path(request: Request, key: str) -> Path | None:
    return Path(request[key]) if request.get(key) else None


def _upsample(request: Request, is_cancelled: Callable[[], bool], emit: Emit) -> dict[str, Any]:
    from calid.images.whole_file import need_apart
    from calid.run.job import Job

    job = Job(
        source=Path(request["input"]),
        output=Path(request["output"]),
        settings=from_json(request),
        uncertainty=_path(request, "uncertainty"),
        overwrite=bool(request.get("overwrite", False)),
        models_folder=_path(request, "models"),
        series=_series(request),
    )
    folder = _path(request, "frames_folder")
    if folder is not None:
        need_apart(folder / FRAME_NAME.format(index=0), (job.source,))
    show_frame = None if folder is None else partial(_show_frame, folder, emit)
    made = job.run(progress=_Throttled(emit), is_cancelled=is_cancelled, on_frame=show_frame, tell=_log_to(emit))
    return {"output": str(job.output), "provenance": made.stack.history}


def _show_frame(folder: Path, emit: Emit, index: int, frame: Any) -> None:
    from calid.images.files import write_stack

    path = folder / FRAME_NAME.format(index=index)
    write_stack(frame, path, overwrite=True)
    emit("frame", index=index, path=str(path))


class _Throttled:
    """Progress events, at most ten a second, the last one always.

    Args:
        emit: sends them.
        part: the beginning and the end of this work in the whole request's progress.
    """

    def __init__(self, emit: Emit, part: tuple[float, float] = (0.0, 1.0)) -> None:
        self._emit, self._part, self._last = emit, part, 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_INTERVAL_S and progress.fraction < 1:
            return
        self._last = now
        begin, end = self._part
        left = None if progress.seconds_left is None else round(progress.seconds_left, 1)
        fraction = begin + (end - begin) * progress.fraction
        self._emit("progress", fraction=round(fraction, 4), stage=progress.stage, seconds_left=left)


def _series(request: Request) -> str | None:
    """The number or UID of a series of the short axis, or None."""
    series = request.get("series")
    if series is not None and (isinstance(series, bool) or not isinstance(series, str | int)):
        raise _bad_request(f"'series' is no number or UID: {series!r}.", "Send one that `study` lists.")
    return None if series is None else str(series)


def _log_to(emit: Emit) -> Callable[[str], None]:
    return lambda line: emit("log", level="info", message=line)


def _study(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    """What a DICOM folder holds, and, if a folder to write to is given, its short axis and views as sequence files."""
    from calid.images.files import write_stack
    from calid.images.folder import look
    from calid.images.study import read_study
    from calid.images.whole_file import need_apart

    source, folder, series = Path(request["input"]), _path(request, "folder"), _series(request)
    if folder is None:
        return {"study": look(source, series).as_json()}
    study = read_study(source, series)
    need_apart(folder / "sax.seq.nrrd", (source,))
    folder.mkdir(parents=True, exist_ok=True)
    sax, lax = folder / "sax.seq.nrrd", []
    write_stack(study.sax, sax, overwrite=True)
    for index, view in enumerate(study.lax):
        path = folder / f"lax{index + 1:02d}.seq.nrrd"
        write_stack(view.stack, path, overwrite=True)
        lax.append({"name": view.name, "path": str(path)})
    return {
        "study": study.overview.as_json(),
        "sax": str(sax),
        "lax": lax,
        "left_out": list(study.left_out),
    }


def _check(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    from calid.images.checks import findings
    from calid.images.files import read_stack

    return {"findings": [asdict(finding) for finding in findings(read_stack(Path(request["input"]), _series(request)))]}


def _estimate(request: Request, is_cancelled: Callable[[], bool], _: Emit) -> dict[str, Any]:
    from calid.images.files import read_stack
    from calid.run.job import estimate

    return estimate(
        read_stack(Path(request["input"]), _series(request)),
        from_json(request),
        uncertainty=bool(request.get("uncertainty")),
        models_folder=_path(request, "models"),
        num_frames=request.get("num_frames"),
        is_cancelled=is_cancelled,
    )


def _info(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    from calid.run.job import information

    return {"result": information(request.get("device", "auto"), _path(request, "models"))}


def _segment(request: Request, is_cancelled: Callable[[], bool], emit: Emit) -> dict[str, Any]:
    from calid.heart.anatomy import clean_labels
    from calid.heart.segmentation import license_notice, segment
    from calid.images.files import check_output, read_stack, write_labels
    from calid.images.whole_file import need_apart
    from calid.run.progress import Watch

    output, overwrite = Path(request["output"]), bool(request.get("overwrite", False))
    check_output(output, overwrite=overwrite, sources=(Path(request["input"]), _path(request, "models")))
    emit("log", level="info", message=license_notice(_path(request, "models")))
    folder = _path(request, "surfaces_folder")
    if folder is not None:
        need_apart(folder / "any.vtp", (Path(request["input"]),))
    labels = segment(
        read_stack(Path(request["input"]), _series(request)),
        device=request.get("device", "auto"),
        models_folder=_path(request, "models"),
        progress=_Throttled(emit, (0.0, 1.0 if folder is None else SEGMENTING_SHARE)),
        is_cancelled=is_cancelled,
    )
    labels = labels if request.get("raw") else clean_labels(labels)
    if folder is not None:
        _write_surfaces(
            labels, folder, Watch(labels.num_frames, _Throttled(emit, (SEGMENTING_SHARE, 1.0)), is_cancelled)
        )
    write_labels(labels, output, overwrite=overwrite)
    return {"output": str(output), "provenance": dict(labels.provenance)}


def _write_surfaces(labels: Any, folder: Path, watch: Any) -> None:
    """The closed surfaces of every frame, `frame0000-LV.vtp` and so on, in LPS mm."""
    from calid.heart.surfaces import left_out, surfaces, write_surface
    from calid.labels import LABELS

    watch.stage, there = "surfaces", []
    for index in range(labels.num_frames):
        found = surfaces(labels, index, grid_mm=SURFACE_GRID_MM)
        there.append(set(found))
        for label in LABELS:
            if label.value in found:
                write_surface(found[label.value], folder / f"frame{index:04d}-{label.key}.vtp", overwrite=True)
        watch.tick(1)
    for sentence in left_out(labels, there):
        logging.getLogger("calid").warning(sentence)


COMMANDS = {
    "upsample": Command(
        _upsample, ("input", "output"), ("uncertainty", "frames_folder", "models"), ("overwrite", "series", *SETTINGS)
    ),
    "segment": Command(
        _segment, ("input", "output"), ("surfaces_folder", "models"), ("raw", "device", "overwrite", "series")
    ),
    "check": Command(_check, ("input",), (), ("series",)),
    "study": Command(_study, ("input",), ("folder",), ("series",)),
    "estimate": Command(_estimate, ("input",), ("models",), ("uncertainty", "num_frames", "series", *SETTINGS)),
    "info": Command(_info, (), ("models",), ("device",)),
}
