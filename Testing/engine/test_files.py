"""Volume files: what is written is read back, by us and by SimpleITK, and what is damaged is never read as an image."""

from __future__ import annotations

import doctest
import errno
import gzip
import json
import os
import struct
import tempfile
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import file_phantoms
import numpy as np
import pytest
import SimpleITK as sitk
from calid import geometry
from calid.errors import InputError, OutputError
from calid.images import volume_out, voxels
from calid.images.files import check_output, read_lax_folder, read_stack, write_labels, write_stack
from calid.labels import LABELS
from calid.stack import Stack
from hypothesis import given, settings
from hypothesis import strategies as st

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".seq.nrrd", ".mha")
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")

texts = st.text(st.characters(codec="utf-8"), max_size=20)
provenances = st.dictionaries(texts, texts | st.integers() | st.lists(st.booleans(), max_size=3), max_size=4)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all examples of a property; hypothesis forbids fixtures that are made anew for each test."""
    return tmp_path_factory.mktemp("files")


def made(shape: tuple[int, int, int, int], *, seed: int = 0, dtype: str = "int16", **fields) -> Stack:
    """Noise over the whole range of a type, with uneven frame times and every other slice marked as generated."""
    stack = file_phantoms.noisy_stack(shape, seed=seed)
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    voxels = bits.view(dtype)[..., 0] if dtype[0] != "f" else rng.normal(size=shape).astype(dtype)
    times = np.cumsum(rng.uniform(20, 45, shape[0]))
    return replace(stack, voxels=voxels, frame_times_ms=times, generated=np.arange(shape[1]) % 2 == 1, **fields)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(shape=shapes, dtype=st.sampled_from(DTYPES), provenance=provenances, seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_stack_comes_back_from_its_file_as_it_was(folder, suffix, shape, dtype, provenance, seed):
    stack = made(shape, seed=seed, dtype=dtype, provenance=provenance)
    path = folder / f"stack{suffix}"
    write_stack(stack, path, overwrite=True)
    back = read_stack(path)
    assert back.voxels.dtype == stack.voxels.dtype
    np.testing.assert_array_equal(back.voxels, stack.voxels)
    np.testing.assert_array_equal(back.frame_times_ms, stack.frame_times_ms)
    np.testing.assert_array_equal(back.generated, stack.generated)
    assert back.provenance == stack.provenance
    # NIfTI keeps its matrix in 32 bits.
    np.testing.assert_allclose(back.affine, stack.affine, atol=1e-4 if "nii" in suffix else 1e-12)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 6, 9])
def test_simpleitk_finds_every_voxel_of_a_written_file_where_it_belongs(tmp_path, suffix, frames):
    stack = made((frames, 4, 6, 10), seed=frames)
    write_stack(stack, tmp_path / f"stack{suffix}")
    image = sitk.ReadImage(str(tmp_path / f"stack{suffix}"))
    for t, z, y, x in ((0, 0, 0, 0), (frames - 1, 3, 5, 9), (frames // 2, 2, 1, 7)):
        place = (x, y, z, t)[: image.GetDimension()]
        value = image.GetPixel(*place)
        if image.GetNumberOfComponentsPerPixel() > 1:
            value = value[t]
        assert value == stack.voxels[t, z, y, x]
        point = image.TransformIndexToPhysicalPoint(place)
        np.testing.assert_allclose(point[:3], stack.to_lps(np.array([x, y, z])), atol=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_file_of_simpleitk_is_read_with_its_voxels_and_places(tmp_path, suffix, frames, seed):
    stack = file_phantoms.noisy_stack((frames, 4, 6, 10), seed=seed)
    image = sitk.GetImageFromArray(stack.voxels if frames > 1 else stack.voxels[0], isVector=False)
    count = image.GetDimension()
    directions = np.eye(count)
    directions[:3, :3] = stack.directions_lps
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing([*stack.spacing_mm.tolist(), 0.0335][:count])
    image.SetOrigin([*stack.origin_lps.tolist(), 0.0][:count])
    sitk.WriteImage(image, str(tmp_path / f"s{suffix}"), useCompression=True)
    back = read_stack(tmp_path / f"s{suffix}")
    np.testing.assert_array_equal(back.voxels, stack.voxels)
    np.testing.assert_allclose(back.affine, stack.affine, atol=1e-4)
    np.testing.assert_allclose(back.frame_times_ms, 33.5 * np.arange(frames), atol=1e-3)


def test_files_that_differ_in_the_end_of_their_names_alone_are_not_mistaken_for_each_other(tmp_path):
    """ITK reads x.nii.gz with the voxels of x.nii, if both are there."""
    stacks = {suffix: made((2, 2, 6, 5), seed=index) for index, suffix in enumerate(SUFFIXES)}
    for suffix, stack in stacks.items():
        write_stack(stack, tmp_path / f"x{suffix}")
    for suffix, stack in stacks.items():
        back = read_stack(tmp_path / f"x{suffix}")
        np.testing.assert_array_equal(back.voxels, stack.voxels)
        np.testing.assert_allclose(back.affine, stack.affine, atol=1e-4)


@pytest.mark.parametrize(("slope", "kind"), [(1.0, "int16"), (0.0, "int16"), (2.0, "int16"), (0.5, "float32")])
def test_the_intensity_scale_of_nifti_is_applied(tmp_path, slope, kind):
    stored = (np.arange(2 * 6 * 5).reshape(2, 6, 5) * 2 + 1).astype(np.int16)
    path = tmp_path / "a.nii"
    sitk.WriteImage(sitk.GetImageFromArray(stored), str(path))
    contents = bytearray(path.read_bytes())
    contents[112:120] = struct.pack("<2f", slope, 3.0 if slope else 0.0)
    path.write_bytes(contents)
    back = read_stack(path)
    assert back.voxels.dtype == kind
    np.testing.assert_array_equal(back.voxels[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_mirrored_stack_keeps_its_place_in_nifti(tmp_path, frames):
    """NIfTI's quaternion is a rotation; the mirror is in the sign of the third axis."""
    stack = made((frames, 4, 6, 10))
    affine = stack.affine.copy()
    affine[:3, 2] *= -1
    write_stack(replace(stack, affine=affine), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_stack(tmp_path / "a.nii.gz").affine, affine, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seq.nrrd"])
def test_writing_takes_no_second_copy_of_the_voxels(tmp_path, suffix):
    stack = made((4, 64, 64, 64))
    tracemalloc.start()
    try:
        write_stack(stack, tmp_path / f"a{suffix}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * stack.voxels.nbytes


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_file_of_several_gzip_streams_is_read_as_one(tmp_path, suffix):
    """bgzip writes such files, and so does joining two."""
    stack = made((2, 4, 6, 10))
    write_stack(stack, tmp_path / f"a{suffix}")
    contents = (tmp_path / f"a{suffix}").read_bytes()
    start = 0 if suffix == ".nii.gz" else contents.index(b"\n\n") + 2
    plain = gzip.decompress(contents[start:])
    streams = b"".join(gzip.compress(plain[at : at + 300]) for at in range(0, len(plain), 300))
    (tmp_path / f"a{suffix}").write_bytes(contents[:start] + streams)
    np.testing.assert_array_equal(read_stack(tmp_path / f"a{suffix}").voxels, stack.voxels)
    (tmp_path / f"a{suffix}").write_bytes(contents[:start] + streams[:-1])
    with pytest.raises(InputError, match="ends early"):
        read_stack(tmp_path / f"a{suffix}")


# --- Frame times ------------------------------------------------------------------------------------------------------


def slicer_sequence(path: Path, stack: Stack, values: str, *, unit: str = '"ms"', list_first: bool = True) -> Path:
    """A volume sequence as 3D Slicer writes it: the list last (5.12), or first (its documentation)."""
    frames, slices, rows, columns = stack.voxels.shape
    axes = [f"{columns} {rows} {slices}", "domain domain domain", '"" "" ""']
    vectors = " ".join(f"({','.join(map(repr, map(float, column)))})" for column in stack.affine[:3, :3].T)
    data = np.moveaxis(stack.voxels, 0, -1) if list_first else stack.voxels

    def both(frame: str, spatial: str) -> str:
        return f"{frame} {spatial}" if list_first else f"{spatial} {frame}"

    axis = 0 if list_first else 3
    header = f"""NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
type: short
dimension: 4
space: left-posterior-superior
sizes: {both(str(frames), axes[0])}
space directions: {both("none", vectors)}
kinds: {both("list", axes[1])}
labels: {both('"time"', axes[2])}
units: {both(unit, axes[2])}
endian: little
encoding: raw
space origin: ({",".join(map(repr, map(float, stack.origin_lps)))})
DataNodeClassName:=vtkMRMLScalarVolumeNode
axis {axis} index type:=numeric
axis {axis} index values:={values}

"""
    path.write_bytes(header.encode() + np.ascontiguousarray(data).tobytes())
    return path


@pytest.mark.parametrize("list_first", [True, False])
@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ("0 33.5 70", '"ms"', [0, 33.5, 70]),
        ("0.0 0.0335 0.07", '"s"', [0, 33.5, 70]),
        ("0 0.0335 0.07", '""', [0, 33.5, 70]),
        ("0 33.5 70", '""', [0, 33.5, 70]),
        ("0 1 2", '""', [0, 1, 2]),
        ("0 33500 70000", '"us"', [0, 33.5, 70]),
    ],
)
def test_a_volume_sequence_of_slicer_is_read_with_its_times_and_units(tmp_path, list_first, values, unit, expected):
    stack = file_phantoms.noisy_stack((3, 4, 6, 10))
    back = read_stack(slicer_sequence(tmp_path / "a.seq.nrrd", stack, values, unit=unit, list_first=list_first))
    np.testing.assert_array_equal(back.voxels, stack.voxels)
    np.testing.assert_allclose(back.affine, stack.affine, atol=1e-12)
    np.testing.assert_allclose(back.frame_times_ms, expected)
    assert bool(back.times_guess) == (unit == '""')


@pytest.mark.parametrize(
    ("unit", "step", "expected_ms"), [(8, 0.04, 40), (16, 40, 40), (24, 40_000, 40), (0, 40, 40), (8, 1, 1)]
)
def test_nifti_times_are_read_in_the_unit_of_the_header(tmp_path, unit, step, expected_ms):
    image = sitk.GetImageFromArray(file_phantoms.noisy_stack((3, 4, 6, 10)).voxels, isVector=False)
    path = tmp_path / "a.nii"
    sitk.WriteImage(image, str(path))
    contents = bytearray(path.read_bytes())
    contents[92:96], contents[123] = struct.pack("<f", step), 2 | unit
    path.write_bytes(contents)
    back = read_stack(path)
    np.testing.assert_allclose(back.frame_times_ms, np.arange(3) * expected_ms, rtol=1e-6)
    # A step of one is what programs write that know of no times.
    assert (back.times_guess == "frame numbers") == (step == 1)


def test_the_times_of_a_sequence_that_slicer_saved_again_win_over_our_own(tmp_path):
    """Slicer keeps unknown fields, so ours may speak of frames that are gone."""
    path = slicer_sequence(tmp_path / "a.seq.nrrd", file_phantoms.noisy_stack((3, 4, 6, 10)), "5 40 80")
    path.write_bytes(path.read_bytes().replace(b"\n\n", b"\ncalid_frame_times_ms:=1.0 2.0\n\n", 1))
    assert read_stack(path).frame_times_ms.tolist() == [5, 40, 80]


# --- Damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_cut_at_any_byte_is_an_error_or_the_same_voxels(tmp_path, suffix, frames):
    stack = made((frames, 2, 3, 5))
    path = tmp_path / f"a{suffix}"
    write_stack(stack, path)
    contents = path.read_bytes()
    survived = []
    for length in range(len(contents)):
        path.write_bytes(contents[:length])
        try:
            back = read_stack(path)
        except InputError:
            continue
        np.testing.assert_array_equal(back.voxels, stack.voxels)
        survived.append(length)
    assert survived == []


@cache
def written(suffix: str) -> bytes:
    """A small file's contents."""
    with tempfile.TemporaryDirectory() as folder:
        write_stack(made((2, 2, 6, 5)), Path(folder, f"a{suffix}"))
        return Path(folder, f"a{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_among_compressed_voxels_is_an_error_or_changes_no_voxel(folder, suffix, place, bit):
    stack = made((2, 2, 6, 5))
    contents = bytearray(written(suffix))
    start = {".nii.gz": 10, ".nrrd": contents.find(b"\n\n") + 2, ".mha": contents.find(b"LOCAL\n") + 6}[suffix]
    contents[start + int(place * (len(contents) - start - 1))] ^= 1 << bit
    path = folder / f"flipped{suffix}"
    path.write_bytes(contents)
    try:
        back = read_stack(path)
    except InputError:
        return
    np.testing.assert_array_equal(back.voxels, stack.voxels)
    np.testing.assert_allclose(back.affine, stack.affine, atol=1e-4)


@given(contents=st.binary(max_size=600), suffix=st.sampled_from((*SUFFIXES, ".dcm")))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_never_read_as_an_image(folder, contents, suffix):
    path = folder / f"random{suffix}"
    path.write_bytes(contents)
    with pytest.raises(InputError):
        read_stack(path)


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_what_exists_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "a.nrrd"
    first, second = made((1, 2, 3, 4), seed=1), made((1, 2, 3, 4), seed=2)
    write_stack(first, path)
    with pytest.raises(OutputError) as error:
        write_stack(second, path)
    assert error.value.code == "exists"
    np.testing.assert_array_equal(read_stack(path).voxels, first.voxels)
    write_stack(second, path, overwrite=True)
    np.testing.assert_array_equal(read_stack(path).voxels, second.voxels)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EIO, "unwritable")])
def test_a_failing_disk_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, suffix, number, code):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"older")

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("calid.images.whole_file.os.fsync", fail)
    with pytest.raises(OutputError) as error:
        write_stack(made((2, 2, 3, 4)), path, overwrite=True)
    assert error.value.code == code
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_fills_up_while_writing_is_told(tmp_path, suffix):
    """A limit on the size of files stands for a full disk: the kernel refuses to write on, in Python and in ITK."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OutputError) as error:
            write_stack(made((2, 4, 30, 40)), tmp_path / f"a{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert error.value.code == "disk-full"
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    (tmp_path / "folder.nrrd").mkdir()
    (tmp_path / "there.nii.gz").write_bytes(b"")
    found = {}
    for name in ("a.png", "a", "missing/a.nrrd", "folder.nrrd", "there.nii.gz", "there.nii.gz/a.nrrd"):
        with pytest.raises(OutputError) as error:
            check_output(tmp_path / name)
        found[name] = error.value.code
    assert found == {
        "a.png": "unknown-extension",
        "a": "unknown-extension",
        "missing/a.nrrd": "missing-folder",
        "folder.nrrd": "is-a-folder",
        "there.nii.gz": "exists",
        "there.nii.gz/a.nrrd": "missing-folder",
    }
    check_output(tmp_path / "there.nii.gz", overwrite=True)
    monkeypatch.setattr("calid.images.whole_file.os.access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be written to") as error:
        check_output(tmp_path / "a.nrrd")
    assert error.value.code == "unwritable"


def test_voxels_that_no_format_knows_are_refused(tmp_path):
    with pytest.raises(OutputError) as error:
        write_stack(made((1, 2, 3, 4)).with_voxels(np.zeros((1, 2, 3, 4), np.float16)), tmp_path / "a.nrrd")
    assert error.value.code == "unsupported-voxels"


def test_a_slanted_stack_is_refused_by_nifti_and_kept_by_nrrd(tmp_path):
    stack = made((1, 2, 3, 4))
    affine = stack.affine.copy()
    affine[:3, 2] += 0.5 * affine[:3, 0]
    slanted = replace(stack, affine=affine)
    with pytest.raises(OutputError) as error:
        write_stack(slanted, tmp_path / "a.nii.gz")
    assert error.value.code == "sheared-affine"
    write_stack(slanted, tmp_path / "a.nrrd")
    np.testing.assert_allclose(read_stack(tmp_path / "a.nrrd").affine, affine, atol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_the_beat_and_how_times_were_guessed_come_back_from_every_format(tmp_path, suffix):
    stack = replace(made((3, 2, 4, 5)), beat_ms=912.5, times_guess="from the heart beat's length")
    write_stack(stack, tmp_path / f"a{suffix}")
    back = read_stack(tmp_path / f"a{suffix}")
    assert (back.beat_ms, back.times_guess) == (stack.beat_ms, stack.times_guess)
    assert not {"beat_ms", "frame_times"} & set(back.provenance)
    assert back.frame(1).beat_ms == 912.5


def test_provenance_too_long_for_metaimage_is_refused_and_fits_elsewhere(tmp_path):
    stack = made((1, 2, 3, 4), provenance={"log": "x" * 25_000})
    with pytest.raises(OutputError) as error:
        write_stack(stack, tmp_path / "a.mha")
    assert error.value.code == "header-too-long"
    write_stack(stack, tmp_path / "a.nii.gz")
    assert read_stack(tmp_path / "a.nii.gz").provenance == stack.provenance


# --- Labels -----------------------------------------------------------------------------------------------------------


def labels_of(frames: int) -> Stack:
    stack = file_phantoms.noisy_stack((frames, 4, 6, 10))
    return stack.with_voxels((stack.voxels % 4).astype(np.uint8))


def test_a_segmentation_names_colors_and_codes_its_segments(tmp_path):
    labels = labels_of(1)
    write_labels(labels, tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels.voxels[0])
    segments = [
        [image.GetMetaData(f"Segment{index}_{key}") for key in ("Name", "LabelValue", "Color", "Tags")]
        for index in range(3)
    ]
    for (name, value, color, tags), (title, code, rgb) in zip(
        segments,
        (
            ("Left ventricle", "87878005", (204, 51, 47)),
            ("LV myocardium", "74281007", (189, 178, 166)),
            ("Right ventricle", "53085002", (52, 113, 196)),
        ),
        strict=True,
    ):
        assert name == title
        assert f"SCT^{code}^" in tags
        np.testing.assert_allclose(np.array(color.split(), float) * 255, rgb, atol=0.01)
        assert int(value) == segments.index([name, value, color, tags]) + 1


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz", ".seq.nrrd"])
@pytest.mark.parametrize("frames", [1, 3])
def test_labels_come_back_from_their_file(tmp_path, suffix, frames):
    labels = labels_of(frames)
    write_labels(labels, tmp_path / f"a{suffix}")
    back = read_stack(tmp_path / f"a{suffix}")
    assert back.voxels.dtype == np.uint8
    np.testing.assert_array_equal(back.voxels, labels.voxels)
    np.testing.assert_array_equal(back.frame_times_ms, labels.frame_times_ms)


def test_a_segmentation_of_a_cine_has_one_segment_per_structure_and_frame(tmp_path):
    write_labels(labels_of(3), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    layers = [image.GetMetaData(f"Segment{index}_Layer") for index in range(9)]
    assert layers == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert len({image.GetMetaData(f"Segment{index}_ID") for index in range(9)}) == 9


@pytest.mark.parametrize("write", [write_labels, write_stack])
def test_an_image_is_not_written_as_a_segmentation(tmp_path, write):
    with pytest.raises(OutputError) as error:
        write(file_phantoms.noisy_stack(), tmp_path / "a.seg.nrrd")
    assert error.value.code == "not-labels"
    assert list(tmp_path.iterdir()) == []


def test_label_values_are_the_ones_agreed_on():
    assert [(label.value, label.key) for label in LABELS] == [(1, "LV"), (2, "MYO"), (3, "RV")]


# --- Long axis --------------------------------------------------------------------------------------------------------


def test_a_folder_of_volume_files_gives_long_axis_images_named_after_them(tmp_path):
    for index, name in enumerate(("b.nii.gz", "a.seq.nrrd")):
        write_stack(made((3, 1, 6, 5), seed=index), tmp_path / name)
    write_stack(made((3, 4, 6, 5)), tmp_path / "sax.nrrd")
    (tmp_path / "NOTICE.md").write_text("not an image")
    images = read_lax_folder(tmp_path)
    assert [image.name for image in images] == ["a", "b"]
    assert all(image.stack.voxels.shape == (3, 1, 6, 5) for image in images)


def test_a_folder_of_stacks_alone_has_no_long_axis(tmp_path):
    write_stack(made((3, 4, 6, 5)), tmp_path / "sax.nrrd")
    with pytest.raises(InputError) as error:
        read_lax_folder(tmp_path)
    assert error.value.code == "no-long-axis"


@pytest.mark.parametrize("module", [geometry, volume_out, voxels])
def test_examples_in_the_documentation_hold(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_provenance_is_plain_json_in_every_header(tmp_path):
    write_stack(made((1, 2, 3, 4), provenance={"model": "calid-2d", "steps": 8}), tmp_path / "a.nrrd")
    header = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n")[0].decode()
    line = next(line for line in header.splitlines() if line.startswith("calid_provenance:="))
    assert json.loads(line.partition(":=")[2]) == {"model": "calid-2d", "steps": 8}
