"""MetaImage in one file (.mha): its header; free entries travel as further `key = value` lines."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from calid.images.vetting import (
    Header,
    affine_by_itk,
    detached_fault,
    encoding_fault,
    inflated_chunks,
    integers,
    little_endian,
    need_fields,
    need_magic,
    numbers,
    raw_chunks,
    text_lines,
    vet,
    voxel_type_fault,
    voxels_of,
)
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
_MAGIC = b"ObjectType"

LONGEST_VALUE = 20_000
"""Of an entry; ITK's MetaImage reader ends the process somewhere beyond 32,000 characters."""


def read(path: Path) -> tuple[Header, np.ndarray, np.ndarray]:
    """The vetted header of a MetaImage file, its (T, Z, Y, X) voxels, and its (4, 4) affine to LPS mm.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    name = path.name
    with path.open("rb") as file:
        need_magic(file.read(len(_MAGIC)), _MAGIC, name, "MetaImage")
        file.seek(0)
        fields = _fields(text_lines(file, name, lambda line: line.startswith("ElementDataFile")))
        if fields["ElementDataFile"].upper() != "LOCAL":
            raise detached_fault(name)
        if fields.get("BinaryData", "True").lower() != "true":
            raise encoding_fault(name, "text")
        header = vet(_facts(fields, name))
        is_zipped = fields.get("CompressedData", "False").lower() == "true"
        voxels = voxels_of(header, inflated_chunks(file, name, 15) if is_zipped else raw_chunks(file))
    return header, voxels, affine_by_itk(path, name)


def _fields(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _facts(fields: Mapping[str, str], name: str) -> Header:
    need_fields(fields, ("DimSize", "ElementType"), name)
    kind = fields["ElementType"]
    if kind not in _TYPES:
        raise voxel_type_fault(name, f"type {kind[:30]!r}")
    channels = integers(fields.get("ElementNumberOfChannels") or "1", name)[0]
    spacing = numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")), name)
    placement = " ".join(fields.get(key, "") for key in ("TransformMatrix", "Offset", "Position", "Origin"))
    sizes = tuple(integers(fields["DimSize"], name))
    is_big_endian = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    return Header(
        name=name,
        sizes=sizes,
        spacing_mm=tuple(spacing[:3]),
        dtype=np.dtype(("<", ">")[is_big_endian] + _TYPES[kind]),
        frame_axis=3 if len(sizes) > 3 else None,
        pixels=_pixels(kind, channels),
        placement=tuple(numbers(placement, name)),
        frame_step=spacing[3] if len(spacing) > 3 else None,
        entries=fields,
    )


def _pixels(kind: str, channels: int) -> Literal["scalar", "colour", "vector"]:
    if channels == 1:
        return "scalar"
    return "colour" if kind == "MET_UCHAR" and channels in (3, 4) else "vector"


def written(stack: Stack, entries: Mapping[str, str], *, level: int) -> list[bytes]:
    """The pieces of a zlib-compressed MetaImage file, 3D or 4D with milliseconds along the fourth axis.

    Args:
        stack: in each row of the transform matrix stands the direction of one axis.
        entries: free key-value pairs, no value longer than `LONGEST_VALUE`.
        level: compression, 1 (fast) to 9 (small).
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
