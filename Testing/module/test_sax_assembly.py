"""One stack from slices that were loaded one by one, and what keeps them from being one."""

from __future__ import annotations

import hearts
import numpy as np
import pytest
import slicer
from calid.stack import Stack
from CaLIDReconstructLib import Inputs, Nodes, SaxAssembly
from CaLIDReconstructLib.Messages import ModuleError


def loadSlices(stack: Stack, order: list[int]) -> list:
    """Each slice as a volume or cine of its own, in any order, with the thickness DICOM states and not the gap."""
    nodes = []
    for index in order:
        affine = stack.slice_affine(index)
        affine[:3, 2] *= 0.6
        single = Stack(stack.voxels[:, index : index + 1], affine, stack.frame_times_ms)
        nodes.append(Nodes.addStack(single, f"series {index}")[0])
    return nodes


def shuffled(stack: Stack) -> list[int]:
    return list(np.random.default_rng(1).permutation(stack.num_slices))


@pytest.mark.parametrize("frames", [1, 3])
def test_loose_slices_become_the_stack_they_came_from(frames):
    stack = hearts.picture(frames)
    loadSlices(stack, shuffled(stack))
    (group,) = SaxAssembly.findGroups()
    made = Inputs.readStack(Inputs.resolve(SaxAssembly.assemble(group)))
    corners = np.array([[0, 0, 0], [9, 0, 0], [0, 7, 0], [3, 2, stack.num_slices - 1]])
    points = stack.to_lps(corners)
    indices = np.rint(made.to_index(points)).astype(int)
    assert np.allclose(made.to_lps(indices), points, atol=1e-3)
    for (x, y, z), (i, j, k) in zip(corners, indices, strict=True):
        assert np.array_equal(made.voxels[:, k, j, i], stack.voxels[:, z, y, x])
    assert np.allclose(made.frame_times_ms, stack.frame_times_ms)


def test_long_axis_images_and_whole_stacks_are_left_out():
    stack = hearts.picture()
    loadSlices(stack, list(range(stack.num_slices)))
    Nodes.addStack(hearts.longAxis(stack, np.linalg.qr(stack.directions_lps)[0]), "LAX")
    Nodes.addStack(stack, "whole")
    (group,) = SaxAssembly.findGroups()
    assert len(group.slices) == stack.num_slices
    assert {chosen.name for chosen in group.slices} == {f"series {index}" for index in range(stack.num_slices)}


def test_a_missing_slice_is_named_with_its_neighbors():
    stack = hearts.picture()
    order = [index for index in range(stack.num_slices) if index != 3]
    loadSlices(stack, order)
    (group,) = SaxAssembly.findGroups()
    before = hearts.nodeIds()
    with pytest.raises(ModuleError) as caught:
        SaxAssembly.assemble(group)
    assert caught.value.failure.code == "missing-slice"
    assert "series 2" in caught.value.failure.message
    assert "series 4" in caught.value.failure.message
    assert hearts.nodeIds() == before


def test_slices_with_different_numbers_of_frames_are_refused():
    stack = hearts.picture(4)
    loadSlices(stack, list(range(stack.num_slices - 1)))
    loadSlices(stack.frames(0, 3), [stack.num_slices - 1])
    (group,) = SaxAssembly.findGroups()
    with pytest.raises(ModuleError) as caught:
        SaxAssembly.assemble(group)
    assert caught.value.failure.text()


def test_the_label_says_what_a_group_is():
    stack = hearts.picture(3)
    loadSlices(stack, list(range(stack.num_slices)))
    label = SaxAssembly.findGroups()[0].label()
    assert f"{stack.num_slices} slices" in label
    assert "3 frames" in label
    assert "10.0 mm" in label


def test_the_slices_stay_as_they_are():
    stack = hearts.picture()
    nodes = loadSlices(stack, list(range(stack.num_slices)))
    SaxAssembly.assemble(SaxAssembly.findGroups()[0])
    for index, node in enumerate(nodes):
        assert np.array_equal(slicer.util.arrayFromVolume(node)[0], stack.voxels[0, index])


def putUnder(nodes: list, *, shift_mm: float = 40.0):
    """A new transform above nodes."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = np.eye(4)
    matrix[0, 3] = shift_mm
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    for node in nodes:
        node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


@pytest.mark.parametrize("frames", [1, 2])
def test_the_stack_lies_under_the_transform_of_its_slices(frames):
    stack = hearts.picture(frames)
    transform = putUnder(loadSlices(stack, shuffled(stack)))
    made = SaxAssembly.assemble(SaxAssembly.findGroups()[0])
    assert made.GetTransformNodeID() == transform.GetID()
    if frames > 1:
        Inputs.resolve(made).browser.SetSelectedItemNumber(1)
        assert made.GetTransformNodeID() == transform.GetID()


def test_slices_under_different_transforms_are_refused_by_name():
    stack = hearts.picture()
    nodes = loadSlices(stack, list(range(stack.num_slices)))
    putUnder(nodes[-1:])
    (group,) = SaxAssembly.findGroups()
    before = hearts.nodeIds()
    with pytest.raises(ModuleError) as caught:
        SaxAssembly.assemble(group)
    assert caught.value.failure.code == "mixed-transforms"
    assert f"series {stack.num_slices - 1}" in caught.value.failure.message
    assert caught.value.failure.remedy
    assert hearts.nodeIds() == before
