"""One run from nodes to nodes: write the input, follow the engine, build the result, or leave the scene as it was."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import slicer
import vtk
from calid.images import files
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Inputs, LongAxisFiles, Nodes, Suitability
from .EngineClient import EngineClient
from .Figures import FigureNodes, Subject, updateFigures
from .Messages import Failure, ModuleError, engineFailure, failure, failureFromEvent, failureFromOSError, stageText
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

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None: ...

    def logged(self, level: str, message: str) -> None: ...

    def finished(self, result: RunResult) -> None: ...

    def failed(self, failure: Failure) -> None: ...

    def cancelled(self) -> None: ...


class State(enum.Enum):
    NEW = "new"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"


class UpsampleJob:
    """One run. It is driven by `advance`, called again and again beside `EngineClient.poll`; nothing here waits.

    Args:
        client: the engine.
        node: the chosen volume or sequence node.
        settings: what to make.
        listener: told how it goes.
    """

    def __init__(self, client: EngineClient, node, settings: RunSettings, listener: JobListener) -> None:
        self.client, self.node, self.settings, self.listener = client, node, settings, listener
        self.state = State.NEW
        self.result: RunResult | None = None
        self._warnings: list[str] = []
        self._transaction = Transaction(slicer.mrmlScene)
        self._workspace: Workspace | None = None
        self._requestId: str | None = None
        self._steps: deque[Callable[[], None]] = deque()
        self._sceneTags: list[int] = []
        self._needed: set[str] = set()
        self._labels: Stack | None = None

    @property
    def isDone(self) -> bool:
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

    # --- the steps, in order ---

    def _begin(self) -> None:
        self.chosen = Inputs.resolve(self.node)
        stack = Inputs.readStack(self.chosen, allFrames=self.settings.allFrames)
        reason = Suitability.blockingFailure(stack, self.chosen.name)
        if reason:
            raise ModuleError(reason)
        self._isCine = stack.num_frames > 1
        self._needed = {node.GetID() for node in self.chosen.nodes}
        if self._isCine and self.chosen.browser is not None:
            self._needed.add(self.chosen.browser.GetID())
        self._workspace = Workspace()
        suffix = ".seq.nrrd" if self._isCine else ".nrrd"
        self._inputFile, self._outputFile = (
            self._workspace.file(f"input{suffix}"),
            self._workspace.file(f"output{suffix}"),
        )
        self._uncertaintyFile = self._workspace.file(f"uncertainty{suffix}") if self.settings.uncertainty else None
        files.write_stack(stack, self._inputFile)
        Nodes.showBrowser(self.chosen.browser)
        name = self.settings.name or resultName(self.chosen, self.settings.method, self.settings.factor)
        self._nodes = ResultNodes(self.chosen, name, self._transaction, isCine=self._isCine)
        self.listener.progressed(0.0, _("Starting the engine"), None)
        self._requestId = self.client.request("upsample", self._guarding(self._onUpsampling), **self._request())

    def _request(self) -> dict:
        region = Inputs.regionInVoxels(
            self.settings.region,
            self.chosen.reference,
            (self.chosen.volume or self.chosen.reference).GetParentTransformNode(),
        )
        self._fields = self.settings.request(self._inputFile, roi=region)
        frames = str(self._workspace.subfolder("frames")) if self._isCine else None
        uncertainty = str(self._uncertaintyFile) if self._uncertaintyFile else None
        outputs = {"output": str(self._outputFile), "uncertainty": uncertainty, "frames_folder": frames}
        return {**self._fields, **outputs, "views": self._writeViews()}

    def _writeViews(self) -> str | None:
        """The folder of the long-axis images that are taken along, or None."""
        self._views = []
        if self.settings.align == "off":
            return None
        stackVolume = self.chosen.volume or self.chosen.reference
        self._views = LongAxisFiles.viewsOf(stackVolume)
        if not self._views:
            return None
        folder = self._workspace.subfolder("views")
        LongAxisFiles.writeViews(LongAxisFiles.named(self._views), stackVolume, folder)
        return str(folder)

    def _onUpsampling(self, event: dict) -> None:
        share = UPSAMPLING_SHARE if self.settings.segment else 1.0
        if self._isCommonEvent(event, start=0.0, share=share):
            return
        if event["event"] == "frame" and self._isCine:
            frame, path = int(event["index"]), Path(event["path"])
            self._steps.append(lambda: self._nodes.addFrame(frame, files.read_stack(path)))
        elif event["event"] == "result":
            self._requestId = None
            self._steps.append(self._finishVolume)

    def _finishVolume(self) -> None:
        stack = files.read_stack(self._outputFile)
        self._nodes.finish(stack, self._requested())
        self.result = RunResult(self._nodes.node)
        self.result.input = self.chosen.nodes[0]
        self.result.views = self._views
        if self.settings.markGenerated:
            self.result.generatedMask = self._nodes.addGeneratedMask(stack)
        if self._uncertaintyFile and self._uncertaintyFile.is_file():
            self.result.uncertainty = self._nodes.addUncertainty(files.read_stack(self._uncertaintyFile))
        self._steps.append(self._startSegmentation if self.settings.segment else self._finish)

    def _requested(self) -> dict:
        values = asdict(self.settings) | {"region": self._fields["roi"]}
        return {key: value for key, value in values.items() if key not in ("segment", "markGenerated", "modelsFolder")}

    def _startSegmentation(self) -> None:
        self._labelsFile = self._workspace.file("labels.seq.nrrd" if self._isCine else "labels.nrrd")
        self._surfacesFolder = self._workspace.subfolder("surfaces")
        self._requestId = self.client.request(
            "segment",
            self._guarding(self._onSegmentation),
            input=str(self._outputFile),
            output=str(self._labelsFile),
            surfaces_folder=str(self._surfacesFolder),
            device=self.settings.device,
            models=self.settings.modelsFolder or None,
        )

    def _onSegmentation(self, event: dict) -> None:
        if event["event"] == "error":
            # The volume is whole and right without its segmentation, so it is kept and the reason is said.
            self._requestId = None
            self._warnings.append(_("No segmentation: {reason}").format(reason=failureFromEvent(event).text()))
            self._steps.append(self._finish)
        elif self._isCommonEvent(event, start=UPSAMPLING_SHARE, share=1 - UPSAMPLING_SHARE):
            return
        elif event["event"] == "result":
            self._requestId = None
            self._steps.append(self._readLabels)

    def _readLabels(self) -> None:
        self._labels = files.read_stack(self._labelsFile)
        self._segmentations = SegmentationNodes(self._nodes, self._labels, self._transaction, self._surfacesFolder)
        for frame in range(self._labels.num_frames):
            self._steps.append(lambda frame=frame: self._addSegmentation(frame))
        self._steps.append(self._finishSegmentation)

    def _addSegmentation(self, frame: int) -> None:
        stage = _("Surfaces of frame {frame} of {count}")
        self.listener.progressed(1.0, stage.format(frame=frame + 1, count=self._labels.num_frames), None)
        self._segmentations.addFrame(frame)

    def _finishSegmentation(self) -> None:
        self._segmentations.finish()
        self.result.segmentation = self._segmentations.node
        subject = Subject(self._nodes.name, self._nodes.volume, self._isCine and Nodes.hasTimes(self._nodes.sequence))
        figures = FigureNodes()
        self._warnings += updateFigures(figures, subject, self._labels, self._transaction)
        self.result.keepFigures(figures)
        noteDigests(self.result.node, self._labels)
        self._steps.append(self._finish)

    def _finish(self) -> None:
        self.result.keep(self._transaction.nodes, self._warnings)
        self._transaction.forget()
        self._end(lambda: self.listener.finished(self.result))

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
        except ModuleError as error:
            self.abandon(error.failure)
        except OSError as error:
            self.abandon(failureFromOSError(error))
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
            what = _("Its sequence browser was deleted.") if node is self.chosen.browser else ""
            self.abandon(failure("input-removed", what))
        elif self._transaction.owns(node.GetID()) and node in self._nodes.needed:
            self.abandon(failure("output-removed"))

    def _onSceneCloses(self) -> None:
        self._transaction.forget()
        self.abandon(failure("scene-closed"))


def _unexpected(error: Exception) -> Failure:
    import traceback

    from calid.errors import CalidError

    if isinstance(error, CalidError):
        return engineFailure(error.code, error.message, error.remedy)
    if isinstance(error, MemoryError):
        return failure("memory")
    details = "".join(traceback.format_exception(error))
    return Failure("unexpected", _("Something unexpected happened."), f"{type(error).__name__}: {error}", "", details)
