"""The figures as data: one document from every command, which its schema describes and whose values are true."""

from __future__ import annotations

import json
from pathlib import Path

import file_phantoms
import numpy as np
import phantoms
import pytest
from calid.__main__ import main
from calid.errors import InputError, SettingsError
from calid.heart import figures
from calid.heart.volumes import cardiac_function
from calid.images.body import Body, read_body
from calid.images.files import read_stack, write_labels, write_stack
from jsonschema import Draft202012Validator
from test_report import STEP, first_labels, linear, long_axis_images, sparse_of, truth
from test_segmentation import models  # noqa: F401 (a fixture)

SCHEMA = json.loads(figures.SCHEMA_PATH.read_text(encoding="utf-8"))


def checked(path: Path) -> dict:
    """A document that keeps to the schema and has no number that JSON lacks."""
    Draft202012Validator.check_schema(SCHEMA)
    values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(word))
    Draft202012Validator(SCHEMA).validate(values)
    assert values == figures.read_figures(path)
    return values


@pytest.fixture
def heart(tmp_path) -> Path:
    path = tmp_path / "heart.nrrd"
    write_stack(sparse_of(phantoms.pictured(truth())).frames(0, 1), path)
    return path


def test_upsample_tells_what_it_made(heart, tmp_path):
    told = tmp_path / "figures.json"
    linear_run = ["--method", "linear", "--factor", "4", "--json", str(told)]
    assert main(["upsample", str(heart), str(tmp_path / "dense.nrrd"), *linear_run]) == 0
    values = checked(told)
    assert values["command"] == "upsample"
    stack = values["stack"]
    assert stack["slices"] == 4 * (stack["acquired_slices"] - 1) + 1
    assert stack["spacing_mm"][2] == pytest.approx(truth().spacing_mm[2] * STEP / 4)
    assert values["function"] == {"missing": figures.NOT_SEGMENTED}
    assert values["findings"] == []
    assert values["provenance"]["method"] == "linear"


def test_report_tells_function_agreement_and_trust_and_indexes_by_the_body(heart, tmp_path):
    views = tmp_path / "lax"
    views.mkdir()
    for image in long_axis_images():
        write_stack(image.stack, views / f"{image.name}.nrrd")
    sparse = sparse_of(phantoms.pictured(truth())).frames(0, 1)
    write_labels(first_labels(linear(STEP)(sparse)), tmp_path / "labels.nrrd")
    told = tmp_path / "figures.json"
    given = ["--lax", str(views), "--labels", str(tmp_path / "labels.nrrd"), "--method", "linear"]
    more = ["--factor", str(STEP), "--height", "180", "--weight", "80", "--json", str(told)]
    assert main(["report", str(heart), str(tmp_path / "heart.html"), *given, *more]) == 0
    values = checked(told)
    lv = values["function"]["lv"]
    assert lv["edv_ml"] == pytest.approx(phantoms.lv_volume_ml(), rel=0.05)
    assert lv["edv_index_ml_m2"] == pytest.approx(lv["edv_ml"] / 2.0)
    assert values["function"]["mass_index_g_m2"] == pytest.approx(values["function"]["mass_g"] / 2.0)
    assert lv["esv_ml"] is None
    assert set(values["long_axis"]) == {"2ch", "3ch", "4ch"}
    assert set(values["long_axis"]["4ch"]) == {"nearest", "linear"}
    assert values["trust"] == {"missing": "No model was given to predict left-out slices."}
    assert values["seconds"]["upsample"] > 0


def test_info_tells_of_the_machine(tmp_path, capsys):
    told = tmp_path / "machine.json"
    assert main(["info", "--device", "cpu", "--json", str(told)]) == 0
    assert checked(told)["machine"] == json.loads(capsys.readouterr().out)


def test_a_section_that_could_not_be_measured_says_why_and_nothing_infinite_is_written():
    stack = phantoms.pictured(truth())
    values = figures.document("cohort", stack, long_axis={"4ch": {"linear": {"correlation": np.nan}}})
    assert values["long_axis"]["4ch"]["linear"]["correlation"] is None
    assert values["trust"] == {"missing": figures.NOT_TRIED}
    assert values["body"] == {"missing": figures.NO_BODY}
    json.dumps(values, allow_nan=False)


def test_volumes_over_the_cycle_are_those_of_the_labels():
    labels = phantoms.heart_labels((1.5, 1.5, 2.0), contractions=(1.0, 0.8, 0.9))
    function = cardiac_function(labels)
    section = figures.document("segment", labels, function=function, body=Body(160, 62.5))["function"]
    assert section["lv"]["volumes_ml"] == pytest.approx([phantoms.lv_volume_ml(c) for c in (1.0, 0.8, 0.9)], rel=0.05)
    assert (section["ed_frame"], section["es_frame"]) == (0, 1)
    assert section["lv"]["ef_percent"] == pytest.approx(100 * (1 - 0.8**3), abs=1)
    assert section["lv"]["sv_index_ml_m2"] == pytest.approx(section["lv"]["sv_ml"] / (160 * 62.5 / 3600) ** 0.5)


def test_height_and_weight_come_from_the_dicom_headers_where_they_are_plausible(tmp_path):
    stack = file_phantoms.noisy_stack((1, 2, 18, 24))
    tall, heavy = [{"PatientSize": "1.8", "PatientWeight": weight} for weight in ("80", "0")]
    file_phantoms.write_stack(tmp_path / "a", stack, changes=lambda _t, z: tall if z else heavy)
    file_phantoms.write_stack(tmp_path / "b", stack)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert read_body(tmp_path / "a") == Body(180, 80)
    assert read_body(tmp_path / "b") is None
    assert read_body(tmp_path / "a" / "notes.txt") is None


@pytest.mark.parametrize(
    ("given", "said"),
    [((180.0, None), "Only one"), ((1.8, 80.0), "height of 1.8"), ((180.0, 8000.0), "weight of 8000")],
)
def test_an_impossible_body_is_refused(tmp_path, given, said):
    with pytest.raises(SettingsError, match=said):
        figures.body_of(*given, tmp_path)


def test_a_file_for_the_figures_that_cannot_be_written_is_refused_before_the_run(heart, tmp_path, capsys):
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    out = tmp_path / "dense.nrrd"
    assert main(["upsample", str(heart), str(out), "--method", "linear", "--json", str(taken)]) == 2
    assert "taken.json exists already" in capsys.readouterr().err
    assert not out.exists()
    assert main(["upsample", str(heart), str(out), "--method", "linear", "--json", str(tmp_path / "a.txt")]) == 2
    assert not out.exists()


def test_figures_of_another_version_are_not_misread(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text('{"figures_version": 99}')
    with pytest.raises(InputError, match="version 99"):
        figures.read_figures(path)
    path.write_text("nonsense")
    with pytest.raises(InputError, match="no figures"):
        figures.read_figures(path)


def test_segment_tells_the_function_of_its_labels(tmp_path, models):  # noqa: F811
    labels = phantoms.heart_labels((2.0, 2.0, 10.0), contractions=(1.0, 0.8))
    write_stack(phantoms.pictured(labels), tmp_path / "heart.nrrd")
    told, out = tmp_path / "figures.json", tmp_path / "labels.seg.nrrd"
    assert main(["segment", str(tmp_path / "heart.nrrd"), str(out), "--models", str(models), "--json", str(told)]) == 0
    values = checked(told)
    assert values["command"] == "segment"
    assert values["provenance"]["segmenter"]["license"]
    made = read_stack(out)
    if (made.voxels == 1).any():
        assert values["function"]["lv"]["volumes_ml"] == pytest.approx(cardiac_function(made).lv.volumes_ml.tolist())
    else:
        assert "LV cavity" in values["function"]["missing"]


def test_the_wall_is_told_by_segment_and_says_why_it_is_not():
    labels = phantoms.heart_labels((1.5, 1.5, 2.0), contractions=(1.0, 0.8))
    section = figures.wall_section(labels)
    assert set(section) == {"ed_mm", "es_mm"}
    assert list(section["ed_mm"]) == [str(number) for number in range(1, 18)]
    assert section["ed_mm"]["7"] == pytest.approx(phantoms.WALL_MM, rel=0.2)
    assert section["es_mm"]["7"] > section["ed_mm"]["7"]
    assert "LV cavity" in figures.wall_section(labels.with_voxels(np.zeros_like(labels.voxels)))
