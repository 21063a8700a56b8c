"""Published layouts of cardiac MR, written by the tests and read as cases of a cohort."""

from __future__ import annotations

import zipfile
from pathlib import Path

import file_phantoms
import numpy as np
import pytest
from calid.cohort.layouts import CaseImages, read_case, unpacked
from calid.cohort.manifest import CohortCase, cases_of
from calid.errors import InputError
from calid.images.body import Body
from calid.images.files import write_stack
from calid.stack import Stack

CINE = file_phantoms.noisy_stack((9, 5, 18, 24), step_ms=80.0)


def view() -> Stack:
    """A long-axis cine: one slice at a right angle to the short axis."""
    affine = CINE.affine.copy()
    affine[:3, 1], affine[:3, 2] = CINE.affine[:3, 2] / 5, CINE.affine[:3, 1]
    return Stack(CINE.voxels[:, :1, ::-1], affine, CINE.frame_times_ms)


def read(tmp_path: Path, case: CohortCase) -> CaseImages:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return read_case(case, scratch)


def zipped(folder: Path, path: Path, *, more: dict[str, str] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.dcm")):
            archive.write(file, file.relative_to(folder).as_posix().replace("/", "-"))
        for name, text in (more or {}).items():
            archive.writestr(name, text)


def test_uk_biobank_zips_are_read_without_unpacking_by_hand(tmp_path):
    sizes = {"PatientSize": "1.7", "PatientWeight": "60"}
    file_phantoms.write_stack(tmp_path / "sax", CINE, changes=lambda *_: sizes, description="CINE_segmented_SAX")
    file_phantoms.write_stack(tmp_path / "lax", view(), series=lambda *_: 90, description="CINE_segmented_LAX_4Ch")
    folder = tmp_path / "in"
    folder.mkdir()
    zipped(tmp_path / "sax", folder / "1000012_20209_2_0.zip", more={"manifest.csv": "patient,name\n"})
    zipped(tmp_path / "lax", folder / "1000012_20208_2_0.zip")
    (case,) = cases_of(folder)
    assert case.name == "1000012_2_0"
    found = read(tmp_path, case)
    np.testing.assert_array_equal(found.sax.voxels, CINE.voxels)
    assert [image.name for image in found.lax] == ["view 1"]
    assert found.body == Body(170, 60)


def test_a_folder_with_the_zips_of_one_subject_is_a_case_too(tmp_path):
    file_phantoms.write_stack(tmp_path / "sax", CINE)
    folder = tmp_path / "in" / "subject"
    folder.mkdir(parents=True)
    zipped(tmp_path / "sax", folder / "7_20209_2_0.zip")
    (case,) = cases_of(tmp_path / "in")
    np.testing.assert_array_equal(read(tmp_path, case).sax.voxels, CINE.voxels)


def test_converted_uk_biobank_and_mms_folders_give_their_short_axis_and_views(tmp_path):
    for number, (sax, lax) in enumerate([("sa.nii.gz", "la_4ch.nii.gz"), ("001_SA_CINE.nii.gz", "001_LA_CINE.nii.gz")]):
        folder = tmp_path / "in" / f"case{number}"
        folder.mkdir(parents=True)
        write_stack(CINE, folder / sax)
        write_stack(view(), folder / lax)
    write_stack(CINE, tmp_path / "in" / "case2.nii.gz")
    cases = cases_of(tmp_path / "in")
    found = [read_case(case, tmp_path) for case in cases]
    assert [case.name for case in cases] == ["case0", "case1", "case2"]
    assert [len(one.lax) for one in found] == [1, 1, 0]
    for one in found:
        np.testing.assert_array_equal(one.sax.voxels, CINE.voxels)


def test_acdc_gives_both_phases_and_the_body_and_takes_the_cine_where_it_is_there(tmp_path):
    folder = tmp_path / "in" / "patient001"
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 7\nGroup: DCM\nHeight: 184.0\nNbFrame: 9\nWeight: 95.0\n")
    write_stack(CINE.frame(0), folder / "patient001_frame01.nii.gz")
    write_stack(CINE.frame(6), folder / "patient001_frame07.nii.gz")
    write_stack(CINE.frame(6), folder / "patient001_frame07_gt.nii.gz")
    (case,) = cases_of(tmp_path / "in")
    found = read(tmp_path, case)
    np.testing.assert_array_equal(found.sax.voxels, CINE.voxels[[0, 6]])
    assert found.sax.frame_times_ms.tolist() == [0, 6]
    assert found.body == Body(184, 95)
    write_stack(CINE, folder / "patient001_4d.nii.gz")
    assert read_case(case, tmp_path).sax.num_frames == 9


def test_kaggles_nested_folders_of_dicom_are_a_case_each(tmp_path):
    for number in (1, 2):
        file_phantoms.write_stack(
            tmp_path / "in" / str(number) / "study", CINE, name=lambda t, z: f"sax_{z}/IM-{z:04d}-{t:04d}.dcm"
        )
    cases = cases_of(tmp_path / "in")
    assert [case.name for case in cases] == ["1", "2"]
    np.testing.assert_array_equal(read(tmp_path, cases[1]).sax.voxels, CINE.voxels)


def test_several_short_axes_in_a_folder_are_named_and_not_chosen_from(tmp_path):
    for name in ("a_sa.nii.gz", "b_sa.nii.gz"):
        write_stack(CINE, tmp_path / name)
    with pytest.raises(InputError, match=r"a_sa.nii.gz, b_sa.nii.gz"):
        read(tmp_path, CohortCase("x", tmp_path))


def test_a_zip_cannot_write_outside_name_a_file_or_fill_the_disk(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../escaped.dcm", "x")
        archive.writestr("/absolute.dcm", "y")
    folder = unpacked(tmp_path / "bad.zip", tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["000000", "000001"]
    assert not (tmp_path / "escaped.dcm").exists()
    monkeypatch.setattr("calid.cohort.layouts.MAX_UNPACKED_BYTES", 1)
    with pytest.raises(InputError, match="would unpack"):
        unpacked(tmp_path / "bad.zip", tmp_path / "c")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "bad.zip").read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        unpacked(tmp_path / "cut.zip", tmp_path / "d")
