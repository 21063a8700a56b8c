"""The bundled heart: complete, sound, small, and what the builder makes of the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import vtk
from calid.images.checks import findings
from calid.images.files import read_lax_folder, read_stack
from calid_training import demo_case
from vtk.util.numpy_support import vtk_to_numpy

FOLDER = Path(demo_case.__file__).parents[2] / "CaLIDReconstruct" / "Resources" / "Demo"


def mesh_points(path: Path) -> np.ndarray:
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return vtk_to_numpy(reader.GetOutput().GetPoints().GetData())


def test_the_bundled_case_is_a_sound_cine_with_five_views():
    sax = read_stack(FOLDER / "sax.seq.nrrd")
    assert findings(sax) == []
    assert sax.voxels.shape == (25, 6, 128, 128)
    assert sax.voxels.dtype == np.int16
    assert sax.spacing_mm[2] == pytest.approx(17.7, abs=0.01)
    views = read_lax_folder(FOLDER)
    assert {view.name for view in views} == {"2ch", "3ch", "4ch", "rv-2ch", "rvot"}
    assert all(view.stack.voxels.shape == (25, 1, 120, 120) for view in views)


def test_end_diastole_and_end_systole_are_named_in_the_headers_and_beside_them():
    facts = json.loads((FOLDER / "demo.json").read_text())
    sax = read_stack(FOLDER / "sax.seq.nrrd")
    assert (facts["ed_frame"], facts["es_frame"]) == (0, 9)
    assert (sax.provenance["ed_frame"], sax.provenance["es_frame"]) == (0, 9)
    assert facts["mesh_lv_volume_ml"]["es_frame"] < facts["mesh_lv_volume_ml"]["ed_frame"] / 2


def test_the_fitted_heart_lies_well_inside_every_window():
    """The surfaces are in patient space; a wrong crop or affine would put them elsewhere."""
    for image in [read_stack(FOLDER / "sax.seq.nrrd"), *(view.stack for view in read_lax_folder(FOLDER))]:
        points = np.concatenate([mesh_points(path) for path in sorted((FOLDER / "meshes").glob("*.vtp"))])
        indices = image.to_index(points)
        inside = indices[(indices[:, 2] > -0.5) & (indices[:, 2] < image.num_slices - 0.5), :2]
        assert len(inside) > 100
        assert inside.min() > 8
        assert (inside < np.array(image.voxels.shape[:1:-1]) - 9).all()


def test_blood_is_brighter_than_muscle_where_the_fitted_surfaces_say():
    sax = read_stack(FOLDER / "sax.seq.nrrd")
    for moment, frame in (("ed", 0), ("es", 9)):
        cavity = sax.to_index(mesh_points(FOLDER / "meshes" / f"{moment}-lv-endocardial.vtp"))
        blood, muscle = [], []
        for z in (2, 3):
            ring = cavity[np.abs(cavity[:, 2] - z) < 0.3, :2]
            center = ring.mean(axis=0)
            for share, values in ((0.5, blood), (1.25, muscle)):
                columns, rows = np.round(center + share * (ring - center)).astype(int).T
                values.append(np.median(sax.voxels[frame, z, rows, columns]))
        assert min(blood) > 1.5 * max(muscle)


def test_the_case_is_small_and_has_its_notice():
    total = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert total <= demo_case.MAX_BYTES
    notice = (FOLDER / "NOTICE.md").read_text()
    assert "Apache-2.0" in notice
    assert "Auckland" in notice


def test_no_element_of_the_original_headers_that_names_a_person_is_left():
    for path in FOLDER.rglob("*.nrrd"):
        header = path.read_bytes().split(b"\n\n")[0].decode()
        assert not any(word in header for word in ("biv-me^", "PatientName", "1.2.826"))


@pytest.mark.data
def test_the_builder_makes_the_bundled_case_with_the_original_voxels(data_folder, tmp_path):
    bivme = data_folder / "bivme"
    assert demo_case.main([str(bivme), str(tmp_path)]) == 0
    for path in FOLDER.rglob("*.nrrd"):
        bundled, built = read_stack(path), read_stack(tmp_path / path.name)
        np.testing.assert_array_equal(bundled.voxels, built.voxels)
        np.testing.assert_array_equal(bundled.affine, built.affine)
        assert bundled.provenance == built.provenance
    original = pydicom.dcmread(bivme / "dicoms" / "Se6" / "010.dcm")
    view = read_stack(tmp_path / "4ch.seq.nrrd")
    x, y = view.provenance["crop_start"]
    np.testing.assert_array_equal(view.voxels[9, 0], original.pixel_array[y : y + 120, x : x + 120])


@pytest.mark.data
def test_a_case_that_would_be_too_large_is_refused(data_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_case, "MAX_BYTES", 1000)
    assert demo_case.main([str(data_folder / "bivme"), str(tmp_path)]) == 2
    assert "more than 1000" in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(tmp_path, capsys):
    (tmp_path / "dicoms").mkdir()
    assert demo_case.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no DICOM image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
