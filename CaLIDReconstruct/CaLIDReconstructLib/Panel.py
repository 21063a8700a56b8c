"""The panel's main part: input, settings, estimate, the run with its progress, and the log."""

from __future__ import annotations

import time

import qt
import slicer
from calid.errors import CalidError
from slicer.i18n import tr as _

from . import DemoCase, Inputs, Installation, Licenses, SaxAssembly, Suitability
from .Logic import Reconstruction
from .Messages import Failure, ModuleError, memoryText, timeText
from .PrivateLog import PrivateLog
from .ResultPanel import ResultPanel
from .RunResult import RunResult
from .Settings import RunSettings
from .SetupPanel import SetupPanel

POLL_MS = 50
ESTIMATE_DELAY_MS = 400
SCENE_DELAY_MS = 300


class Panel:
    """Binds the widgets of the `.ui` to the logic; it is the listener of the runs it starts.

    Args:
        ui: the named widgets of `CaLIDReconstruct.ui`.
        logic: runs and the engine.
        installation: says what is missing and installs it; None for the real one.
    """

    def __init__(self, ui, logic: Reconstruction, installation: Installation.Installation | None = None) -> None:
        self.ui, self.logic = ui, logic
        self.parameters = None
        self.problem: Failure | None = None
        self.groups: list[SaxAssembly.SaxGroup] = []
        self._log = PrivateLog()
        self._checkedInput = None
        self._unsuitable: set[tuple] = set()
        self._estimateId: str | None = None
        self._deviceAsked: tuple | None = None
        self._regionsSeen: set[str] = set()
        self.results = ResultPanel(ui, self.log)
        self.setup = SetupPanel(
            ui, logic, installation, self.log, onChanged=self.onSetupChanged, onBusy=self.startPolling
        )
        self.pollTimer = self._timer(POLL_MS, self.poll, singleShot=False)
        self.estimateTimer = self._timer(ESTIMATE_DELAY_MS, self.askEstimate, singleShot=True)
        self.sceneTimer = self._timer(SCENE_DELAY_MS, self.onSceneSettled, singleShot=True)
        self._connect()
        self.logic.client.onLog = self._onEngineLog

    # --- life ---

    def close(self) -> None:
        """End everything that is under way; the panel is going away."""
        self.pollTimer.stop()
        self.estimateTimer.stop()
        self.sceneTimer.stop()
        self.setup.close()
        self.results.close()
        self.logic.close()

    def setParameters(self, parameters) -> None:
        """Show another parameter node, or none while the scene closes."""
        self.parameters = parameters
        self._checkedInput = None
        if parameters is not None:
            self.onSceneSettled()

    def onSceneChanged(self) -> None:
        """Nodes came or went; loading adds many of them, so the panel waits until it is quiet."""
        self.sceneTimer.start()

    def onSceneSettled(self) -> None:
        """Bring the panel up to date with the images of the scene."""
        if self.parameters is None or slicer.mrmlScene.IsBatchProcessing():
            return
        self._chooseDefaultInput()
        self._showGroups()
        self.refresh()

    def onSetupChanged(self) -> None:
        """Another engine may find another device."""
        self._deviceAsked = None
        self.refresh()

    def onSceneClosed(self) -> None:
        """The nodes of the last result are gone."""
        self.results.forget()
        self._regionsSeen.clear()

    # --- input ---

    def refresh(self, *_args) -> None:
        """Bring texts and buttons up to date with the parameters, the scene and the run."""
        if self.parameters is None:
            return
        self._checkInput()
        self._prepareRegion()
        self._showLicense()
        self.setup.refresh()
        self._showButtons()
        self.results.setInput(self.parameters.inputNode)
        self.estimateTimer.start()

    def _chooseDefaultInput(self) -> None:
        if self.parameters.inputNode is not None:
            return
        nodes = [
            *slicer.util.getNodesByClass("vtkMRMLSequenceNode"),
            *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"),
        ]
        for node in nodes[:30]:
            if _state(node) in self._unsuitable:
                continue
            if _reasonAgainst(node) is None:
                self.parameters.inputNode = node
                return
            self._unsuitable.add(_state(node))

    def _checkInput(self) -> None:
        node = self.parameters.inputNode
        state = _state(node) if node is not None else None
        if state is not None and state == self._checkedInput:
            return
        self._checkedInput = state
        self.problem, text, isCine = None, "", False
        try:
            chosen = Inputs.resolve(node)
            isCine = chosen.isCine
            stack = Inputs.readStack(chosen)
            self.problem = Suitability.blockingFailure(stack, chosen.name)
            text = "\n".join([_describe(stack), *Suitability.warnings(stack)])
        except ModuleError as error:
            self.problem = error.failure
        self.ui.inputLabel.text = self.problem.text() if self.problem else text
        for widget in (self.ui.framesLabel, self.ui.framesComboBox):
            widget.visible = isCine

    def _prepareRegion(self) -> None:
        region = self.parameters.region
        if region is None or region.GetID() in self._regionsSeen or self.problem is not None:
            return
        self._regionsSeen.add(region.GetID())
        if max(region.GetSize()) <= 0:
            chosen = Inputs.resolve(self.parameters.inputNode)
            Inputs.centerRegion(region, chosen.volume or chosen.reference)

    def _showLicense(self) -> None:
        found = Licenses.segmenterLicense(self.logic.preferences.modelsFolder)
        self.ui.licenseLabel.visible = found is not None
        if found is not None:
            self.ui.licenseLabel.text = found.notice()
            self.ui.licenseLabel.toolTip = _("Trained on {data}.").format(data=found.trainedOn)

    def _showGroups(self) -> None:
        shown, self.groups = [group.label() for group in self.groups], SaxAssembly.findGroups()
        labels = [group.label() for group in self.groups]
        if labels != shown:
            self.ui.groupComboBox.clear()
            self.ui.groupComboBox.addItems(labels)
        for widget in (self.ui.assembleLabel, self.ui.assembleRow):
            widget.visible = bool(self.groups)

    def onAssemble(self) -> None:
        """Make one stack of the chosen group and take it as the input."""
        try:
            node = SaxAssembly.assemble(self.groups[self.ui.groupComboBox.currentIndex])
        except ModuleError as error:
            self.ui.inputLabel.text = error.failure.text()
            self.log("error", error.failure.text())
            return
        self.parameters.inputNode = node
        self.results.showVolume(node)

    def onSample(self) -> None:
        """Load the bundled case and choose its cine."""
        nodes = DemoCase.load()
        self.parameters.inputNode = nodes.sax
        self.results.showVolume(nodes.sax)

    # --- estimate ---

    def askEstimate(self) -> None:
        """Ask the engine, in the background, what the chosen run would take; it warms the engine up as well."""
        if self.parameters is None or self.isRunning or self.setup.isInstalling:
            return
        if self.problem is not None or not Installation.isReady(self.logic.preferences.interpreter):
            self.ui.estimateLabel.text = ""
            return
        if self._estimateId is not None:
            return  # the answer under way will ask again if the input or the settings changed meanwhile
        asked = self._asked()
        try:
            self._estimateId = self.logic.estimate(*asked, lambda event, reason: self._onEstimate(asked, event, reason))
        except (ModuleError, CalidError, OSError) as error:
            self.ui.estimateLabel.text = str(error)
            return
        self.startPolling()

    def _asked(self) -> tuple:
        """The input node and the settings that an estimate is about."""
        return self.parameters.inputNode, self._settings()

    def _onEstimate(self, asked: tuple, event: dict | None, reason: Failure | None) -> None:
        self._estimateId = None
        if self.parameters is None:
            return
        if asked != self._asked():
            self.estimateTimer.start()
        elif event is not None:
            settings = asked[1]
            self.ui.estimateLabel.text = estimateText(event, withSegmentation=settings.segment)
            self._askDevice(settings)
        elif reason is not None:
            self.ui.estimateLabel.text = reason.text()
            self.log("warning", "\n".join(filter(None, [reason.text(), reason.details])))

    def _askDevice(self, settings: RunSettings) -> None:
        """Show the device with the reason for it and its memory; asked again when another one is chosen."""
        wanted = (settings.device, settings.modelsFolder)
        if wanted != self._deviceAsked:
            self._deviceAsked = wanted
            fields = {"device": settings.device, "models": settings.modelsFolder or None}
            self.logic.ask("info", self._onDevice, **fields)

    def _onDevice(self, event: dict | None, reason: Failure | None) -> None:
        if event is not None:
            self.ui.deviceReasonLabel.text = deviceText(event.get("result", {}))
        elif reason is not None:
            self.ui.deviceReasonLabel.text = reason.text()

    # --- run ---

    @property
    def isRunning(self) -> bool:
        return self.logic.job is not None and not self.logic.job.isDone

    def onUpsample(self) -> None:
        """Start a run, or cancel the one that is going on."""
        if self.isRunning:
            self.ui.statusLabel.text = _("Cancelling ...")
            self.logic.job.cancel()
        else:
            self._start()
        self._showButtons()

    def _start(self) -> None:
        self.setup.finishPaths()
        if not Installation.isReady(self.logic.preferences.interpreter) and not self.setup.install():
            self.ui.statusLabel.text = _("The engine's packages are not installed; nothing was done.")
            return
        if not self._isLicenseAgreed():
            self.ui.statusLabel.text = _("Nothing was done. Untick the segmentation to run without it.")
            return
        self._startTime = time.monotonic()
        self.ui.statusLabel.text = ""
        settings = self._settings()
        self.log("info", _("Run: {settings}").format(settings=settings.summary()))
        self.logic.start(self.parameters.inputNode, settings, self)
        self.startPolling()

    def _isLicenseAgreed(self) -> bool:
        if not self.parameters.segmentResult:
            return True
        preferences = self.logic.preferences
        return Licenses.isAgreed(Licenses.segmenterLicense(preferences.modelsFolder), preferences)

    def _settings(self) -> RunSettings:
        return RunSettings.fromParameters(self.parameters, self.logic.preferences.modelsFolder)

    def startPolling(self) -> None:
        self.pollTimer.start()

    def poll(self) -> None:
        """Carry on what is under way; stops by itself."""
        self.logic.poll()
        self.setup.poll()
        if not self.logic.isBusy and not self.setup.isBusy:
            self.pollTimer.stop()

    # --- listener of the run ---

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None:
        self.ui.progressBar.value = round(1000 * min(1.0, max(0.0, fraction)))
        left = _("about {time} left").format(time=timeText(secondsLeft)) if secondsLeft is not None else ""
        self.ui.statusLabel.text = ", ".join(part for part in (stage, left) if part)

    def logged(self, level: str, message: str) -> None:
        self.log(level, message)

    def finished(self, result: RunResult) -> None:
        took = timeText(time.monotonic() - self._startTime)
        self._ended(_("Done in {time}.").format(time=took))
        for warning in result.warnings:
            self.log("warning", warning)
        self.results.setResult(result, isShown=self.parameters is not None)

    def failed(self, failure: Failure) -> None:
        self._ended(failure.text())
        self.log("error", "\n".join(filter(None, [failure.text(), failure.details])))

    def cancelled(self) -> None:
        self._ended(_("Cancelled. The scene is as it was."))

    def _ended(self, text: str) -> None:
        self.ui.statusLabel.text = text
        self.log("info", text)
        self._showButtons()

    def _showButtons(self) -> None:
        running = self.isRunning
        self.ui.upsampleButton.text = _("Cancel") if running else _("Upsample")
        self.ui.upsampleButton.enabled = running or (self.problem is None and not self.setup.isInstalling)
        self.ui.upsampleButton.toolTip = (
            self.problem.text() if self.problem and not running else _("Fill in the missing slices.")
        )
        self.ui.progressBar.visible = running
        ui = self.ui
        for widget in (ui.setupBox, ui.inputBox, ui.settingsBox, ui.outputBox, ui.advancedBox):
            widget.enabled = not running

    # --- log ---

    def log(self, level: str, message: str) -> None:
        """Add a line to the log that the user can copy."""
        line = f"{time.strftime('%H:%M:%S')} {level}: {message}"
        self._log.add(line)
        self.ui.logEdit.appendPlainText(line)

    def _onEngineLog(self, level: str, message: str) -> None:
        self.log(level, message)

    def onCopyLog(self) -> None:
        slicer.app.clipboard().setText(self.report())

    def report(self) -> str:
        """The log with versions and settings, as one would send it to the authors."""
        import calid

        head = [f"CaLID {calid.__version__}, Slicer {slicer.app.applicationVersion}"]
        if self.setup.lastCheck is not None:
            head.append(self.setup.lastCheck.text())
        if self.parameters is not None:
            head.append(self._settings().summary())
        return self._log.report(head)

    # --- widgets ---

    def _connect(self) -> None:
        self.ui.upsampleButton.clicked.connect(self.onUpsample)
        self.ui.sampleButton.clicked.connect(self.onSample)
        self.ui.assembleButton.clicked.connect(self.onAssemble)
        self.ui.copyLogButton.clicked.connect(self.onCopyLog)

    @staticmethod
    def _timer(interval_ms: int, callback, *, singleShot: bool):
        timer = qt.QTimer()
        timer.setInterval(interval_ms)
        timer.setSingleShot(singleShot)
        timer.timeout.connect(callback)
        return timer


def _state(node) -> tuple:
    """The same as long as the node was not changed."""
    return node.GetID(), node.GetMTime()


def _reasonAgainst(node) -> Failure | None:
    try:
        chosen = Inputs.resolve(node)
        return Suitability.blockingFailure(Inputs.readStack(chosen), chosen.name)
    except ModuleError as error:
        return error.failure


def _describe(stack) -> str:
    slices = _("{slices} slices, {spacing} mm apart").format(
        slices=stack.num_slices, spacing=f"{stack.spacing_mm[2]:.1f}"
    )
    return (
        slices
        if stack.num_frames == 1
        else _("{slices}, {frames} frames").format(slices=slices, frames=stack.num_frames)
    )


def estimateText(event: dict, *, withSegmentation: bool) -> str:
    """The time and memory that the engine expects and the device it would take; segmenting comes on top of it."""
    parts = []
    if event.get("seconds") is not None:
        parts.append(_("Expected time: {time}").format(time=timeText(float(event["seconds"]))))
    if event.get("memory_bytes") is not None:
        needed, free = (memoryText(float(event[name])) for name in ("memory_bytes", "free_bytes"))
        parts.append(_("memory: {needed} of {free} free").format(needed=needed, free=free))
    if event.get("device"):
        parts.append(_("on {device}").format(device=event["device"]))
    if parts and withSegmentation:
        parts.append(_("and the segmentation after it"))
    text = ", ".join(parts)
    return text if event.get("fits", True) else f"{text}\n{tooLargeText()}"


def tooLargeText() -> str:
    """What to do about a run that is expected not to fit."""
    return _(
        "This will probably not fit into memory: choose a region of interest, the shown frame only, fewer samples, a "
        "smaller factor, or close other programs."
    )


def deviceText(information: dict) -> str:
    """The device with the reason why, its free memory and the version of PyTorch."""
    parts = [str(information["device"])] if information.get("device") else []
    if information.get("free_memory_gb") is not None:
        parts.append(_("{memory} of memory free").format(memory=memoryText(1e9 * float(information["free_memory_gb"]))))
    if information.get("torch"):
        parts.append(f"PyTorch {information['torch']}")
    return ", ".join(parts)
