"""What the user chose: found, checked, and refused with a reason; the region of interest in voxels."""

from __future__ import annotations

import hearts
import numpy as np
import phantoms
import pytest
import slicer
import vtk
from calid.stack import Stack
from CaLIDReconstructLib import Inputs, Nodes, Suitability
from CaLIDReconstructLib.Messages import ModuleError


def test_the_shown_volume_and_the_sequence_are_the_same_cine():
    volume, sequence = hearts.addPicture(frames=3)
    assert Inputs.resolve(volume) == Inputs.resolve(sequence)
    assert Inputs.resolve(volume).isCine


def test_the_shown_frame_alone_can_be_read():
    volume, _ = hearts.addPicture(frames=3)
    chosen = Inputs.resolve(volume)
    chosen.browser.SetSelectedItemNumber(2)
    stack = Inputs.readStack(chosen, allFrames=False)
    assert stack.num_frames == 1
    assert np.array_equal(stack.voxels[0], hearts.picture(3).voxels[2])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: None, "no-input"),
        (lambda: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"), "not-an-image"),
        (lambda: slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode"), "not-an-image"),
    ],
)
def test_what_is_no_image_is_refused_in_words(make, code):
    with pytest.raises(ModuleError) as caught:
        Inputs.resolve(make())
    assert caught.value.failure.code == code
    assert caught.value.failure.title


def test_a_single_slice_is_refused_with_the_engines_reason():
    stack = hearts.picture()
    single = Stack(stack.voxels[:, :1], stack.affine)
    reason = Suitability.blockingFailure(single, "LAX")
    assert reason.code == "one-slice"
    assert "LAX" in reason.text()


def test_a_heart_is_not_refused():
    assert Suitability.blockingFailure(hearts.picture(), "SAX") is None


def boxAround(window: list[int], stack: Stack, transform=None):
    """A markups ROI whose axes are the stack's and that holds exactly these columns and rows."""
    x0, x1, y0, y1 = window
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    center = stack.to_lps(np.array([(x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, (stack.num_slices - 1) / 2]))
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([-1, -1, 1]) @ stack.directions_lps
    matrix[:3, 3] = center * [-1, -1, 1]
    size = np.array([x1 - x0, y1 - y0, stack.num_slices]) * stack.spacing_mm - 1e-6
    region.SetSize(*size)
    region.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    if transform is not None:
        region.SetAndObserveTransformNodeID(transform.GetID())
    return region


def test_a_region_becomes_the_voxels_inside_it():
    stack = hearts.picture()
    volume = Nodes.addVolume(stack, "SAX")
    region = boxAround([10, 31, 4, 40], stack)
    assert Inputs.regionInVoxels(region, volume, None) == [10, 31, 4, 40]


def test_a_region_is_understood_under_a_transform_above_the_input(scene):
    stack = hearts.picture()
    volume = Nodes.addVolume(stack, "SAX")
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[:3, :3] = phantoms.rotation(9)
    matrix[:3, 3] = [50, -20, 10]
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    region = boxAround([10, 31, 4, 40], stack, transform)
    assert Inputs.regionInVoxels(region, volume, volume.GetParentTransformNode()) == [10, 31, 4, 40]


def test_a_region_beyond_the_image_is_cut_to_it_and_one_outside_is_none():
    stack = hearts.picture()
    volume = Nodes.addVolume(stack, "SAX")
    rows, columns = stack.voxels.shape[2:]
    assert Inputs.regionInVoxels(boxAround([-20, 12, -5, rows + 9], stack), volume, None) == [0, 12, 0, rows]
    assert Inputs.regionInVoxels(boxAround([columns + 5, columns + 9, 0, 4], stack), volume, None) is None


def test_an_empty_region_is_put_around_the_middle_of_the_stack(scene):
    volume, _ = hearts.addPicture()
    region = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    Inputs.centerRegion(region, volume, fraction=0.5)
    columns, rows, _ = volume.GetImageData().GetDimensions()
    x0, x1, y0, y1 = Inputs.regionInVoxels(region, volume, None)
    assert abs((x1 - x0) - columns / 2) <= 1
    assert abs((y1 - y0) - rows / 2) <= 1
    assert abs((x0 + x1) - columns) <= 1
    assert abs((y0 + y1) - rows) <= 1


def test_color_images_are_no_input(scene):
    node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    assert not Nodes.hasImage(node)
