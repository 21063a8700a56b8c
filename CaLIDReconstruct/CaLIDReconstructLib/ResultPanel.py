"""The panel's result part: which result, its 3D models, and taking it away again; comparison and figures act on it."""

from __future__ import annotations

from collections.abc import Callable

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from . import Inputs, LongAxisFiles, Nodes, Views
from .ComparisonPanel import ComparisonPanel, setChecked
from .FiguresPanel import FiguresPanel
from .LaxPlanes import LaxPlane
from .Messages import ModuleError
from .Notices import Level, show
from .Results import readProvenance, resultLabel
from .RunResult import RunResult, resultsOf
from .Segmentations import SURFACE
from .Shifts import Shifts, shiftsOf


class ResultPanel(VTKObservationMixin):
    """Offers the results of the input; everything else acts on the chosen one, at first the newest.

    Args:
        ui: the named widgets.
        log: called with a level of `logging` and a line for the user's log.
    """

    def __init__(self, ui, log: Callable[[str, str], None]) -> None:
        super().__init__()
        self.ui, self.log = ui, log
        self.onRefreshed: Callable[[], None] = lambda: None
        self._result: RunResult | None = None
        self._input = None
        self._offered: list[RunResult] = []
        self._comparing = ComparisonPanel(ui, log, self.refresh)
        self._figures = FiguresPanel(ui, log, self.refresh)
        ui.resultComboBox.activated.connect(self.onChoose)  # by the user only, not when the list is made anew
        ui.show3DButton.toggled.connect(self.onShow3D)
        ui.removeButton.clicked.connect(self.onRemove)

    @property
    def result(self) -> RunResult | None:
        """The chosen result."""
        return self._result

    @result.setter
    def result(self, result: RunResult | None) -> None:
        self._result = result
        if not self._comparing.isOn:
            self._comparing.result = result
        self._figures.result = result

    @property
    def comparison(self):
        """The comparison that is going on, or None."""
        return self._comparing.comparison

    def planes(self) -> list[LaxPlane]:
        """The planes that the chosen result can be compared in."""
        return self._comparing.planes()

    def close(self) -> None:
        """Leave the comparison and watch no more nodes; the panel is going away."""
        self.removeObservers()
        self.leaveComparison()

    def forget(self) -> None:
        """Leave the comparison and forget the results of a scene that was closed; the user's layout comes back."""
        self.leaveComparison()
        self.result = self._input = self._comparing.problem = None
        self.refresh()

    def leaveComparison(self) -> None:
        """End the comparison; the next one is of the chosen result."""
        self._comparing.leave()
        self._comparing.result = self._result

    def setInput(self, node) -> None:
        """Offer the results of this volume or sequence, or of the sequence that this volume shows."""
        try:
            self._input = Inputs.resolve(node).nodes[0]
        except ModuleError:
            self._input = None
        self.refresh()

    def setResult(self, result: RunResult, *, isShown: bool) -> None:
        """Choose the result of a finished run.

        Args:
            result: what the run made.
            isShown: also show it in the views; not while the user works with them in another module.
        """
        if isShown or self.comparison is None:  # a comparison that goes on is one of the result chosen before
            self.result, self._comparing.problem = result, None
        if isShown:
            self.showVolume(result.volume)
            self._showSegmentation()
            if result.segmentation is not None:
                Views.centerThreeDViews()
        self.refresh()

    def showVolume(self, volumeNode) -> None:
        """Show a volume in the slice views, and let the sequence toolbar play its cine."""
        self.leaveComparison()
        Views.showVolume(volumeNode)

    def refresh(self, *_args) -> None:
        """Bring list, texts and buttons up to date with the scene."""
        self._offerResults()
        result = self.result
        isThere = result is not None
        for widget in (self.ui.resultControls, self.ui.resultComboBox, self.ui.resultSelectorLabel):
            widget.visible = isThere  # nothing to click before there is a result
        self._comparing.refresh()
        self._figures.refresh()
        self._showText()
        self._showShifts()
        self.ui.show3DButton.enabled = bool(result and result.segmentation)
        setChecked(self.ui.show3DButton, self._isShownIn3D())
        self.ui.removeButton.enabled = isThere
        self._explain(isThere)
        self.onRefreshed()

    def _offerResults(self) -> None:
        """List the input's results under their present names; the newest takes the place of a chosen one that left."""
        self._offered = resultsOf(self._input)
        nodes = [result.node for result in self._offered]
        if self.result is None or self.result.node not in nodes:
            self._comparing.leave()
            self.result = next(iter(self._offered), None)
        box = self.ui.resultComboBox
        box.clear()
        box.addItems([resultLabel(node) for node in nodes])
        box.setCurrentIndex(nodes.index(self.result.node) if nodes else -1)
        box.enabled = bool(nodes)
        self.removeObservers()
        for node in nodes:
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.refresh)

    def _explain(self, isThere: bool) -> None:
        """Say on every button that cannot be clicked what it waits for."""
        missing = "" if isThere else _("There is no result yet.")
        self.ui.compareButton.toolTip = missing or _(
            "Show acquired long-axis images beside the original and the upsampled stack cut in the same planes. Click "
            "again for your own layout."
        )
        needsSegmentation = _("Run with 'Segmentation' checked first.")
        self.ui.show3DButton.toolTip = self._tip(
            self.ui.show3DButton, missing, _("Show the ventricles in 3D, or hide them."), needsSegmentation
        )
        self.ui.recomputeButton.toolTip = self._tip(
            self.ui.recomputeButton,
            missing,
            _("Measure again and make the surfaces anew after you have changed the contours."),
            needsSegmentation,
        )
        self.ui.functionButton.toolTip = self._tip(
            self.ui.functionButton,
            missing,
            _("Show the ventricles' volumes over the cardiac cycle."),
            _("Upsample all frames of a cine with 'Segmentation' checked first."),
        )

    @staticmethod
    def _tip(button, missing: str, whatItDoes: str, whatItNeeds: str) -> str:
        return whatItDoes if button.enabled else missing or whatItNeeds

    def onChoose(self, *_args) -> None:
        """Show the chosen result: in the place of the one that is compared, else in the slice views."""
        before = self.result.segmentation
        self.result, self._comparing.problem = self._offered[self.ui.resultComboBox.currentIndex], None
        self._showSegmentation(before)
        volume = self.result.volume
        if not Nodes.hasImage(volume):
            self.leaveComparison()
        elif self.comparison is None:
            self.showVolume(volume)
        else:
            self._comparing.showResult(self.result)
        self.refresh()

    def onShow3D(self, isShown: bool = True) -> None:
        """Show the chosen result's surfaces in 3D, or hide them."""
        segmentation = self.result.segmentation
        display = segmentation.GetDisplayNode()
        display.SetVisibility3D(isShown)
        if isShown:
            display.SetVisibility(True)
            segmentation.CreateClosedSurfaceRepresentation()  # the user may have removed it

    def onRemove(self) -> None:
        """Remove every node of the result; the input stays."""
        self.leaveComparison()
        if self.result is not None and slicer.mrmlScene.IsNodePresent(self.result.node):
            removed = self.result
            others = [result for result in self._offered if result.node is not removed.node]
            if others:
                self.result = others[0]
                self._showSegmentation(removed.segmentation)
            removed.remove()
        self._comparing.problem = None
        self.refresh()

    def _showSegmentation(self, like=None) -> None:
        """Of the input's segmentations show the chosen result's alone: two on top of each other cannot be told apart.

        Args:
            like: the segmentation chosen before; the chosen one is shown or hidden as it was. None shows it.
        """
        shown = like.GetDisplayNode() if like is not None else None
        isVisible = shown is None or shown.GetVisibility()
        for result in resultsOf(self.result.input):
            if result.segmentation is None:
                continue
            display = result.segmentation.GetDisplayNode()
            display.SetVisibility(isVisible and result.node is self.result.node)
            if shown is not None:
                # Of the hidden ones too: what Show 3D says goes on past a result that has no segmentation.
                display.SetVisibility3D(shown.GetVisibility3D())

    def _isShownIn3D(self) -> bool:
        segmentation = self.result.segmentation if self.result is not None else None
        if segmentation is None or not segmentation.GetSegmentation().ContainsRepresentation(SURFACE):
            return False
        display = segmentation.GetDisplayNode()
        return bool(display.GetVisibility() and display.GetVisibility3D())

    @property
    def _shifts(self) -> Shifts | None:
        return shiftsOf(readProvenance(self.result.node)) if self.result is not None else None

    def _showShifts(self) -> None:
        """How far the slices are off, and the click that corrects it where that is worth it."""
        shifts = self._shifts
        isOff = shifts is not None and shifts.isNoticeable and not shifts.areApplied
        show(self.ui.shiftsLabel, shifts.text() if shifts else "", Level.WARNING if isOff else Level.INFO)
        self.ui.shiftsLabel.visible = shifts is not None
        self.ui.alignButton.visible = isOff

    def _showText(self) -> None:
        if self.result is None:
            show(self.ui.resultLabel, _("No result yet."))
            return
        name, problem = self.result.node.GetName(), self._comparing.problem
        shifts = self._shifts
        areMoved = shifts is not None and shifts.areApplied
        line = (
            _("'{name}': generated slices are synthetic, acquired ones are moved within their planes.")
            if areMoved
            else _("'{name}': generated slices are synthetic, acquired ones unchanged.")
        )
        lines = [line.format(name=name)]
        guides = [Inputs.resolve(node).name for node in LongAxisFiles.guides(self.result)]
        lines += [_("Guided by {views}, which are no proof of it.").format(views=", ".join(guides))] if guides else []
        lines += self.result.warnings
        if problem is not None:
            lines.append(problem.text())
        level = Level.ERROR if problem else Level.WARNING if self.result.warnings else Level.INFO
        show(self.ui.resultLabel, "\n".join(lines), level)
