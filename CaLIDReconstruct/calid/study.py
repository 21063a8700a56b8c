"""A DICOM folder: its images sorted into the short-axis stack and the long-axis views.

Images are told apart by what their headers say about space and time, never by file, series or description: a stack may
be spread over one series per slice or per phase, or lie in one series, or in one multi-frame file. The short axis is
the group of parallel planes with the most distinct positions, cines before still images; the long-axis views are the
images of the same kind in other planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calid import geometry
from calid.assembly import count_findings, phase_findings, plane_findings
from calid.checks import raise_first
from calid.cycle import BEAT_KEY
from calid.errors import InputError
from calid.formats.dicom import DicomImage, read_images, read_pixels
from calid.formats.header import colour_fault, narrowed, real_values
from calid.geometry import Plane
from calid.stack import Stack

STRAY_DEGREES = 20.0
"""An image tilted against the short axis by less than this is a crooked short-axis slice and not a long-axis view."""

MAX_VIEW_POSITIONS = 3
"""More parallel planes than this are a stack and not a long-axis view."""

MIN_CINE_IMAGES = 3
"""So many images at one place are a cine; two may be end-diastole and end-systole, or one image exported twice."""


@dataclass(frozen=True)
class LaxImage:
    """A long-axis view.

    Args:
        name: the series description or file name; several of one name are numbered.
        stack: one slice, whose thickness is the length of the affine's third column.
    """

    name: str
    stack: Stack


@dataclass(frozen=True)
class Study:
    """What a DICOM folder holds of the heart.

    Args:
        sax: the short-axis stack.
        lax: the long-axis views, in the order of their series.
        left_out: one sentence for each group of images that is neither.
    """

    sax: Stack
    lax: tuple[LaxImage, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Group:
    """Images of one kind in parallel planes; `is_cine` tells moving from still ones."""

    kind: tuple[str, ...]
    is_cine: bool
    images: tuple[DicomImage, ...]

    @property
    def plane(self) -> Plane:
        return self.images[0].plane


def read_study(folder: Path) -> Study:
    """The short-axis stack and the long-axis views in a folder and its subfolders.

    Raises:
        InputError: there are no images, one is damaged, or the slices of a stack or view do not fit together.
    """
    sax, others = _sax_and_others(_images_in(folder))
    lax, left_out = _views(others, sax)
    return Study(_stack(sax.images), lax, left_out)


def read_sax(folder: Path) -> Stack:
    """The short-axis stack alone; the pixels of other images are not looked at.

    Raises:
        InputError: as for `read_study`.
    """
    return _stack(_sax_and_others(_images_in(folder))[0].images)


def read_file(path: Path) -> Stack:
    """The stack in one DICOM file: an enhanced multi-frame one, or else a single slice.

    Raises:
        InputError: as for `read_study`.
    """
    return _stack(_sax_and_others(_need_images(read_images(path, path.name), path))[0].images)


def read_lax(folder: Path) -> tuple[LaxImage, ...]:
    """The long-axis views in a folder and its subfolders; a short-axis stack may lie beside them or be missing.

    Raises:
        InputError: there are no images of long-axis views, or one is damaged.
    """
    images = _images_in(folder)
    sax, others = _sax_and_others(images)
    has_stack = len(_positions(sax.images)) > MAX_VIEW_POSITIONS
    views, _ = _views(others if has_stack else _groups(images), sax)
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


def _sax_and_others(images: Sequence[DicomImage]) -> tuple[_Group, list[_Group]]:
    """The short axis with its crooked slices, if it has any, and the groups that are left."""
    first, *others = _groups(images)
    strays = [group for group in others if _is_same_kind(group, first) and _tilt(group, first) < STRAY_DEGREES]
    sax = replace(first, images=(*first.images, *(image for group in strays for image in group.images)))
    return sax, [group for group in others if group not in strays]


def _groups(images: Sequence[DicomImage]) -> list[_Group]:
    """What looks most like the short axis first, then the other groups in the order of their series."""
    kinds: dict[tuple, list[DicomImage]] = {}
    for image in images:
        kinds.setdefault(image.kind, []).append(image)
    parts = [(kind, part) for kind, members in kinds.items() for part in _parallel(members)]
    groups = [group for kind, part in parts for group in _by_motion(kind, part)]
    first = max(groups, key=_rank)
    others = [group for group in groups if group is not first]
    return [first, *sorted(others, key=lambda group: min((image.series, image.name) for image in group.images))]


def _by_motion(kind: tuple[str, ...], images: Sequence[DicomImage]) -> list[_Group]:
    """Parallel images of one kind, the moving ones apart from the still ones."""
    moving: list[DicomImage] = []
    still: list[DicomImage] = []
    for position in _positions(images):
        is_cine = len(position) >= MIN_CINE_IMAGES or any(image.num_phases > 1 for image in position)
        (moving if is_cine else still).extend(position)
    return [_Group(kind, part is moving, tuple(part)) for part in (moving, still) if part]


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


def _tilt(first: _Group, second: _Group) -> float:
    return geometry.tilt_degrees(first.plane, second.plane)


def _is_same_kind(first: _Group, second: _Group) -> bool:
    return first.kind == second.kind and first.is_cine == second.is_cine


def _rank(group: _Group) -> tuple:
    """How much a group looks like the short axis: a cine stack, many positions, many images."""
    positions = len(_positions(group.images))
    return group.is_cine and positions > MAX_VIEW_POSITIONS, positions, len(group.images)


def _positions(images: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Images sorted along the normal, those at one position together."""
    along = geometry.positions_along(images[0].plane.normal, [image.plane for image in images])
    order = np.argsort(along, kind="stable")
    starts = np.flatnonzero(np.diff(along[order]) >= geometry.SAME_POSITION_MM) + 1
    return [[images[index] for index in part] for part in np.split(order, starts)]


# --- Putting images together ------------------------------------------------------------------------------------------


def _stack(images: Sequence[DicomImage]) -> Stack:
    """Images of parallel planes as one stack, sorted along the normal and by time.

    Raises:
        InputError: the planes or phases do not fit together, or pixels cannot be decoded.
    """
    positions = _positions(images)
    names = [position[0].name for position in positions]
    planes = [position[0].plane for position in positions]
    raise_first(plane_findings(planes, names))
    _need_one_place(images, positions)
    raise_first(count_findings(list(map(len, positions)), names))
    phases, times_ms, note = _in_time(positions)
    raise_first(phase_findings(times_ms, names))
    thickness = images[0].thickness_mm if images[0].thickness_mm > 0 else 1.0
    stack = Stack(
        voxels=_voxels(phases),
        affine=geometry.affine_of(planes, thickness),
        frame_times_ms=np.mean(times_ms, axis=0),
    )
    return stack.noted(**_facts(images[0], stack), **note)


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
        return phases, [np.array([image.time_ms for image in phase]) for phase in phases], {}
    phases = [sorted(position, key=lambda image: image.order) for position in positions]
    for phase in phases:
        orders = np.array([image.order for image in phase])
        if len(phase) > 1 and not (np.diff(orders) > 0).all():
            message = f"{phase[0].name} and the other images of this slice have neither trigger times nor numbers."
            raise InputError("unordered-frames", message, "Export the images with their trigger times.")
    if max(map(len, phases)) == 1:
        return phases, [np.zeros(1)] * len(phases), {}
    intervals = [image.interval_ms for phase in phases for image in phase if image.interval_ms > 0]
    steps = [np.median(intervals) / len(phase) if intervals else 1.0 for phase in phases]
    note = "from the heart beat's length" if intervals else "frame numbers"
    times = [np.arange(len(phase)) * step for phase, step in zip(phases, steps, strict=True)]
    return phases, times, {"frame_times": note}


def _has_times(position: Sequence[DicomImage]) -> bool:
    """Whether all images have a time; some exports give the same one to all, which says nothing."""
    times = {image.time_ms for image in position}
    return bool(np.isfinite(list(times)).all()) and (len(position) == 1 or len(times) > 1)


def _voxels(phases: Sequence[Sequence[DicomImage]]) -> np.ndarray:
    """(T, Z, Y, X) real values in the narrowest type that holds them exactly, int16 where it can."""
    files = {image.path: image.name for phase in phases for image in phase}
    stored = {path: read_pixels(path, name) for path, name in files.items()}

    def real(image: DicomImage) -> np.ndarray:
        pixels, is_scaled = stored[image.path]
        return pixels[image.index] if is_scaled else real_values(pixels[image.index], *image.scale)

    return narrowed(np.stack([[real(image) for image in phase] for phase in phases], axis=1))


def _facts(image: DicomImage, stack: Stack) -> dict[str, Any]:
    """What is worth knowing of the acquisition and says nothing of the person."""
    numbers = {
        "field_strength_t": image.field_strength_t,
        "slice_thickness_mm": image.thickness_mm,
        "slice_spacing_mm": round(float(stack.spacing_mm[2]), 3) if stack.num_slices > 1 else np.nan,
        BEAT_KEY: image.interval_ms if stack.num_frames > 1 and image.interval_ms > 0 else np.nan,
    }
    known = {key: value for key, value in numbers.items() if np.isfinite(value)}
    return {"source": "DICOM", "modality": image.kind[0], **known}


# --- Long-axis views --------------------------------------------------------------------------------------------------


def _views(groups: Iterable[_Group], sax: _Group) -> tuple[tuple[LaxImage, ...], tuple[str, ...]]:
    """The long-axis views among groups of images, and why each other group is none."""
    views: list[LaxImage] = []
    left_out: list[str] = []
    for group in groups:
        reason = _why_no_view(group, sax)
        if reason:
            description = group.images[0].description or "a series without description"
            left_out.append(f"{len(group.images)} images of {description}: {reason}.")
            continue
        for images in (part for position in _positions(group.images) for part in _acquisitions(position)):
            views.append(LaxImage(_new_name(images[0], [view.name for view in views]), _stack(images)))
    return tuple(views), tuple(left_out)


def _why_no_view(group: _Group, sax: _Group) -> str:
    """In words; empty if the group holds long-axis views."""
    if not _is_same_kind(group, sax):
        return "another kind of image than the short axis"
    if len(_positions(group.images)) > MAX_VIEW_POSITIONS:
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
