"""Figures, bull's-eye, measuring again after the contours were changed, and what is exported."""

from __future__ import annotations

import csv
from pathlib import Path

import hearts
import numpy as np
import pytest
import scripted
import slicer
import vtk
import vtk.util.numpy_support
from calid.heart.volumes import cardiac_function
from calid.heart.wall import SEGMENTS, wall_thickness
from calid.labels import LABELS
from CaLIDReconstructLib import BullsEye, Figures, Inputs, Segmentations
from scene_files import saveAndReload


@pytest.fixture
def measured(opened):
    """A panel with the segmented result of a cine."""
    hearts.addPicture(frames=3)
    panel = opened()
    panel.run()
    return panel


def result(panel):
    return panel.panel.results.result


def erodeCavity(node) -> None:
    """Take the outermost of the LV cavity's voxels away in the shown segmentation, as a user would with the editor."""
    segment = node.GetSegmentation().GetSegment("LV")
    image = segment.GetRepresentation(Segmentations.LABELMAP)
    scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    voxels = scalars.reshape(image.GetDimensions()[::-1])
    for layer in voxels:
        rows = np.flatnonzero((layer == 1).any(axis=1))
        if rows.size:
            layer[rows[: len(rows) // 2]] = np.where(
                layer[rows[: len(rows) // 2]] == 1, 0, layer[rows[: len(rows) // 2]]
            )
    image.Modified()
    node.Modified()


def test_the_figures_are_those_of_the_labels_and_stand_by_the_warning(measured):
    labels = result(measured).labels
    assert "EF" in measured.ui.functionLabel.text
    assert f"EDV {cardiac_function(labels).lv.edv_ml:.0f} ml" in measured.ui.functionLabel.text
    assert measured.ui.notDiagnosisLabel.isVisibleTo(measured.widget.parent)
    assert measured.ui.notDiagnosisLabel.text == "Not for diagnosis."
    wall = wall_thickness(labels)
    values = Figures.segmentValues(result(measured).segmentTable)
    assert np.allclose(values[Figures.ED], wall.ed_mm, equal_nan=True)
    assert np.allclose(values[Figures.THICKENING], wall.thickening_percent, equal_nan=True)


def test_the_bulls_eye_is_shown_for_the_chosen_figure(measured):
    label, box = measured.ui.bullseyeLabel, measured.ui.bullseyeComboBox
    assert label.isVisibleTo(measured.widget.parent)
    assert label.pixmap.width() == BullsEye.SIZE
    assert [box.itemText(index) for index in range(box.count)][2].startswith("Wall thickening")
    before = label.pixmap.toImage()
    box.setCurrentIndex(2)
    assert label.pixmap.toImage() != before


def test_contours_that_were_changed_count_after_recompute(measured):
    node = result(measured).segmentation
    before = measured.ui.functionLabel.text
    table = result(measured).functionTable
    volumes = slicer.util.arrayFromTableColumn(table, "LV (ml)").copy()
    browser = Inputs.resolve(measured.parameters.inputNode).browser
    browser.SetSelectedItemNumber(1)
    surface = node.GetSegmentation().GetSegment("LV").GetRepresentation(Segmentations.SURFACE)
    points = surface.GetNumberOfPoints()
    erodeCavity(node)
    nodes = hearts.nodeIds()
    measured.ui.recomputeButton.click()
    after = slicer.util.arrayFromTableColumn(table, "LV (ml)")
    expected = cardiac_function(result(measured).labels).lv.volumes_ml
    assert np.allclose(after, expected)
    assert after[1] < 0.7 * volumes[1]
    assert np.allclose(after[[0, 2]], volumes[[0, 2]])
    assert measured.ui.functionLabel.text != before
    assert "Measured again" in measured.ui.statusLabel.text
    assert hearts.nodeIds() == nodes  # the same table, plot and segmentation
    remade = node.GetSegmentation().GetSegment("LV").GetRepresentation(Segmentations.SURFACE)
    assert remade.GetNumberOfPoints() != points
    browser.SetSelectedItemNumber(0)
    browser.SetSelectedItemNumber(1)
    assert cardiac_function(result(measured).labels).lv.volumes_ml[1] == pytest.approx(after[1])


def test_recompute_remakes_only_what_was_changed(measured, monkeypatch):
    from CaLIDReconstructLib import Recomputation

    made = []
    monkeypatch.setattr(Recomputation, "surfaces", lambda _labels, frame, **_: made.append(frame) or {})
    measured.ui.recomputeButton.click()
    assert made == []
    Inputs.resolve(measured.parameters.inputNode).browser.SetSelectedItemNumber(2)
    erodeCavity(result(measured).segmentation)
    measured.ui.recomputeButton.click()
    assert made == [2]


def test_figures_are_found_again_in_a_loaded_scene(measured, scene, tmp_path):
    saved = Figures.segmentValues(result(measured).segmentTable)
    saveAndReload(scene, tmp_path)
    measured.widget.enter()
    loaded = Figures.segmentValues(result(measured).segmentTable)
    for column, values in saved.items():
        assert np.allclose(loaded[column], values, equal_nan=True, atol=1e-3)
    assert measured.ui.bullseyeLabel.isVisibleTo(measured.widget.parent)


def test_a_still_volume_has_a_wall_but_no_curve(opened):
    hearts.addPicture()
    panel = opened()
    panel.run()
    assert not panel.ui.functionButton.enabled
    assert list(Figures.segmentValues(result(panel).segmentTable)) == [Figures.ED]
    assert panel.ui.notDiagnosisLabel.isVisibleTo(panel.widget.parent)


def test_where_there_is_no_heart_the_reason_is_said(opened):
    hearts.addPicture()

    def script(request):
        if request["command"] != "segment":
            return scripted.good(request)
        events = scripted.segment(request)
        emptied(Path(request["output"]))
        return events

    panel = opened(script)
    panel.run()
    assert "No wall thickness" in panel.ui.resultLabel.text
    assert "\u26a0" in panel.ui.resultLabel.text
    assert not panel.ui.bullseyeLabel.isVisibleTo(panel.widget.parent)


def emptied(path: Path) -> None:
    from calid.images import files

    labels = files.read_stack(path)
    files.write_labels(labels.with_voxels(np.zeros_like(labels.voxels)), path, overwrite=True)


@pytest.mark.parametrize(
    ("suffix", "reader"), [(".stl", vtk.vtkSTLReader), (".obj", vtk.vtkOBJReader), (".vtp", vtk.vtkXMLPolyDataReader)]
)
def test_the_surfaces_of_all_frames_are_written_in_lps(measured, monkeypatch, tmp_path, suffix, reader):
    figures = measured.panel.results._figures
    monkeypatch.setattr(figures, "chooseFolder", lambda: str(tmp_path))
    figures.onSurfaces(suffix)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"frame{frame:02d}-{label.key}{suffix}" for frame in range(3) for label in LABELS
    }
    assert "9 files" in measured.ui.statusLabel.text
    read = reader()
    read.SetFileName(str(tmp_path / f"frame00-LV{suffix}"))
    read.Update()
    labels = result(measured).labels
    inside = labels.to_lps(np.argwhere(labels.voxels[0] == 1)[:, ::-1])
    bounds = np.array(read.GetOutput().GetBounds()).reshape(3, 2)
    assert np.allclose(bounds[:, 0], inside.min(axis=0), atol=4)
    assert np.allclose(bounds[:, 1], inside.max(axis=0), atol=4)


def test_gltf_is_one_file_per_frame_in_meters(measured, monkeypatch, tmp_path):
    figures = measured.panel.results._figures
    monkeypatch.setattr(figures, "chooseFolder", lambda: str(tmp_path))
    figures.onSurfaces(".glb")
    assert {path.name for path in tmp_path.iterdir()} == {f"frame{frame:02d}.glb" for frame in range(3)}
    reader = vtk.vtkGLTFReader()
    reader.SetFileName(str(tmp_path / "frame00.glb"))
    reader.Update()
    labels = result(measured).labels
    inside = labels.to_lps(np.argwhere(labels.voxels[0] > 0)[:, ::-1]) / 1000
    bounds = np.zeros(6)
    reader.GetOutput().GetBounds(bounds)
    assert np.allclose(bounds[:2], [inside[:, 0].min(), inside[:, 0].max()], atol=0.005)  # x is the patient's left
    assert np.allclose(bounds[2:4], [inside[:, 2].min(), inside[:, 2].max()], atol=0.005)  # y is the head


def test_the_figures_are_written_as_a_table_without_names(opened, monkeypatch, tmp_path):
    hearts.addPicture(frames=3, name="DOE^JANE")
    panel = opened()
    panel.run()
    path = tmp_path / "figures.csv"
    figures = panel.panel.results._figures
    monkeypatch.setattr(figures, "chooseFile", lambda _name, _kinds: str(path))
    panel.ui.figuresButton.click()
    text = path.read_text(encoding="utf-8")
    assert "DOE" not in text
    assert "not for diagnosis" in text
    rows = list(csv.DictReader(text.splitlines()))
    labels = result(panel).labels
    function = cardiac_function(labels)
    of = {row["quantity"]: row for row in rows}
    assert float(of["LV EF"]["value"]) == pytest.approx(function.lv.ef_percent, rel=1e-4)
    curve = [float(row["value"]) for row in rows if row["quantity"] == "RV volume"]
    assert np.allclose(curve, function.rv.volumes_ml, rtol=1e-4)
    thickness = [row for row in rows if row["quantity"] == "LV wall thickness ED"]
    assert [row["segment"] for row in thickness] == [f"{segment.number} {segment.name}" for segment in SEGMENTS]
    assert all(row["unit"] == "mm" for row in thickness)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.csv"]


def test_a_file_that_cannot_be_written_is_told_as_an_error(measured, monkeypatch, tmp_path):
    figures = measured.panel.results._figures
    monkeypatch.setattr(figures, "chooseFile", lambda _name, _kinds: str(tmp_path / "missing" / "figures.csv"))
    measured.ui.figuresButton.click()
    assert measured.ui.statusLabel.text.startswith("\u2716")


def test_no_folder_chosen_writes_nothing(measured, monkeypatch):
    figures = measured.panel.results._figures
    monkeypatch.setattr(figures, "chooseFolder", lambda: "")
    before = measured.ui.statusLabel.text
    figures.onSurfaces(".stl")
    assert measured.ui.statusLabel.text == before


def test_segments_lie_where_the_american_heart_association_puts_them():
    places = {segment.name: BullsEye.place(segment) for segment in SEGMENTS}
    assert places["basal anterior"][1] < -0.8
    assert abs(places["basal anterior"][0]) < 1e-9
    assert places["basal inferior"][1] > 0.8
    assert places["apical septal"][0] < -0.3
    assert places["apical lateral"][0] > 0.3
    for ring in ("basal", "mid"):
        assert places[f"{ring} anteroseptal"][0] < 0
        assert places[f"{ring} anteroseptal"][1] < 0
        assert places[f"{ring} inferolateral"][0] > 0
        assert places[f"{ring} inferolateral"][1] > 0
    assert places["apex"] == (0.0, 0.0)


def test_a_segment_without_a_figure_is_gray():
    assert len(set(BullsEye.rampColor(np.nan, (0.0, 1.0)))) == 1
    assert BullsEye.limits(np.full(17, np.nan)) == (0.0, 1.0)
