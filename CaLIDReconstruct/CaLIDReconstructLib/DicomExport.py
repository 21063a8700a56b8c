"""The result as a DICOM series of the study it came from, which the engine on this computer writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import qt
from calid.images import files
from slicer.i18n import tr as _

from .DicomSources import sourceFiles
from .Logic import Logic
from .Messages import EXPECTED_ERRORS, Failure, failureFromError
from .Notices import Level, show
from .Results import readProvenance, readResult
from .RunResult import RunResult
from .Shifts import shiftsOf
from .Workspace import Workspace

NAME = "CaLID"


class DicomExport:
    """Writes the chosen result as a derived series, where its input came from DICOM.

    Args:
        ui: the named widgets.
        logic: whose engine on this computer writes the files.
        result: gives the chosen result, or None.
        log: called with a level of `logging` and a line for the user's log.
        canAsk: whether the engine can be started; may ask the user to install what it needs.
        onBusy: called when there is an answer to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        result: Callable[[], RunResult | None],
        log: Callable[[str, str], None],
        *,
        canAsk: Callable[[], bool],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.result, self.log = ui, logic, result, log
        self.canAsk, self.onBusy = canAsk, onBusy
        self._workspace: Workspace | None = None
        ui.dicomExportButton.clicked.connect(self.onExport)

    def close(self) -> None:
        """Remove the temporary files of an export."""
        if self._workspace is not None:
            self._workspace.remove()
            self._workspace = None

    def refresh(self) -> None:
        """Offer the export, or say on the button why there is none."""
        result = self.result()
        reason = reasonAgainst(result) if result is not None else _("There is no result yet.")
        self.ui.dicomExportButton.enabled = not reason and self._workspace is None
        self.ui.dicomExportButton.toolTip = reason or _(
            "Write the result as a DICOM series of its patient's study: each image says whether it was acquired or "
            "generated. It holds the patient's name and is written on this computer only."
        )

    def onExport(self) -> None:
        """Ask where to, and let the engine write."""
        result = self.result()
        folder = self.chooseFolder() if result is not None and self._workspace is None else ""
        if not folder:
            return
        if not self.canAsk():
            show(self.ui.statusLabel, _("The engine's packages are not installed; nothing was written."), Level.WARNING)
            return
        try:
            self._ask(result, _free(Path(folder)))
        except EXPECTED_ERRORS as error:
            self._fail(failureFromError(error, otherwise="unwritable"))

    def _ask(self, result: RunResult, output: Path) -> None:
        self._workspace = Workspace()
        dense = self._workspace.file("dense.seq.nrrd" if result.sequence is not None else "dense.nrrd")
        files.write_stack(readResult(result.node), dense)
        source = self._workspace.subfolder("dicom")
        for number, path in enumerate(sourceFiles(result.input)):
            _link(path, source / f"{number:06d}")
        self.refresh()
        show(self.ui.statusLabel, _("Writing DICOM files ..."))
        self.logic.askHere("dicom", self._onAnswer, input=str(dense), source=str(source), output=str(output))
        self.onBusy()

    def _onAnswer(self, event: dict | None, reason: Failure | None) -> None:
        self.close()
        if event is not None:
            text = _("{count} DICOM images are written, in a new folder '{name}'. They hold the patient's name.")
            name = Path(str(event.get("output"))).name
            show(self.ui.statusLabel, text.format(count=event.get("images"), name=name))
        elif reason is not None:
            self._fail(reason)
        self.refresh()

    def _fail(self, reason: Failure) -> None:
        self.close()
        show(self.ui.statusLabel, reason.text(), Level.ERROR)
        self.log("error", "\n".join([reason.title, reason.details]))  # its message may name a folder
        self.refresh()

    def chooseFolder(self) -> str:
        """Ask the user; empty when they think better of it."""
        return qt.QFileDialog.getExistingDirectory(self.ui.dicomExportButton, _("Folder for the DICOM series"))


def reasonAgainst(result: RunResult) -> str:
    """Why a result cannot become DICOM; empty when it can."""
    if result.input is None:
        return _("The input of this result is no longer in the scene, and only it tells the patient's study.")
    if not sourceFiles(result.input):
        return _("DICOM files belong to a patient's study, and this input was not loaded from DICOM.")
    shifts = shiftsOf(readProvenance(result.node))
    if shifts is not None and shifts.areApplied:
        return _("The acquired slices of this result were moved, so they are no longer the images of the study.")
    return ""


def _free(folder: Path) -> Path:
    """A new folder in the chosen one."""
    names = [NAME, *(f"{NAME} {number}" for number in range(2, 1000))]
    return next(folder / name for name in names if not (folder / name).exists())


def _link(path: Path, target: Path) -> None:
    """Let the engine find a file among those of this input only; copied where the disk has no links."""
    try:
        target.symlink_to(path)
    except OSError:
        shutil.copyfile(path, target)
