"""The RAS door: MRML volumes and sequences <-> `Stack`.

A transform above a node is not part of its stack: the engine works in the node's own space and results are put under
the same transform, so that linear and non-linear transforms alike are respected.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from calid.geometry import lps_to_ras, ras_to_lps
from calid.stack import Stack
from slicer.i18n import tr as _

from .FrameTimes import GUESSED, NUMBERED, beatMs, frameTimes, noteBeat
from .Messages import ModuleError, failure

SAME_PLACE_MM = 1e-3


def affineRas(volumeNode) -> np.ndarray:
    """(4, 4) float64 (column, row, slice, 1) -> RAS mm of a volume node, without the transforms above it."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def affineLps(volumeNode) -> np.ndarray:
    """(4, 4) float64 (column, row, slice, 1) -> LPS mm of a volume node, without the transforms above it."""
    return ras_to_lps(affineRas(volumeNode))


def setAffineLps(volumeNode, affine: np.ndarray) -> None:
    """Give a volume node the geometry of a (4, 4) LPS affine."""
    volumeNode.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(lps_to_ras(affine)))


def hasImage(node) -> bool:
    """True for a scalar volume with voxels; color and vector images are not."""
    image = node.GetImageData() if node is not None and node.IsA("vtkMRMLScalarVolumeNode") else None
    return image is not None and image.GetNumberOfPoints() > 0 and image.GetNumberOfScalarComponents() == 1


def stackFromVolume(volumeNode) -> Stack:
    """A static stack of the volume's voxels (copied) in its own space."""
    if not hasImage(volumeNode):
        raise ModuleError(failure("not-an-image", volumeNode.GetName() if volumeNode else ""))
    voxels = np.array(slicer.util.arrayFromVolume(volumeNode))
    return Stack(voxels[None], affineLps(volumeNode))


def stackFromSequence(sequenceNode) -> Stack:
    """A cine stack of all items of a sequence of volumes, in item order.

    Raises:
        ModuleError: the items are no images, lie in several places, or are not the frames of a cine.
    """
    nodes = items(sequenceNode)
    if not nodes or not all(hasImage(node) for node in nodes):
        raise ModuleError(failure("not-an-image", sequenceNode.GetName()))
    times = frameTimes(sequenceNode)
    if times.differsBy:
        raise ModuleError(failure("not-a-cine", f"{sequenceNode.GetName()}: {times.differsBy}."))
    _requireOnePlace(sequenceNode.GetName(), nodes)
    if times.ms is not None and not times.areSorted:
        raise ModuleError(failure("unsorted-frames", sequenceNode.GetName()))
    voxels = np.stack([slicer.util.arrayFromVolume(node) for node in nodes])
    return Stack(
        voxels,
        affineLps(nodes[0]),
        frameTimesMs(sequenceNode),
        beat_ms=beatMs(sequenceNode),
        times_guess=times.guess if len(nodes) > 1 else "",
    )


def items(sequenceNode) -> list:
    """The data nodes of a sequence, in the order of their index."""
    return [sequenceNode.GetNthDataNode(index) for index in range(sequenceNode.GetNumberOfDataNodes())]


def _requireOnePlace(name: str, nodes: list) -> None:
    affine, shape = affineLps(nodes[0]), nodes[0].GetImageData().GetDimensions()
    away = [
        index
        for index, node in enumerate(nodes)
        if not np.allclose(affineLps(node), affine, atol=SAME_PLACE_MM) or node.GetImageData().GetDimensions() != shape
    ]
    if not away:
        return
    if all(node.GetImageData().GetDimensions()[2] == 1 for node in nodes):
        positions = len({tuple(np.round(affineLps(node)[:3, 3], 1)) for node in nodes})
        places = _("{name}: {count} images at {positions} places.")
        places = places.format(name=name, count=len(nodes), positions=positions)
        raise ModuleError(failure("mixed-positions", places))
    raise ModuleError(failure("frames-differ", f"{name}, 1 / {away[0] + 1}"))


def frameTimesMs(sequenceNode) -> np.ndarray:
    """(T,) the frames' times in milliseconds; where they are no increasing times, the frame numbers."""
    times = frameTimes(sequenceNode)
    return times.ms if times.areSorted else np.arange(sequenceNode.GetNumberOfDataNodes(), dtype=float)


def hasTimes(sequenceNode) -> bool:
    """True when it is known when the frames of the sequence were taken."""
    return frameTimes(sequenceNode).areSorted


def fillVolume(volumeNode, stack: Stack, frame: int = 0) -> None:
    """Put one frame's voxels and geometry into a volume node."""
    voxels = stack.voxels[frame]
    if voxels.dtype in (np.dtype(np.int64), np.dtype(np.uint64), np.dtype(bool)):
        voxels = voxels.astype(np.int32)  # Slicer refuses 64-bit integers
    elif voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    slicer.util.updateVolumeFromArray(volumeNode, np.ascontiguousarray(voxels))
    setAffineLps(volumeNode, stack.affine)


def addVolume(stack: Stack, name: str, *, frame: int = 0, nodeClass: str = "vtkMRMLScalarVolumeNode"):
    """A new volume node in the scene holding one frame."""
    node = slicer.mrmlScene.AddNewNodeByClass(nodeClass, slicer.mrmlScene.GenerateUniqueName(name))
    fillVolume(node, stack, frame)
    node.CreateDefaultDisplayNodes()
    return node


def addStack(stack: Stack, name: str):
    """A stack as new nodes: a volume, or for a cine a sequence with its own browser.

    Returns:
        (the node that shows it in slice views, the sequence node or None).
    """
    if stack.num_frames == 1:
        return addVolume(stack, name), None
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", slicer.mrmlScene.GenerateUniqueName(name))
    guess = stack.times_guess
    sequence.SetIndexName("frame" if guess == NUMBERED else "time")
    sequence.SetIndexUnit("" if guess == NUMBERED else "ms")
    sequence.SetAttribute(GUESSED, guess or None)
    noteBeat(sequence, stack.beat_ms)
    for frame, time_ms in enumerate(stack.frame_times_ms):
        sequence.SetDataNodeAtValue(dataNode(stack, name, frame), f"{time_ms:.6g}")
    browser = addBrowser(sequence)
    proxy = browser.GetProxyNode(sequence)
    proxy.CreateDefaultDisplayNodes()
    return proxy, sequence


def dataNode(stack: Stack, name: str, frame: int = 0, nodeClass: str = "vtkMRMLScalarVolumeNode"):
    """A volume node outside any scene, to be stored as an item of a sequence."""
    node = slicer.mrmlScene.CreateNodeByClass(nodeClass)
    node.UnRegister(None)
    node.SetName(name)
    fillVolume(node, stack, frame)
    return node


def addBrowser(sequence):
    """A new browser with this sequence as its first, showing the first item."""
    name = slicer.mrmlScene.GenerateUniqueName(f"{sequence.GetName()} browser")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", name)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(0)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    browser.SetOverwriteProxyName(sequence, False)
    browser.GetProxyNode(sequence).SetName(sequence.GetName())
    return browser


def showBrowser(browser) -> None:
    """Let the sequence toolbar play this browser: it is hidden at first, and keeps the browser that came first.

    Args:
        browser: sequence browser node; None for a static volume, which needs no toolbar.
    """
    # Without a main window the toolbar would open as a window of its own; MRML alone has none to show.
    show = getattr(slicer.modules.sequences, "showSequenceBrowser", None) if slicer.app.layoutManager() else None
    if show is not None and browser is not None:
        show(browser)
