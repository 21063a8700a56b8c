"""Whether loose images make one straight, even stack with the same cardiac phases in every slice.

Planes and times are judged before the images are put together: afterwards there is only an affine, and a missing slice
could no longer be told. Slices and frames are counted from 1 in messages, as people count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from calid import geometry
from calid.geometry import Plane
from calid.images.checks import MIN_EVEN_FRAMES, Finding, holes
from calid.stack import BEAT_RATIO

MIN_STEP_MS = 1.0
MIN_CINE_STEPS = 7

PHASE_TOLERANCE = 0.5
"""Of the time from one frame to the next: beyond it, a frame of one slice belongs to another one of the others."""

STILL_TOLERANCE_MS = 50.0
"""Still slices further apart in the heart beat than this show the heart in different phases."""


def plane_findings(planes: Sequence[Plane], names: Sequence[str]) -> list[Finding]:
    """What keeps planes, sorted by position, from being one straight and even stack.

    Args:
        planes: one per slice, sorted along the common normal.
        names: what to call each slice's source (a file or series), in the same order.
    """
    if len(planes) < 2:
        return []
    places = [f"slice {index + 1} of {len(planes)} ({name})" for index, name in enumerate(names)]
    return (
        list(_same_grid(planes, places))
        or list(_same_orientation(planes, places))
        or list(_even_gaps(planes, places))
        or list(_straight(planes, places))
    )


def _same_grid(planes: Sequence[Plane], places: Sequence[str]) -> Iterator[Finding]:
    sizes = [plane.size for plane in planes]
    spacings = [tuple(np.round(plane.spacing_mm, 3)) for plane in planes]
    for code, what, values in (("mixed-sizes", "pixels", sizes), ("mixed-pixel-spacing", "mm per pixel", spacings)):
        usual = Counter(values).most_common(1)[0][0]
        typical = planes[values.index(usual)]
        odd = next(
            (i for i, plane in enumerate(planes) if values[i] != usual and not geometry.is_same_grid(plane, typical)),
            None,
        )
        if odd is not None:
            measured, expected = (f"{value[0]:g} x {value[1]:g}" for value in (values[odd], usual))
            yield Finding(
                code,
                f"{_start(places[odd])} has {measured} {what}, the others have {expected}.",
                "Load only slices of one acquisition, or resample them to one grid first.",
            )
            return


def _same_orientation(planes: Sequence[Plane], places: Sequence[str]) -> Iterator[Finding]:
    usual = planes[geometry.typical_plane(planes)]
    limit = geometry.PARALLEL_TOLERANCE_DEGREES
    tilts = [geometry.tilt_degrees(plane, usual) for plane in planes]
    turns = [geometry.turn_degrees(plane, usual) for plane in planes]
    odd, turned = int(np.argmax(tilts)), int(np.argmax(turns))
    if tilts[odd] > limit:
        yield Finding(
            "non-parallel",
            f"{_start(places[odd])} is tilted by {tilts[odd]:.1f} degrees against the others; "
            f"at most {limit:g} are tolerated.",
            "Remove this slice or series from the folder, or resample it parallel to the others first.",
        )
    elif turns[turned] > limit:
        yield Finding(
            "rotated-slice",
            f"{_start(places[turned])} is turned in its plane by {turns[turned]:.1f} degrees against the others.",
            "Remove this slice or series from the folder, or resample it like the others first.",
        )


def _even_gaps(planes: Sequence[Plane], places: Sequence[str]) -> Iterator[Finding]:
    gaps = np.diff(geometry.positions_along(planes[geometry.typical_plane(planes)].normal, planes))
    if gaps.min() < geometry.SAME_POSITION_MM:
        index = int(gaps.argmin())
        yield Finding(
            "duplicate-slices",
            f"{_start(places[index])} and {places[index + 1]} lie at the same position.",
            "Keep one of the two: remove the repeated series or file from the folder.",
        )
        return
    usual = geometry.typical_gap(gaps)
    for index in geometry.uneven_gaps(gaps):
        times = gaps[index] / usual
        is_missing = times > 1.5 and abs(times - round(times)) < 2 * geometry.GAP_TOLERANCE
        count = round(times) - 1
        yield Finding(
            "missing-slice" if is_missing else "uneven-spacing",
            f"Gap {index + 1} of {len(gaps)}, between {places[index]} and {places[index + 1]}, is "
            f"{gaps[index]:.2f} mm, the median is {usual:.2f} mm"
            + (f": {count} slice{'s are' if count > 1 else ' is'} missing." if is_missing else "."),
            "Load the missing slice, or keep only the slices on one side of the gap."
            if is_missing
            else "Load slices of one evenly spaced acquisition, or resample the stack first.",
        )


def _straight(planes: Sequence[Plane], places: Sequence[str]) -> Iterator[Finding]:
    """Slices that lie beside the straight line through the others: (n, 2) offsets are judged in pixels."""
    offsets = geometry.lateral_offsets_mm(planes)
    middle = offsets - np.median(offsets, axis=0)
    limit_mm = geometry.LATERAL_TOLERANCE_PIXELS * float(planes[0].spacing_mm.min())
    distances = np.linalg.norm(middle, axis=1)
    if distances.max() <= limit_mm:
        return
    steps = np.diff(offsets, axis=0)
    if len(planes) > 2 and np.linalg.norm(steps - np.median(steps, axis=0), axis=1).max() > limit_mm:
        odd = int(distances.argmax())
        yield Finding(
            "shifted-slice",
            f"{_start(places[odd])} is shifted in its plane by {distances[odd]:.1f} mm against the others; "
            f"at most {limit_mm:.1f} mm are tolerated.",
            "Resample this slice on the others' grid first, or remove it.",
        )
    else:
        yield Finding(
            "sheared-stack",
            f"Each slice is shifted in its plane by {np.linalg.norm(steps[0]):.1f} mm against the one before it.",
            "Resample the stack on a straight grid first.",
        )


def _start(place: str) -> str:
    """The place as the start of a sentence; `str.capitalize` would lower the letters of file names."""
    return place[:1].upper() + place[1:]


def count_findings(counts: Sequence[int], names: Sequence[str]) -> list[Finding]:
    """Whether a still stack has a slice twice; to be asked before times, which could not order the two.

    Args:
        counts: images of each slice.
        names: what to call each slice's source, in the same order.
    """
    usual = Counter(counts).most_common(1)[0][0]
    if usual > 1 or max(counts) != 2:
        return []
    index = list(counts).index(2)
    return [_duplicates("duplicate-slices", f"Slice {index + 1} of {len(names)} ({names[index]}) is there twice.")]


def phase_findings(
    times_ms: Sequence[np.ndarray], names: Sequence[str], beats_ms: Sequence[float] | None = None
) -> list[Finding]:
    """What keeps the images of each position from being the same cardiac phases.

    Args:
        times_ms: one sorted array per slice, the times of its images after the R wave. A single slice is compared with
            nothing, and may leave frames out.
        names: what to call each slice's source, in the same order.
        beats_ms: length of the heart beat during each slice, NaN where it was not noted.
    """
    places = [f"slice {index + 1} of {len(names)} ({name})" for index, name in enumerate(names)]
    usual, share = Counter(map(len, times_ms)).most_common(1)[0]
    unequal = list(_distinct_times(times_ms, places)) or list(_equal_counts(times_ms, places, usual, share))
    if unequal or len(times_ms) == 1:
        return unequal
    times = np.array(times_ms)
    if usual == 1:
        return list(_same_moment(times[:, 0], places))
    beats = np.full(len(times), np.nan) if beats_ms is None else np.array(beats_ms)
    return (
        list(_without_holes(times, places))
        or list(_same_start(times, places))
        or list(_same_phases(times, beats, places))
    )


def _duplicates(code: str, message: str) -> Finding:
    return Finding(code, message, "Keep one image of each: remove the repeated series or file.")


def _distinct_times(times_ms: Sequence[np.ndarray], places: Sequence[str]) -> Iterator[Finding]:
    for times, place in zip(times_ms, places, strict=True):
        steps = np.diff(times)
        if len(steps) and (steps.min() <= 0 or steps.min() < _shortest_step_ms(steps)):
            index = int(steps.argmin())
            yield _duplicates(
                "duplicate-frames",
                f"{_start(place)} has two images at nearly the same time, "
                f"{times[index]:.1f} and {times[index + 1]:.1f} ms after the R wave.",
            )
            return


def _shortest_step_ms(steps: np.ndarray) -> float:
    """The shortest believable time between two images of one slice.

    Phases of one beat are spaced evenly. Where two acquisitions mix, every other step is short, and the upper quartile
    still tells the usual one. A few chosen phases may lie anywhere, but not at one time.
    """
    return 0.25 * float(np.percentile(steps, 75)) if len(steps) >= MIN_CINE_STEPS else MIN_STEP_MS


def _equal_counts(times_ms: Sequence[np.ndarray], places: Sequence[str], usual: int, share: int) -> Iterator[Finding]:
    odd = next((i for i, times in enumerate(times_ms) if len(times) != usual), None)
    if odd is None:
        return
    times = times_ms[odd]
    if share > len(times_ms) / 2 and len(times) == usual - 1:
        yield Finding(
            "missing-frame",
            f"{_start(places[odd])} has {len(times)} frames, the others have {usual}: "
            f"frame {_missing_index(times) + 1} is missing.",
            "Load the missing image.",
        )
        return
    yield Finding(
        "uneven-frames",
        f"{_start(places[odd])} has {len(times)} frames, most others have {usual}.",
        "Load slices that were acquired with the same number of phases, or one phase of each.",
    )


def _missing_index(times_ms: np.ndarray) -> int:
    """Which one of n + 1 evenly spaced times the n given ones leave out: a hole, else the first, else the last."""
    steps = np.diff(times_ms)
    if not len(steps):
        return 0
    usual = geometry.typical_gap(steps)
    if steps.max() > 1.5 * usual:
        return int(steps.argmax()) + 1
    return 0 if times_ms[0] > 0.75 * usual else len(times_ms)


def _same_moment(times_ms: np.ndarray, places: Sequence[str]) -> Iterator[Finding]:
    """Still slices, one at each of (Z,) times, that do not show the heart at one moment of its beat."""
    usual = _usual(times_ms)
    odd = int(np.abs(times_ms - usual).argmax())
    if np.ptp(times_ms) > STILL_TOLERANCE_MS:
        yield _other_phase(
            f"{_start(places[odd])} was taken {times_ms[odd]:.0f} ms after the R wave, the others at about "
            f"{usual:.0f} ms; they may be {STILL_TOLERANCE_MS:g} ms apart."
        )


def _other_phase(message: str) -> Finding:
    remedy = "Load slices that show the same phases of the heart beat, all acquired in one way."
    return Finding("different-phases", message, remedy)


def _without_holes(times_ms: np.ndarray, places: Sequence[str]) -> Iterator[Finding]:
    """The first slice whose (Z, T) times leave a frame out; the others may leave out another one, and be as many."""
    for times, place in zip(times_ms, places, strict=True):
        for index in holes(times)[:1]:
            steps = np.diff(times)
            yield Finding(
                "missing-frame",
                f"{_start(place)} has no image between {times[index]:.1f} and {times[index + 1]:.1f} ms after the "
                f"R wave, its frames are usually {geometry.typical_gap(steps):.1f} ms apart: a frame is missing.",
                "Load the missing image.",
            )
            return


def _same_start(times_ms: np.ndarray, places: Sequence[str]) -> Iterator[Finding]:
    """Slices whose first frame lies elsewhere in the beat, of (Z, T) times."""
    starts = times_ms[:, 0]
    usual = _usual(starts)
    limit_ms = min(PHASE_TOLERANCE * _usual_step(times_ms), STILL_TOLERANCE_MS)
    odd = int(np.abs(starts - usual).argmax())
    if abs(starts[odd] - usual) > limit_ms:
        yield _other_phase(
            f"{_start(places[odd])} starts {starts[odd]:.1f} ms after the R wave, the others at {usual:.1f} ms; "
            f"at most {limit_ms:.1f} ms more or less are tolerated."
        )


def _same_phases(times_ms: np.ndarray, beats_ms: np.ndarray, places: Sequence[str]) -> Iterator[Finding]:
    """Slices whose frames drift away from the others' phases, of (Z, T) times and (Z,) beats.

    Frames are the same phases where they lie at the same share of the beat, as a scanner sorts them afterwards, or at
    the same time after the R wave, as it takes them when it counts from the trigger. The step between a few chosen
    phases says nothing of how exactly they were chosen; they may lie apart as a heart changes its rate.
    """
    since_first = times_ms - times_ms[:, :1]
    if times_ms.shape[1] < MIN_EVEN_FRAMES:
        yield from _same_few_phases(since_first, beats_ms, places)
        return
    shares = since_first / _beats(times_ms, beats_ms)[:, None]
    if _drift(since_first).max() <= PHASE_TOLERANCE or _drift(shares).max() <= PHASE_TOLERANCE:
        return
    odd, frame = divmod(int(_drift(shares).argmax()), shares.shape[1])
    usual = _usual(shares)[frame]
    yield _other_phase(
        f"Frame {frame + 1} of {places[odd]} lies at {100 * shares[odd, frame]:.0f} % of the heart beat, in the other "
        f"slices at {100 * usual:.0f} %; at most {100 * PHASE_TOLERANCE * _usual_step(shares):.1f} % more or less are "
        "tolerated."
    )


def _same_few_phases(since_first: np.ndarray, beats_ms: np.ndarray, places: Sequence[str]) -> Iterator[Finding]:
    """`_same_phases` for end-diastole and end-systole and the like, of (Z, T) times since the first of them."""
    lengths = beats_ms if np.isfinite(beats_ms).all() else np.ones(len(since_first))
    ratios = [phases[:, 1:] / _usual(phases[:, 1:]) for phases in (since_first, since_first / lengths[:, None])]
    ratio = min((np.maximum(ratio, 1 / ratio) for ratio in ratios), key=np.max)
    if ratio.max() <= BEAT_RATIO:
        return
    odd, frame = divmod(int(ratio.argmax()), ratio.shape[1])
    usual = _usual(since_first)[frame + 1]
    yield _other_phase(
        f"Frame {frame + 2} of {places[odd]} was taken {since_first[odd, frame + 1]:.0f} ms after the first, in the "
        f"other slices {usual:.0f} ms after it; a heart's rate explains {usual / BEAT_RATIO:.0f} to "
        f"{usual * BEAT_RATIO:.0f} ms."
    )


def _drift(phases: np.ndarray) -> np.ndarray:
    """How far each of (Z, T) phases lies from the usual one of its frame, in steps from frame to frame."""
    return np.abs(phases - _usual(phases)) / _usual_step(phases)


def _usual(values: np.ndarray) -> Any:
    """The median over slices, the first axis; of two middle ones the smaller, so that one of two can be the odd one."""
    return np.quantile(values, 0.5, axis=0, method="lower")


def _usual_step(phases: np.ndarray) -> float:
    return float(np.median(np.diff(phases, axis=1)))


def _beats(times_ms: np.ndarray, noted_ms: np.ndarray) -> np.ndarray:
    """(Z,) lengths of the heart beat, from (Z, T) times where any was not noted.

    Frames are then taken to span the beat, unless that were longer or shorter than a heart changes its rate.
    """
    if np.isfinite(noted_ms).all():
        return noted_ms
    spans = np.ptp(times_ms, axis=1)
    usual = _usual(spans)
    return np.clip(spans, usual / BEAT_RATIO, usual * BEAT_RATIO) * times_ms.shape[1] / (times_ms.shape[1] - 1)
