"""NIfTI-1 in one file (.nii, .nii.gz): its header, and the header extension in which our entries travel.

NIfTI has 80 characters of description and one time step for all frames. Frame times, generated marks and provenance
therefore go, as JSON, into a header extension of plain text (code 6, "comment"), which readers skip by `vox_offset`.
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from calid import geometry
from calid.images.vetting import (
    Header,
    affine_by_itk,
    fault,
    inflated_chunks,
    little_endian,
    narrowed,
    need_magic,
    raw_chunks,
    real_values,
    vet,
    voxel_type_fault,
    voxels_of,
)
from calid.stack import Stack

_HEADER_BYTES = 352
_LARGEST_OFFSET = 1 << 20
_COMMENT = 6

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COMPLEX = {32: "c8", 1792: "c16"}
_COLOUR = {128: "V3", 2304: "V4"}
_TIME_UNITS = {8: "s", 16: "ms", 24: "us"}
_CODES = {kind: code for code, kind in _TYPES.items()}
_GZIP_MAGIC = b"\x1f\x8b"
_MILLIMETRES, _SECONDS = 2, 8
_SCANNER = 1
_SPACING_TOLERANCE = 1e-3
_CORRECT = "Correct the one that is wrong, or set its code (sform_code, qform_code) to 0, or export the image again."


def read(path: Path) -> tuple[Header, np.ndarray, np.ndarray]:
    """The vetted header of a NIfTI file, its (T, Z, Y, X) real voxels, and its (4, 4) affine to LPS mm.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    name = path.name
    with path.open("rb") as file:
        is_zipped = name.lower().endswith(".gz")
        if is_zipped:
            need_magic(file.read(2), _GZIP_MAGIC, name, "gzip-compressed NIfTI")
            file.seek(0)
        raw = _first_bytes(gzip.GzipFile(fileobj=file) if is_zipped else file, name)
        order = _byte_order(raw, name)
        header = vet(_facts(raw, order, name))
        _need_one_placement(raw, order, name)
        # From the start once more, by zlib alone, so that the checksum at the stream's very end is seen.
        file.seek(0)
        chunks = inflated_chunks(file, name, 31) if is_zipped else raw_chunks(file)
        stored = voxels_of(header, _without_first(chunks, _voxel_offset(raw, order)))
    return header, _real(stored, raw, order), _affine(raw, name)


def _real(stored: np.ndarray, raw: bytes, order: str) -> np.ndarray:
    """Scaled as the header says; a slope of 0 means none."""
    slope, intercept = struct.unpack_from(order + "2f", raw, 112)
    if slope == 0 or (slope, intercept) == (1, 0):
        return stored
    return narrowed(real_values(stored, slope, intercept))


def _need_one_placement(raw: bytes, order: str, name: str) -> None:
    """Return if the header's spacing, its matrix (sform) and its quaternion (qform) agree, where there are several.

    ITK would take the spacing from one of them and the directions from another.

    Raises:
        InputError: voxels are not as far apart, or a corner of the image does not lie at the same place.
    """
    (has_quaternion, has_matrix), steps = _field(raw, order, "2h", 252), np.array(_field(raw, order, "3f", 80))
    if has_matrix <= 0:
        return
    matrix = np.reshape(_field(raw, order, "12f", 280), (3, 4))
    lengths = np.linalg.norm(matrix[:, :3], axis=0)
    if not np.allclose(lengths, steps, rtol=_SPACING_TOLERANCE):
        by_matrix, by_steps = (" x ".join(f"{value:.4g}" for value in values) for values in (lengths, steps))
        message = f"voxels lie {by_matrix} mm apart by the header's matrix (sform), {by_steps} mm by its pixdim."
        raise fault("bad-placement", name, message, _CORRECT)
    if has_quaternion > 0:
        corners = np.array([*itertools.product(*((0, size - 1) for size in _field(raw, order, "3h", 42)))])
        apart = np.linalg.norm(_placed(corners, matrix) - _placed(corners, _qform(raw, order, steps)), axis=1).max()
        if apart > steps.min() / 2:
            message = f"the header's matrix (sform) and quaternion (qform) place a corner {apart:.1f} mm apart."
            raise fault("bad-placement", name, message, _CORRECT)


def _qform(raw: bytes, order: str, steps: np.ndarray) -> np.ndarray:
    """(3, 4) matrix from voxel indices to RAS mm, by the quaternion, the offset and the sign of the third axis."""
    b, c, d, *offset = _field(raw, order, "6f", 256)
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    (sign,) = _field(raw, order, "f", 76)
    axes = Rotation.from_quat([b, c, d, a]).as_matrix() * steps * (1, 1, -1 if sign < 0 else 1)
    return np.column_stack([axes, offset])


def _placed(indices: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return indices @ matrix[:, :3].T + matrix[:, 3]


def _affine(raw: bytes, name: str) -> np.ndarray:
    """From a copy of the bare header: beside x.nii, ITK reads x.nii.gz with the contents of x.nii."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "header.nii")
        bare.write_bytes(raw[:348] + bytes(4))
        return affine_by_itk(bare, name)


def _first_bytes(stream: BinaryIO | gzip.GzipFile, name: str) -> bytes:
    """The fixed header and its extensions."""
    try:
        raw = stream.read(_HEADER_BYTES)
        if len(raw) == _HEADER_BYTES:
            raw += stream.read(min(_voxel_offset(raw, _byte_order(raw, name)), _LARGEST_OFFSET) - _HEADER_BYTES)
    except (zlib.error, gzip.BadGzipFile) as err:
        raise fault("damaged-file", name, "the compressed data are damaged.") from err
    except EOFError:
        raw = b""
    if len(raw) < _HEADER_BYTES:
        raise fault("truncated-file", name, "the file ends within its header.")
    return raw


def _byte_order(raw: bytes, name: str) -> Literal["<", ">"]:
    for order in ("<", ">"):
        if struct.unpack_from(order + "i", raw)[0] == 348 and raw[344:348] == b"n+1\0":
            return order  # type: ignore[return-value]
    kind = "a NIfTI-2 file" if raw[4:7] == b"n+2" else "not a NIfTI-1 file"
    raise fault("not-an-image", name, f"this is {kind}.", "Save the image as NIfTI-1 (.nii or .nii.gz), NRRD or MHA.")


def _voxel_offset(raw: bytes, order: str) -> int:
    offset = struct.unpack_from(order + "f", raw, 108)[0]
    return int(offset) if _HEADER_BYTES <= offset <= _LARGEST_OFFSET else _HEADER_BYTES


def _without_first(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[skip:]
        skip = max(skip - len(chunk), 0)


def _field(raw: bytes, order: str, kind: str, offset: int) -> tuple:
    return struct.unpack_from(order + kind, raw, offset)


def _facts(raw: bytes, order: str, name: str) -> Header:
    field = partial(_field, raw, order)
    dimensions, *sizes = field("8h", 40)
    (datatype,) = field("h", 70)
    steps = field("7f", 80)
    if not 1 <= dimensions <= 7:
        raise fault("damaged-header", name, f"the header gives the image {dimensions} dimensions.")
    if datatype not in _TYPES | _COMPLEX | _COLOUR:
        raise voxel_type_fault(name, f"NIfTI type {datatype}")
    if raw[123] & 7 not in (0, 2):
        raise fault("unsupported-unit", name, "lengths are not in millimetres.", "Save the image in millimetres.")
    is_vector = dimensions > 4 and sizes[3] == 1 and sizes[4] > 1
    return Header(
        name=name,
        sizes=tuple(sizes[:dimensions]),
        spacing_mm=steps[: min(dimensions, 3)],
        dtype=np.dtype(order + (_TYPES | _COMPLEX | _COLOUR)[datatype]),
        frame_axis=3 if dimensions > 3 else None,
        pixels=_pixels(datatype, is_vector=is_vector),
        # Intensity scale, quaternion and offset, matrix rows.
        placement=field("2f", 112) + field("6f", 256) + field("12f", 280),
        frame_start=field("f", 136)[0],
        frame_step=steps[3] if dimensions > 3 else None,
        frame_unit=_TIME_UNITS.get(raw[123] & 56, ""),
        entries=_entries(raw, order, name),
    )


def _pixels(datatype: int, *, is_vector: bool) -> Literal["scalar", "colour", "vector", "complex"]:
    if datatype in _COMPLEX:
        return "complex"
    if datatype in _COLOUR:
        return "colour"
    return "vector" if is_vector else "scalar"


def _entries(raw: bytes, order: str, name: str) -> dict[str, str]:
    """Our key-value pairs, if one of the header extensions holds them."""
    start, end = _HEADER_BYTES, _voxel_offset(raw, order)
    while raw[348] and start + 8 <= end:
        size, code = struct.unpack_from(order + "2i", raw.ljust(end, b"\0"), start)
        text = raw[start + 8 : start + max(size, 8)].rstrip(b"\0")
        if code == _COMMENT and text.startswith(b'{"calid_'):
            try:
                return {str(key): str(value) for key, value in json.loads(text).items()}
            except ValueError as err:
                message = "the header extension with the frame times and provenance is damaged."
                raise fault("damaged-header", name, message) from err
        start += max(size, 8)
    return {}


# --- Writing ----------------------------------------------------------------------------------------------------------


def written(stack: Stack, entries: Mapping[str, str]) -> Iterator[bytes]:
    """The pieces of a NIfTI file, 3D or 4D, with the entries in a header extension.

    The extension is a multiple of 16 bytes long and `vox_offset` points behind it, as the standard demands.

    Args:
        stack: its axes are perpendicular, as the quaternion can say nothing else.
        entries: free key-value pairs.
    """
    text = json.dumps(dict(entries), ensure_ascii=True).encode("ascii")
    size = -(-(len(text) + 8) // 16) * 16
    yield _packed(stack, voxel_offset=_HEADER_BYTES + size) + b"\1\0\0\0"
    yield struct.pack("<2i", size, _COMMENT) + text.ljust(size - 8, b"\0")
    for frame in stack.voxels:
        yield from map(little_endian, frame)


def _packed(stack: Stack, *, voxel_offset: int) -> bytes:
    """The 348 bytes of the fixed header, with the mean time between frames in seconds as fourth spacing."""
    frames, slices, rows, columns = stack.voxels.shape
    dtype, times = stack.voxels.dtype, stack.frame_times_ms / 1000
    matrix = geometry.lps_to_ras(stack.affine)
    is_mirrored = np.linalg.det(matrix[:3, :3]) < 0
    raw = bytearray(348)
    for place, kind, *values in (
        (0, "i", len(raw)),  # sizeof_hdr
        (40, "8h", 4 if frames > 1 else 3, columns, rows, slices, frames, 1, 1, 1),  # dim
        (70, "2h", _CODES[dtype.str[1:]], 8 * dtype.itemsize),  # datatype, bitpix
        (76, "5f", -1 if is_mirrored else 1, *stack.spacing_mm, np.ptp(times) / max(frames - 1, 1)),  # pixdim
        (108, "3f", voxel_offset, 1, 0),  # vox_offset, scl_slope, scl_inter
        (123, "B", _MILLIMETRES | _SECONDS),  # xyzt_units
        (136, "f", times[0]),  # toffset
        (252, "2h", _SCANNER, _SCANNER),  # qform_code, sform_code
        (256, "6f", *_quaternion(matrix, is_mirrored=is_mirrored), *matrix[:3, 3]),  # quatern, qoffset
        (280, "12f", *matrix[:3].ravel()),  # srow
        (344, "4s", b"n+1\0"),  # magic
    ):
        struct.pack_into("<" + kind, raw, place, *values)
    return bytes(raw)


def _quaternion(matrix: np.ndarray, *, is_mirrored: bool) -> np.ndarray:
    """(3,) b, c and d of the (4, 4) matrix's rotation; a, which follows from them, is not negative."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0) * (1, 1, -1 if is_mirrored else 1)
    quaternion = Rotation.from_matrix(axes).as_quat()
    return quaternion[:3] * np.copysign(1, quaternion[3])
