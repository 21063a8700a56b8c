"""Which nodes a run added to the scene, so that a run that fails or is cancelled leaves the scene as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import slicer
import vtk


class Transaction:
    """Remembers the nodes added inside `recording()`; `rollback()` removes exactly those.

    Nodes that the user adds meanwhile are not touched, because only the run's own calls are recorded.

    Args:
        scene: where the nodes are added.
        added: nodes that a finished run had added.
    """

    def __init__(self, scene, added: Iterable = ()) -> None:
        self.scene = scene
        self._added: list[str] = [node.GetID() for node in added]

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Every node that enters the scene during this block belongs to the transaction."""

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def onNodeAdded(_caller, _event, node) -> None:
            self._added.append(node.GetID())

        tag = self.scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, onNodeAdded)
        try:
            yield
        finally:
            self.scene.RemoveObserver(tag)

    def owns(self, nodeId: str) -> bool:
        """Whether the node of this ID was added."""
        return nodeId in self._added

    @property
    def nodes(self) -> list:
        """The added nodes that are still in the scene."""
        found = [self.scene.GetNodeByID(nodeId) for nodeId in self._added]
        return [node for node in found if node is not None]

    def rollback(self) -> None:
        """Remove every added node that is still there, latest first."""
        newestFirst = list(reversed(self.nodes))
        for node in newestFirst:
            _leaveBrowsers(node)
        # Display and storage nodes go last: a view that still shows their volume would make new ones.
        helpers = [helper for node in newestFirst for helper in _helpers(node)]
        for node in sorted([*newestFirst, *helpers], key=isHelper):
            if self.scene.IsNodePresent(node):
                removeWithItem(self.scene, node)
        self.forget()

    def forget(self) -> None:
        """Keep the nodes; the transaction no longer knows them."""
        self._added = []


def isHelper(node) -> bool:
    """True for a display or storage node, which means nothing without the node that it belongs to."""
    return bool(node.IsA("vtkMRMLDisplayNode") or node.IsA("vtkMRMLStorageNode"))


def _helpers(node) -> list:
    """A node's display and storage nodes; saving the scene makes storage nodes long after the run."""
    roles = ("display", "storage")
    found = [node.GetNthNodeReference(role, n) for role in roles for n in range(node.GetNumberOfNodeReferences(role))]
    return [helper for helper in found if helper is not None]


def _leaveBrowsers(node) -> None:
    """Take a sequence out of the browsers that play it, the user's own among them."""
    if node.IsA("vtkMRMLSequenceNode"):
        for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
            if browser.IsSynchronizedSequenceNodeID(node.GetID(), True):
                browser.RemoveSynchronizedSequenceNode(node.GetID())


def removeWithItem(scene, node) -> None:
    """Remove a node and its entry in the subject hierarchy, which the application removes by itself for most nodes."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not hierarchy else 0
    scene.RemoveNode(node)
    if item and hierarchy.GetItemByDataNode(node) == item:
        hierarchy.RemoveItem(item, False, False)
