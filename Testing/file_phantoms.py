"""Stacks whose every voxel is known, and synthetic DICOM written from them with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import phantoms
import pydicom
from calid.stack import Stack
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"

Tags = Mapping[str, Any]


def noisy_stack(
    shape: tuple[int, int, int, int] = (3, 5, 18, 24),
    *,
    spacing_mm: tuple[float, float, float] = (1.5, 1.4, 8.0),
    seed: int = 0,
    step_ms: float = 33.5,
) -> Stack:
    """An oblique, off-center cine of noise, (frames, slices, rows, columns), in which no two places look alike."""
    voxels = np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)
    origin = np.random.default_rng([seed, 1]).uniform(-90, 90, 3)
    matrix = phantoms.affine(spacing_mm, phantoms.rotation(seed), origin)
    return Stack(voxels, matrix, 2.25 + step_ms * np.arange(shape[0]))


def long_axis(sax: Stack, *, degrees: float = 0.0, seed: int = 7) -> Stack:
    """A plane along the normal of the stack through its middle, turned about the normal; as wide as it likes to be."""
    x, y, z = sax.directions_lps.T
    across = np.cos(np.deg2rad(degrees)) * x + np.sin(np.deg2rad(degrees)) * y
    directions = np.stack([across, z, np.cross(across, z)], axis=1)
    shape = (1, 10, 14)
    middle = sax.to_lps((np.array(sax.voxels.shape[:0:-1]) - 1) / 2)
    affine = phantoms.centered_affine(shape, (1.7, 1.7, 6.0), directions, middle)
    voxels = np.random.default_rng(seed).integers(0, 999, (sax.num_frames, *shape)).astype(np.int16)
    return Stack(voxels, affine, sax.frame_times_ms)


def dataset(pixels: np.ndarray, *, storage: str = MR, **tags: Any) -> FileDataset:
    """A file of 16-bit pixels, (rows, columns) or (images, rows, columns), without a place in space yet."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientID, file.PatientName = "MR", "secret-id", "Secret^Name"
    file.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    file.ScanningSequence = "GR"
    file.FrameOfReferenceUID = "1.2.3.4"
    file.MagneticFieldStrength = 1.5
    file.SliceThickness = 6.0
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    set_tags(file, tags)
    return file


def set_tags(file: Dataset, tags: Tags) -> None:
    """Set elements; None deletes one."""
    for keyword, value in tags.items():
        if value is not None:
            setattr(file, keyword, value)
        elif keyword in file:
            delattr(file, keyword)


def placed(affine: np.ndarray) -> dict[str, Any]:
    """The elements that place an image of this (4, 4) affine to LPS mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    return {
        "ImagePositionPatient": [f"{value:.6f}" for value in affine[:3, 3]],
        "ImageOrientationPatient": [f"{value:.8f}" for value in directions[:, :2].T.ravel()],
        "PixelSpacing": [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"],
    }


def write_stack(
    folder: Path,
    stack: Stack,
    *,
    series: Callable[[int, int], int] = lambda _, z: z,
    name: Callable[[int, int], str] = lambda t, z: f"s{z}/i{t:02d}.dcm",
    changes: Callable[[int, int], Tags | None] = lambda _t, _z: {},
    description: str = "cine",
) -> None:
    """One file per image.

    Args:
        folder: may exist.
        stack: what to write.
        series: (frame, slice) -> series number.
        name: (frame, slice) -> path below the folder.
        changes: (frame, slice) -> elements to change, None leaves the image out.
        description: of all series.
    """
    for t, z in np.ndindex(stack.voxels.shape[:2]):
        tags = changes(t, z)
        if tags is None:
            continue
        number = series(t, z)
        file = dataset(
            stack.voxels[t, z],
            **placed(stack.slice_affine(z)),
            SeriesNumber=number,
            SeriesInstanceUID=f"1.2.3.{number + 1}",
            SeriesDescription=description,
            InstanceNumber=t * stack.num_slices + z + 1,
            TriggerTime=f"{stack.frame_times_ms[t]:.4f}",
        )
        set_tags(file, tags)
        path = folder / name(t, z)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.save_as(path)


def write_enhanced(path: Path, stack: Stack, **tags: Any) -> None:
    """The whole stack in one enhanced multi-frame file, frames in a scrambled order."""
    order = np.random.default_rng(0).permutation(stack.num_frames * stack.num_slices)
    pairs = [(int(i) // stack.num_slices, int(i) % stack.num_slices) for i in order]
    file = dataset(np.stack([stack.voxels[pair] for pair in pairs]), storage=ENHANCED_MR)
    file.NumberOfFrames = len(pairs)
    file.SharedFunctionalGroupsSequence = Sequence([_shared_groups(stack)])
    file.PerFrameFunctionalGroupsSequence = Sequence([_frame_groups(stack, *pair) for pair in pairs])
    set_tags(file, tags)
    file.save_as(path)


def _shared_groups(stack: Stack) -> Dataset:
    measures, pixel_value = Dataset(), Dataset()
    measures.PixelSpacing = placed(stack.affine)["PixelSpacing"]
    measures.SliceThickness = 6.0
    pixel_value.RescaleSlope, pixel_value.RescaleIntercept = 1, 0
    groups = Dataset()
    groups.PixelMeasuresSequence = Sequence([measures])
    groups.PixelValueTransformationSequence = Sequence([pixel_value])
    return groups


def _frame_groups(stack: Stack, t: int, z: int) -> Dataset:
    tags = placed(stack.slice_affine(z))
    position, orientation, heart = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = tags["ImagePositionPatient"]
    orientation.ImageOrientationPatient = tags["ImageOrientationPatient"]
    heart.NominalCardiacTriggerDelayTime = float(stack.frame_times_ms[t])
    groups = Dataset()
    groups.PlanePositionSequence = Sequence([position])
    groups.PlaneOrientationSequence = Sequence([orientation])
    groups.CardiacSynchronizationSequence = Sequence([heart])
    return groups


def edit(path: Path, **tags: Any) -> Path:
    """Change elements of a written file."""
    file = pydicom.dcmread(path)
    set_tags(file, tags)
    file.save_as(path)
    return path
