"""Our files as 3D Slicer's own storage nodes read them, and the other way round."""

from __future__ import annotations

import file_phantoms
import numpy as np
import pytest
import slicer
import vtk
from calid.images import dicom_out
from calid.images.files import read_stack, write_labels, write_stack
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from vtk.util.numpy_support import vtk_to_numpy


def ijkToLps(node) -> np.ndarray:
    """The (4, 4) affine of a volume node, in LPS by hand."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    values = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    return np.diag([-1, -1, 1, 1]) @ values


def voxelsOf(image) -> np.ndarray:
    """(Z, Y, X) voxels of a vtkImageData."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def readSequence(scene, path):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(sequence)
    return sequence


@pytest.mark.parametrize("suffix", [".seq.nrrd", ".nii.gz"])
def test_a_cine_is_a_volume_sequence_with_our_voxels_places_and_times(scene, tmp_path, suffix):
    stack = file_phantoms.noisy_stack((4, 5, 6, 10))
    write_stack(stack, tmp_path / f"cine{suffix}")
    sequence = readSequence(scene, tmp_path / f"cine{suffix}")
    assert sequence.GetNumberOfDataNodes() == 4
    for frame in range(4):
        node = sequence.GetNthDataNode(frame)
        np.testing.assert_array_equal(voxelsOf(node.GetImageData()), stack.voxels[frame])
        np.testing.assert_allclose(ijkToLps(node), stack.affine, atol=1e-4)
    times = [float(sequence.GetNthIndexValue(frame)) for frame in range(4)]
    if suffix == ".seq.nrrd":
        assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("time", "ms")
        np.testing.assert_allclose(times, stack.frame_times_ms)
    else:
        np.testing.assert_allclose(times, stack.frame_times_ms / 1000, atol=1e-6)


def test_a_volume_is_at_its_place_and_keeps_our_entries(scene, tmp_path):
    stack = file_phantoms.noisy_stack((1, 5, 6, 10)).noted(model="calid-2d")
    write_stack(stack, tmp_path / "a.nrrd")
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    storage = scene.AddNewNodeByClass("vtkMRMLNRRDStorageNode")
    storage.SetFileName(str(tmp_path / "a.nrrd"))
    assert storage.ReadData(node)
    np.testing.assert_array_equal(voxelsOf(node.GetImageData()), stack.voxels[0])
    np.testing.assert_allclose(ijkToLps(node), stack.affine, atol=1e-9)
    assert node.GetAttribute("calid_provenance") == '{"model": "calid-2d"}'


@pytest.mark.parametrize("frames", [1, 2])
def test_a_segmentation_has_names_colors_terminology_and_voxels(scene, tmp_path, frames):
    picture = file_phantoms.noisy_stack((frames, 5, 6, 10))
    labels = picture.with_voxels((picture.voxels % 4).astype(np.uint8))
    write_labels(labels, tmp_path / "a.seg.nrrd")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.ReadData(node)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 3 * frames
    names = ("Left ventricle", "LV myocardium", "Right ventricle")
    colors = ((204, 51, 47), (189, 178, 166), (52, 113, 196))
    for index in range(3 * frames):
        frame, value = divmod(index, 3)
        identifier = segmentation.GetNthSegmentID(index)
        segment = segmentation.GetSegment(identifier)
        name, color = names[value], colors[value]
        assert segment.GetName() == (name if frames == 1 else f"{name}, frame {frame + 1}")
        np.testing.assert_allclose(np.array(segment.GetColor()) * 255, color, atol=0.01)
        found = voxelsOf(binaryLabelmap(node, identifier))
        np.testing.assert_array_equal(found, labels.voxels[frame] == value + 1)
        tag = vtk.mutable("")
        assert segment.GetTag("TerminologyEntry", tag)
        assert ("87878005", "74281007", "53085002")[value] in str(tag)


def binaryLabelmap(node, identifier):
    """One segment's voxels over the whole extent of the segmentation."""
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(identifier, image)
    whole = slicer.vtkOrientedImageData()
    layer = node.GetSegmentation().GetSegment(identifier).GetRepresentation("Binary labelmap")
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(image, layer, whole)
    return whole


@pytest.mark.parametrize("unit", ["ms", "s"])
def test_a_sequence_that_slicer_writes_is_read_with_its_times(scene, tmp_path, unit):
    stack = file_phantoms.noisy_stack((4, 5, 6, 10))
    write_stack(stack, tmp_path / "in.seq.nrrd")
    sequence = readSequence(scene, tmp_path / "in.seq.nrrd")
    again = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    again.SetIndexName("time")
    again.SetIndexUnit(unit)
    for frame in range(1, 4):
        again.SetDataNodeAtValue(sequence.GetNthDataNode(frame), str(frame * (0.05 if unit == "s" else 50)))
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(tmp_path / "out.seq.nrrd"))
    assert storage.WriteData(again)
    back = read_stack(tmp_path / "out.seq.nrrd")
    np.testing.assert_array_equal(back.voxels, stack.voxels[1:])
    np.testing.assert_allclose(back.affine, stack.affine, atol=1e-6)
    np.testing.assert_allclose(back.frame_times_ms, [50, 100, 150])


def test_the_series_that_goes_back_into_the_hospital_is_a_volume_with_our_voxels_and_places(scene, tmp_path):
    """Read as the DICOM module's scalar volume plugin does it: the archetype reader over the files of one phase."""
    file_phantoms.write_stack(tmp_path / "in", file_phantoms.noisy_stack((2, 3, 18, 24), step_ms=81.37))
    sparse = read_stack(tmp_path / "in")
    dense = upsample(sparse, Settings(factor=4, method="linear")).stack
    sources = dicom_out.find_sources(tmp_path / "in", sparse).of_dense(sparse, dense, 0)
    dicom_out.write_series(dense, sources, tmp_path / "out")
    for frame in range(2):
        first, *others = sorted(map(str, (tmp_path / "out").glob(f"frame{frame:03d}-*.dcm")))
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetSingleFile(False)
        storage.SetFileName(first)
        for name in (first, *others):
            storage.AddFileName(name)
        assert storage.ReadData(node)
        voxels, affine = voxelsOf(node.GetImageData()), ijkToLps(node)
        if affine[:3, 2] @ dense.affine[:3, 2] < 0:  # Slicer may count slices from the other end
            voxels = voxels[::-1]
            affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, dense.num_slices - 1], [0, 0, 0, 1]])
        np.testing.assert_array_equal(voxels, dense.voxels[frame])
        corner = np.array([dense.voxels.shape[3], dense.voxels.shape[2], dense.num_slices, 1]) - [1, 1, 1, 0]
        for index in (np.array([0, 0, 0, 1]), corner):
            np.testing.assert_allclose(affine @ index, dense.affine @ index, atol=0.001)
