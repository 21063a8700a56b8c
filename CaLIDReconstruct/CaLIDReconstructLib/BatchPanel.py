"""The panel's batch: many hearts one after another, by the engine's own cohort, in a process beside that of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
from slicer.i18n import tr as _

from .Logic import Logic
from .Messages import EXPECTED_ERRORS, Failure, failure, failureFromError, failureFromEvent
from .Notices import Level, show
from .SceneHearts import heartsInScene, writeHearts
from .Settings import RunSettings

SCENE_FOLDER = "hearts of the scene"


class BatchPanel:
    """Starts, follows and cancels a batch. The same again goes on where it stopped.

    Args:
        ui: the named widgets.
        logic: whose engine beside that of runs does the work, on this computer.
        log: called with a level of `logging` and a line for the user's log.
        settings: gives what the panel is set to, or None while it shows no scene.
        canWork: whether the engine can be started; may ask the user to install what it needs.
        onBusy: called when there is something to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        log: Callable[[str, str], None],
        settings: Callable[[], RunSettings | None],
        *,
        canWork: Callable[[], bool],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.log, self.settings = ui, logic, log, settings
        self.canWork, self.onBusy = canWork, onBusy
        self._requestId: str | None = None
        self._results: Path | None = None
        ui.batchFolderButton.clicked.connect(self.onFolder)
        ui.batchSceneButton.clicked.connect(self.onScene)
        ui.batchCancelButton.clicked.connect(self.onCancel)
        ui.batchOpenButton.clicked.connect(self.onOpen)
        self._say("")
        self._showButtons()

    @property
    def isRunning(self) -> bool:
        """Whether a batch is under way."""
        return self._requestId is not None

    def close(self) -> None:
        """Stop following a batch; the panel is going away, and the engine with it."""
        self._requestId = None

    def onFolder(self) -> None:
        """Ask for a folder of hearts and one for results, and begin."""
        source = self.chooseFolder(_("Folder of studies: each folder or file in it is a heart"))
        results = self._chooseResults() if source else ""
        if results:
            self._start(lambda: Path(source), Path(results))

    def onScene(self) -> None:
        """Ask for a folder for results, write the scene's hearts into it, and begin."""
        hearts = heartsInScene()
        if not hearts:
            self._say(failure("no-hearts").text(), Level.WARNING)
            return
        results = self._chooseResults()
        if results:
            self._start(lambda: writeHearts(hearts, Path(results) / SCENE_FOLDER), Path(results) / "results")

    def _start(self, source: Callable[[], Path], results: Path) -> None:
        settings = self.settings()
        if settings is None or self.isRunning:
            return
        if not self.canWork():
            self._say(_("Nothing was done."), Level.WARNING)
            return
        keep = {"dense": self.ui.batchStacksCheckBox.checked, "labels": self.ui.batchLabelsCheckBox.checked}
        try:
            fields = settings.cohortRequest(source(), results)
        except EXPECTED_ERRORS as error:
            self._fail(failureFromError(error, otherwise="unwritable"))
            return
        self._results = results
        self.ui.batchProgressBar.value = 0
        self._say(_("Looking for hearts ..."))
        self._requestId = self.logic.beside.request(
            "cohort", self._onEvent, keep=[name for name, isKept in keep.items() if isKept], **fields
        )
        self.log("info", _("Batch: {settings}").format(settings=settings.summary()))
        self._showButtons()
        self.onBusy()

    def onCancel(self) -> None:
        """End the batch; what is done stays."""
        if self.isRunning:
            self._say(_("Cancelling ..."))
            self.logic.beside.withdraw(self._requestId)

    def onOpen(self) -> None:
        """Show the folder of results as the system shows folders."""
        if self._results is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._results)))

    def _onEvent(self, event: dict) -> None:
        if not self.isRunning:
            return
        kind = event["event"]
        if kind == "case":
            self.ui.batchProgressBar.value = round(1000 * event["done"] / max(1, event["cases"]))
            self._say(_progressText(event))
        elif kind == "result":
            self._end(*_outcome(event))
        elif kind == "error":
            self._fail(failureFromEvent(event))
        elif kind == "cancelled":
            self._end(_("Cancelled. What is done stays; the same again goes on from there."), Level.INFO)

    def _end(self, text: str, level: Level) -> None:
        self._requestId = None
        self._say(text, level)
        self.log("info", text)
        self._showButtons()

    def _fail(self, reason: Failure) -> None:
        self._requestId = None
        self._say(reason.text(), Level.ERROR)
        self.log("error", "\n".join(filter(None, [reason.title or reason.code, reason.details])))
        self._showButtons()

    def _showButtons(self) -> None:
        ui, running = self.ui, self.isRunning
        for widget in (ui.batchFolderButton, ui.batchSceneButton, ui.batchStacksCheckBox, ui.batchLabelsCheckBox):
            widget.enabled = not running
        for widget in (ui.batchProgressBar, ui.batchCancelButton):
            widget.visible = running
        ui.batchOpenButton.visible = self._results is not None and not running

    def _say(self, text: str, level: Level = Level.INFO) -> None:
        show(self.ui.batchLabel, text, level)
        self.ui.batchLabel.visible = bool(text)

    def _chooseResults(self) -> str:
        preferences = self.logic.preferences
        title = _("Folder for the results; that of an earlier batch goes on")
        folder = self.chooseFolder(title, preferences.batchFolder)
        if folder:
            preferences.batchFolder = folder
        return folder

    def chooseFolder(self, title: str, first: str = "") -> str:
        """Ask the user; empty when they think better of it."""
        return qt.QFileDialog.getExistingDirectory(self.ui.batchFolderButton, title, first)


def _progressText(event: dict) -> str:
    text = _("{done} of {count} hearts are done").format(done=event["done"] - event["failed"], count=event["cases"])
    failed = _(", {count} failed").format(count=event["failed"]) if event["failed"] else ""
    return text + failed


def _outcome(event: dict) -> tuple[str, Level]:
    failed = len(event["failed"])
    text = _("{done} of {count} hearts are done; the figures are in cohort.csv.").format(
        done=event["cases"] - failed, count=event["cases"]
    )
    if not failed:
        return text, Level.INFO
    return text + " " + _("{count} failed: failures.csv tells why.").format(count=failed), Level.WARNING
