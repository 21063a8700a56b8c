"""The panel's comparison: long-axis planes of the original and of the result beside each other."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from . import Inputs, LaxLayout, LaxPlanes, LongAxisFiles, Nodes, Views
from .Messages import EXPECTED_ERRORS, Failure, ModuleError, failureFromError
from .Results import methodTitle
from .RunResult import RunResult

TOGGLE_KEY, NEXT_FRAME_KEY = "O", "N"


class ComparisonPanel:
    """Enters and leaves the comparison of the chosen result, and says what is shown in it.

    Args:
        ui: the named widgets.
        log: called with a level of `logging` and a line for the user's log.
        onChanged: called when the comparison was entered, left or could not be entered.
    """

    def __init__(self, ui, log: Callable[[str, str], None], onChanged: Callable[[], None]) -> None:
        self.ui, self.log, self.onChanged = ui, log, onChanged
        self.result: RunResult | None = None
        self.comparison: LaxLayout.LaxComparison | None = None
        self.problem: Failure | None = None
        self._choices: list[LaxPlanes.LaxPlane] = []
        self._menu = qt.QMenu(ui.planesButton)
        ui.planesButton.setMenu(self._menu)
        ui.compareButton.toggled.connect(self.onCompare)
        ui.toggleButton.toggled.connect(self.onToggle)
        ui.tintButton.toggled.connect(self.onTint)
        keys = ((TOGGLE_KEY, ui.toggleButton.toggle), (NEXT_FRAME_KEY, self.onNextFrame))
        self.shortcuts = {key: self._shortcut(key, callback) for key, callback in keys}

    @property
    def isOn(self) -> bool:
        """Whether planes are compared now."""
        return self.comparison is not None

    def refresh(self) -> None:
        """Offer only what can be done now."""
        self.ui.compareButton.enabled = self.isOn or bool(self.result and Nodes.hasImage(self.result.volume))
        self.ui.planesButton.enabled = self.isOn and len(self._choices) > 1
        self.ui.toggleButton.enabled = self.isOn
        self.ui.tintButton.enabled = self.isOn and self.comparison.generatedMask is not None
        for button in (self.ui.planesButton, self.ui.toggleButton, self.ui.tintButton):
            button.visible = self.isOn
        for shortcut in self.shortcuts.values():
            shortcut.setEnabled(self.isOn)

    def onCompare(self, isOn: bool = True) -> None:
        """Enter or leave the comparison layout."""
        self.problem = None
        if not isOn:
            self.leave()
        elif self.result is not None and slicer.mrmlScene.IsNodePresent(self.result.node):
            self._enter()
        self.onChanged()

    def onLayoutChanged(self) -> None:
        """End the comparison: the user chose another layout."""
        self.leave()
        self.onChanged()

    def onPlanes(self, *_args) -> None:
        """Show the planes that are ticked in the menu; the last one stays."""
        if not self.isOn:
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

    def onNextFrame(self) -> None:
        """Show the next cardiac phase; after the last one comes the first."""
        browser = Inputs.resolve(self.comparison.original).browser if self.isOn else None
        if browser is not None:
            browser.SelectNextItem(1)

    def onToggle(self, isOriginal: bool = True) -> None:
        """Show the original in the place of the result, or the result again."""
        if self.isOn:
            self.comparison.showOriginal(isOriginal)
            self.ui.toggleButton.text = _("Show upsampled") if isOriginal else _("Show original")

    def onTint(self, isTinted: bool = True) -> None:
        """Color the generated slices, or show them plain."""
        if self.isOn:
            self.comparison.tintGenerated(isTinted)

    def showResult(self, result: RunResult) -> None:
        """Put another result in the place of the one that is compared."""
        self.result = result
        title, guided = methodTitle(result.node), LongAxisFiles.guides(result)
        self.comparison.showResult(result.volume, result.generatedMask, title, guided)
        self._keepToggles()

    def leave(self) -> None:
        """End the comparison; the buttons come up without their handlers hearing of it."""
        if self.isOn:
            self.comparison.leave()
            self.comparison = None
        for button in (self.ui.compareButton, self.ui.toggleButton, self.ui.tintButton):
            setChecked(button, False)
        self.ui.toggleButton.text = _("Show original")

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
                self._original(),
                self.result.volume,
                shown,
                self.result.generatedMask,
                self.onLayoutChanged,
                title=methodTitle(self.result.node),
                guides=LongAxisFiles.guides(self.result),
            )
            self._offer(shown)
            self.comparison.enter()
            slicer.app.processEvents()  # gives the new views their size
            self.comparison.fill()
            Views.centerThreeDViews()
            Nodes.showBrowser(Inputs.resolve(self.comparison.original).browser)
        except EXPECTED_ERRORS as error:
            self._giveUp(failureFromError(error))

    def _giveUp(self, reason: Failure) -> None:
        self.leave()
        self.problem = reason
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

    def _shortcut(self, key: str, callback: Callable[[], None]):
        """A key that works wherever the focus is, while planes are compared; text fields keep it for themselves."""
        shortcut = qt.QShortcut(qt.QKeySequence(key), self.ui.compareButton)
        shortcut.setContext(qt.Qt.ApplicationShortcut)
        shortcut.activated.connect(callback)
        shortcut.setEnabled(False)
        return shortcut

    def _keepToggles(self) -> None:
        """Let what is shown anew look as the pressed buttons say."""
        self.comparison.showOriginal(self.ui.toggleButton.checked)
        self.comparison.tintGenerated(self.ui.tintButton.checked)

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
            setChecked(action, plane in shown)


def setChecked(button, isChecked: bool) -> None:
    """Check a button or action without its handlers hearing of it."""
    blocked = button.blockSignals(True)
    button.setChecked(isChecked)
    button.blockSignals(blocked)
