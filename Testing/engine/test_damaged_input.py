"""Damaged and odd input, kind by kind: one clear error with its code, place and remedy, and nothing is written.

Each builder below makes one damaged input and says which code it must get and which words (a place, a measured value)
its message must hold. Every one is given to the Python call and to the command line.
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import file_phantoms
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from calid.__main__ import main
from calid.errors import InputError
from calid.images.checks import check_stack
from calid.images.files import read_stack, write_stack
from calid.stack import Stack
from pydicom.uid import RLELossless

# pydicom says so when a test writes nonsense into an element.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

Builder = Callable[[Path], Path]


@dataclass(frozen=True)
class Damage:
    """One kind of damaged input.

    Args:
        build: makes it in an empty folder and says where it lies.
        code: that the error must have.
        words: that its message must hold.
    """

    build: Builder
    code: str
    words: tuple[str, ...]


DAMAGES: dict[str, Damage] = {}


def damage(code: str, *words: str) -> Callable[[Builder], Builder]:
    """Enter a builder in the table under its own name."""

    def enter(build: Builder) -> Builder:
        DAMAGES[build.__name__] = Damage(build, code, words)
        return build

    return enter


def good(shape: tuple[int, int, int, int] = (5, 5, 18, 24), **options) -> Stack:
    """A cine that passes all checks."""
    return file_phantoms.noisy_stack(shape, **options)


# --- Not there, not an image, cut short -------------------------------------------------------------------------------


@damage("missing-file", "a.nii.gz", "does not exist")
def a_missing_file(folder):
    return folder / "a.nii.gz"


@damage("empty-file", "a.nrrd", "0 bytes")
def an_empty_file(folder):
    (folder / "a.nrrd").write_bytes(b"")
    return folder / "a.nrrd"


@damage("unknown-extension", "a.png")
def a_picture(folder):
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder / "a.png"


@damage("no-images", "holds no DICOM image")
def an_empty_folder(folder):
    return folder


@damage("no-images", "holds no DICOM image")
def a_folder_of_other_files(folder):
    (folder / "notes.txt").write_text("nothing here")
    return folder


def text_as(suffix: str) -> Builder:
    def build(folder: Path) -> Path:
        (folder / f"a{suffix}").write_text("This is a letter and not an image. " * 50)
        return folder / f"a{suffix}"

    return build


for suffix in (".nii", ".nii.gz", ".nrrd", ".mha"):
    DAMAGES[f"a_letter_called{suffix}"] = Damage(text_as(suffix), "not-an-image", (f"a{suffix}",))


@damage("not-an-image", "a.nii.gz")
def a_compressed_letter(folder):
    (folder / "a.nii.gz").write_bytes(gzip.compress(b"This is a letter. " * 100))
    return folder / "a.nii.gz"


def cut(suffix: str, share: float) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / f"a{suffix}"
        write_stack(good(), path)
        contents = path.read_bytes()
        path.write_bytes(contents[: int(share * len(contents))])
        return path

    return build


for suffix in (".nii", ".nii.gz", ".nrrd", ".seq.nrrd", ".mha"):
    DAMAGES[f"a_half{suffix}"] = Damage(cut(suffix, 0.5), "truncated-file", (f"a{suffix}", "ends"))
    DAMAGES[f"a_header_cut{suffix}"] = Damage(cut(suffix, 0.005), "truncated-file", (f"a{suffix}", "ends"))


def scratched(suffix: str) -> Builder:
    def build(folder: Path) -> Path:
        path = folder / f"a{suffix}"
        write_stack(good(), path)
        contents = bytearray(path.read_bytes())
        contents[-2000:-1900] = bytes(100)
        path.write_bytes(contents)
        return path

    return build


for suffix in (".nii.gz", ".nrrd", ".mha"):
    DAMAGES[f"a_scratched{suffix}"] = Damage(scratched(suffix), "damaged-file", (f"a{suffix}",))


@damage("size-mismatch", "a.nii", "more voxels")
def more_voxels_than_announced(folder):
    write_stack(good(), folder / "a.nii")
    with (folder / "a.nii").open("ab") as file:
        file.write(bytes(10))
    return folder / "a.nii"


# --- NRRD headers -----------------------------------------------------------------------------------------------------


def nrrd(folder: Path, *, voxels: np.ndarray | None = None, **fields: str | None) -> Path:
    """A raw NRRD file of 5 slices with some fields changed; None leaves a field out."""
    voxels = good().voxels[0] if voxels is None else voxels
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape[::-1])),
        "space directions": "(1.5,0,0) (0,1.4,0) (0,0,8)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    } | {key.replace("_", " "): value for key, value in fields.items()}
    lines = [f"{key}: {value}" for key, value in header.items() if value is not None]
    (folder / "a.nrrd").write_bytes(("NRRD0004\n" + "\n".join(lines) + "\n\n").encode() + voxels.tobytes())
    return folder / "a.nrrd"


@damage("flat-image", "2D")
def a_flat_image(folder):
    fields = {"dimension": "2", "space": None, "space_directions": None, "spacings": "1 1", "kinds": "domain domain"}
    return nrrd(folder, voxels=good().voxels[0, 0], space_origin=None, **fields)


@damage("flat-image", "2D")
def a_film_of_one_flat_image(folder):
    return nrrd(folder, kinds="domain domain time", space_directions="(1,0,0) (0,1,0) none")


@damage("too-many-dimensions", "5 dimensions")
def five_dimensions(folder):
    voxels = good((4, 5, 18, 24)).voxels.reshape(2, 2, 5, 18, 24)
    fields = {"dimension": "5", "space": None, "space_directions": None, "spacings": "1 1 8 1 1", "kinds": None}
    return nrrd(folder, voxels=voxels, space_origin=None, **fields)


@damage("color-pixels", "colors")
def a_color_volume(folder):
    sitk.WriteImage(sitk.Image([24, 18, 5], sitk.sitkVectorUInt8, 3), str(folder / "a.mha"))
    return folder / "a.mha"


@damage("color-pixels", "colors")
def a_color_nrrd(folder):
    voxels = np.zeros((5, 18, 24, 3), np.int16)
    directions = "none (1.5,0,0) (0,1.4,0) (0,0,8)"
    return nrrd(
        folder, voxels=voxels, dimension="4", kinds="RGB-color domain domain domain", space_directions=directions
    )


@damage("vector-pixels", "vector")
def a_motion_field(folder):
    image = sitk.GetImageFromArray(np.zeros((5, 18, 24, 3), np.float32), isVector=True)
    sitk.WriteImage(image, str(folder / "a.nrrd"))
    return folder / "a.nrrd"


@damage("vector-pixels", "vector")
def a_motion_field_in_nifti(folder):
    image = sitk.GetImageFromArray(np.zeros((5, 18, 24, 3), np.float32), isVector=True)
    sitk.WriteImage(image, str(folder / "a.nii.gz"))
    return folder / "a.nii.gz"


@damage("complex-pixels", "complex")
def complex_pixels(folder):
    sitk.WriteImage(sitk.Image([24, 18, 5], sitk.sitkComplexFloat32), str(folder / "a.nii"))
    return folder / "a.nii"


@damage("complex-pixels", "complex")
def complex_pixels_in_nrrd(folder):
    sitk.WriteImage(sitk.Image([24, 18, 5], sitk.sitkComplexFloat32), str(folder / "a.nrrd"))
    return folder / "a.nrrd"


@damage("missing-spacing", "how far apart")
def no_spacing(folder):
    return nrrd(folder, space=None, space_directions=None, space_origin=None)


@damage("bad-spacing", "0 x 1.4 x 8 mm")
def a_spacing_of_zero(folder):
    return nrrd(folder, space_directions="(0,0,0) (0,1.4,0) (0,0,8)")


@damage("bad-spacing", "-1.5 x 1.4 x 8 mm")
def a_negative_spacing(folder):
    return nrrd(folder, space=None, space_directions=None, space_origin=None, spacings="-1.5 1.4 8")


@damage("bad-spacing", "nan")
def a_spacing_that_is_no_number(folder):
    return nrrd(folder, space_directions="(nan,nan,nan) (0,1.4,0) (0,0,8)")


@damage("bad-placement", "not a number")
def an_origin_that_is_no_number(folder):
    return nrrd(folder, space_origin="(0,nan,0)")


@damage("bad-placement", "do not span")
def axes_that_coincide(folder):
    return nrrd(folder, space_directions="(1.5,0,0) (1.4,0,0) (0,0,8)")


@damage("sheared-affine", "a.nrrd", "26.57 degrees")
def slanted_axes(folder):
    return nrrd(folder, space_directions="(1.5,0,0) (0.7,1.4,0) (0,0,8)")


@damage("absurd-size", "100000 x 100000 x 5")
def an_absurd_size(folder):
    return nrrd(folder, sizes="100000 100000 5")


@damage("bad-size", "0 x 18 x 5")
def a_size_of_zero(folder):
    return nrrd(folder, sizes="0 18 5")


@damage("damaged-header", "'24 x 5'")
def a_size_that_is_no_number(folder):
    return nrrd(folder, sizes="24 x 5")


@damage("damaged-header", "another number of axes")
def axes_that_do_not_match(folder):
    return nrrd(folder, kinds="domain domain")


@damage("damaged-header", "'sizes'")
def a_missing_field(folder):
    return nrrd(folder, sizes=None)


@damage("damaged-header", "too long")
def an_endless_header_line(folder):
    return nrrd(folder, content="x" * 50_000)


@damage("unsupported-encoding", "'ascii'")
def voxels_written_as_text(folder):
    return nrrd(folder, encoding="ascii")


@damage("unsupported-voxels", "'block'")
def voxels_that_are_no_numbers(folder):
    return nrrd(folder, type="block")


@damage("detached-voxels", "another file")
def voxels_in_another_file(folder):
    return nrrd(folder, data_file="a.raw")


@damage("layered-segmentation", "overlap")
def a_segmentation_of_overlapping_segments(folder):
    voxels = np.zeros((5, 18, 24, 2), np.int16)
    directions = "none (1.5,0,0) (0,1.4,0) (0,0,8)"
    path = nrrd(folder, voxels=voxels, dimension="4", kinds="list domain domain domain", space_directions=directions)
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\nSegment0_Name:=LV\n\n", 1))
    return path


# --- NIfTI and MetaImage headers --------------------------------------------------------------------------------------


def nifti(folder: Path, offset: int, patch: bytes) -> Path:
    """A NIfTI file of SimpleITK with some bytes of its header changed."""
    path = folder / "a.nii"
    image = sitk.GetImageFromArray(good().voxels[0])
    image.SetSpacing((1.5, 1.4, 8.0))
    sitk.WriteImage(image, str(path))
    contents = bytearray(path.read_bytes())
    contents[offset : offset + len(patch)] = patch
    path.write_bytes(contents)
    return path


@damage("bad-spacing", "0 x 1.4 x 8 mm")
def a_nifti_spacing_of_zero(folder):
    return nifti(folder, 80, struct.pack("<f", 0))


@damage("bad-spacing", "1.5 x -1.4 x 8 mm")
def a_negative_nifti_spacing(folder):
    return nifti(folder, 84, struct.pack("<f", -1.4))


@damage("bad-spacing", "nan")
def a_nifti_spacing_that_is_no_number(folder):
    return nifti(folder, 88, struct.pack("<f", np.nan))


@damage("bad-placement", "not a number")
def a_nifti_orientation_that_is_no_number(folder):
    return nifti(folder, 280, struct.pack("<f", np.nan))


@damage("sheared-affine", "not perpendicular")
def a_slanted_nifti(folder):
    # Codes: no quaternion, a matrix, whose first row mixes columns and rows; these are still 1.4 mm apart.
    rows = struct.pack("<12f", 1.5, 0.84, 0, 0, 0, 1.12, 0, 0, 0, 0, 8, 0)
    return nifti(folder, 252, struct.pack("<hh6f", 0, 1, 0, 0, 0, 0, 0, 0) + rows)


@damage("unsupported-unit", "millimeters")
def a_nifti_in_meters(folder):
    return nifti(folder, 123, bytes([1]))


@damage("unsupported-voxels", "NIfTI type 1536")
def quadruple_precision(folder):
    return nifti(folder, 70, struct.pack("<hh", 1536, 128))


@damage("color-pixels", "colors")
def a_color_nifti(folder):
    return nifti(folder, 70, struct.pack("<hh", 128, 24))


@damage("damaged-header", "9 dimensions")
def nine_dimensions(folder):
    return nifti(folder, 40, struct.pack("<h", 9))


@damage("not-an-image", "NIfTI-2")
def a_nifti_2_file(folder):
    (folder / "a.nii").write_bytes(struct.pack("<i", 540) + b"n+2\0\r\n\032\n" + bytes(540))
    return folder / "a.nii"


def metaimage(folder: Path, **fields: str | None) -> Path:
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1.5 1.4 8",
        "DimSize": "24 18 5",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    } | fields
    lines = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    (folder / "a.mha").write_bytes(lines.encode() + good().voxels[0].tobytes())
    return folder / "a.mha"


@damage("bad-spacing", "0 x 1.4 x 8 mm")
def a_metaimage_spacing_of_zero(folder):
    return metaimage(folder, ElementSpacing="0 1.4 8")


@damage("missing-spacing", "how far apart")
def a_metaimage_without_spacing(folder):
    return metaimage(folder, ElementSpacing=None)


@damage("bad-placement", "do not span")
def a_metaimage_whose_axes_coincide(folder):
    return metaimage(folder, TransformMatrix="1 0 0 1 0 0 0 0 1")


@damage("detached-voxels", "another file")
def a_metaimage_whose_voxels_lie_elsewhere(folder):
    return metaimage(folder, ElementDataFile="a.raw")


@damage("unsupported-encoding", "text")
def a_metaimage_written_as_text(folder):
    return metaimage(folder, BinaryData="False")


@damage("unsupported-voxels", "MET_STRING")
def a_metaimage_of_strings(folder):
    return metaimage(folder, ElementType="MET_STRING")


@damage("bad-placement", "3 x 2.8 x 20 mm", "1.5 x 1.4 x 8 mm")
def a_nifti_whose_matrix_has_another_spacing(folder):
    return nifti(folder, 280, struct.pack("<12f", 3, 0, 0, 0, 0, 2.8, 0, 0, 0, 0, 20, 0))


@damage("bad-placement", "sform", "qform", "10.0 mm")
def a_nifti_whose_matrix_and_quaternion_disagree(folder):
    # ITK turns x and y, LPS to RAS.
    return nifti(folder, 280, struct.pack("<12f", -1.5, 0, 0, 6, 0, -1.4, 0, 8, 0, 0, 8, 0))


# --- Our own entries --------------------------------------------------------------------------------------------------


def rewritten(folder: Path, old: bytes, new: bytes) -> Path:
    """A cine of ours with its header changed by hand."""
    path = folder / "a.seq.nrrd"
    write_stack(good(step_ms=10.0), path)
    contents = path.read_bytes()
    assert old in contents
    path.write_bytes(contents.replace(old, new, 1))
    return path


@damage("unordered-frames", "frame 3", "frame 2")
def frame_times_that_go_back(folder):
    return rewritten(folder, b"2.25 12.25 22.25", b"2.25 12.25 12.25")


@damage("unordered-frames", "frame 2", "not a number")
def a_frame_time_that_is_no_number(folder):
    return rewritten(folder, b"2.25 12.25 ", b"2.25 nan ")


@damage("frame-count", "4 frame times", "5 frames")
def a_frame_time_too_few(folder):
    return rewritten(folder, b"2.25 12.25 ", b"2.25 ")


@damage("stale-marks", "6 slices", "holds 5")
def marks_of_another_stack(folder):
    return rewritten(folder, b"calid_generated:=0 0", b"calid_generated:=0 0 0")


@damage("damaged-header", "provenance")
def a_damaged_provenance(folder):
    return rewritten(folder, b"calid_provenance:={}", b"calid_provenance:={")


@damage("missing-frame", "frames 3 and 4", "20.0 ms", "usually 10.0 ms")
def a_sequence_without_its_fourth_frame(folder):
    return rewritten(folder, b"22.25 32.25 42.25", b"22.25 42.25 52.25")


# --- Whole stacks that do not suit ------------------------------------------------------------------------------------


def written(folder: Path, stack: Stack) -> Path:
    write_stack(stack, folder / "a.nrrd")
    return folder / "a.nrrd"


def with_voxel(value: float, place: tuple[int, ...]) -> Stack:
    voxels = good().voxels.astype(np.float32)
    voxels[place] = value
    return good().with_voxels(voxels)


@damage("one-slice", "only one slice")
def one_slice(folder):
    return written(folder, good((3, 1, 18, 24)))


@damage("nan-voxels", "slice 4 of 5 in frame 2 of 5", "NaN")
def a_voxel_that_is_no_number(folder):
    return written(folder, with_voxel(np.nan, (1, 3, 9, 9)))


@damage("infinite-voxels", "slice 5 of 5 in frame 1 of 5")
def an_infinite_voxel(folder):
    return written(folder, with_voxel(-np.inf, (0, 4, 0, 0)))


@damage("absurd-values", "slice 1 of 5 in frame 3 of 5", "1e+09")
def a_voxel_of_misread_memory(folder):
    return written(folder, with_voxel(1e30, (2, 0, 0, 0)))


@damage("constant-image", "same value, 7")
def a_constant_image(folder):
    return written(folder, good().with_voxels(np.full((5, 5, 18, 24), 7, np.int16)))


def blanked(place: tuple) -> Stack:
    voxels = good().voxels.copy()
    voxels[place] = 0
    return good().with_voxels(voxels)


@damage("blank-slice", "Slice 3 of 5 in frame 2 of 5")
def a_blank_slice(folder):
    return written(folder, blanked((1, 2)))


@damage("blank-frame", "Frame 4 of 5")
def a_blank_frame(folder):
    return written(folder, blanked((3,)))


@damage("already-isotropic", "2.00 mm apart")
def an_isotropic_volume(folder):
    return written(folder, good(spacing_mm=(1.5, 1.5, 2.0)))


@damage("label-map", "from 0 to 3")
def a_label_map(folder):
    return written(folder, good().with_voxels((good().voxels % 4).astype(np.uint8)))


@damage("label-map", "from 0 to 3")
def a_label_map_of_floats(folder):
    return written(folder, good().with_voxels((good().voxels % 4).astype(np.float32)))


@damage("too-small", "12 x 15 pixels")
def a_thumbnail(folder):
    return written(folder, good((3, 5, 15, 12)))


@damage("implausible-spacing", "0.008 mm")
def a_spacing_in_meters(folder):
    return written(folder, good(spacing_mm=(1.5, 1.4, 0.008)))


@damage("implausible-spacing", "1500 mm")
def a_spacing_in_micrometers(folder):
    return written(folder, good(spacing_mm=(1500.0, 1400.0, 8000.0)))


# --- DICOM folders ----------------------------------------------------------------------------------------------------


def dicom(folder: Path, changes=lambda _t, _z: {}, *, stack: Stack | None = None, **options) -> Path:
    """One series per slice, as the scanner writes it, with some elements changed, or images left out (None)."""
    stack = good() if stack is None else stack
    file_phantoms.write_stack(folder, stack, changes=changes, **options)
    return folder


def only(place: tuple[int, int], change) -> Callable:
    """The change at one (frame, slice) alone."""
    return lambda t, z: change if (t, z) == place else {}


def in_slice(slice_index: int, **tags) -> Callable:
    return lambda _, z: tags if z == slice_index else {}


def moved(slice_index: int, *, along_mm: float = 0.0, beside_mm: float = 0.0) -> Callable:
    """One slice elsewhere: along the normal, or in its plane along the rows."""
    stack = good()
    affine = stack.slice_affine(slice_index)
    affine[:3, 3] += along_mm * stack.directions_lps[:, 2] + beside_mm * stack.directions_lps[:, 0]
    return in_slice(slice_index, **file_phantoms.placed(affine))


def turned(slice_index: int, degrees: float, axis: int) -> Callable:
    """One slice turned about one of the stack's axes."""
    x, y = np.delete(np.arange(3), axis)
    turn = np.eye(3)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn[[x, x, y, y], [x, y, x, y]] = cosine, -sine, sine, cosine
    stack = good()
    affine = stack.slice_affine(slice_index)
    affine[:3, :3] = stack.directions_lps @ turn @ np.diag(stack.spacing_mm)
    return in_slice(slice_index, **file_phantoms.placed(affine))


@damage("missing-slice", "Gap 3 of 3", "s2/i00.dcm", "s4/i00.dcm", "16.00 mm", "8.00 mm")
def a_missing_slice(folder):
    return dicom(folder, lambda _, z: None if z == 3 else {})


@damage("uneven-spacing", "Gap 1 of 4", "11.00 mm", "8.00 mm")
def unevenly_spaced_slices(folder):
    return dicom(folder, moved(0, along_mm=-3.0))


@damage("non-parallel", "Slice 5 of 5", "6.0 degrees")
def a_tilted_slice(folder):
    return dicom(folder, turned(4, 6.0, axis=0))


@damage("rotated-slice", "Slice 2 of 5", "90.0 degrees")
def a_slice_turned_in_its_plane(folder):
    return dicom(folder, turned(1, 90.0, axis=2), stack=good((5, 5, 20, 20)))


@damage("shifted-slice", "Slice 4 of 5", "9.0 mm")
def a_shifted_slice(folder):
    return dicom(folder, moved(3, beside_mm=9.0))


@damage("sheared-stack", "by 2.0 mm")
def a_slanted_stack(folder):
    stack = good()

    def changes(_, z):
        affine = stack.slice_affine(z)
        affine[:3, 3] += 2.0 * z * stack.directions_lps[:, 0]
        return file_phantoms.placed(affine)

    return dicom(folder, changes)


@damage("missing-frame", "Slice 2 of 5 (s1/i00.dcm)", "4 frames", "have 5", "frame 3 is missing")
def a_missing_frame(folder):
    return dicom(folder, only((2, 1), None))


@damage("missing-frame", "frame 5 is missing")
def a_missing_last_frame(folder):
    return dicom(folder, only((4, 1), None))


@damage("uneven-frames", "have 5")
def slices_with_different_numbers_of_frames(folder):
    return dicom(folder, lambda t, z: None if t < 5 - 3 and z == 1 else {})


@damage("missing-frame", "Slice 2 of 5 (s1/i00.dcm)", "between 2.2 and 69.2 ms", "usually 33.5 ms")
def slices_that_each_lack_another_frame(folder):
    return dicom(folder, lambda t, z: None if t == z else {}, stack=good((8, 5, 18, 24)))


def at_ms(time_ms: Callable[[float], float], slice_index: int, stack: Stack) -> Callable:
    """One slice with other times of its frames."""
    return lambda t, z: {"TriggerTime": time_ms(stack.frame_times_ms[t])} if z == slice_index else {}


@damage("different-phases", "Slice 4 of 5 (s3/i00.dcm)", "402.2 ms", "2.2 ms", "at most 16.8 ms")
def a_slice_that_starts_late(folder):
    return dicom(folder, at_ms(lambda time: time + 400, 3, good()))


@damage("different-phases", "slice 4 of 5 (s3/i00.dcm)", "% of the heart beat")
def a_slice_of_a_part_of_the_beat(folder):
    return dicom(folder, at_ms(lambda time: 0.4 * time, 3, good()))


@damage("different-phases", "Slice 4 of 5 (s3/i00.dcm)", "400 ms", "about 0 ms")
def a_still_slice_of_another_phase(folder):
    return dicom(folder, at_ms(lambda _: 400, 3, good()), stack=replace(good().frame(0), frame_times_ms=np.zeros(1)))


@damage("several-stacks", "25 images of cine", "45 images of axial")
def a_second_stack_and_no_views(folder):
    axial = replace(good((5, 9, 18, 24)), affine=np.diag([1.5, 1.4, 8.0, 1.0]))
    file_phantoms.write_stack(folder / "axial", axial, series=lambda _t, z: 100 + z, description="axial")
    return dicom(folder)


@damage("duplicate-slices", "2 of 5 slices", "again0.dcm and s0/i00.dcm; again3.dcm and s3/i00.dcm")
def still_slices_of_which_no_header_tells_the_later_one(folder):
    dicom(folder, stack=good().frame(0))
    other = good(seed=0).frame(0)
    other = other.with_voxels(other.voxels + 1)
    changes = lambda _, z: {"InstanceNumber": 70 + z} if z in (0, 3) else None  # noqa: E731 (a table of one-liners)
    return dicom(folder, changes, stack=other, name=lambda _t, z: f"again{z}.dcm")


@damage("duplicate-frames", "1 of 5 slices", "again02.dcm and s2/i00.dcm")
def a_slice_of_a_cine_of_which_no_header_tells_the_later_one(folder):
    dicom(folder)
    other = good().with_voxels(good().voxels + 1)
    changes = lambda t, z: {"InstanceNumber": 70 + t} if z == 2 else None  # noqa: E731 (a table of one-liners)
    return dicom(folder, changes, stack=other, name=lambda t, z: f"again{t}{z}.dcm")


@damage("mixed-sizes", "Slice 2 of 5", "24 x 16 pixels", "24 x 18")
def slices_of_different_sizes(folder):
    dicom(folder, lambda _, z: None if z == 1 else {})
    smaller = replace(good(), voxels=good().voxels[:, :, :16])
    return dicom(folder, lambda _, z: {} if z == 1 else None, stack=smaller)


@damage("mixed-pixel-spacing", "Slice 5 of 5", "1.6 x 1.4 mm", "1.5 x 1.4")
def slices_of_different_pixel_size(folder):
    return dicom(folder, in_slice(4, PixelSpacing=["1.4", "1.6"]))


@damage("moved-frames", "s2/i03.dcm", "s2/i00.dcm")
def a_frame_that_shows_other_pixels(folder):
    affine = good().slice_affine(2)
    affine[:3, 3] += 5 * good().directions_lps[:, 1]
    return dicom(folder, only((3, 2), file_phantoms.placed(affine)))


@damage("mixed-patients", "2 patients")
def images_of_two_patients(folder):
    return dicom(folder, in_slice(3, PatientID="somebody else"))


@damage("mixed-references", "frames of reference")
def slices_with_different_origins(folder):
    return dicom(folder, in_slice(3, FrameOfReferenceUID="9.9"))


@damage("no-images", "place in space")
def images_without_a_place(folder):
    return dicom(folder, lambda _t, _z: {"ImagePositionPatient": None})


@damage("missing-spacing", "Pixel Spacing")
def dicom_without_pixel_spacing(folder):
    return dicom(folder, lambda _t, _z: {"PixelSpacing": None})


@damage("bad-spacing", "s1/i00.dcm", "0 x 1.4 mm")
def dicom_with_a_pixel_spacing_of_zero(folder):
    return dicom(folder, in_slice(1, PixelSpacing=["1.4", "0"]))


@damage("bad-orientation", "Image Orientation", "there are 0")
def dicom_without_an_orientation(folder):
    return dicom(folder, in_slice(1, ImageOrientationPatient=None))


@damage("bad-orientation", "perpendicular")
def dicom_with_an_impossible_orientation(folder):
    return dicom(folder, in_slice(1, ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]))


@damage("damaged-dicom", "Image Position", "there are 2")
def dicom_with_a_position_of_two_numbers(folder):
    return dicom(folder, in_slice(1, ImagePositionPatient=["1", "2"]))


@damage("unordered-frames", "neither trigger times nor numbers")
def dicom_without_times_or_numbers(folder):
    return dicom(folder, lambda _t, _z: {"TriggerTime": None, "InstanceNumber": None})


@damage("truncated-dicom", "s4/i04.dcm", "bytes of pixels")
def dicom_pixels_cut_short(folder):
    path = dicom(folder) / "s4" / "i04.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


@damage("truncated-dicom", "s4/i04.dcm")
def a_dicom_header_cut_short(folder):
    path = dicom(folder) / "s4" / "i04.dcm"
    path.write_bytes(path.read_bytes()[:700])
    return folder


@damage("truncated-dicom", "s4/i04.dcm")
def compressed_dicom_cut_short(folder):
    path = dicom(folder) / "s4" / "i04.dcm"
    file = pydicom.dcmread(path)
    file.compress(RLELossless)
    file.save_as(path)
    path.write_bytes(path.read_bytes()[:-200])
    return folder


@damage("truncated-dicom", "s4/i04.dcm", "60 bytes")
def a_dicom_file_cut_in_its_preamble(folder):
    path = dicom(folder) / "s4" / "i04.dcm"
    path.write_bytes(path.read_bytes()[:60])
    return folder


@damage("empty-file", "s4/i04.dcm")
def an_empty_dicom_file(folder):
    (dicom(folder) / "s4" / "i04.dcm").write_bytes(b"")
    return folder


@damage("not-an-image", "s4/i04.dcm")
def a_letter_among_dicom_files(folder):
    (dicom(folder) / "s4" / "i04.dcm").write_text("This is a letter. " * 50)
    return folder


@damage("color-pixels", "colors")
def color_dicom(folder):
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    return dicom(folder, lambda _t, _z: tags)


@damage("undecodable-pixels", "s0/i00.dcm", "JPEG")
def dicom_in_an_unknown_compression(folder):
    for path in dicom(folder).rglob("*.dcm"):
        file = pydicom.dcmread(path)
        file.compress(RLELossless)
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.203"
        file.save_as(path)
    return folder


@damage("unplaced-frames", "no place of their own")
def old_multi_frame_dicom(folder):
    stack = good()
    file = file_phantoms.dataset(stack.voxels[:, 0], NumberOfFrames=5, **file_phantoms.placed(stack.affine))
    file.save_as(folder / "a.dcm")
    return folder


@damage("one-slice", "only one slice")
def a_single_dicom_file(folder):
    dicom(folder)
    return folder / "s0" / "i00.dcm"


@damage("one-slice", "only one slice")
def a_dicom_folder_of_one_slice(folder):
    return dicom(folder, stack=good((5, 1, 18, 24)))


def raw_element(folder: Path, keyword: str, vr: str, value: bytes) -> Path:
    """One file with an element as pydicom would not write it."""
    path = dicom(folder) / "s1" / "i00.dcm"
    file = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(keyword)
    file._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    file.save_as(path)
    return folder


@damage("damaged-dicom", "s1/i00.dcm", "infinity")
def dicom_with_a_whole_number_that_is_infinite(folder):
    return raw_element(folder, "InstanceNumber", "IS", b"inf ")


@damage("damaged-dicom", "s1/i00.dcm", "xxxx")
def dicom_with_a_long_word_in_place_of_a_number(folder):
    return raw_element(folder, "TriggerTime", "DS", b"x" * 5000)


@damage("truncated-dicom", "s1/i00.dcm")
def dicom_whose_sequences_are_nested_without_end(folder):
    path = dicom(folder) / "s1" / "i00.dcm"
    contents = path.read_bytes()
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff"  # Referenced Image Sequence
    place = contents.index(b"\x08\x00\x60\x00CS")  # the modality, an element further on in group 8
    path.write_bytes(contents[:place] + (sequence + item) * 5000 + contents[place:])
    return folder


@damage("damaged-dicom", "s0/i00.dcm", "RescaleSlope is nan")
def dicom_with_a_scale_that_is_no_number(folder):
    return dicom(folder, lambda _t, _z: {"RescaleSlope": "nan"})


# --- The tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_gets_its_error_with_place_and_remedy(name, tmp_path):
    kind = DAMAGES[name]
    with pytest.raises(InputError) as error:
        check_stack(read_stack(kind.build(tmp_path)), source="a.nrrd")
    assert error.value.code == kind.code
    for word in kind.words:
        assert word in error.value.message
    assert re.fullmatch(r"[A-Z].*\.", error.value.remedy)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", DAMAGES)
def test_the_command_line_says_it_in_one_line_and_writes_nothing(name, tmp_path, capfd):
    """`capfd` sees what C++ libraries print, too."""
    (tmp_path / "in").mkdir()
    source = DAMAGES[name].build(tmp_path / "in")
    capfd.readouterr()
    code = main(["upsample", str(source), str(tmp_path / "out.nrrd"), "--method", "linear", "--factor", "2"])
    printed = capfd.readouterr()
    assert code == 2
    assert re.fullmatch(r"calid: error: [^\r\n]+\n", printed.err)
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_there_are_as_many_kinds_as_promised():
    assert len(DAMAGES) >= 120
    assert len({kind.code for kind in DAMAGES.values()}) >= 60


def test_what_the_builders_damage_is_good_before(tmp_path):
    """Else a test could pass for a damage that is not the one it means."""
    check_stack(good())
    check_stack(read_stack(dicom(tmp_path / "dicom")))
    for name, path in (("nrrd", nrrd(tmp_path)), ("nifti", nifti(tmp_path, 0, b"")), ("mha", metaimage(tmp_path))):
        check_stack(read_stack(path), source=name)
