"""The doors of the engine: a file or folder becomes a `Stack`, and a `Stack` becomes a file.

Readers place every voxel in LPS millimeters and refuse whatever cannot be read for certain; whether a stack suits the
method is the business of `checks.py`. Files are written in `volume_out.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from calid import geometry
from calid.errors import CalidError, InputError, SettingsError
from calid.images import metaimage, nifti, nrrd
from calid.images.checks import FRAME_LIMITS_MS
from calid.images.dicom_file import is_dicom
from calid.images.study import read_file, read_lax, read_sax, read_study
from calid.images.text_header import numbers
from calid.images.vetting import AGAIN, Header, fault
from calid.images.volume_out import (
    SUFFIXES,
    check_fits,
    check_output,
    pending_stack,
    suffix_of,
    write_labels,
    write_stack,
)
from calid.images.voxels import GZIP
from calid.stack import BEAT_KEY, TIMES_KEY, LaxImage, Stack

__all__ = [
    "SUFFIXES",
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

SHORTEST_FRAME_MS, LONGEST_FRAME_MS = 1.0, 2000.0
"""Frames of one heart beat are neither nearer to each other nor farther apart; else the unit in the header is wrong."""

MOST_LEVELS = 32
"""Objects in objects in a provenance."""

AXES_KEY = "stored_axes"
"""What a stack's provenance says where the slices were not stored along the third axis."""

_Reader = Callable[[BinaryIO], tuple[Header, np.ndarray]]
_FORMATS: dict[str, tuple[str, _Reader]] = {
    ".nii": ("NIfTI", nifti.read),
    ".nii.gz": ("NIfTI", partial(nifti.read, storage=GZIP)),
    ".mha": ("MetaImage", metaimage.read),
    **dict.fromkeys((".nrrd", ".seq.nrrd", ".seg.nrrd"), ("NRRD", nrrd.read)),
}
"""What the files of each of `SUFFIXES` are called, and what reads them."""

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
    if is_dicom(path):
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


def _read_volume(path: Path, suffix: str) -> Stack:
    try:
        if path.stat().st_size == 0:
            raise fault("empty-file", "the file is empty (0 bytes).")
        source, read = _FORMATS[suffix]
        with path.open("rb") as file:
            return _stack(*read(file), source)
    except OSError as err:
        raise InputError("unreadable", f"{path.name}: the file cannot be read ({err.strerror}).", AGAIN) from err
    except CalidError as err:
        raise err.about(path.name) from err


def _stack(header: Header, voxels: np.ndarray, source: str) -> Stack:
    """The stack of a file's (T, Z, Y, X) voxels and of what its header says of them."""
    is_segmentation = any(key.startswith("Segment0_") for key in header.entries)
    if is_segmentation and len(voxels) > 1 and "calid_generated" not in header.entries:
        remedy = "Export it as a label map volume in Slicer and use that."
        raise fault("layered-segmentation", "the segments overlap and lie in several layers.", remedy)
    times, guess = _frame_times(header, len(voxels))
    history = _history(header, source)
    beat_ms, known_guess = history.pop(BEAT_KEY, None), history.pop(TIMES_KEY, "")
    if not isinstance(beat_ms, float | int | None) or not isinstance(known_guess, str):
        raise fault("damaged-header", "the heart beat or the note on the frame times is damaged.")
    order = header.spatial_order
    assert header.affine is not None  # a header without a place is refused
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
        raise fault("frame-count", message, "Export the sequence again.")
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise fault("unordered-frames", f"the time of frame {bad[0] + 1} is not a number.")
    late = np.flatnonzero(np.diff(times) <= 0) + 1
    if len(late):
        frame = late[0]
        message = f"frame {frame + 1} (time {times[frame]:g}) does not come after frame {frame}"
        remedy = "Sort the frames by time and save the sequence again."
        raise fault("unordered-frames", f"{message} (time {times[frame - 1]:g}).", remedy)
    return _to_milliseconds(times, unit)


def _listed_times(header: Header, count: int) -> tuple[np.ndarray, str]:
    """The frame times a header gives, and their unit; without any, the frames' numbers.

    The values of a sequence's list axis win over our own entry, which Slicer keeps when it saves a part of a sequence.
    """
    if header.frame_values and count > 1:
        return np.array(header.frame_values), header.frame_unit
    if stored := numbers(header.entries.get("calid_frame_times_ms", "")):
        return np.array(stored), "ms"
    if header.frame_step and np.isfinite([header.frame_start, header.frame_step]).all():
        return header.frame_start + header.frame_step * np.arange(count), header.frame_unit
    return np.arange(count, dtype=np.float64), ""


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
        raise fault("stale-marks", message, remedy)
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
        raise fault("damaged-header", "the provenance in the header is damaged.")
    return provenance


def _is_shallow(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)
