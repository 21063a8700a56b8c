"""When the images of one place were taken: every element that says so is asked, and none is believed against others.

Elements are asked in this order: times after the R wave, numbers of phases, clocks, and the instance number, which
people and programs renumber. One that is the same in all images, or missing in some, says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from calid.errors import InputError
from calid.geometry import typical_gap
from calid.images.checks import FRAME_LIMITS_MS, HOLE_STEPS
from calid.images.dicom import CLOCKS, LAST_NUMBER, PHASE_NUMBERS, PHASE_SHARE, PHASE_TIMES, DicomImage
from calid.stack import BEAT_LIMITS_MS

MotionKind = Literal["cine", "phases", "unclear", "still", "repeats"]
"""What the images of one place show: a heart beat; two phases of one; several images of which no one says when they
were taken; one image; the same moment again, beat after beat or with another contrast."""

MIN_PHASES_MS = 10.0
"""Two images nearer in time than this are one phase, taken twice."""

MIN_CINE_STEP_MS = 5.0
"""Frames of a cine are further apart; trigger times that drift by less are of one moment in beat after beat."""

MIN_CINE_IMAGES = 3
"""So many images at one place are a cine; two may be end-diastole and end-systole, or one image exported twice."""

MIN_TELLING_IMAGES = 8
"""So many images at one place, as evenly apart in seconds as a cine's are in milliseconds, tell the unit."""

HALF_DAY_MS = 12 * 3600 * 1000.0

Phases = tuple[list[list[DicomImage]], list[np.ndarray], str]


def in_milliseconds(images: Sequence[DicomImage]) -> tuple[list[DicomImage], list[str]]:
    """A study's images with their times after the R wave in ms, and a sentence where these were given in seconds.

    DICOM has milliseconds. All images of a study together tell the other unit: none lies a beat's length after the R
    wave in ms, and where many were taken at one place, they are a cine's steps apart in seconds.
    """
    left, notes = list(images), []
    for key in PHASE_TIMES:
        by_place: dict[tuple, list[float]] = {}
        for image in left:
            if key in image.when:
                place = (image.series, *np.round(image.plane.origin_lps, 2))
                by_place.setdefault(place, []).append(image.when[key])
        times = [np.sort(found) for found in by_place.values()]
        cines = [found for found in times if len(found) >= MIN_TELLING_IMAGES]
        is_short = all(found[0] >= 0 and 1000 * found[-1] <= BEAT_LIMITS_MS[1] for found in times)
        if cines and is_short and all(map(_is_cine_in_seconds, cines)):
            notes.append(f"{key} is in seconds and not in milliseconds, and was taken for such.")
            left = [
                replace(image, when={**image.when, key: 1000 * image.when[key]}) if key in image.when else image
                for image in left
            ]
    return left, notes


def _is_cine_in_seconds(times: np.ndarray) -> bool:
    steps = 1000 * np.diff(times)
    low, high = FRAME_LIMITS_MS
    return bool(steps.min() > 0 and low < typical_gap(steps) <= high and steps.max() < HOLE_STEPS * typical_gap(steps))


def values_of(images: Sequence[DicomImage], key: str) -> np.ndarray | None:
    """(n,) what an element says of each image, if it tells all of them apart; clocks are told across midnight."""
    values = np.array([image.when.get(key, np.nan) for image in images])
    if key in CLOCKS and np.ptp(values) > HALF_DAY_MS and not key.endswith("DateTime"):
        values = np.where(values < HALF_DAY_MS, values + 2 * HALF_DAY_MS, values)
    is_apart = np.isfinite(values).all() and len(np.unique(values)) == len(values)
    return values if is_apart else None


def phase_times_ms(images: Sequence[DicomImage]) -> np.ndarray | None:
    """(n,) ms after the R wave, if every image has a time and these are not all the same; some may still be equal."""
    for key in PHASE_TIMES:
        values = np.array([image.when.get(key, np.nan) for image in images])
        if np.isfinite(values).all() and (len(values) == 1 or np.ptp(values) > 0):
            return values
    return None


def motion_of(images: Sequence[DicomImage]) -> MotionKind:
    """What the images of one place and one acquisition show."""
    is_said = any(image.num_phases > 1 for image in images)
    if len(images) == 1:
        return "cine" if is_said else "still"
    if _is_of_several_contrasts(images):
        return "repeats"
    times = phase_times_ms(images)
    if times is None:
        times = next((found for key in CLOCKS[:3] if (found := values_of(images, key)) is not None), None)
    if times is None:
        moments = {image.when.get(key) for image in images for key in PHASE_TIMES} - {None, 0.0}
        return "cine" if is_said else "repeats" if moments else "unclear"
    if np.ptp(times) > BEAT_LIMITS_MS[1] or len(np.unique(times)) < 0.75 * len(times):
        return "repeats"
    if len(images) < MIN_CINE_IMAGES:
        return "phases" if np.ptp(times) >= MIN_PHASES_MS else "repeats"
    return "cine" if np.ptp(times) >= MIN_CINE_STEP_MS * (len(images) - 1) else "repeats"


def _is_of_several_contrasts(images: Sequence[DicomImage]) -> bool:
    """Whether echo time, flip angle or inversion time change from image to image, as maps are made from."""
    found = np.array([image.contrast for image in images])
    return any(np.ptp(column) > 0.01 * abs(column).max() for column in found.T if np.isfinite(column).all())


def in_time(positions: Sequence[Sequence[DicomImage]]) -> Phases:
    """The images of each position sorted by time, their times in ms after the R wave, and how these were guessed.

    Args:
        positions: the images at each place of a stack.

    Returns:
        the images of each position in order, one array of times per position, and in words what the times are where
        the headers do not say; "" where they do.

    Raises:
        InputError: "contradicting-times" where elements sort the images differently, "unordered-frames" where none
            sorts them.
    """
    times = [phase_times_ms(position) for position in positions]
    if max(map(len, positions)) == 1:
        told = [found for found in times if found is not None]
        each = told if len(told) == len(times) else [np.zeros(1)] * len(times)
        return [list(position) for position in positions], each, ""
    if all(found is None for found in times):
        return _without_times(positions)
    orders = [None if found is None else np.argsort(found, kind="stable") for found in times]
    for position, found, order in zip(positions, times, orders, strict=True):
        if found is not None and order is not None and len(np.unique(found)) == len(found):
            _need_agreement(position, order)
    known = [np.sort(found) for found in times if found is not None]
    sorted_times, phases = [], []
    for position, found, order in zip(positions, times, orders, strict=True):
        in_order = _by_a_proven_number(position, positions, orders) if order is None else order
        sorted_times.append(_likely_times(len(position), known) if found is None else np.sort(found))
        phases.append([position[i] for i in in_order])
    return phases, sorted_times, ""


def _need_agreement(images: Sequence[DicomImage], order: np.ndarray) -> None:
    """Return if nothing contradicts an order by time: no other element of the phase, nor all clocks and numbers.

    A clock alone may go its own way, as a reconstruction does, and so may instance numbers.
    """
    ranked = {key: np.argsort(found) for key in _ALL if (found := values_of(images, key)) is not None}
    against = [key for key, other in ranked.items() if not np.array_equal(other, order)]
    firm = [key for key in against if key in (*PHASE_TIMES, *PHASE_NUMBERS)]
    witnesses = [key for key in ranked if key in (*CLOCKS, LAST_NUMBER)]
    if firm or (len(witnesses) > 1 and all(key in against for key in witnesses) and _agree(ranked, witnesses)):
        time = next(key for key in PHASE_TIMES if key in ranked and key not in firm)
        raise _contradiction(images, [time], firm or witnesses)


_ALL = (*PHASE_TIMES, *PHASE_NUMBERS, *CLOCKS, LAST_NUMBER)


def _agree(ranked: dict[str, np.ndarray], keys: Sequence[str]) -> bool:
    return all(np.array_equal(ranked[key], ranked[keys[0]]) for key in keys)


def _contradiction(images: Sequence[DicomImage], one: Sequence[str], other: Sequence[str]) -> InputError:
    message = (
        f"{images[0].name} and the other images of this slice are sorted differently by {' and '.join(one)} than by "
        f"{' and '.join(other)}."
    )
    return InputError("contradicting-times", message, "Export the images again, with their trigger times.")


def _without_times(positions: Sequence[Sequence[DicomImage]]) -> Phases:
    """`in_time` where no slice has times after the R wave.

    What tells the images of all slices apart sorts them: numbers of phases and clocks, which must agree, or else the
    instance number.
    """
    telling = [
        key
        for key in (*PHASE_NUMBERS, *CLOCKS)
        if all(len(position) == 1 or values_of(position, key) is not None for position in positions)
    ]
    keys = telling or [LAST_NUMBER]
    phases = []
    for position in positions:
        orders = {key: np.argsort(found) for key in keys if (found := values_of(position, key)) is not None}
        if not orders:
            message = f"{position[0].name} and the other images of this slice have neither trigger times nor numbers."
            raise InputError("unordered-frames", message, "Export the images with their trigger times.")
        first, *others = orders
        against = [key for key in others if not np.array_equal(orders[key], orders[first])]
        if against:
            raise _contradiction(position, [first], against)
        phases.append([position[i] for i in orders[first]])
    return phases, *_guessed_times(phases, keys)


def _guessed_times(phases: Sequence[Sequence[DicomImage]], keys: Sequence[str]) -> tuple[list[np.ndarray], str]:
    """Times in ms for images in order, and how they were guessed: by clock, from the beat's length, by number."""
    for key in (key for key in keys if key in CLOCKS):
        times = [values_of(phase, key) for phase in phases]
        since_first = [found - found[0] for found in times if found is not None]
        if len(since_first) == len(phases) and max(map(np.ptp, since_first)) <= BEAT_LIMITS_MS[1]:
            return since_first, f"from {key}"
    intervals = [image.interval_ms for phase in phases for image in phase if image.interval_ms > 0]
    beat_ms = float(np.median(intervals)) if intervals else np.nan
    shares = [found for phase in phases if (found := values_of(phase, PHASE_SHARE)) is not None]
    if intervals and keys[0] == PHASE_SHARE and len(shares) == len(phases):
        return [share * beat_ms / 100 for share in shares], "from shares of the heart beat"
    steps = [beat_ms / len(phase) if intervals else 1.0 for phase in phases]
    note = "from the heart beat's length" if intervals else "frame numbers"
    return [np.arange(len(phase)) * step for phase, step in zip(phases, steps, strict=True)], note


def _by_a_proven_number(
    position: Sequence[DicomImage],
    positions: Sequence[Sequence[DicomImage]],
    orders: Sequence[np.ndarray | None],
) -> np.ndarray:
    """The order of one slice without times, by an element that sorts every slice with times as these do.

    Raises:
        InputError: "unordered-frames" if there is none.
    """
    for key in (*PHASE_NUMBERS, *CLOCKS, LAST_NUMBER):
        found = values_of(position, key)
        proofs = [
            (proof := values_of(images, key)) is not None and np.array_equal(np.argsort(proof), order)
            for images, order in zip(positions, orders, strict=True)
            if order is not None
        ]
        if found is not None and all(proofs):
            return np.argsort(found)
    message = f"{position[0].name} and the other images of this slice have no trigger times, and no numbers to trust."
    raise InputError("unordered-frames", message, "Export the images with their trigger times.")


def _likely_times(count: int, known: Sequence[np.ndarray]) -> np.ndarray:
    """Times in ms for a slice without any: those of the slices with as many images, or else evenly spaced."""
    alike = [times for times in known if len(times) == count]
    return np.mean(alike, axis=0) if alike else np.linspace(known[0][0], known[0][-1], count)
