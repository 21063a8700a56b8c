"""The real .ui and widget on a real scene, with an engine in memory: what the user sees and what a click does."""

from __future__ import annotations

import json

import hearts
import phantoms
import pytest
import scripted
import slicer
from CaLIDReconstructLib import Inputs, Installation, LaxLayout, Messages, Nodes, SaxAssembly
from CaLIDReconstructLib.Installation import TorchState
from CaLIDReconstructLib.Parameters import FactorChoice, FramesChoice, MethodChoice, ModelChoice, Preferences
from opened_panel import MODULE, MODULE_INSTANCE


def test_opening_the_panel_starts_nothing_without_an_input(opened):
    panel = opened()
    assert panel.transports == []
    assert panel.confirmations == []
    assert not panel.ui.upsampleButton.enabled
    assert "sample data" in panel.ui.inputLabel.text


def test_a_suitable_volume_in_the_scene_is_chosen_and_described(opened):
    volume, _ = hearts.addPicture()
    panel = opened()
    assert panel.parameters.inputNode is volume
    assert "11 slices, 10.0 mm apart" in panel.ui.inputLabel.text
    assert panel.ui.upsampleButton.enabled


def test_an_unsuitable_volume_is_explained_before_any_run(opened):
    panel = opened()
    stack = hearts.picture()
    panel.parameters.inputNode = Nodes.addVolume(stack.with_voxels(stack.voxels[:, :1], generated=None), "localizer")
    assert "only one slice" in panel.ui.inputLabel.text
    assert not panel.ui.upsampleButton.enabled
    assert "only one slice" in panel.ui.upsampleButton.toolTip
    assert panel.commands == []


def test_time_memory_and_device_are_shown_before_the_click(opened):
    hearts.addPicture()
    panel = opened()
    panel.until(lambda: panel.ui.estimateLabel.text)
    assert "42 s" in panel.ui.estimateLabel.text
    assert "700 MB of 6.0 GB free" in panel.ui.estimateLabel.text
    assert "not fit" not in panel.ui.estimateLabel.text
    assert "CPU" in panel.ui.estimateLabel.text
    assert "segmentation" in panel.ui.estimateLabel.text
    assert panel.commands[0] == "estimate"
    panel.until(lambda: panel.ui.deviceReasonLabel.text)
    assert "20.0 GB of memory free" in panel.ui.deviceReasonLabel.text
    assert "upsample" not in panel.commands


def test_the_estimate_of_a_cine_counts_its_frames_but_sends_one(opened):
    hearts.addPicture(frames=3)
    panel = opened()
    panel.until(lambda: panel.ui.estimateLabel.text)
    assert "2 min" in panel.ui.estimateLabel.text  # three times 42 s


def test_a_run_that_will_not_fit_is_warned_of_before_the_click(opened):
    hearts.addPicture(frames=9)
    panel = opened()
    panel.until(lambda: panel.ui.estimateLabel.text)
    assert "6.3 GB of 6.0 GB free" in panel.ui.estimateLabel.text
    assert "not fit into memory" in panel.ui.estimateLabel.text
    panel.parameters.frames = FramesChoice.CURRENT
    panel.until(lambda: "not fit" not in panel.ui.estimateLabel.text)


def test_an_estimate_of_another_input_is_not_shown(opened):
    volume, _ = hearts.addPicture(name="still")
    cine, _ = hearts.addPicture(frames=3, name="cine")
    held = []

    def script(request):
        if request["command"] == "estimate" and not held:
            held.append({"id": request["id"], **scripted.estimate(request)[0]})
            return []
        return scripted.good(request)

    panel = opened(script)
    panel.parameters.inputNode = volume
    panel.until(lambda: held)
    panel.parameters.inputNode = cine
    panel.transports[0].events += held
    panel.until(lambda: panel.ui.estimateLabel.text)
    assert "2 min" in panel.ui.estimateLabel.text  # of the cine, three times 42 s
    assert panel.commands.count("estimate") == 2
    stack = hearts.picture()
    panel.parameters.inputNode = Nodes.addVolume(stack.with_voxels(stack.voxels[:, :1], generated=None), "localizer")
    panel.until(lambda: not panel.ui.estimateLabel.text)  # there is nothing to expect of what cannot be run


def test_a_click_while_the_estimate_is_under_way_runs_all_the_same(opened):
    hearts.addPicture()
    held = []

    def script(request):
        if request["command"] == "estimate":
            held.append({"id": request["id"], **scripted.estimate(request)[0]})
            return []
        return [*held, *scripted.good(request)]

    panel = opened(script)
    panel.until(lambda: held)
    panel.run()
    assert "Done" in panel.ui.statusLabel.text
    assert panel.commands[:3] == ["estimate", "cancel", "upsample"]  # the trial makes room, and nothing else is ended
    assert len(panel.transports) == 1


def test_a_run_ends_well_while_another_module_is_shown(opened):
    hearts.addPicture()
    panel = opened()
    panel.ui.upsampleButton.click()
    panel.widget.exit()
    panel.until(lambda: not panel.panel.isRunning)
    assert "Done" in panel.ui.statusLabel.text
    panel.widget.enter()
    assert panel.ui.compareButton.enabled


def test_a_click_makes_the_result_and_says_so(opened):
    volume, _ = hearts.addPicture(frames=3)
    panel = opened()
    panel.parameters.factor = FactorChoice.X2
    panel.run()
    assert "Done" in panel.ui.statusLabel.text
    result = panel.panel.results.result
    assert result.sequence.GetName() == "SAX CaLID+ x2"
    assert "synthetic" in panel.ui.resultLabel.text
    assert "EF" in panel.ui.functionLabel.text
    assert panel.ui.compareButton.enabled
    assert panel.ui.upsampleButton.text == "Upsample"
    assert volume.GetDisplayNode() is not None


def test_the_button_cancels_while_a_run_goes_on(opened):
    hearts.addPicture()
    panel = opened(
        lambda request: [scripted.progress(0.25)] if request["command"] == "upsample" else scripted.good(request)
    )
    before = hearts.nodeIds()
    panel.ui.upsampleButton.click()
    panel.until(lambda: panel.ui.progressBar.value == 212)  # a quarter of the upsampling's 85 %
    assert panel.ui.upsampleButton.text == "Cancel"
    assert not panel.ui.inputBox.enabled
    assert "12 s left" in panel.ui.statusLabel.text
    panel.ui.upsampleButton.click()
    panel.until(lambda: not panel.panel.isRunning)
    assert "Cancelled" in panel.ui.statusLabel.text
    assert hearts.nodeIds() == before
    assert panel.ui.upsampleButton.text == "Upsample"
    assert panel.ui.inputBox.enabled


def test_a_failure_is_told_in_words_and_in_the_log(opened):
    hearts.addPicture()
    panel = opened(lambda _request: scripted.exitWith(-9, "last words"))
    panel.run()
    assert "operating system ended the engine" in panel.ui.statusLabel.text
    panel.ui.copyLogButton.click()
    assert "last words" in slicer.app.clipboard().text()


def test_the_copied_log_names_versions_but_no_node(opened):
    hearts.addPicture(name="DOE^JANE")
    panel = opened()
    panel.run()
    report = panel.panel.report()
    assert "CaLID" in report
    assert "factor" in report
    assert "DOE" not in report


def test_the_copied_log_of_a_failure_names_no_node_either(opened):
    volume, _ = hearts.addPicture(name="DOE^JANE")
    panel = opened()
    panel.panel.failed(Messages.failure("not-an-image", volume.GetName()))
    assert "DOE^JANE" in panel.ui.statusLabel.text
    assert "DOE^JANE" in panel.ui.logEdit.toPlainText()
    assert "DOE" not in panel.panel.report()
    assert "holds no image" in panel.panel.report()


def test_the_panel_works_again_after_a_failure(opened):
    hearts.addPicture()
    answers = iter(["crash"])

    def script(request):
        if request["command"] == "upsample" and next(answers, None):
            return scripted.exitWith(1)
        return scripted.good(request)

    panel = opened(script)
    panel.run()
    assert "unexpectedly" in panel.ui.statusLabel.text
    panel.run()
    assert "Done" in panel.ui.statusLabel.text


def test_closing_the_scene_during_a_run_ends_it_and_the_panel_lives_on(opened):
    hearts.addPicture()
    panel = opened(
        lambda request: [scripted.progress()] if request["command"] == "upsample" else scripted.good(request)
    )
    panel.ui.upsampleButton.click()
    slicer.mrmlScene.Clear()
    assert "scene was closed" in panel.ui.statusLabel.text
    assert not panel.ui.upsampleButton.enabled
    hearts.addPicture()
    panel.panel.setParameters(panel.logic.getParameterNode())
    assert panel.ui.upsampleButton.enabled


def test_removing_the_input_during_a_run_ends_it(opened):
    volume, _ = hearts.addPicture()
    panel = opened(
        lambda request: [scripted.progress()] if request["command"] == "upsample" else scripted.good(request)
    )
    panel.ui.upsampleButton.click()
    slicer.mrmlScene.RemoveNode(volume)
    assert "input was removed" in panel.ui.statusLabel.text


def test_parameters_and_widgets_follow_each_other(opened):
    hearts.addPicture(frames=3)
    panel = opened()
    panel.ui.factorComboBox.setCurrentIndex(2)
    assert panel.parameters.factor is FactorChoice.X4
    panel.parameters.method = MethodChoice.CALID
    assert "CaLID (" in panel.ui.methodComboBox.currentText
    panel.ui.stepsSpinBox.setValue(25)
    assert panel.parameters.steps == 25
    panel.ui.framesComboBox.setCurrentIndex(1)
    assert panel.parameters.frames is FramesChoice.CURRENT
    panel.ui.uncertaintyCheckBox.setChecked(True)
    assert panel.parameters.mapUncertainty
    panel.ui.nameEdit.setText("mine")
    assert panel.parameters.outputName == "mine"


def test_the_chosen_model_is_what_the_engine_is_asked_for(opened):
    hearts.addPicture(frames=2)
    panel = opened()
    assert panel.parameters.model is ModelChoice.AUTO
    panel.ui.modelComboBox.setCurrentIndex(2)
    panel.run()
    request = next(r for t in panel.transports for r in t.requests if r["command"] == "upsample")
    assert request["model"] == "2d+t"


def test_a_button_that_cannot_be_clicked_says_what_it_waits_for(opened):
    hearts.addPicture()
    panel = opened()
    assert "no result yet" in panel.ui.show3DButton.toolTip
    panel.parameters.segmentResult = False
    panel.run()
    assert "Segmentation" in panel.ui.show3DButton.toolTip
    assert "cine" in panel.ui.functionButton.toolTip
    panel.parameters.segmentResult = True
    panel.run()
    assert panel.ui.show3DButton.enabled
    assert panel.ui.show3DButton.toolTip == "Show the ventricles in 3D, or hide them."


def test_the_frames_choice_is_there_for_a_cine_only(opened):
    hearts.addPicture(name="still")
    panel = opened()
    assert not panel.ui.framesComboBox.isVisibleTo(panel.widget.parent)
    cine, _ = hearts.addPicture(frames=3, name="cine")
    panel.parameters.inputNode = cine
    assert panel.ui.framesComboBox.isVisibleTo(panel.widget.parent)


def test_a_new_region_is_put_around_the_middle_of_the_stack(opened):
    hearts.addPicture()
    panel = opened()
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    panel.parameters.region = region
    assert min(region.GetSize()) > 50
    panel.run()
    request = next(r for t in panel.transports for r in t.requests if r["command"] == "upsample")
    x0, x1, y0, y1 = request["roi"]
    assert 0 < x0 < x1 < 64
    assert 0 < y0 < y1 < 62


def test_loose_slices_can_be_assembled_from_the_panel(opened):
    addLooseSlices()
    panel = opened()
    assert panel.ui.assembleButton.isVisibleTo(panel.widget.parent)
    panel.ui.assembleButton.click()
    assert panel.ui.upsampleButton.enabled
    assert panel.parameters.inputNode.GetImageData().GetDimensions()[2] == hearts.picture().num_slices


def addLooseSlices() -> None:
    """The picture as scanners often write it, one series per position."""
    stack = hearts.picture()
    for index in range(stack.num_slices):
        single = stack.with_voxels(stack.voxels[:, index : index + 1], affine=stack.slice_affine(index), generated=None)
        Nodes.addVolume(single, f"series {index}")


def test_what_is_loaded_while_the_panel_is_open_is_noticed(opened):
    panel = opened()
    volume, _ = hearts.addPicture()
    panel.until(lambda: panel.ui.upsampleButton.enabled)
    assert panel.parameters.inputNode is volume
    addLooseSlices()
    panel.until(lambda: panel.ui.assembleButton.isVisibleTo(panel.widget.parent))
    assert panel.parameters.inputNode is volume
    for node in slicer.util.getNodes("series *").values():
        slicer.mrmlScene.RemoveNode(node)
    panel.until(lambda: not panel.ui.assembleButton.isVisibleTo(panel.widget.parent))


def test_a_volume_that_cannot_be_the_input_is_read_once_only(opened, monkeypatch):
    addLooseSlices()
    panel = opened()
    assert panel.parameters.inputNode is None
    read, readStack = [], Inputs.readStack
    monkeypatch.setattr(Inputs, "readStack", lambda chosen: read.append(chosen.name) or readStack(chosen))
    volume, _ = hearts.addPicture()
    panel.until(lambda: panel.parameters.inputNode is volume)
    assert set(read) == {volume.GetName()}


def test_a_batch_of_nodes_is_looked_at_when_it_is_whole(opened, monkeypatch):
    panel = opened()
    searches = []
    monkeypatch.setattr(SaxAssembly, "findGroups", lambda: searches.append(True) or [])
    slicer.mrmlScene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    addLooseSlices()
    panel.panel.onSceneSettled()
    assert searches == []
    slicer.mrmlScene.EndState(slicer.vtkMRMLScene.BatchProcessState)
    panel.until(lambda: searches)
    assert len(searches) == 1


def test_the_scene_is_not_watched_while_another_module_is_shown_or_after_the_end(opened, monkeypatch):
    panel = opened()
    searches = []
    monkeypatch.setattr(SaxAssembly, "findGroups", lambda: searches.append(True) or [])
    panel.widget.exit()
    addLooseSlices()
    panel.panel.onSceneSettled()
    panel.widget.enter()
    assert len(searches) == 1
    panel.widget.cleanup()
    hearts.addPicture()
    assert not panel.panel.sceneTimer.isActive()


def test_the_chosen_group_of_loose_slices_stays_chosen(opened):
    addLooseSlices()
    panel = opened()
    panel.ui.groupComboBox.addItem("another")
    panel.ui.groupComboBox.setCurrentIndex(1)
    panel.panel.onSceneSettled()
    assert panel.ui.groupComboBox.currentIndex == 1


def test_nothing_is_installed_when_the_user_says_no(opened, monkeypatch):
    monkeypatch.setattr(Installation, "torchState", lambda: TorchState.MISSING)
    hearts.addPicture()
    panel = opened()
    assert "Before the first run" in panel.ui.setupLabel.text
    assert panel.confirmations == []
    panel.ui.upsampleButton.click()
    assert len(panel.confirmations) == 1
    assert "PyTorch" in panel.confirmations[0]
    assert panel.commands == []
    assert "nothing was done" in panel.ui.statusLabel.text


def test_the_result_can_be_taken_away_again(opened):
    hearts.addPicture(frames=2)
    panel = opened()
    before = hearts.nodeIds()
    panel.run()
    panel.ui.removeButton.click()
    assert sorted(hearts.nodeIds() - before) == []
    assert not panel.ui.compareButton.enabled


def test_the_comparison_is_entered_and_left_with_one_button(opened, views):
    hearts.addPicture(frames=2)
    stack = hearts.picture(2)
    Nodes.addStack(hearts.longAxis(stack, phantoms.heart_frame(3)), "4ch")
    panel = opened()
    panel.run()
    before = views.layoutNode.GetViewArrangement()
    panel.ui.compareButton.click()
    assert views.layoutNode.GetViewArrangement() != before
    panel.ui.toggleButton.click()
    assert panel.ui.toggleButton.text == "Show upsampled"
    panel.ui.tintButton.click()
    panel.ui.compareButton.click()
    assert views.layoutNode.GetViewArrangement() == before
    assert panel.ui.toggleButton.text == "Show original"


def test_without_long_axis_images_planes_come_from_the_segmentation(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    assert {plane.name for plane in panel.panel.results.planes()} == {"2ch", "3ch", "4ch"}


def test_the_planes_of_the_comparison_can_be_chosen(opened, views):
    hearts.addPicture(frames=2)
    for index, name in enumerate(("a", "b", "c", "d", "e")):
        image = hearts.longAxis(hearts.picture(2), phantoms.heart_frame(3), angle=0.5 * index)
        Nodes.addStack(image, name)
    panel = opened()
    panel.run()
    before = views.layoutNode.GetViewArrangement()
    assert not panel.ui.planesButton.enabled
    panel.ui.compareButton.click()
    actions = panel.ui.planesButton.menu().actions()
    assert [(action.text, action.checked) for action in actions] == [(name, name != "e") for name in "abcde"]
    panel.ui.toggleButton.click()
    actions[4].trigger()
    for action in actions[:3]:
        action.trigger()
    comparison = panel.panel.results.comparison
    assert [plane.name for plane in comparison.planes] == ["d", "e"]
    shown = views.views[LaxLayout.viewTag(1, "upsampled")].composite.GetBackgroundVolumeID()
    assert shown == comparison.original.GetID()  # the toggle holds for the new planes too
    for action in actions[3:]:
        action.trigger()
    assert [plane.name for plane in comparison.planes] == ["e"]  # the last one stays
    assert actions[4].checked
    panel.ui.compareButton.click()
    assert views.layoutNode.GetViewArrangement() == before
    assert not panel.ui.planesButton.enabled


def test_the_license_of_the_segmentation_is_told_before_anything_is_clicked(opened):
    panel = opened()
    assert panel.ui.licenseLabel.isVisibleTo(panel.widget.parent)
    assert "non-commercial use only" in panel.ui.licenseLabel.text
    assert "https://creativecommons.org/licenses/by-nc-sa/4.0/" in panel.ui.licenseLabel.text
    assert "ACDC" in panel.ui.licenseLabel.toolTip


def asked(monkeypatch, answer: bool) -> list[str]:
    """The questions that the user answers from now on."""
    questions = []
    confirm = lambda text, **_: questions.append(text) or answer  # noqa: E731
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", confirm)
    return questions


def test_nothing_runs_until_the_non_commercial_license_is_agreed_to(opened, monkeypatch):
    questions = asked(monkeypatch, answer=False)
    hearts.addPicture()
    panel = opened(agreedLicense="")
    assert questions == []
    panel.ui.upsampleButton.click()
    assert len(questions) == 1
    assert "CC BY-NC-SA 4.0" in questions[0]
    assert "Untick the segmentation" in panel.ui.statusLabel.text
    assert "upsample" not in panel.commands
    panel.parameters.segmentResult = False
    panel.run()
    assert "Done" in panel.ui.statusLabel.text
    assert len(questions) == 1


def test_the_agreement_is_remembered_for_this_license_only(opened, monkeypatch, tmp_path):
    questions = asked(monkeypatch, answer=True)
    hearts.addPicture()
    panel = opened(agreedLicense="")
    panel.run()
    panel.run()
    assert len(questions) == 1
    assert Preferences().agreedLicense == "CC-BY-NC-SA-4.0"
    other = {"models": [{"name": "segmenter", "license": "CC-BY-NC-ND-4.0", "trained_on": "other hearts"}]}
    (tmp_path / "models.json").write_text(json.dumps(other), encoding="utf-8")
    panel.logic.preferences.modelsFolder = str(tmp_path)
    panel.run()
    assert len(questions) == 2
    assert "other hearts" in questions[1]


@pytest.mark.parametrize("manifest", ["", "[]", '{"models": [{"name": "segmenter", "license": "MIT"}]}'])
def test_a_license_for_every_use_or_an_unreadable_one_asks_nothing(opened, monkeypatch, tmp_path, manifest):
    questions = asked(monkeypatch, answer=False)
    hearts.addPicture()
    panel = opened(agreedLicense="")
    (tmp_path / "models.json").write_text(manifest, encoding="utf-8")
    panel.logic.preferences.modelsFolder = str(tmp_path)
    panel.panel.refresh()
    isTold = panel.ui.licenseLabel.isVisibleTo(panel.widget.parent)
    assert isTold == ("MIT" in manifest)
    if isTold:
        assert (
            panel.ui.licenseLabel.text
            == 'Its weights are licensed <a href="https://spdx.org/licenses/MIT.html">MIT</a>.'
        )
    panel.run()
    assert questions == []


def test_texts_go_through_the_translation(opened, monkeypatch):
    monkeypatch.setattr(slicer.app, "translations", {"Cancel": "Abbrechen", "Upsample": "Hochrechnen"})
    hearts.addPicture()
    panel = opened()
    assert panel.ui.upsampleButton.text == "Hochrechnen"


def test_the_applications_test_is_skipped_where_the_engine_cannot_run(monkeypatch):
    monkeypatch.setattr(Installation, "torchState", lambda: TorchState.MISSING)
    outcome = MODULE.CaLIDReconstructTest("test_demoCaseIsUpsampledByLinearInterpolation").run()
    ((_, reason),) = outcome.skipped
    assert "not installed" in reason
    said = []
    test = MODULE.CaLIDReconstructTest
    monkeypatch.setattr(test, "delayDisplay", lambda _self, message: said.append(message))
    monkeypatch.setattr(test, "test_cancelLeavesTheSceneAsItWas", lambda _self: said.append("cancelled"))
    test().runTest()
    assert "was skipped" in said[0]
    assert said[1:] == ["cancelled"]


def test_the_module_introduces_itself():
    parent = MODULE_INSTANCE.parent
    assert parent.title == "CaLID Reconstruction"
    assert parent.categories == ["Cardiac"]
    assert "synthetic" in parent.helpText
