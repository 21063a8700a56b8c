"""One DICOM file: the headers of its images, checked for being whole; its pixels are read in `pixels.py`.

Classic files hold one image; enhanced multi-frame files hold one per frame, each with its own place and time.
Patient identifiers are compared, and never kept in a stack or shown in a message.
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset

from calid.errors import InputError
from calid.geometry import Plane, angle_degrees
from calid.images.dicom_file import AGAIN, BROKEN, is_dicom, pass_over, quiet_pydicom, whole_header

PHASE_TIMES = ("TriggerTime", "NominalCardiacTriggerDelayTime", "ActualCardiacTriggerDelayTime")
"""Elements that say when after the R wave an image was taken, in ms."""

PHASE_SHARE = "NominalPercentageOfCardiacPhase"
PHASE_NUMBERS = (PHASE_SHARE, "TemporalPositionIdentifier", "TemporalPositionIndex")
"""Elements that order the images of a heart beat."""

CLOCKS = ("FrameAcquisitionDateTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
"""Elements that say at what time of the day an image was taken or made."""

LAST_NUMBER = "InstanceNumber"
"""Orders the images of a series, by time or not: what is left where nothing else does."""

_SEQUENCE_VARIANTS = ("MP", "SP", "SS")

MAKER, GENERATED = "CaLID", "Generated"
"""Manufacturer of what CaLID writes, and how the derivation description of a generated slice begins."""


@dataclass(frozen=True, eq=False)
class DicomImage:
    """The header of one image.

    Args:
        path: the file.
        name: name of the file, for messages.
        index: place of the image in its file, 0 but for enhanced multi-frame files.
        place: where its pixels lie; None where the header does not say.
        size: (columns, rows).
        thickness_mm: thickness of the slice; NaN where the header does not say.
        when: every element that tells images apart in time, those of `PHASE_TIMES` in ms after the R wave, those of
            `CLOCKS` in ms of the day or era, numbers as they are; only those that are given.
        interval_ms: length of the heart beat; NaN where the header does not say.
        num_phases: number of images of one heart beat, as the header says; NaN where it does not.
        kind: modality, frame type (magnitude, phase or another), scanning sequence.
        sequence: pulse sequence: its variants that change the contrast, and the family of its name.
        contrast: echo time, flip angle, inversion time; NaN where not given.
        image_type: all words of the image type.
        uid: UID of the object; de-identified files may share one.
        sop_class: UID of the kind of object, "" where not given.
        series: number and UID of the series.
        acquisition: number of the acquisition in the series; NaN where not given.
        description: description of the series.
        scale: (slope, intercept) from stored to real values.
        is_color: whether pixels have red, green and blue.
        is_generated: whether a model of CaLID made it, as `dicom_out` writes it.
        patient: identifier of the patient, only to be compared.
        reference: UID of the frame of reference, only to be compared.
        field_strength_t: field strength in tesla; NaN where the header does not say.
    """

    path: Path
    name: str
    index: int
    place: Plane | None
    size: tuple[int, int]
    thickness_mm: float
    when: Mapping[str, float]
    interval_ms: float
    num_phases: float
    kind: tuple[str, str, str]
    sequence: tuple[str, str]
    contrast: tuple[float, float, float]
    image_type: tuple[str, ...]
    uid: str
    sop_class: str
    series: tuple[float, str]
    acquisition: float
    description: str
    scale: tuple[float, float]
    is_color: bool
    is_generated: bool
    patient: str
    reference: str
    field_strength_t: float

    @property
    def plane(self) -> Plane:
        """Where the pixels of an image lie that was not sorted out for lack of a place."""
        if self.place is None:
            raise ValueError(f"{self.name} has no place")
        return self.place


def read_images(path: Path, name: str) -> list[DicomImage]:
    """The headers of a file's images; none if it is not DICOM, or DICOM without pixels.

    Args:
        path: any file.
        name: what to call it in messages.

    Raises:
        InputError: the file is cut short or damaged, or a placed image lacks its pixel spacing or orientation.
    """
    try:
        is_other = not is_dicom(path)
    except OSError as err:
        raise InputError("unreadable", f"{name}: the file cannot be read ({err.strerror}).", AGAIN) from err
    if is_other:
        pass_over(path, name)
        return []
    dataset = whole_header(path, name)
    if dataset is None:
        return []
    try:
        with quiet_pydicom():
            return [_image(image, path, name, index) for index, image in enumerate(_flattened(dataset, name))]
    except BROKEN as err:
        said = " ".join(str(err).split())[:120]
        raise InputError("damaged-dicom", f"{name}: the DICOM header is damaged ({said}).", AGAIN) from err


def _flattened(dataset: FileDataset, name: str) -> Iterator[Dataset]:
    """Each image's elements on one level: of the file, and of the shared and its own functional groups.

    The standard's groups count before anything else. What a manufacturer repeats in private groups, or a converter
    could not assign, is only asked where no public element answers.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if frames > 1 and "ImagePositionPatient" in dataset:
            remedy = "Export the images as single-frame or enhanced multi-frame DICOM."
            raise InputError("unplaced-frames", f"{name}: its frames have no place of their own.", remedy)
        yield dataset
        return
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    if len(dataset.PerFrameFunctionalGroupsSequence) != frames:
        raise ValueError(f"{frames} frames, {len(dataset.PerFrameFunctionalGroupsSequence)} of them described")
    own = [element for element in dataset if element.VR != "SQ"]
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        public: list[DataElement] = []
        rest: list[DataElement] = []
        for group in (*shared[0], *groups):
            if group.VR == "SQ" and group.value:
                is_public = not group.tag.is_private and not group.keyword.startswith("Unassigned")
                (public if is_public else rest).extend(group.value[0])
        flat = Dataset()
        for elements in (rest, own, public):
            flat.update({element.tag: element for element in elements if element.VR == "SQ" or not element.is_empty})
        yield flat


def _image(dataset: Dataset, path: Path, name: str, index: int) -> DicomImage:
    frame_type = tuple(word.strip() for word in _words(dataset, "FrameType") or _words(dataset, "ImageType"))
    slope = _number(dataset, "RescaleSlope")
    intercept = _number(dataset, "RescaleIntercept")
    name = name if "NumberOfFrames" not in dataset else f"{name}, image {index + 1}"
    return DicomImage(
        path=path,
        name=name,
        index=index,
        place=_plane(dataset, name) if "ImagePositionPatient" in dataset else None,
        size=(int(dataset.Columns), int(dataset.Rows)),
        thickness_mm=_number(dataset, "SliceThickness"),
        when=_when(dataset),
        interval_ms=_number(dataset, "NominalInterval", "RRIntervalTimeNominal"),
        num_phases=_number(dataset, "CardiacNumberOfImages"),
        kind=(
            _text(dataset, "Modality"),
            frame_type[2] if len(frame_type) > 2 else "",
            "\\".join(_words(dataset, "ScanningSequence")),
        ),
        sequence=(
            "\\".join(word for word in _SEQUENCE_VARIANTS if word in _words(dataset, "SequenceVariant")),
            _family(_text(dataset, "SequenceName") or _text(dataset, "PulseSequenceName")),
        ),
        contrast=(
            _number(dataset, "EchoTime", "EffectiveEchoTime"),
            _number(dataset, "FlipAngle"),
            _number(dataset, "InversionTime"),
        ),
        image_type=frame_type,
        uid=_text(dataset, "SOPInstanceUID"),
        sop_class=_text(dataset, "SOPClassUID"),
        series=(float(np.nan_to_num(_number(dataset, "SeriesNumber"))), _text(dataset, "SeriesInstanceUID")),
        acquisition=_number(dataset, "AcquisitionNumber"),
        description=_description(dataset),
        scale=(1.0 if np.isnan(slope) else slope, 0.0 if np.isnan(intercept) else intercept),
        is_color="MONOCHROME" not in str(dataset.get("PhotometricInterpretation", "MONOCHROME2")),
        is_generated=_text(dataset, "Manufacturer") == MAKER
        and _text(dataset, "DerivationDescription").startswith(GENERATED),
        patient=_text(dataset, "PatientID"),
        reference=_text(dataset, "FrameOfReferenceUID"),
        field_strength_t=_number(dataset, "MagneticFieldStrength"),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _description(dataset: Dataset) -> str:
    """The series description, without the patient's identifier or names where someone wrote them there."""
    text = _text(dataset, "SeriesDescription")
    for word in (_text(dataset, "PatientID"), *_text(dataset, "PatientName").replace("^", " ").split()):
        if len(word) > 2:
            text = re.sub(re.escape(word), "***", text, flags=re.IGNORECASE)
    return text


def _words(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword) or []
    return [value] if isinstance(value, str) else [str(word) for word in value]


def _family(sequence_name: str) -> str:
    """The letters with which a pulse sequence's name begins: "tfi" of "*tfi2d1_12", whose rest changes with slices."""
    letters = sequence_name.lstrip("*").lower()
    return letters[: next((i for i, letter in enumerate(letters) if not letter.isalpha()), len(letters))]


def _when(dataset: Dataset) -> dict[str, float]:
    """What the elements that tell images apart in time hold, in ms or as numbers; a clock that no one can read is none.

    Raises:
        ValueError: one that should be a number is none.
    """
    numbers = {key: _number(dataset, key) for key in (*PHASE_TIMES, *PHASE_NUMBERS, LAST_NUMBER)}
    clocks = {key: _clock_ms(_text(dataset, key)) for key in CLOCKS}
    return {key: value for key, value in (numbers | clocks).items() if np.isfinite(value)}


def _clock_ms(text: str) -> float:
    """Milliseconds of a time HHMMSS.ffffff or a date and time YYYYMMDDHHMMSS.ffffff+ZZXX, NaN where it is neither."""
    digits, _, fraction = text.replace(":", "").split("+")[0].split("-")[0].partition(".")
    forms = {6: "%H%M%S", 14: "%Y%m%d%H%M%S"}
    if len(digits) not in forms or not (digits + fraction).isdigit():
        return float("nan")
    try:
        since = datetime.strptime(digits, forms[len(digits)]) - datetime(1900, 1, 1)  # the day of a time without date
    except ValueError:
        return float("nan")
    return 1000.0 * (since.total_seconds() + float(f"0.{fraction}0"))


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
