"""What the text headers of NRRD and MetaImage have in common: lines of bounded length, fields, numbers, units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

from calid.errors import InputError
from calid.images.vetting import fault

LONGEST_LINE = 30_000
"""Characters of a line."""

_LONGEST_HEADER = 1 << 20
_MILLIMETERS = ("", "?", "???", "mm", "millimeter", "millimeters", "millimetre", "millimetres")


def lines_of(file: BinaryIO, is_last: Callable[[str], bool]) -> list[str]:
    """The lines of a text header up to and with the last one; what follows in the file are the voxels."""
    lines: list[str] = []
    while not lines or not is_last(lines[-1]):
        line = file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE or file.tell() > _LONGEST_HEADER:
            message = f"line {len(lines) + 1} of the header is too long, or the header does not end."
            raise fault("damaged-header", message)
        if not line.endswith(b"\n"):
            raise fault("truncated-file", "the file ends within its header.")
        lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
    return lines


def put(fields: dict[str, str], key: str, value: str) -> None:
    """Add a field, which may be there already only with the same value."""
    if fields.setdefault(key, value) != value:
        raise fault("damaged-header", f"the header gives the field {key[:30]!r} twice.")


def need_fields(fields: Mapping[str, str], *needed: str) -> None:
    """Return if a header has all the fields that make an image."""
    for key in needed:
        if key not in fields:
            raise fault("damaged-header", f"the header lacks the field {key!r}.")


def numbers(text: str) -> list[float]:
    """The numbers in a header field."""
    try:
        return [float(word) for word in text.split()]
    except ValueError as err:
        raise fault("damaged-header", f"the header holds {text[:60]!r} where numbers belong.") from err


def integers(text: str) -> list[int]:
    """The whole numbers in a header field."""
    values = numbers(text)
    if not all(math.isfinite(value) and value == int(value) for value in values):
        raise fault("damaged-header", f"the header holds {text[:60]!r} where whole numbers belong.")
    return [int(value) for value in values]


def text_of(values: Iterable[float]) -> str:
    """Numbers as the text of a field, so that every bit of them comes back."""
    return " ".join(repr(float(value)) for value in values)


def need_millimeters(units: Iterable[str]) -> None:
    """Return if all units of length in a header are millimeters, or are left open.

    Raises:
        InputError: "unsupported-unit" with the unit.
    """
    for unit in units:
        if unit.strip().lower() not in _MILLIMETERS:
            message = f"lengths are given in {unit.strip()[:20]!r} and not in millimeters."
            raise fault("unsupported-unit", message, "Save the image in millimeters.")


def detached_fault() -> InputError:
    """A header whose voxels lie in another file."""
    remedy = "Save header and voxels in one file (.nrrd, .mha or .nii.gz)."
    return fault("detached-voxels", "the voxels lie in another file than the header.", remedy)


def encoding_fault(encoding: str) -> InputError:
    """Voxels written as text, where a lost last digit could not be seen, or compressed in a rare way."""
    message = f"the voxels are stored as {encoding[:30]!r}, which cannot be used."
    return fault("unsupported-encoding", message, "Save the image uncompressed or with gzip compression.")
