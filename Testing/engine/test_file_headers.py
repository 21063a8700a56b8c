"""Headers as other programs write them: what is said there is understood as they and 3D Slicer understand it."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import file_phantoms
import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from calid import geometry
from calid.errors import InputError, OutputError, ResourceError
from calid.images import voxels
from calid.images.checks import check_stack, findings
from calid.images.files import read_stack, write_stack
from calid.stack import Stack

SPACING_MM = (1.5, 1.4, 8.0)


def codes(stack: Stack) -> set[str]:
    return {finding.code for finding in findings(stack)}


def nifti(path: Path, stack: Stack, *, unit: str | None = "msec", step: float = 33.5, **fields) -> Path:
    """A file of nibabel's, with both forms, and some fields of its header changed afterwards, on the disk."""
    image = nib.Nifti1Image(np.transpose(stack.voxels, (3, 2, 1, 0)), geometry.lps_to_ras(stack.affine))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    nib.save(image, path)
    return patched(path, **fields)


def patched(path: Path, **fields) -> Path:
    contents = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(contents[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    contents[:348] = header.binaryblock
    path.write_bytes(contents)
    return path


def nrrd_text(path: Path, stack: Stack, *, entries: str = "", **fields: str | None) -> Path:
    """A raw NRRD file of one frame with some fields changed; None leaves one out."""
    vectors = " ".join(f"({','.join(map(repr, map(float, axis)))})" for axis in stack.affine[:3, :3].T)
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, stack.voxels.shape[:0:-1])),
        "space directions": vectors,
        "endian": "little",
        "encoding": "raw",
        "space origin": f"({','.join(map(repr, map(float, stack.origin_lps)))})",
    } | {key.replace("_", " "): value for key, value in fields.items()}
    lines = "".join(f"{key}: {value}\n" for key, value in header.items() if value is not None)
    path.write_bytes(f"NRRD0004\n{lines}{entries}\n".encode() + stack.voxels[0].tobytes())
    return path


def metaimage(path: Path, stack: Stack, *, order: str = "<", **fields: str | None) -> Path:
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": " ".join(map(repr, map(float, stack.directions_lps.T.ravel()))),
        "Offset": " ".join(map(repr, map(float, stack.origin_lps))),
        "ElementSpacing": " ".join(map(repr, map(float, stack.spacing_mm))),
        "DimSize": " ".join(map(str, stack.voxels.shape[:0:-1])),
        "ElementType": "MET_SHORT",
    } | fields
    lines = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    path.write_bytes(f"{lines}ElementDataFile = LOCAL\n".encode() + stack.voxels[0].astype(f"{order}i2").tobytes())
    return path


def needs(code: str, path: Path, *words: str) -> None:
    """The file is refused with this code and these words."""
    with pytest.raises(InputError) as error:
        check_stack(read_stack(path))
    assert error.value.code == code
    for word in words:
        assert word in error.value.message


# --- Other readers of our files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("frames", [1, 3])
def test_nibabel_reads_what_we_write(tmp_path, suffix, frames):
    stack = file_phantoms.noisy_stack((frames, 4, 6, 10))
    write_stack(stack, tmp_path / f"a{suffix}")
    image = nib.load(tmp_path / f"a{suffix}")
    voxels = np.asanyarray(image.dataobj).reshape(10, 6, 4, frames)
    np.testing.assert_array_equal(voxels, np.transpose(stack.voxels, (3, 2, 1, 0)))
    np.testing.assert_allclose(image.affine, geometry.lps_to_ras(stack.affine), atol=1e-4)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], image.affine, atol=1e-4)
    assert image.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("frames", [1, 3])
def test_pynrrd_reads_what_we_write(tmp_path, frames):
    stack = file_phantoms.noisy_stack((frames, 4, 6, 10)).noted(said="two\nlines")
    write_stack(stack, tmp_path / "a.nrrd")
    voxels, header = nrrd.read(str(tmp_path / "a.nrrd"), index_order="C")
    np.testing.assert_array_equal(np.moveaxis(voxels, -1, 0) if frames > 1 else voxels[np.newaxis], stack.voxels)
    np.testing.assert_allclose(np.array(header["space directions"])[-3:].T, stack.affine[:3, :3], atol=1e-12)
    np.testing.assert_allclose(header["space origin"], stack.origin_lps, atol=1e-12)


@pytest.mark.parametrize(
    "space", ["left-posterior-superior", "LPS", "right-anterior-superior", "RAS", "LAS", "scanner-xyz"]
)
def test_every_space_of_nrrd_is_the_one_that_itk_sees(tmp_path, space):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    path = nrrd_text(tmp_path / "a.nrrd", stack, space=space)
    back, image = read_stack(path), sitk.ReadImage(str(path))
    for index in itertools.product((0, 19), (0, 17), (0, 3)):
        np.testing.assert_allclose(back.to_lps(np.array(index)), image.TransformIndexToPhysicalPoint(index), atol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(0, 0), (0, 1), (1, 0), (2, 1), (1, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_every_form_of_nifti_is_the_one_that_itk_sees(tmp_path, sform, qform, seed):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20), seed=seed)
    path = nifti(tmp_path / "a.nii", stack, sform_code=sform, qform_code=qform)
    back, image = read_stack(path), sitk.ReadImage(str(path))
    for index in itertools.product((0, 19), (0, 17), (0, 3)):
        np.testing.assert_allclose(back.to_lps(np.array(index)), image.TransformIndexToPhysicalPoint(index), atol=1e-3)


def test_a_quaternion_that_is_too_long_by_rounding_is_a_rotation(tmp_path):
    """A half turn: b is one, and 32 bits may make it a little more; nibabel alone refuses that."""
    affine = np.diag([1.5, -1.5, -8.0, 1.0])
    stack = replace(file_phantoms.noisy_stack((1, 4, 18, 20)), affine=geometry.ras_to_lps(affine))
    path = nifti(tmp_path / "a.nii", stack, sform_code=0, quatern_b=1 + 1e-6)
    np.testing.assert_allclose(read_stack(path).affine, stack.affine, atol=1e-3)
    needs("bad-placement", patched(path, quatern_b=1.5), "no rotation")


# --- Slices along another axis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_slices_along_any_axis_become_the_third_without_resampling(tmp_path, order, suffix):
    """As nibabel's `as_closest_canonical` leaves a stack; every voxel keeps its place and value, none is mirrored."""
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    matrix = stack.affine[:, [*order, 3]]
    voxels = np.transpose(stack.voxels, (0, *(3 - order[axis] for axis in (2, 1, 0))))
    turned = replace(stack, voxels=voxels, affine=matrix, generated=None)
    path = tmp_path / f"a{suffix}"
    {".nii.gz": nifti, ".nrrd": nrrd_text, ".mha": metaimage}[suffix](path, turned)
    back = read_stack(path)
    assert back.num_slices == 4
    assert np.linalg.det(back.affine) * np.linalg.det(matrix) > 0
    assert ("stored_axes" in back.provenance) == (order[2] != 2)
    for index in itertools.product((0, 3, 19), (0, 5, 17), range(4)):
        x, y, z = np.round(back.to_index(stack.to_lps(np.array(index)))).astype(int)
        np.testing.assert_allclose(back.to_lps(np.array([x, y, z])), stack.to_lps(np.array(index)), atol=1e-3)
        assert back.voxels[0, z, y, x] == stack.voxels[0, index[2], index[1], index[0]]


def test_the_axes_of_a_dense_volume_and_of_a_view_stay(tmp_path):
    for shape, spacing in (
        ((1, 30, 20, 24), (1.5, 1.4, 1.1)),
        ((1, 1, 18, 20), (1.5, 1.4, 6.0)),
        ((1, 1, 18, 20), (4, 1.4, 1)),
    ):
        stack = file_phantoms.noisy_stack(shape, spacing_mm=spacing)
        np.testing.assert_array_equal(read_stack(nifti(tmp_path / "a.nii", stack)).voxels, stack.voxels)


# --- Axes that are not perpendicular ----------------------------------------------------------------------------------


def sheared(degrees: float, *, slices: int = 5) -> Stack:
    stack = file_phantoms.noisy_stack((1, slices, 18, 24))
    affine = stack.affine.copy()
    affine[:3, 2] += np.tan(np.deg2rad(degrees)) * SPACING_MM[2] * stack.directions_lps[:, 0]
    return replace(stack, affine=affine)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("degrees", [0.005, 0.06, 0.45])
def test_a_little_shear_is_straightened_alike_in_all_formats(tmp_path, suffix, degrees):
    """The first slice stays, the others lie along its normal, as those of DICOM do."""
    path = tmp_path / f"a{suffix}"
    {".nii": lambda path, stack: nifti(path, stack, qform_code=0), ".nrrd": nrrd_text, ".mha": metaimage}[suffix](
        path, sheared(degrees)
    )
    back = read_stack(path)
    assert geometry.shear_degrees(back.affine) < 1e-4
    np.testing.assert_allclose(back.affine, file_phantoms.noisy_stack((1, 5, 18, 24)).affine, atol=1e-4)
    check_stack(back)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_more_shear_is_refused_with_its_angle(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    {".nii": lambda path, stack: nifti(path, stack, qform_code=0), ".nrrd": nrrd_text, ".mha": metaimage}[suffix](
        path, sheared(0.6)
    )
    needs("sheared-affine", path, "0.60 degrees", "at most 0.5")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_accepted_can_be_written_in_every_format(tmp_path, suffix):
    """Half a degree over 20 slices moves the last one by more than half a pixel, so it stays as it is."""
    stack = sheared(0.45, slices=20)
    assert geometry.shear_degrees(geometry.straightened(stack.affine, 20)) > 0.4
    write_stack(stack, tmp_path / f"a{suffix}")
    np.testing.assert_allclose(read_stack(tmp_path / f"a{suffix}").affine, stack.affine, atol=1e-4)
    assert sitk.ReadImage(str(tmp_path / f"a{suffix}")).GetSize() == (24, 18, 20)


# --- Times and units --------------------------------------------------------------------------------------------------


def multi_volume(path: Path, stack: Stack, *, tag: str = "TriggerTime", unit: str = "ms", labels: str) -> Path:
    """As Slicer's MultiVolume module saves a cine: the list first."""
    vectors = " ".join(f"({','.join(map(repr, map(float, axis)))})" for axis in stack.affine[:3, :3].T)
    sizes = " ".join(map(str, (stack.num_frames, *stack.voxels.shape[:0:-1])))
    entries = (
        f"MultiVolume.FrameIdentifyingDICOMTagName:={tag}\nMultiVolume.FrameIdentifyingDICOMTagUnits:={unit}\n"
        f"MultiVolume.FrameLabels:={labels}\nMultiVolume.NumberOfFrames:={stack.num_frames}\n"
    )
    kinds = "list domain domain domain"
    fields = {"dimension": "4", "sizes": sizes, "kinds": kinds, "space_directions": f"none {vectors}"}
    nrrd_text(path, stack.frame(0), entries=entries, **fields)
    head, _ = path.read_bytes().split(b"\n\n", 1)
    path.write_bytes(head + b"\n\n" + np.moveaxis(stack.voxels, 0, -1).tobytes())
    return path


@pytest.mark.parametrize(
    ("labels", "unit", "tag", "expected"),
    [
        ("0,40,85", "ms", "TriggerTime", [0, 40, 85]),
        ("3.5, 40, 85", "ms", "TriggerTime", [3.5, 40, 85]),
        ("0,0.04,0.085", "s", "ContentTime", [0, 40, 85]),
        ("0,2,15", "deg", "FlipAngle", [0, 1, 2]),
        ("2,5,9", "ms", "EchoTime", [0, 1, 2]),
    ],
)
def test_the_labels_of_a_multi_volume_are_times_if_they_are_called_so(tmp_path, labels, unit, tag, expected):
    stack = file_phantoms.noisy_stack((3, 4, 18, 20))
    back = read_stack(multi_volume(tmp_path / "a.nrrd", stack, tag=tag, unit=unit, labels=labels))
    np.testing.assert_array_equal(back.voxels, stack.voxels)
    np.testing.assert_allclose(back.frame_times_ms, expected)


def test_a_multi_volume_with_a_label_too_few_is_refused(tmp_path):
    stack = file_phantoms.noisy_stack((3, 4, 18, 20))
    needs("frame-count", multi_volume(tmp_path / "a.nrrd", stack, labels="0,40"), "2 frame times", "3 frames")


@pytest.mark.parametrize(
    ("step", "unit", "step_ms", "is_guessed"),
    [
        (40, "sec", 40, True),  # ITK's 4D NIfTI
        (0.04, "msec", 40, True),
        (40_000, "sec", 40, True),
        (40, "usec", 40, True),
        (0.04, "sec", 40, False),
        (1.5, "sec", 1500, False),  # rest and stress, or so: odd, but what it says
        (40_000, None, 40, True),
    ],
)
def test_a_unit_that_no_heart_can_have_does_not_count(tmp_path, step, unit, step_ms, is_guessed):
    path = nifti(tmp_path / "a.nii", file_phantoms.noisy_stack((4, 4, 18, 20)), unit=unit, step=step)
    back = read_stack(path)
    np.testing.assert_allclose(back.frame_times_ms, step_ms * np.arange(4), rtol=1e-5)
    assert ("guessed-frame-times" in codes(back)) == is_guessed


@pytest.mark.parametrize("unit", ["cm", "m", "um"])
def test_lengths_that_are_no_millimeters_are_refused(tmp_path, unit):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    needs("unsupported-unit", nrrd_text(tmp_path / "a.nrrd", stack, space_units=f'"{unit}" "{unit}" "{unit}"'), unit)
    needs("unsupported-unit", nrrd_text(tmp_path / "b.nrrd", stack, units=f'"{unit}" "{unit}" "{unit}"'), unit)
    needs("unsupported-unit", metaimage(tmp_path / "a.mha", stack, DistanceUnits=unit), unit)
    code = {"cm": 4, "m": 1, "um": 3}[unit]
    needs("unsupported-unit", nifti(tmp_path / "a.nii", stack, xyzt_units=code), "millimeters")


def test_lengths_that_are_said_to_be_millimeters_are_read(tmp_path):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    np.testing.assert_array_equal(
        read_stack(nrrd_text(tmp_path / "a.nrrd", stack, space_units='"mm" "mm" "mm"')).voxels, stack.voxels
    )
    np.testing.assert_array_equal(
        read_stack(metaimage(tmp_path / "a.mha", stack, DistanceUnits="mm")).voxels, stack.voxels
    )


# --- Numbers as they are stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(np.nan, np.nan), (np.nan, 0), (0, 5), (np.inf, 0), (1, 0)])
def test_a_scale_that_is_no_number_leaves_the_values_as_they_are(tmp_path, slope, intercept):
    stack = file_phantoms.noisy_stack((2, 4, 18, 20))
    back = read_stack(nifti(tmp_path / "a.nii", stack, scl_slope=slope, scl_inter=intercept))
    assert back.voxels.dtype == np.int16
    np.testing.assert_array_equal(back.voxels, stack.voxels)


def test_a_scale_with_half_a_meaning_is_refused(tmp_path):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    needs("damaged-header", nifti(tmp_path / "a.nii", stack, scl_slope=2, scl_inter=np.nan), "scale", "nan")


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize(("slope", "intercept"), [(2, -100), (0.5, 0), (1e-3, 7)])
def test_scaled_values_are_those_of_nibabel(tmp_path, dtype, slope, intercept):
    voxels = file_phantoms.noisy_stack((2, 4, 18, 20)).voxels.astype(dtype)
    stack = file_phantoms.noisy_stack((2, 4, 18, 20)).with_voxels(voxels)
    path = nifti(tmp_path / "a.nii", stack, scl_slope=slope, scl_inter=intercept)
    expected = np.transpose(np.asanyarray(nib.load(path).dataobj), (3, 2, 1, 0))
    np.testing.assert_allclose(read_stack(path).voxels, expected, rtol=1e-6)


@pytest.mark.parametrize(("spelling", "order"), [("True", ">"), ("T", ">"), ("t", ">"), ("1", ">"), ("TRUE", ">"),
                                                 ("False", "<"), ("F", "<"), ("0", "<")])  # fmt: skip
def test_the_byte_order_of_metaimage_is_understood_in_every_spelling(tmp_path, spelling, order):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    path = metaimage(tmp_path / "a.mha", stack, order=order, BinaryDataByteOrderMSB=spelling)
    np.testing.assert_array_equal(read_stack(path).voxels, stack.voxels)
    if spelling != "TRUE":  # ITK reads these alike
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), stack.voxels[0])


def test_a_byte_order_of_nrrd_that_is_none_is_refused(tmp_path):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    needs("damaged-header", nrrd_text(tmp_path / "a.nrrd", stack, endian="msb"), "'msb'")


@pytest.mark.parametrize(
    "values", [(0, 255), (0, 200, 500, 600), (0, 0.25, 0.5, 1), (-1, 0, 1), tuple(range(0, 170, 10))]
)
def test_a_stack_of_a_handful_of_values_is_a_label_map_whatever_they_are(tmp_path, values):
    stack = file_phantoms.noisy_stack((2, 4, 18, 20))
    chosen = np.array(values, np.float32)[stack.voxels % len(values)]
    needs("label-map", nifti(tmp_path / "a.nii", stack.with_voxels(chosen)), f"{len(values)} different values")


def test_an_image_of_few_gray_levels_is_not_a_label_map():
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    assert "label-map" not in codes(stack.with_voxels((stack.voxels % 18 * 10).astype(np.uint8)))


# --- Headers that are no headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"NDims": "-3"}, {"NDims": "100"}, {"NDims": "2"}, {"NDims": "3.5"}, {"NDims": "x"},
                                    {"NDims": None}, {"DimSize": None}, {"DimSize": "20 18"}, {"DimSize": "-20 18 4"},
                                    {"TransformMatrix": "1 0 0 1"}, {"Offset": "1 2"}, {"ElementSpacing": "1.5"},
                                    {"HeaderSize": "10"}, {"TransformMatrix": "2 0 0 0 1 0 0 0 1"},
                                    {"ElementNumberOfChannels": "0"}, {"ElementType": "MET_SHORT_ARRAY"}])  # fmt: skip
def test_a_metaimage_header_that_contradicts_itself_is_refused(tmp_path, fields):
    with pytest.raises(InputError):
        read_stack(metaimage(tmp_path / "a.mha", file_phantoms.noisy_stack((1, 4, 18, 20)), **fields))


def test_what_does_not_matter_in_a_metaimage_header_is_not_read(tmp_path):
    """A name of 300 characters was enough to corrupt ITK's memory."""
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    back = read_stack(
        metaimage(tmp_path / "a.mha", stack, Name="x" * 300, Comment="y" * 9000, AnatomicalOrientation="RAI")
    )
    np.testing.assert_array_equal(back.voxels, stack.voxels)


@pytest.mark.parametrize(
    ("code", "change", "words"),
    [
        ("damaged-header", {"ElementDataFileX": "LOCAL", "DimSize": "20 18 4\nDimSize = 20 18 3"}, "'DimSize' twice"),
        ("bad-spacing", {"ElementSpacing": "1e-30 1.4 8"}, "1e-30"),
        ("bad-spacing", {"ElementSpacing": "1e300 1.4 8"}, "1e+300"),
        ("bad-placement", {"Offset": "1e300 0 0"}, "kilometer"),
    ],
)
def test_numbers_that_no_image_can_have_are_refused(tmp_path, code, change, words):
    needs(code, metaimage(tmp_path / "a.mha", file_phantoms.noisy_stack((1, 4, 18, 20)), **change), words)


@pytest.mark.parametrize("field", ["sizes: 20 18 3", "type: float", "space origin: (1,2,3)"])
def test_a_nrrd_field_that_is_there_twice_with_two_values_is_refused(tmp_path, field):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    needs("damaged-header", nrrd_text(tmp_path / "a.nrrd", stack, entries=f"{field}\n"), "twice")
    # A free entry of the same name is none.
    back = read_stack(nrrd_text(tmp_path / "a.nrrd", stack, entries=field.replace(": ", ":=") + "\n"))
    np.testing.assert_array_equal(back.voxels, stack.voxels)


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": 1e999}', "[" * 20000, '{"a": ' * 40 + "0" + "}" * 40, "[1]", "7"]
)
def test_a_provenance_that_could_not_be_written_again_is_refused(tmp_path, text):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    needs("damaged-header", nrrd_text(tmp_path / "a.nrrd", stack, entries=f"calid_provenance:={text}\n"), "provenance")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".nii.gz"])
def test_a_name_that_is_not_utf_8_is_a_name(tmp_path, suffix):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    write_stack(stack, tmp_path / f"a{suffix}")
    odd = Path(tmp_path / f"M\udcfcller{suffix}")
    (tmp_path / f"a{suffix}").rename(odd)
    np.testing.assert_array_equal(read_stack(odd).voxels, stack.voxels)
    write_stack(stack, odd, overwrite=True)


# --- Memory -----------------------------------------------------------------------------------------------------------


def bomb(path: Path, suffix: str) -> Path:
    """A small stack whose compressed voxels go on and on: 2 GB of zeros in 2 MB."""
    stack = file_phantoms.noisy_stack((1, 4, 18, 20))
    path = path / f"a{suffix}"
    write_stack(stack, path)
    head = path.read_bytes()
    zeros = gzip.compress(bytes(1 << 27), 9)
    if suffix == ".nii.gz":
        path.write_bytes(head + zeros * 16)
    else:
        path.write_bytes(head[: head.index(b"\n\n") + 2] + zeros * 16)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_compressed_voxels_without_end_take_no_memory(tmp_path, suffix):
    path = bomb(tmp_path, suffix)
    tracemalloc.start()
    try:
        needs("size-mismatch", path, "more voxels")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seq.nrrd", ".mha"])
@pytest.mark.parametrize("scale", [(1, 0), (2, -5), (0.5, 0)])
def test_reading_takes_less_than_twice_what_the_voxels_need(tmp_path, suffix, scale):
    stack = file_phantoms.noisy_stack((8, 12, 200, 200))
    path = tmp_path / f"a{suffix}"
    if scale != (1, 0) and suffix != ".nii":
        pytest.skip("only NIfTI has a scale")
    write_stack(stack, path)
    if suffix == ".nii":
        patched(path, scl_slope=scale[0], scl_inter=scale[1])
    tracemalloc.start()
    try:
        back = read_stack(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.9 * back.voxels.nbytes


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_memory_is_compared_with_what_is_free_before_it_is_taken(tmp_path, suffix, monkeypatch):
    stack = file_phantoms.noisy_stack((2, 4, 18, 20))
    write_stack(stack, tmp_path / f"a{suffix}")
    monkeypatch.setattr("calid.images.memory.free_system_bytes", lambda: stack.voxels.nbytes - 1)
    with pytest.raises(ResourceError, match=r"takes 0\.0 GB"):
        read_stack(tmp_path / f"a{suffix}")


def test_scaling_in_place_gives_what_narrowing_the_real_values_gives():
    stored = file_phantoms.noisy_stack((2, 3, 16, 16)).voxels
    for slope, intercept in ((2.0, -5.0), (0.25, 1.0), (1e6, 0.0), (1e12, 0.0)):
        expected = voxels.narrowed(voxels.real_values(stored, slope, intercept))
        found = voxels.scaled(stored.copy(), slope, intercept)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


# --- What Slicer's process needs before anything is installed ---------------------------------------------------------


def test_nrrd_and_metaimage_need_none_of_the_packages_that_the_module_installs(tmp_path):
    """The module writes the engine's input and reads its result as NRRD, and the demo case comes before the setup."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("nibabel", "nrrd", "torch", "monai", "einops", "safetensors", "tqdm")))
import numpy as np
from pathlib import Path
from calid.images import files
from calid.stack import Stack
voxels = np.arange(2 * 3 * 400, dtype=np.int16).reshape(2, 3, 20, 20)
stack = Stack(voxels, np.diag([1.5, 1.5, 8, 1]), np.array([0., 40]))
for name in ("a.seq.nrrd", "a.nrrd", "a.mha"):
    files.write_stack(stack, Path({str(tmp_path)!r}, name))
    assert (files.read_stack(Path({str(tmp_path)!r}, name)).voxels == stack.voxels).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_axis_too_long_for_nifti_is_refused_before_it_is_written(tmp_path):
    stack = Stack(np.zeros((1, 1, 1, 40_000), np.uint8), np.diag([1.0, 1, 8, 1]))
    with pytest.raises(OutputError) as error:
        write_stack(stack, tmp_path / "a.nii.gz")
    assert error.value.code == "too-large"
    assert list(tmp_path.iterdir()) == []
