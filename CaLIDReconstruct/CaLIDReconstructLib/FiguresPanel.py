"""The panel's figures: volumes and their curves, the wall as a bull's-eye, measuring again, and export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from . import BullsEye, Exports, Figures
from .Messages import EXPECTED_ERRORS, failureFromError
from .Notices import Level, show
from .Recomputation import recompute
from .RunResult import RunResult


class FiguresPanel:
    """Shows and writes the figures of the chosen result.

    Args:
        ui: the named widgets.
        log: called with a level of `logging` and a line for the user's log.
        onChanged: called after the figures were measured again.
    """

    def __init__(self, ui, log: Callable[[str, str], None], onChanged: Callable[[], None]) -> None:
        self.ui, self.log, self.onChanged = ui, log, onChanged
        self.result: RunResult | None = None
        self._shown: list[str] = []
        self._menu = qt.QMenu(ui.surfacesButton)
        for kind, title in _formats().items():
            action = self._menu.addAction(title)
            action.triggered.connect(lambda _checked=False, kind=kind: self.onSurfaces(kind))
        ui.surfacesButton.setMenu(self._menu)
        ui.functionButton.clicked.connect(self.onFunction)
        ui.recomputeButton.clicked.connect(self.onRecompute)
        ui.figuresButton.clicked.connect(self.onFigures)
        ui.bullseyeComboBox.currentIndexChanged.connect(self.showBullsEye)

    def refresh(self) -> None:
        """Show the chosen result's figures, and offer what can be done with them."""
        ui, result = self.ui, self.result
        hasSegmentation = bool(result and result.segmentation)
        table = result.segmentTable if result else None
        ui.functionLabel.text = result.functionSummary if result else ""
        ui.functionLabel.visible = bool(ui.functionLabel.text)
        ui.functionButton.enabled = bool(result and result.functionChart)
        ui.recomputeButton.enabled = hasSegmentation
        for widget in (ui.bullseyeComboBox, ui.bullseyeLabel):
            widget.visible = table is not None
        ui.notDiagnosisLabel.visible = table is not None or ui.functionLabel.visible
        for widget in (ui.exportLabel, ui.exportButtons):
            widget.visible = hasSegmentation
        self._offerColumns(list(Figures.segmentValues(table)) if table is not None else [])
        self.showBullsEye()

    def onFunction(self) -> None:
        """Show the volume curves in a layout with a plot."""
        if self.result is not None and self.result.functionChart is not None:
            slicer.modules.plots.logic().ShowChartInLayout(self.result.functionChart)

    def onRecompute(self) -> None:
        """Measure the contours as they are now."""
        if self.result is None or self.result.segmentation is None:
            return
        with slicer.util.WaitCursor():
            missing = recompute(self.result, self._onFrame)
        text = "\n".join([_("Measured again from the contours as they are now."), *missing])
        show(self.ui.statusLabel, text, Level.WARNING if missing else Level.INFO)
        self.log("warning" if missing else "info", text)
        self.onChanged()

    def _onFrame(self, done: int, count: int) -> None:
        show(self.ui.statusLabel, _("Surfaces of frame {frame} of {count}").format(frame=done + 1, count=count))
        slicer.app.processEvents()

    # --- the bull's-eye ---

    def _offerColumns(self, columns: list[str]) -> None:
        if columns == self._shown:
            return
        self._shown = columns
        blocked = self.ui.bullseyeComboBox.blockSignals(True)
        self.ui.bullseyeComboBox.clear()
        self.ui.bullseyeComboBox.addItems([_columnTitles()[column] for column in columns])
        self.ui.bullseyeComboBox.blockSignals(blocked)

    def showBullsEye(self, *_args) -> None:
        """Paint the chosen column of the table of segments."""
        table = self.result.segmentTable if self.result else None
        values = list(Figures.segmentValues(table).values()) if table is not None else []
        index = max(0, self.ui.bullseyeComboBox.currentIndex)
        if index < len(values):
            self.ui.bullseyeLabel.setPixmap(BullsEye.pixmap(values[index], _letters()))

    # --- export ---

    def onSurfaces(self, kind: str) -> None:
        """Write the surfaces of all frames into a folder."""
        folder = self.chooseFolder() if self.result is not None else ""
        if folder:
            self._write(lambda: Exports.writeSurfaces(self.result, Path(folder), kind))

    def onFigures(self) -> None:
        """Write the figures as a table."""
        path = self.chooseFile("calid-figures.csv", _("Table (*.csv)")) if self.result is not None else ""
        if path:
            self._write(lambda: Exports.writeFigures(self.result, Path(path)))

    def _write(self, writing: Callable[[], int]) -> None:
        try:
            with slicer.util.WaitCursor():
                count = writing()
        except EXPECTED_ERRORS as error:
            reason = failureFromError(error, otherwise="unwritable").text()
            show(self.ui.statusLabel, reason, Level.ERROR)
            self.log("error", reason)
        else:
            show(self.ui.statusLabel, _("{count} files written.").format(count=count))

    def chooseFolder(self) -> str:
        """Ask the user; empty when they think better of it."""
        return qt.QFileDialog.getExistingDirectory(self.ui.surfacesButton, _("Folder for the surfaces"))

    def chooseFile(self, name: str, kinds: str) -> str:
        """Ask the user; empty when they think better of it."""
        chosen = qt.QFileDialog.getSaveFileName(self.ui.figuresButton, _("Save figures"), name, kinds)
        return chosen if isinstance(chosen, str) else chosen[0]  # the bindings differ


def _formats() -> dict[str, str]:
    return {".stl": "STL", ".obj": "OBJ", ".vtp": "VTP (VTK)", ".glb": "glTF"}


def _columnTitles() -> dict[str, str]:
    return {
        Figures.ED: _("Wall thickness at end-diastole (mm)"),
        Figures.ES: _("Wall thickness at end-systole (mm)"),
        Figures.THICKENING: _("Wall thickening (%)"),
    }


def _letters() -> dict[str, str]:
    return {"anterior": _("ant"), "inferior": _("inf"), "septal": _("sep"), "lateral": _("lat")}
