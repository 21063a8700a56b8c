"""NIfTI-1 in one file (.nii, .nii.gz): its header, and the header extension in which our entries travel.

NIfTI has 80 characters of description and one time step for all frames. Frame times, generated marks and provenance
therefore go, as JSON, into a header extension of plain text (code 6, "comment"), which readers skip by `vox_offset`.
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import json
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from calid.formats.header import (
    Header,
    affine_by_itk,
    fault,
    inflated_chunks,
    narrowed,
    need_magic,
    raw_chunks,
    real_values,
    vet,
    voxel_type_fault,
    voxels_of,
)

_HEADER_BYTES = 352
_LARGEST_OFFSET = 1 << 20
_COMMENT = 6

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_COMPLEX = {32: "c8", 1792: "c16"}
_COLOUR = {128: "V3", 2304: "V4"}
_TIME_UNITS = {8: "s", 16: "ms", 24: "us"}
_GZIP_MAGIC = b"\x1f\x8b"


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


def _facts(raw: bytes, order: str, name: str) -> Header:
    def field(kind: str, offset: int) -> tuple:
        return struct.unpack_from(order + kind, raw, offset)

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


def with_entries(image: bytes, entries: Mapping[str, str]) -> bytes:
    """An uncompressed little-endian NIfTI-1 file without extensions, now with our entries in one.

    The extension is a multiple of 16 bytes long and `vox_offset` points behind it, as the standard demands.
    """
    text = json.dumps(dict(entries), ensure_ascii=True).encode("ascii")
    size = -(-(len(text) + 8) // 16) * 16
    extension = struct.pack("<2i", size, _COMMENT) + text.ljust(size - 8, b"\0")
    offset = struct.pack("<f", _HEADER_BYTES + size)
    return image[:108] + offset + image[112:348] + b"\1\0\0\0" + extension + image[_HEADER_BYTES:]
