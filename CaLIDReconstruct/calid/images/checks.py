"""Whether an input can be used, question by question: each answer names the place, the measured value and the remedy.

Loose images, whose positions and times tell of a missing slice or frame, are judged in `assembly.py` before they are
put together; here the whole `Stack` is. Slices and frames are counted from 1 in messages, as people count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calid import geometry
from calid.errors import InputError
from calid.stack import ISOTROPIC_RATIO, WINDOW_PERCENTILES, Stack

MIN_PIXELS = 16
"""Fewer pixels across than this cannot show a heart, and the networks halve the image several times."""

PIXEL_LIMITS_MM = (0.2, 5.0)
SLICE_LIMITS_MM = (0.2, 40.0)
"""Cardiac MR has pixels of 0.5 to 3 mm and slices up to 20 mm apart, upsampled ones as near to each other as pixels;
beyond these limits the unit is wrong."""

MOST_LABELS = 17
"""No more different values than this in a whole stack are labels and not MR signal, whatever the values are."""

LARGEST_SIGNAL = 1e9
"""MR signal reaches some 10,000; a larger value comes from damaged or misread memory."""

FRAME_LIMITS_MS = (1.0, 500.0)
"""Cine frames are 10 to 100 ms apart, end-diastole and end-systole up to half a second; beyond these limits the times
were numbers or in another unit."""

MIN_EVEN_FRAMES = 4
"""With fewer frames (end-diastole and end-systole, say) uneven steps are the rule."""

HOLE_STEPS = 1.75
"""Where so many times the usual step pass between two frames, one is missing."""


RIM_SHARE = 0.06
BRIGHT_RIM = 0.6
"""The outermost share of an image, and the share of the contrast from which it is too bright for air or lung."""

ROUGH_RIM = 0.15
"""Where every fourth pair of neighbors at the rim differs by more than this share of the contrast, the rim is noise."""

SMOOTH_INSIDE = 0.05
"""Unless every fourth pair within the rim differs by less than this share, all of the image is noise."""


@dataclass(frozen=True)
class Finding:
    """One answer that a person should know about.

    Args:
        code: stable, lower-case and hyphenated; the Slicer module translates it.
        message: what was found and where, with the measured value and the limit.
        remedy: what can be done about it.
        severity: "error" blocks the run, "warning" does not.
    """

    code: str
    message: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


def check_stack(stack: Stack, *, source: str = "", harmless: Collection[str] = ()) -> None:
    """Return if the stack can be upsampled.

    Args:
        stack: the input.
        source: how the error names it, a file or node name.
        harmless: codes of findings that do not block this use of it.

    Raises:
        InputError: the first blocking finding, its message led by `source` where one is given.
    """
    raise_first((finding for finding in findings(stack) if finding.code not in harmless), source=source)


def warnings(stack: Stack) -> list[Finding]:
    """What a person should know of a stack although it does not block a run."""
    return [finding for finding in findings(stack) if finding.severity == "warning"]


def raise_first(found: Iterable[Finding], *, source: str = "") -> None:
    """Raise the first finding that is an error as `InputError`; return if there is none."""
    for finding in found:
        if finding.severity == "error":
            message = f"{source}: {finding.message}" if source else finding.message
            raise InputError(finding.code, message, finding.remedy)


def findings(stack: Stack) -> list[Finding]:
    """Everything worth knowing about a stack before it is upsampled; empty when all is well."""
    unusable = list(_extent(stack)) or list(_pixel_type(stack))
    if unusable:
        return unusable
    # (T, Z) extremes of each slice; NaN where a slice holds one, so a single pass answers all questions about values.
    lowest, highest = stack.voxels.min(axis=(2, 3)), stack.voxels.max(axis=(2, 3))
    # A value that is no number, or labels in place of signal, leave nothing else to be said about the values.
    values = list(_finite(stack, lowest, highest)) or list(_labels(stack, lowest, highest))
    values = values or [*_contrast(lowest, highest), *_unusual_contrast(stack), *_repeats(stack)]
    return [*_slice_count(stack), *_spacing(stack), *_axes(stack), *values, *_frame_times(stack), *_marks(stack)]


def _extent(stack: Stack) -> Iterator[Finding]:
    frames, slices, rows, columns = stack.voxels.shape
    if 0 in stack.voxels.shape:
        yield Finding(
            "no-voxels",
            f"The image is empty: {frames} frames of {slices} slices of {columns} x {rows} pixels.",
            "Export it again, or choose another file.",
        )
    elif min(rows, columns) < MIN_PIXELS:
        yield Finding(
            "too-small",
            f"The slices have {columns} x {rows} pixels; at least {MIN_PIXELS} x {MIN_PIXELS} are needed.",
            "Use the slices as they were acquired, not a thumbnail or a narrow crop.",
        )


def _pixel_type(stack: Stack) -> Iterator[Finding]:
    kind = stack.voxels.dtype.kind
    if kind == "c":
        yield Finding(
            "complex-pixels",
            "The voxels are complex numbers.",
            "Save the magnitude image and use that.",
        )
    elif kind not in "iufb":
        yield Finding(
            "unsupported-voxels",
            f"The voxels are of type {stack.voxels.dtype}, not numbers.",
            "Save the image with integer or floating point voxels.",
        )


def _slice_count(stack: Stack) -> Iterator[Finding]:
    if stack.num_slices == 1:
        yield Finding(
            "one-slice",
            "There is only one slice; at least two parallel slices are needed to fill a gap between them.",
            "Load the whole short-axis stack (for DICOM: the folder that holds all its slices).",
        )


def _spacing(stack: Stack) -> Iterator[Finding]:
    x, y, z = stack.spacing_mm
    for name, value, (low, high) in (
        ("Pixels", x, PIXEL_LIMITS_MM),
        ("Pixels", y, PIXEL_LIMITS_MM),
        ("Slices", z, SLICE_LIMITS_MM),
    ):
        if not low <= value <= high:
            yield Finding(
                "implausible-spacing",
                f"{name} lie {value:.4g} mm apart; between {low:g} and {high:g} mm is plausible.",
                "Correct the spacing in the file (it must be in millimeters), or export the image again.",
            )
            return
    if stack.num_slices > 1 and z <= ISOTROPIC_RATIO * max(x, y):
        yield Finding(
            "already-isotropic",
            f"The slices are {z:.2f} mm apart and the pixels {max(x, y):.2f} mm: nothing is missing between them.",
            f"Upsample only stacks whose slices are more than {ISOTROPIC_RATIO:g} pixels apart.",
        )


def _axes(stack: Stack) -> Iterator[Finding]:
    shear = geometry.shear_degrees(stack.affine)
    if shear > geometry.PARALLEL_TOLERANCE_DEGREES:
        yield Finding(
            "sheared-affine",
            f"The voxel axes are not perpendicular: they miss a right angle by {shear:.2f} degrees; "
            f"at most {geometry.PARALLEL_TOLERANCE_DEGREES:g} are tolerated.",
            "Resample the image on a straight grid first (in Slicer: Resample Image, or harden the transform).",
        )


def _finite(stack: Stack, lowest: np.ndarray, highest: np.ndarray) -> Iterator[Finding]:
    """NaN, infinite and absurd values; the arrays are (T, Z) extremes."""
    for code, what, bad in (
        ("nan-voxels", "not a number (NaN)", np.isnan(lowest)),
        ("infinite-voxels", "infinite", np.isinf(lowest) | np.isinf(highest)),
        ("absurd-values", f"beyond {LARGEST_SIGNAL:g}", (highest > LARGEST_SIGNAL) | (lowest < -LARGEST_SIGNAL)),
    ):
        if bad.any():
            frame, index = np.argwhere(bad)[0]
            yield Finding(
                code,
                f"Voxels of {_place(stack, frame, index)} are {what} ({bad.sum()} of {bad.size} slices affected).",
                "Export the image again, or repair these slices.",
            )
            return


def _place(stack: Stack, frame: int, index: int) -> str:
    """Where something is, in words: "slice 3 of 11 in frame 2 of 25"."""
    where = f"slice {index + 1} of {stack.num_slices}"
    return where if stack.num_frames == 1 else f"{where} in frame {frame + 1} of {stack.num_frames}"


def _contrast(lowest: np.ndarray, highest: np.ndarray) -> Iterator[Finding]:
    """Blank slices, frames and images; the arrays are (T, Z) extremes."""
    blank = lowest == highest
    again = "Export the image again; if the slices were padded, crop the stack to those that show the heart."
    if lowest.min() == highest.max():
        yield Finding("constant-image", f"Every voxel has the same value, {lowest.min():g}: there is no image.", again)
    elif blank.all(axis=1).any():
        frame = int(np.flatnonzero(blank.all(axis=1))[0])
        yield Finding("blank-frame", f"Frame {frame + 1} of {len(blank)} shows nothing.", again)
    elif blank.any():
        frame, index = np.argwhere(blank)[0]
        yield Finding(
            "blank-slice",
            f"Slice {index + 1} of {blank.shape[1]} in frame {frame + 1} of {blank.shape[0]} shows nothing: "
            f"all its pixels are {lowest[frame, index]:g}.",
            again,
        )


def _unusual_contrast(stack: Stack) -> Iterator[Finding]:
    """Whether the rim of the image is not the dark air or lung of cine MR: bright, as inverted, or noise, as in maps.

    Measured on 353 stacks of ACDC, chla, Sunnybrook, autofd and biv-me: the rim's median lies between 0 and 0.22 of the
    contrast and the skewness between 0.4 and 4.2; inverted, between 0.77 and 1 and between -4 and -0.4. On 203 of them
    the upper quartile of the differences at the rim is at most 0.08; as T1 maps made of them, at least 0.21.

    What it means (`Testing/benchmarks/contrasts.py`; model 0cfeb372ef57; patients 61 to 80 of ACDC, end-diastole, every
    second slice left out): CaLID+ gains 1.37 dB over linear interpolation on cines, 1.04 on inverted ones, and loses
    0.22 dB on made-up T1 maps, in 19 of 20. All of both are warned of, no cine is. On made-up late enhancement it gains
    1.32 dB and on dark blood 1.52, as on cines: they are not warned of, and the rim cannot tell them from cines.
    Nor does it tell another organ with air around it, such as a brain; what the gain on a heart's very own slices is,
    the report measures.
    """
    voxels = stack.voxels[0].astype(np.float64)
    low, high = np.percentile(voxels, WINDOW_PERCENTILES)
    if not low < high:
        return
    shown = np.clip((voxels - low) / (high - low), 0, 1)
    rows, columns = shown.shape[1:]
    width = max(2, round(RIM_SHARE * min(rows, columns)))
    rim = np.ones((rows, columns), bool)
    rim[width:-width, width:-width] = False
    brightness = float(np.median(shown[:, rim]))
    skewness = float(np.mean((shown - shown.mean()) ** 3)) / max(float(shown.std()) ** 3, 1e-9)
    differences = np.abs(np.diff(shown, axis=2))
    roughness = float(np.percentile(differences[:, rim[:, 1:]], 75))
    is_smooth_inside = float(np.percentile(differences[:, ~rim[:, 1:]], 25)) < SMOOTH_INSIDE
    use_cine = "Use the cine as the scanner shows it"
    if brightness > BRIGHT_RIM and skewness < 0:
        yield Finding(
            "unusual-contrast",
            f"The image is bright where cine MR is dark, {100 * brightness:.0f} % of the contrast at its rim: it is "
            "inverted, or shows no heart.",
            f"{use_cine}; on inverted ones the model gains a quarter less over linear interpolation.",
            severity="warning",
        )
    elif roughness > ROUGH_RIM and is_smooth_inside:
        yield Finding(
            "unusual-contrast",
            f"The rim of the image is noise over {100 * roughness:.0f} % of the contrast, where cine MR is dark: it is "
            "a map (T1, T2), a phase image, or shows no heart.",
            f"{use_cine}; on such maps the model is behind linear interpolation.",
            severity="warning",
        )


def _labels(stack: Stack, lowest: np.ndarray, highest: np.ndarray) -> Iterator[Finding]:
    if lowest.min() == highest.max():
        return
    values = _few_values(stack.voxels, MOST_LABELS)
    if values is not None:
        shown = ", ".join(f"{value:g}" for value in values[:4]) + (" ..." if len(values) > 4 else "")
        yield Finding(
            "label-map",
            f"The voxels have only {len(values)} different values ({shown}), from {values[0]:g} to {values[-1]:g}: "
            "this is a label map.",
            "Choose the MR image and not its segmentation.",
        )


def _few_values(voxels: np.ndarray, limit: int) -> np.ndarray | None:
    """The sorted values of (T, Z, Y, X) voxels if they are at most `limit`; the first slices of an image have more."""
    values = np.array([], voxels.dtype)
    for image in voxels.reshape(-1, *voxels.shape[2:]):
        values = np.union1d(values, image)
        if len(values) > limit:
            return None
    return values


def _repeats(stack: Stack) -> Iterator[Finding]:
    """Slices and frames that are exact copies of the one before, which no scanner produces."""
    voxels = stack.voxels
    slices = [z for z in range(1, stack.num_slices) if np.array_equal(voxels[:, z], voxels[:, z - 1])]
    frames = [t for t in range(1, stack.num_frames) if np.array_equal(voxels[t], voxels[t - 1])]
    for code, name, copies in (("repeated-slice", "Slice", slices), ("repeated-frame", "Frame", frames)):
        if copies:
            yield Finding(
                code,
                f"{name} {copies[0] + 1} is an exact copy of the one before it ({len(copies)} such).",
                "Check whether the export doubled it and lost another.",
                severity="warning",
            )


def _frame_times(stack: Stack) -> Iterator[Finding]:
    if stack.num_frames < 2:
        return
    steps = np.diff(stack.frame_times_ms)
    usual = geometry.typical_gap(steps)
    if stack.times_guess:
        yield Finding(
            "guessed-frame-times",
            f"The file does not say for certain when frames were taken ({stack.times_guess}); they count as "
            f"{usual:.4g} ms apart.",
            "Heart rate and timing in the report follow from this guess; look whether the film beats evenly.",
            severity="warning",
        )
    elif not FRAME_LIMITS_MS[0] < usual <= FRAME_LIMITS_MS[1]:
        yield Finding(
            "implausible-frame-times",
            f"Frames are {usual:.4g} ms apart; the times may be frame numbers or in another unit.",
            "Voxels are not affected; heart rate and timing in the report are.",
            severity="warning",
        )
    for index in holes(stack.frame_times_ms)[:1]:
        yield Finding(
            "missing-frame",
            f"Between frames {index + 1} and {index + 2} {steps[index]:.1f} ms pass, usually {usual:.1f} ms: "
            "a frame is missing.",
            "Load the missing frame, or choose frames on one side of the hole.",
        )


def holes(times_ms: np.ndarray) -> np.ndarray:
    """Indices of the frames after which one is missing, in (T,) sorted times.

    Example:
        >>> holes(np.array([0.0, 30.0, 60.0, 120.0, 150.0])).tolist()
        [2]
    """
    if len(times_ms) < MIN_EVEN_FRAMES:
        return np.array([], dtype=int)
    steps = np.diff(times_ms)
    return np.flatnonzero(steps > HOLE_STEPS * geometry.typical_gap(steps))


def _marks(stack: Stack) -> Iterator[Finding]:
    count = int(np.sum(np.asarray(stack.generated)))
    if count:
        yield Finding(
            "generated-input",
            f"{count} of {stack.num_slices} slices were generated before and not acquired.",
            "Start from the acquired stack where you have it.",
            severity="warning",
        )
