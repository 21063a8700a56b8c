"""MetaImage in one file (.mha): its header; free entries travel as further `key = value` lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO

import numpy as np

from calid.geometry import affine_from
from calid.images import text_header
from calid.images.vetting import Header, fault, need_magic, voxel_type_fault
from calid.images.voxels import PLAIN, ZLIB, ByteStream, deflated, little_endian, voxels_of
from calid.stack import Stack

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_KINDS = {dtype: kind for kind, dtype in _TYPES.items()}
_MAGIC, _LAST = b"ObjectType", "ElementDataFile"

LONGEST_VALUE = 20_000
"""Of an entry; ITK's MetaImage reader ends the process somewhere beyond 32,000 characters."""


def read(file: BinaryIO) -> tuple[Header, np.ndarray]:
    """The header of a MetaImage file, and its (T, Z, Y, X) voxels.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    need_magic(file, _MAGIC, "MetaImage")
    fields: dict[str, str] = {}
    for line in text_header.lines_of(file, lambda line: _split(line)[0] == _LAST):
        text_header.put(fields, *_split(line))
    if fields[_LAST].upper() != "LOCAL":
        raise text_header.detached_fault()
    if not _is_true(fields, "BinaryData", otherwise=True):
        raise text_header.encoding_fault("text")
    if fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise text_header.encoding_fault(f"HeaderSize {fields['HeaderSize'][:20]}")
    header = _facts(fields)
    return header, voxels_of(header, ByteStream(file, ZLIB if _is_true(fields, "CompressedData") else PLAIN))


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _is_true(fields: Mapping[str, str], key: str, *, otherwise: bool = False) -> bool:
    """A yes or no as MetaIO spells it, and so ITK and Slicer: by its first letter."""
    return fields[key][:1] in ("T", "t", "1") if key in fields else otherwise


def _facts(fields: Mapping[str, str]) -> Header:
    text_header.need_fields(fields, "NDims", "DimSize", "ElementType")
    text_header.need_millimeters([fields.get("DistanceUnits", "")])
    kind = fields["ElementType"]
    if kind not in _TYPES:
        raise voxel_type_fault(f"type {kind[:30]!r}")
    sizes = tuple(text_header.integers(fields["DimSize"]))
    if text_header.integers(fields["NDims"]) != [len(sizes)]:
        raise fault("damaged-header", f"the header has {fields['NDims'][:20]} dimensions and {len(sizes)} sizes.")
    spacing = _first_of(fields, ("ElementSpacing", "ElementSize"), [])
    if spacing and len(spacing) != len(sizes):
        raise fault("damaged-header", f"the header gives {len(spacing)} spacings for {len(sizes)} axes.")
    channels = [*text_header.integers(fields.get("ElementNumberOfChannels", "")), 1][0]
    order = "BinaryDataByteOrderMSB" if "BinaryDataByteOrderMSB" in fields else "ElementByteOrderMSB"
    return Header(
        sizes=sizes,
        spacing_mm=tuple(spacing[:3]),
        dtype=np.dtype((">" if _is_true(fields, order) else "<") + _TYPES[kind]),
        affine=_affine(fields, spacing) if len(spacing) > 2 else None,
        frame_axis=3 if len(sizes) > 3 else None,
        pixels="scalar" if channels == 1 else "color" if kind == "MET_UCHAR" and channels in (3, 4) else "vector",
        frame_step=spacing[3] if len(spacing) > 3 else None,
        entries=fields,
    )


def _affine(fields: Mapping[str, str], spacing: list[float]) -> np.ndarray:
    """(4, 4) indices along the spatial axes -> LPS mm.

    Raises:
        InputError: the rows of the matrix are no unit vectors, or there are too many or few of them.
    """
    axes = len(spacing)
    matrix = _first_of(fields, ("TransformMatrix", "Orientation", "Rotation"), [*np.eye(axes).ravel()])
    offset = _first_of(fields, ("Offset", "Position", "Origin"), [0.0] * axes)
    if len(matrix) != axes**2 or len(offset) != axes:
        raise fault("damaged-header", f"the transform in the header is not one of {axes} axes.")
    directions = np.reshape(matrix, (axes, axes))[:3, :3].T
    if np.isfinite(directions).all() and not np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-3):
        raise fault("bad-placement", "the directions in the header do not have the length 1.", "Correct them.")
    return affine_from(directions * spacing[:3], offset[:3])


def _first_of(fields: Mapping[str, str], keys: Iterable[str], otherwise: list[float]) -> list[float]:
    """The numbers under the first of several names of one field."""
    return next((text_header.numbers(fields[key]) for key in keys if key in fields), otherwise)


def written(stack: Stack, entries: Mapping[str, str], *, level: int) -> list[bytes]:
    """The pieces of a zlib-compressed MetaImage file, 3D or 4D with milliseconds along the fourth axis.

    Args:
        stack: stack to write; each row of the transform matrix is the direction of one axis.
        entries: free key-value pairs, no value longer than `LONGEST_VALUE`.
        level: level of compression, 1 (fast) to 9 (small).
    """
    frames, slices, rows, columns = stack.voxels.shape
    axes = 4 if frames > 1 else 3
    times = stack.frame_times_ms
    directions = affine_from(stack.directions_lps, np.zeros(3))
    pieces = [*deflated(map(little_endian, stack.voxels), ZLIB, level)]
    fields = {
        "ObjectType": "Image",
        "NDims": axes,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": sum(map(len, pieces)),
        "TransformMatrix": text_header.text_of(directions[:axes, :axes].T.ravel()),
        "Offset": text_header.text_of([*stack.origin_lps, times[0]][:axes]),
        "ElementSpacing": text_header.text_of([*stack.spacing_mm, np.ptp(times) / max(frames - 1, 1)][:axes]),
        "DimSize": " ".join(map(str, (columns, rows, slices, frames)[:axes])),
        **entries,
        "ElementType": _KINDS[stack.voxels.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    return ["".join(f"{key} = {value}\n" for key, value in fields.items()).encode("ascii"), *pieces]
