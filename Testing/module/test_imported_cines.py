"""Cines as Slicer's own importers load them: the right times in ms and positions in mm, or the right refusal."""

from __future__ import annotations

import hearts
import imported_nodes
import numpy as np
import phantoms
import pytest
import slicer
from calid.stack import Stack
from CaLIDReconstructLib import FrameTimes, Inputs, LaxLayout, MultiVolumes, Nodes, SaxAssembly, Suitability
from CaLIDReconstructLib.Messages import ModuleError

FRAMES = 5
STEP_MS = 34.5
TIMES_MS = STEP_MS * np.arange(FRAMES)


@pytest.fixture
def heart() -> Stack:
    return hearts.picture(FRAMES)


def varied(stack: Stack) -> np.ndarray:
    """(Z, T) trigger times: breath-holds differ a little."""
    return TIMES_MS * np.linspace(0.98, 1.02, stack.num_slices)[:, None]


def oneSlice(stack: Stack, index: int) -> Stack:
    return Stack(stack.voxels[:, index : index + 1], stack.slice_affine(index), stack.frame_times_ms)


def code(call) -> str:
    with pytest.raises(ModuleError) as caught:
        call()
    return caught.value.failure.code


# --- MultiVolumeImporter ---


def test_a_volume_sequence_has_the_trigger_times_of_its_frame_labels(heart):
    volume, sequence = imported_nodes.multiVolumeSequence(heart, TIMES_MS)
    for node in (volume, sequence):
        stack = Inputs.readStack(Inputs.resolve(node))
        assert np.allclose(stack.frame_times_ms, TIMES_MS)
        assert np.allclose(stack.affine, heart.affine)
        assert np.array_equal(stack.voxels, heart.voxels)
        assert Suitability.warningTexts(stack) == []
    assert Nodes.hasTimes(sequence)


@pytest.mark.parametrize(
    ("tag", "labels", "expected"),
    [
        ("AcquisitionTime", TIMES_MS, TIMES_MS),
        ("DeltaStartTime", TIMES_MS / 1000, TIMES_MS),
        ("TemporalPositionIdentifier", [1, 2, 3, 4, 5], None),
        ("CardiacCycle", [0, 20, 40, 60, 80], None),
    ],
)
def test_frame_labels_count_by_what_they_say_they_are(heart, tag, labels, expected):
    _, sequence = imported_nodes.multiVolumeSequence(heart, labels, tag)
    found = FrameTimes.frameTimes(sequence)
    if expected is None:
        assert found.ms is None
        assert "guessed" in Suitability.warningTexts(Nodes.stackFromSequence(sequence))[0]
    else:
        assert np.allclose(found.ms, expected)


@pytest.mark.parametrize("tag", ["EchoTime", "FlipAngle"])
def test_images_at_several_echoes_or_angles_are_no_cine(heart, tag):
    _, sequence = imported_nodes.multiVolumeSequence(heart, [1.5, 3, 4.5, 6, 7.5], tag)
    assert code(lambda: Nodes.stackFromSequence(sequence)) == "not-a-cine"


def test_a_multi_volume_is_explained_and_made_a_cine_by_assemble(heart):
    node = imported_nodes.multiVolume(heart, TIMES_MS)
    assert code(lambda: Inputs.resolve(node)) == "multi-volume"
    (group,) = SaxAssembly.findGroups()
    assert isinstance(group, MultiVolumes.MultiVolume)
    made = Inputs.readStack(Inputs.resolve(SaxAssembly.assemble(group)))
    assert np.array_equal(made.voxels, heart.voxels)
    assert np.allclose(made.affine, heart.affine)
    assert np.allclose(made.frame_times_ms, TIMES_MS)


# --- DICOMImageSequencePlugin ---


def test_siemens_series_of_one_slice_each_are_assembled_with_their_times(heart):
    times = varied(heart)
    for index in range(heart.num_slices):
        single = oneSlice(heart, index)
        imported_nodes.imageSequence(
            imported_nodes.images(single, times[index : index + 1], "each"), f"SIEMENS MR cine {index}"
        )
    assertAssembled(heart, times)


@pytest.mark.parametrize("numbering", ["slices", "phases"], ids=["GE", "Philips"])
def test_one_series_of_all_positions_and_phases_is_split(heart, numbering):
    times = varied(heart)
    volume, sequence = imported_nodes.imageSequence(imported_nodes.images(heart, times, numbering), spacing_mm=1.0)
    assert sequence.GetNumberOfDataNodes() == heart.num_slices * FRAMES
    for node in (volume, sequence):
        assert code(lambda node=node: Inputs.readStack(Inputs.resolve(node))) == "mixed-positions"
    assertAssembled(heart, times)


def assertAssembled(heart: Stack, times: np.ndarray) -> None:
    (group,) = SaxAssembly.findGroups()
    assert (len(group.slices), group.numFrames) == (heart.num_slices, FRAMES)
    made = Inputs.readStack(Inputs.resolve(SaxAssembly.assemble(group)))
    order = slice(None) if np.allclose(made.origin_lps, heart.origin_lps) else slice(None, None, -1)
    assert np.array_equal(made.voxels[:, order], heart.voxels)
    assert np.allclose(made.frame_times_ms, np.median(times, axis=0), atol=1e-3)
    positions = made.to_lps(np.array([[0, 0, index] for index in range(made.num_slices)]))[order]
    expected = heart.to_lps(np.array([[0, 0, index] for index in range(heart.num_slices)]))
    assert np.allclose(positions, expected, atol=1e-3)


def test_numbers_that_run_on_from_slice_to_slice_are_no_times(heart):
    """Without trigger times each slice counts its own frames, and the user is told that times are guessed."""
    for index in range(heart.num_slices):
        single = oneSlice(heart, index)
        running = [(100 * index + number, image, None) for number, image, _ in numbered(single)]
        imported_nodes.imageSequence(running, f"cine {index}")
    (group,) = SaxAssembly.findGroups()
    stack = group.stack()
    assert np.array_equal(stack.frame_times_ms, np.arange(FRAMES))
    assert any("guessed" in text for text in Suitability.warningTexts(stack))
    made = SaxAssembly.assemble(group)
    assert not Nodes.hasTimes(Inputs.resolve(made).sequence)
    assert any("guessed" in text for text in Suitability.warningTexts(Inputs.readStack(Inputs.resolve(made))))


def numbered(single: Stack) -> list:
    return imported_nodes.images(single, np.zeros((1, FRAMES)), "each")


def test_one_slice_without_times_takes_those_of_the_others(heart):
    times = varied(heart)
    for index in range(heart.num_slices):
        single = oneSlice(heart, index)
        images = imported_nodes.images(single, times[index : index + 1], "each")
        if index == 3:
            images = [(number, image, None) for number, image, _ in images]
        imported_nodes.imageSequence(images, f"cine {index}")
    (group,) = SaxAssembly.findGroups()
    assert np.allclose(group.stack().frame_times_ms, TIMES_MS, atol=1)


def test_images_of_one_slice_out_of_order_are_sorted_by_their_times(heart):
    """Philips numbers do not always follow time; a long-axis cine is read in the order of its index."""
    single = oneSlice(heart, 4)
    images = imported_nodes.images(single, TIMES_MS[None], "each")
    shuffled = [(number, *images[frame][1:]) for number, frame in zip(range(1, 6), (2, 0, 4, 1, 3), strict=True)]
    _, sequence = imported_nodes.imageSequence(shuffled)
    assert code(lambda: Nodes.stackFromSequence(sequence)) == "unsorted-frames"
    assert np.allclose(FrameTimes.frameTimes(sequence).ms, TIMES_MS[[2, 0, 4, 1, 3]])


def test_an_index_without_a_unit_is_a_number_and_never_milliseconds():
    _, sequence = imported_nodes.imageSequence(
        [(number, image, None) for number, image, _ in numbered(oneSlice(hearts.picture(FRAMES), 0))]
    )
    assert FrameTimes.frameTimes(sequence).ms is None
    sequence.SetIndexUnit("ms")
    assert FrameTimes.frameTimes(sequence).ms.tolist() == [1, 2, 3, 4, 5]


# --- the scalar reader ---


@pytest.mark.parametrize("spacing_mm", [1.0, 8.0])
def test_a_volume_whose_slices_are_phases_is_refused_with_the_reason(spacing_mm):
    heart = hearts.picture(12)
    affine = heart.affine.copy()
    affine[:3, 2] *= spacing_mm / np.linalg.norm(affine[:3, 2])
    node = imported_nodes.scalarVolume(heart.voxels[:, 4], affine)
    reason = Suitability.blockingFailure(Inputs.readStack(Inputs.resolve(node)), node.GetName())
    assert reason.code == "phases-as-slices"


def test_the_slices_of_a_heart_are_not_taken_for_phases():
    for stack in (hearts.picture(), hearts.picture(seed=8)):
        assert not Suitability.arePhases(stack)


def test_an_axial_stack_is_named_as_such():
    heart = hearts.picture()
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    assert Suitability.alignedPlane(Stack(heart.voxels, affine)) == "axial"
    assert Suitability.alignedPlane(heart) == ""
    assert any("axial" in text for text in Suitability.warningTexts(Stack(heart.voxels, affine)))


# --- what is made of them ---


def test_a_result_keeps_the_times_of_an_imported_cine(heart, opened):
    volume, _ = imported_nodes.multiVolumeSequence(heart, TIMES_MS)
    panel = opened()
    assert panel.parameters.inputNode in (volume, Inputs.resolve(volume).sequence)
    panel.run()
    result = panel.panel.results.result
    assert np.allclose(Nodes.frameTimesMs(result.sequence), TIMES_MS)
    assert np.allclose(result.labels.frame_times_ms, TIMES_MS)
    table = slicer.util.arrayFromTableColumn(result.functionTable, "time (ms)")
    assert np.allclose(table, TIMES_MS)


# --- phases of short and long axis ---


@pytest.mark.parametrize("start", [1, 101])
def test_a_long_axis_cine_with_other_numbers_follows_the_phase_of_the_short_axis(heart, views, start):
    """DICOMImageSequencePlugin indexes by instance numbers, which begin anywhere and are no milliseconds."""
    assert views is not None
    volume, _ = imported_nodes.multiVolumeSequence(heart, TIMES_MS)
    view = hearts.longAxis(heart, phantoms.heart_frame(3))
    images = [(start + frame, view.frame(frame), None) for frame in range(FRAMES)]
    shown, sequence = imported_nodes.imageSequence(images, "MR 4ch")
    browser = Inputs.resolve(shown).browser
    link = LaxLayout.FrameLink(volume, [shown])
    for frame in (2, 4, 1):
        Inputs.resolve(volume).browser.SetSelectedItemNumber(frame)
        assert browser.GetSelectedItemNumber() == frame
        assert sequence.GetNthIndexValue(browser.GetSelectedItemNumber()) == str(start + frame)
    link.remove()


def test_a_long_axis_cine_out_of_order_follows_by_its_trigger_times(heart, views):
    assert views is not None
    volume, _ = imported_nodes.multiVolumeSequence(heart, TIMES_MS)
    view = hearts.longAxis(heart, phantoms.heart_frame(3))
    order = (2, 0, 4, 1, 3)
    images = [(number + 1, view.frame(frame), 1.05 * TIMES_MS[frame]) for number, frame in enumerate(order)]
    shown, _ = imported_nodes.imageSequence(images, "MR 4ch")
    link = LaxLayout.FrameLink(volume, [shown])
    for frame in range(FRAMES):
        Inputs.resolve(volume).browser.SetSelectedItemNumber(frame)
        assert order[Inputs.resolve(shown).browser.GetSelectedItemNumber()] == frame
    link.remove()


# --- what the panel says of them ---


def test_the_panel_explains_what_it_does_not_choose(heart, opened):
    times = varied(heart)
    imported_nodes.imageSequence(imported_nodes.images(heart, times, "slices"))
    panel = opened()
    assert panel.parameters.inputNode is None
    assert "several positions" in panel.ui.inputLabel.text
    assert panel.ui.assembleButton.isVisibleTo(panel.widget.parent)
    panel.ui.assembleButton.click()
    assert panel.ui.upsampleButton.enabled
    made = Inputs.resolve(panel.parameters.inputNode).sequence
    assert np.allclose(Nodes.frameTimesMs(made), np.median(times, axis=0))


def test_phases_read_as_slices_are_explained_and_never_chosen(opened):
    heart = hearts.picture(12)
    affine = heart.affine.copy()
    node = imported_nodes.scalarVolume(heart.voxels[:, 4], affine)
    panel = opened()
    assert panel.parameters.inputNode is None
    assert "time was loaded as a third axis" in panel.ui.inputLabel.text
    panel.parameters.inputNode = node
    assert not panel.ui.upsampleButton.enabled
    assert "\u2716" in panel.ui.inputLabel.text
    assert panel.commands == []


def test_an_axial_stack_is_offered_and_not_chosen_by_itself(opened):
    heart = hearts.picture()
    node = Nodes.addVolume(Stack(heart.voxels, np.diag([1.5, 1.5, 8.0, 1.0])), "T2 brain")
    panel = opened()
    assert panel.parameters.inputNode is None
    assert "T2 brain" in panel.ui.inputLabel.text
    panel.parameters.inputNode = node
    assert panel.ui.upsampleButton.enabled
    assert "axial" in panel.ui.inputLabel.text
    assert "\u26a0" in panel.ui.inputLabel.text
