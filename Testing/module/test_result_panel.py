"""The panel's result part on a real scene: which result it shows, and what it does to the views."""

from __future__ import annotations

import hearts
import numpy as np
import phantoms
import pytest
import scripted
import slicer
from CaLIDReconstructLib import DemoCase, Inputs, LaxLayout, Nodes
from CaLIDReconstructLib.Parameters import FactorChoice, MethodChoice, ModeChoice
from CaLIDReconstructLib.RunResult import resultsInScene, resultsOf
from CaLIDReconstructLib.Segmentations import SURFACE
from host.views import LayoutManager
from scene_files import saveAndReload


@pytest.fixture
def layoutManager(views, monkeypatch) -> LayoutManager:
    """The application's layout manager, with the standard slice views."""
    manager = LayoutManager(views)
    monkeypatch.setattr(slicer.app, "layoutManager", lambda: manager)
    return manager


@pytest.fixture
def playing(layoutManager, monkeypatch) -> list:
    """The browsers that the sequence toolbar was told to play."""
    assert layoutManager is not None  # the toolbar is one of the main window's
    shown = []
    monkeypatch.setattr(slicer.modules.sequences, "showSequenceBrowser", shown.append, raising=False)
    return shown


def addLongAxis(frames: int = 2, name: str = "4ch"):
    return Nodes.addStack(hearts.longAxis(hearts.picture(frames), phantoms.heart_frame(3)), name)[0]


def redView(views):
    return views.views["Red"]


def offered(panel) -> list[str]:
    """The names in the list of results."""
    box = panel.ui.resultComboBox
    return [box.itemText(index) for index in range(box.count)]


def choose(panel, index: int) -> None:
    """Choose a result as the user does."""
    panel.ui.resultComboBox.setCurrentIndex(index)
    panel.ui.resultComboBox.activated.emit(index)


# --- which result ---


def test_a_result_is_found_again_in_a_loaded_scene(opened, views, scene, tmp_path):
    hearts.addPicture(frames=2)
    addLongAxis()
    panel = opened()
    panel.run()
    text, function = panel.ui.resultLabel.text, panel.ui.functionLabel.text
    saveAndReload(scene, tmp_path)
    panel.widget.enter()
    assert (panel.ui.resultLabel.text, panel.ui.functionLabel.text) == (text, function)
    assert "EF" in function
    for button in (panel.ui.compareButton, panel.ui.show3DButton, panel.ui.functionButton, panel.ui.removeButton):
        assert button.enabled
    panel.ui.compareButton.click()
    comparison = panel.panel.results.comparison
    assert comparison.original is Inputs.resolve(panel.parameters.inputNode).volume
    assert views.layoutNode.GetViewArrangement() == LaxLayout.LAYOUT_ID
    assert comparison.generatedMask is not None


def test_a_loaded_result_can_be_taken_away_again(opened, scene, tmp_path):
    hearts.addPicture(frames=2)
    panel = opened()
    panel.run()
    saveAndReload(scene, tmp_path)
    panel.widget.enter()
    panel.ui.removeButton.click()
    assert resultsInScene() == []
    storables = slicer.util.getNodesByClass("vtkMRMLStorableNode")
    assert [node.GetName() for node in storables if node.GetName().startswith("SAX CaLID")] == []
    (browser,) = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 1


def test_derived_planes_come_from_a_loaded_segmentation_too(opened, scene, tmp_path):
    hearts.addPicture()
    panel = opened()
    panel.run()
    before = panel.panel.results.planes()
    saveAndReload(scene, tmp_path)
    panel.widget.enter()
    for old, new in zip(before, panel.panel.results.planes(), strict=True):
        assert np.allclose(new.sliceToRas, old.sliceToRas, atol=1e-3)


def test_another_panel_finds_the_newest_result(opened):
    hearts.addPicture()
    first = opened()
    first.run()
    first.run()
    second = opened()
    assert second.ui.resultLabel.text == first.ui.resultLabel.text
    assert second.panel.results.result.node is first.panel.results.result.node


def test_the_first_result_is_shown_again_when_the_second_is_removed(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    first, before = panel.ui.resultLabel.text, hearts.nodeIds()
    panel.run()
    assert panel.ui.resultLabel.text != first
    panel.ui.removeButton.click()
    assert panel.ui.resultLabel.text == first
    assert hearts.nodeIds() == before
    panel.ui.removeButton.click()
    assert panel.ui.resultLabel.text == "No result yet."
    assert not panel.ui.compareButton.enabled


def test_a_copy_of_a_result_is_not_taken_for_one(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    result = panel.panel.results.result.volume
    copy = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, result, "copy")
    assert [found.node for found in resultsInScene()] == [result]
    panel.ui.removeButton.click()
    assert slicer.mrmlScene.IsNodePresent(copy)
    assert panel.ui.resultLabel.text == "No result yet."


@pytest.fixture
def twice(opened):
    """A panel whose cine was upsampled x2 with its segmentation, then x4 without one."""
    hearts.addPicture(frames=2)
    panel = opened()
    panel.parameters.factor = FactorChoice.X2
    panel.run()
    panel.parameters.factor, panel.parameters.segmentResult = FactorChoice.X4, False
    panel.run()
    return panel


TWICE = ["SAX CaLID+ x4 (sharp)", "SAX CaLID+ x2 (sharp)"]


def test_the_results_of_the_input_are_offered_newest_first(opened):
    hearts.addPicture()
    panel = opened()
    assert not panel.ui.resultComboBox.isVisibleTo(panel.widget.parent)
    panel.parameters.factor = FactorChoice.X2
    panel.run()
    panel.parameters.method = MethodChoice.LINEAR
    panel.run()
    panel.parameters.method, panel.parameters.mode = MethodChoice.CALID, ModeChoice.FIDELITY
    panel.parameters.outputName = "mine"
    panel.run()
    assert offered(panel) == ["mine (CaLID x2, smooth)", "SAX linear x2", "SAX CaLID+ x2 (sharp)"]
    assert panel.ui.resultComboBox.enabled
    assert panel.ui.resultComboBox.currentIndex == 0
    assert panel.panel.results.result.node.GetName() == "mine"


def test_everything_acts_on_the_chosen_result(twice):
    assert offered(twice) == TWICE
    assert not twice.ui.show3DButton.enabled
    assert twice.ui.functionLabel.text == ""
    newest, before = twice.panel.results.result, hearts.nodeIds()
    choose(twice, 1)
    chosen = twice.panel.results.result
    assert "'SAX CaLID+ x2'" in twice.ui.resultLabel.text
    assert "EF" in twice.ui.functionLabel.text
    assert twice.ui.functionButton.enabled
    twice.ui.show3DButton.click()
    assert not chosen.segmentation.GetDisplayNode().GetVisibility3D()
    twice.panel.refresh()
    assert twice.ui.resultComboBox.currentIndex == 1
    twice.ui.removeButton.click()
    assert offered(twice) == TWICE[:1]
    assert {node.GetID() for node in newest.nodes} <= hearts.nodeIds() < before


@pytest.mark.usefixtures("layoutManager")
def test_the_chosen_result_is_shown_in_the_slice_views(twice, views, playing):
    playing.clear()
    choose(twice, 1)
    volume = twice.panel.results.result.volume
    assert volume.GetName() == "SAX CaLID+ x2"
    assert redView(views).composite.GetBackgroundVolumeID() == volume.GetID()
    assert playing == [Inputs.resolve(volume).browser]


def test_a_loaded_scene_offers_the_same_results(twice, scene, tmp_path):
    saveAndReload(scene, tmp_path)
    twice.widget.enter()
    assert offered(twice) == TWICE
    assert twice.panel.results.result.node.GetName() == "SAX CaLID+ x4"
    choose(twice, 1)
    assert "EF" in twice.ui.functionLabel.text


def test_a_renamed_result_is_offered_under_its_new_name(twice):
    choose(twice, 1)
    twice.panel.results.result.node.SetName("before surgery")
    assert offered(twice) == [TWICE[0], "before surgery (CaLID+ x2, sharp)"]
    assert "before surgery" in twice.ui.resultLabel.text
    assert twice.ui.resultComboBox.currentIndex == 1


def test_a_result_that_was_deleted_elsewhere_is_no_longer_offered(twice, scene):
    choose(twice, 1)
    scene.RemoveNode(twice.panel.results.result.node)
    twice.panel.onSceneSettled()
    assert offered(twice) == TWICE[:1]
    assert "x4" in twice.ui.resultLabel.text
    scene.Clear()
    assert offered(twice) == []
    assert not twice.ui.resultComboBox.isVisibleTo(twice.widget.parent)


def test_results_of_another_input_are_not_offered(twice, scene):
    cine = twice.parameters.inputNode
    other, _ = hearts.addPicture(name="other")
    twice.parameters.inputNode = other
    assert offered(twice) == []
    assert twice.ui.resultLabel.text == "No result yet."
    assert not twice.ui.removeButton.enabled
    twice.parameters.inputNode = Inputs.resolve(cine).volume
    assert offered(twice) == TWICE
    twice.parameters.inputNode = Inputs.resolve(cine).sequence
    assert offered(twice) == TWICE
    scene.RemoveNode(Inputs.resolve(cine).sequence)
    twice.parameters.inputNode = other
    assert offered(twice) == TWICE  # nothing else would take them away again
    twice.run()
    assert offered(twice) == ["other CaLID+ x4 (sharp)"]


def test_another_result_can_be_chosen_while_a_run_goes_on(twice):
    twice.parameters.outputName = "third"
    twice.ui.upsampleButton.click()
    twice.until(lambda: slicer.mrmlScene.GetFirstNodeByName("third"))
    twice.panel.refresh()
    assert twice.panel.isRunning
    assert offered(twice) == TWICE  # the growing one is not whole yet
    choose(twice, 1)
    assert "EF" in twice.ui.functionLabel.text
    twice.until(lambda: not twice.panel.isRunning)
    assert offered(twice) == ["third (CaLID+ x4, sharp)", *TWICE]
    assert twice.ui.resultComboBox.currentIndex == 0


# --- views ---


@pytest.mark.usefixtures("layoutManager")
def test_a_result_fills_the_slice_views_along_its_own_axes(opened, views):
    hearts.addPicture()
    panel = opened()
    panel.run()
    volume = panel.panel.results.result.volume
    red = redView(views)
    assert red.composite.GetBackgroundVolumeID() == volume.GetID()
    normal = slicer.util.arrayFromVTKMatrix(red.node.GetSliceToRAS())[:3, 2]
    axes = Nodes.affineRas(volume)[:3, :3]
    assert np.abs(axes.T @ normal / np.linalg.norm(axes, axis=0)).max() == pytest.approx(1, abs=1e-4)
    fitted = red.node.GetFieldOfView()
    red.logic.FitSliceToBackground()
    assert np.allclose(red.node.GetFieldOfView(), fitted)


def test_a_run_that_ends_in_another_module_leaves_the_views_alone(opened, views, layoutManager, playing):
    hearts.addPicture()
    users = Nodes.addVolume(hearts.picture(), "users")
    slicer.util.setSliceViewerLayers(background=users)
    panel = opened()
    panel.ui.upsampleButton.click()
    panel.widget.exit()
    panel.until(lambda: not panel.panel.isRunning)
    assert redView(views).composite.GetBackgroundVolumeID() == users.GetID()
    assert layoutManager.centered == []
    assert playing == []
    panel.widget.enter()
    assert "synthetic" in panel.ui.resultLabel.text


@pytest.mark.skipif(not DemoCase.isThere(), reason="the demo case is not bundled in this checkout")
@pytest.mark.usefixtures("layoutManager")
def test_the_sample_is_shown_and_played(opened, views, playing):
    panel = opened()
    panel.ui.sampleButton.click()
    sax = panel.parameters.inputNode
    assert redView(views).composite.GetBackgroundVolumeID() == sax.GetID()
    assert playing == [Inputs.resolve(sax).browser]


@pytest.mark.usefixtures("layoutManager")
def test_an_assembled_stack_is_shown_and_played(opened, views, playing):
    stack = hearts.picture(2)
    for index in range(stack.num_slices):
        single = stack.with_voxels(stack.voxels[:, index : index + 1], affine=stack.slice_affine(index), generated=None)
        Nodes.addStack(single, f"series {index}")
    panel = opened()
    panel.ui.assembleButton.click()
    made = panel.parameters.inputNode
    assert redView(views).composite.GetBackgroundVolumeID() == made.GetID()
    assert playing == [Inputs.resolve(made).browser]


def test_the_3d_views_turn_to_a_new_segmentation(opened, layoutManager):
    hearts.addPicture()
    opened().run()
    assert layoutManager.centered == [0, 1]


@pytest.mark.parametrize("frames", [1, 2])
def test_the_3d_button_hides_the_ventricles_and_keeps_the_engines_surfaces(opened, frames):
    volume, _ = hearts.addPicture(frames)

    def script(request):
        return scripted.segmentWithSurfaces(request) if request["command"] == "segment" else scripted.good(request)

    panel = opened(script)
    panel.run()
    segmentation = panel.panel.results.result.segmentation
    display, button = segmentation.GetDisplayNode(), panel.ui.show3DButton
    assert button.checked  # the surfaces are there from the start, so the button says so
    button.click()
    assert not display.GetVisibility3D()
    if frames > 1:
        Inputs.resolve(volume).browser.SetSelectedItemNumber(1)
    assert not display.GetVisibility3D()
    display.SetVisibility(False)
    button.click()
    assert display.GetVisibility()
    assert display.GetVisibility3D()
    assert segmentation.GetSegmentation().GetSegment("LV").GetRepresentation(SURFACE).GetNumberOfPoints() == 4


def test_the_3d_button_follows_what_was_hidden_elsewhere(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    panel.panel.results.result.segmentation.GetDisplayNode().SetVisibility(False)
    panel.panel.refresh()
    assert not panel.ui.show3DButton.checked


def openedAndRunTwice(opened):
    """The panel after two runs on what the scene holds."""
    panel = opened()
    panel.run()
    panel.run()
    return panel


def shownSegmentations(panel) -> list[tuple[bool, bool]]:
    """Of each offered result that has a segmentation, whether it is shown at all, and in 3D."""
    displays = [r.segmentation.GetDisplayNode() for r in resultsOf(panel.panel.results.result.input) if r.segmentation]
    return [(bool(display.GetVisibility()), bool(display.GetVisibility3D())) for display in displays]


@pytest.mark.parametrize("frames", [1, 2])
def test_only_the_chosen_results_segmentation_is_shown(opened, frames):
    volume, _ = hearts.addPicture(frames)
    panel = openedAndRunTwice(opened)
    assert shownSegmentations(panel) == [(True, True), (False, True)]
    assert panel.ui.show3DButton.checked
    choose(panel, 1)
    if frames > 1:
        Inputs.resolve(volume).browser.SetSelectedItemNumber(1)
    assert shownSegmentations(panel) == [(False, True), (True, True)]
    assert panel.ui.show3DButton.checked


def test_a_segmentation_that_was_hidden_stays_so_when_another_result_is_chosen(opened):
    hearts.addPicture()
    panel = openedAndRunTwice(opened)
    panel.ui.show3DButton.click()
    choose(panel, 1)
    assert shownSegmentations(panel) == [(False, False), (True, False)]
    assert not panel.ui.show3DButton.checked
    panel.panel.results.result.segmentation.GetDisplayNode().SetVisibility(False)
    choose(panel, 0)
    assert shownSegmentations(panel) == [(False, False), (False, False)]
    panel.run()
    assert shownSegmentations(panel) == [(True, True), (False, False), (False, False)]


def test_a_result_without_a_segmentation_hides_the_others_until_they_are_chosen(twice):
    assert shownSegmentations(twice) == [(False, True)]
    choose(twice, 1)
    assert shownSegmentations(twice) == [(True, True)]
    twice.ui.show3DButton.click()
    choose(twice, 0)
    choose(twice, 1)
    assert shownSegmentations(twice) == [(True, False)]


def test_the_segmentation_of_the_result_that_is_left_is_shown_as_the_removed_one_was(opened):
    hearts.addPicture()
    panel = openedAndRunTwice(opened)
    panel.ui.removeButton.click()
    assert shownSegmentations(panel) == [(True, True)]
    panel.run()
    panel.ui.show3DButton.click()
    panel.ui.removeButton.click()
    assert shownSegmentations(panel) == [(True, False)]


def test_what_the_user_set_for_a_segment_and_what_is_not_of_this_input_stay(opened):
    panel = opened()
    shown = {}
    for name in ("other", "SAX"):
        panel.parameters.inputNode = hearts.addPicture(name=name)[0]
        panel.run()
        shown[name] = panel.panel.results.result.segmentation.GetDisplayNode()
    users = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "users")
    users.CreateDefaultDisplayNodes()
    shown["SAX"].SetSegmentVisibility3D("RV", False)
    shown["SAX"].SetSegmentOpacity3D("LV", 0.3)
    panel.run()
    assert [display.GetVisibility() for display in (shown["SAX"], shown["other"], users.GetDisplayNode())] == [0, 1, 1]
    choose(panel, 1)
    assert shown["SAX"].GetVisibility()
    assert not shown["SAX"].GetSegmentVisibility3D("RV")
    assert shown["SAX"].GetSegmentOpacity3D("LV") == pytest.approx(0.3)


def test_a_run_that_ends_in_another_module_leaves_the_3d_views_alone(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    panel.ui.upsampleButton.click()
    panel.widget.exit()
    panel.until(lambda: not panel.panel.isRunning)
    assert shownSegmentations(panel)[1] == (True, True)


# --- comparison ---


def test_why_the_comparison_failed_stays_to_be_read(opened, views):
    assert views.layoutNode is not None
    hearts.addPicture()
    panel = opened()
    panel.parameters.segmentResult = False
    panel.run()
    panel.ui.compareButton.click()
    assert "no long-axis plane" in panel.ui.resultLabel.text
    assert "synthetic" in panel.ui.resultLabel.text
    assert not panel.ui.compareButton.checked
    panel.panel.refresh()
    assert "no long-axis plane" in panel.ui.resultLabel.text
    addLongAxis(1)
    panel.ui.compareButton.click()
    assert "no long-axis plane" not in panel.ui.resultLabel.text


def test_a_result_without_its_input_says_why_it_cannot_be_compared(opened, scene):
    volume, _ = hearts.addPicture()
    panel = opened()
    panel.run()
    scene.RemoveNode(volume)
    panel.ui.compareButton.click()
    assert "input of this result is no longer" in panel.ui.resultLabel.text
    assert not panel.ui.compareButton.checked


@pytest.mark.parametrize("shownOnly", [False, True])
def test_a_cine_that_nothing_played_can_be_compared(opened, views, shownOnly):
    assert views.layoutNode is not None
    sequence = hearts.addUnplayed(frames=2)
    addLongAxis()
    panel = opened()
    panel.parameters.inputNode = sequence
    panel.parameters.frames = type(panel.parameters.frames)("current" if shownOnly else "all")
    panel.run()
    panel.ui.compareButton.click()
    assert panel.ui.compareButton.checked
    assert panel.panel.results.comparison.original is Inputs.resolve(sequence).volume


def test_the_toolbar_plays_the_short_axis_cine_while_comparing(opened, views, playing):
    assert views.layoutNode is not None
    volume, _ = hearts.addPicture(frames=2)
    addLongAxis()
    panel = opened()
    panel.run()
    playing.clear()
    panel.ui.compareButton.click()
    assert playing == [Inputs.resolve(volume).browser]


@pytest.fixture
def comparing(opened, views):
    """A panel in the comparison layout."""
    assert views.layoutNode is not None
    hearts.addPicture(frames=2)
    addLongAxis()
    panel = opened()
    panel.run()
    panel.ui.compareButton.click()
    assert views.layoutNode.GetViewArrangement() == LaxLayout.LAYOUT_ID
    return panel


def test_closing_the_scene_while_comparing_gives_the_users_layout_back(comparing, views, scene):
    scene.Clear()
    assert views.layoutNode.GetViewArrangement() == views.layoutNode.SlicerLayoutFourUpView
    assert views.layoutNode.GetSaveWithScene()
    assert not comparing.ui.compareButton.checked
    assert comparing.ui.resultLabel.text == "No result yet."


def test_choosing_another_layout_ends_the_comparison(comparing, views):
    chosen = views.layoutNode.SlicerLayoutOneUp3DView
    views.layoutNode.SetViewArrangement(chosen)
    assert not comparing.ui.compareButton.checked
    assert not comparing.ui.toggleButton.enabled
    comparing.run()
    assert views.layoutNode.GetViewArrangement() == chosen
    comparing.ui.compareButton.click()
    comparing.ui.compareButton.click()
    assert views.layoutNode.GetViewArrangement() == chosen


def test_a_run_that_ends_in_another_module_leaves_the_comparison_alone(comparing, views):
    comparing.ui.upsampleButton.click()
    comparing.widget.exit()
    comparing.until(lambda: not comparing.panel.isRunning)
    assert views.layoutNode.GetViewArrangement() == LaxLayout.LAYOUT_ID
    assert comparing.ui.compareButton.checked
    comparing.widget.enter()
    results = comparing.panel.results
    assert results.result.volume is results.comparison.upsampled
    assert comparing.ui.resultComboBox.currentIndex == 1  # the first of two, newest first


def test_another_result_takes_the_place_of_the_compared_one(comparing, views):
    first = comparing.panel.results.result
    comparing.parameters.markGenerated = False
    comparing.run()
    comparing.ui.compareButton.click()
    assert not comparing.ui.tintButton.enabled
    actions = comparing.ui.planesButton.menu().actions()
    assert len(actions) == 1
    composite = views.views[LaxLayout.viewTag(0, "upsampled")].composite
    assert composite.GetBackgroundVolumeID() == comparing.panel.results.result.volume.GetID()
    choose(comparing, 1)
    assert comparing.ui.compareButton.checked
    assert views.layoutNode.GetViewArrangement() == LaxLayout.LAYOUT_ID
    assert composite.GetBackgroundVolumeID() == first.volume.GetID()
    comparing.ui.tintButton.click()
    assert composite.GetLabelVolumeID() == first.generatedMask.GetID()
    comparing.ui.toggleButton.click()
    choose(comparing, 0)
    assert composite.GetBackgroundVolumeID() == comparing.panel.results.comparison.original.GetID()
    assert composite.GetLabelVolumeID() is None
    comparing.ui.toggleButton.click()
    assert composite.GetBackgroundVolumeID() == comparing.panel.results.result.volume.GetID()


def test_another_input_ends_the_comparison(comparing, views):
    comparing.parameters.inputNode = hearts.addPicture(name="other")[0]
    assert views.layoutNode.GetViewArrangement() == views.layoutNode.SlicerLayoutFourUpView
    assert not comparing.ui.compareButton.enabled


def test_a_chosen_cine_that_nothing_plays_cannot_be_shown(comparing, views, scene):
    comparing.run()
    scene.RemoveNode(Inputs.resolve(comparing.panel.results.result.node).browser)
    choose(comparing, 1)
    assert not comparing.ui.compareButton.enabled
    assert views.layoutNode.GetViewArrangement() == views.layoutNode.SlicerLayoutFourUpView
