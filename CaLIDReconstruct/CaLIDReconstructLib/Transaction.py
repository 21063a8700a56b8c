"""Which nodes a run added to the scene, so that a run that fails or is cancelled leaves the scene as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import slicer
import vtk


class Transaction:
    """Remembers the nodes added inside `recording()`; `rollback()` removes exactly those.

    Nodes that the user adds meanwhile are not touched, because only the run's own calls are recorded.
    """

    def __init__(self, scene) -> None:
        self.scene = scene
        self._added: list[str] = []
        self._joined: list[tuple[str, str]] = []

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

    def joined(self, browser, sequence) -> None:
        """Note that a sequence was added to a browser that is not ours."""
        self._joined.append((browser.GetID(), sequence.GetID()))

    def owns(self, nodeId: str) -> bool:
        return nodeId in self._added

    @property
    def nodes(self) -> list:
        """The added nodes that are still in the scene."""
        found = [self.scene.GetNodeByID(nodeId) for nodeId in self._added]
        return [node for node in found if node is not None]

    def rollback(self) -> None:
        """Remove every added node that is still there, latest first."""
        for browserId, sequenceId in self._joined:
            browser = self.scene.GetNodeByID(browserId)
            if browser is not None and browser.IsSynchronizedSequenceNodeID(sequenceId, True):
                browser.RemoveSynchronizedSequenceNode(sequenceId)
        # Display and storage nodes go last: a view that still shows their volume would make new ones.
        newestFirst = list(reversed(self.nodes))
        for node in sorted(newestFirst, key=_isHelper):
            if self.scene.IsNodePresent(node):
                removeWithItem(self.scene, node)
        self.forget()

    def forget(self) -> None:
        """Keep the nodes; the transaction no longer knows them."""
        self._added, self._joined = [], []


def _isHelper(node) -> bool:
    return bool(node.IsA("vtkMRMLDisplayNode") or node.IsA("vtkMRMLStorageNode"))


def removeWithItem(scene, node) -> None:
    """Remove a node and its entry in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not hierarchy else 0
    scene.RemoveNode(node)
    if item:
        hierarchy.RemoveItem(item, False, False)
