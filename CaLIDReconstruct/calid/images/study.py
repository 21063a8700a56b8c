"""A DICOM folder: its images, found, told apart, and put together as the short-axis stack and the long-axis views.

The story runs from top to bottom: every image below the folder is found (`folder.py`), those that belong together are
grouped (`groups.py`), one group is chosen as the short axis (`choice.py`), its slices and phases are put in order
(`assembly.py`, `times.py`), and whatever is not used is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calid import geometry
from calid.errors import InputError
from calid.images.assembly import count_findings, phase_findings, plane_findings
from calid.images.checks import raise_first
from calid.images.choice import RIGHT_ANGLE_DEGREES, miss_of_right_angle, views_of
from calid.images.dicom import DicomImage, read_images
from calid.images.folder import look, overview_of
from calid.images.groups import MAX_VIEW_POSITIONS, Group, Take
from calid.images.overview import CHOICE_KEY, LEFT_OUT_KEY, Overview
from calid.images.pixels import read_pixels
from calid.images.times import MIN_CINE_STEP_MS, in_time, phase_times_ms
from calid.images.vetting import color_fault
from calid.images.voxels import narrowed, real_values
from calid.stack import LaxImage, Stack

NEAR_GAPS = 0.3
"""Slices nearer to one of the short axis than this share of its gaps are another acquisition, and not its own."""


@dataclass(frozen=True)
class Study:
    """What a DICOM folder holds of the heart.

    Args:
        sax: the short-axis stack.
        lax: the long-axis views, in the order of their series.
        left_out: one sentence for each group of images that is neither; also in the short axis' provenance.
        overview: what each series is taken for.
    """

    sax: Stack
    lax: tuple[LaxImage, ...]
    left_out: tuple[str, ...]
    overview: Overview


def read_study(folder: Path, series: str | None = None) -> Study:
    """The short-axis stack and the long-axis views in a folder and its subfolders.

    Args:
        folder, series: as for `look`.

    Raises:
        InputError: as for `look`; or no one can tell the short axis, or its slices do not fit together.
        SettingsError: "unknown-series".
    """
    overview = look(folder, series)
    sax = _short_axis(overview, is_asked=series is not None)
    views, notes = _views(overview.choice.views)
    return Study(sax.noted(**_left_out(overview, notes)), views, (*overview.left_out, *notes), overview)


def read_sax(folder: Path, series: str | None = None) -> Stack:
    """The short-axis stack alone; the pixels of other images are not looked at.

    Args:
        folder, series: as for `look`.

    Raises:
        InputError, SettingsError: as for `read_study`.
    """
    overview = look(folder, series)
    return _short_axis(overview, is_asked=series is not None).noted(**_left_out(overview))


def read_file(path: Path) -> Stack:
    """The stack in one DICOM file: an enhanced multi-frame one, or else a single slice.

    Raises:
        InputError: as for `read_study`.
    """
    overview = overview_of(read_images(path, path.name), [], path, None)
    return _short_axis(overview).noted(**_left_out(overview))


def read_lax(folder: Path) -> tuple[LaxImage, ...]:
    """The long-axis views in a folder and its subfolders; a short-axis stack may lie beside them or be missing.

    Raises:
        InputError: there are no images of long-axis views, or one is damaged.
    """
    choice = look(folder).choice
    groups = [verdict.group for verdict in choice.verdicts]
    if choice.doubt is None and _is_short_axis(choice.sax, groups):
        found = choice.views
    else:
        planes = [group for group in groups if len(group.places) <= MAX_VIEW_POSITIONS]
        first = max(planes, key=lambda group: (group.motion == "cine", len(group.images)), default=None)
        found = [group for group in planes if first is not None and group.is_alike(first)]
    views, _ = _views(found)
    if not views:
        remedy = "Choose the folder that holds the 2-, 3- or 4-chamber images."
        raise InputError("no-long-axis", f"{folder} holds no long-axis images.", remedy)
    return views


def _is_short_axis(group: Group, groups: Sequence[Group]) -> bool:
    """Whether a chosen group is a short axis, and not itself one of a few long-axis views."""
    is_cut = len(views_of(group, groups)) > 1 and miss_of_right_angle(group, groups) < RIGHT_ANGLE_DEGREES
    return len(group.places) > MAX_VIEW_POSITIONS or (len(group.places) > 1 and is_cut)


def _left_out(overview: Overview, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What a stack's provenance says of the choice: always which it was, and what it was chosen from if anything."""
    left_out = [*overview.left_out, *notes]
    chosen = {"series": overview.choice.sax.images[0].description, LEFT_OUT_KEY: left_out} if left_out else {}
    return {CHOICE_KEY: overview.sentence(), **chosen}


# --- The short axis ---------------------------------------------------------------------------------------------------


def _short_axis(overview: Overview, *, is_asked: bool = False) -> Stack:
    """The chosen group as a stack.

    Args:
        overview: what the study holds.
        is_asked: whether the user named a series of it; what could continue it is then left out.

    Raises:
        InputError: no one can tell the short axis, a slice of it is lost or crooked, or its slices do not fit together.
    """
    sax = overview.choice.sax
    others = [verdict.group for verdict in overview.choice.left_out]
    _need_one_of_each(sax)
    if sax.findings():
        # A slice that is missing may be there, crooked, of another size or with frames missing, and explain it.
        flawed = [take for group in others if _is_flawed_part(group, sax) for take in group.latest().takes]
        sax = replace(sax, takes=(*sax.takes, *flawed))
    elif not is_asked:
        for group in others:
            _need_untorn(sax, group)
            if _continues(group, sax):
                raise_first(_findings([*sax.takes, *group.latest().takes]))
                raise _lost(group.images[0], "lies where the next slice of the short axis would")
        for image in overview.unplaced:
            looks = (sax.plane.size, sax.kind, sax.images[0].description)
            if (image.size, image.kind, image.description) == looks:
                raise _lost(image, "has no place in space, and else looks like a slice of the short axis")
    return _stack([place[0] for place in sax.places])


def _lost(image: DicomImage, what: str) -> InputError:
    remedy = "Export it again, remove it from the folder, or name the series to use with --series."
    return InputError("lost-slice", f"{image.name} {what}, but does not belong to its images.", remedy)


def _need_untorn(sax: Group, group: Group) -> None:
    """Return if a group is not a part of the short axis that only a word in its headers tells from the rest.

    Its images may be phases of the same slices, or slices between and beside the others.

    Raises:
        InputError: "torn-stack", naming an image and the element.
    """
    words = group.differs_in(sax)
    if not words or not group.is_beside(sax):
        return
    image = next(filter(None, (_phase_between(take, sax) for take in group.takes)), None)
    if image is None and _completes(group, sax):
        image = group.images[0]
    if image is not None:
        message = f"{image.name} belongs to the short axis by place, time and contrast, but not by its {words}."
        raise InputError(
            "torn-stack",
            message,
            "Correct that element, export the images again, or name the series to use with --series.",
        )


def _phase_between(take: Take, sax: Group) -> DicomImage | None:
    """An image of a slice and a series of the short axis that was taken at another time than its images there."""
    if sax.num_frames == 1:
        return None
    for own in (own for place in sax.places for own in place if own.series == take.series):
        known, found = phase_times_ms(own.images), phase_times_ms(take.images)
        if known is not None and found is not None and geometry.is_same_position(own.plane, take.plane):
            apart = np.abs(found[:, None] - known).min(axis=1)
            if apart.max() >= MIN_CINE_STEP_MS:
                return take.images[int(apart.argmax())]
    return None


def _completes(group: Group, sax: Group) -> bool:
    """Whether a group and the short axis together are one even stack of the same phases."""
    if group.num_frames != sax.num_frames:
        return False
    try:
        return not any(True for _ in _findings([*sax.takes, *group.latest().takes]))
    except InputError:
        return False


def _need_one_of_each(sax: Group) -> None:
    """Return if every slice is there once.

    Raises:
        InputError: "duplicate-slices" or "duplicate-frames", naming all for which no header tells which to take.
    """
    unclear = [place for place in sax.places if len(place) > 1]
    if unclear:
        pairs = "; ".join(" and ".join(take.name for take in place) for place in unclear)
        code = "duplicate-frames" if sax.num_frames > 1 else "duplicate-slices"
        count = f"{len(unclear)} of {len(sax.places)} slices are"
        message = f"{count} there more than once, and no header tells which was acquired last: {pairs}."
        raise InputError(code, message, "Keep one image of each: remove the repeated series or file.")


def _is_flawed_part(group: Group, sax: Group) -> bool:
    """Whether images are slices of the short axis that do not fit in: crooked, of another size, with frames missing.

    Slices that lie between those of the short axis, or on them, are another acquisition instead.
    """
    if not group.is_alike(sax) or not group.is_beside(sax):
        return False
    known, found = _along(group, sax)
    near_mm = NEAR_GAPS * sax.gap_mm if sax.gap_mm is not None else geometry.SAME_POSITION_MM
    return bool((np.abs(known[:, None] - found) >= near_mm).all())


def _continues(group: Group, sax: Group) -> bool:
    """Whether images lie beyond an end of the short axis where its next slice would.

    Those of its kind may be crooked or of another size; others must lie on its very grid, with as many frames.
    """
    gap = sax.gap_mm
    if not group.is_beside(sax) or gap is None or group.motion != sax.motion:
        return False
    known, found = _along(group, sax)
    beyond = np.maximum(found - known.max(), known.min() - found)
    if beyond.min() <= 0:
        return False
    if group.is_alike(sax) and sax.motion == "cine":
        return bool(abs(beyond.min() - gap) < NEAR_GAPS * gap)
    planes = [sax.places[0][0].plane, sax.places[-1][0].plane, group.plane]
    offsets = np.linalg.norm(np.diff(geometry.lateral_offsets_mm(planes), axis=0), axis=1)
    return bool(
        abs(beyond.min() - gap) < geometry.GAP_TOLERANCE * gap
        and geometry.is_same_grid(group.plane, sax.plane)
        and group.tilt_degrees(sax) < geometry.PARALLEL_TOLERANCE_DEGREES
        and offsets[1] < geometry.LATERAL_TOLERANCE_PIXELS * sax.plane.spacing_mm.min()
        and group.num_frames == sax.num_frames
    )


def _along(group: Group, sax: Group) -> tuple[np.ndarray, np.ndarray]:
    """Positions along the normal of the short axis in mm, its own and those of a group."""
    return sax.positions_mm(sax.plane.normal), group.positions_mm(sax.plane.normal)


# --- Putting images together ------------------------------------------------------------------------------------------


def _stack(takes: Sequence[Take]) -> Stack:
    """Runs of parallel planes as one stack, sorted along the normal and by time.

    Raises:
        InputError: the planes or phases do not fit together, or pixels cannot be decoded.
    """
    takes = _sorted(takes)
    raise_first(_findings(takes))
    phases, times_ms, guess = in_time([take.images for take in takes])
    planes = [take.plane for take in takes]
    first = takes[0].images[0]
    stack = Stack(
        voxels=_voxels(phases),
        affine=geometry.affine_of(planes, first.thickness_mm if first.thickness_mm > 0 else 1.0),
        frame_times_ms=np.mean(times_ms, axis=0),
        generated=np.array([take.images[0].is_generated for take in takes]),
        beat_ms=first.interval_ms if len(phases[0]) > 1 and first.interval_ms > 0 else None,
        times_guess=guess,
    )
    return stack.noted(**_facts(first, stack))


def _sorted(takes: Sequence[Take]) -> list[Take]:
    planes = [take.plane for take in takes]
    return [takes[index] for index in np.argsort(geometry.positions_along(planes[0].normal, planes), kind="stable")]


def _findings(takes: Sequence[Take]) -> Iterator[Any]:
    """What keeps takes from being one stack, question by question.

    Raises:
        InputError: the images are in color or cannot be compared in space or time.
    """
    takes = _sorted(takes)
    names = [take.name for take in takes]
    yield from plane_findings([take.plane for take in takes], names)
    _need_one_place(takes)
    yield from count_findings([len(take.images) for take in takes], names)
    _, times_ms, _ = in_time([take.images for take in takes])
    yield from phase_findings(times_ms, names, [_beat_ms(take.images) for take in takes])


def _need_one_place(takes: Sequence[Take]) -> None:
    """Return if all images can be compared in space, and those of one slice show the same pixels."""
    if len({image.reference for take in takes for image in take.images} - {""}) > 1:
        remedy = "Use images of one examination without repositioning the patient."
        raise InputError("mixed-references", "The slices refer to different origins (frames of reference).", remedy)
    for take in takes:
        for image in take.images:
            if image.is_color:
                raise color_fault().about(image.name)
            if not geometry.is_same_position(image.plane, take.plane):
                message = f"{image.name} does not show the same pixels as {take.name} of the same slice."
                remedy = "Keep the images of one acquisition, or resample them to one grid first."
                raise InputError("moved-frames", message, remedy)


def _beat_ms(images: Sequence[DicomImage]) -> float:
    """The length of the heart beat while the images of one slice were taken; NaN where no header notes it."""
    noted = [image.interval_ms for image in images if image.interval_ms > 0]
    return float(np.median(noted)) if noted else np.nan


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


def _views(groups: Iterable[Group]) -> tuple[tuple[LaxImage, ...], list[str]]:
    """The long-axis views in groups of images that hold nothing else, and a sentence on each that makes no image.

    A view that was acquired again is a view of its own; one that was also corrected for distortion is not.
    """
    views: list[LaxImage] = []
    notes: list[str] = []
    for place in (place for group in groups for place in group.places):
        for take in (take for take in place if take.rank[0] == max(other.rank[0] for other in place)):
            try:
                raise_first(_findings([take]))
            except InputError as error:
                notes.append(f"{len(take.images)} images of {take.images[0].description}: {error.message}")
                continue
            views.append(LaxImage(_new_name(take.images[0], [view.name for view in views]), _stack([take])))
    return tuple(views), notes


def _new_name(image: DicomImage, taken: Sequence[str]) -> str:
    """The series description, numbered where it is taken."""
    name = image.description or "long axis"
    candidates = (name if number == 1 else f"{name} ({number})" for number in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)
