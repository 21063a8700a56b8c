"""A DICOM folder: its images sorted into the short-axis stack and the long-axis views.

Images are told apart by what their headers say about space and time, never by file, series or description: a stack may
be spread over one series per slice or per phase, or lie in one series, or in one multi-frame file. The short axis is
the group of parallel planes with the most distinct positions, cines before still images, and of several cine stacks the
one that the long-axis views cut at a right angle; the views are the images of the same kind in other planes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calid import geometry
from calid.errors import InputError
from calid.images.assembly import count_findings, phase_findings, plane_findings
from calid.images.checks import raise_first
from calid.images.dicom import DicomImage, read_images, read_pixels
from calid.images.groups import MAX_VIEW_POSITIONS, Group, groups_of, positions_of
from calid.images.vetting import colour_fault, narrowed, real_values
from calid.stack import LaxImage, Stack

MIN_LEAD_DEGREES = 10.0
"""By so much nearer to a right angle must the long-axis views cut the short axis than any other stack."""

NEAR_GAPS = 0.3
"""Slices nearer to one of the short axis than this share of its gaps are another acquisition, and not its own."""


@dataclass(frozen=True)
class Study:
    """What a DICOM folder holds of the heart.

    Args:
        sax: the short-axis stack.
        lax: the long-axis views, in the order of their series.
        left_out: one sentence for each group of images that is neither; also in the short axis' provenance.
    """

    sax: Stack
    lax: tuple[LaxImage, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Images told apart: the short axis, the groups that hold long-axis views, and a sentence on each group left."""

    sax: Group
    views: tuple[Group, ...]
    left_out: tuple[str, ...]

    def stack(self) -> Stack:
        """The short axis, with a note of the series it was chosen from, where there was anything to choose from."""
        chosen = {"series": self.sax.description, "left_out": list(self.left_out)} if self.left_out else {}
        return _stack(self.sax.images).noted(**chosen)


def read_study(folder: Path) -> Study:
    """The short-axis stack and the long-axis views in a folder and its subfolders.

    Raises:
        InputError: there are no images, one is damaged, or the slices of a stack or view do not fit together.
    """
    found = _told_apart(_images_in(folder))
    return Study(found.stack(), _views(found.views), found.left_out)


def read_sax(folder: Path) -> Stack:
    """The short-axis stack alone; the pixels of other images are not looked at.

    Raises:
        InputError: as for `read_study`.
    """
    return _told_apart(_images_in(folder)).stack()


def read_file(path: Path) -> Stack:
    """The stack in one DICOM file: an enhanced multi-frame one, or else a single slice.

    Raises:
        InputError: as for `read_study`.
    """
    return _told_apart(_need_images(read_images(path, path.name), path)).stack()


def read_lax(folder: Path) -> tuple[LaxImage, ...]:
    """The long-axis views in a folder and its subfolders; a short-axis stack may lie beside them or be missing.

    Raises:
        InputError: there are no images of long-axis views, or one is damaged.
    """
    images = _images_in(folder)
    found = _told_apart(images)
    if len(found.sax.positions) > MAX_VIEW_POSITIONS:
        views = _views(found.views)
    else:
        views = _views(group for group in groups_of(images) if not _why_no_view(group, found.sax))
    if not views:
        remedy = "Choose the folder that holds the 2-, 3- or 4-chamber images."
        raise InputError("no-long-axis", f"{folder} holds no long-axis images.", remedy)
    return views


# --- Telling images apart ---------------------------------------------------------------------------------------------


def _images_in(folder: Path) -> list[DicomImage]:
    """The headers of all images below a folder; files that are not DICOM are passed over."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [image for path in paths for image in read_images(path, path.relative_to(folder).as_posix())]
    return _need_images(images, folder)


def _need_images(images: list[DicomImage], source: Path) -> list[DicomImage]:
    """The images, if there are any, each once, and all of one patient."""
    if not images:
        remedy = "Choose the folder with the DICOM images, or give a volume file itself."
        raise InputError("no-images", f"{source} holds no DICOM image with a place in space.", remedy)
    patients = len({image.patient for image in images})
    if patients > 1:
        remedy = "Keep each patient in a folder of its own."
        raise InputError("mixed-patients", f"{source} holds images of {patients} patients.", remedy)
    seen: dict[tuple[str, int], str] = {}
    for image in images:
        first = seen.setdefault((image.uid, image.index), image.name)
        if first != image.name:
            remedy = "Remove one of the two files from the folder."
            raise InputError("duplicate-images", f"{first} and {image.name} are the same image.", remedy)
    return images


def _told_apart(images: Sequence[DicomImage]) -> _Sorted:
    """The short axis with its flawed slices, if it has any, and what the other images are."""
    groups = groups_of(images)
    first = _short_axis(groups)
    others = [group for group in groups if group is not first]
    flawed = [group for group in others if _is_flawed_part(group, first)]
    sax = replace(first, images=(*first.images, *(image for group in flawed for image in group.images)))
    views: list[Group] = []
    left: Counter[tuple[str, str]] = Counter()
    for group in (group for group in others if group not in flawed):
        reason = _why_no_view(group, sax)
        if not reason and group.is_beside(sax):
            reason = "another acquisition of the short axis"
        if reason:
            left[group.description, reason] += len(group.images)
        else:
            views.append(group)
    sentences = (f"{count} images of {description}: {reason}." for (description, reason), count in left.items())
    return _Sorted(sax, tuple(views), tuple(sentences))


def _short_axis(groups: Sequence[Group]) -> Group:
    """What looks most like the short axis.

    Raises:
        InputError: there are cine stacks in several directions, and no long-axis views that tell which one it is.
    """
    stacks = [group for group in groups if group.is_stack]
    if not stacks:
        return max(groups, key=_rank)
    others = [group for group in groups if not any(group.is_beside(stack) for stack in stacks)]
    misses = [_miss_of_right_angle(stack, others) for stack in stacks]
    best = stacks[int(np.argmin(misses))]
    rivals = [miss for stack, miss in zip(stacks, misses, strict=True) if not stack.is_beside(best)]
    if rivals and min(rivals) - min(misses) < MIN_LEAD_DEGREES:
        named = ", ".join(f"{len(stack.images)} images of {stack.description}" for stack in stacks)
        message = f"There are cine stacks in different directions, and no long-axis views tell the short axis: {named}."
        remedy = "Keep the short axis alone in the folder, or add the long-axis views."
        raise InputError("several-stacks", message, remedy)
    return max((stack for stack in stacks if stack.is_beside(best)), key=_rank)


def _miss_of_right_angle(stack: Group, others: Sequence[Group]) -> float:
    """By how many degrees the long-axis views miss a right angle with a stack on average; 90 without any."""
    angles = [view.tilt_degrees(stack) for view in others if not _why_no_view(view, stack)]
    return 90.0 - float(np.mean(angles)) if angles else 90.0


def _rank(group: Group) -> tuple:
    """How much a group looks like the short axis: a cine stack, many positions, many images."""
    return group.is_stack, len(group.positions), len(group.images)


def _is_flawed_part(group: Group, sax: Group) -> bool:
    """Whether images are slices of the short axis that do not fit in: crooked, of another size, with frames missing.

    Slices that lie between those of the short axis, or on them, are another acquisition instead.
    """
    if not group.is_same_kind(sax) or not group.is_beside(sax):
        return False
    known, found = (
        geometry.positions_along(sax.plane.normal, [position[0].plane for position in part.positions])
        for part in (sax, group)
    )
    gaps = np.diff(np.sort(known))
    near_mm = NEAR_GAPS * geometry.typical_gap(gaps) if len(gaps) else geometry.SAME_POSITION_MM
    return bool((np.abs(known[:, None] - found) >= near_mm).all())


# --- Putting images together ------------------------------------------------------------------------------------------


def _stack(images: Sequence[DicomImage]) -> Stack:
    """Images of parallel planes as one stack, sorted along the normal and by time.

    Raises:
        InputError: the planes or phases do not fit together, or pixels cannot be decoded.
    """
    positions = positions_of(images)
    names = [position[0].name for position in positions]
    planes = [position[0].plane for position in positions]
    raise_first(plane_findings(planes, names))
    _need_one_place(images, positions)
    raise_first(count_findings(list(map(len, positions)), names))
    phases, times_ms, guess = _in_time(positions)
    raise_first(phase_findings(times_ms, names, list(map(_beat_ms, positions))))
    thickness = images[0].thickness_mm if images[0].thickness_mm > 0 else 1.0
    stack = Stack(
        voxels=_voxels(phases),
        affine=geometry.affine_of(planes, thickness),
        frame_times_ms=np.mean(times_ms, axis=0),
        beat_ms=images[0].interval_ms if len(phases[0]) > 1 and images[0].interval_ms > 0 else None,
        times_guess=guess,
    )
    return stack.noted(**_facts(images[0], stack))


def _need_one_place(images: Sequence[DicomImage], positions: Sequence[Sequence[DicomImage]]) -> None:
    """Return if all images can be compared in space, and those of one slice show the same pixels."""
    if len({image.reference for image in images}) > 1:
        remedy = "Use images of one examination without repositioning the patient."
        raise InputError("mixed-references", "The slices refer to different origins (frames of reference).", remedy)
    for position in positions:
        for image in position:
            if image.is_colour:
                raise colour_fault(image.name)
            if not geometry.is_same_position(image.plane, position[0].plane):
                message = f"{image.name} does not show the same pixels as {position[0].name} of the same slice."
                remedy = "Keep the images of one acquisition, or resample them to one grid first."
                raise InputError("moved-frames", message, remedy)


def _in_time(
    positions: Sequence[Sequence[DicomImage]],
) -> tuple[list[list[DicomImage]], list[np.ndarray], dict[str, str]]:
    """The images of each position sorted by time, their times in ms, and what must be noted about these.

    Raises:
        InputError: neither times nor numbers say in which order the images were taken.
    """
    if all(map(_has_times, positions)):
        phases = [sorted(position, key=lambda image: image.time_ms) for position in positions]
        return phases, [np.array([image.time_ms for image in phase]) for phase in phases], ""
    phases = _numbered(positions)
    if max(map(len, phases)) == 1:
        return phases, [np.zeros(1)] * len(phases), ""
    intervals = [image.interval_ms for phase in phases for image in phase if image.interval_ms > 0]
    steps = [np.median(intervals) / len(phase) if intervals else 1.0 for phase in phases]
    note = "from the heart beat's length" if intervals else "frame numbers"
    times = [np.arange(len(phase)) * step for phase, step in zip(phases, steps, strict=True)]
    return phases, times, note


def _numbered(positions: Sequence[Sequence[DicomImage]]) -> list[list[DicomImage]]:
    """The images of each position, sorted by the first kind of number that tells all of them apart.

    Raises:
        InputError: there is none.
    """
    for numbers in range(len(positions[0][0].orders)):
        orders = [np.array([image.orders[numbers] for image in position]) for position in positions]
        unclear = [index for index, order in enumerate(orders) if not (np.diff(np.sort(order)) > 0).all()]
        if not unclear:
            return [
                [position[index] for index in np.argsort(order)]
                for position, order in zip(positions, orders, strict=True)
            ]
    message = (
        f"{positions[unclear[0]][0].name} and the other images of this slice have neither trigger times nor numbers."
    )
    raise InputError("unordered-frames", message, "Export the images with their trigger times.")


def _beat_ms(position: Sequence[DicomImage]) -> float:
    """The length of the heart beat while the images of one slice were taken; NaN where no header notes it."""
    noted = [image.interval_ms for image in position if image.interval_ms > 0]
    return float(np.median(noted)) if noted else np.nan


def _has_times(position: Sequence[DicomImage]) -> bool:
    """Whether all images have a time; some exports give the same one to all, which says nothing."""
    times = {image.time_ms for image in position}
    return bool(np.isfinite(list(times)).all()) and (len(position) == 1 or len(times) > 1)


def _voxels(phases: Sequence[Sequence[DicomImage]]) -> np.ndarray:
    """(T, Z, Y, X) real values in the narrowest type that holds them exactly, int16 where it can."""
    files = {image.path: image.name for phase in phases for image in phase}
    stored = {path: read_pixels(path, name) for path, name in files.items()}

    def real(image: DicomImage) -> np.ndarray:
        return real_values(stored[image.path][image.index], *image.scale)

    return narrowed(np.stack([[real(image) for image in phase] for phase in phases], axis=1))


def _facts(image: DicomImage, stack: Stack) -> dict[str, Any]:
    """What is worth knowing of the acquisition and says nothing of the person."""
    numbers = {
        "field_strength_t": image.field_strength_t,
        "slice_thickness_mm": image.thickness_mm,
        "slice_spacing_mm": round(float(stack.spacing_mm[2]), 3) if stack.num_slices > 1 else np.nan,
    }
    known = {key: value for key, value in numbers.items() if np.isfinite(value)}
    return {"source": "DICOM", "modality": image.kind[0], **known}


# --- Long-axis views --------------------------------------------------------------------------------------------------


def _views(groups: Iterable[Group]) -> tuple[LaxImage, ...]:
    """The long-axis views in groups of images that hold nothing else."""
    views: list[LaxImage] = []
    for images in (part for group in groups for position in group.positions for part in _acquisitions(position)):
        views.append(LaxImage(_new_name(images[0], [view.name for view in views]), _stack(images)))
    return tuple(views)


def _why_no_view(group: Group, sax: Group) -> str:
    """In words; empty if the group holds long-axis views."""
    if not group.is_same_kind(sax):
        return "another kind of image than the short axis"
    if len(group.positions) > MAX_VIEW_POSITIONS:
        return "another stack of parallel planes"
    if {image.reference for image in group.images} != {image.reference for image in sax.images}:
        return "not in the same frame of reference as the short axis"
    return ""


def _acquisitions(position: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """The images of one plane; series by series where the plane was acquired more than once."""
    _, times_ms, _ = _in_time([position])
    if not phase_findings(times_ms, [position[0].name]):
        return [list(position)]
    series = sorted({image.series for image in position})
    return [[image for image in position if image.series == one] for one in series]


def _new_name(image: DicomImage, taken: Sequence[str]) -> str:
    """The series description, numbered where it is taken."""
    name = image.description or "long axis"
    candidates = (name if number == 1 else f"{name} ({number})" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
