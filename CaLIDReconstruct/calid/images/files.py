"""The doors of the engine: a file or folder becomes a `Stack`, and a `Stack` becomes a file.

Readers place every voxel in LPS millimetres and refuse whatever cannot be read for certain; whether a stack suits the
method is the business of `checks.py`. Written files appear whole or not at all, and carry, beside voxels and geometry,
the frame times, which slices were generated, and where the stack comes from: as key-value pairs in NRRD and MetaImage,
in a header extension in NIfTI.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calid import geometry
from calid.errors import InputError, OutputError
from calid.images import dicom, metaimage, nifti, nrrd, whole_file
from calid.images.checks import TIMES_KEY
from calid.images.study import LaxImage, Study, read_file, read_lax, read_sax, read_study
from calid.images.vetting import Header, fault, gzipped
from calid.labels import LABELS
from calid.stack import Stack

__all__ = [
    "SUFFIXES",
    "LaxImage",
    "Study",
    "check_fits",
    "check_output",
    "pending_stack",
    "read_heart",
    "read_lax_folder",
    "read_stack",
    "read_study",
    "write_labels",
    "write_stack",
]

SUFFIXES = (".seq.nrrd", ".seg.nrrd", ".nrrd", ".nii.gz", ".nii", ".mha")
"""Of volume files, the longest first."""

COMPRESSION_LEVEL = 4
"""A real cine shrinks to 42 % at level 4, and no further at level 9, which takes ten times as long."""

MAX_NIFTI_SHEAR_DEGREES = 0.01

_SOURCES = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".mha": "MetaImage"}
_READERS = {".nii": nifti.read, ".nii.gz": nifti.read, ".mha": metaimage.read}
_MILLISECONDS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_stack(path: Path) -> Stack:
    """The stack in a volume file, or the short-axis stack in a DICOM folder.

    Args:
        path: .nii, .nii.gz, .nrrd, .seq.nrrd, .seg.nrrd or .mha; a DICOM file; or a folder of DICOM files.

    Raises:
        InputError: there is nothing there, or it cannot be read for certain; the message names the file or slice.
    """
    path = Path(path)
    if path.is_dir():
        return read_sax(path)
    if not path.exists():
        remedy = "Check the path; give a volume file or a folder of DICOM files."
        raise InputError("missing-file", f"{path} does not exist.", remedy)
    suffix = suffix_of(path)
    if suffix is not None:
        return _read_volume(path, suffix)
    if dicom.is_dicom(path):
        return read_file(path)
    remedy = f"Use one of {', '.join(reversed(SUFFIXES))}, or a folder of DICOM files."
    raise InputError("unknown-extension", f"{path.name} is neither a known volume file nor DICOM.", remedy)


def read_lax_folder(folder: Path) -> tuple[LaxImage, ...]:
    """The long-axis views in a folder of volume files (named after the files), or in a folder of DICOM files.

    Stacks of several slices that lie beside the views are left out.

    Raises:
        InputError: the folder does not exist, holds no long-axis images, or one of its images cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("missing-file", f"{folder} is not a folder.", "Give the folder with the long-axis images.")
    paths = {path: suffix_of(path) for path in sorted(folder.iterdir())}
    images = [LaxImage(path.name[: -len(suffix)], read_stack(path)) for path, suffix in paths.items() if suffix]
    if not images:
        return read_lax(folder)
    views = tuple(image for image in images if image.stack.num_slices == 1)
    if not views:
        remedy = "Choose the folder that holds the 2-, 3- or 4-chamber images."
        raise InputError("no-long-axis", f"{folder} holds no long-axis images.", remedy)
    return views


def read_heart(source: Path, lax_folder: Path | None = None) -> Study:
    """The short-axis stack in a file or DICOM folder, with its long-axis views.

    Args:
        source: volume file, or a folder of DICOM files, which may hold the views as well.
        lax_folder: where the views lie instead (see `read_lax_folder`).

    Raises:
        InputError: as for `read_stack`, `read_study` and `read_lax_folder`.
    """
    source = Path(source)
    study = read_study(source) if source.is_dir() else Study(read_stack(source), ())
    return study if lax_folder is None else replace(study, lax=read_lax_folder(lax_folder))


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file name ends in.

    Example:
        >>> suffix_of(Path("heart.SEQ.nrrd")), suffix_of(Path("heart.png"))
        ('.seq.nrrd', None)
    """
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def _read_volume(path: Path, suffix: str) -> Stack:
    try:
        if path.stat().st_size == 0:
            raise fault("empty-file", path.name, "the file is empty (0 bytes).")
        header, voxels, affine = _READERS.get(suffix, nrrd.read)(path)
    except OSError as err:
        raise fault("unreadable", path.name, f"the file cannot be read ({err.strerror}).") from err
    is_segmentation = any(key.startswith("Segment0_") for key in header.entries)
    if is_segmentation and len(voxels) > 1 and "calid_generated" not in header.entries:
        remedy = "Export it as a label map volume in Slicer and use that."
        raise fault("layered-segmentation", path.name, "the segments overlap and lie in several layers.", remedy)
    times, note = _frame_times(header, len(voxels))
    return Stack(
        voxels=voxels,
        affine=affine,
        frame_times_ms=times,
        generated=_generated(header, voxels.shape[1]),
        provenance={**_provenance(header, _SOURCES.get(suffix, "NRRD")), **note},
    )


def _frame_times(header: Header, count: int) -> tuple[np.ndarray, dict[str, str]]:
    """(T,) ms, and what must be noted in the provenance where the file leaves the unit to be guessed.

    Raises:
        InputError: the header lists another number of frames than there are, or times that do not increase.
    """
    times, unit = _listed_times(header, count)
    if len(times) != count:
        message = f"the header lists {len(times)} frame times, the file holds {count} frames."
        raise fault("frame-count", header.name, message, "Export the sequence again.")
    _need_increase(times, header)
    return _to_milliseconds(times, unit)


def _listed_times(header: Header, count: int) -> tuple[np.ndarray, str]:
    """The frame times a header gives, and their unit; without any, the frames' numbers.

    The values of a sequence's list axis win over our own entry, which Slicer keeps when it saves a part of a sequence.
    """
    stored = header.entries.get("calid_frame_times_ms", "").split()
    if header.frame_values and count > 1:
        return np.array(header.frame_values), header.frame_unit
    if stored:
        return np.array([_number(word, header) for word in stored]), "ms"
    if header.frame_step and np.isfinite([header.frame_start, header.frame_step]).all():
        return header.frame_start + header.frame_step * np.arange(count), header.frame_unit
    return np.arange(count, dtype=np.float64), ""


def _number(word: str, header: Header) -> float:
    try:
        return float(word)
    except ValueError as err:
        raise fault("damaged-header", header.name, f"the frame time {word[:30]!r} is not a number.") from err


def _need_increase(times: np.ndarray, header: Header) -> None:
    """Return if (T,) times are finite and increase."""
    bad = np.flatnonzero(~np.isfinite(times))
    steps = np.flatnonzero(np.diff(times) <= 0)
    if len(bad):
        raise fault("unordered-frames", header.name, f"the time of frame {bad[0] + 1} is not a number.")
    if len(steps):
        first = steps[0]
        message = f"frame {first + 2} (time {times[first + 1]:g}) does not come after frame {first + 1}"
        remedy = "Sort the frames by time and save the sequence again."
        raise fault("unordered-frames", header.name, f"{message} (time {times[first]:g}).", remedy)


def _to_milliseconds(times: np.ndarray, unit: str) -> tuple[np.ndarray, dict[str, str]]:
    """Times in ms. Whole steps of one are frame numbers, whatever unit a program wrote beside them.

    Without a unit, steps below one can only be seconds.
    """
    steps = np.diff(times)
    if len(steps) and np.allclose(steps, 1):
        return times, {TIMES_KEY: "frame numbers"}
    if unit or not len(steps):
        return times * _MILLISECONDS[unit or "ms"], {}
    unit = "s" if np.median(steps) < 1 else "ms"
    return times * _MILLISECONDS[unit], {TIMES_KEY: f"assumed to be in {unit}"}


def _generated(header: Header, count: int) -> np.ndarray:
    """(Z,) bool, which slices the file says were generated."""
    words = header.entries.get("calid_generated", "0 " * count).split()
    if len(words) != count or not set(words) <= {"0", "1"}:
        message = f"the header marks {len(words)} slices as acquired or generated, the file holds {count}."
        remedy = "Use the file as it was written, or remove the field calid_generated if no slice was generated."
        raise fault("stale-marks", header.name, message, remedy)
    return np.array([word == "1" for word in words])


def _provenance(header: Header, source: str) -> dict[str, Any]:
    text = header.entries.get("calid_provenance")
    if text is None:
        return {"source": source}
    try:
        provenance = json.loads(text)
    except ValueError:
        provenance = None
    if not isinstance(provenance, dict):
        raise fault("damaged-header", header.name, "the provenance in the header is damaged.")
    return provenance


# --- Writing ----------------------------------------------------------------------------------------------------------


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Return if a volume can be written to `path`; to be asked before a long run.

    Raises:
        OutputError: as for `whole_file.check_output`.
    """
    whole_file.check_output(path, SUFFIXES, overwrite=overwrite)


def check_fits(stack: Stack, path: Path) -> None:
    """Return if the format of `path` can hold a stack; to be asked before a long run of what it will make.

    Raises:
        OutputError: "unsupported-voxels", "sheared-affine" if the axes are not perpendicular, as NIfTI's quaternion
            needs them, or "header-too-long" if an entry has more characters than MetaImage's readers survive.
    """
    path = Path(path)
    suffix = suffix_of(path)
    _need_plain_voxels(stack, path)
    if suffix == ".mha":
        _need_short_entries(stack)
    shear = geometry.shear_degrees(stack.affine)
    if suffix in (".nii", ".nii.gz") and shear > MAX_NIFTI_SHEAR_DEGREES:
        message = f"The voxel axes miss a right angle by {shear:.2f} degrees, which ITK's NIfTI would straighten."
        raise OutputError("sheared-affine", message, "Write .nrrd or .mha instead.")


def write_stack(stack: Stack, path: Path, *, overwrite: bool = False) -> None:
    """Write a stack with its frame times, generated marks and provenance, whole or not at all.

    Args:
        stack: voxels are written as they are.
        path: the extension says the format: .nii, .nii.gz, .nrrd, .seq.nrrd, .mha, or .seg.nrrd for labels.
        overwrite: replace what exists.

    Raises:
        OutputError: the file cannot be written there; nothing is left behind.
    """
    with pending_stack(stack, path, overwrite=overwrite):
        pass


@contextmanager
def pending_stack(stack: Stack, path: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Write a stack like `write_stack`, but let the file appear when what is done meanwhile has gone well.

    Args:
        stack, path, overwrite: as for `write_stack`.

    Raises:
        OutputError: as `write_stack`.
    """
    path = Path(path)
    suffix = suffix_of(path)
    check_fits(stack, path)
    if suffix == ".seg.nrrd":
        _need_labels(stack, path)
    with whole_file.whole_file(path, SUFFIXES, overwrite=overwrite) as temporary:
        if suffix in (".nii", ".nii.gz"):
            _write_nifti(stack, temporary)
        elif suffix == ".mha":
            _write_pieces(temporary, metaimage.written(stack, _entries(stack), level=COMPRESSION_LEVEL))
        else:
            segments = _segment_entries(stack) if suffix == ".seg.nrrd" else {}
            _write_nrrd(stack, temporary, segments)
        yield


def write_labels(stack: Stack, path: Path, *, overwrite: bool = False) -> None:
    """Write labels; as .seg.nrrd 3D Slicer opens them as a segmentation with names, colours and terminology.

    A cine becomes one layer per frame there, with one segment per structure and frame.

    Args:
        stack: uint8 voxels with the values of `labels.LABELS`.
        path: .seg.nrrd, or any extension of `write_stack`.
        overwrite: replace what exists.

    Raises:
        OutputError: the voxels are no labels, or the file cannot be written there; nothing is left behind.
    """
    _need_labels(stack, path)
    write_stack(stack, path, overwrite=overwrite)


def _need_plain_voxels(stack: Stack, path: Path) -> None:
    kind = stack.voxels.dtype.name
    if kind not in nrrd.TYPES:
        remedy = "Convert them to integers or floats of 8 to 64 bits."
        raise OutputError("unsupported-voxels", f"Voxels of type {kind} cannot be written to {path.name}.", remedy)


def _need_short_entries(stack: Stack) -> None:
    for key, value in _entries(stack).items():
        if len(value) > metaimage.LONGEST_VALUE:
            message = f"{key} has {len(value)} characters, more than ITK's MetaImage reader survives."
            raise OutputError("header-too-long", message, "Write .nrrd or .nii.gz instead.")


def _need_labels(stack: Stack, path: Path) -> None:
    if stack.voxels.dtype != np.uint8 or stack.voxels.max(initial=0) > len(LABELS):
        message = f"{Path(path).name} would be a segmentation, but the voxels are no labels from 0 to {len(LABELS)}."
        raise OutputError("not-labels", message, "Write an image as .nrrd or .seq.nrrd.")


def _entries(stack: Stack) -> dict[str, str]:
    """The key-value pairs that carry what the formats have no place for."""
    return {
        "calid_frame_times_ms": " ".join(repr(float(time)) for time in stack.frame_times_ms),
        "calid_generated": " ".join("1" if mark else "0" for mark in np.asarray(stack.generated)),
        "calid_provenance": json.dumps(dict(stack.provenance), ensure_ascii=True, allow_nan=False),
    }


def _segment_entries(stack: Stack) -> dict[str, str]:
    """Slicer's description of each segment: one per structure, and per frame in a cine, whose frames are layers.

    https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
    """
    slices, rows, columns = stack.voxels.shape[1:]
    entries = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    pairs = ((frame, label) for frame in range(stack.num_frames) for label in LABELS)
    for index, (frame, label) in enumerate(pairs):
        is_cine = stack.num_frames > 1
        segment = {
            "ID": f"{label.key}_{frame:03d}" if is_cine else label.key,
            "Name": f"{label.name}, frame {frame + 1}" if is_cine else label.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6f}" for part in label.rgb),
            "ColorAutoGenerated": "0",
            "Extent": f"0 {columns - 1} 0 {rows - 1} 0 {slices - 1}",
            "LabelValue": str(label.value),
            "Layer": str(frame),
            "Tags": f"TerminologyEntry:{label.terminology}|",
        }
        entries |= {f"Segment{index}_{key}": value for key, value in segment.items()}
    return entries


def _write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def _write_nrrd(stack: Stack, path: Path, segments: Mapping[str, str]) -> None:
    entries = {**segments, **_entries(stack)}
    if stack.num_frames > 1:
        # The list axis holds the times; kept twice, one would go stale when Slicer saves a part of the sequence.
        del entries["calid_frame_times_ms"]
    _write_pieces(path, nrrd.written(stack, entries, level=COMPRESSION_LEVEL))


def _write_nifti(stack: Stack, path: Path) -> None:
    pieces = nifti.written(stack, _entries(stack))
    is_zipped = path.name.lower().endswith(".gz")
    _write_pieces(path, gzipped(pieces, COMPRESSION_LEVEL) if is_zipped else pieces)
