"""The panel's result part: which result, the long-axis comparison, 3D, volume curves, and taking it away again."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
import vtk
from calid.errors import CalidError
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from . import Inputs, LaxLayout, LaxPlanes, Nodes
from .Messages import Failure, ModuleError, engineFailure
from .Results import resultLabel
from .RunResult import RunResult, resultsOf
from .Segmentations import SURFACE


class ResultPanel(VTKObservationMixin):
    """Offers the results of the input; everything else acts on the chosen one, at first the newest.

    Args:
        ui: the named widgets.
        log: log(level, message).
    """

    def __init__(self, ui, log: Callable[[str, str], None]) -> None:
        super().__init__()
        self.ui, self.log = ui, log
        self.result: RunResult | None = None
        self._input = None
        self._offered: list[RunResult] = []
        self.comparison: LaxLayout.LaxComparison | None = None
        self._choices: list[LaxPlanes.LaxPlane] = []
        self._problem: Failure | None = None
        # Slicer's own button hides surfaces by removing them, and could not make the engine's again. So it is given
        # no segmentation and no menu to change one, and shows and hides what is there.
        ui.show3DButton.setMenu(None)
        ui.show3DButton.setCheckable(True)
        self._menu = qt.QMenu(ui.planesButton)
        ui.planesButton.setMenu(self._menu)
        ui.resultComboBox.activated.connect(self.onChoose)  # by the user only, not when the list is made anew
        ui.compareButton.toggled.connect(self.onCompare)
        ui.toggleButton.toggled.connect(self.onToggle)
        ui.tintButton.toggled.connect(self.onTint)
        ui.show3DButton.toggled.connect(self.onShow3D)
        ui.functionButton.clicked.connect(self.onFunction)
        ui.removeButton.clicked.connect(self.onRemove)

    def close(self) -> None:
        self.removeObservers()
        self._leave()

    def forget(self) -> None:
        """The scene was closed: its nodes and planes are gone; the layout is none of them."""
        self._leave()
        self.result = self._input = self._problem = None
        self.refresh()

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
            self.result, self._problem = result, None
        if isShown:
            self.showVolume(result.volume)
            self._showSegmentation()
            if result.segmentation is not None:
                centerThreeDViews()
        self.refresh()

    def showVolume(self, volumeNode) -> None:
        """Show a volume in the slice views, and let the sequence toolbar play its cine."""
        self._leave()
        showInSliceViews(volumeNode)
        Nodes.showBrowser(Inputs.resolve(volumeNode).browser)

    def refresh(self, *_args) -> None:
        self._offerResults()
        result, isComparing = self.result, self.comparison is not None
        self.ui.resultLabel.text = self._text()
        self.ui.functionLabel.text = result.functionSummary if result else ""
        self.ui.compareButton.enabled = isComparing or bool(result and Nodes.hasImage(result.volume))
        self.ui.planesButton.enabled = isComparing and len(self._choices) > 1
        self.ui.toggleButton.enabled = isComparing
        self.ui.tintButton.enabled = isComparing and self.comparison.generatedMask is not None
        self.ui.show3DButton.enabled = bool(result and result.segmentation)
        self._setChecked(self.ui.show3DButton, self._isShownIn3D())
        self.ui.functionButton.enabled = bool(result and result.functionChart)
        self.ui.removeButton.enabled = bool(result)
        self._explain(bool(result))

    def _offerResults(self) -> None:
        """List the input's results under their present names; the newest takes the place of a chosen one that left."""
        self._offered = resultsOf(self._input)
        nodes = [result.node for result in self._offered]
        if self.result is None or self.result.node not in nodes:
            self._leave()
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
        self.ui.show3DButton.toolTip = self._tip(
            self.ui.show3DButton,
            missing,
            _("Show the ventricles in 3D, or hide them."),
            _("Run with 'Segmentation' checked first."),
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
        self.result, self._problem = self._offered[self.ui.resultComboBox.currentIndex], None
        self._showSegmentation(before)
        volume = self.result.volume
        if not Nodes.hasImage(volume):
            self._leave()
        elif self.comparison is None:
            self.showVolume(volume)
        else:
            self.comparison.showResult(volume, self.result.generatedMask)
            self._keepToggles()
        self.refresh()

    def onCompare(self, isOn: bool = True) -> None:
        """Enter or leave the comparison layout."""
        self._problem = None
        if not isOn:
            self._leave()
        elif self._isThere():
            self._enter()
        self.refresh()

    def onLayoutChanged(self) -> None:
        """The user chose another layout: the comparison is over."""
        self._leave()
        self.refresh()

    def onPlanes(self, *_args) -> None:
        """Show the planes that are ticked in the menu; the last one stays."""
        if self.comparison is None:
            return
        ticked = [action.checked for action in self._menu.actions()]
        chosen = [plane for plane, isShown in zip(self._choices, ticked, strict=True) if isShown]
        if not chosen:
            self._tick(self.comparison.planes)
            return
        self.comparison.show(chosen)
        slicer.app.processEvents()  # gives the new views their size
        self.comparison.fill()
        self._keepToggles()

    def _keepToggles(self) -> None:
        """Let what is shown anew look as the pressed buttons say."""
        self.comparison.showOriginal(self.ui.toggleButton.checked)
        self.comparison.tintGenerated(self.ui.tintButton.checked)

    def onToggle(self, isOriginal: bool = True) -> None:
        if self.comparison is not None:
            self.comparison.showOriginal(isOriginal)
            self.ui.toggleButton.text = _("Show upsampled") if isOriginal else _("Show original")

    def onTint(self, isTinted: bool = True) -> None:
        if self.comparison is not None:
            self.comparison.tintGenerated(isTinted)

    def onShow3D(self, isShown: bool = True) -> None:
        segmentation = self.result.segmentation
        display = segmentation.GetDisplayNode()
        display.SetVisibility3D(isShown)
        if isShown:
            display.SetVisibility(True)
            segmentation.CreateClosedSurfaceRepresentation()  # the user may have removed it

    def onFunction(self) -> None:
        """Show the volume curves in a layout with a plot."""
        layoutManager = slicer.app.layoutManager()
        if layoutManager is None or self.result is None:
            return
        plotLayout = slicer.modules.plots.logic().GetLayoutWithPlot(layoutManager.layout)
        layoutManager.setLayout(plotLayout)
        layoutManager.plotWidget(0).mrmlPlotViewNode().SetPlotChartNodeID(self.result.functionChart.GetID())

    def onRemove(self) -> None:
        """Remove every node of the result; the input stays."""
        self._leave()
        if self._isThere():
            removed = self.result
            others = [result for result in self._offered if result.node is not removed.node]
            if others:
                self.result = others[0]
                self._showSegmentation(removed.segmentation)
            removed.remove()
        self._problem = None
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

    def planes(self) -> list[LaxPlanes.LaxPlane]:
        """The acquired long-axis planes of the scene, or those derived from the segmentation."""
        planes = LaxPlanes.acquiredPlanes(self.result.volume)
        if planes or self.result.segmentation is None:
            return planes
        return LaxPlanes.derivedPlanes(self.result.labels, self.result.volume)

    def _enter(self) -> None:
        try:
            self._choices = self.planes()
            shown = self._choices[: LaxLayout.PLANES_AT_FIRST]
            self.comparison = LaxLayout.LaxComparison(
                self._original(), self.result.volume, shown, self.result.generatedMask, self.onLayoutChanged
            )
            self._offer(shown)
            self.comparison.enter()
            slicer.app.processEvents()  # gives the new views their size
            self.comparison.fill()
            Nodes.showBrowser(Inputs.resolve(self.comparison.original).browser)
        except ModuleError as error:
            self._giveUp(error.failure)
        except CalidError as error:
            self._giveUp(engineFailure(error.code, error.message, error.remedy))

    def _giveUp(self, reason: Failure) -> None:
        self._leave()
        self._problem = reason
        self.log("error", reason.text())

    def _original(self):
        """The volume node of the result's input; a cine that nothing plays gets a browser to be seen.

        Raises:
            ModuleError: the input was removed.
        """
        if self.result.input is None:
            raise ModuleError(Failure("input-gone", _("The input of this result is no longer in the scene.")))
        chosen = Inputs.resolve(self.result.input)
        return chosen.volume or Nodes.addBrowser(chosen.sequence).GetProxyNode(chosen.sequence)

    def _offer(self, shown: list[LaxPlanes.LaxPlane]) -> None:
        """Fill the menu with every plane there is."""
        self._menu.clear()
        for plane in self._choices:
            action = self._menu.addAction(plane.name)
            action.setCheckable(True)
            action.toggled.connect(self.onPlanes)
        self._tick(shown)

    def _tick(self, shown: list[LaxPlanes.LaxPlane]) -> None:
        for plane, action in zip(self._choices, self._menu.actions(), strict=True):
            self._setChecked(action, plane in shown)

    def _leave(self) -> None:
        if self.comparison is not None:
            self.comparison.leave()
            self.comparison = None
        for button in (self.ui.compareButton, self.ui.toggleButton, self.ui.tintButton):
            self._setChecked(button, False)
        self.ui.toggleButton.text = _("Show original")

    def _isThere(self) -> bool:
        return self.result is not None and bool(slicer.mrmlScene.IsNodePresent(self.result.node))

    def _isShownIn3D(self) -> bool:
        segmentation = self.result.segmentation if self.result is not None else None
        if segmentation is None or not segmentation.GetSegmentation().ContainsRepresentation(SURFACE):
            return False
        display = segmentation.GetDisplayNode()
        return bool(display.GetVisibility() and display.GetVisibility3D())

    def _text(self) -> str:
        if self.result is None:
            return _("No result yet.")
        name = self.result.node.GetName()
        lines = [_("'{name}': generated slices are synthetic, acquired ones unchanged.").format(name=name)]
        lines += self.result.warnings
        return "\n".join([*lines, self._problem.text()] if self._problem else lines)

    @staticmethod
    def _setChecked(button, isChecked: bool) -> None:
        blocked = button.blockSignals(True)
        button.setChecked(isChecked)
        button.blockSignals(blocked)


def showInSliceViews(volumeNode) -> None:
    """Show a volume in the slice views, turned to its own axes: axial cuts of an oblique stack are thin stripes."""
    if slicer.app.layoutManager() is not None:  # without a main window there are no views
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True, rotateToVolumePlane=True)


def centerThreeDViews() -> None:
    """Turn the 3D views to what there is now: a heart lies far from the middle of an empty view."""
    layoutManager = slicer.app.layoutManager()
    for index in range(layoutManager.threeDViewCount if layoutManager is not None else 0):
        layoutManager.threeDWidget(index).threeDView().resetFocalPoint()
