"""Breath-holds and long-axis images: what is asked of the engine, what is told, and what proves nothing any more."""

from __future__ import annotations

from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
import scripted
import slicer
import vtk
from calid.images import files
from calid.run.shifts import Alignment, Shift
from CaLIDReconstructLib import Inputs, LaxLayout, LaxPlanes, LongAxisFiles, Nodes, Results, RunResult
from CaLIDReconstructLib.Shifts import shiftsOf
from scene_files import saveAndReload

HEART = phantoms.heart_frame(3)
FRAMES = 2


def alignment(shifts: list[float], uncertainty: float = 0.3, *, applied: bool = False) -> dict:
    """What the engine tells of slices that are off by so many mm."""
    slices = tuple(
        Shift(f"slice {index + 1}", (mm, 0.0, 0.0), (uncertainty, uncertainty, 3.0)) for index, mm in enumerate(shifts)
    )
    views = (Shift("long axis 1", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),)
    return Alignment("long-axis images", slices, views, applied=applied).as_json()


def telling(**provenance):
    """A scripted engine whose results say so of themselves."""

    def script(request: dict) -> list[dict]:
        events = scripted.good(request)
        if request["command"] == "upsample":
            path = Path(request["output"])
            made = files.read_stack(path)
            told = {**provenance} | (
                {"alignment": alignment([0, 3.1], applied=True)} if request["align"] == "on" else {}
            )
            files.write_stack(made.noted(**told), path, overwrite=True)
        return events

    return script


def addViews() -> list:
    """Two long-axis cines in the scene, in the order of their names."""
    stack = hearts.picture(FRAMES)
    angles = {"DOE 2ch": np.pi / 2, "DOE 4ch": 0.0}
    return [Nodes.addStack(hearts.longAxis(stack, HEART, angle=angle), name)[0] for name, angle in angles.items()]


@pytest.mark.parametrize("shifts", [[0.5, -3.1, 1.0], [0.1, 0.2, 0.3], [1.9, -1.95, 0], [0, 2.5, -2.6]])
@pytest.mark.parametrize("uncertainty", [0.3, 1.2])
def test_shifts_are_told_as_the_engine_judges_them(shifts, uncertainty):
    """The engine's own words on the same figures are the oracle."""
    found = shiftsOf({"alignment": alignment(shifts, uncertainty)})
    slices = tuple(
        Shift(f"slice {index + 1}", (mm, 0.0, 0.0), (uncertainty, uncertainty, 3.0)) for index, mm in enumerate(shifts)
    )
    oracle = Alignment("long-axis images", slices)
    assert found.isNoticeable == oracle.is_noticeable
    assert found.worst_mm == pytest.approx(oracle.worst_mm)
    assert f"{oracle.worst_mm:.1f} mm" in found.text()
    assert f"slice {found.where};" in found.text()
    assert shiftsOf({}) is None
    assert "No slice is off" in shiftsOf({"alignment": alignment([0.0, 0.0])}).text()


def test_the_long_axis_images_of_the_scene_go_along_under_names_of_their_own(opened):
    nodes = addViews()
    sax, _ = hearts.addPicture(FRAMES)
    seen, counted = {}, []

    def script(request: dict) -> list[dict]:
        if request["command"] == "estimate":
            counted.append(request["num_views"])
        if request["command"] == "upsample":
            seen.update(request)
            seen["stacks"] = {path.name: files.read_stack(path) for path in Path(request["views"]).iterdir()}
        return scripted.good(request)

    panel = opened(script)
    panel.parameters.inputNode = sax
    panel.until(lambda: counted)
    panel.run()
    assert counted[-1] == 2
    assert (seen["align"], seen["lax"]) == ("report", "auto")
    assert sorted(seen["stacks"]) == ["long axis 1.seq.nrrd", "long axis 2.seq.nrrd"]
    original = Nodes.stackFromSequence(Inputs.resolve(nodes[0]).sequence)
    assert np.array_equal(seen["stacks"]["long axis 1.seq.nrrd"].voxels, original.voxels)
    np.testing.assert_allclose(seen["stacks"]["long axis 1.seq.nrrd"].affine, original.affine, atol=1e-6)
    assert panel.panel.results.result.views == nodes
    panel.ui.laxCheckBox.checked = False
    panel.ui.alignCheckBox.checked = True
    panel.run()
    assert (seen["align"], seen["lax"]) == ("on", "off")


def test_views_are_written_in_the_space_of_the_stack(tmp_path):
    """A stack under a transform is written without it, and so is what lies beside it."""
    (node, _) = addViews()
    sax, _ = hearts.addPicture(FRAMES)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turned = vtk.vtkTransform()
    turned.RotateX(20)
    turned.Translate(5, 6, 7)
    transform.SetMatrixTransformToParent(turned.GetMatrix())
    before = LongAxisFiles.viewsOf(sax)
    for each in (sax, node):
        each.SetAndObserveTransformNodeID(transform.GetID())
    assert node in before
    LongAxisFiles.writeViews({"long axis 1": node}, sax, tmp_path)
    original = hearts.longAxis(hearts.picture(FRAMES), HEART, angle=np.pi / 2)
    np.testing.assert_allclose(files.read_stack(tmp_path / "long axis 1.seq.nrrd").affine, original.affine, atol=1e-6)


def test_slices_that_are_off_are_said_and_one_click_corrects_them(opened):
    addViews()
    sax, _ = hearts.addPicture(FRAMES)
    panel = opened(telling(alignment=alignment([0, 0.4, -3.1])))
    panel.parameters.inputNode = sax
    panel.run()
    assert "Slices are off by up to 3.1 mm (slice 3" in panel.ui.shiftsLabel.text
    assert panel.ui.shiftsLabel.text.startswith("\u26a0")
    assert panel.ui.alignButton.visible
    panel.ui.alignButton.click()
    panel.until(lambda: not panel.panel.isRunning)
    assert panel.parameters.correctShifts
    assert "moved by up to 3.1 mm" in panel.ui.shiftsLabel.text
    assert "acquired ones unchanged" not in panel.ui.resultLabel.text
    assert not panel.ui.alignButton.visible


def test_slices_that_fit_ask_for_nothing(opened):
    sax, _ = hearts.addPicture(FRAMES)
    panel = opened(telling(alignment=alignment([0, 0.4, 0.6])))
    panel.parameters.inputNode = sax
    panel.run()
    assert "up to 0.6 mm" in panel.ui.shiftsLabel.text
    assert not panel.ui.shiftsLabel.text.startswith("\u26a0")
    assert not panel.ui.alignButton.visible


def test_a_view_that_guided_is_told_and_never_shown_as_proof(opened, views):
    assert views.layoutNode is not None
    addViews()
    sax, _ = hearts.addPicture(FRAMES)
    panel = opened(telling(guided_by=["long axis 2"]))
    panel.parameters.inputNode = sax
    panel.run()
    assert "Guided by DOE 4ch" in panel.ui.resultLabel.text
    panel.ui.compareButton.click()
    tags = [LaxLayout.viewTag(row, "acquired") for row in range(2)]
    labels = [slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSliceNode").GetLayoutLabel() for tag in tags]
    assert labels[0] == "DOE 2ch acquired"
    assert labels[1] == "DOE 4ch acquired (guided the result: no proof of it)"
    panel.run()  # a second result, of the same views
    panel.ui.compareButton.click()
    panel.panel.results.leaveComparison()


def test_a_view_keeps_its_name_for_the_report_when_another_one_is_gone(opened, scene):
    """Else an image that guided the result would be taken for one that did not."""
    two, four = addViews()
    sax, _ = hearts.addPicture(FRAMES)
    panel = opened(telling(guided_by=["long axis 2"]))
    panel.parameters.inputNode = sax
    panel.run()
    result = panel.panel.results.result
    scene.RemoveNode(two)
    third, _ = Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), HEART, angle=0.8), "3ch")
    assert result.views == [None, four]
    assert LongAxisFiles.guides(result) == [four]
    assert LongAxisFiles.named([third, four], result.views) == {"long axis 2": four, "long axis 3": third}


def test_guides_are_found_again_in_a_loaded_scene(opened, scene, tmp_path):
    addViews()
    sax, _ = hearts.addPicture(FRAMES)
    panel = opened(telling(guided_by=["long axis 1"]))
    panel.parameters.inputNode = sax
    panel.run()
    saveAndReload(scene, tmp_path)
    (result,) = RunResult.resultsInScene()
    (guide,) = LongAxisFiles.guides(result)
    assert Inputs.resolve(guide).name == "DOE 2ch"
    assert Results.readProvenance(result.node)["guided_by"] == ["long axis 1"]
    assert guide in [plane.volume for plane in LaxPlanes.acquiredPlanes(result.volume)]
