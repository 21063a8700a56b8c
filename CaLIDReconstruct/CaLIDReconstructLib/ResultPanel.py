"""The panel's result part: the long-axis comparison, 3D, volume curves, and taking the result away again."""

from __future__ import annotations

from collections.abc import Callable

import qt
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
        self._choices: list[LaxLayout.LaxPlane] = []
        self._menu = qt.QMenu(ui.planesButton)
        ui.planesButton.setMenu(self._menu)
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
        self._choices = []
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
            centerThreeDViews()
        self.refresh()

    def refresh(self) -> None:
        isThere = self._isThere()
        isComparing = self.comparison is not None
        self.ui.resultLabel.text = self._text() if isThere else _("No result yet.")
        self.ui.functionLabel.text = self.result.functionSummary if isThere else ""
        self.ui.compareButton.enabled = isThere
        self.ui.planesButton.enabled = isComparing and len(self._choices) > 1
        self.ui.toggleButton.enabled = isComparing
        self.ui.tintButton.enabled = isComparing and self.result.generatedMask is not None
        self.ui.show3DButton.enabled = isThere and self.result.segmentation is not None
        self.ui.functionButton.enabled = isThere and self.result.functionChart is not None
        self.ui.removeButton.enabled = isThere
        self._explain(isThere)

    def _explain(self, isThere: bool) -> None:
        """Say on every button that cannot be clicked what it waits for."""
        missing = "" if isThere else _("There is no result yet.")
        self.ui.compareButton.toolTip = missing or _(
            "Show acquired long-axis images beside the original and the upsampled stack cut in the same planes. Click "
            "again for your own layout."
        )
        self.ui.show3DButton.toolTip = self._tip(
            self.ui.show3DButton, missing, _("Show the ventricles in 3D."), _("Run with 'Segmentation' checked first.")
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

    def onCompare(self, isOn: bool = True) -> None:
        """Enter or leave the comparison layout."""
        if not isOn:
            self._leave()
        elif self._isThere():
            self._enter()
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
        self.comparison.showOriginal(self.ui.toggleButton.checked)
        self.comparison.tintGenerated(self.ui.tintButton.checked)

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
            self._choices = self.planes()
            shown = self._choices[: LaxLayout.PLANES_AT_FIRST]
            self.comparison = LaxLayout.LaxComparison(
                self.chosen.volume, self.result.volume, shown, self.result.generatedMask
            )
            self._offer(shown)
            self.comparison.enter()
            slicer.app.processEvents()  # gives the new views their size
            self.comparison.fill()
        except (ModuleError, CalidError) as error:
            self.comparison = None
            self.log("error", str(error))
            self.ui.resultLabel.text = str(error)
            self._setChecked(self.ui.compareButton, False)

    def _offer(self, shown: list[LaxLayout.LaxPlane]) -> None:
        """Fill the menu with every plane there is."""
        self._menu.clear()
        for plane in self._choices:
            action = self._menu.addAction(plane.name)
            action.setCheckable(True)
            action.toggled.connect(self.onPlanes)
        self._tick(shown)

    def _tick(self, shown: list[LaxLayout.LaxPlane]) -> None:
        for plane, action in zip(self._choices, self._menu.actions(), strict=True):
            self._setChecked(action, plane in shown)

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


def centerThreeDViews() -> None:
    """Turn the 3D views to what there is now: a heart lies far from the middle of an empty view."""
    layoutManager = slicer.app.layoutManager()
    for index in range(layoutManager.threeDViewCount if layoutManager is not None else 0):
        layoutManager.threeDWidget(index).threeDView().resetFocalPoint()
