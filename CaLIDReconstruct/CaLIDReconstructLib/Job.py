"""One run from nodes to nodes: write the input, follow the engine, build the result, or leave the scene as it was."""

from __future__ import annotations

import enum
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import slicer
import vtk
from calid.images import files
from slicer.i18n import tr as _

from . import Inputs, LongAxisFiles, Nodes, Suitability
from .EngineClient import EngineClient
from .Figures import FigureNodes, Subject, updateFigures
from .Messages import (
    EXPECTED_ERRORS,
    Failure,
    ModuleError,
    failure,
    failureFromError,
    failureFromEvent,
    stageText,
)
from .Recomputation import noteDigests
from .Results import ResultNodes, resultName
from .RunResult import RunResult
from .Segmentations import SegmentationNodes
from .Settings import RunSettings
from .Transaction import Transaction
from .Workspace import Workspace

UPSAMPLING_SHARE = 0.85


class JobListener(Protocol):
    """Told how a run goes. Contract: `progressed` may come any number of times, then exactly one of the other three."""

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None:
        """The run is on its way: the share that is done, what is done now in words, and seconds left if known."""

    def logged(self, level: str, message: str) -> None:
        """The engine said something worth a line in the log; level is one of Python's, in lower case."""

    def finished(self, result: RunResult) -> None:
        """The run is done and its nodes are in the scene."""

    def failed(self, failure: Failure) -> None:
        """The run could not be done; the scene is as it was."""

    def cancelled(self) -> None:
        """The run was ended by the user; the scene is as it was."""


class State(enum.Enum):
    """How far a run is."""

    NEW = "new"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"


@dataclass(frozen=True)
class _Task:
    """What a run works on, once its input is checked and written.

    Args:
        chosen: input, as it was resolved when the run began.
        nodes: the growing result.
        views: volume nodes of the long-axis images that are taken along.
        workspace: folder of the run's files.
        dense: file of the stack that the engine makes.
        uncertainty: file of the spread between samples; None where it is not wanted.
        fields: the settings as the engine is told them.
    """

    chosen: Inputs.Input
    nodes: ResultNodes
    views: list
    workspace: Workspace
    dense: Path
    uncertainty: Path | None
    fields: dict

    @property
    def isCine(self) -> bool:
        return self.nodes.isCine


class UpsampleJob:
    """One run. It is driven by `advance`, called again and again beside `EngineClient.poll`; nothing here waits.

    Args:
        client: connection to the engine.
        node: the chosen volume or sequence node.
        settings: the settings of the run.
        listener: told how it goes.
    """

    def __init__(self, client: EngineClient, node, settings: RunSettings, listener: JobListener) -> None:
        self.client, self.node, self.settings, self.listener = client, node, settings, listener
        self.state = State.NEW
        self._warnings: list[str] = []
        self._transaction = Transaction(slicer.mrmlScene)
        self._workspace: Workspace | None = None
        self._requestId: str | None = None
        self._steps: deque[Callable[[], None]] = deque()
        self._sceneTags: list[int] = []
        self._needed: dict[str, str] = {}  # ID of a node without which the run cannot go on -> what its removal means
        self._nodes: ResultNodes | None = None

    @property
    def isDone(self) -> bool:
        """Whether the listener has heard the end."""
        return self.state is State.DONE

    def start(self) -> None:
        """Check and write the input and ask the engine; failures go to the listener."""
        self.state = State.RUNNING
        self._watchScene()
        self._guard(self._begin)

    def advance(self) -> None:
        """Do one piece of the work that happens in the application itself."""
        if self._steps and self.state is State.RUNNING:
            self._guard(self._steps.popleft())

    def cancel(self) -> None:
        """End the run; the listener hears `cancelled` once the engine has let go."""
        if self.state is not State.RUNNING:
            return
        self.state = State.CANCELLING
        if self._requestId is None:
            self._end(self.listener.cancelled)
        else:
            self.client.cancel(self._requestId)

    def abandon(self, reason: Failure | None = None) -> None:
        """End at once, without waiting for the engine: the scene is closing or a node of the run is gone."""
        if self.isDone:
            return
        if self._requestId is not None:
            self.client.forget(self._requestId)
        self._end(self.listener.cancelled if reason is None else lambda: self.listener.failed(reason))

    # --- the steps, in order: each hands what it made to the next ---

    def _begin(self) -> None:
        chosen = Inputs.resolve(self.node)
        stack = Inputs.readStack(chosen, allFrames=self.settings.allFrames)
        reason = Suitability.blockingFailure(stack, chosen.name)
        if reason:
            raise ModuleError(reason)
        isCine = stack.num_frames > 1
        self._needed = {node.GetID(): "" for node in chosen.nodes}
        if isCine and chosen.browser is not None:
            self._needed[chosen.browser.GetID()] = _("Its sequence browser was deleted.")
        workspace = self._workspace = Workspace()
        suffix = ".seq.nrrd" if isCine else ".nrrd"
        inputFile = workspace.file(f"input{suffix}")
        files.write_stack(stack, inputFile)
        views = LongAxisFiles.viewsOf(chosen.placed) if self.settings.align != "off" else []
        Nodes.showBrowser(chosen.browser)
        name = self.settings.name or resultName(chosen, self.settings.method, self.settings.factor)
        self._nodes = ResultNodes(chosen, name, self._transaction, isCine=isCine)
        task = _Task(
            chosen,
            self._nodes,
            views,
            workspace,
            dense=workspace.file(f"output{suffix}"),
            uncertainty=workspace.file(f"uncertainty{suffix}") if self.settings.uncertainty else None,
            fields=self.settings.request(inputFile, roi=chosen.regionInVoxels(self.settings.region)),
        )
        self.listener.progressed(0.0, _("Starting the engine"), None)
        self._requestId = self.client.request(
            "upsample",
            self._guarding(lambda event: self._onUpsampling(task, event)),
            **task.fields,
            output=str(task.dense),
            uncertainty=str(task.uncertainty) if task.uncertainty else None,
            frames_folder=str(workspace.subfolder("frames")) if isCine else None,
            views=_writtenViews(task),
        )

    def _onUpsampling(self, task: _Task, event: dict) -> None:
        share = UPSAMPLING_SHARE if self.settings.segment else 1.0
        if self._isCommonEvent(event, start=0.0, share=share):
            return
        if event["event"] == "frame" and task.isCine:
            frame, path = int(event["index"]), Path(event["path"])
            self._steps.append(lambda: task.nodes.addFrame(frame, files.read_stack(path)))
        elif event["event"] == "result":
            self._requestId = None
            self._steps.append(lambda: self._finishVolume(task))

    def _finishVolume(self, task: _Task) -> None:
        stack = files.read_stack(task.dense)
        task.nodes.finish(stack, self._requested(task))
        result = RunResult(task.nodes.node)
        result.input = task.chosen.nodes[0]
        result.views = task.views
        if self.settings.markGenerated:
            result.generatedMask = task.nodes.addGeneratedMask(stack)
        if task.uncertainty and task.uncertainty.is_file():
            result.uncertainty = task.nodes.addUncertainty(files.read_stack(task.uncertainty))
        if self.settings.segment:
            self._steps.append(lambda: self._startSegmentation(task, result))
        else:
            self._steps.append(lambda: self._finish(result))

    def _requested(self, task: _Task) -> dict:
        """What was asked for, as the result's provenance keeps it."""
        values = asdict(self.settings) | {"region": task.fields["roi"]}
        return {key: value for key, value in values.items() if key not in ("segment", "markGenerated", "modelsFolder")}

    def _startSegmentation(self, task: _Task, result: RunResult) -> None:
        labelsFile = task.workspace.file("labels.seq.nrrd" if task.isCine else "labels.nrrd")
        surfacesFolder = task.workspace.subfolder("surfaces")

        def onEvent(event: dict) -> None:
            if event["event"] == "error":
                # The volume is whole and right without its segmentation, so it is kept and the reason is said.
                self._requestId = None
                self._warnings.append(_("No segmentation: {reason}").format(reason=failureFromEvent(event).text()))
                self._steps.append(lambda: self._finish(result))
            elif self._isCommonEvent(event, start=UPSAMPLING_SHARE, share=1 - UPSAMPLING_SHARE):
                return
            elif event["event"] == "result":
                self._requestId = None
                self._steps.append(lambda: self._readLabels(task, result, labelsFile, surfacesFolder))

        self._requestId = self.client.request(
            "segment",
            self._guarding(onEvent),
            input=str(task.dense),
            output=str(labelsFile),
            surfaces_folder=str(surfacesFolder),
            device=self.settings.device,
            models=self.settings.modelsFolder or None,
        )

    def _readLabels(self, task: _Task, result: RunResult, labelsFile: Path, surfacesFolder: Path) -> None:
        labels = files.read_stack(labelsFile)
        segmentations = SegmentationNodes(task.nodes, labels, self._transaction, surfacesFolder)
        for frame in range(labels.num_frames):
            self._steps.append(lambda frame=frame: self._addSegmentation(segmentations, frame))
        self._steps.append(lambda: self._finishSegmentation(task, result, segmentations))

    def _addSegmentation(self, segmentations: SegmentationNodes, frame: int) -> None:
        stage = _("Surfaces of frame {frame} of {count}")
        count = segmentations.labels.num_frames
        self.listener.progressed(1.0, stage.format(frame=frame + 1, count=count), None)
        segmentations.addFrame(frame)

    def _finishSegmentation(self, task: _Task, result: RunResult, segmentations: SegmentationNodes) -> None:
        segmentations.finish()
        result.segmentation = segmentations.node
        hasTimes = task.isCine and Nodes.hasTimes(task.nodes.sequence)
        subject = Subject(task.nodes.name, task.nodes.volume, hasTimes)
        figures = FigureNodes()
        self._warnings += updateFigures(figures, subject, segmentations.labels, self._transaction)
        result.keepFigures(figures)
        noteDigests(result.node, segmentations.labels)
        self._steps.append(lambda: self._finish(result))

    def _finish(self, result: RunResult) -> None:
        result.keep(self._transaction.nodes, self._warnings)
        self._transaction.forget()
        self._end(lambda: self.listener.finished(result))

    # --- what every step shares ---

    def _isCommonEvent(self, event: dict, *, start: float, share: float) -> bool:
        """Handle progress, log, error and cancelled; True when the event was one of them."""
        kind = event["event"]
        if kind == "progress":
            fraction = start + share * float(event.get("fraction", 0.0))
            self.listener.progressed(fraction, stageText(str(event.get("stage", ""))), event.get("seconds_left"))
        elif kind == "log":
            self.listener.logged(str(event.get("level", "info")), str(event.get("message", "")))
        elif kind == "error":
            self._requestId = None
            reason = failureFromEvent(event)
            self._end(lambda: self.listener.failed(reason))
        elif kind == "cancelled":
            self._requestId = None
            self._end(self.listener.cancelled)
        else:
            return False
        return True

    def _guarding(self, handler: Callable[[dict], None]) -> Callable[[dict], None]:
        return lambda event: self._guard(lambda: handler(event))

    def _guard(self, step: Callable[[], None]) -> None:
        """Run a step; whatever goes wrong ends the run with words and a clean scene."""
        if self.isDone:
            return
        try:
            step()
        except EXPECTED_ERRORS as error:
            self.abandon(failureFromError(error))
        except Exception as error:  # noqa: BLE001 - the scene must be restored whatever happened, and the user told
            self.abandon(_unexpected(error))

    def _end(self, tell: Callable[[], None]) -> None:
        self.state = State.DONE
        self._steps.clear()
        for tag in self._sceneTags:
            slicer.mrmlScene.RemoveObserver(tag)
        self._sceneTags = []
        self._transaction.rollback()
        if self._workspace is not None:
            self._workspace.remove()
        tell()

    def _watchScene(self) -> None:
        @vtk.calldata_type(vtk.VTK_OBJECT)
        def onNodeRemoved(_caller, _event, node) -> None:
            self._onNodeRemoved(node)

        scene = slicer.mrmlScene
        self._sceneTags = [
            scene.AddObserver(scene.NodeRemovedEvent, onNodeRemoved),
            scene.AddObserver(scene.StartCloseEvent, lambda *_: self._onSceneCloses()),
        ]

    def _onNodeRemoved(self, node) -> None:
        if self.state is not State.RUNNING:
            return
        # The names of nodes are left out: they may be a patient's, and the reason goes into the log.
        if node.GetID() in self._needed:
            self.abandon(failure("input-removed", self._needed[node.GetID()]))
        elif self._nodes is not None and self._transaction.owns(node.GetID()) and node in self._nodes.needed:
            self.abandon(failure("output-removed"))

    def _onSceneCloses(self) -> None:
        self._transaction.forget()
        self.abandon(failure("scene-closed"))


def _writtenViews(task: _Task) -> str | None:
    """Write the long-axis images that are taken along; the folder, or None where there are none."""
    if not task.views:
        return None
    folder = task.workspace.subfolder("views")
    LongAxisFiles.writeViews(LongAxisFiles.named(task.views), task.chosen.placed, folder)
    return str(folder)


def _unexpected(error: Exception) -> Failure:
    if isinstance(error, MemoryError):
        return failure("memory")
    details = "".join(traceback.format_exception(error))
    return Failure("unexpected", _("Something unexpected happened."), f"{type(error).__name__}: {error}", "", details)
