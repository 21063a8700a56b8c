"""The panel's "Load DICOM folder ...": the engine reads the examination, and says what it took each series for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
from calid.images import files
from slicer.i18n import tr as _

from . import Inputs
from .DicomSources import noteFolder
from .Logic import Logic
from .Messages import EXPECTED_ERRORS, Failure, ModuleError, failureFromError
from .Notices import Level, show
from .StudyNodes import addStudy
from .Workspace import Workspace


class StudyPanel:
    """Loads the short axis and the long-axis views of a DICOM folder as sequences with their times.

    Args:
        ui: the named widgets.
        logic: whose engine reads the files.
        log: called with a level of `logging` and a line for the user's log.
        canAsk: whether the engine can be started; may ask the user to install what it needs.
        onBusy: called when there is an answer to wait for.
        onLoaded: onLoaded(node) gets the shown node of the short axis.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        log: Callable[[str, str], None],
        *,
        canAsk: Callable[[], bool],
        onBusy: Callable[[], None],
        onLoaded: Callable[[object], None],
    ) -> None:
        self.ui, self.logic, self.log = ui, logic, log
        self.canAsk, self.onBusy, self.onLoaded = canAsk, onBusy, onLoaded
        self._workspace: Workspace | None = None
        ui.studyLabel.visible = False
        ui.dicomButton.clicked.connect(self.onLoad)

    @property
    def isLoading(self) -> bool:
        """Whether a folder is being read."""
        return self._workspace is not None

    def close(self) -> None:
        """Remove the temporary files of a study."""
        if self._workspace is not None:
            self._workspace.remove()
            self._workspace = None

    def onLoad(self) -> None:
        """Ask for a folder and let the engine read it."""
        folder = self.chooseFolder()
        if not folder or self.isLoading:
            return
        if not self.canAsk():
            self._say(_("The engine's packages are not installed; nothing was loaded."), Level.WARNING)
            return
        try:
            self._workspace = Workspace()
        except ModuleError as error:
            self._fail(error.failure)
            return
        self.ui.dicomButton.enabled = False
        self._say(_("Reading the folder ..."))
        made = str(self._workspace.subfolder("study"))
        self.logic.askHere(
            "study", lambda event, reason: self._onAnswer(folder, event, reason), input=folder, folder=made
        )
        self.onBusy()

    def _onAnswer(self, folder: str, event: dict | None, reason: Failure | None) -> None:
        try:
            if event is not None:
                self._load(Path(folder), event)
            elif reason is not None:
                self._fail(reason)
            else:
                self._say("")
        except (*EXPECTED_ERRORS, KeyError) as error:
            self._fail(failureFromError(error))
        finally:
            self.close()
            self.ui.dicomButton.enabled = True

    def _load(self, folder: Path, event: dict) -> None:
        paths = [(_("short axis"), event["sax"]), *((view["name"], view["path"]) for view in event["lax"])]
        nodes = addStudy(folder.name, [(name, files.read_stack(Path(path))) for name, path in paths])
        for node in (nodes.sax, *nodes.lax.values()):
            noteFolder(Inputs.resolve(node).nodes[0], str(folder))
        lines = decisionLines(event)
        doubtful = event.get("study", {}).get("confidence") == "low"
        self._say("\n".join(lines), Level.WARNING if doubtful else Level.INFO)
        for line in lines:
            self.log("info", line)
        self.onLoaded(nodes.sax)

    def _fail(self, reason: Failure) -> None:
        self._say(reason.text(), Level.ERROR)
        self.log("error", "\n".join(filter(None, [reason.text(), reason.details])))

    def _say(self, text: str, level: Level = Level.INFO) -> None:
        show(self.ui.studyLabel, text, level)
        self.ui.studyLabel.visible = bool(text)

    def chooseFolder(self) -> str:
        """Ask the user for a folder, beginning where the last one was; empty when they think better of it."""
        preferences = self.logic.preferences
        title = _("Folder with DICOM files")
        folder = qt.QFileDialog.getExistingDirectory(self.ui.dicomButton, title, preferences.dicomFolder)
        if folder:
            preferences.dicomFolder = folder
        return folder


def decisionLines(event: dict) -> list[str]:
    """What each series was taken for, such as "Series 12 (SA cine): short axis, 11 slices, 30 phases"."""
    study = event.get("study", {})
    choice = study.get("choice")
    lines = [_choiceText(choice)] if choice else []
    lines += [_seriesText(series) for series in study.get("series", []) if series.get("role") == "long axis"]
    lines += [_("Left out: {what}").format(what=sentence) for sentence in event.get("left_out", [])]
    if study.get("confidence") in ("low", "medium"):
        lines.append(_("Look whether this is the short axis: {reasons}").format(reasons=_reasons(study)))
    return lines


def _choiceText(choice: dict) -> str:
    """The short axis, which may be spread over a series for each slice."""
    return _("Series {numbers} ({description}): short axis, {slices} slices, {phases} phases").format(
        numbers=", ".join(map(str, choice.get("series", []))),
        description=choice.get("description") or "-",
        slices=choice.get("slices"),
        phases=choice.get("phases"),
    )


def _seriesText(series: dict) -> str:
    return _("Series {number} ({description}): long axis, {phases} phases").format(
        number=series.get("number"), description=series.get("description") or "-", phases=series.get("phases")
    )


def _reasons(study: dict) -> str:
    reasons = study.get("reasons") or ""
    return reasons if isinstance(reasons, str) else " ".join(map(str, reasons))
