"""The panel's main part: it binds input, estimate, setup and results together, starts the runs and keeps the log."""

from __future__ import annotations

import time

import qt
import slicer
from slicer.i18n import tr as _

from . import Installation, Licenses
from .BatchPanel import BatchPanel
from .DicomExport import DicomExport
from .EstimatePanel import EstimatePanel, Question
from .InputPanel import InputPanel
from .Logic import Logic
from .Messages import Failure, timeText
from .Notices import Level, show
from .PrivateLog import PrivateLog
from .RemotePanel import RemotePanel
from .ReportExport import ReportExport
from .ResultPanel import ResultPanel
from .RunResult import RunResult
from .Settings import RunSettings
from .SetupPanel import SetupPanel
from .StudyPanel import StudyPanel

POLL_MS = 50
SCENE_DELAY_MS = 300
IDLE_MS = 5 * 60 * 1000
"""How long an engine stays loaded without a question; it holds most of a gigabyte."""


class Panel:
    """Binds the widgets of the `.ui` to the logic; it is the listener of the runs it starts.

    Args:
        ui: the named widgets of `CaLIDReconstruct.ui`.
        logic: runs and the engine.
        installation: says what is missing and installs it; None for the real one.
    """

    def __init__(self, ui, logic: Logic, installation: Installation.Installation | None = None) -> None:
        self.ui, self.logic = ui, logic
        self.parameters = None
        self._doneInput: str | None = None
        self._startTime = 0.0  # of the run
        self._log = PrivateLog()
        self.results = ResultPanel(ui, self.log)
        self.input = InputPanel(ui, self.log, onChosen=lambda _node: self.results.leaveComparison())
        self.estimate = EstimatePanel(ui, logic, self._question, self.log, self.startPolling)
        self.setup = SetupPanel(
            ui, logic, installation, self.log, onChanged=self.onSetupChanged, onBusy=self.startPolling
        )
        self.remote = RemotePanel(ui, logic, self.log, onChanged=self.onSetupChanged, onBusy=self.startPolling)
        self.study = StudyPanel(
            ui,
            logic,
            self.log,
            canAsk=self._isReadyHere,
            onBusy=self.startPolling,
            onLoaded=self._onStudyLoaded,
        )
        self.reportExport = ReportExport(ui, logic, lambda: self.results.result, self.log, self.startPolling)
        self.dicomExport = DicomExport(
            ui, logic, lambda: self.results.result, self.log, canAsk=self._isReadyHere, onBusy=self.startPolling
        )
        self.results.onRefreshed = self.dicomExport.refresh
        self.batch = BatchPanel(
            ui, logic, self.log, self._batchSettings, canWork=self._canWorkHere, onBusy=self.startPolling
        )
        self.pollTimer = self._timer(POLL_MS, self.poll, singleShot=False)
        self.sceneTimer = self._timer(SCENE_DELAY_MS, self.onSceneSettled, singleShot=True)
        self.idleTimer = self._timer(IDLE_MS, self.onIdle, singleShot=True)
        ui.upsampleButton.clicked.connect(self.onUpsample)
        ui.alignButton.clicked.connect(self.onAlign)
        ui.copyLogButton.clicked.connect(self.onCopyLog)
        self.logic.setLog(self._onEngineLog)

    # --- life ---

    def close(self) -> None:
        """End everything that is under way; the panel is going away."""
        for timer in (self.pollTimer, self.sceneTimer, self.idleTimer):
            timer.stop()
        self.estimate.close()
        self.setup.close()
        self.study.close()
        self.reportExport.close()
        self.dicomExport.close()
        self.batch.close()
        self.results.close()
        self.logic.close()

    def setParameters(self, parameters) -> None:
        """Show another parameter node, or none while the scene closes."""
        self.parameters = parameters
        self.input.setParameters(parameters)
        if parameters is not None:
            self.onSceneSettled()

    def onSceneChanged(self) -> None:
        """Look at the scene once no more nodes come or go: loading adds many."""
        self.sceneTimer.start()

    def onSceneSettled(self) -> None:
        """Bring the panel up to date with the images of the scene."""
        if self.parameters is None or slicer.mrmlScene.IsBatchProcessing():
            return
        self.input.settle()
        self.refresh()

    def onSetupChanged(self) -> None:
        """Ask for the device again, of which another engine may find another, and bring the panel up to date."""
        self.estimate.forgetDevice()
        self.refresh()

    def onSceneClosed(self) -> None:
        """Forget results and inputs of a scene that was closed."""
        self.results.forget()
        self.input.forget()

    def refresh(self, *_args) -> None:
        """Bring texts and buttons up to date with the parameters, the scene and the run."""
        if self.parameters is None:
            return
        self._forgetDone()
        self.input.check()
        self.input.prepareRegion()
        self._showLicense()
        self.setup.refresh()
        self._showButtons()
        self.results.setInput(self.parameters.inputNode)
        self.estimate.schedule()

    def _forgetDone(self) -> None:
        """Clear the news of a run that went well once another input is chosen."""
        node = self.parameters.inputNode
        if self._doneInput is not None and (node.GetID() if node is not None else "") != self._doneInput:
            self._doneInput = None
            show(self.ui.statusLabel, "")

    def _onStudyLoaded(self, node) -> None:
        if self.parameters is not None and node is not None:
            self.input.choose(node)

    @property
    def problem(self) -> Failure | None:
        """Why the chosen input cannot be used."""
        return self.input.problem

    def _showLicense(self) -> None:
        found = Licenses.segmenterLicense(self.logic.modelsFolder)
        self.ui.licenseLabel.visible = found is not None
        if found is not None:
            self.ui.licenseLabel.text = found.notice()
            self.ui.licenseLabel.toolTip = _("Trained on {data}.").format(data=found.trainedOn)

    def _question(self) -> Question | None:
        """The run that a click would start."""
        if self.parameters is None or self.isRunning or self.setup.isInstalling:
            return None
        if self.problem is not None or self.input.facts is None:
            return None
        return Question(self.parameters.inputNode, self._settings(), self.input.facts.geometry, self.logic.isReady)

    def _isReadyHere(self) -> bool:
        """Whether the engine on this computer can read and write DICOM, which takes what Slicer brings."""
        return self.logic.isReady or self.setup.install()

    def _canWorkHere(self) -> bool:
        """Whether the engine on this computer can be given work; offers to install what it lacks."""
        isReady = Installation.isReady(self.logic.preferences.interpreter) or self.setup.install()
        return isReady and self._isLicenseAgreed()

    # --- run ---

    @property
    def isRunning(self) -> bool:
        """Whether a run is going on."""
        return self.logic.job is not None and not self.logic.job.isDone

    def onUpsample(self) -> None:
        """Start a run, or cancel the one that is going on."""
        if self.isRunning:
            show(self.ui.statusLabel, _("Cancelling ..."))
            self.logic.job.cancel()
        else:
            self._start()
        self._showButtons()

    def onAlign(self) -> None:
        """Run again, with the slices of different breath-holds moved to where they fit."""
        if self.parameters is not None and not self.isRunning and self.problem is None:
            self.parameters.correctShifts = True
            self.onUpsample()

    def _start(self) -> None:
        self.setup.finishPaths()
        if not self.logic.isReady and not self.setup.install():
            text = _("The engine's packages are not installed; nothing was done.")
            show(self.ui.statusLabel, text, Level.WARNING)
            return
        if not self._isLicenseAgreed():
            text = _("Nothing was done. Untick the segmentation to run without it.")
            show(self.ui.statusLabel, text, Level.WARNING)
            return
        self.estimate.withdraw()
        self._startTime, self._doneInput = time.monotonic(), None
        show(self.ui.statusLabel, "")
        settings = self._settings()
        self.log("info", _("Run: {settings}").format(settings=settings.summary()))
        self.logic.start(self.parameters.inputNode, settings, self)
        self.startPolling()

    def _isLicenseAgreed(self) -> bool:
        if not self.parameters.segmentResult:
            return True
        return Licenses.isAgreed(Licenses.segmenterLicense(self.logic.modelsFolder), self.logic.preferences)

    def _settings(self) -> RunSettings:
        return RunSettings.fromParameters(self.parameters, self.logic.modelsFolder)

    def _batchSettings(self) -> RunSettings | None:
        """The settings of a batch, which is done on this computer with the models that are chosen for it."""
        if self.parameters is None:
            return None
        return RunSettings.fromParameters(self.parameters, self.logic.preferences.modelsFolder)

    def startPolling(self) -> None:
        """Begin to look for answers; called whenever something was asked."""
        self.idleTimer.stop()
        self.pollTimer.start()

    def poll(self) -> None:
        """Carry on what is under way; stops by itself."""
        self.logic.poll()
        self.setup.poll()
        self.reportExport.poll()
        if not (self.logic.isBusy or self.setup.isBusy or self.reportExport.isBusy):
            self.pollTimer.stop()
            self.idleTimer.start()

    def onIdle(self) -> None:
        """End an engine that nobody has asked anything for a while; the next question starts another."""
        if self.logic.isEngineRunning and not self.logic.isBusy:
            self.logic.endEngines(timeout_s=0.5)
            self.log("info", _("The idle engine was ended; the next run starts it again."))

    # --- listener of the run ---

    def progressed(self, fraction: float, stage: str, secondsLeft: float | None) -> None:
        """Show how far the run is."""
        self.ui.progressBar.value = round(1000 * min(1.0, max(0.0, fraction)))
        left = _("about {time} left").format(time=timeText(secondsLeft)) if secondsLeft is not None else ""
        show(self.ui.statusLabel, ", ".join(part for part in (stage, left) if part))

    def logged(self, level: str, message: str) -> None:
        """Put the engine's words into the log."""
        self.log(level, message)

    def finished(self, result: RunResult) -> None:
        """Say how long it took, and choose the result."""
        took = timeText(time.monotonic() - self._startTime)
        self._ended(_("Done in {time}.").format(time=took), Level.WARNING if result.warnings else Level.INFO)
        node = self.parameters.inputNode if self.parameters is not None else None
        self._doneInput = node.GetID() if node is not None else None
        for warning in result.warnings:
            self.log("warning", warning)
        self.results.setResult(result, isShown=self.parameters is not None)

    def failed(self, failure: Failure) -> None:
        """Say why; what is for the log only goes there."""
        self._ended(failure.text(), Level.ERROR)
        self.log("error", "\n".join(filter(None, [failure.text(), failure.details])))

    def cancelled(self) -> None:
        """Say that nothing has changed."""
        self._ended(_("Cancelled. The scene is as it was."), Level.INFO)

    def _ended(self, text: str, level: Level) -> None:
        show(self.ui.statusLabel, text, level)
        self.log("info", text)
        self._showButtons()
        self.estimate.schedule()

    def _showButtons(self) -> None:
        running, problem = self.isRunning, self.problem
        self.ui.upsampleButton.text = _("Cancel") if running else _("Upsample")
        self.ui.upsampleButton.enabled = running or (problem is None and not self.setup.isInstalling)
        self.ui.upsampleButton.toolTip = problem.text() if problem and not running else _("Fill in the missing slices.")
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
        """Put the report into the clipboard."""
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

    @staticmethod
    def _timer(interval_ms: int, callback, *, singleShot: bool):
        timer = qt.QTimer()
        timer.setInterval(interval_ms)
        timer.setSingleShot(singleShot)
        timer.timeout.connect(callback)
        return timer
