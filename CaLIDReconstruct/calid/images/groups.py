"""Images that belong together: one acquisition, in parallel planes, that shows the same motion.

What headers say about space, time and contrast groups images, never a file's name; series only tell apart images that
nothing else does. A description is asked for one thing: whether it names another contrast than a cine's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from calid import geometry
from calid.geometry import Plane
from calid.images.assembly import plane_findings
from calid.images.dicom import CLOCKS, DicomImage
from calid.images.times import MIN_PHASES_MS, MotionKind, motion_of, phase_times_ms

STRAY_DEGREES = 20.0
"""An image tilted against the short axis by less than this is a crooked short-axis slice and not a long-axis view."""

MAX_VIEW_POSITIONS = 3
"""More parallel planes than this are a stack and not a long-axis view."""

KIND = ("Modality", "Image Type", "Scanning Sequence")
"""The elements that `DicomImage.kind` holds."""

CONTRAST_RATIO = 1.5
"""Echo times and flip angles of one acquisition differ from slice to slice by less than this."""

SUBJECTS = {
    "tagging": r"tag(ging|ged|s)?\b|spamm|grid",
    "perfusion": r"perf|first.?pass|\bdynamic",
    "flow": r"flow|venc|phase.?contrast|\bpc\b",
    "map": r"\bt[12][ _*-]*map|molli|sasha|\bmap\b|\bt2\*|\becv\b",
    "late enhancement": r"\blge\b|\bde\b|psir|late|delayed|viab",
    "dark blood": r"dark.?blood|black.?blood|\bhaste|\bstir\b|\btse\b|\bdb\b",
    "localizer": r"locali[sz]er|scout|survey",
}
"""Words in a description that name another contrast than a cine's, in any language's usual English abbreviations."""


_Thing = TypeVar("_Thing")
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Take:
    """The images of one place that were taken together.

    Args:
        images: the images, in any order.
        motion: what they show of the heart beat.
    """

    images: tuple[DicomImage, ...]
    motion: MotionKind

    @property
    def series(self) -> tuple[float, str]:
        """Number and UID of the series."""
        return self.images[0].series

    @property
    def plane(self) -> Plane:
        """Where its images lie."""
        return self.images[0].plane

    @property
    def name(self) -> str:
        """The file of one of its images, for messages."""
        return self.images[0].name

    @property
    def rank(self) -> tuple[bool, float, float, float]:
        """What to prefer of several acquisitions of one place: corrected for distortion, taken last."""
        image = self.images[0]
        is_corrected = any(word.startswith("DIS") for word in image.image_type)
        taken = next((image.when[key] for key in CLOCKS[1:3] if key in image.when), 0.0)
        return is_corrected, taken, image.series[0], float(np.nan_to_num(image.acquisition))


@dataclass(frozen=True, eq=False)
class Group:
    """Takes of one acquisition in parallel planes.

    Args:
        takes: takes in the order of their positions; several at one position are repeats.
        motion: what all of them show of the heart beat.
        subject: name of another contrast than a cine's, "" where nothing says so.
    """

    takes: tuple[Take, ...]
    motion: MotionKind
    subject: str = ""

    @cached_property
    def images(self) -> list[DicomImage]:
        """The images of all takes."""
        return [image for take in self.takes for image in take.images]

    @property
    def plane(self) -> Plane:
        """The plane of one of the images; the others are parallel to it."""
        return self.images[0].plane

    @cached_property
    def places(self) -> list[list[Take]]:
        """The takes sorted along the normal, those at one position together."""
        return at_positions(self.takes, lambda take: take.plane)

    def positions_mm(self, normal: np.ndarray) -> np.ndarray:
        """(n,) where its places lie along a normal."""
        return geometry.positions_along(normal, [place[0].plane for place in self.places])

    @property
    def gap_mm(self) -> float | None:
        """The usual distance of its planes; None if there is only one."""
        gaps = np.diff(np.sort(self.positions_mm(self.plane.normal)))
        return geometry.typical_gap(gaps) if len(gaps) else None

    @property
    def num_frames(self) -> int:
        """Number of images of the longest take."""
        return max(len(take.images) for take in self.takes)

    @property
    def kind(self) -> tuple[str, str, str]:
        """Modality, frame type and scanning sequence, from the header that tells most."""
        return max((image.kind for image in self.images), key=lambda kind: sum(map(bool, kind)))

    @property
    def description(self) -> str:
        """What people call it."""
        return self.images[0].description or "a series without description"

    @property
    def series(self) -> list[tuple[float, str]]:
        """Its series, each once, in order."""
        return sorted({take.series for take in self.takes})

    @property
    def references(self) -> set[str]:
        """The frames of reference that its images name."""
        return {image.reference for image in self.images} - {""}

    @property
    def is_magnitude(self) -> bool:
        """Whether these are MR images of magnitude, without inversion, and not of phase or velocity or a map."""
        modality, kind, sequence = self.kind
        is_plain = "IR" not in sequence.split("\\") and "MAP" not in " ".join(self.images[0].image_type).upper()
        return modality in ("MR", "") and not kind.startswith(("P", "V", "R", "I")) and is_plain

    @property
    def is_ssfp(self) -> bool:
        """Whether the headers name the pulse sequence of a usual cine: steady state, free precession."""
        variant, family = self.images[0].sequence
        return "SS" in variant.split("\\") or family in ("tfi", "btfe", "fiesta", "trufi", "bssfp", "ssfp")

    def tilt_degrees(self, other: Group) -> float:
        """The angle between the planes of two groups."""
        return geometry.tilt_degrees(self.plane, other.plane)

    def is_beside(self, other: Group) -> bool:
        """Whether two groups are parallel but for what a crooked slice may be tilted."""
        return self.tilt_degrees(other) < STRAY_DEGREES

    def is_alike(self, other: Group) -> bool:
        """Whether two groups show the same by the same means, in whatever planes."""
        moving = ("cine", "phases")
        return (
            all(_is_same_word(a, b) for a, b in zip(self.kind, other.kind, strict=True))
            and self.subject == other.subject
            and (self.motion == other.motion or (self.motion in moving and other.motion in moving))
        )

    def differs_in(self, other: Group) -> str:
        """The elements by whose words two groups are told apart, in words, where all else of their contrast is alike.

        Empty where there are none, or where they differ in more than words.
        """
        words = [
            f"{name} ({a[:20]!r}, not {b[:20]!r})"
            for name, a, b in zip(KIND, self.kind, other.kind, strict=True)
            if not _is_same_word(a, b)
        ]
        ours, theirs = (
            _Contrast.of((*group.images[0].sequence, group.subject), group.images) for group in (self, other)
        )
        return " and ".join(words) if ours.fits(theirs) else ""

    def latest(self) -> Group:
        """The take at each position that is corrected for distortion, and of several such the last acquired.

        Where no header tells which one is the last, a position keeps all of them.
        """
        takes = [take for place in self.places for take in place if take.rank == max(other.rank for other in place)]
        return replace(self, takes=tuple(takes))

    def findings(self) -> list:
        """What keeps the planes of the group from being one straight and even stack."""
        takes = [place[0] for place in self.places]
        return plane_findings([take.plane for take in takes], [take.name for take in takes])


def alike(things: Iterable[_Thing], key: Callable[[_Thing], _Key]) -> dict[_Key, list[_Thing]]:
    """Things with the same key together, in their order."""
    found: dict[_Key, list[_Thing]] = {}
    for thing in things:
        found.setdefault(key(thing), []).append(thing)
    return found


def at_positions(things: Sequence, plane_of: Callable) -> list[list]:
    """Things sorted along the normal of the first one's plane, those at one position together."""
    along = geometry.positions_along(plane_of(things[0]).normal, [plane_of(thing) for thing in things])
    order = np.argsort(along, kind="stable")
    starts = np.flatnonzero(np.diff(along[order]) >= geometry.SAME_POSITION_MM) + 1
    return [[things[index] for index in part] for part in np.split(order, starts)]


def groups_of(images: Sequence[DicomImage]) -> list[Group]:
    """Placed images as groups, in the order of their series."""
    groups = []
    for members in _of_one_contrast(images):
        for part in _parallel(members):
            groups += _by_motion(part)
    parts = [part for group in groups for part in _untangled(group)]
    return sorted(parts, key=lambda group: min((image.series, image.name) for image in group.images))


# --- By contrast and size ---------------------------------------------------------------------------------------------


def _of_one_contrast(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Images of one size and pixel spacing, taken by one pulse sequence; what a header leaves blank fits anything."""

    def words_and_size(image: DicomImage) -> tuple[tuple[str, ...], Hashable]:
        pixel = tuple(np.round(image.plane.spacing_mm, 4))
        words = (*image.kind, *image.sequence, subject_of(image.description))
        return words, (image.series, image.plane.size, pixel)

    by_series = alike(images, words_and_size)
    parts = [(_Contrast.of(words, part), part) for (words, _), part in by_series.items()]
    # Those that say most, and are most, are the ones the others are compared with.
    parts.sort(key=lambda part: (-sum(map(bool, part[0].words)), -len(part[1])))
    clusters: list[tuple[_Contrast, list[DicomImage]]] = []
    for contrast, members in parts:
        fitting = [cluster for cluster in clusters if contrast.fits(cluster[0])]
        if fitting:
            max(fitting, key=lambda cluster: len(cluster[1]))[1].extend(members)
        else:
            clusters.append((contrast, list(members)))
    return [members for _, members in clusters]


@dataclass(frozen=True)
class _Contrast:
    """What images of one acquisition agree in.

    Args:
        words: modality, frame type, scanning sequence, sequence variant and family, subject; "" where not given.
        numbers: echo time and flip angle, NaN where not given.
        plane: gives size and pixel spacing.
    """

    words: tuple[str, ...]
    numbers: tuple[float, float]
    plane: Plane

    @classmethod
    def of(cls, words: tuple[str, ...], images: Sequence[DicomImage]) -> _Contrast:
        numbers = np.array([image.contrast[:2] for image in images])
        echo, flip = (float(np.median(column)) for column in numbers.T)
        return cls(words, (echo, flip), images[0].plane)

    def fits(self, other: _Contrast) -> bool:
        *words, subject = self.words
        *others, other_subject = other.words
        return (
            subject == other_subject
            and all(_is_same_word(a, b) for a, b in zip(words, others, strict=True))
            and all(_is_near(a, b) for a, b in zip(self.numbers, other.numbers, strict=True))
            and geometry.is_same_grid(self.plane, other.plane)
        )


def _is_same_word(first: str, second: str) -> bool:
    return first == second or not first or not second


def _is_near(first: float, second: float) -> bool:
    """Whether two positive numbers are nearly the same; one that is not given fits any."""
    if not (first > 0 and second > 0):
        return True
    return max(first, second) <= CONTRAST_RATIO * min(first, second)


def subject_of(description: str) -> str:
    """What contrast a description names, if it is not a cine's; "" where it names none.

    Example:
        >>> subject_of("SAX tagging"), subject_of("cine_trufi_retro")
        ('tagging', '')
    """
    text = description.lower().replace("_", " ")
    return next((name for name, words in SUBJECTS.items() if re.search(words, text)), "")


# --- By direction -----------------------------------------------------------------------------------------------------


def _parallel(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Images grouped so that planes within the tolerance of each other are together, whatever their order."""
    groups: list[list[DicomImage]] = []
    for members in alike(images, lambda image: tuple(np.round(image.plane.normal, 4))).values():
        near = [group for group in groups if any(_is_parallel(image, members[0]) for image in group)]
        groups = [group for group in groups if group not in near]
        groups.append([image for group in near for image in group] + members)
    return groups


def _is_parallel(first: DicomImage, second: DicomImage) -> bool:
    return geometry.tilt_degrees(first.plane, second.plane) <= geometry.PARALLEL_TOLERANCE_DEGREES


# --- By motion --------------------------------------------------------------------------------------------------------


def _by_motion(images: Sequence[DicomImage]) -> list[Group]:
    """Parallel images of one contrast: a group for each kind of motion and number of frames."""
    parts: dict[tuple[MotionKind, int], list[Take]] = {}
    for position in at_positions(images, lambda image: image.plane):
        for take in _takes(position):
            count = len(take.images) if take.motion in ("cine", "phases", "unclear") else 0
            parts.setdefault((take.motion, count), []).append(take)
    subject = subject_of(images[0].description)
    groups = {key: Group(tuple(takes), key[0], subject) for key, takes in parts.items()}
    for key in [key for key in groups if key[0] == "unclear"]:
        # A slice of a cine without times is one of its slices all the same, where the cine has no other.
        cine = groups.get(("cine", key[1]))
        if cine is not None and not _is_on(groups[key], cine):
            groups["cine", key[1]] = replace(cine, takes=(*cine.takes, *groups.pop(key).takes))
    return list(groups.values())


def _is_on(group: Group, other: Group) -> bool:
    """Whether a group has a position of another one, to which it is parallel."""
    found, known = (part.positions_mm(other.plane.normal) for part in (group, other))
    return bool((np.abs(known[:, None] - found) < geometry.SAME_POSITION_MM).any())


def _takes(position: Sequence[DicomImage]) -> list[Take]:
    """The images of one place, one take for each time they were taken: told apart by series, number, or image type."""
    keys: tuple[Callable[[DicomImage], Hashable], ...] = (
        lambda image: image.series,
        lambda image: np.nan_to_num(image.acquisition),
        lambda image: image.image_type,
    )
    for key in keys:
        parts = [*alike(position, key).values()]
        if len(parts) > 1 and _are_repeats(position, parts):
            return [take for part in parts for take in _takes(part)]
    return [Take(tuple(part), motion_of(part)) for part in _copies(position)]


def _copies(position: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """The images of one place, told apart by no header, as several acquisitions where every time is there as often."""
    times = phase_times_ms(position)
    if times is None:
        is_pair = len(position) == 2 and phase_times_ms(position[:1]) is not None
        return [[image] for image in position] if is_pair else [list(position)]
    alike = [[image for image, own in zip(position, times, strict=True) if own == time] for time in np.unique(times)]
    counts = {len(images) for images in alike}
    return [list(images) for images in zip(*alike, strict=True)] if len(counts) == 1 else [list(position)]


def _are_repeats(position: Sequence[DicomImage], parts: Sequence[Sequence[DicomImage]]) -> bool:
    """Whether images of one place, in parts, are several acquisitions and not one that is spread over the parts.

    Parts that have as many images each without times, or that lie between each other's times, show the same phases.
    """
    times = phase_times_ms(position)
    if times is None:
        times_of_parts = [phase_times_ms(part) for part in parts]
        if any(found is not None for found in times_of_parts):
            return True
        return min(map(len, parts)) > 1 or len(position) == 2
    within = [phase_times_ms(part) for part in parts] if min(map(len, parts)) > 1 else []
    usual = [float(np.median(np.diff(np.sort(found)))) for found in within if found is not None]
    return bool(np.diff(np.sort(times)).min() < 0.45 * min(usual, default=2 * MIN_PHASES_MS))


# --- Acquisitions between each other's slices -------------------------------------------------------------------------


def _untangled(group: Group) -> list[Group]:
    """The group itself, or its parts by description or series where these make even stacks and the whole does not."""
    if len(group.places) < 3 or not group.findings():
        return [group]
    for key in (lambda take: take.images[0].description, lambda take: take.series):
        split = [replace(group, takes=tuple(takes)) for takes in alike(group.takes, key).values()]
        if len(split) > 1 and any(len(part.places) > 2 and not part.findings() for part in split):
            return split
    return [group]
