"""The RAS door: volumes and sequences to stacks and back, compared in millimeters on an oblique, odd-shaped phantom."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
import slicer
import vtk
from calid.stack import Stack
from CaLIDReconstructLib import Nodes
from CaLIDReconstructLib.Messages import ModuleError


def cine(frames: int = 3, seed: int = 5) -> Stack:
    """A random oblique, non-square, even-sized, off-center cine."""
    rng = np.random.default_rng(seed)
    matrix = phantoms.affine((1.3, 1.7, 9.0), phantoms.rotation(seed), np.array([-31.0, 12.5, 88.0]))
    voxels = rng.integers(0, 4000, (frames, 4, 18, 26)).astype(np.int16)
    return Stack(voxels, matrix, np.arange(frames) * 37.5)


def test_a_volume_comes_back_with_the_same_voxels_and_place():
    stack = cine(1)
    back = Nodes.stackFromVolume(Nodes.addVolume(stack, "volume"))
    assert np.array_equal(back.voxels, stack.voxels)
    assert np.allclose(back.affine, stack.affine, atol=1e-9)


def test_a_voxel_lies_where_slicer_itself_says_it_does():
    stack = cine(1)
    node = Nodes.addVolume(stack, "volume")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    ras = np.array(matrix.MultiplyPoint((25, 3, 2, 1))[:3])
    assert np.allclose(ras * [-1, -1, 1], stack.to_lps(np.array([25, 3, 2])), atol=1e-6)
    assert node.GetImageData().GetScalarComponentAsDouble(25, 3, 2, 0) == stack.voxels[0, 2, 3, 25]


def test_a_cine_comes_back_with_its_frames_times_and_place():
    stack = cine(4)
    proxy, sequence = Nodes.addStack(stack, "cine")
    back = Nodes.stackFromSequence(sequence)
    assert np.array_equal(back.voxels, stack.voxels)
    assert np.allclose(back.frame_times_ms, stack.frame_times_ms)
    assert np.allclose(back.affine, stack.affine, atol=1e-9)
    assert np.array_equal(slicer.util.arrayFromVolume(proxy), stack.voxels[0])


@pytest.mark.parametrize(("unit", "values", "expected"), [("s", ("0", "0.04"), (0, 40)), ("", ("3", "5"), (0, 1))])
def test_frame_times_are_read_in_the_unit_of_the_sequence(scene, unit, values, expected):
    _, sequence = Nodes.addStack(cine(2), "cine")
    other = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "other")
    other.SetIndexUnit(unit)
    for value in values:
        other.SetDataNodeAtValue(sequence.GetNthDataNode(0), value)
    assert tuple(Nodes.frameTimesMs(other)) == expected


def test_frames_in_different_places_are_refused(scene):
    first, second = cine(1, seed=1), cine(1, seed=2)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "moving")
    sequence.SetDataNodeAtValue(Nodes.dataNode(first, "a"), "0")
    sequence.SetDataNodeAtValue(Nodes.dataNode(second, "b"), "1")
    with pytest.raises(ModuleError) as caught:
        Nodes.stackFromSequence(sequence)
    assert caught.value.failure.code == "frames-differ"


def test_reading_a_stack_does_not_share_memory_with_the_scene():
    node = Nodes.addVolume(cine(1), "volume")
    stack = Nodes.stackFromVolume(node)
    before = stack.voxels.copy()
    slicer.util.arrayFromVolume(node)[:] = 0
    assert np.array_equal(stack.voxels, before)


def test_sixty_four_bit_integers_are_taken():
    stack = cine(1)
    node = Nodes.addVolume(stack.with_voxels(stack.voxels.astype(np.int64)), "volume")
    assert np.array_equal(slicer.util.arrayFromVolume(node), stack.voxels[0])
