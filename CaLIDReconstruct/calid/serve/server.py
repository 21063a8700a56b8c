"""Takes requests from lines and answers with events."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from calid import __version__
from calid.errors import CalidError, Cancelled, SettingsError, is_out_of_memory, out_of_memory
from calid.serve.commands import Command, Emit, Request, bad_request, command_of
from calid.serve.exchange import Exchange

PROTOCOL = 2
MAX_LINE = 1 << 20  # bytes of a request; it holds names of files, or a piece of one
SILENCE_S = 300.0  # after so long without a line, a caller on another computer is gone


class Server:
    """Takes requests from lines and answers with events.

    Args:
        events: where events are written.
        exchange: files of a caller on another computer; None where both see the same files.
        silence_s: after so many seconds without a line such a caller is taken for gone.
    """

    def __init__(self, events: TextIO, exchange: Exchange | None = None, *, silence_s: float = SILENCE_S) -> None:
        self._events, self._lock = events, threading.Lock()
        self._exchange, self._silence_s = exchange, silence_s
        self._requests: queue.Queue[tuple[Request, threading.Event] | None] = queue.Queue()
        self._stops: dict[str, threading.Event] = {}
        self._closed = threading.Event()
        self._heard = time.monotonic()
        self.is_forsaken = False
        """Whether the caller was gone without the end of its lines having come."""

    def serve(self, stream: BinaryIO) -> None:
        """Answer requests until the stream ends or a `shutdown` comes."""
        logging.getLogger().addHandler(_LogEvents(self.emit))
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()
        if self._exchange is not None:
            threading.Thread(target=self._listen_for_silence, daemon=True).start()
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
            self._leave()

    def _leave(self) -> None:
        """Nobody hears us any more, though the lines have not ended."""
        self.is_forsaken = True
        self._closed.set()
        self._requests.put(None)

    def _listen_for_silence(self) -> None:
        """A lost connection need not end the lines: who is there says `alive` now and then."""
        while not self._closed.wait(self._silence_s / 10):
            if time.monotonic() - self._heard > self._silence_s:
                self._leave()

    def _read(self, stream: BinaryIO) -> None:
        """Take in requests until there are no more; whatever the lines hold, their end ends the engine."""
        try:
            while (line := stream.readline(MAX_LINE)) and self._take(line, stream):
                self._heard = time.monotonic()
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
                raise bad_request(f"A line of more than {MAX_LINE} bytes is no request.", remedy)
            request = _parsed(line)
        except SettingsError as error:
            self._refuse(None, error)
            return True
        command, name = request["command"], str(request.get("id"))
        if command == "cancel":
            self._stops.get(str(request.get("target")), threading.Event()).set()
        elif command in ("put", "drop", "alive") and self._exchange is not None:
            self._handle_files(self._exchange, request)
        elif command != "shutdown":
            stop = self._stops[name] = threading.Event()
            self._requests.put((request, stop))
        return command != "shutdown"

    def _handle_files(self, exchange: Exchange, request: Request) -> None:
        """Take in a piece of a file, or remove some, at once: the requests that follow rely on it."""
        try:
            if request["command"] == "put":
                exchange.put(request)
            elif request["command"] == "drop":
                exchange.drop(request)
        except CalidError as error:
            self._refuse(request.get("id"), error)

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
            command = command_of(request)
            started = time.monotonic()
            result = self._result(command, request, is_cancelled)
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

    def _result(self, command: Command, request: Request, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """The command's answer; what it wrote goes before it to a caller on another computer."""
        emit = self._emit_for(request.get("id"))
        if self._exchange is None:
            return command.answer(request, is_cancelled, emit)
        exchange = self._exchange
        here = exchange.request_here(command, request)

        def tell(event: str, **values: Any) -> None:
            if event == "frame":
                exchange.send(values["path"], emit, is_cancelled)
            emit(event, **exchange.values_there(values))

        result = command.answer(here, is_cancelled, tell)
        for key in command.writes:
            if here.get(key):
                exchange.send(here[key], emit, is_cancelled)
        return exchange.values_there(result)

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
    raise bad_request(
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
