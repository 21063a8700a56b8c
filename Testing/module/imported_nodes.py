"""Nodes exactly as Slicer's own DICOM importers make them: index names, units, values, attributes, names.

Written after MultiVolumeImporterPlugin.py (2026-07) and DICOMImageSequencePlugin.py, DICOMScalarVolumePlugin.py of
Slicer 5.13 (2026-08).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support
from calid.stack import Stack
from CaLIDReconstructLib import Nodes

UNITS = {
    "TriggerTime": "ms",
    "AcquisitionTime": "ms",
    "EchoTime": "ms",
    "FlipAngle": "degrees",
    "TemporalPositionIdentifier": "count",
    "CardiacCycle": "%",
    "DeltaStartTime": "sec",
}


def _multiVolumeAttributes(node, labels: Sequence[float], tag: str) -> None:
    node.SetAttribute("MultiVolume.FrameLabels", ",".join(str(label) for label in labels))
    node.SetAttribute("MultiVolume.FrameIdentifyingDICOMTagName", tag)
    node.SetAttribute("MultiVolume.NumberOfFrames", str(len(labels)))
    node.SetAttribute("MultiVolume.FrameIdentifyingDICOMTagUnits", UNITS[tag])
    node.SetAttribute("MultiVolume.FrameFileList", ",".join(f"/dicom/{index}.dcm" for index in range(len(labels))))
    node.SetAttribute("MultiVolume.DICOM.EchoTime", "1.4")
    node.SetAttribute("MultiVolume.DICOM.FlipAngle", "50")
    node.SetAttribute("MultiVolume.DICOM.RepetitionTime", "34.5")


def multiVolumeSequence(stack: Stack, labels: Sequence[float], tag: str = "TriggerTime", name: str = "601: SA cine"):
    """What MultiVolumeImporter loads as a volume sequence, its usual choice; returns (shown volume, sequence)."""
    scene = slicer.mrmlScene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(name))
    sequence.SetIndexName("")
    sequence.SetIndexUnit("")
    _multiVolumeAttributes(sequence, labels, tag)
    for frame in range(stack.num_frames):
        sequence.SetDataNodeAtValue(Nodes.dataNode(stack, f"{name} frame", frame), str(frame))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", scene.GenerateUniqueName(f"{name} browser"))
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSaveChanges(sequence, True)
    browser.SetOverwriteProxyName(sequence, True)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence), sequence


def multiVolume(stack: Stack, labels: Sequence[float], tag: str = "TriggerTime", name: str = "601: SA cine"):
    """What MultiVolumeImporter loads as a multi-volume: all frames are components of the voxels.

    vtkMRMLMultiVolumeNode belongs to an extension; it is a volume node like this one, with the same attributes.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", name)
    image = vtk.vtkImageData()
    image.SetDimensions(*stack.voxels.shape[:0:-1])
    components = np.ascontiguousarray(np.moveaxis(stack.voxels, 0, -1).reshape(-1, stack.num_frames))
    image.GetPointData().SetScalars(vtk.util.numpy_support.numpy_to_vtk(components, deep=True))
    node.SetAndObserveImageData(image)
    Nodes.setAffineLps(node, stack.affine)
    _multiVolumeAttributes(node, labels, tag)
    node.RemoveAttribute("MultiVolume.FrameFileList")
    return node


def imageSequence(
    images: Sequence[tuple[int, Stack, float | None]], name: str = "Philips MR SA cine", *, spacing_mm: float = 1.0
):
    """What DICOMImageSequencePlugin loads of one series: one item for each image, at its instance number.

    Args:
        images: (instance number, one slice in one frame, trigger time in ms or None) in any order.
        name: modality and descriptions.
        spacing_mm: what the reader of a single file takes for the distance of slices.
    """
    scene = slicer.mrmlScene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    sequence.SetName(name)
    sequence.SetIndexName("instance number")
    sequence.SetIndexUnit("")
    for number, image, time in sorted(images, key=lambda each: each[0]):
        affine = image.affine.copy()
        affine[:3, 2] *= spacing_mm / np.linalg.norm(affine[:3, 2])
        node = Nodes.dataNode(image.with_voxels(image.voxels, affine=affine), "Volume")
        node.SetAttribute("DICOM.instanceUIDs", f"1.2.3.{number}")
        if time is not None:
            node.SetAttribute("DICOM.triggerTime", f"{time:g}")
        sequence.SetDataNodeAtValue(node, str(number))
    browser = slicer.vtkMRMLSequenceBrowserNode()
    browser.SetName(scene.GenerateUniqueName(f"{name} browser"))
    scene.AddNode(browser)
    browser.AddSynchronizedSequenceNode(sequence)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence), sequence


def images(stack: Stack, times_ms: np.ndarray, numbering: str) -> list[tuple[int, Stack, float]]:
    """The (instance number, image, trigger time) of all images of a cine.

    Args:
        stack: (T, Z, Y, X).
        times_ms: (Z, T) trigger times.
        numbering: "slices" counts through the phases of one slice after the other, as GE does, "phases" through the
            slices of one phase after the other, as Philips may, "each" begins anew in every slice, as Siemens does.
    """
    made = []
    for frame in range(stack.num_frames):
        for index in range(stack.num_slices):
            number = {
                "slices": index * stack.num_frames + frame + 1,
                "phases": frame * stack.num_slices + index + 1,
                "each": frame + 1,
            }[numbering]
            voxels = stack.voxels[frame : frame + 1, index : index + 1]
            made.append((number, Stack(voxels, stack.slice_affine(index)), float(times_ms[index, frame])))
    return made


def scalarVolume(voxels: np.ndarray, affine: np.ndarray, name: str = "601: SA cine"):
    """What DICOMScalarVolumePlugin makes of a series: every image is a slice, whatever it shows."""
    node = Nodes.addVolume(Stack(voxels[None], affine), name)
    node.SetAttribute("DICOM.instanceUIDs", " ".join(f"1.2.3.{index + 1}" for index in range(len(voxels))))
    return node
