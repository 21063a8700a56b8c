"""One run from nodes to nodes with an engine in memory: what it makes, and what is left when it goes wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
import scripted
import slicer
import vtk
from calid.images import files
from CaLIDReconstructLib import Inputs, Nodes, Results, Segmentations
from CaLIDReconstructLib.EngineClient import EngineClient
from CaLIDReconstructLib.Job import UpsampleJob
from CaLIDReconstructLib.Logic import Quiet
from CaLIDReconstructLib.RunResult import resultsOf
from CaLIDReconstructLib.Settings import RunSettings


@pytest.fixture(autouse=True)
def temporaryFolder(tmp_path, monkeypatch) -> Path:
    """The folder that takes the place of Slicer's for temporary files."""
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    return tmp_path


class Run:
    """A run on a scripted engine, stepped by hand."""

    def __init__(self, script, node, *, obeysCancel: bool = True, **settings) -> None:
        self.transport = scripted.ScriptedTransport(script, obeysCancel=obeysCancel)
        self.client = EngineClient(lambda: self.transport)
        self.listener = Quiet()
        self.job = UpsampleJob(self.client, node, RunSettings(**{"factor": 2, **settings}), self.listener)
        self.before = hearts.nodeIds()
        self.job.start()

    def step(self) -> None:
        self.client.poll()
        self.job.advance()

    def until(self, condition) -> Run:
        for _ in range(500):
            if condition():
                return self
            self.step()
        raise AssertionError("never happened")

    def toTheEnd(self) -> Run:
        return self.until(lambda: self.job.isDone)

    @property
    def leftovers(self) -> set[str]:
        return hearts.nodeIds() - self.before


def test_a_volume_is_upsampled_and_no_temporary_file_is_left(temporaryFolder):
    volume, _ = hearts.addPicture()
    run = Run(scripted.good, volume).toTheEnd()
    result = run.listener.result
    assert np.array_equal(slicer.util.arrayFromVolume(result.volume)[::2], slicer.util.arrayFromVolume(volume))
    assert list(temporaryFolder.iterdir()) == []
    result.remove()
    assert run.leftovers == set()


def test_the_storage_nodes_of_a_saved_result_go_with_it():
    volume, _ = hearts.addPicture(frames=2)
    run = Run(scripted.good, volume, segment=True).toTheEnd()
    for node in run.listener.result.nodes:
        if node.IsA("vtkMRMLStorableNode"):
            node.AddDefaultStorageNode()
    run.listener.result.remove()
    assert run.leftovers == set()


def test_all_frames_of_a_cine_go_in_one_request():
    volume, _ = hearts.addPicture(frames=4)
    run = Run(scripted.good, volume).toTheEnd()
    assert run.transport.commands == ["upsample"]
    assert run.listener.result.sequence.GetNumberOfDataNodes() == 4


def test_frames_of_a_cine_are_there_before_the_run_ends(scene):
    volume, _ = hearts.addPicture(frames=3)
    run = Run(scripted.good, volume)
    run.until(lambda: scene.GetFirstNodeByName("SAX CaLID+ x2") is not None)
    assert not run.job.isDone
    sequence = next(n for n in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if n.GetName() == "SAX CaLID+ x2")
    assert sequence.GetNumberOfDataNodes() == 1
    run.toTheEnd()
    assert sequence.GetNumberOfDataNodes() == 3


def test_the_shown_frame_alone_gives_a_volume():
    volume, _ = hearts.addPicture(frames=3)
    result = Run(scripted.good, volume, allFrames=False).toTheEnd().listener.result
    assert result.sequence is None
    assert result.volume.GetImageData() is not None


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda _request: scripted.error("memory"), "memory"),
        (lambda _request: scripted.exitWith(3, "RuntimeError: broken"), "engine-crashed"),
        (lambda _request: scripted.exitWith(-9), "engine-killed"),
        (lambda request: [{"event": "result", "output": request["output"]}], "missing-file"),
        (lambda request: [*scripted.upsample(request)[:-1], *scripted.error("disk-full", "No room.")], "disk-full"),
    ],
    ids=["memory", "crash", "killed", "no output", "late error"],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_a_run_that_fails_says_why_and_leaves_nothing(temporaryFolder, script, code, frames):
    volume, _ = hearts.addPicture(frames)
    run = Run(script, volume).toTheEnd()
    assert run.listener.result is None
    assert run.listener.failure.code == code
    assert run.listener.failure.text()
    assert run.leftovers == set()
    assert list(temporaryFolder.iterdir()) == []


def test_a_full_disk_is_said_before_the_engine_is_asked(temporaryFolder, monkeypatch):
    volume, _ = hearts.addPicture()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_stack", full)
    run = Run(scripted.good, volume)
    assert run.listener.failure.code == "disk-full"
    assert run.transport.requests == []
    assert list(temporaryFolder.iterdir()) == []


def test_cancel_leaves_no_node_and_no_file(temporaryFolder):
    volume, _ = hearts.addPicture(frames=3)
    browser = Inputs.resolve(volume).browser
    run = Run(lambda request: scripted.upsample(request)[:-2], volume)
    run.until(lambda: run.leftovers)
    run.job.cancel()
    run.toTheEnd()
    assert run.listener.wasCancelled
    assert run.leftovers == set()
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 1
    assert list(temporaryFolder.iterdir()) == []


def test_an_engine_that_ignores_cancel_is_ended():
    volume, _ = hearts.addPicture()
    clock = [0.0]
    run = Run(lambda _request: [scripted.progress()], volume, obeysCancel=False)
    run.client._clock = lambda: clock[0]
    run.job.cancel()
    run.step()
    assert not run.job.isDone
    clock[0] = 2.0
    run.step()
    assert run.transport.isKilled
    assert run.listener.wasCancelled


def test_removing_the_input_ends_the_run_with_a_reason(scene, temporaryFolder):
    volume, _ = hearts.addPicture()
    run = Run(lambda _request: [scripted.progress()], volume)
    run.step()
    scene.RemoveNode(volume)
    assert run.listener.failure.code == "input-removed"
    assert "cancel" in run.transport.commands
    assert list(temporaryFolder.iterdir()) == []


def test_removing_the_browser_ends_the_run_with_a_reason(scene):
    volume, _ = hearts.addPicture(frames=3)
    run = Run(lambda request: scripted.upsample(request)[:-2], volume)
    run.until(lambda: run.leftovers)
    scene.RemoveNode(Inputs.resolve(volume).browser)
    assert run.listener.failure.code == "input-removed"
    assert "browser was deleted" in run.listener.failure.text()
    assert run.leftovers == set()


def test_removing_the_browser_that_the_run_made_ends_it_too(scene):
    sequence = hearts.addUnplayed(frames=3)
    run = Run(lambda request: scripted.upsample(request)[:-2], sequence)
    run.until(lambda: slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"))
    scene.RemoveNode(slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")[0])
    assert run.listener.failure.code == "output-removed"
    assert run.leftovers == set()


def test_a_still_of_a_cine_needs_no_browser(scene):
    volume, _ = hearts.addPicture(frames=3)
    run = Run(scripted.good, volume, allFrames=False)
    scene.RemoveNode(Inputs.resolve(volume).browser)
    assert run.toTheEnd().listener.result is not None


def test_a_reason_names_no_node(scene):
    volume, _ = hearts.addPicture(frames=3, name="DOE^JANE")
    run = Run(lambda request: scripted.upsample(request)[:-2], volume)
    scene.RemoveNode(Inputs.resolve(volume).sequence)
    assert run.listener.failure.code == "input-removed"
    assert "DOE" not in run.listener.failure.text()


@pytest.mark.parametrize("hasWindow", [True, False])
def test_the_sequence_toolbar_plays_the_cine_of_the_run_where_there_is_a_window(monkeypatch, hasWindow):
    volume, _ = hearts.addPicture(frames=2)
    Nodes.addStack(hearts.picture(2), "2ch")
    shown = []
    monkeypatch.setattr(slicer.app, "layoutManager", lambda: object() if hasWindow else None)
    monkeypatch.setattr(slicer.modules.sequences, "showSequenceBrowser", shown.append, raising=False)
    Run(scripted.good, volume)
    assert shown == ([Inputs.resolve(volume).browser] if hasWindow else [])


def test_a_wall_stays_transparent_and_a_hidden_segment_hidden_in_every_frame():
    volume, _ = hearts.addPicture(frames=3)
    display = Run(scripted.good, volume, segment=True).toTheEnd().listener.result.segmentation.GetDisplayNode()
    assert display.GetSegmentOpacity3D("MYO") == Segmentations.WALL_OPACITY_3D
    display.SetSegmentVisibility("RV", False)
    for frame in (2, 0):
        Inputs.resolve(volume).browser.SetSelectedItemNumber(frame)
        assert display.GetSegmentOpacity3D("MYO") == Segmentations.WALL_OPACITY_3D
        assert not display.GetSegmentVisibility("RV")
        assert display.GetSegmentVisibility("LV")


@pytest.mark.parametrize("frames", [1, 3])
def test_the_labels_of_a_result_are_those_of_its_segments(frames):
    volume, _ = hearts.addPicture(frames)
    result = Run(scripted.good, volume, segment=True).toTheEnd().listener.result
    expected = hearts.dense(hearts.labels(frames), 2)
    assert np.array_equal(result.labels.voxels, expected.voxels)
    assert np.allclose(result.labels.affine, expected.affine)
    assert np.array_equal(result.labels.generated, expected.generated)
    assert np.allclose(result.labels.frame_times_ms, expected.frame_times_ms)
    assert result.labels.provenance["segmenter"] == scripted.SEGMENTER
    result.segmentation.GetSegmentation().RemoveSegment("RV")
    assert set(np.unique(result.labels.voxels[0])) == {0, 1, 2}  # what the user changes in the shown frame counts
    assert all(set(np.unique(frame)) == {0, 1, 2, 3} for frame in result.labels.voxels[1:])


def test_a_mask_keeps_its_colors_when_an_older_result_is_removed():
    volume, _ = hearts.addPicture()
    first, second = (Run(scripted.good, volume).toTheEnd().listener.result for _ in range(2))
    first.remove()
    colors = second.generatedMask.GetDisplayNode().GetColorNode()
    assert colors.GetColorName(1) == "generated"


def test_the_results_of_an_input_are_found_newest_first(scene):
    volume, other = (hearts.addPicture(name=name)[0] for name in ("SAX", "other"))
    assert resultsOf(volume) == []
    first, _, third = (Run(scripted.good, node).toTheEnd().listener.result for node in (volume, other, volume))
    assert [result.node for result in resultsOf(volume)] == [third.node, first.node]
    assert resultsOf(None) == []
    scene.RemoveNode(volume)
    assert [result.node for result in resultsOf(None)] == [third.node, first.node]
    assert third.node not in [result.node for result in resultsOf(other)]


def test_removing_the_growing_result_ends_the_run_with_a_reason(scene):
    volume, _ = hearts.addPicture(frames=3)
    run = Run(lambda request: scripted.upsample(request)[:-2], volume)
    run.until(lambda: slicer.util.getNodesByClass("vtkMRMLSequenceNode")[-1].GetName() == "SAX CaLID+ x2")
    scene.RemoveNode(slicer.util.getNodesByClass("vtkMRMLSequenceNode")[-1])
    assert run.listener.failure.code == "output-removed"
    assert run.leftovers == set()


def test_closing_the_scene_ends_the_run(scene, temporaryFolder):
    volume, _ = hearts.addPicture(frames=3)
    run = Run(lambda request: scripted.upsample(request)[:-2], volume)
    run.until(lambda: run.leftovers)
    scene.Clear()
    assert run.job.isDone
    assert run.listener.failure.code == "scene-closed"
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
    assert list(temporaryFolder.iterdir()) == []
    for _ in range(5):
        run.step()


def test_an_unsuitable_input_fails_before_the_engine_is_asked():
    stack = hearts.picture()
    single = Nodes.addVolume(stack.with_voxels(stack.voxels[:, :1], generated=None), "LAX")
    run = Run(scripted.good, single)
    assert run.listener.failure.code == "one-slice"
    assert run.transport.requests == []


def test_the_settings_reach_the_engine():
    volume, _ = hearts.addPicture()
    run = Run(
        scripted.good, volume, factor=4, method="calid", mode="fidelity", samples=5, steps=12, seed=3, device="cpu"
    )
    request = run.transport.requests[0]
    wanted = {"factor": 4, "method": "calid", "mode": "fidelity", "samples": 5, "steps": 12, "seed": 3, "device": "cpu"}
    assert {key: request[key] for key in wanted} == wanted
    assert request["roi"] is None
    assert request["frames_folder"] is None


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(TypeError, match="facter"):
        RunSettings(facter=4)
    with pytest.raises(ValueError, match="factor=3"):
        RunSettings(factor=3)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_segmentation_has_names_colors_terminology_and_surfaces(frames):
    volume, _ = hearts.addPicture(frames)
    result = Run(scripted.good, volume, segment=True).toTheEnd().listener.result
    assert result.warnings == []
    segmentation = result.segmentation.GetSegmentation()
    names = [segmentation.GetNthSegment(index).GetName() for index in range(3)]
    assert names == ["LV cavity", "LV myocardium", "RV cavity"]
    myocardium = segmentation.GetSegment("MYO")
    assert np.allclose(myocardium.GetColor(), np.array([189, 178, 166]) / 255)
    entry = vtk.reference("")
    assert myocardium.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
    assert "SCT^74281007^Myocardium" in str(entry)
    assert segmentation.ContainsRepresentation("Closed surface")


def test_surfaces_lie_where_the_heart_lies():
    volume, _ = hearts.addPicture()
    result = Run(scripted.good, volume, segment=True).toTheEnd().listener.result
    surface = vtk.vtkPolyData()
    result.segmentation.GetClosedSurfaceRepresentation("LV", surface)
    bounds = np.array(surface.GetBounds()).reshape(3, 2)
    inside = np.argwhere(hearts.labels().voxels[0] == 1)[:, ::-1]
    ras = hearts.labels().to_lps(inside) * [-1, -1, 1]
    assert np.allclose(bounds.mean(axis=1), (ras.min(axis=0) + ras.max(axis=0)) / 2, atol=6)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_engines_surfaces_are_shown_in_their_place_facing_outwards(frames):
    volume, _ = hearts.addPicture(frames)

    def script(request):
        return scripted.segmentWithSurfaces(request) if request["command"] == "segment" else scripted.good(request)

    run = Run(script, volume, segment=True).toTheEnd()
    node = run.listener.result.segmentation
    if frames > 1:
        Inputs.resolve(volume).browser.SetSelectedItemNumber(2)
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation("LV", surface)
    corners = [surface.GetPoint(index) for index in range(surface.GetNumberOfPoints())]
    assert corners == [(-10, -20, 30), (-15, -20, 30), (-10, -25, 30), (-10, -20, 35)]
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputData(surface)
    normals.ComputePointNormalsOff()
    normals.ComputeCellNormalsOn()
    normals.ConsistencyOff()
    normals.SplittingOff()
    normals.Update()
    bottom = normals.GetOutput().GetCellData().GetNormals().GetTuple(0)
    assert bottom == pytest.approx((0, 0, -1), abs=1e-6)  # the face at the lowest S
    node.GetClosedSurfaceRepresentation("RV", surface)
    assert surface.GetNumberOfPoints() > 100  # what the engine did not write is made by Slicer


def test_a_segmentation_says_what_made_it_and_under_which_license():
    volume, _ = hearts.addPicture(frames=2)
    result = Run(scripted.good, volume, segment=True).toTheEnd().listener.result
    Inputs.resolve(volume).browser.SetSelectedItemNumber(1)
    for node in (result.segmentation, result.functionTable):
        assert json.loads(node.GetAttribute(Results.PROVENANCE))["segmenter"] == scripted.SEGMENTER
        assert node.GetAttribute(Results.LICENSE) == "CC-BY-NC-SA-4.0"
    assert result.sequence.GetAttribute(Results.LICENSE) is None  # this engine named no model


def test_volumes_over_time_agree_with_the_phantoms_formula():
    volume, _ = hearts.addPicture(frames=4)
    result = Run(scripted.good, volume, segment=True).toTheEnd().listener.result
    table = slicer.util.arrayFromTableColumn(result.functionTable, "LV (ml)")
    expected = [phantoms.lv_volume_ml(contraction) for contraction in np.linspace(1.0, 0.75, 4)]
    assert np.allclose(table, expected, rtol=0.12)
    times = slicer.util.arrayFromTableColumn(result.functionTable, "time (ms)")
    assert np.allclose(times, hearts.picture(4).frame_times_ms)
    assert result.functionChart.GetNumberOfPlotSeriesNodes() == 2
    assert "EF" in result.functionSummary


@pytest.mark.parametrize("frames", [1, 3])
def test_the_uncertainty_map_lies_beside_the_result(frames):
    volume, _ = hearts.addPicture(frames)
    run = Run(scripted.good, volume, uncertainty=True).toTheEnd()
    assert run.transport.requests[0]["samples"] == 8
    result = run.listener.result
    node = result.uncertainty.GetNthDataNode(frames - 1) if frames > 1 else result.uncertainty
    values = slicer.util.arrayFromVolume(node)
    assert values[1].min() == values[1].max() == pytest.approx(7.5)
    assert values[0].max() == 0
    result.remove()
    assert run.leftovers == set()


def test_a_failed_segmentation_keeps_the_volume_and_says_why():
    volume, _ = hearts.addPicture()

    def script(request):
        return (
            scripted.error("no-models", "No segmenter.") if request["command"] == "segment" else scripted.good(request)
        )

    result = Run(script, volume, segment=True).toTheEnd().listener.result
    assert result.volume is not None
    assert result.segmentation is None
    assert "No segmenter." in result.warnings[0]


def test_our_terminology_knows_every_label_with_its_color():
    logic = slicer.modules.terminologies.logic()
    context = logic.LoadTerminologyFromFile(str(Segmentations.TERMINOLOGY_FILE))
    assert context == Segmentations.TERMINOLOGY_CONTEXT
    for index, label in enumerate(Segmentations.LABELS):
        entry, kind = slicer.vtkSlicerTerminologyEntry(), slicer.vtkSlicerTerminologyType()
        assert logic.DeserializeTerminologyEntry(Segmentations.terminology(label), entry)
        assert entry.GetTerminologyContextName() == context
        assert logic.GetNthTypeInTerminologyCategory(context, entry.GetCategoryObject(), index, kind)
        assert kind.GetCodeValue() == entry.GetTypeObject().GetCodeValue() == label.snomed
        assert tuple(kind.GetRecommendedDisplayRGBValue()) == label.rgb
