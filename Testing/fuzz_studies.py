"""DICOM studies with odd elements and damaged files, and what may become of them."""

from __future__ import annotations

import random
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import file_phantoms
import numpy as np
import pydicom
from calid.images.checks import check_stack
from calid.images.files import read_stack
from calid.stack import Stack
from fuzz_outcomes import IN_PART, NASTY_NUMBERS, NASTY_TEXTS, RIGHT, WrongError, damaged_bytes
from pydicom.dataelem import RawDataElement

DICOM_SHAPE = (3, 4, 18, 20)
FURTHER_ELEMENTS = ("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "AcquisitionTime", "ContentTime",
                    "TemporalPositionIndex", "CardiacNumberOfImages", "NominalInterval", "SpacingBetweenSlices",
                    "SliceLocation", "LossyImageCompression", "SmallestImagePixelValue", "ImageComments",
                    "PixelPaddingValue", "AcquisitionNumber", "Laterality")  # fmt: skip
REAL_VALUES = {"RescaleSlope", "RescaleIntercept"}


def dicom(rng: random.Random, folder: Path) -> str:
    """A short-axis cine, one series per slice, in which some elements or bytes of one file or of all are odd."""
    study = folder / "study"
    stack = file_phantoms.noisy_stack(DICOM_SHAPE)
    file_phantoms.write_stack(study, stack)
    paths = sorted(study.rglob("*.dcm"))
    chosen = paths if rng.random() < 0.25 else rng.sample(paths, rng.choice((1, 1, 2, 3)))
    if rng.random() < 0.3:
        for path in chosen:
            contents = path.read_bytes()
            # Nothing could tell flipped pixels that are not compressed.
            path.write_bytes(damaged_bytes(rng, contents, len(contents) - 720, share=1))
        changed = None
    else:
        changed = odd_elements(rng, chosen)
    if rng.random() < 0.05:
        (study / rng.choice(("DONE", "notes.txt", "._i00.dcm", "DICOMDIR", "Thumbs.db"))).write_bytes(rng.randbytes(40))
    return judged_study(study, stack, changed)


def odd_elements(rng: random.Random, paths: list[Path]) -> set[str]:
    """Elements with values that nobody expects, set as raw text so that pydicom does not mind."""
    keywords = [element.keyword for element in pydicom.dcmread(paths[0]) if element.keyword != "PixelData"]
    keywords += FURTHER_ELEMENTS
    names = sorted({rng.choice(keywords) for _ in range(rng.choice((1, 1, 1, 2)))})  # a set has another order every run
    values = {name: None if rng.random() < 0.2 else _odd_value(rng) for name in names}
    for path in paths:
        file = pydicom.dcmread(path)
        for name, value in values.items():
            tag = pydicom.tag.Tag(name)
            if value is None:
                file.pop(tag, None)
                continue
            vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
            if vr in ("US", "SS", "UL", "FD", "FL", "OB", "OW"):
                raw = rng.randbytes({"US": 2, "SS": 2, "UL": 4, "FD": 8, "FL": 4}.get(vr, 8))
            else:
                raw = value.encode("utf-8")[:60_000]
            raw += b" " * (len(raw) % 2)
            file._dict[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True)
        file.save_as(path)
    return set(names)


def _odd_value(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return "\\".join(rng.choice(NASTY_NUMBERS) for _ in range(rng.choice((1, 1, 2, 3, 6))))
    return rng.choice(NASTY_TEXTS)[:16_000]


def judged_study(study: Path, before: Stack, changed: set[str] | None) -> str:
    """What is read must be the written images, each in its place; images may be left out if that is said."""
    said = StringIO()
    with redirect_stderr(said):
        stack = read_stack(study)
    check_stack(stack, source=study.name)
    known = {
        image.tobytes(): place for place in np.ndindex(before.voxels.shape[:2]) for image in [before.voxels[place]]
    }
    places = np.full((*stack.voxels.shape[:2], 2), -1)
    for place in np.ndindex(stack.voxels.shape[:2]):
        image = stack.voxels[place]
        found = known.get(image.astype(before.voxels.dtype).tobytes()) if image.dtype.kind in "iu" else None
        if found is None and not (
            changed and changed & (REAL_VALUES | {"BitsStored", "HighBit", "PixelRepresentation"})
        ):
            raise WrongError(f"the image {place} is none of those that were written (changed: {changed})")
        if found is not None:
            places[place] = found
    if (places < 0).any():
        return RIGHT if stack.voxels.shape == before.voxels.shape else IN_PART
    frames, slices = places[..., 0], places[..., 1]
    if (frames != frames[:, :1]).any() or (slices != slices[:1]).any():
        raise WrongError(f"images of several frames or slices are mixed (changed: {changed})")
    steps = np.diff(slices[0])
    is_told = bool(said.getvalue()) or "left_out" in stack.provenance
    if len(steps) and not ((steps == steps[0]).all() and (abs(steps[0]) == 1 or is_told)):
        raise WrongError(f"the slices come in the order {slices[0].tolist()} (changed: {changed})")
    order = frames[:, 0].tolist()
    times = {"TriggerTime", "InstanceNumber", "AcquisitionTime", "ContentTime", "TemporalPositionIndex"}
    if order != sorted(order) and not (changed and changed & times):
        raise WrongError(f"the frames come in the order {order} (changed: {changed})")
    if stack.voxels.shape == before.voxels.shape:
        return RIGHT
    missing = np.prod(before.voxels.shape[:2]) - np.prod(stack.voxels.shape[:2])
    if not is_told:
        raise WrongError(
            f"{missing} images are missing and nothing is said (changed: {changed}; {dict(stack.provenance)})"
        )
    return IN_PART
