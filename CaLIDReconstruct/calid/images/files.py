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
from pathlib import Path
from typing import Any

import numpy as np

from calid import geometry
from calid.errors import InputError, OutputError, SettingsError
from calid.images import dicom, metaimage, nifti, nrrd, whole_file
from calid.images.checks import FRAME_LIMITS_MS
from calid.images.study import Study, read_file, read_lax, read_sax, read_study
from calid.images.vetting import LONGEST_LINE, Header, fault, gzipped
from calid.labels import LABELS
from calid.stack import BEAT_KEY, TIMES_KEY, LaxImage, Stack

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

SHORTEST_FRAME_MS, LONGEST_FRAME_MS = 1.0, 2000.0
"""Frames of one heart beat are neither nearer to each other nor farther apart; else the unit in the header is wrong."""

MOST_LEVELS = 32
"""Objects in objects in a provenance."""

AXES_KEY = "stored_axes"
"""What a stack's provenance says where the slices were not stored along the third axis."""

LARGEST_NIFTI_SIZE = 32767
"""Voxels along an axis, of which NIfTI keeps 16 bits."""

_SOURCES = {".nii": "NIfTI", ".nii.gz": "NIfTI", ".mha": "MetaImage"}
_READERS = {".nii": nifti.read, ".nii.gz": nifti.read, ".mha": metaimage.read}
_MILLISECONDS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_stack(path: Path, series: str | None = None) -> Stack:
    """The stack in a volume file, or the short-axis stack in a DICOM folder.

    Args:
        path: .nii, .nii.gz, .nrrd, .seq.nrrd, .seg.nrrd or .mha; a DICOM file; or a folder of DICOM files.
        series: number or UID of a series of the short axis in a folder; None leaves the choice to the evidence.

    Raises:
        InputError: there is nothing there, or it cannot be read for certain; the message names the file or slice.
        SettingsError: the folder has no such series, or `path` is no folder.
    """
    path = Path(path)
    if path.is_dir():
        return read_sax(path, series)
    if series is not None:
        remedy = "Leave out the series, or give the folder."
        raise SettingsError("unknown-series", f"{path.name} is a file; only a DICOM folder has series.", remedy)
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
    # Names with a point in front are not meant to be seen: what macOS keeps beside files, and what others are writing.
    paths = {path: suffix_of(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    images = [LaxImage(path.name[: -len(suffix)], read_stack(path)) for path, suffix in paths.items() if suffix]
    if not images:
        return read_lax(folder)
    views = tuple(image for image in images if image.stack.num_slices == 1)
    if not views:
        remedy = "Choose the folder that holds the 2-, 3- or 4-chamber images."
        raise InputError("no-long-axis", f"{folder} holds no long-axis images.", remedy)
    return views


def read_heart(
    source: Path, series: str | None = None, *, lax_folder: Path | None = None
) -> tuple[Stack, tuple[LaxImage, ...]]:
    """The short-axis stack in a file or DICOM folder, and its long-axis views.

    Args:
        source: volume file, or a folder of DICOM files, which may hold the views as well.
        series: as for `read_stack`.
        lax_folder: where the views lie instead (see `read_lax_folder`).

    Raises:
        InputError: as for `read_stack`, `read_study` and `read_lax_folder`.
    """
    if lax_folder is not None:
        return read_stack(source, series), read_lax_folder(lax_folder)
    if not Path(source).is_dir():
        return read_stack(source, series), ()
    study = read_study(source, series)
    return study.sax, study.lax


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
        header, voxels = _READERS.get(suffix, nrrd.read)(path)
    except OSError as err:
        raise fault("unreadable", path.name, f"the file cannot be read ({err.strerror}).") from err
    is_segmentation = any(key.startswith("Segment0_") for key in header.entries)
    if is_segmentation and len(voxels) > 1 and "calid_generated" not in header.entries:
        remedy = "Export it as a label map volume in Slicer and use that."
        raise fault("layered-segmentation", path.name, "the segments overlap and lie in several layers.", remedy)
    times, guess = _frame_times(header, len(voxels))
    history = _history(header, _SOURCES.get(suffix, "NRRD"))
    beat_ms, known_guess = history.pop(BEAT_KEY, None), history.pop(TIMES_KEY, "")
    if not isinstance(beat_ms, float | int | None) or not isinstance(known_guess, str):
        raise fault("damaged-header", path.name, "the heart beat or the note on the frame times is damaged.")
    order = header.spatial_order
    assert header.affine is not None  # the readers refuse a header without a place
    if order != (0, 1, 2):
        history[AXES_KEY] = f"the slices were stored along the {('first', 'second')[order[2]]} axis"
    return Stack(
        voxels=voxels,
        affine=geometry.straightened(header.affine[:, [*order, 3]], voxels.shape[1]),
        frame_times_ms=times,
        generated=_generated(header, voxels.shape[1]),
        beat_ms=beat_ms,
        times_guess=guess or known_guess,
        provenance=history,
    )


def _frame_times(header: Header, count: int) -> tuple[np.ndarray, str]:
    """(T,) ms, and how they were guessed where the file leaves the unit open; else "".

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


def _to_milliseconds(times: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """Times in ms, and how the unit was guessed where it had to be; else "".

    Whole steps of one are frame numbers, whatever unit a program wrote beside them. ITK writes "s" into every 4D NIfTI,
    also where the steps are 40 ms; a heart has no frames that are 40 s apart, so such a unit does not count.
    """
    steps = np.diff(times)
    if len(steps) and np.allclose(steps, 1):
        return times, "frame numbers"
    if not len(steps):
        return times * _MILLISECONDS[unit or "ms"], ""
    step = float(np.median(steps))
    if unit and SHORTEST_FRAME_MS <= step * _MILLISECONDS[unit] <= LONGEST_FRAME_MS:
        return times * _MILLISECONDS[unit], ""
    low, high = FRAME_LIMITS_MS
    fitting = [other for other in ("ms", "s", "us") if low <= step * _MILLISECONDS[other] <= high]
    guess = fitting[0] if fitting else unit or ("s" if step < 1 else "ms")
    known = f", the file says {unit}" if unit else ""
    return times * _MILLISECONDS[guess], f"assumed to be in {guess}{known}"


def _generated(header: Header, count: int) -> np.ndarray:
    """(Z,) bool, which slices the file says were generated."""
    words = header.entries.get("calid_generated", "0 " * count).split()
    if len(words) != count or not set(words) <= {"0", "1"}:
        message = f"the header marks {len(words)} slices as acquired or generated, the file holds {count}."
        remedy = "Use the file as it was written, or remove the field calid_generated if no slice was generated."
        raise fault("stale-marks", header.name, message, remedy)
    return np.array([word == "1" for word in words])


def _history(header: Header, source: str) -> dict[str, Any]:
    """What the header says of the stack's origin: plain JSON, so that the result's header can say it again.

    Raises:
        InputError: it is no JSON object, nested without end, or holds a number that JSON has not (NaN).
    """
    text = header.entries.get("calid_provenance")
    if text is None:
        return {"source": source}
    try:
        provenance = json.loads(text)
        json.dumps(provenance, allow_nan=False)
    except (ValueError, RecursionError):
        provenance = None
    if not isinstance(provenance, dict) or not _is_shallow(provenance, MOST_LEVELS):
        raise fault("damaged-header", header.name, "the provenance in the header is damaged.")
    return provenance


def _is_shallow(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)


# --- Writing ----------------------------------------------------------------------------------------------------------


def check_output(path: Path, *, overwrite: bool = False, sources: Iterable[Path | None] = ()) -> None:
    """Return if a volume can be written to `path`; to be asked before a long run.

    Raises:
        OutputError: as for `whole_file.check_output`.
    """
    whole_file.check_output(path, SUFFIXES, overwrite=overwrite, sources=sources)


def check_fits(stack: Stack, path: Path) -> None:
    """Return if the format of `path` can hold a stack; to be asked before a long run of what it will make.

    Raises:
        OutputError: "unsupported-voxels", "bad-provenance" if it is no JSON, "sheared-affine" or "too-large" for NIfTI,
            "header-too-long" if an entry has more characters than readers take, or "disk-full" if an uncompressed file
            does not fit on the disk.
    """
    path = Path(path)
    _need_plain_voxels(stack, path)
    _need_short_header(stack, path)
    if suffix_of(path) in (".nii", ".nii.gz"):
        _need_nifti(stack)
    if suffix_of(path) == ".nii":
        whole_file.need_room(path, stack.voxels.nbytes)


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


def _need_short_header(stack: Stack, path: Path) -> None:
    """Return if our readers, and ITK's in Slicer, take entries as long as these."""
    entries, suffix = _entries(stack), suffix_of(path)
    key, longest = max(((key, len(value)) for key, value in entries.items()), key=lambda entry: entry[1])
    limit, instead = metaimage.LONGEST_VALUE, ".nrrd or .nii.gz"
    if suffix in (".nii", ".nii.gz"):
        longest, limit, instead = len(nifti.extension(entries)), nifti.LARGEST_OFFSET // 2, "a shorter provenance"
    elif suffix != ".mha":
        longest, limit, instead = max(map(len, nrrd.header_lines(stack, entries))), LONGEST_LINE - 2, ".nii.gz"
    if longest > limit:
        message = f"{key} has {longest} characters, {path.name} can hold {limit} that readers take."
        raise OutputError("header-too-long", message, f"Write {instead} instead.")


def _need_nifti(stack: Stack) -> None:
    shear = geometry.shear_degrees(stack.affine)
    if shear > geometry.PARALLEL_TOLERANCE_DEGREES:
        message = f"The voxel axes miss a right angle by {shear:.2f} degrees, which NIfTI's quaternion cannot say."
        raise OutputError("sheared-affine", message, "Write .nrrd or .mha instead.")
    if max(stack.voxels.shape) > LARGEST_NIFTI_SIZE:
        message = f"NIfTI holds {LARGEST_NIFTI_SIZE} voxels along an axis, the result has {max(stack.voxels.shape)}."
        raise OutputError("too-large", message, "Write .nrrd or .mha instead.")


def _need_labels(stack: Stack, path: Path) -> None:
    if stack.voxels.dtype != np.uint8 or stack.voxels.max(initial=0) > len(LABELS):
        message = f"{Path(path).name} would be a segmentation, but the voxels are no labels from 0 to {len(LABELS)}."
        raise OutputError("not-labels", message, "Write an image as .nrrd or .seq.nrrd.")


def _entries(stack: Stack) -> dict[str, str]:
    """The key-value pairs that carry what the formats have no place for."""
    try:
        provenance = json.dumps(stack.history, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        remedy = "Keep texts, finite numbers, and lists and dictionaries of them."
        raise OutputError("bad-provenance", f"The provenance cannot be written as JSON ({err}).", remedy) from err
    return {
        "calid_frame_times_ms": " ".join(repr(float(time)) for time in stack.frame_times_ms),
        "calid_generated": " ".join("1" if mark else "0" for mark in np.asarray(stack.generated)),
        "calid_provenance": provenance,
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
