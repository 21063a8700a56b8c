"""NRRD in one file (.nrrd, .seq.nrrd, .seg.nrrd): its header, read and written.

A cine is a 4D file with one axis of kind "list" whose `axis N index values` are the frame times, as 3D Slicer reads and
writes volume sequences. Slicer's documentation puts the list first (N = 0), Slicer 5.12 itself writes it last (N = 3).
Both are read; the list is written first, since the values of one pixel over time lie together then and a real cine
becomes a sixth smaller.
https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from calid.images.vetting import (
    Header,
    affine_by_itk,
    detached_fault,
    encoding_fault,
    fault,
    gzipped,
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

TYPES = {
    "int8": ("signed char", "int8_t"),
    "uint8": ("unsigned char", "uchar", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16_t"),
    "uint16": ("unsigned short", "ushort", "unsigned short int", "uint16_t"),
    "int32": ("int", "signed int", "int32_t"),
    "uint32": ("unsigned int", "uint", "uint32_t"),
    "int64": ("long long int", "longlong", "long long", "signed long long", "signed long long int", "int64_t"),
    "uint64": ("unsigned long long int", "ulonglong", "unsigned long long", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
"""numpy's name -> NRRD's names, the one we write first (Slicer and ITK know it)."""

_FRAME_KINDS = ("list", "time", "domain", "space", "???", "none")
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), "us"),
}
_MAGIC = b"NRRD"


def read(path: Path) -> tuple[Header, np.ndarray, np.ndarray]:
    """The vetted header of a NRRD file, its (T, Z, Y, X) voxels, and its (4, 4) affine to LPS mm.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    name = path.name
    with path.open("rb") as file:
        need_magic(file.read(len(_MAGIC)), _MAGIC, name, "NRRD")
        file.seek(0)
        fields, entries = _fields(text_lines(file, name, lambda line: not line))
        if "data file" in fields or "datafile" in fields:
            raise detached_fault(name)
        need_fields(fields, ("type", "dimension", "sizes", "encoding"), name)
        encoding = fields["encoding"].lower()
        if encoding not in ("raw", "gzip", "gz") or any(key.endswith("skip") for key in fields):
            raise encoding_fault(name, encoding)
        header = vet(_facts(fields, entries, name))
        voxels = voxels_of(header, raw_chunks(file) if encoding == "raw" else inflated_chunks(file, name, 31))
    return header, voxels, affine_by_itk(path, name)


def _fields(lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The standard fields and the free key-value pairs."""
    fields, entries = {}, {}
    for line in lines[1:]:
        key, sign, value = line.partition(":=")
        if line.startswith("#"):
            continue
        if sign:
            entries[key] = re.sub(r"\\([n\\])", lambda match: {"n": "\n", "\\": "\\"}[match[1]], value)
        else:
            key, _, value = line.partition(":")
            fields[key.strip().lower()] = value.strip()
    return fields, entries


def _facts(fields: Mapping[str, str], entries: Mapping[str, str], name: str) -> Header:
    kind = fields["type"].lower()
    dtype = next((dtype for dtype, names in TYPES.items() if kind in (dtype, *names)), None)
    if dtype is None:
        raise voxel_type_fault(name, f"NRRD type {kind[:30]!r}")
    sizes = tuple(integers(fields["sizes"], name))
    kinds = fields.get("kinds", "").split() or ["domain"] * len(sizes)
    spacing = _spacing(fields, name) or [None] * len(sizes)
    if not len(kinds) == len(sizes) == len(spacing):
        raise fault("damaged-header", name, "the header describes another number of axes than it gives sizes.")
    axis = _frame_axis(kinds, spacing)
    return Header(
        name=name,
        sizes=sizes,
        spacing_mm=tuple(value for index, value in enumerate(spacing) if index != axis and value is not None),
        dtype=np.dtype(dtype).newbyteorder(">" if fields.get("endian", "little").lower() == "big" else "<"),
        frame_axis=axis,
        pixels="scalar" if axis is None else _pixels(kinds[axis]),
        placement=tuple(numbers(re.sub(r"[(),]", " ", fields.get("space origin", "")), name)),
        frame_step=None if axis is None else spacing[axis],
        frame_values=_frame_values(entries, axis, name),
        frame_unit=_frame_unit(fields, entries, axis),
        entries=entries,
    )


def _spacing(fields: Mapping[str, str], name: str) -> list[float | None]:
    """The spacing of every axis, None where it has none; empty where the header speaks of none at all."""
    if "space directions" not in fields:
        return list(numbers(fields.get("spacings", ""), name))
    vectors = re.findall(r"none|\([^)]*\)", fields["space directions"])
    parts = ([] if vector == "none" else numbers(vector.strip("()").replace(",", " "), name) for vector in vectors)
    return [math.hypot(*part) if part else None for part in parts]


def _frame_axis(kinds: list[str], spacing: list[float | None]) -> int | None:
    """The axis that is not spatial: by its kind, by its lack of a direction, or as the fourth."""
    for axis, (kind, step) in enumerate(zip(kinds, spacing, strict=True)):
        is_placed = step is not None or all(value is None for value in spacing)
        if kind.lower() not in ("domain", "space", "???", "none") or not is_placed:
            return axis
    return 3 if len(kinds) > 3 else None


def _pixels(kind: str) -> Literal["scalar", "colour", "vector", "complex"]:
    if kind.lower() in _FRAME_KINDS:
        return "scalar"
    if kind.lower() == "complex":
        return "complex"
    return "colour" if kind.lower().endswith("-color") else "vector"


def _frame_values(entries: Mapping[str, str], axis: int | None, name: str) -> tuple[float, ...]:
    if entries.get(f"axis {axis} index type", "numeric") != "numeric":
        return ()
    return tuple(numbers(entries.get(f"axis {axis} index values", ""), name))


def _frame_unit(fields: Mapping[str, str], entries: Mapping[str, str], axis: int | None) -> str:
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    unit = units[axis] if axis is not None and axis < len(units) else entries.get(f"axis {axis} index unit", "")
    return _UNITS.get(unit.strip().lower(), "")


def written(stack: Stack, entries: Mapping[str, str], *, level: int) -> Iterator[bytes]:
    """The pieces of a gzip-encoded NRRD file: a volume, or a cine with its frames as a list.

    Args:
        stack: one frame gives a 3D file, several a 4D one.
        entries: free key-value pairs; the frames' index values are not among them, they come from the stack.
        level: compression, 1 (fast) to 9 (small).
    """
    is_cine = stack.num_frames > 1
    pairs = {**entries, **(_index_entries(stack) if is_cine else {})}
    lines = [f"{key}: {value}" for key, value in _axis_fields(stack, is_cine=is_cine).items()]
    lines += [f"{key}:={_escaped(value)}" for key, value in pairs.items()]
    yield ("\n".join(["NRRD0005", "# Written by CaLID", *lines]) + "\n\n").encode("utf-8")
    voxels = np.moveaxis(stack.voxels, 0, -1) if is_cine else stack.voxels[0]
    yield from gzipped((little_endian(part) for part in voxels), level)


def _axis_fields(stack: Stack, *, is_cine: bool) -> dict[str, str]:
    slices, rows, columns = stack.voxels.shape[1:]
    directions = [_vector(axis) for axis in stack.affine[:3, :3].T]

    def axes(frames: str, spatial: list[str]) -> str:
        return " ".join([frames, *spatial] if is_cine else spatial)

    fields = {
        "type": TYPES[stack.voxels.dtype.name][0],
        "dimension": "4" if is_cine else "3",
        "space": "left-posterior-superior",
        "sizes": axes(str(stack.num_frames), [str(size) for size in (columns, rows, slices)]),
        "space directions": axes("none", directions),
        "kinds": axes("list", ["domain"] * 3),
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(stack.origin_lps),
    }
    if is_cine:
        fields |= {"labels": axes('"time"', ['""'] * 3), "units": axes('"ms"', ['""'] * 3)}
    return fields


def _index_entries(stack: Stack) -> dict[str, str]:
    times = " ".join(repr(float(time)) for time in stack.frame_times_ms)
    return {"axis 0 index type": "numeric", "axis 0 index values": times}


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
