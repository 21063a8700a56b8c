"""What the user chose: a volume or a cine, with its browser; whether it can be upsampled and why not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from calid.stack import Stack

from . import MultiVolumes, Nodes
from .Messages import ModuleError, failure


@dataclass(frozen=True)
class Input:
    """The chosen node and what belongs to it.

    Args:
        name: the name the user knows it by.
        volume: the node shown in slice views (the static volume, or the browser's proxy); None for a hidden sequence.
        sequence: the cine; None for a static volume.
        browser: the browser that plays the cine; None when nothing plays it.
    """

    name: str
    volume: object | None
    sequence: object | None = None
    browser: object | None = None

    @property
    def isCine(self) -> bool:
        """Whether there is more than one frame."""
        return self.sequence is not None and self.sequence.GetNumberOfDataNodes() > 1

    @property
    def frame(self) -> int:
        """The item shown now."""
        return max(0, self.browser.GetSelectedItemNumber()) if self.browser else 0

    @property
    def nodes(self) -> list:
        """The nodes without which a run makes no sense."""
        return [node for node in (self.sequence or self.volume,) if node is not None]

    @property
    def reference(self):
        """A volume node that has the geometry of the input."""
        return self.sequence.GetNthDataNode(0) if self.sequence is not None else self.volume

    @property
    def placed(self):
        """A volume node that lies where the input lies in the world: the shown one, else the first frame."""
        return self.volume or self.reference

    def regionInVoxels(self, region) -> list[int] | None:
        """See `regionInVoxels`, on the input's grid and under its transform."""
        return regionInVoxels(region, self.reference, self.placed.GetParentTransformNode())


def resolve(node) -> Input:
    """What belongs to a chosen volume or sequence node.

    Raises:
        ModuleError: no node, or one without an image.
    """
    if node is None:
        raise ModuleError(failure("no-input"))
    if MultiVolumes.isMultiVolume(node):
        raise ModuleError(failure("multi-volume", node.GetName()))
    if node.IsA("vtkMRMLSequenceNode"):
        return _fromSequence(node)
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(node)
    if browser is not None:
        return Input(browser.GetSequenceNode(node).GetName(), node, browser.GetSequenceNode(node), browser)
    if not Nodes.hasImage(node):
        raise ModuleError(failure("not-an-image", node.GetName()))
    return Input(node.GetName(), node)


def _fromSequence(sequence) -> Input:
    if sequence.GetNumberOfDataNodes() == 0 or not Nodes.hasImage(sequence.GetNthDataNode(0)):
        raise ModuleError(failure("not-an-image", sequence.GetName()))
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(sequence)
    return Input(sequence.GetName(), browser.GetProxyNode(sequence) if browser else None, sequence, browser)


def readStack(chosen: Input, *, allFrames: bool = True) -> Stack:
    """The chosen voxels: every frame of a cine, or the shown one."""
    if chosen.sequence is None:
        return Nodes.stackFromVolume(chosen.volume)
    stack = Nodes.stackFromSequence(chosen.sequence)
    return stack if allFrames else stack.frame(chosen.frame)


def regionInVoxels(region, volumeNode, transformNode) -> list[int] | None:
    """The in-plane voxel window around a markups ROI.

    Args:
        region: markups ROI node, or None.
        volumeNode: gives the voxel grid.
        transformNode: the transform above the input, or None.

    Returns:
        [first column, end column, first row, end row] within the image, or None when nothing is limited.
    """
    if region is None or min(region.GetSize()) <= 0:
        return None
    worldToLocal = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, transformNode, worldToLocal)
    corners = np.array([worldToLocal.TransformPoint(corner) for corner in _worldCorners(region)])
    rasToIjk = np.linalg.inv(Nodes.affineRas(volumeNode))
    indices = np.c_[corners, np.ones(8)] @ rasToIjk.T
    columns, rows, _ = volumeNode.GetImageData().GetDimensions()
    window = []
    for axis, count in ((0, columns), (1, rows)):
        low, high = np.floor(indices[:, axis].min() + 0.5), np.ceil(indices[:, axis].max() + 0.5)
        window += [int(np.clip(low, 0, count)), int(np.clip(high, 0, count))]
    return window if window[1] - window[0] >= 1 and window[3] - window[2] >= 1 else None


def _worldCorners(region) -> list:
    """The ROI's 8 corners in world RAS; its box may be turned, so its own axes are used, not its bounds."""
    objectToWorld = region.GetObjectToWorldMatrix()
    half = np.array(region.GetSize()) / 2
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return [objectToWorld.MultiplyPoint((*(half * sign), 1.0))[:3] for sign in signs]


def centerRegion(region, volumeNode, fraction: float = 0.6) -> None:
    """Give an empty ROI the volume's middle: `fraction` of the slice in plane, the whole stack through plane."""
    size = np.array(volumeNode.GetImageData().GetDimensions(), float)
    ijkToRas = Nodes.affineRas(volumeNode)
    spacing = np.linalg.norm(ijkToRas[:3, :3], axis=0)
    axes = np.eye(4)
    axes[:3, :3] = ijkToRas[:3, :3] / spacing
    axes[:3, 3] = ijkToRas[:3, :3] @ ((size - 1) / 2) + ijkToRas[:3, 3]
    region.SetSize(*(size * spacing * [fraction, fraction, 1.0]))
    region.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(axes))
    region.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
