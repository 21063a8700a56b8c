"""MetaImage in one file (.mha): its header; free entries travel as further `key = value` lines."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from calid.images.vetting import (
    Header,
    detached_fault,
    encoding_fault,
    fault,
    integers,
    need_fields,
    need_magic,
    need_millimeters,
    numbers,
    text_lines,
    vet,
    voxel_type_fault,
)
from calid.images.voxels import ByteStream, inflated_chunks, little_endian, raw_chunks, voxels_of
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


def read(path: Path) -> tuple[Header, np.ndarray]:
    """The vetted header of a MetaImage file, and its (T, Z, Y, X) voxels.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    name = path.name
    with path.open("rb") as file:
        need_magic(file, _MAGIC, name, "MetaImage")
        fields = _fields(text_lines(file, name, lambda line: line.partition("=")[0].strip() == _LAST), name)
        if fields[_LAST].upper() != "LOCAL":
            raise detached_fault(name)
        if not _is_true(fields, "BinaryData", otherwise=True):
            raise encoding_fault(name, "text")
        if fields.get("HeaderSize", "0") not in ("0", "-1"):
            raise encoding_fault(name, f"HeaderSize {fields['HeaderSize'][:20]}")
        header = vet(_facts(fields, name))
        chunks = inflated_chunks(file, name, 15) if _is_true(fields, "CompressedData") else raw_chunks(file)
        return header, voxels_of(header, ByteStream(chunks))


def _fields(lines: list[str], name: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = (part.strip() for part in line.partition("="))
        if fields.setdefault(key, value) != value:
            raise fault("damaged-header", name, f"the header gives the field {key[:30]!r} twice.")
    return fields


def _is_true(fields: Mapping[str, str], key: str, *, otherwise: bool = False) -> bool:
    """A yes or no as MetaIO spells it, and so ITK and Slicer: by its first letter."""
    return fields[key][:1] in ("T", "t", "1") if key in fields else otherwise


def _facts(fields: Mapping[str, str], name: str) -> Header:
    need_fields(fields, ("NDims", "DimSize", "ElementType"), name)
    need_millimeters([fields.get("DistanceUnits", "")], name)
    kind = fields["ElementType"]
    if kind not in _TYPES:
        raise voxel_type_fault(name, f"type {kind[:30]!r}")
    sizes = tuple(integers(fields["DimSize"], name))
    if integers(fields["NDims"], name) != [len(sizes)]:
        raise fault("damaged-header", name, f"the header has {fields['NDims'][:20]} dimensions and {len(sizes)} sizes.")
    spacing = numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")), name)
    if spacing and len(spacing) != len(sizes):
        raise fault("damaged-header", name, f"the header gives {len(spacing)} spacings for {len(sizes)} axes.")
    channels = [*integers(fields.get("ElementNumberOfChannels") or "1", name), 1][0]
    order = "BinaryDataByteOrderMSB" if "BinaryDataByteOrderMSB" in fields else "ElementByteOrderMSB"
    return Header(
        name=name,
        sizes=sizes,
        spacing_mm=tuple(spacing[:3]),
        dtype=np.dtype((">" if _is_true(fields, order) else "<") + _TYPES[kind]),
        affine=_affine(fields, spacing, name),
        frame_axis=3 if len(sizes) > 3 else None,
        pixels=_pixels(kind, channels),
        frame_step=spacing[3] if len(spacing) > 3 else None,
        entries=fields,
    )


def _affine(fields: Mapping[str, str], spacing: list[float], name: str) -> np.ndarray | None:
    """(4, 4) indices along the spatial axes -> LPS mm.

    Raises:
        InputError: the rows of the matrix are no unit vectors, or there are too many or few of them.
    """
    axes = len(spacing)
    if axes < 3:
        return None
    matrix = _first_of(fields, ("TransformMatrix", "Orientation", "Rotation"), np.eye(axes).ravel(), name)
    offset = _first_of(fields, ("Offset", "Position", "Origin"), np.zeros(axes), name)
    if len(matrix) != axes**2 or len(offset) != axes:
        raise fault("damaged-header", name, f"the transform in the header is not one of {axes} axes.")
    directions = np.reshape(matrix, (axes, axes))[:3, :3].T
    if np.isfinite(directions).all() and not np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-3):
        raise fault("bad-placement", name, "the directions in the header do not have the length 1.", "Correct them.")
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing[:3]
    affine[:3, 3] = offset[:3]
    return affine


def _first_of(fields: Mapping[str, str], keys: Iterable[str], otherwise: np.ndarray, name: str) -> np.ndarray:
    """The numbers under the first of several names of one field."""
    return next((np.array(numbers(fields[key], name)) for key in keys if key in fields), otherwise)


def _pixels(kind: str, channels: int) -> Literal["scalar", "color", "vector"]:
    if channels == 1:
        return "scalar"
    return "color" if kind == "MET_UCHAR" and channels in (3, 4) else "vector"


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
    directions = np.eye(4)
    directions[:3, :3] = stack.directions_lps
    deflate = zlib.compressobj(level)
    pieces = [deflate.compress(little_endian(frame)) for frame in stack.voxels]
    pieces.append(deflate.flush())
    fields = {
        "ObjectType": "Image",
        "NDims": axes,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": sum(map(len, pieces)),
        "TransformMatrix": _text(directions[:axes, :axes].T.ravel()),
        "Offset": _text([*stack.origin_lps, times[0]][:axes]),
        "ElementSpacing": _text([*stack.spacing_mm, np.ptp(times) / max(frames - 1, 1)][:axes]),
        "DimSize": " ".join(map(str, (columns, rows, slices, frames)[:axes])),
        **entries,
        "ElementType": _KINDS[stack.voxels.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    return ["".join(f"{key} = {value}\n" for key, value in fields.items()).encode("ascii"), *pieces]


def _text(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)
