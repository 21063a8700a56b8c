"""What the module does without a panel: one warm engine, runs to start or wait for, questions about device and time."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
from calid.errors import Cancelled

from . import Inputs, Installation, LongAxisFiles
from .EngineClient import EngineClient
from .EngineProcess import EngineNotStarted, EngineProcess, EngineTransport, engineCommand
from .Job import JobListener, UpsampleJob
from .Messages import Failure, ModuleError, failure, failureFromEvent
from .Parameters import Preferences
from .RemoteEngine import RemoteEngine, sshCommand
from .RunResult import RunResult
from .Settings import RunSettings
from .Workspace import Workspace, removeStale

POLL_S = 0.02
TRIAL_FRAMES = 4


class Quiet:
    """A listener that keeps what it hears; base of listeners that want only some of it."""

    def __init__(self) -> None:
        self.result: RunResult | None = None
        self.failure: Failure | None = None
        self.wasCancelled = False

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None:
        """Nothing to do."""

    def logged(self, level: str, message: str) -> None:
        """Nothing to do."""

    def finished(self, result: RunResult) -> None:
        """Keep the result."""
        self.result = result

    def failed(self, failure: Failure) -> None:
        """Keep the reason."""
        self.failure = failure

    def cancelled(self) -> None:
        """Remember it."""
        self.wasCancelled = True


class ProgressTo(Quiet):
    """Passes progress on to a function, as the batch call wants it."""

    def __init__(self, onProgress: Callable[[float, str], None] | None) -> None:
        super().__init__()
        self.onProgress = onProgress

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None:
        """Pass it on, where somebody wants to know."""
        del secondsLeft
        if self.onProgress:
            self.onProgress(fraction, stage)


class Logic:
    """The engine and the runs on it. `CaLIDReconstructLogic` in the module file is this class with Slicer's base.

    Args:
        preferences: which interpreter and models to use.
        makeTransport: makes an engine; by default the bundled one as a child process, or the one on another computer
            that the preferences name.
    """

    def __init__(
        self,
        preferences: Preferences | None = None,
        makeTransport: Callable[[], EngineTransport] | None = None,
    ) -> None:
        self.preferences = preferences or Preferences()
        self.client = EngineClient(makeTransport or self._makeEngine)
        self.beside = EngineClient(makeTransport or self._makeProcess)  # on this computer, whatever runs elsewhere
        self.job: UpsampleJob | None = None
        atexit.register(self.close)

    def close(self) -> None:
        """End the engine and what runs on it; safe to call more than once."""
        if self.job is not None and not self.job.isDone:
            self.job.abandon()
        self.endEngines(timeout_s=1.0)
        atexit.unregister(self.close)

    @property
    def isRemote(self) -> bool:
        """Whether runs are done on another computer."""
        return bool(self.preferences.remoteHost)

    @property
    def local(self) -> EngineClient:
        """The engine on this computer, for what must not leave it: files of DICOM and folders of patients."""
        return self.beside if self.isRemote else self.client

    @property
    def isEngineRunning(self) -> bool:
        """Whether an engine is loaded, here or elsewhere."""
        return self.client.isRunning or self.beside.isRunning

    @property
    def isReady(self) -> bool:
        """True when a run can be expected to work."""
        return self.isRemote or Installation.isReady(self.preferences.interpreter)

    @property
    def modelsFolder(self) -> str:
        """Folder of other weights; empty for the bundled ones, as another computer always has them."""
        return "" if self.isRemote else self.preferences.modelsFolder

    def setLog(self, onLog: Callable[[str, str], None]) -> None:
        """Have onLog(level, message) called for what the engines say."""
        self.client.onLog = self.beside.onLog = onLog

    def endEngines(self, timeout_s: float = 2.0) -> None:
        """End the engines; the next question starts them again."""
        self.client.shutdown(timeout_s=timeout_s)
        self.beside.shutdown(timeout_s=timeout_s)

    def start(self, node, settings: RunSettings, listener: JobListener) -> UpsampleJob:
        """Begin a run; `poll` carries it on.

        Raises:
            ModuleError: another run is going on.
        """
        if self.job is not None and not self.job.isDone:
            raise ModuleError(failure("busy"))
        removeStale()
        self.job = UpsampleJob(self.client, node, settings, listener)
        self.job.start()
        return self.job

    def poll(self) -> None:
        """Carry on whatever is under way; returns at once."""
        self.client.poll()
        self.beside.poll()
        if self.job is not None:
            self.job.advance()

    @property
    def isBusy(self) -> bool:
        """True while `poll` has something to wait for."""
        return self.client.isBusy or self.beside.isBusy or (self.job is not None and not self.job.isDone)

    def upsample(self, node, *, onProgress: Callable[[float, str], None] | None = None, **settings: Any) -> RunResult:
        """Everything the Upsample button does, as one call that returns when it is done.

        The engine stays warm, so that the next call need not start it again.

        Args:
            node: volume or sequence node of the short-axis stack.
            onProgress: called as onProgress(fraction, stage).
            settings: the fields of `RunSettings`; a misspelt one is an error.

        Returns:
            the new nodes.

        Raises:
            ModuleError: with the reason in words; the scene is as it was.
            Cancelled: `job.cancel()` was called meanwhile; the scene is as it was.
        """
        settings.setdefault("modelsFolder", self.modelsFolder)
        listener = ProgressTo(onProgress)
        job = self.start(node, RunSettings(**settings), listener)
        while not job.isDone:
            self.poll()
            slicer.app.processEvents()
            time.sleep(POLL_S)
        if listener.failure:
            raise ModuleError(listener.failure)
        if listener.result is None:
            raise Cancelled
        return listener.result

    def ask(self, command: str, onAnswer: Callable[[dict | None, Failure | None], None], **fields: Any) -> str:
        """Put a short question ("info", "estimate") to the engine; onAnswer gets the answer or the reason why not."""
        return self.client.request(command, _answering(onAnswer), **fields)

    def askHere(
        self,
        command: str,
        onAnswer: Callable[[dict | None, Failure | None], None],
        onEvent: Callable[[dict], None] = lambda _event: None,
        **fields: Any,
    ) -> str:
        """As `ask`, of the engine on this computer; onEvent gets what comes before the answer."""
        return self.local.request(command, _answering(onAnswer, onEvent), **fields)

    def estimate(
        self, node, settings: RunSettings, onAnswer: Callable[[dict | None, Failure | None], None]
    ) -> str | None:
        """Ask what a run of these settings would take; the temporary file is gone when the answer is there.

        A few frames are sent with the number of all, because writing a whole cine would hold up the panel; in them the
        engine sees where the heart moves.
        """
        from calid.images import files

        chosen = Inputs.resolve(node)
        stack = Inputs.readStack(chosen, allFrames=settings.allFrames)
        workspace = Workspace()
        few = np.unique(np.linspace(0, stack.num_frames - 1, TRIAL_FRAMES).astype(int))
        part = replace(stack, voxels=stack.voxels[few], frame_times_ms=stack.frame_times_ms[few])
        path = workspace.file("input.nrrd" if len(few) == 1 else "input.seq.nrrd")

        def answered(event, reason) -> None:
            workspace.remove()
            onAnswer(event, reason)

        try:
            files.write_stack(part, path)
            request = settings.request(path, roi=chosen.regionInVoxels(settings.region))
            views = LongAxisFiles.viewsOf(chosen.volume or chosen.reference)
            fields = {
                "uncertainty": settings.uncertainty,
                "num_frames": stack.num_frames,
                "num_views": len(views),
            }
            return self.ask("estimate", answered, **fields, **request)
        except BaseException:
            workspace.remove()
            raise

    def _makeEngine(self) -> EngineTransport:
        """The engine that runs are done by.

        Raises:
            EngineNotStarted: the user has not agreed to send anything to the other computer, or there is no ssh.
        """
        host = self.preferences.remoteHost
        if not host:
            return self._makeProcess()
        if self.preferences.agreedHost != host:
            raise EngineNotStarted("remote-not-agreed", host)
        program = self.preferences.remoteProgram
        return RemoteEngine(sshCommand(host, program, environment=slicer.util.startupEnvironment()))

    def _makeProcess(self) -> EngineProcess:
        interpreter = self.preferences.interpreter
        environment = slicer.util.startupEnvironment() if interpreter else os.environ
        return EngineProcess(engineCommand(interpreter, environment=environment))


def _answering(
    onAnswer: Callable[[dict | None, Failure | None], None], onEvent: Callable[[dict], None] = lambda _event: None
) -> Callable[[dict], None]:
    """A handler of a request's events for those who want its end."""

    def handler(event: dict) -> None:
        if event["event"] == "result":
            onAnswer(event, None)
        elif event["event"] == "error":
            onAnswer(None, failureFromEvent(event))
        elif event["event"] == "cancelled":
            onAnswer(None, None)
        else:
            onEvent(event)

    return handler
