"""A dense stack back into the hospital: a derived MR series in the study it came from, one file per slice and frame.

Patient, study and frame of reference are the source's, all UIDs of the new series and its images are new. Every image
says whether it was acquired (and refers to its source) or generated (and refers to its acquired neighbors). Only
elements that are known here are copied, so no private or forgotten element travels along.
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.8.3.html
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from calid import STANDING_NOTE, __version__
from calid.errors import InputError, OutputError
from calid.geometry import is_same_position, plane_of
from calid.images import whole_file
from calid.images.dicom import GENERATED, MAKER, DicomImage, read_images
from calid.images.dicom_file import is_dicom
from calid.images.folder import look
from calid.images.pixels import read_pixels
from calid.images.voxels import real_values
from calid.stack import WINDOW_PERCENTILES, Stack

PERSON = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    "DeidentificationMethodCodeSequence",
)
STUDY = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    "StudyDescription",
)
PLACE = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition")
SCAN = (
    *("ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName", "AngioFlag"),
    *("RepetitionTime", "EchoTime", "EchoTrainLength", "InversionTime", "FlipAngle", "NumberOfAverages"),
    *("ImagingFrequency", "ImagedNucleus", "MagneticFieldStrength", "NominalInterval", "BodyPartExamined"),
)
EQUIPMENT = ("Manufacturer", "InstitutionName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")

DEMANDED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("ReferringPhysicianName", "AccessionNumber", "PositionReferenceIndicator"),
)
"""What every object has, be it empty."""
HEART = "HEART"
GATING = ("CG", "PPG")
"""Scan options of which one is there where trigger times are: cardiac gating, peripheral pulse gating."""

_DESCRIPTION_CHARACTERS = 64
_SIXTEEN_BITS = 2**16


@dataclass(frozen=True)
class Sources:
    """Where the acquired slices of a stack come from.

    Args:
        images: (frame, slice) -> the image with these very pixels at this very place.
    """

    images: Mapping[tuple[int, int], DicomImage]

    def near(self, frame: int, slice_index: int) -> list[DicomImage]:
        """The image of a slice itself, or of its nearest acquired neighbors on both sides."""
        if (frame, slice_index) in self.images:
            return [self.images[frame, slice_index]]
        known = sorted(z for t, z in self.images if t == frame)
        below, above = [z for z in known if z < slice_index], [z for z in known if z > slice_index]
        return [self.images[frame, z] for z in (*below[-1:], *above[:1])]

    def of_dense(self, sparse: Stack, dense: Stack, first_frame: int) -> Sources:
        """The sources of a dense stack that was made from the stack that these are the sources of.

        Args:
            sparse: the stack that was read.
            dense: all its slices, in its order, and others between them, of some of its frames.
            first_frame: which frame of `sparse` is the first of `dense`.
        """
        before, after = (np.flatnonzero(~np.asarray(stack.generated)).tolist() for stack in (sparse, dense))
        places = dict(zip(before, after, strict=True))
        frames = range(first_frame, first_frame + dense.num_frames)
        return Sources({(t - first_frame, places[z]): image for (t, z), image in self.images.items() if t in frames})


def need_dicom(source: Path) -> None:
    """Return if a source is DICOM: a derived object belongs to a patient and a study, which only DICOM names.

    Raises:
        InputError: "no-source" if it is a volume file.
    """
    if source.is_file() and not is_dicom(source):
        message = f"{source.name} is no DICOM, and names no study to which a DICOM result could belong."
        raise InputError("no-source", message, "Start from the DICOM folder, or write a volume file.")


def find_sources(source: Path, stack: Stack, series: str | None = None) -> Sources:
    """The images from which the acquired slices of a stack were read; to be asked before a long run.

    An image is the source of a slice if it lies in the same place and has the same pixels; nothing else is trusted.

    Args:
        source: DICOM folder or file.
        stack: as it was read from there; slices that were generated before have no source.
        series: series with which the stack was read, if one was named.

    Raises:
        InputError: "no-source" if an acquired slice has none; or as for `study.look`.
    """
    images = look(source, series).choice.sax.images if source.is_dir() else read_images(source, source.name)
    placed = [image for image in images if image.place is not None]
    acquired = np.flatnonzero(~np.asarray(stack.generated))
    found: dict[tuple[int, int], DicomImage] = {}
    pixels: dict[Path, np.ndarray] = {}
    for index in acquired:
        plane = plane_of(stack, int(index))
        there = [image for image in placed if is_same_position(image.plane, plane)]
        by_value: dict[bytes, DicomImage] = {}
        for image in there:
            if image.path not in pixels:
                pixels[image.path] = read_pixels(image.path, image.name)
            values = real_values(pixels[image.path][image.index], *image.scale)
            by_value.setdefault(_key(values, stack), image)
        for frame in range(stack.num_frames):
            origin = by_value.get(_key(stack.voxels[frame, index], stack))
            if origin is not None:
                found[frame, int(index)] = origin
    if len(found) < stack.num_frames * len(acquired):
        message = f"{stack.num_frames * len(acquired) - len(found)} acquired slices have no image in {source.name}."
        raise InputError("no-source", message, "DICOM can only be written of what was read from DICOM.")
    return Sources(found)


def _key(values: np.ndarray, stack: Stack) -> bytes:
    return np.ascontiguousarray(values.astype(stack.voxels.dtype)).tobytes()


# --- the derived series -----------------------------------------------------------------------------------------------


def write_series(
    stack: Stack, sources: Sources, folder: Path, *, description: str = "CaLID", overwrite: bool = False
) -> None:
    """Write a stack as a derived MR series; the folder appears whole or not at all.

    Args:
        stack: dense or sparse stack; voxels that are no integers of 16 bits are scaled to such.
        sources: where its acquired slices come from.
        folder: new folder, or an earlier one of this kind to replace.
        description: series description.
        overwrite: whether a folder that exists may be replaced.

    Raises:
        OutputError: the folder exists already, or cannot be written.
    """
    series = _series(stack, sources, description)
    with new_folder(folder, overwrite=overwrite) as draft:
        for frame, index in np.ndindex(stack.voxels.shape[:2]):
            image = _image(stack, sources, series, frame, index)
            image.save_as(draft / f"frame{frame:03d}-slice{index:03d}.dcm", enforce_file_format=True)


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A draft beside `folder`, which takes its name when all is well, and else vanishes.

    Raises:
        OutputError: as for `check_folder`, or the disk is full or fails.
    """
    check_folder(folder, overwrite=overwrite)
    with whole_file.draft_beside(folder, ".dicom") as draft:
        draft.mkdir()
        yield draft
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)


def check_folder(folder: Path, *, overwrite: bool = False, source: Path | None = None) -> None:
    """Return if a folder of DICOM files can be written; to be asked before a long run.

    Args:
        folder: folder to be.
        overwrite: whether an earlier one of this kind may be replaced.
        source: what the run reads, which the folder may neither be, hold, nor lie in.

    Raises:
        OutputError: it exists already and may not be replaced or holds other things, its parent is missing, or it is
            an input.
    """
    if source is not None:
        here, there = folder.resolve(), source.resolve()
        if here == there or here in there.parents or there in here.parents:
            message = f"{folder} is the input, or lies in it or around it."
            raise OutputError("output-is-input", message, "Write the result to another folder.")
    if not folder.parent.is_dir():
        raise OutputError("missing-folder", f"The folder {folder.parent} does not exist.", "Create it first.")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError("exists", f"{folder} is a file.", "Name a new folder for the DICOM files.")
    if not any(folder.iterdir()):
        return
    if not overwrite:
        raise OutputError("exists", f"{folder} exists already.", "Choose another name, or ask to overwrite it.")
    if any(path.suffix != ".dcm" or not _is_ours(path) for path in folder.iterdir()):
        raise OutputError("not-ours", f"{folder} holds files that CaLID did not write.", "Choose another folder.")


def _is_ours(path: Path) -> bool:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"])
        return str(header.get("Manufacturer")) == MAKER
    except (OSError, ValueError, pydicom.errors.InvalidDicomError):
        return False


@dataclass(frozen=True)
class _Series:
    """What the images of the new series share."""

    uid: str
    number: int
    description: str
    moment: datetime
    scale: tuple[float, float]
    window: tuple[float, float]


def _series(stack: Stack, sources: Sources, description: str) -> _Series:
    number = 1000 + int(max(image.series[0] for image in sources.images.values())) % 9000
    low, high = np.percentile(stack.voxels[0], WINDOW_PERCENTILES)
    window = (float(low + high) / 2, float(max(high - low, 1)))
    description = description[:_DESCRIPTION_CHARACTERS]
    return _Series(generate_uid(), number, description, datetime.now(), _scale(stack, sources), window)


def _scale(stack: Stack, sources: Sources) -> tuple[float, float]:
    """(slope, intercept) from stored to real values: 1 and 0 for what fits, the sources' own, or a fine enough one."""
    low, high = float(stack.voxels.min()), float(stack.voxels.max())
    if np.issubdtype(stack.voxels.dtype, np.integer) and low >= -32768 and high <= 32767:
        return 1.0, 0.0
    scales = {image.scale for image in sources.images.values()}
    scales.discard((1.0, 0.0))  # of whole numbers, among which fractions do not fit
    if len(scales) == 1:
        slope, intercept = scales.pop()
        if (low - intercept) / slope >= -32768 and (high - intercept) / slope <= 32767:
            return slope, intercept
    return (max(high - low, 1e-6) / (_SIXTEEN_BITS - 1), low + (high - low) / 2)


def header_of(image: DicomImage) -> Dataset:
    """The elements of a source image that a derived object shares: person, study, place, and how it was scanned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = pydicom.dcmread(image.path, stop_before_pixels=True, force=True)
    header = Dataset()
    for keyword in (*PERSON, *STUDY, *PLACE, *SCAN):
        if keyword in whole:
            setattr(header, keyword, whole[keyword].value)
    for keyword in DEMANDED:
        if keyword not in header:
            setattr(header, keyword, "")
    header.BodyPartExamined = header.get("BodyPartExamined") or HEART
    header.ContributingEquipmentSequence = [_scanner_of(whole)]
    header.SpecificCharacterSet = whole.get("SpecificCharacterSet") or "ISO_IR 192"
    return header


def _scanner_of(whole: Dataset) -> Dataset:
    """What made a source image."""
    scanner = Dataset()
    scanner.Manufacturer = ""
    for keyword in EQUIPMENT:
        if whole.get(keyword):
            setattr(scanner, keyword, whole[keyword].value)
    scanner.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
    return scanner


def _image(stack: Stack, sources: Sources, series: _Series, frame: int, index: int) -> FileDataset:
    near = sources.near(frame, index)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.update(header_of(near[0]))
    file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    _set_series(file, series, near[0])
    _set_place(file, stack, index, near[0])
    _set_time(file, stack, frame, index, near[0])
    _set_pixels(file, stack.voxels[frame, index], series)
    _set_origin(file, stack, index, near)
    return file


def _set_series(file: Dataset, series: _Series, source: DicomImage) -> None:
    file.Modality = "MR"
    file.SeriesInstanceUID, file.SeriesNumber, file.SeriesDescription = series.uid, series.number, series.description
    file.SeriesDate = file.ContentDate = file.InstanceCreationDate = series.moment.strftime("%Y%m%d")
    file.SeriesTime = file.ContentTime = file.InstanceCreationTime = series.moment.strftime("%H%M%S")
    file.Manufacturer, file.ManufacturerModelName, file.SoftwareVersions = MAKER, MAKER, __version__
    file.DeviceSerialNumber = __version__
    file.ImageType = ["DERIVED", "SECONDARY", *([source.kind[1]] if source.kind[1] else [])]
    for keyword, value in (("ScanningSequence", "RM"), ("SequenceVariant", "NONE")):
        if not file.get(keyword):
            setattr(file, keyword, value)
    for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"):
        if keyword not in file:
            setattr(file, keyword, None)
    file.PatientPosition = file.get("PatientPosition", "")


def _set_place(file: Dataset, stack: Stack, index: int, source: DicomImage) -> None:
    plane = plane_of(stack, index)
    file.ImagePositionPatient = _decimals(*plane.origin_lps)
    file.ImageOrientationPatient = _decimals(*plane.row_lps, *plane.column_lps)
    file.PixelSpacing = _decimals(*plane.spacing_mm[::-1])
    file.SliceThickness = _decimals(source.thickness_mm if source.thickness_mm > 0 else stack.spacing_mm[2])
    file.SpacingBetweenSlices = _decimals(stack.spacing_mm[2])
    file.SliceLocation = _decimals(plane.origin_lps @ plane.normal)


def _decimals(*values: float) -> list[str]:
    """Numbers as DICOM writes them, in at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def _set_time(file: Dataset, stack: Stack, frame: int, index: int, source: DicomImage) -> None:
    file.InstanceNumber = frame * stack.num_slices + index + 1
    if stack.num_frames > 1:
        file.TriggerTime = _decimals(stack.frame_times_ms[frame])
        options = [option for option in _values(file.get("ScanOptions")) if option]
        file.ScanOptions = options if set(options) & set(GATING) else [*options, GATING[0]]
        file.CardiacNumberOfImages = stack.num_frames
        file.TemporalPositionIdentifier, file.NumberOfTemporalPositions = frame + 1, stack.num_frames
        if source.interval_ms > 0:
            file.NominalInterval = round(source.interval_ms)


def _values(value: object) -> list[str]:
    """The values of an element that may have none, one or several."""
    return [] if value is None else [value] if isinstance(value, str) else [str(one) for one in value]  # type: ignore[attr-defined]


def _set_pixels(file: Dataset, pixels: np.ndarray, series: _Series) -> None:
    stored, (slope, intercept) = pixels, series.scale
    if series.scale != (1.0, 0.0):
        stored = np.rint((pixels.astype(np.float64) - intercept) / slope).clip(-32768, 32767)
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = _decimals(slope), _decimals(intercept), "US"
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 1
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.WindowCenter, file.WindowWidth = _decimals(*series.window)
    file.BurnedInAnnotation, file.LossyImageCompression = "NO", "00"
    file.PixelData = stored.astype("<i2").tobytes()


def _set_origin(file: Dataset, stack: Stack, index: int, near: Sequence[DicomImage]) -> None:
    """Say whether the image was acquired or generated, from what, and by which model."""
    facts = stack.provenance
    if bool(np.asarray(stack.generated)[index]):
        model = f", model {facts['model']} {str(facts['model_sha256'])[:12]}" if "model" in facts else ""
        said = f"{GENERATED} between acquired slices by CaLID {__version__}, method {facts.get('method')}{model}"
    else:
        is_moved = facts.get("align") == "on"
        said = f"Acquired slice, {'moved in its plane to fit the others' if is_moved else 'its pixels unchanged'}"
    file.DerivationDescription = said
    file.ImageComments = STANDING_NOTE
    file.SourceImageSequence = [_reference(image) for image in near]


def _reference(image: DicomImage) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.sop_class or MRImageStorage
    reference.ReferencedSOPInstanceUID = image.uid
    if image.name.endswith(f", image {image.index + 1}"):
        reference.ReferencedFrameNumber = image.index + 1
    reference.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    return reference


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
