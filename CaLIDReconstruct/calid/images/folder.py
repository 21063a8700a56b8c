"""The images below a folder, each once, and what each is taken for; no pixels are decoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from calid.errors import InputError
from calid.images.choice import Choice, called, choose
from calid.images.dicom import DicomImage, read_images
from calid.images.groups import alike, groups_of
from calid.images.overview import Overview
from calid.images.pixels import fingerprint
from calid.images.times import in_milliseconds, phase_times_ms

MIN_OWN_REFERENCES = 3
"""So many series, each with a frame of reference of its own, were given them by a de-identifier and not by moving."""


def look(folder: Path, series: str | None = None) -> Overview:
    """What a folder and its subfolders hold, by their headers alone.

    Args:
        folder: folder of DICOM files.
        series: number or UID of a series that belongs to the short axis; None leaves the choice to the evidence.

    Raises:
        InputError: there are no images, one is damaged, or they are of several patients.
        SettingsError: "unknown-series".
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("missing-file", f"{folder} is not a folder.", "Give the folder with the DICOM images.")
    return overview_of(*_found_in(folder), folder, series)


def _found_in(folder: Path) -> tuple[list[DicomImage], list[str]]:
    """The headers of all images below a folder, and a sentence on empty files; what is not DICOM is passed over."""
    images: list[DicomImage] = []
    empty: list[Path] = []
    for path in sorted(_files_in(folder, folder)):
        if path.stat().st_size == 0 and not path.suffix:
            empty.append(path)
        else:
            images += read_images(path, path.relative_to(folder).as_posix())
    patterns = {(image.path.parent, _pattern(image.path)) for image in images}
    for path in empty:
        if (path.parent, _pattern(path)) in patterns and _pattern(path) != path.name:
            remedy = "Copy or export the file again, or remove it from the folder."
            raise InputError("empty-file", f"{path.relative_to(folder).as_posix()} is empty (0 bytes).", remedy)
    return images, [f"{path.relative_to(folder).as_posix()} is empty and was passed over." for path in empty]


def _files_in(folder: Path, top: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below a folder but hidden ones, through links too.

    Raises:
        InputError: a folder cannot be read; slices may be in it.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as err:
        name = folder.relative_to(top).as_posix()
        message = f"{folder if name == '.' else name}: the folder cannot be read ({err.strerror})."
        raise InputError("unreadable", message, "Allow it to be read, or move it out of the folder.") from err
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if path.resolve() not in seen:
                yield from _files_in(path, top, seen | {path.resolve()})
        elif entry.is_file():
            yield path


def _pattern(path: Path) -> str:
    """A file's name with a sign for each run of digits, by which the images of one export look alike."""
    return re.sub(r"\d+", "#", path.name)


def overview_of(images: list[DicomImage], notes: list[str], source: Path, series: str | None) -> Overview:
    """Images of one patient, each once, as an overview."""
    placed = [image for image in images if image.place is not None]
    unplaced = tuple(image for image in images if image.place is None)
    if not placed:
        remedy = "Choose the folder with the DICOM images, or give a volume file itself."
        raise InputError("no-images", f"{source} holds no DICOM image with a place in space.", remedy)
    patients = len({image.patient for image in placed} - {""})
    if patients > 1:
        remedy = "Keep each patient in a folder of its own."
        raise InputError("mixed-patients", f"{source} holds images of {patients} patients.", remedy)
    placed, copies = _each_once(placed)
    placed, references = _comparable(placed)
    placed, units = in_milliseconds(placed)
    choice = choose(groups_of(placed), series)
    return Overview(choice, (*notes, *copies, *references, *units, *_untimed(choice), *_unusual(choice)), unplaced)


def _untimed(choice: Choice) -> Iterator[str]:
    """A sentence on the slices of the short axis whose frames are in order without times, beside others with times."""
    takes = [] if choice.doubt else choice.sax.takes
    names = [take.name for take in takes if phase_times_ms(take.images) is None]
    if names and len(names) < len(takes) and choice.sax.num_frames > 1:
        yield f"{len(names)} slices have no trigger times (the first with {names[0]}); their numbers put them in order."


def _each_once(images: list[DicomImage]) -> tuple[list[DicomImage], list[str]]:
    """Images without those that are copies of another: at one place and time, with the same pixels."""

    def place_and_time(image: DicomImage) -> tuple:
        place = (*np.round(image.plane.origin_lps, 3), *np.round(image.plane.normal, 4))
        return place, image.size, image.kind, frozenset(image.when.items())

    copies: list[tuple[DicomImage, DicomImage]] = []
    for members in (members for members in alike(images, place_and_time).values() if len(members) > 1):
        first: dict[str, DicomImage] = {}
        for image in members:
            known = first.setdefault(fingerprint(image), image)
            if known is not image:
                copies.append((image, known))
    if not copies:
        return images, []
    dropped = {id(image) for image, _ in copies}
    image, known = copies[0]
    note = f"{len(copies)} images are copies and were not used (the first is {image.name}, a copy of {known.name})."
    return [image for image in images if id(image) not in dropped], [note]


def _comparable(images: list[DicomImage]) -> tuple[list[DicomImage], list[str]]:
    """Images without their frames of reference where these were made up: one for every series, or for every image."""
    names = {image.reference for image in images}
    series = {image.series for image in images}
    is_own = len({(image.series, image.reference) for image in images}) == len(series) == len(names)
    is_made_up = (is_own and len(names) >= MIN_OWN_REFERENCES) or len(names) == len(images) >= MIN_OWN_REFERENCES
    if not is_made_up or names == {""}:
        return images, []
    note = "Every series has a frame of reference of its own, as de-identified ones do; they were taken for one."
    return [replace(image, reference="") for image in images], [note]


def _unusual(choice: Choice) -> Iterator[str]:
    """A sentence where the short axis is no cine MR, by its headers."""
    if choice.doubt is None and (choice.sax.subject or choice.sax.motion == "repeats" or not choice.sax.is_magnitude):
        yield (
            f"The short axis is no usual cine, but {called(choice.sax)}; the model knows cine MR alone. On made-up "
            "late enhancement it gained over linear interpolation what it gains on cines, on made-up T1 maps it lost."
        )
