"""What a finished run made: kept on one node of the scene, and found again there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import slicer
from calid.stack import Stack

from .Figures import FigureNodes
from .Results import RESULT
from .Segmentations import readLabels
from .Transaction import Transaction, isHelper


class _Part:
    """A node that belongs to a result, or None: a node reference of the node that stands for the result."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __get__(self, result: RunResult, _owner: type):
        return result.node.GetNodeReference(self.role)

    def __set__(self, result: RunResult, node) -> None:
        result.node.SetNodeReferenceID(self.role, node.GetID())


class RunResult:
    """What a run made. All of it is kept on one node of the scene, so it is saved, loaded and found again with it.

    Args:
        node: the node that stands for the result: the sequence of a cine, else the volume.
    """

    MADE = "CaLID.Made"
    VIEW = "CaLID.View"

    input = _Part("CaLID.Input")
    generatedMask = _Part("CaLID.GeneratedMask")
    uncertainty = _Part("CaLID.Uncertainty")
    segmentation = _Part("CaLID.Segmentation")
    functionTable = _Part("CaLID.FunctionTable")
    functionChart = _Part("CaLID.FunctionChart")
    segmentTable = _Part("CaLID.SegmentTable")

    def __init__(self, node) -> None:
        self.node = node

    @property
    def sequence(self):
        """The node of a cine; None for a volume."""
        return self.node if self.node.IsA("vtkMRMLSequenceNode") else None

    @property
    def volume(self):
        """The node shown in slice views; None for a cine that nothing plays any more."""
        if self.sequence is None:
            return self.node
        browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(self.sequence)
        return browser.GetProxyNode(self.sequence) if browser is not None else None

    @property
    def labels(self) -> Stack | None:
        """The segmentation of all frames on the result's grid; None without one."""
        return readLabels(self.segmentation, self.volume) if self.segmentation is not None else None

    @property
    def views(self) -> list:
        """The volume nodes of the long-axis images that the run was given, in its order; None for one that is gone."""
        count = int(self.node.GetAttribute(self.VIEW) or 0)
        # A role for each: references of one role close up when a node leaves the scene.
        return [self.node.GetNodeReference(f"{self.VIEW}{index}") for index in range(count)]

    @views.setter
    def views(self, nodes: Sequence) -> None:
        self.node.SetAttribute(self.VIEW, str(len(nodes)))
        for index, node in enumerate(nodes):
            self.node.SetNodeReferenceID(f"{self.VIEW}{index}", node.GetID())

    @property
    def functionSummary(self) -> str:
        """The figures of the ventricles in words; empty without them."""
        return self.functionTable.GetDescription() if self.functionTable is not None else ""

    @property
    def warnings(self) -> list[str]:
        """What the run had to say beside its result."""
        return json.loads(self.node.GetAttribute(RESULT) or "[]")

    @property
    def nodes(self) -> list:
        """Every node that the run added, without display and storage nodes."""
        count = self.node.GetNumberOfNodeReferences(self.MADE)
        return list(filter(None, (self.node.GetNthNodeReference(self.MADE, index) for index in range(count))))

    def keep(self, made: Iterable, warnings: list[str]) -> None:
        """Note on the node that the result is complete, and what to take away with it."""
        others = [node for node in made if node is not self.node and not isHelper(node)]
        for node in (self.node, *others):
            self.node.AddNodeReferenceID(self.MADE, node.GetID())
        self.node.SetAttribute(RESULT, json.dumps(warnings))

    def keepFigures(self, nodes: FigureNodes, made: Iterable = ()) -> None:
        """Refer to the nodes of the figures, and note which of them are new."""
        for role in ("functionTable", "functionChart", "segmentTable"):
            if getattr(nodes, role) is not None:
                setattr(self, role, getattr(nodes, role))
        for node in made:
            if not isHelper(node):
                self.node.AddNodeReferenceID(self.MADE, node.GetID())

    def remove(self) -> None:
        """Take every node of the run out of the scene again."""
        Transaction(slicer.mrmlScene, self.nodes).rollback()


def resultsInScene() -> list[RunResult]:
    """The complete results, oldest first."""
    nodes = slicer.util.getNodesByClass("vtkMRMLStorableNode")
    # A copy of a result, made by the user, has its references too; removing it must not take the result along.
    return [RunResult(node) for node in nodes if node.GetNodeReference(RunResult.MADE) is node]


def resultsOf(node) -> list[RunResult]:
    """The complete results of an input, newest first; where it has none, those whose input is gone.

    Args:
        node: what `RunResult.input` names: the sequence of a cine, else the volume; None for no input.
    """
    newestFirst = resultsInScene()[::-1]
    made = [result for result in newestFirst if result.input is node]
    return made or [result for result in newestFirst if result.input is None]
