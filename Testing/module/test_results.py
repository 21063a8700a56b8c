"""The nodes of a result: what is made, where it goes, what is left of the input and of a run that failed."""

from __future__ import annotations

import json

import hearts
import numpy as np
import pytest
import slicer
import vtk
from CaLIDReconstructLib import Inputs, Nodes, Results
from CaLIDReconstructLib.Transaction import Transaction


def resultOf(node, frames: int, factor: int = 4):
    """A finished result for a node, with its transaction."""
    transaction = Transaction(slicer.mrmlScene)
    result = Results.ResultNodes(Inputs.resolve(node), "result", transaction, isCine=frames > 1)
    result.finish(hearts.dense(hearts.picture(frames), factor), {"factor": factor})
    return result, transaction


def test_a_result_lies_where_the_input_lies_in_millimeters():
    volume, _ = hearts.addPicture()
    result, _ = resultOf(volume, 1, factor=4)
    inputToRas, resultToRas = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(inputToRas)
    result.volume.GetIJKToRASMatrix(resultToRas)
    for column, row, index in ((0, 0, 0), (5, 7, 2), (63, 3, 4)):
        expected = inputToRas.MultiplyPoint((column, row, index, 1))
        assert np.allclose(resultToRas.MultiplyPoint((column, row, 4 * index, 1)), expected, atol=1e-6)


def test_the_input_is_untouched():
    volume, sequence = hearts.addPicture(frames=3)
    voxels = slicer.util.arrayFromVolume(volume).copy()
    attributes, name = tuple(sequence.GetAttributeNames()), volume.GetName()
    resultOf(volume, 3)
    assert np.array_equal(slicer.util.arrayFromVolume(volume), voxels)
    assert tuple(sequence.GetAttributeNames()) == attributes
    assert volume.GetName() == name
    assert sequence.GetNumberOfDataNodes() == 3


def test_window_and_level_are_the_inputs():
    volume, _ = hearts.addPicture()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(123, 77)
    display = resultOf(volume, 1)[0].volume.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel()) == (123, 77)
    assert not display.GetAutoWindowLevel()


def test_a_transform_above_the_input_lies_above_the_result(scene):
    volume, _ = hearts.addPicture()
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    assert resultOf(volume, 1)[0].volume.GetTransformNodeID() == transform.GetID()


def test_the_result_goes_into_the_study_of_the_input(scene):
    volume, _ = hearts.addPicture()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, volume)
    result, _ = resultOf(volume, 1)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result.volume)) == study


def test_a_cine_joins_the_browser_of_the_input_with_its_index_and_times():
    volume, sequence = hearts.addPicture(frames=4)
    browser = Inputs.resolve(volume).browser
    browser.SetSelectedItemNumber(2)
    result, _ = resultOf(volume, 4)
    assert browser.IsSynchronizedSequenceNode(result.sequence)
    assert browser.GetSelectedItemNumber() == 2
    assert result.sequence.GetIndexName() == sequence.GetIndexName()
    assert result.sequence.GetIndexUnit() == sequence.GetIndexUnit()
    values = [result.sequence.GetNthIndexValue(index) for index in range(4)]
    assert values == [sequence.GetNthIndexValue(index) for index in range(4)]


def test_the_result_follows_the_browser():
    volume, _ = hearts.addPicture(frames=3)
    result, _ = resultOf(volume, 3)
    stack = hearts.dense(hearts.picture(3), 4)
    for frame in (2, 0, 1):
        Inputs.resolve(volume).browser.SetSelectedItemNumber(frame)
        assert np.array_equal(slicer.util.arrayFromVolume(result.volume), stack.voxels[frame])


def test_frames_appear_as_they_finish_and_missing_ones_are_shown_as_nothing(scene):
    volume, _ = hearts.addPicture(frames=3)
    browser = Inputs.resolve(volume).browser
    result = Results.ResultNodes(Inputs.resolve(volume), "result", Transaction(scene), isCine=True)
    stack = hearts.dense(hearts.picture(3), 2)
    result.addFrame(1, stack.frame(1))
    assert result.sequence.GetNumberOfDataNodes() == 1
    assert result.volume.GetImageData() is None
    browser.SetSelectedItemNumber(1)
    assert np.array_equal(slicer.util.arrayFromVolume(result.volume), stack.voxels[1])
    result.addFrame(0, stack.frame(0))
    assert browser.GetSelectedItemNumber() == 1
    assert result.sequence.GetNumberOfDataNodes() == 2


def test_provenance_and_generated_slices_are_written_on_the_nodes():
    volume, _ = hearts.addPicture(frames=2)
    result, _ = resultOf(volume, 2, factor=2)
    for node in (result.sequence, result.volume):
        provenance = json.loads(node.GetAttribute(Results.PROVENANCE))
        assert provenance["steps"] == 8
        assert provenance["requested"] == {"factor": 2}
        marks = list(map(int, node.GetAttribute(Results.GENERATED).split(",")))
        assert marks[:3] == [1, 3, 5]
        assert node.GetAttribute(Results.SOURCE) == "SAX"


def test_the_mask_is_one_in_generated_slices_and_zero_in_acquired_ones():
    volume, _ = hearts.addPicture()
    result, _ = resultOf(volume, 1, factor=4)
    stack = hearts.dense(hearts.picture(), 4)
    mask = slicer.util.arrayFromVolume(result.addGeneratedMask(stack))
    assert mask[::4].max() == 0
    assert mask[[1, 2, 3, 5]].min() == 1


@pytest.mark.parametrize("frames", [1, 3])
def test_rollback_restores_the_scene(frames):
    volume, _ = hearts.addPicture(frames)
    browser = Inputs.resolve(volume).browser
    joined = browser.GetNumberOfSynchronizedSequenceNodes(True) if browser else 0
    before = hearts.nodeIds()
    result, transaction = resultOf(volume, frames)
    result.addGeneratedMask(hearts.dense(hearts.picture(frames), 4))
    assert hearts.nodeIds() > before
    transaction.rollback()
    assert hearts.nodeIds() == before
    assert not browser or browser.GetNumberOfSynchronizedSequenceNodes(True) == joined


def test_rollback_leaves_what_the_user_added_meanwhile(scene):
    volume, _ = hearts.addPicture()
    _, transaction = resultOf(volume, 1)
    users = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mine")
    transaction.rollback()
    assert scene.IsNodePresent(users)


def test_a_second_result_gets_a_name_of_its_own():
    volume, _ = hearts.addPicture()
    first, _ = resultOf(volume, 1)
    second, _ = resultOf(volume, 1)
    assert first.volume.GetName() != second.volume.GetName()


@pytest.mark.parametrize(
    ("name", "requested", "label"),
    [
        ("SAX CaLID+ x8", ("calid+", 8, "detail"), "SAX CaLID+ x8 (sharp)"),
        ("SAX CaLID+ x8_1", ("calid+", 8, "fidelity"), "SAX CaLID+ x8_1 (smooth)"),
        ("SAX CaLID isotropic", ("calid", "isotropic", "detail"), "SAX CaLID isotropic (sharp)"),
        ("SAX linear x4", ("linear", 4, "detail"), "SAX linear x4"),  # it has no samples, so no mode
        ("mine", ("calid+", 2, "fidelity"), "mine (CaLID+ x2, smooth)"),
        ("SAX CaLID+ x2", ("calid", 2, "detail"), "SAX CaLID+ x2 (CaLID x2, sharp)"),  # renamed to what it is not
    ],
)
def test_a_result_is_named_with_what_made_it(scene, name, requested, label):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    settings = dict(zip(("method", "factor", "mode"), requested, strict=True))
    Results.noteProvenance(node, {"requested": settings})
    assert Results.resultLabel(node) == label


def test_a_sequence_without_a_browser_gets_one():
    alone = hearts.addUnplayed(frames=2)
    result, _ = resultOf(alone, 2)
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(alone)
    assert browser.IsSynchronizedSequenceNode(result.sequence)
    assert Nodes.hasImage(result.volume)
