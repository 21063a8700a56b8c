"""DICOM folders: the same stack however the images are named, ordered and split; views told apart by geometry."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import file_phantoms
import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK as sitk
from calid.errors import InputError
from calid.images.checks import findings
from calid.images.files import read_lax_folder, read_stack, read_study, write_stack
from calid.stack import Stack
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

shapes = st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(2, 5), st.integers(2, 6), st.integers(2, 6))


def assert_same(found: Stack, expected: Stack) -> None:
    """Same voxels at the same times and places; the positions in DICOM text have six decimals."""
    assert found.voxels.dtype == np.int16
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    np.testing.assert_allclose(found.frame_times_ms, expected.frame_times_ms, atol=1e-3)


def cine(shape=(4, 5, 6, 8), **options) -> Stack:
    return file_phantoms.noisy_stack(shape, **options)


# --- The short axis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "series",
    [lambda _, z: z, lambda _t, _z: 0, lambda t, _: t],
    ids=["one per slice", "one for all", "one per phase"],
)
@pytest.mark.parametrize("frames", [1, 4])
def test_a_stack_is_read_from_any_usual_split_into_series(tmp_path, series, frames):
    stack = cine((frames, 5, 6, 8))
    file_phantoms.write_stack(tmp_path, stack, series=series)
    assert_same(read_stack(tmp_path), stack)


@given(shape=shapes, seed=st.integers(0, 999), data=st.data())
@settings(max_examples=40, deadline=None)
def test_shuffled_names_and_series_give_the_same_stack(shape, seed, data):
    stack = cine(shape, seed=seed)
    count = shape[0] * shape[1]
    names = data.draw(st.permutations(range(count)))
    series = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    with tempfile.TemporaryDirectory() as folder:
        file_phantoms.write_stack(
            Path(folder),
            stack,
            name=lambda t, z: f"{names[t * shape[1] + z]:04d}",
            series=lambda t, z: series[t * shape[1] + z],
            changes=lambda t, z: {"InstanceNumber": names[t * shape[1] + z]},
        )
        assert_same(read_stack(Path(folder)), stack)


@given(seed=st.integers(0, 999), spacing=st.floats(2.5, 30))
@settings(max_examples=20, deadline=None)
def test_simpleitk_sees_a_dicom_stack_at_the_same_place(seed, spacing):
    stack = cine((1, 4, 6, 8), seed=seed, spacing_mm=(1.5, 1.4, spacing))
    with tempfile.TemporaryDirectory() as folder:
        file_phantoms.write_stack(Path(folder), stack, series=lambda _t, _z: 0, name=lambda _, z: f"{9 - z}.dcm")
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder))
        found = read_stack(Path(folder))
    np.testing.assert_array_equal(found.voxels[0], sitk.GetArrayFromImage(image))
    corner = (7, 5, 3)
    np.testing.assert_allclose(found.to_lps(np.array(corner)), image.TransformIndexToPhysicalPoint(corner), atol=1e-3)


def test_the_spacing_is_the_distance_of_the_slices_and_not_their_thickness(tmp_path):
    stack = cine((1, 4, 6, 8), spacing_mm=(1.5, 1.4, 17.7))
    file_phantoms.write_stack(tmp_path, stack, changes=lambda _t, _z: {"SliceThickness": 6, "SpacingBetweenSlices": 9})
    found = read_stack(tmp_path)
    assert found.spacing_mm[2] == pytest.approx(17.7, abs=1e-4)
    assert found.provenance["slice_thickness_mm"] == 6
    assert found.provenance["slice_spacing_mm"] == pytest.approx(17.7)


def test_frame_times_are_the_mean_over_the_slices(tmp_path):
    """Each slice is a breath-hold of its own, with its own heart rate."""
    stack = cine((4, 3, 6, 8))
    file_phantoms.write_stack(tmp_path, stack, changes=lambda t, z: {"TriggerTime": t * (30 + 2 * z)})
    np.testing.assert_allclose(read_stack(tmp_path).frame_times_ms, [0, 32, 64, 96])


@pytest.mark.parametrize("trigger_time", [None, 0])
def test_without_trigger_times_frames_go_by_number_and_heart_beat(tmp_path, trigger_time):
    stack = cine((4, 3, 6, 8))
    tags = {"TriggerTime": trigger_time, "NominalInterval": 800}
    file_phantoms.write_stack(tmp_path, stack, changes=lambda _t, _z: tags, name=lambda t, z: f"{9 - t}/{z}.dcm")
    found = read_stack(tmp_path)
    np.testing.assert_array_equal(found.voxels, stack.voxels)
    np.testing.assert_allclose(found.frame_times_ms, [0, 200, 400, 600])
    assert found.times_guess == "from the heart beat's length"


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "kind", "expected"),
    [
        (np.uint16(4095), 1, 0, "int16", 4095),
        (np.uint16(40_000), 1, 0, "uint16", 40_000),
        (np.int16(-5), 2, 1, "int16", -9),
        (np.uint16(30_000), 2, -1, "uint16", 59_999),
        (np.uint16(40_000), 3, -1, "int32", 119_999),
        (np.uint16(3), 0.5, 0.25, "float32", 1.75),
    ],
)
def test_values_are_real_values_in_the_narrowest_exact_type(tmp_path, stored, slope, intercept, kind, expected):
    stack = cine((1, 3, 6, 8))
    voxels = np.full(stack.voxels.shape, stored)
    voxels[:, :, 0] = 1
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    file_phantoms.write_stack(tmp_path, stack.with_voxels(voxels), changes=lambda _t, _z: tags)
    found = read_stack(tmp_path)
    assert found.voxels.dtype == kind
    assert (found.voxels[:, :, 1:] == expected).all()


def test_without_trigger_times_and_heart_beat_frames_are_numbered(tmp_path, recwarn):
    tags = {"TriggerTime": None}
    stack = cine((4, 3, 6, 8))
    file_phantoms.write_stack(tmp_path, stack, changes=lambda _t, _z: tags)
    found = read_stack(tmp_path)
    np.testing.assert_array_equal(found.voxels, stack.voxels)
    assert found.frame_times_ms.tolist() == [0, 1, 2, 3]
    assert found.times_guess == "frame numbers"
    assert len(recwarn) == 0


def test_numbers_that_are_the_same_everywhere_leave_the_order_to_the_next_ones(tmp_path):
    stack = cine((4, 3, 6, 8))
    tags = {"TriggerTime": None, "TemporalPositionIdentifier": 1}
    file_phantoms.write_stack(tmp_path, stack, changes=lambda _t, _z: tags, name=lambda t, z: f"{9 - t}/{z}.dcm")
    np.testing.assert_array_equal(read_stack(tmp_path).voxels, stack.voxels)


def test_files_that_are_not_images_are_passed_over(tmp_path):
    stack = cine()
    file_phantoms.write_stack(tmp_path, stack)
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "report").write_bytes(b"a" * 500)
    report = file_phantoms.dataset(stack.voxels[0, 0], storage="1.2.840.10008.5.1.4.1.1.88.11")
    del report.PixelData
    report.save_as(tmp_path / "report.dcm")
    screenshot = file_phantoms.dataset(stack.voxels[0, 0], storage="1.2.840.10008.5.1.4.1.1.7")
    screenshot.save_as(tmp_path / "screenshot.dcm")
    assert_same(read_stack(tmp_path), stack)


@pytest.mark.parametrize("frames", [1, 4])
def test_an_enhanced_multi_frame_file_is_read_alone_and_from_its_folder(tmp_path, frames):
    stack = cine((frames, 5, 6, 8))
    file_phantoms.write_enhanced(tmp_path / "enhanced.dcm", stack)
    assert_same(read_stack(tmp_path), stack)
    assert_same(read_stack(tmp_path / "enhanced.dcm"), stack)


def test_run_length_encoded_pixels_are_decoded(tmp_path):
    stack = cine((1, 3, 6, 8))
    file_phantoms.write_stack(tmp_path, stack)
    for path in tmp_path.rglob("*.dcm"):
        file = pydicom.dcmread(path)
        file.compress(RLELossless)
        file.save_as(path)
    assert_same(read_stack(tmp_path), stack)


def coded_by_gdcm(image: np.ndarray, compressor: str, folder: Path) -> pydicom.FileDataset:
    """A DICOM file of this (rows, columns) image alone, compressed by GDCM through SimpleITK."""
    path = folder / "coded.dcm"
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(image[np.newaxis]))
    coded = pydicom.dcmread(path)
    path.unlink()
    return coded


def test_jpeg_2000_pixels_are_decoded(tmp_path):
    """Put back into the file whose geometry is known."""
    stack = cine((1, 3, 32, 40))
    file_phantoms.write_stack(tmp_path, stack, changes=lambda _t, _z: {"RescaleSlope": 2, "RescaleIntercept": -3})
    for path in tmp_path.rglob("*.dcm"):
        file = pydicom.dcmread(path)
        coded = coded_by_gdcm(file.pixel_array, "JPEG2000", tmp_path)
        assert coded.file_meta.TransferSyntaxUID == JPEG2000Lossless
        file.PixelData, file.file_meta.TransferSyntaxUID = coded.PixelData, JPEG2000Lossless
        file["PixelData"].is_undefined_length = True
        file.save_as(path)
    assert_same(read_stack(tmp_path), stack.with_voxels((stack.voxels * 2 - 3).astype(np.int16)))


def test_each_image_of_a_jpeg_lossless_multi_frame_file_has_its_own_scale(tmp_path):
    """GDCM, which decodes JPEG lossless, would apply the first image's scale to all."""
    stack = cine((2, 3, 32, 40))
    path = tmp_path / "enhanced.dcm"
    file_phantoms.write_enhanced(path, stack)
    file = pydicom.dcmread(path)
    del file.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for index, groups in enumerate(file.PerFrameFunctionalGroupsSequence):
        scale = pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 2 + index, -3, "US"
        groups.PixelValueTransformationSequence = pydicom.Sequence([scale])
    file.save_as(path)
    expected = read_stack(path)
    coded = [coded_by_gdcm(image, "JPEG", tmp_path) for image in file.pixel_array]
    file.PixelData = encapsulate([next(generate_frames(one.PixelData, number_of_frames=1)) for one in coded])
    file.file_meta.TransferSyntaxUID = coded[0].file_meta.TransferSyntaxUID
    file["PixelData"].is_undefined_length = True
    file.save_as(path)
    assert file.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(read_stack(path).voxels, expected.voxels)


def test_no_trace_of_the_patient_leaves_with_the_stack(tmp_path):
    stack = cine((2, 3, 6, 8))
    file_phantoms.write_stack(tmp_path / "in", stack)
    assert "secret" in "".join(str(pydicom.dcmread(path)) for path in (tmp_path / "in").rglob("*.dcm"))
    found = read_stack(tmp_path / "in")
    assert "ecret" not in str(dict(found.provenance))
    for name in ("a.nii", "a.seq.nrrd", "a.mha"):
        write_stack(found, tmp_path / name)
        assert b"ecret" not in (tmp_path / name).read_bytes()
    assert found.provenance["field_strength_t"] == 1.5
    assert found.provenance["modality"] == "MR"


@given(place=st.floats(0, 1, exclude_max=True), is_header=st.booleans(), index=st.sampled_from([0, 2, 3]))
@settings(max_examples=150, deadline=None)
def test_a_dicom_file_cut_at_any_byte_is_an_error(cut_folder, place, is_header, index):
    """An end slice above all: a stack without it would still be even."""
    path = cut_folder / f"s{index}" / "i00.dcm"
    contents = path.read_bytes()
    pixels = contents.index(b"\xe0\x7f\x10\x00OW") + 12
    length = int(place * pixels) if is_header else pixels + int(place * (len(contents) - pixels))
    try:
        path.write_bytes(contents[:length])
        with pytest.raises(InputError) as error:
            read_stack(cut_folder)
    finally:
        path.write_bytes(contents)
    assert f"s{index}/i00.dcm" in error.value.message


@pytest.fixture(scope="module")
def cut_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    file_phantoms.write_stack(folder, cine((1, 4, 8, 10)))
    return folder


# --- Long axis --------------------------------------------------------------------------------------------------------


def write_views(folder: Path, sax: Stack, **descriptions: float) -> dict[str, Stack]:
    """Long-axis images, description -> angle about the normal, each in a series of its own."""
    views = {
        name: file_phantoms.long_axis(sax, degrees=angle, seed=index)
        for index, (name, angle) in enumerate(descriptions.items())
    }
    for index, (name, view) in enumerate(views.items()):
        file_phantoms.write_stack(
            folder / name, view, series=lambda _t, _z, n=100 + index: n, description=name.replace("_", " ")
        )
    return views


def test_views_are_told_from_the_short_axis_by_geometry_against_what_their_names_say(tmp_path):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax, description="cine LAX 4ch")
    views = write_views(tmp_path, sax, SAX_stack=0, short_axis=60, SAX=120)
    found = read_study(tmp_path)
    assert_same(found.sax, sax)
    assert [view.name for view in found.lax] == ["SAX stack", "short axis", "SAX"]
    for view, expected in zip(found.lax, views.values(), strict=True):
        assert_same(view.stack, expected)
    assert found.left_out == ()


def test_two_views_of_one_name_are_numbered(tmp_path):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax)
    for number, degrees in ((100, 0), (101, 90)):
        view = file_phantoms.long_axis(sax, degrees=degrees)
        file_phantoms.write_stack(tmp_path / str(number), view, series=lambda _t, _z, n=number: n, description="4CH")
    assert [view.name for view in read_study(tmp_path).lax] == ["4CH", "4CH (2)"]


def test_a_view_acquired_twice_is_two_views(tmp_path):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax)
    views = [file_phantoms.long_axis(sax, seed=seed) for seed in (1, 2)]
    for index, view in enumerate(views):
        view = replace(view, frame_times_ms=view.frame_times_ms + 3 * index)
        file_phantoms.write_stack(tmp_path / f"v{index}", view, series=lambda _t, _z, n=100 + index: n)
    found = read_study(tmp_path).lax
    assert [view.name for view in found] == ["cine", "cine (2)"]
    for view, expected in zip(found, views, strict=True):
        np.testing.assert_array_equal(view.stack.voxels, expected.voxels)


def test_still_images_other_stacks_and_other_references_are_left_out_and_said_so(tmp_path):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax)
    file_phantoms.write_stack(
        tmp_path / "scout",
        file_phantoms.long_axis(sax).frame(0),
        description="scout",
        changes=lambda _t, _z: {"TriggerTime": None},
    )
    axial = replace(cine((4, 4, 6, 8), seed=5), affine=np.diag([1.5, 1.5, 8, 1]))
    file_phantoms.write_stack(tmp_path / "axial", axial, series=lambda _t, _z: 50, description="axial cine")
    file_phantoms.write_stack(
        tmp_path / "moved",
        file_phantoms.long_axis(sax, degrees=90),
        series=lambda _t, _z: 60,
        description="moved",
        changes=lambda _t, _z: {"FrameOfReferenceUID": "9.9"},
    )
    write_views(tmp_path, sax, two_chamber=20, four_chamber=80)
    found = read_study(tmp_path)
    assert_same(found.sax, sax)
    assert [view.name for view in found.lax] == ["two chamber", "four chamber"]
    assert found.left_out == (
        "1 images of scout (series 0): another kind of image than the short axis, localizer (still images).",
        "16 images of axial cine (series 50): another stack of parallel planes.",
        "4 images of moved (series 60): not in the same frame of reference as the short axis.",
    )


def tilted(sax: Stack, num_slices: int, degrees: float, *, seed: int = 9) -> Stack:
    """Another stack through the middle of this one, turned about its rows; it has more slices."""
    x, y, z = sax.directions_lps.T
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    directions = np.stack([x, cosine * y + sine * z, cosine * z - sine * y], axis=1)
    shape = (num_slices, *sax.voxels.shape[2:])
    middle = sax.to_lps((np.array(sax.voxels.shape[:0:-1]) - 1) / 2)
    affine = phantoms.centered_affine(shape, tuple(sax.spacing_mm), directions, middle)
    voxels = np.random.default_rng(seed).integers(0, 999, (sax.num_frames, *shape)).astype(np.int16)
    return Stack(voxels, affine, sax.frame_times_ms)


@pytest.mark.parametrize("degrees", [45, 90, 120])
def test_of_several_stacks_the_long_axis_views_tell_the_short_axis_and_the_choice_is_noted(tmp_path, degrees):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax, description="SAX")
    other = tilted(sax, 9, degrees)
    file_phantoms.write_stack(tmp_path / "b", other, series=lambda _t, z: 50 + z, description="axial")
    write_views(tmp_path, sax, two_chamber=20, four_chamber=80)
    for found in (read_study(tmp_path).sax, read_stack(tmp_path)):
        assert_same(found, sax)
        assert found.provenance["series"] == "SAX"
        assert found.provenance["left_out"] == ["36 images of axial (series 50-58): another stack of parallel planes."]


def test_a_study_that_leaves_no_choice_notes_none(tmp_path):
    file_phantoms.write_stack(tmp_path, cine())
    assert not {"series", "left_out"} & set(read_stack(tmp_path).provenance)


@pytest.mark.parametrize(("pixel_ratio", "frames"), [(1, 10), (2, 10), (2, 4)])
@pytest.mark.parametrize("shift_mm", [0.0, 2.4])
def test_perfusion_in_the_planes_of_the_short_axis_is_left_out(tmp_path, pixel_ratio, frames, shift_mm):
    """With pixels of its own, other frames than the cine, or both; on the slices of the cine or between them."""
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax)
    affine = sax.slice_affine(1)
    affine[:3, :2] *= pixel_ratio
    affine[:3, 3] += shift_mm * sax.directions_lps[:, 2]
    perfusion = Stack(np.ones((frames, 3, 6, 8), np.int16), affine, 800.0 * np.arange(frames))
    file_phantoms.write_stack(
        tmp_path / "p", perfusion, series=lambda _t, _z: 50, description="perfusion", name=lambda t, z: f"{t}-{z}"
    )
    found = read_study(tmp_path)
    assert_same(found.sax, sax)
    assert found.lax == ()
    (sentence,) = found.left_out
    assert sentence.startswith(f"{3 * frames} images of perfusion (series 50): perfusion (")


def test_a_still_scout_with_more_slices_does_not_pass_for_the_short_axis(tmp_path):
    sax = cine()
    file_phantoms.write_stack(tmp_path / "a", sax)
    scout = replace(cine((1, 12, 6, 8), seed=5), affine=np.diag([1.5, 1.5, 8, 1]))
    file_phantoms.write_stack(tmp_path / "scout", scout, series=lambda _t, _z: 50)
    assert_same(read_stack(tmp_path), sax)


@pytest.mark.parametrize("with_sax", [True, False])
def test_a_long_axis_folder_may_hold_the_short_axis_or_not(tmp_path, with_sax):
    sax = cine()
    if with_sax:
        file_phantoms.write_stack(tmp_path / "a", sax)
    views = write_views(tmp_path, sax, **{"2ch": 0, "4ch": 60, "rv-2ch": 8})
    found = read_lax_folder(tmp_path)
    assert sorted(view.name for view in found) == ["2ch", "4ch", "rv-2ch"]
    for view in found:
        assert_same(view.stack, views[view.name])


def test_a_folder_with_the_short_axis_alone_has_no_long_axis(tmp_path):
    file_phantoms.write_stack(tmp_path, cine())
    with pytest.raises(InputError) as error:
        read_lax_folder(tmp_path)
    assert error.value.code == "no-long-axis"


# --- A real one -------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_real_human_has_six_positions_25_phases_and_five_views(data_folder):
    found = read_study(data_folder / "bivme" / "dicoms")
    sax = found.sax
    assert sax.voxels.shape == (25, 6, 208, 256)
    assert sax.voxels.dtype == np.int16
    np.testing.assert_allclose(sax.spacing_mm, [1.40625, 1.40625, 17.7], atol=0.002)
    assert sax.frame_times_ms[0] == 0
    # The mean of the six series' last trigger times, as their headers have them.
    last = [825.600036621094, 828.47998046875, 795.839965820313, 744.960021972656, 781.440063476563, 797.760009765625]
    assert sax.frame_times_ms[-1] == pytest.approx(np.mean(last))
    assert findings(sax) == []
    assert len(found.lax) == 5
    assert [view.stack.voxels.shape[:2] for view in found.lax] == [(25, 1)] * 5
    assert found.left_out == ()
    # The lowest slice along the normal is series 5; its first image is the oracle for voxels and place.
    first = pydicom.dcmread(data_folder / "bivme" / "dicoms" / "Se5" / "001.dcm")
    np.testing.assert_array_equal(sax.voxels[0, 0], first.pixel_array)
    np.testing.assert_allclose(sax.origin_lps, first.ImagePositionPatient, atol=1e-3)
