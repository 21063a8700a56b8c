"""The panel's result part: the long-axis comparison, 3D, volume curves, and taking the result away again."""

from __future__ import annotations

from collections.abc import Callable

import slicer
from calid.errors import CalidError
from slicer.i18n import tr as _

from . import Inputs, LaxLayout
from .Job import RunResult
from .Messages import ModuleError


class ResultPanel:
    """Shows what the last run made.

    Args:
        ui: the named widgets.
        log: log(level, message).
    """

    def __init__(self, ui, log: Callable[[str, str], None]) -> None:
        self.ui, self.log = ui, log
        self.result: RunResult | None = None
        self.chosen: Inputs.Input | None = None
        self.comparison: LaxLayout.LaxComparison | None = None
        ui.compareButton.toggled.connect(self.onCompare)
        ui.toggleButton.toggled.connect(self.onToggle)
        ui.tintButton.toggled.connect(self.onTint)
        ui.functionButton.clicked.connect(self.onFunction)
        ui.removeButton.clicked.connect(self.onRemove)

    def close(self) -> None:
        self._leave()

    def forget(self) -> None:
        """The scene was closed: its nodes, layout and planes are gone."""
        self.result = self.chosen = self.comparison = None
        self._setChecked(self.ui.compareButton, False)
        self.refresh()

    def setResult(self, result: RunResult, chosen: Inputs.Input) -> None:
        """Take over the nodes of a finished run and show the new volume."""
        self._leave()
        self._setChecked(self.ui.compareButton, False)
        self.result, self.chosen = result, chosen
        showInSliceViews(result.volume)
        if result.segmentation is not None:
            self.ui.show3DButton.setSegmentationNode(result.segmentation)
        self.refresh()

    def refresh(self) -> None:
        isThere = self._isThere()
        isComparing = self.comparison is not None
        self.ui.resultLabel.text = self._text() if isThere else _("No result yet.")
        self.ui.functionLabel.text = self.result.functionSummary if isThere else ""
        self.ui.compareButton.enabled = isThere
        self.ui.toggleButton.enabled = isComparing
        self.ui.tintButton.enabled = isComparing and self.result.generatedMask is not None
        self.ui.show3DButton.enabled = isThere and self.result.segmentation is not None
        self.ui.functionButton.enabled = isThere and self.result.functionChart is not None
        self.ui.removeButton.enabled = isThere

    def onCompare(self, isOn: bool = True) -> None:
        """Enter or leave the comparison layout."""
        if not isOn:
            self._leave()
        elif self._isThere():
            self._enter()
        self.refresh()

    def onToggle(self, isOriginal: bool = True) -> None:
        if self.comparison is not None:
            self.comparison.showOriginal(isOriginal)
            self.ui.toggleButton.text = _("Show upsampled") if isOriginal else _("Show original")

    def onTint(self, isTinted: bool = True) -> None:
        if self.comparison is not None:
            self.comparison.tintGenerated(isTinted)

    def onFunction(self) -> None:
        """Show the volume curves in a layout with a plot."""
        layoutManager = slicer.app.layoutManager()
        if layoutManager is None or self.result is None:
            return
        plotLayout = slicer.modules.plots.logic().GetLayoutWithPlot(layoutManager.layout)
        layoutManager.setLayout(plotLayout)
        layoutManager.plotWidget(0).mrmlPlotViewNode().SetPlotChartNodeID(self.result.functionChart.GetID())

    def onRemove(self) -> None:
        """Remove every node of the last run; the input stays."""
        self._leave()
        self._setChecked(self.ui.compareButton, False)
        if self.result is not None:
            self.result.remove()
        self.result = None
        self.refresh()

    def planes(self) -> list[LaxLayout.LaxPlane]:
        """The acquired long-axis planes of the scene, or those derived from the segmentation."""
        planes = LaxLayout.acquiredPlanes(self.chosen.volume)
        if planes or self.result.labels is None:
            return planes
        return LaxLayout.derivedPlanes(self.result.labels, self.result.volume)

    def _enter(self) -> None:
        try:
            self.comparison = LaxLayout.LaxComparison(
                self.chosen.volume, self.result.volume, self.planes(), self.result.generatedMask
            )
            self.comparison.enter()
            slicer.app.processEvents()  # gives the new views their size
            self.comparison.fill()
        except (ModuleError, CalidError) as error:
            self.comparison = None
            self.log("error", str(error))
            self.ui.resultLabel.text = str(error)
            self._setChecked(self.ui.compareButton, False)

    def _leave(self) -> None:
        if self.comparison is not None:
            self.comparison.leave()
            self.comparison = None
        for button in (self.ui.toggleButton, self.ui.tintButton):
            self._setChecked(button, False)
        self.ui.toggleButton.text = _("Show original")

    def _isThere(self) -> bool:
        volume = self.result.volume if self.result is not None else None
        return volume is not None and bool(slicer.mrmlScene.IsNodePresent(volume))

    def _text(self) -> str:
        lines = [
            _("'{name}': generated slices are synthetic, acquired ones unchanged.").format(
                name=self.result.node.GetName()
            )
        ]
        return "\n".join([*lines, *self.result.warnings])

    @staticmethod
    def _setChecked(button, isChecked: bool) -> None:
        blocked = button.blockSignals(True)
        button.setChecked(isChecked)
        button.blockSignals(blocked)


def showInSliceViews(volumeNode) -> None:
    """Show a volume in the standard slice views, turned to its own axes: axial cuts of an oblique stack say little."""
    slicer.util.setSliceViewerLayers(background=volumeNode)
    for name in ("Red", "Green", "Yellow"):
        sliceNode = slicer.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceNode")
        if sliceNode is not None:
            sliceNode.RotateToVolumePlane(volumeNode)
