"""The nodes of a result: the upsampled volume or cine, the mask of generated slices, what made them, where they go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import slicer
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Nodes
from .FrameTimes import keepTimes
from .Inputs import Input
from .Transaction import Transaction

PROVENANCE = "CaLID.Provenance"
GENERATED = "CaLID.GeneratedSlices"
SOURCE = "CaLID.Source"
LICENSE = "CaLID.License"
RESULT = "CaLID.Result"
METHOD_TITLES = {"calid+": "CaLID+", "calid": "CaLID", "linear": "linear"}
GENERATED_COLOR = (0.30, 0.75, 0.95)


def resultName(chosen: Input, method: str, factor: int | str) -> str:
    """Such as "SAX CaLID+ x8"."""
    return f"{chosen.name} {_title(method, factor)}"


def resultLabel(node) -> str:
    """A result's name and what made it, such as "SAX CaLID+ x8 (sharp)" or "mine (CaLID+ x8, smooth)".

    Args:
        node: the node that stands for the result.
    """
    name, requested = node.GetName(), readProvenance(node)["requested"]
    title = _title(requested["method"], requested["factor"])
    mode = {"detail": _("sharp"), "fidelity": _("smooth")}.get(requested["mode"], requested["mode"])
    details = [title] if title not in name else []
    details += [mode] if requested["method"] != "linear" else []
    return f"{name} ({', '.join(details)})" if details else name


def methodTitle(node) -> str:
    """How the method that made a result is called: "CaLID+", "CaLID" or "linear"."""
    requested = readProvenance(node).get("requested", {})
    return METHOD_TITLES.get(requested.get("method"), _("upsampled"))


def _title(method: str, factor: int | str) -> str:
    title = METHOD_TITLES.get(method, method)
    return f"{title} {factor if factor == 'isotropic' else f'x{factor}'}"


class ResultNodes:
    """The growing result of one run.

    Args:
        chosen: the input; its nodes are read and never changed.
        name: base name of the new nodes.
        transaction: told about every node that is added.
        isCine: the result has the frames of the input's sequence.
    """

    def __init__(self, chosen: Input, name: str, transaction: Transaction, *, isCine: bool) -> None:
        self.chosen, self.name, self.transaction, self.isCine = chosen, name, transaction, isCine
        self.sequence = None
        self.browser = None
        self.volume = None

    @property
    def node(self):
        """The node that stands for the result: the sequence of a cine, else the volume."""
        return self.sequence if self.isCine else self.volume

    @property
    def needed(self) -> list:
        """The nodes without which the result cannot grow."""
        return [node for node in (self.volume, self.sequence, self.browser) if node is not None]

    def addFrame(self, frame: int, stack: Stack) -> None:
        """Add one finished frame of a cine; the frame the user looks at stays the same."""
        with self.transaction.recording():
            if self.sequence is None:
                self._startSequence()
            if not self._hasFrame(frame):
                item = Nodes.dataNode(stack, self.name)
                self.sequence.SetDataNodeAtValue(item, self.chosen.sequence.GetNthIndexValue(frame))
            if self.volume is None:
                self._startProxy()
            slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(self.browser)

    def finish(self, stack: Stack, requested: dict) -> None:
        """Complete the result from the engine's whole output and say on the nodes what made it.

        Args:
            stack: all frames, with the marks of generated slices and the engine's provenance.
            requested: the settings that were asked for, added to the provenance.
        """
        if self.isCine:
            for frame in range(stack.num_frames):
                self.addFrame(frame, stack.frame(frame))
            self._endSequence()
        else:
            with self.transaction.recording():
                self.volume = Nodes.addVolume(stack, self.name)
                self._place(self.volume)
        # The items of a sequence too: the shown node takes their attributes whenever another frame is chosen.
        items = [self.sequence.GetNthDataNode(frame) for frame in range(stack.num_frames)] if self.isCine else []
        for node in (*items, self.node, self.volume):
            self._note(node, stack, requested)

    def addGeneratedMask(self, stack: Stack):
        """A labelmap that is 1 in generated slices; returns the node."""
        mask = np.zeros((1, *stack.voxels.shape[1:]), np.uint8)
        mask[:, stack.generated] = 1
        name = f"{self.name} generated slices"
        with self.transaction.recording():
            node = Nodes.addVolume(Stack(mask, stack.affine), name, nodeClass="vtkMRMLLabelMapVolumeNode")
            node.GetDisplayNode().SetAndObserveColorNodeID(_addColors(f"{name} colors").GetID())
            self._place(node, copyDisplay=False)
        return node

    def addUncertainty(self, stack: Stack):
        """The spread between samples, as a volume, or as a sequence beside the result's."""
        name = f"{self.name} uncertainty"
        beside = ResultNodes(self.chosen, name, self.transaction, isCine=self.isCine)
        beside.finish(stack, {"content": "standard deviation of the samples"})
        display = beside.volume.GetDisplayNode()
        display.AutoWindowLevelOn()
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileInferno.txt")
        return beside.node

    def _hasFrame(self, frame: int) -> bool:
        value = self.chosen.sequence.GetNthIndexValue(frame)
        return self.sequence.GetItemNumberFromIndexValue(value, True) >= 0

    def _startSequence(self) -> None:
        source = self.chosen.sequence
        scene = slicer.mrmlScene
        self.sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(self.name))
        self.name = self.sequence.GetName()
        keepTimes(source, self.sequence)
        self.browser = self.chosen.browser or Nodes.addBrowser(source)

    def _startProxy(self) -> None:
        """Join the browser, which needs an item in the sequence to make the shown node of."""
        self.browser.AddSynchronizedSequenceNode(self.sequence)
        # A frame that is not made yet is shown as nothing, never as its neighbor.
        self.browser.SetMissingItemMode(self.sequence, self.browser.MissingItemSetToDefault)
        self.browser.SetOverwriteProxyName(self.sequence, False)
        first = self.sequence.GetNthDataNode(0)
        self.volume = self.browser.GetProxyNode(self.sequence) or self.browser.AddProxyNode(first, self.sequence)
        self.volume.SetName(self.name)
        self.volume.CreateDefaultDisplayNodes()
        self._place(self.volume)

    def _endSequence(self) -> None:
        self.browser.SetMissingItemMode(self.sequence, self.browser.MissingItemCreateFromPrevious)

    def _place(self, node, *, copyDisplay: bool = True) -> None:
        """Same transform, same study and same window and level as the input."""
        source = self.chosen.placed
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        placeInStudy(node, source)
        if copyDisplay:
            copyWindowLevel(source, node)

    def _note(self, node, stack: Stack, requested: dict) -> None:
        noteProvenance(node, {**stack.provenance, "requested": requested})
        node.SetAttribute(GENERATED, ",".join(map(str, np.flatnonzero(stack.generated))))
        node.SetAttribute(SOURCE, self.chosen.name)


def readResult(node) -> Stack:
    """A result's stack with its marks and provenance, as one would write it to a file.

    Args:
        node: volume or sequence node that a run made.
    """
    stack = Nodes.stackFromSequence(node) if node.IsA("vtkMRMLSequenceNode") else Nodes.stackFromVolume(node)
    return replace(stack, generated=generatedSlices(node, stack.num_slices), provenance=readProvenance(node))


def generatedSlices(node, count: int) -> np.ndarray:
    """(count,) bool: which of a result's slices are not acquired."""
    generated = np.zeros(count, bool)
    generated[[int(index) for index in (node.GetAttribute(GENERATED) or "").split(",") if index]] = True
    return generated


def noteProvenance(node, provenance: Mapping) -> None:
    """Write on a node what made it, and under which licenses its models' weights are."""
    node.SetAttribute(PROVENANCE, json.dumps(dict(provenance), sort_keys=True, default=str))
    licenses = [provenance.get("model_license"), provenance.get("segmenter", {}).get("license")]
    node.SetAttribute(LICENSE, ", ".join(filter(None, licenses)) or None)


def readProvenance(node) -> dict:
    """What made a node, as `noteProvenance` wrote it."""
    return json.loads(node.GetAttribute(PROVENANCE) or "{}")


def isGenerated(node) -> bool:
    """True for a volume or sequence that a run of this module made."""
    return bool(node.GetAttribute(PROVENANCE))


def placeInStudy(node, reference) -> None:
    """Put a node beside another in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    referenceItem = hierarchy.GetItemByDataNode(reference)
    if not referenceItem:
        return
    parent = hierarchy.GetItemParent(referenceItem)
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(parent, node)
    hierarchy.SetItemParent(item, parent)


def copyWindowLevel(source, target) -> None:
    """Show a volume as another one is shown; automatic values are copied as fixed ones, so that both look alike."""
    shown, display = source.GetDisplayNode(), target.GetDisplayNode()
    if shown is None or display is None or not shown.IsA("vtkMRMLScalarVolumeDisplayNode"):
        return
    display.AutoWindowLevelOff()
    display.SetWindowLevel(shown.GetWindow(), shown.GetLevel())
    display.SetAndObserveColorNodeID(shown.GetColorNodeID())
    display.SetInterpolate(shown.GetInterpolate())


def _addColors(name: str):
    """A mask's own color table, so that it goes with its result and no other mask loses its colors."""
    colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", name)
    colors.SetTypeToUser()
    colors.SetNumberOfColors(2)
    colors.SetColor(0, "acquired", 0.0, 0.0, 0.0, 0.0)
    colors.SetColor(1, "generated", *GENERATED_COLOR, 1.0)
    colors.SetHideFromEditors(True)
    return colors
