"""The real panel on the real engine process: click, watch, cancel, kill; by linear interpolation, without weights."""

from __future__ import annotations

import os
import signal
import time

import hearts
import numpy as np
import pytest
import slicer
import vtk
from calid.labels import LABELS
from CaLIDReconstructLib import DemoCase, Nodes, Results
from CaLIDReconstructLib.Messages import ModuleError
from CaLIDReconstructLib.Parameters import FactorChoice, FramesChoice, MethodChoice, Preferences
from host.application import MODULE_FOLDER, loadModule, openWidget

pytest.importorskip("torch", reason="the engine needs PyTorch")

MODULE, _ = loadModule(MODULE_FOLDER / "CaLIDReconstruct.py")
TIMEOUT_S = 600.0  # for what never happens; a busy machine may be slow


@pytest.fixture(scope="module")
def warmLogic():
    """One engine for all tests of this file, as in the application: its start takes seconds."""
    preferences = Preferences()
    preferences.interpreter = preferences.modelsFolder = preferences.remoteHost = ""
    made = MODULE.CaLIDReconstructLogic(preferences)
    yield made
    made.close()


@pytest.fixture
def logic(warmLogic):
    return warmLogic


@pytest.fixture
def widget(logic, monkeypatch):
    """A panel whose closing leaves the engine to the next test."""
    made = openWidget(MODULE, "CaLIDReconstruct", logic=logic)
    made.parent.show()
    yield made
    monkeypatch.setattr(logic, "close", lambda: None)
    made.cleanup()


def until(condition) -> float:
    """Let the panel work until something holds; returns for how many seconds it slept, fewer where others are busy."""
    deadline, naps = time.monotonic() + TIMEOUT_S, 0
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        slicer.app.processEvents()
        time.sleep(0.005)
        naps += 1
    return naps * 0.005


def chooseLinear(widget, node, factor: FactorChoice = FactorChoice.X4) -> None:
    parameters = widget.panel.parameters
    parameters.inputNode, parameters.factor, parameters.method = node, factor, MethodChoice.LINEAR
    parameters.segmentResult = False


def engineProcess(logic):
    return logic.client._transport.process


def startLongRun(widget):
    """Click Upsample on a cine that takes the engine some seconds; returns when its first progress is shown."""
    volume, _ = hearts.addPicture(frames=40)
    chooseLinear(widget, volume, FactorChoice.X16)
    widget.ui.upsampleButton.click()
    until(lambda: widget.ui.progressBar.value > 0)
    assert widget.panel.isRunning
    return volume


def test_a_click_upsamples_a_cine_and_keeps_acquired_slices_bit_by_bit(widget):
    volume, sequence = hearts.addPicture(frames=3)
    chooseLinear(widget, volume)
    seen = []
    progressed = widget.panel.progressed
    widget.panel.progressed = lambda *event: (seen.append(event[0]), progressed(*event))
    widget.ui.upsampleButton.click()
    until(lambda: not widget.panel.isRunning)
    assert "Done" in widget.ui.statusLabel.text
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    result = widget.panel.results.result
    for frame in range(3):
        acquired = slicer.util.arrayFromVolume(sequence.GetNthDataNode(frame))
        made = slicer.util.arrayFromVolume(result.sequence.GetNthDataNode(frame))
        assert np.array_equal(made[::4], acquired)
        between = (acquired[:-1].astype(float) + acquired[1:]) / 2
        assert np.abs(made[2::4] - between).max() <= 1
    assert "linear" in result.sequence.GetAttribute("CaLID.Provenance")


def test_time_and_device_are_estimated_by_the_engine_before_the_click(widget):
    volume, _ = hearts.addPicture()
    chooseLinear(widget, volume)
    until(lambda: widget.ui.estimateLabel.text)
    assert "Expected time" in widget.ui.estimateLabel.text
    assert "CPU" in widget.ui.estimateLabel.text


def test_cancel_takes_effect_within_two_seconds_and_leaves_no_node(widget):
    startLongRun(widget)
    widget.ui.upsampleButton.click()
    assert until(lambda: not widget.panel.isRunning) < 2.0
    assert "Cancelled" in widget.ui.statusLabel.text
    assert [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode")] == ["SAX"]
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1


def test_a_killed_engine_is_told_in_words_and_the_next_run_works(widget, logic):
    volume = startLongRun(widget)
    os.kill(engineProcess(logic).pid, signal.SIGKILL)
    until(lambda: not widget.panel.isRunning)
    assert "operating system ended the engine" in widget.ui.statusLabel.text
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1
    widget.panel.parameters.frames = FramesChoice.CURRENT
    chooseLinear(widget, volume, FactorChoice.X2)
    widget.ui.upsampleButton.click()
    until(lambda: not widget.panel.isRunning)
    assert "Done" in widget.ui.statusLabel.text


def test_the_batch_call_uses_one_warm_engine_and_survives_a_bad_case(logic):
    good, _ = hearts.addPicture(name="first")
    stack = hearts.picture()
    bad = Nodes.addVolume(stack.with_voxels(stack.voxels[:, :1], generated=None), "bad")
    first = logic.upsample(good, method="linear", factor=2)
    process = engineProcess(logic)
    with pytest.raises(ModuleError, match="only one slice"):
        logic.upsample(bad, method="linear", factor=2)
    second = logic.upsample(good, method="linear", factor=4)
    assert engineProcess(logic) is process
    assert first.volume.GetImageData().GetDimensions()[2] == 2 * stack.num_slices - 1
    assert second.volume.GetImageData().GetDimensions()[2] == 4 * stack.num_slices - 3


@pytest.fixture
def foreignFolder(tmp_path, monkeypatch):
    """A temporary folder as of a user whose name is not ASCII."""
    folder = tmp_path / "J\u00fcrgen \u5fc3\u81d3"
    folder.mkdir()
    monkeypatch.setattr(slicer.app, "temporaryPath", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("foreignFolder")
def test_a_segmentation_brings_smooth_surfaces_with_the_volume_of_its_labels(logic):
    volume, _ = hearts.addPicture()
    result = logic.upsample(volume, method="linear", factor=4, segment=True)
    assert result.warnings == []
    assert result.segmentation.GetAttribute(Results.LICENSE) == "CC-BY-NC-SA-4.0"
    voxel_mm3 = float(np.prod(result.labels.spacing_mm))
    for label in LABELS:
        surface = vtk.vtkPolyData()
        result.segmentation.GetClosedSurfaceRepresentation(label.key, surface)
        properties = vtk.vtkMassProperties()
        properties.SetInputData(surface)
        assert properties.GetVolume() == pytest.approx(
            (result.labels.voxels == label.value).sum() * voxel_mm3, rel=0.02
        )


@pytest.mark.skipif(not DemoCase.isThere(), reason="the demo case is not bundled in this checkout")
def test_the_sample_button_loads_the_demo_case_and_it_can_be_upsampled(widget):
    widget.ui.sampleButton.click()
    parameters = widget.panel.parameters
    assert parameters.inputNode is not None
    assert widget.ui.upsampleButton.enabled, widget.ui.inputLabel.text
    chooseLinear(widget, parameters.inputNode, FactorChoice.X2)
    widget.ui.upsampleButton.click()
    until(lambda: not widget.panel.isRunning)
    assert "Done" in widget.ui.statusLabel.text
    assert len(widget.panel.results.planes()) >= 2


def test_the_report_button_writes_a_page_of_the_result(widget, monkeypatch, tmp_path):
    volume, _ = hearts.addPicture(name="DOE^JANE")
    chooseLinear(widget, volume, FactorChoice.X2)
    widget.ui.upsampleButton.click()
    until(lambda: not widget.panel.isRunning)
    path = tmp_path / "report.html"
    monkeypatch.setattr(widget.panel.reportExport, "chooseFile", lambda: str(path))
    widget.ui.reportButton.click()
    until(lambda: not widget.panel.reportExport.isBusy)
    assert "report is written" in widget.ui.statusLabel.text, widget.ui.statusLabel.text
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or "<html" in page[:200].lower()
    assert "linear" in page
    assert "DOE" not in page.split("<script")[0]


def test_closing_the_panel_ends_the_engine(widget, logic):
    startLongRun(widget)
    process = engineProcess(logic)
    widget.panel.close()
    until(lambda: process.poll() is not None)
    assert slicer.util.getNodesByClass("vtkMRMLSequenceNode")[-1].GetName() == "SAX"
