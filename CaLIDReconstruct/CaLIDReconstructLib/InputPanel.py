"""The panel's input part: which stack, why it can or cannot be used, and the ways to get one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import slicer
from calid.stack import Stack
from slicer.i18n import tr as _

from . import DemoCase, Inputs, MultiVolumes, SaxAssembly, Suitability, Views
from .Messages import Failure, ModuleError
from .Notices import Level, show

MOST_NODES = 30  # looked at to find an input
EXPLAINED = ("phases-as-slices", "multi-volume", "mixed-positions", "unsorted-frames", "not-a-cine")
"""Reasons against a node that its user would not guess: said even while nothing is chosen."""


@dataclass(frozen=True)
class Facts:
    """What is known of the chosen stack once it was read.

    Args:
        geometry: the stack's geometry; its voxels take no memory.
    """

    geometry: Stack

    @classmethod
    def of(cls, stack: Stack) -> Facts:
        """The facts of a stack that was read."""
        shape = stack.voxels.shape
        return cls(Stack(np.broadcast_to(np.uint8(0), shape), stack.affine, stack.frame_times_ms))


class InputPanel:
    """Finds, checks and describes the input.

    Args:
        ui: the named widgets.
        log: called with a level of `logging` and a line for the user's log.
        onChosen: onChosen(node) is called with the shown node of an input that a button made.
    """

    def __init__(self, ui, log: Callable[[str, str], None], onChosen: Callable[[object], None]) -> None:
        self.ui, self.log, self.onChosen = ui, log, onChosen
        self.parameters = None
        self.problem: Failure | None = None
        self.facts: Facts | None = None
        self.groups: list[SaxAssembly.Assemblable] = []
        self._checked: tuple | None = None
        self._unsuitable: dict[tuple, Failure] = {}
        self._doubtful: dict[tuple, str] = {}
        self._regionsSeen: set[str] = set()
        ui.sampleButton.clicked.connect(self.onSample)
        ui.assembleButton.clicked.connect(self.onAssemble)

    def setParameters(self, parameters) -> None:
        """Take another parameter node, or None; its input is looked at anew."""
        self.parameters, self._checked = parameters, None

    def forget(self) -> None:
        """Forget what was found in a scene that was closed."""
        self._regionsSeen.clear()
        self._unsuitable.clear()
        self._doubtful.clear()

    def settle(self) -> None:
        """Look at what the scene holds now."""
        self._chooseDefault()
        self._showGroups()

    # --- the chosen node ---

    def check(self) -> None:
        """Say whether the chosen node can be used; read again only after it was changed."""
        node = self.parameters.inputNode
        state = _state(node) if node is not None else ("", len(self._unsuitable), len(self._doubtful))
        if state == self._checked:
            return
        self._checked = state
        self.problem, self.facts, text, level, isCine = None, None, "", Level.INFO, False
        try:
            chosen = Inputs.resolve(node)
            isCine = chosen.isCine
            stack = Inputs.readStack(chosen)
            self.facts = Facts.of(stack)
            self.problem = Suitability.blockingFailure(stack, chosen.name)
            warnings = Suitability.warningTexts(stack) if self.problem is None else []
            text = "\n".join([_describe(stack), *warnings])
            level = Level.WARNING if warnings else Level.INFO
        except ModuleError as error:
            self.problem = error.failure
        if self.problem is not None:
            text, level = self.problem.text(), Level.ERROR
        if node is None:
            text, level = "\n".join([text, *self._hints()]), Level.INFO
        show(self.ui.inputLabel, text, level)
        for widget in (self.ui.framesLabel, self.ui.framesComboBox):
            widget.visible = isCine

    def prepareRegion(self) -> None:
        """Put a new, empty region around the middle of the stack."""
        region = self.parameters.region
        if region is None or region.GetID() in self._regionsSeen or self.problem is not None:
            return
        self._regionsSeen.add(region.GetID())
        if max(region.GetSize()) <= 0:
            chosen = Inputs.resolve(self.parameters.inputNode)
            Inputs.centerRegion(region, chosen.placed)

    # --- choosing by itself ---

    def _chooseDefault(self) -> None:
        """Choose the first node that looks like a short axis; what might be one is named, never chosen silently."""
        if self.parameters.inputNode is not None:
            return
        for node in _candidates():
            state = _state(node)
            if state in self._unsuitable or state in self._doubtful:
                continue
            try:
                chosen = Inputs.resolve(node)
                stack = Inputs.readStack(chosen)
                reason = Suitability.blockingFailure(stack, chosen.name)
            except ModuleError as error:
                reason = error.failure
            if reason is not None:
                self._unsuitable[state] = reason
            elif Suitability.alignedPlane(stack):
                self._doubtful[state] = chosen.name
            else:
                self.parameters.inputNode = node
                return

    def _hints(self) -> list[str]:
        """What is in the scene and was not chosen, and why."""
        present = {_state(node) for node in _candidates()}
        reasons = [self._unsuitable[state] for state in self._unsuitable if state in present]
        hints = [reason.text() for reason in reasons if reason.code in EXPLAINED]
        doubtful = _("'{name}' has axial, sagittal or coronal slices: choose it if it is a short axis all the same.")
        hints += [doubtful.format(name=name) for state, name in self._doubtful.items() if state in present]
        return list(dict.fromkeys(hints))[:3]

    # --- making one ---

    def _showGroups(self) -> None:
        shown, self.groups = [group.label() for group in self.groups], SaxAssembly.findGroups()
        labels = [group.label() for group in self.groups]
        if labels != shown:
            self.ui.groupComboBox.clear()
            self.ui.groupComboBox.addItems(labels)
        for widget in (self.ui.assembleLabel, self.ui.assembleRow):
            widget.visible = bool(self.groups)

    def onAssemble(self) -> None:
        """Make one stack of the chosen group and take it as the input."""
        try:
            node = SaxAssembly.assemble(self.groups[self.ui.groupComboBox.currentIndex])
        except ModuleError as error:
            show(self.ui.inputLabel, error.failure.text(), Level.ERROR)
            self.log("error", error.failure.text())
            return
        self.choose(node)

    def onSample(self) -> None:
        """Load the bundled case and choose its cine."""
        self.choose(DemoCase.load().sax)

    def choose(self, node) -> None:
        """Take a node as the input and show it."""
        self.parameters.inputNode = node
        self.onChosen(node)
        Views.showVolume(node)


def _candidates() -> list:
    nodes = [
        *slicer.util.getNodesByClass("vtkMRMLSequenceNode"),
        *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"),
        *(found.node for found in MultiVolumes.find()),
    ]
    return [node for node in dict.fromkeys(nodes) if not node.GetHideFromEditors()][:MOST_NODES]


def _state(node) -> tuple:
    """The same as long as the node was not changed."""
    return node.GetID(), node.GetMTime()


def _describe(stack: Stack) -> str:
    slices = _("{slices} slices, {spacing} mm apart").format(
        slices=stack.num_slices, spacing=f"{stack.spacing_mm[2]:.1f}"
    )
    return (
        slices
        if stack.num_frames == 1
        else _("{slices}, {frames} frames").format(slices=slices, frames=stack.num_frames)
    )
