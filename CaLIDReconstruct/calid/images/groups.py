"""Images that belong together: of one acquisition, in parallel planes, moving or still.

What their headers say about space and time groups them, never a file or a description; series only tell apart cines
of different numbers of frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calid import geometry
from calid.geometry import Plane
from calid.images.dicom import DicomImage

STRAY_DEGREES = 20.0
"""An image tilted against the short axis by less than this is a crooked short-axis slice and not a long-axis view."""

MAX_VIEW_POSITIONS = 3
"""More parallel planes than this are a stack and not a long-axis view."""

MIN_CINE_IMAGES = 3
"""So many images at one place are a cine; two may be end-diastole and end-systole, or one image exported twice."""


@dataclass(frozen=True, eq=False)
class Group:
    """Images of one acquisition in parallel planes.

    Args:
        kind: modality, magnitude or phase or other, scanning sequence.
        is_cine: whether they show the heart moving.
        images: in any order.
    """

    kind: tuple[str, ...]
    is_cine: bool
    images: tuple[DicomImage, ...]

    @property
    def plane(self) -> Plane:
        """Of one of the images; the others are parallel to it."""
        return self.images[0].plane

    @cached_property
    def positions(self) -> list[list[DicomImage]]:
        """The images sorted along the normal, those at one position together."""
        return positions_of(self.images)

    @property
    def is_stack(self) -> bool:
        """Whether these are too many slices of a cine to be a long-axis view."""
        return self.is_cine and len(self.positions) > MAX_VIEW_POSITIONS

    @property
    def description(self) -> str:
        """What people call it."""
        return self.images[0].description or "a series without description"

    def tilt_degrees(self, other: Group) -> float:
        """The angle between the planes of two groups."""
        return geometry.tilt_degrees(self.plane, other.plane)

    def is_beside(self, other: Group) -> bool:
        """Whether two groups are parallel but for what a crooked slice may be tilted."""
        return self.tilt_degrees(other) < STRAY_DEGREES

    def is_same_kind(self, other: Group) -> bool:
        """Whether two groups show the same by the same means, in whatever planes."""
        return self.kind == other.kind and self.is_cine == other.is_cine


def groups_of(images: Sequence[DicomImage]) -> list[Group]:
    """Images of one acquisition in parallel planes, in the order of their series."""
    alike: dict[tuple, list[DicomImage]] = {}
    for image in images:
        alike.setdefault((image.kind, image.plane.size, *np.round(image.plane.spacing_mm, 3)), []).append(image)
    groups = [group for members in alike.values() for part in _parallel(members) for group in _by_motion(part)]
    return sorted(groups, key=lambda group: min((image.series, image.name) for image in group.images))


def _by_motion(images: Sequence[DicomImage]) -> list[Group]:
    """Parallel images of one kind, the moving ones apart from the still ones and those of another number of frames."""
    moving: list[DicomImage] = []
    still: list[DicomImage] = []
    for position in positions_of(images):
        is_cine = len(position) >= MIN_CINE_IMAGES or any(image.num_phases > 1 for image in position)
        (moving if is_cine else still).extend(position)
    parts = [*((part, True) for part in _by_frames(moving)), (still, False)]
    return [Group(part[0].kind, is_cine, tuple(part)) for part, is_cine in parts if part]


def _by_frames(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Moving images in parallel planes, those of series with another number of frames apart.

    Only where every series holds whole cines: elsewhere the number of its images says nothing.
    """
    if not images:
        return []
    counts: dict[tuple, set[int]] = {}
    for position in positions_of(images):
        for series, count in Counter(image.series for image in position).items():
            counts.setdefault(series, set()).add(count)
    if any(len(found) > 1 or min(found) < MIN_CINE_IMAGES for found in counts.values()):
        return [list(images)]
    parts: dict[int, list[DicomImage]] = {}
    for image in images:
        parts.setdefault(min(counts[image.series]), []).append(image)
    return list(parts.values())


def _parallel(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Images grouped so that planes within the tolerance of each other are together, whatever their order."""
    groups: list[list[DicomImage]] = []
    by_normal: dict[tuple, list[DicomImage]] = {}
    for image in images:
        by_normal.setdefault(tuple(np.round(image.plane.normal, 4)), []).append(image)
    for members in by_normal.values():
        near = [group for group in groups if any(_is_parallel(image, members[0]) for image in group)]
        groups = [group for group in groups if group not in near]
        groups.append([image for group in near for image in group] + members)
    return groups


def _is_parallel(first: DicomImage, second: DicomImage) -> bool:
    return geometry.tilt_degrees(first.plane, second.plane) <= geometry.PARALLEL_TOLERANCE_DEGREES


def positions_of(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Images sorted along the normal, those at one position together."""
    along = geometry.positions_along(images[0].plane.normal, [image.plane for image in images])
    order = np.argsort(along, kind="stable")
    starts = np.flatnonzero(np.diff(along[order]) >= geometry.SAME_POSITION_MM) + 1
    return [[images[index] for index in part] for part in np.split(order, starts)]
