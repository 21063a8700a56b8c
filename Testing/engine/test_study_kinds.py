"""What scanners, exports and de-identifiers do to a study: each kind is read right, or refused in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import file_phantoms
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from calid.__main__ import main
from calid.errors import InputError
from calid.images.checks import findings
from calid.images.files import read_stack, read_study, write_stack
from calid.images.folder import look
from calid.images.overview import told
from calid.stack import Stack
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


def cine(shape=(4, 5, 10, 14), **options) -> Stack:
    return file_phantoms.noisy_stack(shape, **options)


def write(folder: Path, stack: Stack, number: int = 0, **options) -> None:
    """A stack in one series per slice, numbered from `number`."""
    file_phantoms.write_stack(folder, stack, series=lambda _, z: number + z, **options)


def part(stack: Stack, first: float, count: int, *, frames: int, seed: int = 9, step_ms: float = 33.5) -> Stack:
    """Other images in planes of a stack, from slice `first` on, which may lie between its slices."""
    affine = stack.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    voxels = np.random.default_rng(seed).integers(0, 999, (frames, count, *stack.voxels.shape[2:])).astype(np.int16)
    return Stack(voxels, affine, step_ms * np.arange(frames))


def edit(folder: Path, change: Callable[[Path, Dataset], None]) -> None:
    for path in sorted(folder.rglob("*.dcm")):
        file = pydicom.dcmread(path)
        change(path, file)
        file.save_as(path)


def same(found: Stack, expected: Stack) -> None:
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def refused(folder: Path) -> InputError:
    with pytest.raises(InputError) as error:
        read_stack(folder)
    assert "\n" not in str(error.value)
    return error.value


# --- A whole study ----------------------------------------------------------------------------------------------------


def whole_study(folder: Path) -> tuple[Stack, dict[str, Stack], Stack]:
    """SAX with a slice acquired again, three LAX cines, and all that a clinical study holds besides.

    Returns:
        the short axis, the views by name, and the slice that was acquired again.
    """
    sax = cine()
    write(folder / "sax", sax, 10, description="cine SAX")
    again = part(sax, 2, 1, frames=4, seed=1)
    write(folder / "again", again, 30, description="cine SAX")
    views = {name: file_phantoms.long_axis(sax, degrees=angle, seed=angle) for name, angle in (("2ch", 0), ("4ch", 70))}
    for index, (name, view) in enumerate(views.items()):
        write(folder / name, view, 40 + index, description=name)
    write(folder / "tag", part(sax, 0.5, 3, frames=4), 50, description="SAX tagging")
    perfusion = {"TriggerTime": 300, "NominalInterval": 800}
    write(folder / "perf", part(sax, 0, 3, frames=9), 60, description="rest perf", changes=lambda _t, _z: perfusion)
    t1 = {"ImageType": ["DERIVED", "PRIMARY", "M", "T1 MAP"], "TriggerTime": None}
    write(folder / "map", part(sax, 1.5, 2, frames=1), 70, description="MOLLI T1 map", changes=lambda _t, _z: t1)
    late = {"ScanningSequence": ["GR", "IR"], "InversionTime": 300}
    write(folder / "lge", part(sax, -1, 8, frames=1), 80, description="PSIR", changes=lambda _t, _z: late)
    axial = replace(cine((1, 12, 10, 14), seed=3), affine=np.diag([1.5, 1.4, 8.0, 1.0]))
    spin = {"ScanningSequence": "SE", "TriggerTime": None}
    write(folder / "haste", axial, 100, description="HASTE axial", changes=lambda _t, _z: spin)
    write(folder / "scout", axial.frame(0), 1, description="localizer", changes=lambda _t, _z: {"TriggerTime": None})
    return sax, views, again


def test_a_whole_study_is_read_and_every_series_has_its_fate(tmp_path):
    sax, views, again = whole_study(tmp_path)
    voxels = sax.voxels.copy()
    voxels[:, 2] = again.voxels[:, 0]
    found = read_study(tmp_path)
    same(found.sax, sax.with_voxels(voxels))
    np.testing.assert_allclose(found.sax.frame_times_ms, np.mean([sax.frame_times_ms] * 4 + [again.frame_times_ms], 0))
    assert [view.name for view in found.lax] == list(views)
    for view in found.lax:
        same(view.stack, views[view.name])
    roles = {one.number: one.role for one in found.overview.series}
    assert {number for number, role in roles.items() if role == "short axis"} == {10, 11, 13, 14, 30}
    assert {number for number, role in roles.items() if role == "long axis"} == {40, 41}
    assert {number for number, role in roles.items() if role == "left out"} == {
        *range(1, 10), *range(50, 53), *range(60, 63), *range(70, 72), *range(80, 88), *range(100, 112), 12,
    } - {10, 11}  # fmt: skip
    said = "\n".join(found.left_out)
    for name in ("cine SAX (series 12)", "SAX tagging", "rest perf", "MOLLI", "PSIR", "HASTE", "localizer"):
        assert name in said
    assert found.overview.choice.confidence == "high"


def test_the_table_and_every_run_tell_the_choice(tmp_path):
    whole_study(tmp_path / "in")
    table = look(tmp_path / "in").as_text()
    assert sum("left out" in line for line in table.splitlines()) >= 30
    assert "Short axis: cine SAX (series 10-11, 13-14, 30), 5 slices of 4 frames, 8.0 mm apart (high" in table
    stack = read_stack(tmp_path / "in")
    lines = told(stack, tmp_path / "in")
    assert lines[0].startswith("short axis: cine SAX (series 10-11, 13-14, 30)")
    assert all(line.startswith("left out: ") for line in lines[1:])
    assert len(lines) > 6
    write_stack(stack, tmp_path / "sax.seq.nrrd")
    assert told(read_stack(tmp_path / "sax.seq.nrrd"), tmp_path / "sax.seq.nrrd") == []  # a file is what it is


def test_a_series_that_is_named_is_the_short_axis(tmp_path):
    whole_study(tmp_path)
    tagged = read_stack(tmp_path, "51")
    assert tagged.voxels.shape[:2] == (4, 3)
    uid = next(one.uid for one in look(tmp_path).series if one.number == 12)
    first = read_stack(tmp_path, uid)
    np.testing.assert_array_equal(first.voxels, cine().voxels)


def test_info_tells_of_a_folder_and_of_a_volume(tmp_path, capsys):
    write(tmp_path / "in", cine((4, 3, 18, 24)))
    assert main(["info", str(tmp_path / "in")]) == 0
    printed = capsys.readouterr().out
    assert "taken for" in printed
    assert "3 slices of 4 frames" in printed
    assert "It can be upsampled." in printed


# --- The choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "slices"), [(4, 2), (4, 3), (2, 5), (4, 5)])
@pytest.mark.parametrize("words", [{"ScanningSequence": "SE"}, {}], ids=["haste", "localizer"])
def test_a_short_axis_of_few_slices_or_phases_is_found_beside_a_larger_scout(tmp_path, frames, slices, words):
    sax = cine((frames, slices, 10, 14), step_ms=300 if frames == 2 else 33.5)
    write(tmp_path / "sax", sax, 10)
    axial = replace(cine((1, 12, 10, 14), seed=3), affine=np.diag([1.5, 1.4, 8.0, 1.0]))
    write(tmp_path / "scout", axial, 50, changes=lambda _t, _z: {**words, "TriggerTime": None}, description="axial")
    same(read_stack(tmp_path), sax)


def test_stacks_that_nothing_tells_apart_are_named_and_a_series_settles_it(tmp_path):
    sax = cine((4, 3, 10, 14))
    write(tmp_path / "a", sax, 10, description="A")
    x, y, z = sax.directions_lps.T
    turned = sax.affine.copy()
    turned[:3, :3] = np.stack([y, z, x], axis=1) * sax.spacing_mm
    write(tmp_path / "b", replace(cine((4, 3, 10, 14), seed=5), affine=turned), 20, description="B")
    error = refused(tmp_path)
    assert error.code == "several-stacks"
    assert "A (series 10-12)" in error.message
    assert "B (series 20-22)" in error.message
    same(read_stack(tmp_path, "11"), sax)


def test_a_slice_one_gap_beyond_the_end_that_differs_is_refused_and_not_lost(tmp_path):
    write(tmp_path, cine(), changes=lambda _, z: {"ScanningSequence": "SE"} if z == 4 else {})
    error = refused(tmp_path)
    assert (error.code, "s4/i00.dcm" in error.message) == ("torn-stack", True)


def test_a_slice_without_a_place_is_refused_and_not_lost(tmp_path):
    write(tmp_path, cine(), changes=lambda _, z: {"ImagePositionPatient": None} if z == 4 else {})
    assert refused(tmp_path).code == "lost-slice"


def test_a_slice_whose_header_leaves_the_sequence_blank_belongs_to_the_others(tmp_path):
    write(tmp_path, cine(), changes=lambda _, z: {"ScanningSequence": "", "Modality": ""} if z == 4 else {})
    same(read_stack(tmp_path), cine())


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    write(tmp_path, cine())
    scan = os.scandir

    def denied(folder):
        if Path(folder).name == "s3":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", denied)
    error = refused(tmp_path)
    assert (error.code, "s3" in error.message) == ("unreadable", True)


@pytest.mark.parametrize("name", ["DONE", "s0/LOCK"])
def test_an_empty_file_of_another_name_is_passed_over_and_said(tmp_path, name):
    write(tmp_path, cine(), name=lambda t, z: f"s{z}/IM{t:04d}")
    (tmp_path / name).write_bytes(b"")
    found = read_stack(tmp_path)
    same(found, cine())
    assert f"{name} is empty and was passed over." in found.provenance["left_out"]
    (tmp_path / "s4" / "IM0009").write_bytes(b"")
    assert refused(tmp_path).code == "empty-file"


# --- Repeats, copies, de-identification -------------------------------------------------------------------------------


def test_of_slices_corrected_for_distortion_and_not_the_corrected_ones_are_used(tmp_path):
    sax = cine()
    write(tmp_path / "dis", sax, 10, changes=lambda _t, _z: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "DIS2D"]})
    plain = part(sax, 0, 5, frames=4)
    write(tmp_path / "nd", plain, 20, changes=lambda _t, _z: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]})
    same(read_stack(tmp_path), sax)


def test_of_a_stack_at_rest_and_one_under_stress_the_last_is_used_and_either_can_be_named(tmp_path):
    rest = cine()
    write(tmp_path / "rest", rest, 10)
    stress = part(rest, 0, 5, frames=4, step_ms=25.0)
    write(tmp_path / "stress", stress, 20)
    same(read_stack(tmp_path), stress)
    np.testing.assert_allclose(read_stack(tmp_path).frame_times_ms, stress.frame_times_ms, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 4])
def test_copies_byte_for_byte_are_used_once_and_said(tmp_path, frames):
    stack = cine((frames, 5, 10, 14))
    write(tmp_path, stack)
    for path in sorted(tmp_path.rglob("*.dcm")):
        shutil.copy(path, path.with_name(f"{path.stem} - Copy.dcm"))
    found = read_stack(tmp_path)
    same(found, stack)
    assert f"{5 * frames} images are copies" in str(found.provenance["left_out"])


def test_identifiers_that_a_de_identifier_made_up_do_not_matter(tmp_path):
    write(tmp_path, cine())

    def change(path: Path, file: Dataset) -> None:
        file.SOPInstanceUID = "1.2.3.4.5"
        file.FrameOfReferenceUID = f"1.9.{file.SeriesNumber + 1}"
        file.PatientID = "" if "s1" in str(path) else file.PatientID

    edit(tmp_path, change)
    same(read_stack(tmp_path), cine())


# --- Times ------------------------------------------------------------------------------------------------------------


def in_scrambled_numbers(path: Path, file: Dataset, **tags) -> int:
    """Number the images of a slice at random, and return the phase."""
    phase, index = int(path.stem[1:]), int(path.parent.name[1:])
    file.InstanceNumber = [3, 1, 4, 2][(phase + index) % 4]
    file_phantoms.set_tags(file, tags)
    return phase


@pytest.mark.parametrize("trigger", [None, 0, 300])
@pytest.mark.parametrize("date", ["", "20240229"])
def test_without_trigger_times_the_clock_orders_the_frames_and_not_their_numbers(tmp_path, trigger, date):
    write(tmp_path, cine())

    def change(path: Path, file: Dataset) -> None:
        phase = in_scrambled_numbers(path, file, TriggerTime=trigger)
        late = f"{date if phase < 2 else '20240301' if date else ''}"
        text = late + ("235959.96", "235959.98", "000000.00", "000000.02")[phase]
        setattr(file, "AcquisitionDateTime" if date else "AcquisitionTime", text)

    edit(tmp_path, change)
    found = read_stack(tmp_path)
    np.testing.assert_array_equal(found.voxels, cine().voxels)
    np.testing.assert_allclose(found.frame_times_ms, [0, 20, 40, 60], atol=1e-2)
    assert found.times_guess.startswith("from Acquisition")


def test_temporal_positions_order_the_frames_before_instance_numbers(tmp_path):
    write(tmp_path, cine())

    def change(path: Path, file: Dataset) -> None:
        file.TemporalPositionIdentifier = 1 + in_scrambled_numbers(path, file, TriggerTime=None, NominalInterval=800)

    edit(tmp_path, change)
    found = read_stack(tmp_path)
    np.testing.assert_array_equal(found.voxels, cine().voxels)
    np.testing.assert_allclose(found.frame_times_ms, [0, 200, 400, 600])


@pytest.mark.parametrize("tag", ["TemporalPositionIdentifier", "clocks"])
def test_elements_that_sort_the_frames_differently_are_refused(tmp_path, tag):
    write(tmp_path, cine())

    def change(path: Path, file: Dataset) -> None:
        phase = int(path.stem[1:])
        if tag == "clocks":
            file.TriggerTime = 0
            file.AcquisitionTime, file.ContentTime = f"120000.0{phase}0", f"120000.0{9 - phase}0"
        else:
            file.TemporalPositionIdentifier = 9 - phase

    edit(tmp_path, change)
    assert refused(tmp_path).code == "contradicting-times"


@pytest.mark.parametrize("trigger", [None, 0])
def test_a_slice_without_trigger_times_takes_no_one_elses(tmp_path, trigger):
    write(tmp_path, cine(), changes=lambda _, z: {"TriggerTime": trigger} if z == 2 else {})
    found = read_stack(tmp_path)
    np.testing.assert_array_equal(found.voxels, cine().voxels)
    np.testing.assert_allclose(found.frame_times_ms, cine().frame_times_ms, atol=1e-3)
    assert not found.times_guess


def test_a_slice_without_trigger_times_is_refused_where_numbers_prove_wrong_elsewhere(tmp_path):
    write(tmp_path, cine(), changes=lambda t, z: {"InstanceNumber": 9 - t, "TriggerTime": None if z == 2 else 30 * t})
    assert refused(tmp_path).code == "unordered-frames"


def test_a_long_axis_series_with_few_different_times_does_not_end_the_study(tmp_path):
    sax = cine()
    write(tmp_path / "sax", sax)
    view = file_phantoms.long_axis(sax)
    many = view.with_voxels(np.repeat(view.voxels, 5, 0), frame_times_ms=np.arange(20.0))
    write(tmp_path / "p", many, 60, changes=lambda t, _: {"TriggerTime": 300 + t // 10})
    found = read_study(tmp_path)
    same(found.sax, sax)
    assert found.lax == ()
    assert "20 images of cine (series 60)" in found.left_out[0]


# --- Enhanced files ---------------------------------------------------------------------------------------------------


def test_public_functional_groups_count_before_private_ones(tmp_path):
    stack = cine()
    path = tmp_path / "enhanced.dcm"
    file_phantoms.write_enhanced(path, stack)
    file = pydicom.dcmread(path)
    for groups in file.PerFrameFunctionalGroupsSequence:
        repeated = Dataset()
        repeated.TriggerTime, repeated.InstanceNumber, repeated.RescaleSlope = 0, 1, 7
        place = groups.PlanePositionSequence[0].ImagePositionPatient
        repeated.ImagePositionPatient = [float(value) + 0.7 for value in place]
        groups.add_new(0x20050014, "LO", "Philips MR Imaging DD 005")
        groups.add_new(0x2005140F, "SQ", Sequence([repeated]))
    file.save_as(path)
    found = read_stack(path)
    same(found, stack)
    np.testing.assert_allclose(found.frame_times_ms, stack.frame_times_ms, atol=1e-3)


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_meta", [True, False])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_files_without_preamble_are_read(tmp_path, has_meta, suffix):
    write(tmp_path, cine(), name=lambda t, z: f"s{z}/i{t:02d}{suffix}")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        file = pydicom.dcmread(path)
        if has_meta:
            path.write_bytes(path.read_bytes()[132:])
        else:
            bare = Dataset({element.tag: element for element in file})
            pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    same(read_stack(tmp_path), cine())
    first = next(path for path in sorted(tmp_path.rglob("*")) if path.is_file())
    first.write_bytes(first.read_bytes()[:-50])
    assert refused(tmp_path).code == "truncated-dicom"


def test_a_missing_transfer_syntax_is_told_from_the_elements(tmp_path):
    write(tmp_path, cine())
    for path in tmp_path.rglob("*.dcm"):
        contents = path.read_bytes()
        at = contents.index(b"\x02\x00\x10\x00UI")
        length = 8 + int.from_bytes(contents[at + 6 : at + 8], "little")
        size = int.from_bytes(contents[140:144], "little") - length
        shorter = contents[:140] + size.to_bytes(4, "little") + contents[144:at] + contents[at + length :]
        path.write_bytes(shorter)
    same(read_stack(tmp_path), cine())


@pytest.mark.parametrize("tag", ["Rows", "Columns"])
def test_a_size_that_the_pixels_contradict_is_refused(tmp_path, tag):
    write(tmp_path, cine(), changes=lambda _t, _z: {tag: 8})
    error = refused(tmp_path)
    assert (error.code, "there are 280" in error.message) == ("size-mismatch", True)


@pytest.mark.parametrize("signed", [0, 1])
def test_values_in_the_upper_bits_are_moved_down(tmp_path, signed):
    write(tmp_path, cine())

    def change(_: Path, file: Dataset) -> None:
        file.PixelData = (file.pixel_array.astype("<i2") << 4).tobytes()
        file.BitsStored, file.HighBit, file.PixelRepresentation = 12, 15, signed

    edit(tmp_path, change)
    same(read_stack(tmp_path), cine())


@pytest.mark.parametrize(("stored", "high"), [(12, 15), (10, 9)])
def test_bits_that_the_pixels_contradict_are_refused(tmp_path, stored, high):
    write(tmp_path, cine(), changes=lambda _t, _z: {"BitsStored": stored, "HighBit": high, "PixelRepresentation": 0})
    assert refused(tmp_path).code == "bit-positions"


def test_damage_that_the_codec_complains_of_is_refused(tmp_path):
    smooth = (400 + 300 * np.sin(np.arange(40) / 7) + np.arange(32)[:, None]).astype(np.uint16)
    stack = cine((1, 3, 32, 40))
    write(tmp_path, stack.with_voxels(np.broadcast_to(smooth, stack.voxels.shape)))
    for index, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        file = pydicom.dcmread(path)
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "coded.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(file.pixel_array[np.newaxis]))
        coded = pydicom.dcmread(tmp_path / "coded.dcm")
        (tmp_path / "coded.dcm").unlink()
        file.PixelData, file.file_meta.TransferSyntaxUID = coded.PixelData, coded.file_meta.TransferSyntaxUID
        file["PixelData"].is_undefined_length = True
        file.save_as(path)
        if index == 1:
            contents = bytearray(path.read_bytes())
            contents[-120:-80] = bytes(40)
            path.write_bytes(contents)
    error = refused(tmp_path)
    assert (error.code, "s1/i00.dcm" in error.message) == ("undecodable-pixels", True)


# --- Parts of a stack that a header calls something else --------------------------------------------------------------

OTHER_TYPE = {"ImageType": ["ORIGINAL", "PRIMARY", "XX"]}


@pytest.mark.parametrize("others", [{1, 3}, {2, 3}, {0, 3}, {0, 2}])
def test_slices_told_apart_by_a_word_alone_are_no_stack_of_two(tmp_path, others):
    write(tmp_path, cine((3, 4, 18, 20)), changes=lambda _, z: OTHER_TYPE if z in others else {})
    error = refused(tmp_path)
    assert error.code == "torn-stack"
    assert "Image Type" in error.message
    assert "--series" in error.remedy


def test_a_phase_that_a_word_alone_keeps_from_its_slices_is_not_left_out(tmp_path):
    write(tmp_path, cine((3, 4, 18, 20)), changes=lambda t, _: {"Modality": "OT"} if t == 1 else {})
    error = refused(tmp_path)
    assert (error.code, "s0/i01.dcm" in error.message, "Modality" in error.message) == ("torn-stack", True, True)


def test_phase_images_of_the_same_slices_are_left_out_as_ever(tmp_path):
    """As flow imaging makes them: at the same places and times, in the same series."""
    stack = cine((3, 4, 18, 20))
    write(tmp_path / "m", stack)
    write(
        tmp_path / "p",
        stack.with_voxels(stack.voxels + 7),
        changes=lambda *_: {"ImageType": ["ORIGINAL", "PRIMARY", "P"]},
    )
    np.testing.assert_array_equal(read_stack(tmp_path).voxels, stack.voxels)


def test_other_planes_between_the_slices_are_another_acquisition_where_their_contrast_differs(tmp_path):
    stack = cine((3, 5, 18, 20))
    flips = {0: {"FlipAngle": 50}, 1: OTHER_TYPE | {"FlipAngle": 12}}
    write(tmp_path, stack, changes=lambda _, z: flips[z % 2])
    np.testing.assert_array_equal(read_stack(tmp_path).voxels, stack.voxels[:, ::2])


def test_an_image_type_of_one_word_is_one_word(tmp_path):
    """pydicom gives it as a string, not as a list."""
    stack = cine((3, 4, 18, 20))
    write(tmp_path, stack, changes=lambda t, z: {"ImageType": "ORIGINAL"} if (t + z) % 2 else {})
    np.testing.assert_array_equal(read_stack(tmp_path).voxels, stack.voxels)


@pytest.mark.parametrize(
    ("kept", "codes"),
    [
        ([(0, 10), (0, 10), (0, 11)], []),
        ([(0, 10), (0, 10), (0, 5)], ["different-phases"]),
        ([(0, 10), (0, 10), (0, 20)], ["different-phases"]),
        ([(0, 10), (0, 10), (3, 13)], ["different-phases"]),
        ([(0, 1, 2), (0, 1, 2), (0, 1, 3)], ["different-phases"]),
        ([(0, 1, 2), (0, 1, 2), (0, 2, 3)], ["different-phases"]),
    ],
)
def test_a_few_chosen_phases_must_be_the_same_ones(tmp_path, kept, codes):
    """Frames of a cine with 33.5 ms between them; the beats were not noted."""
    stack = cine((21, 3, 18, 20))
    write(tmp_path, stack, changes=lambda t, z: {} if t in kept[z] else None)
    if codes:
        assert refused(tmp_path).code == codes[0]
    else:
        assert read_stack(tmp_path).num_frames == len(kept[0])


def test_trigger_times_in_seconds_are_told_by_the_whole_study(tmp_path):
    stack = cine((12, 3, 18, 20))
    write(tmp_path, stack, changes=lambda t, _: {"TriggerTime": f"{stack.frame_times_ms[t] / 1000:.5f}"})
    found = read_stack(tmp_path)
    np.testing.assert_allclose(found.frame_times_ms, stack.frame_times_ms, atol=0.01)
    np.testing.assert_array_equal(found.voxels, stack.voxels)
    assert any("seconds" in line for line in told(found, tmp_path))


def test_trigger_times_that_jitter_are_not_taken_for_seconds(tmp_path):
    jitter = np.sort(np.random.default_rng(0).uniform(0, 0.5, 12))
    write(tmp_path, cine((12, 3, 18, 20)), changes=lambda t, _: {"TriggerTime": f"{jitter[t]:.5f}"})
    assert look(tmp_path).choice.sax.motion == "repeats"


# --- Contrast ---------------------------------------------------------------------------------------------------------


def test_an_inverted_heart_is_worth_a_warning(bundled_demo_sax):
    assert "unusual-contrast" not in [finding.code for finding in findings(bundled_demo_sax)]
    inverted = bundled_demo_sax.with_voxels(bundled_demo_sax.voxels.max() - bundled_demo_sax.voxels)
    assert ("unusual-contrast", "warning") in [(finding.code, finding.severity) for finding in findings(inverted)]


def test_noise_where_air_should_be_dark_is_worth_a_warning(bundled_demo_sax):
    """As in T1 maps and phase images, which compute a value from no signal."""
    image = bundled_demo_sax.voxels.astype(float)
    noise = np.random.default_rng(0).uniform(0, image.max(), image.shape)
    mapped = bundled_demo_sax.with_voxels(np.where(image < 0.15 * image.max(), noise, image))
    (found,) = [finding for finding in findings(mapped) if finding.code == "unusual-contrast"]
    assert (found.severity, "noise" in found.message) == ("warning", True)
    noisy = image + np.random.default_rng(1).normal(0, 0.05 * image.max(), image.shape)
    assert "unusual-contrast" not in [finding.code for finding in findings(bundled_demo_sax.with_voxels(noisy))]


@pytest.fixture(scope="module")
def bundled_demo_sax() -> Stack:
    demo = Path(__file__).resolve().parents[2] / "CaLIDReconstruct" / "Resources" / "Demo" / "sax.seq.nrrd"
    return read_stack(demo).frame(0)


def test_a_short_axis_of_late_enhancement_is_said_to_be_no_cine(tmp_path):
    late = {"ScanningSequence": ["GR", "IR"], "InversionTime": 300}
    write(tmp_path, cine((1, 5, 10, 14)), description="LGE SAX", changes=lambda _t, _z: late)
    assert "no usual cine, but late enhancement (still images)" in str(read_stack(tmp_path).provenance["left_out"])
