"""The pixels of one DICOM file, if every bit of them is where the header says, and no codec complains."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import encaps
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RLELossless

from calid.errors import InputError
from calid.images.codestreams import fits
from calid.images.dicom import DicomImage
from calid.images.dicom_file import AGAIN, BROKEN, NATIVE, need_length, quiet_pydicom, syntax_of, truncated

# pydicom 2 has it under another name.
_frames_of = getattr(encaps, "generate_frames", None) or encaps.generate_pixel_data_frame
_SCALES = ("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
_OVERLAY_BIT = (0x6000, 0x0102)


def fingerprint(image: DicomImage) -> str:
    """What two images have in common only if every stored pixel is the same; compressed pixels are compared as such."""
    with quiet_pydicom():
        dataset = pydicom.dcmread(image.path, force=True)
    return f"{hashlib.sha256(dataset.get('PixelData', b'')).hexdigest()} {image.index}"


def read_pixels(path: Path, name: str) -> np.ndarray:
    """The pixels of all images in a file, (images, rows, columns) as stored, without slope and intercept.

    Raises:
        InputError: pixels are missing, damaged, or compressed in a way that cannot be decoded.
    """
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(path, force=True)
            syntax = dataset.file_meta.TransferSyntaxUID = syntax_of(dataset)
            stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
            high = int(dataset.get("HighBit", stored - 1))
            if syntax in NATIVE:
                need_length(dataset, len(dataset.PixelData), name)
                # pydicom would drop the bits above without a word, and keep those below.
                dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
            pixels = _decoded(dataset)
    except RuntimeError as err:
        message = f"{name}: the pixels are compressed as {syntax.name} and cannot be decoded, or are damaged."
        remedy = "Decompress the images first (for example with gdcmconv --raw), or export them uncompressed."
        raise InputError("undecodable-pixels", message, remedy) from err
    except BROKEN as err:
        raise truncated(name, "its pixels are not complete") from err
    if pixels.shape[-2:] != (dataset.Rows, dataset.Columns):
        rows, columns = pixels.shape[-2:]
        announced = f"{dataset.Columns} x {dataset.Rows}"
        message = f"{name}: the header announces {announced} pixels; decompressed there are {columns} x {rows}."
        raise InputError("size-mismatch", message, AGAIN)
    pixels = pixels.reshape((-1, *pixels.shape[-2:]))
    return _right_aligned(pixels, dataset, stored, high, name) if syntax in NATIVE else pixels


def _right_aligned(pixels: np.ndarray, dataset: Dataset, stored: int, high: int, name: str) -> np.ndarray:
    """The values of pixels that were not compressed, without the bits that the header says are not in use.

    Args:
        pixels: all bits of them.
        dataset: the header.
        stored: how many bits hold a value.
        high: the last of these, counted from 0.
        name: name of the file, for messages.

    Raises:
        InputError: "bit-positions", if there is something in bits where nothing should be, but for overlays above.
    """
    below, above = high + 1 - stored, int(dataset.BitsAllocated) - 1 - high
    if below >= 0 and above >= 0 and not (pixels & ((1 << below) - 1)).any():
        values = pixels >> below
        if pixels.dtype.kind == "i":
            return (values << (below + above)) >> (below + above)
        if _OVERLAY_BIT in dataset:
            return values & ((1 << stored) - 1)
        if not (values >> stored).any():
            return values
    where = f"{stored} bits end at bit {high} of {dataset.BitsAllocated}"
    message = f"{name}: the header says that {where}; the pixels hold others."
    remedy = "Export the images again, with High Bit one less than Bits Stored."
    raise InputError("bit-positions", message, remedy)


def _decoded(dataset: FileDataset) -> np.ndarray:
    """The pixels as stored; pydicom decodes what is plain or run-length encoded, GDCM all the rest.

    Raises:
        RuntimeError: the decoder fails, or says anything at all: it goes on behind damage and only mutters.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*NATIVE, RLELossless):
        return _decoded_by_itk(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if syntax == RLELossless else "ignore")
        try:
            return dataset.pixel_array
        except Warning as err:
            raise RuntimeError(str(err)) from err


def _decoded_by_itk(dataset: FileDataset) -> np.ndarray:
    """JPEG, JPEG-LS and JPEG 2000, if the decoder is right as far as `codestreams.py` can tell.

    GDCM applies the first image's scale to all images of a file, so it is shown a copy without one.
    """
    _forget_scale(dataset)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.dcm")
        dataset.save_as(bare)
        with _quiet_itk(), _heard_codecs():
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(bare)))
    _need_fit(dataset, pixels)
    return pixels


def _need_fit(dataset: Dataset, pixels: np.ndarray) -> None:
    """Return if nothing shows that compressed pixels are not those of their codestreams.

    Raises:
        RuntimeError: those of an image are.
    """
    stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    images = pixels.reshape((-1, *pixels.shape[-2:]))
    if pixels.dtype.kind in "iu" and int(dataset.get("SamplesPerPixel") or 1) == 1:
        for image, codestream in zip(images, _frames_of(dataset.PixelData, number_of_frames=len(images)), strict=True):
            if not fits(codestream, image, stored):
                raise RuntimeError("coded again, the pixels are longer or shorter")


def _forget_scale(dataset: FileDataset) -> None:
    shared, per_frame = (dataset.get(f"{which}FunctionalGroupsSequence") or () for which in ("Shared", "PerFrame"))
    for part in (dataset, *shared, *per_frame):
        for keyword in _SCALES:
            part.pop(keyword, None)


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Without ITK's warnings on stderr: what they speak of is told here."""
    was_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_shown)


@contextmanager
def _heard_codecs() -> Iterator[None]:
    """Listen to GDCM's C codecs, which know no other way to complain of damaged data than the process's own stderr.

    Raises:
        RuntimeError: they said something.
    """
    try:
        kept = os.dup(2)
    except OSError:
        kept = None  # the process has no stderr
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            if kept is None:
                os.close(2)
            else:
                os.dup2(kept, 2)
                os.close(kept)
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if words:
        raise RuntimeError(words)
