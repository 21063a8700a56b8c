"""Labels -> segmentation nodes with names, colors, terminology and surfaces, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support
from calid.geometry import lps_to_ras
from calid.labels import LABELS, MYOCARDIUM, Label
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Nodes
from .FrameTimes import beatMs, keepTimes
from .Results import ResultNodes, generatedSlices, noteProvenance, placeInStudy, readProvenance
from .Transaction import Transaction

TERMINOLOGY_CONTEXT = "Segmentation category and type - CaLID"
TERMINOLOGY_FILE = (
    Path(__file__).resolve().parents[1] / "Resources" / "SegmentationCategoryTypeModifier-CaLID.term.json"
)
LABELMAP, SURFACE = "Binary labelmap", "Closed surface"
SMOOTHING = 0.5  # where Slicer makes the surfaces (after editing, after loading a scene): nearest to the engine's look
WALL_OPACITY_3D = 0.4  # lets the LV cavity be seen through its wall


def title(label: Label) -> str:
    """The name of a segment in the user's language."""
    return {"LV": _("LV cavity"), "MYO": _("LV myocardium"), "RV": _("RV cavity")}[label.key]


def terminology(label: Label) -> str:
    """The entry in the form in which Slicer stores it on a segment, in our own context.

    Slicer's lists do not hold Myocardium, so an entry that named one of them would not be found.
    """
    category = "SCT^123037004^Anatomical Structure"
    kind = f"SCT^{label.snomed}^{label.meaning}"
    return f"{TERMINOLOGY_CONTEXT}~{category}~{kind}~^^~Anatomic codes - DICOM master list~^^~^^"


def color(label: Label) -> tuple[float, float, float]:
    """Red, green and blue from 0 to 1."""
    red, green, blue = label.rgb
    return (red / 255, green / 255, blue / 255)


def loadTerminology() -> None:
    """Make Slicer know our codes, Myocardium among them, which its own lists lack."""
    terminologies = getattr(slicer.modules, "terminologies", None)
    if terminologies is not None:
        terminologies.logic().LoadTerminologyFromFile(str(TERMINOLOGY_FILE))


def fillSegmentation(node, labels: Stack, frame: int = 0, surfaceFiles: Mapping[str, Path] | None = None) -> None:
    """Replace a segmentation node's segments by the labels of one frame; all share one labelmap.

    Args:
        node: segmentation node, in a scene or not.
        labels: uint8 stack, 1 LV cavity, 2 LV myocardium, 3 RV cavity.
        frame: index of the frame.
        surfaceFiles: label key -> file with the engine's closed surface in LPS; Slicer makes those that are not there.
    """
    image = _orientedImage(labels, frame)
    segmentation = node.GetSegmentation()
    segmentation.RemoveAllSegments()
    segmentation.SetSourceRepresentationName(LABELMAP)
    segmentation.SetConversionParameter("Smoothing factor", str(SMOOTHING))
    for label in LABELS:
        segment = slicer.vtkSegment()
        segment.SetName(title(label))
        segment.SetColor(color(label))
        segment.SetLabelValue(label.value)
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology(label))
        segment.AddRepresentation(LABELMAP, image)
        if surfaceFiles and label.key in surfaceFiles:
            segment.AddRepresentation(SURFACE, readSurface(surfaceFiles[label.key]))
        segmentation.AddSegment(segment, label.key)
    node.CreateClosedSurfaceRepresentation()


def readLabels(node, volume) -> Stack:
    """The labels of a result's segmentation as they are now, with what the user changed in them.

    Args:
        node: segmentation node; the shown one of a cine stands for all frames.
        volume: the result's volume node, which gives the grid and the marks of generated slices.
    """
    browser, sequence = _playing(node)
    frames = [node]
    if sequence is not None:
        frames = Nodes.items(sequence)
        frames[_shownFrame(browser, len(frames))] = node  # what the user has just changed may be in the shown node only
    shape = volume.GetImageData().GetDimensions()[::-1]
    voxels = np.zeros((len(frames), *shape), np.uint8)
    labels = Stack(
        voxels,
        Nodes.affineLps(volume),
        Nodes.frameTimesMs(sequence) if sequence is not None else np.zeros(1),
        generatedSlices(volume, shape[0]),
        beat_ms=beatMs(sequence) if sequence is not None else None,
        provenance=readProvenance(node),
    )
    grid = _orientedImage(labels, 0)
    for frame, segmentationNode in zip(voxels, frames, strict=True):
        _paint(frame, segmentationNode.GetSegmentation(), grid)
    return labels


def nodesOfFrame(node, frame: int) -> list:
    """The segmentation nodes that hold one frame: the item of the sequence, and the shown node where it shows it.

    Args:
        node: segmentation node; the shown one of a cine.
        frame: index; 0 for a static one.
    """
    browser, sequence = _playing(node)
    if sequence is None:
        return [node]
    isShown = _shownFrame(browser, sequence.GetNumberOfDataNodes()) == frame
    return [sequence.GetNthDataNode(frame), *([node] if isShown else [])]


def _playing(node) -> tuple:
    """(browser, sequence) of a shown segmentation; Nones for a static one."""
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(node)
    return browser, browser.GetSequenceNode(node) if browser is not None else None


def _shownFrame(browser, count: int) -> int:
    return min(max(0, browser.GetSelectedItemNumber()), count - 1)


def _paint(voxels: np.ndarray, segmentation, grid) -> None:
    """Write the segments' labels into (Z, Y, X) voxels that lie on the grid of an oriented image."""
    for label in LABELS:
        segment = segmentation.GetSegment(label.key)
        labelmap = segment.GetRepresentation(LABELMAP) if segment is not None else None
        if labelmap is None:
            continue  # the user deleted it
        image = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(labelmap, grid, image)
        found = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)
        voxels[found == segment.GetLabelValue()] = label.value


def readSurface(path: Path):
    """A surface of the engine (LPS mm) as polygons in RAS mm."""
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return halfTurned(reader.GetOutput())


def halfTurned(mesh):
    """A surface in RAS mm as one in LPS mm, or the other way round: a half turn, so triangles keep facing outwards."""
    halfTurn = vtk.vtkTransform()
    halfTurn.Scale(-1, -1, 1)
    turn = vtk.vtkTransformPolyDataFilter()
    turn.SetTransform(halfTurn)
    turn.SetInputData(mesh)
    turn.Update()
    return turn.GetOutput()


def _orientedImage(labels: Stack, frame: int):
    voxels = np.ascontiguousarray(labels.voxels[frame], np.uint8)
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*voxels.shape[::-1])
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    scalars[:] = voxels.ravel()
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(lps_to_ras(labels.affine)))
    return image


class SegmentationNodes:
    """The segmentation of one result: a node, or for a cine a sequence of them in the result's browser.

    `addFrame` is called once per frame, so that the application stays usable while surfaces are made.
    """

    def __init__(
        self, result: ResultNodes, labels: Stack, transaction: Transaction, surfacesFolder: Path | None = None
    ) -> None:
        self.result, self.labels, self.transaction = result, labels, transaction
        self.surfacesFolder = surfacesFolder
        self.name = f"{result.name} segmentation"
        self.sequence = None
        self.node = None

    def addFrame(self, frame: int) -> None:
        """Make the segmentation of one frame."""
        with self.transaction.recording():
            if self.result.isCine:
                self._addToSequence(frame)
            else:
                self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", self.name)
                self._fill(self.node, frame)
                self._prepare(self.node)

    def _fill(self, node, frame: int) -> None:
        files = {}
        if self.surfacesFolder is not None:
            files = {path.stem.split("-")[1]: path for path in self.surfacesFolder.glob(f"frame{frame:04d}-*.vtp")}
        fillSegmentation(node, self.labels, frame, files)
        noteProvenance(node, self.labels.provenance)

    def finish(self) -> None:
        """Show the frame that the browser shows."""
        if self.sequence is not None:
            noteProvenance(self.sequence, self.labels.provenance)
            slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(self.result.browser)

    def _addToSequence(self, frame: int) -> None:
        scene, browser = slicer.mrmlScene, self.result.browser
        if self.sequence is None:
            self.sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(self.name))
            keepTimes(self.result.sequence, self.sequence)
        item = slicer.vtkMRMLSegmentationNode()
        item.SetName(self.name)
        self._fill(item, frame)
        self.sequence.SetDataNodeAtValue(item, self.result.sequence.GetNthIndexValue(frame))
        if self.node is None:
            browser.AddSynchronizedSequenceNode(self.sequence)
            browser.SetOverwriteProxyName(self.sequence, False)
            browser.SetSaveChanges(self.sequence, True)  # else contours that are changed are lost with the next frame
            self.node = browser.GetProxyNode(self.sequence) or browser.AddProxyNode(item, self.sequence)
            self.node.SetName(self.sequence.GetName())
            self._prepare(self.node)

    def _prepare(self, node) -> None:
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        # Another frame replaces all segments; how each is shown, also by the user's wish, would be lost with them.
        display.SetRemoveUnusedDisplayProperties(False)
        display.SetOpacity2DFill(0.25)
        display.SetSegmentOpacity3D(MYOCARDIUM.key, WALL_OPACITY_3D)
        noteProvenance(node, self.labels.provenance)
        node.SetAndObserveTransformNodeID(self.result.volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.result.volume)
        placeInStudy(node, self.result.volume)
