"""NRRD in one file (.nrrd, .seq.nrrd, .seg.nrrd): its header, read and written.

A cine is a 4D file with one axis of kind "list" whose `axis N index values` are the frame times, as 3D Slicer reads and
writes volume sequences. Slicer's documentation puts the list first (N = 0), Slicer 5.12 itself writes it last (N = 3).
Both are read; the list is written first, since the values of one pixel over time lie together then and a real cine
becomes a sixth smaller.
https://teem.sourceforge.net/nrrd/format.html

The text of the header is read here and not by pynrrd, which would do it in as many lines: Slicer's process reads and
writes NRRD (the demo case, runs in another Python) before anything is installed, and pynrrd 1.1.3 drops what is not
ASCII from entries, lets a free entry named like a field pass for it, inflates without bound, takes a stream without its
checksum, and writes entries with line breaks unescaped. The tests read our files with it all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Literal

import numpy as np

from calid.geometry import affine_from
from calid.images import text_header
from calid.images.vetting import Header, fault, need_magic, voxel_type_fault
from calid.images.voxels import GZIP, PLAIN, ByteStream, deflated, little_endian, voxels_of
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

_SPACE_KINDS = ("domain", "space", "???", "none")
_UNITS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "microsecond", "microseconds"), "us"),
}
_TO_LPS = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1, 1)),
}
_FIELDS = frozenset(
    ("type", "dimension", "space", "space dimension", "sizes", "space directions", "kinds", "endian", "encoding",
     "min", "max", "oldmin", "old min", "oldmax", "old max", "content", "sampleunits", "sample units", "spacings",
     "thicknesses", "axismins", "axis mins", "axismaxs", "axis maxs", "centers", "centerings", "labels", "units",
     "space units", "space origin", "measurement frame", "datafile", "data file", "lineskip", "line skip", "byteskip",
     "byte skip", "number", "blocksize", "block size")
)  # fmt: skip
"""All that the format has; a name that is none of them is a damaged one, and ITK refuses it as well."""
_MAGIC = b"NRRD"
_STORAGE = {"raw": PLAIN, "gzip": GZIP, "gz": GZIP}


def read(file: BinaryIO) -> tuple[Header, np.ndarray]:
    """The header of a NRRD file, and its (T, Z, Y, X) voxels.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    need_magic(file, _MAGIC, "NRRD")
    fields, entries = _fields(text_header.lines_of(file, lambda line: not line))
    if "data file" in fields or "datafile" in fields:
        raise text_header.detached_fault()
    text_header.need_fields(fields, "type", "dimension", "sizes", "encoding")
    encoding = fields["encoding"].lower()
    if encoding not in _STORAGE or any(key.endswith("skip") for key in fields):
        raise text_header.encoding_fault(encoding)
    header = _facts(fields, entries)
    return header, voxels_of(header, ByteStream(file, _STORAGE[encoding]))


def _fields(lines: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The standard fields and the free key-value pairs.

    Raises:
        InputError: a line is neither, or a field is there twice with two values.
    """
    fields: dict[str, str] = {}
    entries: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        before, colon, value = line.partition(":")
        field = before.strip().lower()
        if not line or line.startswith("#"):
            continue
        if colon and field in _FIELDS and not value.startswith("="):
            text_header.put(fields, field, value.strip())
        elif ":=" in line:
            key, _, value = line.partition(":=")
            entries[key] = re.sub(r"\\([n\\])", lambda match: {"n": "\n", "\\": "\\"}[match[1]], value)
        else:
            raise fault("damaged-header", f"line {number} of the header is no field of NRRD: {line[:30]!r}.")
    return fields, entries


def _facts(fields: Mapping[str, str], entries: Mapping[str, str]) -> Header:
    sizes = tuple(text_header.integers(fields["sizes"]))
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
    vectors = _vectors(fields) or [None] * len(sizes)
    if text_header.integers(fields["dimension"]) != [len(sizes)] or not len(kinds) == len(sizes) == len(vectors):
        raise fault("damaged-header", "the header describes another number of axes than it gives sizes.")
    axis = _frame_axis(kinds, vectors)
    units = _quoted(fields, "units")
    text_header.need_millimeters(
        [*_quoted(fields, "space units"), *(unit for i, unit in enumerate(units) if i != axis)]
    )
    places = [vector[:3] for index, vector in enumerate(vectors) if index != axis and vector is not None][:3]
    time = None if axis is None else vectors[axis]
    values, unit = _listed_times(entries, axis, dict(enumerate(units)))
    return Header(
        sizes=sizes,
        spacing_mm=tuple(math.hypot(*place) if len(place) > 1 else place[0] for place in places),
        dtype=_dtype(fields),
        affine=_affine(fields, places) if len(places) > 2 else None,
        frame_axis=axis,
        pixels="scalar" if axis is None else _pixels(kinds[axis]),
        frame_step=None if time is None else time[-1],
        frame_values=values,
        frame_unit=unit,
        entries=entries,
    )


def _quoted(fields: Mapping[str, str], key: str) -> list[str]:
    return re.findall(r'"([^"]*)"', fields.get(key, ""))


def _dtype(fields: Mapping[str, str]) -> np.dtype:
    """The type of a stored voxel, with its byte order."""
    kind, order = fields["type"].lower(), fields.get("endian", "little").lower()
    dtype = next((dtype for dtype, names in TYPES.items() if kind in (dtype, *names)), None)
    if dtype is None:
        raise voxel_type_fault(f"NRRD type {kind[:30]!r}")
    if order not in ("little", "big"):
        raise fault("damaged-header", f"the byte order {order[:30]!r} is neither 'little' nor 'big'.")
    return np.dtype(dtype).newbyteorder("<" if order == "little" else ">")


def _vectors(fields: Mapping[str, str]) -> list[list[float] | None]:
    """The step along every axis, None where it has none; empty where the header speaks of none at all.

    A header without directions gives a step's length alone.
    """
    if "space directions" in fields:
        words = re.findall(r"none|\([^)]*\)", fields["space directions"])
        return [None if word == "none" else _numbers_in(word) for word in words]
    return [None if math.isnan(value) else [value] for value in text_header.numbers(fields.get("spacings", ""))]


def _numbers_in(vector: str) -> list[float]:
    values = text_header.numbers(vector.strip("()").replace(",", " "))
    if len(values) not in (3, 4):
        raise fault("damaged-header", f"the vector {vector[:60]!r} in the header does not have 3 numbers.")
    return values


def _affine(fields: Mapping[str, str], places: list[list[float]]) -> np.ndarray:
    """(4, 4) indices along the spatial axes -> LPS mm; spaces that name no anatomy count as LPS, as ITK has it."""
    axes = np.transpose(places) if len(places[0]) > 1 else np.diag(np.ravel(places))
    origin = _numbers_in(fields["space origin"])[:3] if "space origin" in fields else np.zeros(3)
    space = fields.get("space", "").lower()
    signs = next((signs for start, signs in _TO_LPS.items() if space.startswith(start)), (1, 1, 1))
    return np.diag([*signs, 1.0]) @ affine_from(axes, origin)


def _frame_axis(kinds: list[str], vectors: list[list[float] | None]) -> int | None:
    """The axis that is not spatial: by its kind, by its lack of a direction, or as the fourth."""
    for axis, (kind, vector) in enumerate(zip(kinds, vectors, strict=True)):
        is_placed = vector is not None or all(value is None for value in vectors)
        if kind not in _SPACE_KINDS or not is_placed:
            return axis
    return 3 if len(kinds) > 3 else None


def _pixels(kind: str) -> Literal["scalar", "color", "vector", "complex"]:
    if kind in ("list", "time", *_SPACE_KINDS):
        return "scalar"
    if kind == "complex":
        return "complex"
    return "color" if kind.endswith("-color") else "vector"


def _listed_times(
    entries: Mapping[str, str], axis: int | None, units: Mapping[int | None, str]
) -> tuple[tuple[float, ...], str]:
    """The time of each frame and their unit, as a sequence of Slicer lists them, or its older MultiVolume."""
    if _is_multi_volume(entries):
        values = entries["MultiVolume.FrameLabels"].replace(",", " ")
        unit = entries.get("MultiVolume.FrameIdentifyingDICOMTagUnits", "")
    else:
        is_numeric = entries.get(f"axis {axis} index type", "numeric") == "numeric"
        values = entries.get(f"axis {axis} index values", "") if is_numeric else ""
        unit = units.get(axis, entries.get(f"axis {axis} index unit", ""))
    return tuple(text_header.numbers(values)), _UNITS.get(unit.strip().lower(), "")


def _is_multi_volume(entries: Mapping[str, str]) -> bool:
    """Whether Slicer's MultiVolume labels its frames with times; echo times or flip angles are labels as well."""
    tag = entries.get("MultiVolume.FrameIdentifyingDICOMTagName", "TriggerTime")
    return "MultiVolume.FrameLabels" in entries and tag in ("TriggerTime", "AcquisitionTime", "ContentTime")


def written(stack: Stack, entries: Mapping[str, str], *, level: int) -> Iterator[bytes]:
    """The pieces of a gzip-encoded NRRD file: a volume, or a cine with its frames as a list.

    Args:
        stack: stack to write; one frame gives a 3D file, several a 4D one.
        entries: free key-value pairs; the frames' index values are not among them, they come from the stack.
        level: level of compression, 1 (fast) to 9 (small).
    """
    yield ("\n".join(header_lines(stack, entries)) + "\n\n").encode("utf-8")
    voxels = np.moveaxis(stack.voxels, 0, -1) if stack.num_frames > 1 else stack.voxels[0]
    yield from deflated(map(little_endian, voxels), GZIP, level)


def header_lines(stack: Stack, entries: Mapping[str, str]) -> list[str]:
    """The header of `written`, line by line."""
    times = {"axis 0 index type": "numeric", "axis 0 index values": text_header.text_of(stack.frame_times_ms)}
    pairs = {**entries, **times} if stack.num_frames > 1 else entries
    lines = [f"{key}: {value}" for key, value in _axis_fields(stack).items()]
    lines += [f"{key}:={_escaped(value)}" for key, value in pairs.items()]
    return ["NRRD0005", "# Written by CaLID", *lines]


def _axis_fields(stack: Stack) -> dict[str, str]:
    frames, slices, rows, columns = stack.voxels.shape
    is_cine = frames > 1
    directions = [_vector(axis) for axis in stack.affine[:3, :3].T]

    def axes(of_frames: str, spatial: list[str]) -> str:
        return " ".join([of_frames, *spatial] if is_cine else spatial)

    fields = {
        "type": TYPES[stack.voxels.dtype.name][0],
        "dimension": "4" if is_cine else "3",
        "space": "left-posterior-superior",
        "sizes": axes(str(frames), [str(size) for size in (columns, rows, slices)]),
        "space directions": axes("none", directions),
        "kinds": axes("list", ["domain"] * 3),
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(stack.origin_lps),
    }
    if is_cine:
        fields |= {"labels": axes('"time"', ['""'] * 3), "units": axes('"ms"', ['""'] * 3)}
    return fields


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")
