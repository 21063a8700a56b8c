"""MetaImage in one file (.mha): its header; free entries travel as further `key = value` lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from calid.formats.header import (
    Header,
    detached_fault,
    encoding_fault,
    inflated_chunks,
    integers,
    need_fields,
    need_magic,
    numbers,
    raw_chunks,
    text_lines,
    vet,
    vet_voxels,
    voxel_type_fault,
)

_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_MAGIC = b"ObjectType"


def read_header(path: Path) -> Header:
    """The vetted header of a MetaImage file whose voxels are all there.

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
        vet_voxels(header, inflated_chunks(file, name, 15) if is_zipped else raw_chunks(file))
    return header


def _fields(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _facts(fields: Mapping[str, str], name: str) -> Header:
    need_fields(fields, ("DimSize", "ElementType"), name)
    kind = fields["ElementType"]
    if kind not in _BYTES:
        raise voxel_type_fault(name, f"type {kind[:30]!r}")
    channels = integers(fields.get("ElementNumberOfChannels") or "1", name)[0]
    spacing = numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")), name)
    placement = " ".join(fields.get(key, "") for key in ("TransformMatrix", "Offset", "Position", "Origin"))
    return Header(
        name=name,
        sizes=tuple(integers(fields["DimSize"], name)),
        spacing_mm=tuple(spacing[:3]),
        bytes_per_voxel=_BYTES[kind] * channels,
        pixels=_pixels(kind, channels),
        placement=tuple(numbers(placement, name)),
        frame_step=spacing[3] if len(spacing) > 3 else None,
        entries=fields,
    )


def _pixels(kind: str, channels: int) -> Literal["scalar", "colour", "vector"]:
    if channels == 1:
        return "scalar"
    return "colour" if kind == "MET_UCHAR" and channels in (3, 4) else "vector"
