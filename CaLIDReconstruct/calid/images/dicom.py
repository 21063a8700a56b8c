"""One DICOM file: the headers of its images, checked for being whole, and their pixels.

Classic files hold one image; enhanced multi-frame files hold one per frame, each with its own place and time.
Patient identifiers are compared, and never kept in a stack or shown in a message.
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from calid.errors import InputError
from calid.geometry import Plane, angle_degrees
from calid.images.vetting import quiet_itk

SUFFIXES = (".dcm", ".dicom", ".ima")

_AGAIN = "Copy or export the file again, or remove it from the folder."
_PREAMBLE_BYTES = 132
_PIXEL_GROUP = 0x7FE0
_UNKNOWN_LENGTH = 0xFFFFFFFF

_ORDERS = ("TemporalPositionIdentifier", "TemporalPositionIndex", "InstanceNumber")

_SCALES = ("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")

_BROKEN = (EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, struct.error, zlib.error)
"""What pydicom raises, without saying so, on files that end early or hold nonsense."""


@dataclass(frozen=True, eq=False)
class DicomImage:
    """The header of one image.

    Args:
        path: the file.
        name: of the file, for messages.
        index: of the image in its file, 0 but for enhanced multi-frame files.
        plane: where its pixels lie.
        thickness_mm: of the slice; NaN where the header does not say.
        time_ms: after the R wave; NaN where the header does not say.
        orders: temporal position, its index, and instance number, for images without times; NaN where not given.
        interval_ms: of the heart beat; NaN where the header does not say.
        num_phases: images of one heart beat, as the header says; 0 where it does not.
        kind: modality, magnitude or phase or other, scanning sequence: images of one acquisition agree in these.
        uid: of the object, with `index` unique.
        series: number and UID.
        description: of the series.
        scale: (slope, intercept) from stored to real values.
        is_colour: whether pixels have red, green and blue.
        patient: identifier, only to be compared.
        reference: frame of reference, only to be compared.
        field_strength_t: Tesla; NaN where the header does not say.
    """

    path: Path
    name: str
    index: int
    plane: Plane
    thickness_mm: float
    time_ms: float
    orders: tuple[float, ...]
    interval_ms: float
    num_phases: float
    kind: tuple[str, str, str]
    uid: str
    series: tuple[float, str]
    description: str
    scale: tuple[float, float]
    is_colour: bool
    patient: str
    reference: str
    field_strength_t: float


def is_dicom(path: Path) -> bool:
    """Whether a file starts as a DICOM file must: 128 bytes of anything, then DICM."""
    with path.open("rb") as file:
        return file.read(_PREAMBLE_BYTES)[128:] == b"DICM"


def read_images(path: Path, name: str) -> list[DicomImage]:
    """The headers of a file's images; none if it is not DICOM, or DICOM without a place in space.

    Args:
        path: any file.
        name: what to call it in messages.

    Raises:
        InputError: the file is cut short or damaged, or an image lacks its pixel spacing or orientation.
    """
    try:
        is_other = not is_dicom(path)
    except OSError as err:
        raise InputError("unreadable", f"{name}: the file cannot be read ({err.strerror}).", _AGAIN) from err
    if is_other:
        _pass_over(path, name)
        return []
    dataset = _whole_header(path, name)
    if dataset is None:
        return []
    try:
        with _quiet():
            return [
                _image(image, path, name, index)
                for index, image in enumerate(_flattened(dataset, name))
                if "ImagePositionPatient" in image
            ]
    except _BROKEN as err:
        raise InputError("damaged-dicom", f"{name}: the DICOM header is damaged ({err}).", _AGAIN) from err


def read_pixels(path: Path, name: str) -> np.ndarray:
    """The pixels of all images in a file, (images, rows, columns) as stored, without slope and intercept.

    Raises:
        InputError: pixels are missing, damaged, or compressed in a way that cannot be decoded.
    """
    try:
        with _quiet():
            dataset = pydicom.dcmread(path)
            pixels = _decoded(dataset)
    except RuntimeError as err:
        syntax = UID(str(dataset.file_meta.TransferSyntaxUID)).name
        message = f"{name}: the pixels are compressed as {syntax} and cannot be decoded, or are damaged."
        remedy = "Decompress the images first (for example with gdcmconv --raw), or export them uncompressed."
        raise InputError("undecodable-pixels", message, remedy) from err
    except _BROKEN as err:
        raise _truncated(name, "its pixels are not complete") from err
    return pixels.reshape((-1, *pixels.shape[-2:]))


def _decoded(dataset: FileDataset) -> np.ndarray:
    try:
        return dataset.pixel_array
    except (NotImplementedError, RuntimeError):
        return _decoded_by_itk(dataset)


def _decoded_by_itk(dataset: FileDataset) -> np.ndarray:
    """JPEG, JPEG-LS and JPEG 2000, which pydicom decodes only with more packages.

    GDCM applies the first image's scale to all images of a file, so it is shown a copy without one.
    """
    _forget_scale(dataset)
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.dcm")
        dataset.save_as(bare)
        with quiet_itk(), _silent_codecs():
            return sitk.GetArrayFromImage(sitk.ReadImage(str(bare)))


def _forget_scale(dataset: FileDataset) -> None:
    shared, per_frame = (dataset.get(f"{which}FunctionalGroupsSequence") or () for which in ("Shared", "PerFrame"))
    for part in (dataset, *shared, *per_frame):
        for keyword in _SCALES:
            part.pop(keyword, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pydicom's remarks, by warnings and log, on values that bend the standard."""
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


@contextmanager
def _silent_codecs() -> Iterator[None]:
    """Without what GDCM's C codecs print on damaged data; they know no other way than the process's own stderr."""
    try:
        kept = os.dup(2)
    except OSError:
        # A process without stderr has nothing to silence.
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _truncated(name: str, where: str) -> InputError:
    return InputError("truncated-dicom", f"{name}: the DICOM file is cut short: {where}.", _AGAIN)


def _pass_over(path: Path, name: str) -> None:
    """Return if a file without DICM is simply not DICOM, and not the beginning of a file that was."""
    with path.open("rb") as file:
        start = file.read(_PREAMBLE_BYTES)
    has_suffix = path.suffix.lower() in SUFFIXES
    if not start and (has_suffix or not path.suffix):
        raise InputError("empty-file", f"{name} is empty (0 bytes).", _AGAIN)
    if start and len(start) < _PREAMBLE_BYTES and not any(start[:128]):
        raise _truncated(name, f"it ends after {len(start)} bytes")
    if has_suffix:
        raise InputError("not-an-image", f"{name}: this is not a DICOM file, whatever its name says.", _AGAIN)


def _whole_header(path: Path, name: str) -> FileDataset | None:
    """A file's elements before the pixels, and None if it holds no image."""
    try:
        with _quiet(), path.open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            meta = dataset.file_meta
            # pydicom takes a value that is cut short for a shorter one; the next element shows that it is whole.
            if "TransferSyntaxUID" not in meta:
                raise _truncated(name, "it ends within its first group")
            storage = UID(str(meta.get("MediaStorageSOPClassUID", dataset.get("SOPClassUID", ""))))
            if storage and "Image Storage" not in storage.name:
                return None
            if not UID(str(meta.TransferSyntaxUID)).is_deflated:
                _need_pixels(file, path.stat().st_size, name)
            if not dataset.get("Rows") or not dataset.get("Columns"):
                raise _truncated(name, "the size of the image is missing")
    except _BROKEN as err:
        raise _truncated(name, "its header is not complete") from err
    return dataset


def _need_pixels(file: BinaryIO, size: int, name: str) -> None:
    """Return if the pixels follow and are as long as they say; `file` stands where pydicom stopped, at their tag."""
    start = file.read(12).ljust(12, b"\0")
    order = "<" if start[:2] == b"\xe0\x7f" else ">"
    if struct.unpack_from(order + "H", start)[0] != _PIXEL_GROUP:
        raise _truncated(name, "it ends before the pixels")
    is_explicit = start[4:6].isalpha() and start[4:6].isupper()
    (length,) = struct.unpack_from(order + "I", start, 8 if is_explicit else 4)
    there = size - file.tell() + (0 if is_explicit else 4)
    if length != _UNKNOWN_LENGTH and there < length:
        raise _truncated(name, f"{max(there, 0)} of {length} bytes of pixels are there")


def _flattened(dataset: Dataset, name: str) -> Iterator[Dataset]:
    """Each image's elements on one level: those of the file, and of its own and the shared functional groups."""
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if int(dataset.get("NumberOfFrames") or 1) > 1 and "ImagePositionPatient" in dataset:
            remedy = "Export the images as single-frame or enhanced multi-frame DICOM."
            raise InputError("unplaced-frames", f"{name}: its frames have no place of their own.", remedy)
        yield dataset
        return
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        flat = Dataset()
        flat.update({element.tag: element for element in dataset if element.VR != "SQ"})
        for group in (*shared[0], *groups):
            if group.VR == "SQ" and group.value:
                flat.update({element.tag: element for element in group.value[0]})
        yield flat


def _image(dataset: Dataset, path: Path, name: str, index: int) -> DicomImage:
    frame_type = [str(part) for part in dataset.get("FrameType") or dataset.get("ImageType") or []]
    sequence = dataset.get("ScanningSequence", "")
    slope = _number(dataset, "RescaleSlope")
    intercept = _number(dataset, "RescaleIntercept")
    return DicomImage(
        path=path,
        name=name if "NumberOfFrames" not in dataset else f"{name}, image {index + 1}",
        index=index,
        plane=_plane(dataset, name),
        thickness_mm=_number(dataset, "SliceThickness"),
        time_ms=_number(dataset, "TriggerTime", "NominalCardiacTriggerDelayTime"),
        orders=tuple(_number(dataset, keyword) for keyword in _ORDERS),
        interval_ms=_number(dataset, "NominalInterval", "RRIntervalTimeNominal"),
        num_phases=_number(dataset, "CardiacNumberOfImages"),
        kind=(
            str(dataset.get("Modality", "")),
            frame_type[2] if len(frame_type) > 2 else "",
            sequence if isinstance(sequence, str) else "\\".join(sequence),
        ),
        uid=str(dataset.get("SOPInstanceUID") or name),
        series=(float(np.nan_to_num(_number(dataset, "SeriesNumber"))), str(dataset.get("SeriesInstanceUID", ""))),
        description=str(dataset.get("SeriesDescription") or ""),
        scale=(1.0 if np.isnan(slope) else slope, 0.0 if np.isnan(intercept) else intercept),
        is_colour="MONOCHROME" not in str(dataset.get("PhotometricInterpretation", "MONOCHROME2")),
        patient=str(dataset.get("PatientID", "")),
        reference=str(dataset.get("FrameOfReferenceUID", "")),
        field_strength_t=_number(dataset, "MagneticFieldStrength"),
    )


def _number(dataset: Dataset, *keywords: str) -> float:
    """The first of these elements that is there, or NaN.

    Raises:
        ValueError: it is there and not a finite number.
    """
    for keyword in keywords:
        value: Any = dataset.get(keyword)
        if value not in (None, ""):
            if not np.isfinite(float(value)):
                raise ValueError(f"{keyword} is {value}")
            return float(value)
    return float("nan")


def _plane(dataset: Dataset, name: str) -> Plane:
    """Pixel Spacing gives the distance between rows first; Image Orientation gives the direction along a row first."""
    position = _vector(dataset, "ImagePositionPatient", 3, name, "damaged-dicom")
    orientation = _vector(dataset, "ImageOrientationPatient", 6, name, "bad-orientation")
    between_rows, between_columns = _vector(dataset, "PixelSpacing", 2, name, "missing-spacing")
    row, column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if not np.allclose(lengths, 1, atol=0.01) or abs(angle_degrees(row, column) - 90) > 1:
        message = f"{name}: the orientation {orientation.tolist()} is no pair of perpendicular directions."
        raise InputError("bad-orientation", message, "Export the images again.")
    if min(between_rows, between_columns) <= 0:
        message = f"{name}: the pixels are {between_columns:g} x {between_rows:g} mm apart."
        raise InputError("bad-spacing", message, "Export the images again.")
    return Plane(
        origin_lps=position,
        row_lps=row / lengths[0],
        column_lps=column / lengths[1],
        spacing_mm=np.array([between_columns, between_rows]),
        size=(int(dataset.Columns), int(dataset.Rows)),
    )


def _vector(dataset: Dataset, keyword: str, count: int, name: str, code: str) -> np.ndarray:
    """(count,) finite numbers of one element."""
    value = dataset.get(keyword)
    numbers = np.array([] if value is None or isinstance(value, str) else value, dtype=np.float64).ravel()
    if numbers.size != count or not np.isfinite(numbers).all():
        what = pydicom.datadict.dictionary_description(keyword)
        message = f"{name}: {what} must be {count} numbers; there are {np.isfinite(numbers).sum()}."
        raise InputError(code, message, "Export the images again.")
    return numbers
