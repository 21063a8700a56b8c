"""Small things that a user meets: temporary folders, widths, headings, keys, the idle engine, how errors look."""

from __future__ import annotations

import os
from pathlib import Path

import hearts
import phantoms
import pytest
import scripted
import slicer
from CaLIDReconstructLib import LaxLayout, Messages, Nodes, Notices, Workspace
from CaLIDReconstructLib.Parameters import MethodChoice
from host.views import LayoutManager
from opened_panel import MODULE_INSTANCE


def test_slicers_own_temporary_folder_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    workspace = Workspace.Workspace()
    assert workspace.folder.parent == tmp_path
    workspace.remove()
    (tmp_path / "CaLID-999999999-left").mkdir()
    assert Workspace.removeStale() == 1


def test_the_copied_log_does_not_tell_of_slicers_temporary_folder(monkeypatch, tmp_path, opened):
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    panel = opened()
    panel.panel.log("error", f"{tmp_path}/CaLID-1-x/input.nrrd is gone")
    assert str(tmp_path) not in panel.panel.report()
    assert "[temp]/CaLID-1-x" in panel.panel.report()


@pytest.mark.parametrize("loose", [False, True])
def test_the_panel_is_no_wider_than_slicers_usual_one(opened, loose):
    if loose:
        stack = hearts.picture()
        for index in range(stack.num_slices):
            single = stack.with_voxels(
                stack.voxels[:, index : index + 1], affine=stack.slice_affine(index), generated=None
            )
            Nodes.addVolume(single, f"series {index} with a long description")
    else:
        hearts.addPicture(frames=2)
    panel = opened()
    if not loose:
        panel.run()
    for box in (panel.ui.setupBox, panel.ui.advancedBox, panel.ui.logBox):
        box.collapsed = False
    slicer.app.processEvents()
    assert panel.widget.parent.minimumSizeHint().width() <= 420


def test_there_is_nothing_to_click_before_there_is_a_result(opened):
    panel = opened()
    assert not panel.ui.resultControls.isVisibleTo(panel.widget.parent)
    assert not panel.ui.resultComboBox.isVisibleTo(panel.widget.parent)
    hearts.addPicture()
    panel.panel.onSceneSettled()
    panel.run()
    assert panel.ui.resultControls.isVisibleTo(panel.widget.parent)


def test_what_will_come_out_is_said_at_once_and_before_the_engine_answers(opened):
    hearts.addPicture()
    panel = opened(lambda _request: [])
    assert panel.ui.outcomeLabel.text == "11 slices, 10.0 mm apart \u2192 41 slices, 2.50 mm apart"
    panel.until(lambda: panel.commands == ["estimate"])
    assert "Estimating" in panel.ui.outcomeLabel.text
    panel.parameters.factor = type(panel.parameters.factor)(8)
    assert "81 slices, 1.25 mm" in panel.ui.outcomeLabel.text


def test_an_estimate_is_not_asked_for_twice(opened):
    hearts.addPicture()
    panel = opened()
    panel.until(lambda: "42 s" in panel.ui.estimateLabel.text)
    panel.run()
    panel.until(lambda: not panel.panel.pollTimer.isActive())
    assert "42 s" in panel.ui.estimateLabel.text
    assert not panel.panel.estimate.timer.isActive()
    assert panel.commands.count("estimate") == 1


def test_a_click_on_upsample_does_not_wait_for_the_estimate(opened):
    """The trial is asked to stop; an engine that is still loading for it is not killed."""
    hearts.addPicture()

    def script(request):
        return [] if request["command"] == "estimate" else scripted.good(request)

    panel = opened(script, obeysCancel=False)
    panel.until(lambda: panel.commands == ["estimate"])
    panel.run()
    assert "Done" in panel.ui.statusLabel.text
    assert panel.commands[:3] == ["estimate", "cancel", "upsample"]
    assert len(panel.transports) == 1
    panel.widget.cleanup()
    assert list(Path(Workspace.temporaryFolder()).glob(f"CaLID-{os.getpid()}-*")) == []


def test_an_engine_that_nobody_asks_anything_ends_by_itself(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    panel.until(lambda: not panel.panel.pollTimer.isActive())
    assert panel.panel.idleTimer.isActive()
    assert panel.logic.client.isRunning
    panel.panel.onIdle()
    assert not panel.logic.client.isRunning
    panel.run()
    assert "Done" in panel.ui.statusLabel.text
    assert len(panel.transports) == 2


def test_a_busy_engine_is_not_ended_as_idle(opened):
    hearts.addPicture()
    panel = opened(lambda request: [scripted.progress()] if request["command"] == "upsample" else [])
    panel.ui.upsampleButton.click()
    panel.panel.onIdle()
    assert panel.logic.client.isRunning


def test_errors_look_like_errors(opened):
    hearts.addPicture()
    panel = opened(lambda request: scripted.error() if request["command"] == "upsample" else [])
    panel.run()
    assert panel.ui.statusLabel.text.startswith("\u2716")
    assert "color" in panel.ui.statusLabel.styleSheet
    Notices.show(panel.ui.statusLabel, "")
    assert panel.ui.statusLabel.styleSheet == ""


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("level 2 of 4", "round 2 of 4"),
        ("segmenting", "ventricles"),
        ("inverting the acquired slices", "acquired"),
        ("comparing breath-holds", "long-axis"),
    ],
)
def test_stages_are_told_in_words(stage, words):
    assert words in Messages.stageText(stage)
    assert "level" not in Messages.stageText(stage)


def test_a_linear_result_is_headed_linear(opened, views):
    hearts.addPicture(frames=2)
    Nodes.addStack(hearts.longAxis(hearts.picture(2), phantoms.heart_frame(3)), "4ch")
    panel = opened()
    panel.parameters.method = MethodChoice.LINEAR
    panel.run()
    panel.parameters.method = MethodChoice.CALID_PLUS
    panel.run()
    panel.ui.compareButton.click()
    label = views.views[LaxLayout.viewTag(0, "upsampled")].node
    assert label.GetLayoutLabel() == "4ch CaLID+"
    panel.ui.resultComboBox.setCurrentIndex(1)
    panel.ui.resultComboBox.activated.emit(1)
    assert label.GetLayoutLabel() == "4ch linear"


def test_keys_switch_to_the_original_and_to_the_next_frame_while_planes_are_compared(opened, views):
    volume, _ = hearts.addPicture(frames=2)
    Nodes.addStack(hearts.longAxis(hearts.picture(2), phantoms.heart_frame(3)), "4ch")
    panel = opened()
    panel.run()
    shortcuts = panel.panel.results._comparing.shortcuts
    assert not any(shortcut.isEnabled() for shortcut in shortcuts.values())
    panel.ui.compareButton.click()
    assert all(shortcut.isEnabled() for shortcut in shortcuts.values())
    composite = views.views[LaxLayout.viewTag(0, "upsampled")].composite
    shortcuts["O"].activated.emit()
    assert composite.GetBackgroundVolumeID() == volume.GetID()
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volume)
    shortcuts["N"].activated.emit()
    assert browser.GetSelectedItemNumber() == 1
    shortcuts["N"].activated.emit()
    assert browser.GetSelectedItemNumber() == 0


def test_the_acquired_region_is_outlined_in_the_comparison_and_nowhere_else(opened, views):
    hearts.addPicture(frames=2)
    Nodes.addStack(hearts.longAxis(hearts.picture(2), phantoms.heart_frame(3)), "4ch")
    panel = opened()
    panel.run()
    before = hearts.nodeIds()
    panel.ui.compareButton.click()
    (region,) = [node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if "region" in node.GetName()]
    display = region.GetDisplayNode()
    shownIn = {display.GetNthViewNodeID(index) for index in range(display.GetNumberOfViewNodeIDs())}
    assert shownIn == {views.views[LaxLayout.viewTag(0, column)].node.GetID() for column in LaxLayout.COLUMNS}
    stack = hearts.picture()
    corners = [[x, y, z] for x in (-0.5, 63.5) for y in (-0.5, 61.5) for z in (-0.5, stack.num_slices - 0.5)]
    bounds = stack.to_lps(corners) * [-1, -1, 1]
    expected = [value for axis in range(3) for value in (bounds[:, axis].min(), bounds[:, axis].max())]
    assert region.GetPolyData().GetBounds() == pytest.approx(expected, abs=1e-3)
    panel.ui.compareButton.click()
    assert not slicer.mrmlScene.IsNodePresent(region)
    assert {node for node in hearts.nodeIds() - before if "Model" in node} == set()


@pytest.mark.usefixtures("views")
def test_volume_curves_are_shown_by_the_plots_logic(opened, views):
    hearts.addPicture(frames=2)
    panel = opened()
    panel.run()
    panel.ui.functionButton.click()
    chart = panel.panel.results.result.functionChart
    selection = slicer.app.applicationLogic().GetSelectionNode()
    assert selection.GetActivePlotChartID() == chart.GetID()
    logic = slicer.modules.plots.logic()
    assert views.layoutNode.GetViewArrangement() == logic.GetLayoutWithPlot(views.layoutNode.GetViewArrangement())


def test_the_help_leads_to_the_documentation():
    assert 'href="https://' in MODULE_INSTANCE.parent.helpText
    assert "docs/slicer.md" in MODULE_INSTANCE.parent.helpText


def test_the_sample_data_button_shows_what_it_loads(monkeypatch, views):
    from CaLIDReconstructLib import DemoCase

    if not DemoCase.isThere():
        pytest.skip("the demo case is not bundled in this checkout")
    monkeypatch.setattr(slicer.app, "layoutManager", lambda: LayoutManager(views))
    DemoCase._loadSource(None)
    shown = slicer.mrmlScene.GetNodeByID(views.views["Red"].composite.GetBackgroundVolumeID())
    assert shown.GetName().startswith("sax")
