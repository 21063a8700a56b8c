"""The panel's result part on a real scene: which result it shows, and what it does to the views."""

from __future__ import annotations

import hearts
import numpy as np
import phantoms
import pytest
import scripted
import slicer
from CaLIDReconstructLib import DemoCase, Inputs, LaxLayout, Nodes
from CaLIDReconstructLib.Job import resultsInScene
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
    assert layoutManager.centred == []
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
    assert layoutManager.centred == [0, 1]


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
