"""Requests to the engine and their answers: one warm engine, answers by number, cancel with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from calid.errors import says_out_of_memory

from .EngineProcess import EngineNotStarted, EngineTransport

CANCEL_DEADLINE_S = 1.0
LAST_EVENTS = ("result", "error", "cancelled")
KILLED_CODES = (-9, 137)
# PythonSlicer is a launcher: of an interpreter that was killed it says only this, and ends with 1 itself.
LAUNCHER_SIGN = "exit abnormally - Report the problem."

Handler = Callable[[dict], None]


@dataclass
class _Pending:
    handler: Handler
    cancelDeadline: float | None = None


class EngineClient:
    """Keeps one engine and gives each answer to whoever asked.

    Everything happens in `poll`, which the panel calls from a timer and the batch call from its loop.

    Args:
        makeTransport: makes a new, unstarted engine; called at the first request and after the engine ended.
        onLog: called as onLog(level, message) for lines that belong to no request.
        clock: seconds, only differences matter.
    """

    def __init__(
        self,
        makeTransport: Callable[[], EngineTransport],
        *,
        onLog: Callable[[str, str], None] = lambda _level, _message: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._makeTransport, self._clock = makeTransport, clock
        self.onLog = onLog
        self._transport: EngineTransport | None = None
        self._pending: dict[str, _Pending] = {}
        self._lastId = 0
        self.ready: dict | None = None

    @property
    def isRunning(self) -> bool:
        """Whether an engine is loaded."""
        return self._transport is not None and self._transport.isRunning()

    @property
    def isBusy(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._pending)

    def request(self, command: str, handler: Handler, **fields) -> str:
        """Send a command, starting the engine where none runs; returns the request's id.

        Args:
            command: a request of `calid serve`, such as "upsample" (docs/protocol.md).
            handler: gets each event of this request; the last one is a result, an error or "cancelled".
            fields: the command's own fields.
        """
        self._lastId += 1
        requestId = str(self._lastId)
        self._pending[requestId] = _Pending(handler)
        try:
            self._startIfNeeded()
        except OSError as error:
            code = error.code if isinstance(error, EngineNotStarted) else "engine-not-started"
            self._finish(requestId, {"event": "error", "code": code, "message": str(error)})
            return requestId
        self._transport.send({"id": requestId, "command": command, **fields})
        return requestId

    def cancel(self, requestId: str) -> None:
        """Ask for the end of a request; an engine that does not obey in time is ended itself."""
        pending = self._pending.get(requestId)
        if pending and pending.cancelDeadline is None:
            pending.cancelDeadline = self._clock() + CANCEL_DEADLINE_S
            self._transport.send({"id": f"cancel-{requestId}", "command": "cancel", "target": requestId})

    def forget(self, requestId: str) -> None:
        """Cancel a request whose answer nobody waits for any more."""
        if requestId in self._pending:
            self._pending[requestId].handler = lambda _event: None
            self.cancel(requestId)

    def withdraw(self, requestId: str) -> None:
        """Ask the engine to drop a request because a more important one follows; the handler hears the end.

        Unlike `cancel`, this never ends an engine that is slow to obey: it may be loading what both requests need.
        """
        if requestId in self._pending:
            self._transport.send({"id": f"cancel-{requestId}", "command": "cancel", "target": requestId})

    def poll(self) -> None:
        """Hand out what arrived since the last call and enforce the deadlines."""
        if self._transport is None:
            return
        for event in self._transport.receive():
            self._dispatch(event)
        now = self._clock()
        if any(p.cancelDeadline is not None and now > p.cancelDeadline for p in self._pending.values()):
            self._transport.kill()
            self._engineEnded(None)

    def shutdown(self, timeout_s: float = 2.0) -> None:
        """End the engine; requests under way are answered with "cancelled"."""
        transport, self._transport, self.ready = self._transport, None, None
        if transport is not None:
            transport.close(0.0 if self._pending else timeout_s)
        for requestId in list(self._pending):
            self._finish(requestId, {"event": "cancelled", "id": requestId})

    def _startIfNeeded(self) -> None:
        if self._transport is not None and self._transport.isRunning():
            return
        if self._transport is not None:
            self.poll()
        self.ready = None
        self._transport = self._makeTransport()
        self._transport.start()

    def _dispatch(self, event: dict) -> None:
        kind, requestId = event["event"], event.get("id")
        if kind == "ready":
            self.ready = event
        elif kind == "exit":
            self._engineEnded(event)
        elif requestId not in self._pending:
            if kind == "log":
                self.onLog(str(event.get("level", "info")), str(event.get("message", "")))
        elif kind in LAST_EVENTS:
            self._finish(requestId, event)
        else:
            self._pending[requestId].handler(event)

    def _finish(self, requestId: str, event: dict) -> None:
        self._pending.pop(requestId).handler(event)

    def _engineEnded(self, exitEvent: dict | None) -> None:
        """Answer every request that still waits; without an exit event we ended the engine ourselves."""
        wasReady, self._transport, self.ready = self.ready is not None, None, None
        pending, self._pending = self._pending, {}
        for requestId, entry in pending.items():
            cancelled = exitEvent is None or entry.cancelDeadline is not None
            entry.handler(
                {"event": "cancelled", "id": requestId} if cancelled else _deathEvent(requestId, exitEvent, wasReady)
            )


def _deathEvent(requestId: str, exitEvent: dict, wasReady: bool) -> dict:
    """The error that an engine's end means for a request that still waits."""
    code, stderr = exitEvent.get("code"), exitEvent.get("stderr", "")
    if exitEvent.get("kind"):
        kind = exitEvent["kind"]
    elif says_out_of_memory(stderr):
        kind = "memory"
    elif "ModuleNotFoundError" in stderr or "No module named" in stderr:
        kind = "engine-missing"
    elif code in KILLED_CODES or LAUNCHER_SIGN in stderr:
        kind = "engine-killed"
    else:
        kind = "engine-crashed" if wasReady else "engine-not-started"
    said = [line for line in stderr.splitlines() if line.strip() and LAUNCHER_SIGN not in line]
    lastLine = exitEvent.get("message") or (said[-1] if said else f"exit code {code}")
    return {"event": "error", "id": requestId, "code": kind, "message": f"({lastLine})", "details": stderr}
