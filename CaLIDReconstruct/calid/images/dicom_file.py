"""Whether a file is DICOM, holds an image, and is whole: its header is read, its pixels are only measured."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from calid.errors import InputError

SUFFIXES = (".dcm", ".dicom", ".ima")
NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
"""Transfer syntaxes whose pixels are not compressed; the last one compresses all elements together."""

_DICOM_ROOT = "1.2.840.10008."
_PREAMBLE_BYTES = 132
_FIRST_GROUPS = (0x0002, 0x0008)
_PIXEL_GROUP = 0x7FE0
_UNKNOWN_LENGTH = 0xFFFFFFFF
AGAIN = "Copy or export the file again, or remove it from the folder."

BROKEN = (
    *(EOFError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, NotImplementedError, RecursionError),
    *(struct.error, zlib.error),
)
"""What pydicom raises, without saying so, on files that end early, hold nonsense, or are nested without end."""


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does: 128 bytes of anything and DICM, or, without those, the first elements."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE_BYTES)
    return start[128:] == b"DICM" or _starts_with_elements(start)


def _starts_with_elements(start: bytes) -> bool:
    """Whether these bytes are a short element of one of the first groups, as old scanners' files begin."""
    for order in "<>":
        if len(start) < 8:
            return False
        group, element = struct.unpack_from(order + "HH", start)
        is_explicit = start[4:6].isalpha() and start[4:6].isupper()
        (length,) = struct.unpack_from(order + "I", start, 4)
        if group in _FIRST_GROUPS and element < 0x0100 and (is_explicit or length <= 256):
            return True
    return False


def pass_over(path: Path, name: str) -> None:
    """Return if a file that does not start as DICOM is simply not DICOM, and not the beginning of a file that was."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE_BYTES)
    has_suffix = path.suffix.lower() in SUFFIXES
    if not start and has_suffix:
        raise InputError("empty-file", f"{name} is empty (0 bytes).", AGAIN)
    if start and len(start) < _PREAMBLE_BYTES and not any(start[:128]):
        raise truncated(name, f"it ends after {len(start)} bytes")
    if has_suffix:
        raise InputError("not-an-image", f"{name}: this is not a DICOM file, whatever its name says.", AGAIN)


def whole_header(path: Path, name: str) -> FileDataset | None:
    """A file's elements before the pixels, and None if it holds no image."""
    try:
        with quiet_pydicom(), path.open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            meta = dataset.file_meta
            # pydicom takes a value that is cut short for a shorter one; the next element shows that it is whole.
            if not len(dataset):
                raise truncated(name, "it ends within its first group")
            storage = UID(str(meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID") or ""))
            # A manufacturer's own class may be an image or not; one that is cut short begins as the standard's do.
            is_private = bool(storage) and not storage.startswith(_DICOM_ROOT)
            if storage.name != storage and "Image Storage" not in storage.name:
                return None
            syntax = syntax_of(dataset)
            if syntax != DeflatedExplicitVRLittleEndian:
                if is_private and not dataset.get("Rows") and file.tell() == path.stat().st_size:
                    return None
                _need_pixels(file, path.stat().st_size, name, dataset if syntax in NATIVE else None)
            if not dataset.get("Rows") or not dataset.get("Columns"):
                raise truncated(name, "the size of the image is missing")
    except BROKEN as err:
        raise truncated(name, "its header is not complete") from err
    return dataset


def syntax_of(dataset: FileDataset) -> UID:
    """The transfer syntax; where the file does not name it, the one by which pydicom made sense of the elements."""
    named = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    if named:
        return UID(named)
    is_implicit, is_little = dataset.original_encoding
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _need_pixels(file: BinaryIO, size: int, name: str, native: Dataset | None) -> None:
    """Return if the pixels follow and are as long as they say; `file` stands where pydicom stopped, at their tag.

    Args:
        file: the open file.
        size: number of bytes of the whole file.
        name: name of the file, for messages.
        native: the elements before pixels that are not compressed, whose length the size of the image must explain.
    """
    start = file.read(12).ljust(12, b"\0")
    order = "<" if start[:2] == b"\xe0\x7f" else ">"
    if struct.unpack_from(order + "H", start)[0] != _PIXEL_GROUP:
        raise truncated(name, "it ends before the pixels")
    is_explicit = start[4:6].isalpha() and start[4:6].isupper()
    (length,) = struct.unpack_from(order + "I", start, 8 if is_explicit else 4)
    there = size - file.tell() + (0 if is_explicit else 4)
    if length != _UNKNOWN_LENGTH and there < length:
        raise truncated(name, f"{max(there, 0)} of {length} bytes of pixels are there")
    if native is not None:
        need_length(native, length, name)


def need_length(dataset: Dataset, length: int, name: str) -> None:
    """Return if pixels that are not compressed are as many bytes as the header announces, filled up to an even number.

    Raises:
        InputError: "size-mismatch"; read with the wrong number of columns the rows would be sheared.
    """
    columns, rows, bits = (int(dataset.get(key) or 0) for key in ("Columns", "Rows", "BitsAllocated"))
    frames = int(dataset.get("NumberOfFrames") or 1)
    announced = (columns * rows * frames * bits + 7) // 8
    is_gray = int(dataset.get("SamplesPerPixel") or 1) == 1
    if columns and rows and is_gray and length not in (announced, announced + announced % 2):
        what = f"{columns} x {rows} pixels of {bits} bits" + (f" in {frames} images" if frames > 1 else "")
        message = f"{name}: the header announces {what}, {announced} bytes; there are {length}."
        raise InputError("size-mismatch", message, AGAIN)


def truncated(name: str, where: str) -> InputError:
    """The error of a file that ends too early."""
    return InputError("truncated-dicom", f"{name}: the DICOM file is cut short: {where}.", AGAIN)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's remarks, by warnings and log, on values that bend the standard."""
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled
