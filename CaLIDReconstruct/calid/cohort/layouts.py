"""One case's images, in whatever published layout they lie: the short axis, the long-axis views, and the body.

| layout | what is read |
|---|---|
| UK Biobank, as downloaded | `SUBJECT_20209_I_A.zip` (short axis), `SUBJECT_20208_I_A.zip` (long axis): DICOM in zips |
| UK Biobank, as converted | a folder with `sa.nii.gz`, and `la_2ch.nii.gz` and the like |
| ACDC | a folder with `*_4d.nii.gz`, or the two phases `*_frameNN.nii.gz`; height and weight from `Info.cfg` |
| M&Ms, M&Ms-2 | a folder with `*_sa.nii.gz`; `*_SA_CINE.nii.gz` and `*_LA_CINE.nii.gz`; or `*_SA_ED`, `*_SA_ES` |
| Kaggle, hospitals | a folder of DICOM files, however deep |
| any | a volume file |
"""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calid.cohort.manifest import CohortCase
from calid.errors import InputError
from calid.images.body import Body, read_body
from calid.images.files import read_lax_folder, read_stack, read_study
from calid.stack import LaxImage, Stack

MAX_UNPACKED_BYTES = 8 * 1024**3
"""A zip of the UK Biobank unpacks to some 100 MB; far more is a mistake or a bomb."""

TOLD = ("source", "field_strength_t", "slice_thickness_mm", "slice_spacing_mm")
"""What a case's provenance keeps of its acquisition: numbers, never words that a person typed into a scanner."""

_SHORT_AXIS = ("sa.nii.gz", "*_sa.nii.gz", "*_SA_CINE.nii.gz", "*_4d.nii.gz")
_PHASES = (re.compile(r".*_frame(\d+)\.nii\.gz"), re.compile(r".*_SA_(ED|ES)\.nii\.gz"))
_LONG_AXIS = ("la_*ch.nii.gz", "*_LA_CINE.nii.gz")
_ZIPS = ("*_20209_*.zip", "*_20208_*.zip")


@dataclass(frozen=True)
class CaseImages:
    """What is known of one case.

    Args:
        sax: the short-axis stack.
        lax: long-axis images, named by number: what scanners call them may name a person.
        body: height and weight, None where they are not known.
    """

    sax: Stack
    lax: tuple[LaxImage, ...] = ()
    body: Body | None = None


def read_case(case: CohortCase, scratch: Path) -> CaseImages:
    """Read one case.

    Args:
        case: which one.
        scratch: empty folder, to unpack zips in.

    Raises:
        InputError: there is nothing there, or it cannot be read for certain.
    """
    found = _found(case, scratch)
    lax = _views(case.views, scratch / "views") if case.views is not None else found.lax
    named = tuple(LaxImage(f"view {number}", image.stack) for number, image in enumerate(lax, start=1))
    told = {key: found.sax.provenance[key] for key in TOLD if key in found.sax.provenance}
    return CaseImages(replace(found.sax, provenance=told), named, case.body or found.body)


def _found(case: CohortCase, scratch: Path) -> CaseImages:
    path = case.path
    if path.suffix.lower() == ".zip" and path.is_file():
        return _dicom(unpacked(path, scratch / "images"))
    if not path.is_dir():
        return CaseImages(read_stack(path), body=read_body(path) if path.is_file() else None)
    short, long = (sorted(path.glob(pattern)) for pattern in _ZIPS)
    if short:
        found = _dicom(unpacked(_only(short), scratch / "images"))
        return replace(found, lax=_views(_only(long), scratch / "views")) if long else found
    files = [file for pattern in _SHORT_AXIS for file in sorted(path.glob(pattern))]
    if files:
        return CaseImages(read_stack(_only(files)), _view_files(path), _acdc_body(path))
    phases = _phases(path)
    if phases:
        return CaseImages(phases, _view_files(path), _acdc_body(path))
    return _dicom(path)


def _only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        raise InputError(
            "several-stacks",
            f"There are several short-axis stacks: {', '.join(file.name for file in files)}.",
            "Name the right one in the column 'path' of a CSV file.",
        )
    return files[0]


def _dicom(folder: Path) -> CaseImages:
    study = read_study(folder)
    return CaseImages(study.sax, study.lax, read_body(folder))


def _views(path: Path, scratch: Path) -> tuple[LaxImage, ...]:
    is_zip = path.suffix.lower() == ".zip" and path.is_file()
    return read_lax_folder(unpacked(path, scratch) if is_zip else path)


def _view_files(folder: Path) -> tuple[LaxImage, ...]:
    paths = [path for pattern in _LONG_AXIS for path in sorted(folder.glob(pattern))]
    images = [LaxImage(path.name, read_stack(path)) for path in paths]
    return tuple(image for image in images if image.stack.num_slices == 1)


def _phases(folder: Path) -> Stack | None:
    """End-diastole and end-systole from files of one phase each, as a stack of two frames; None if there are none.

    Raises:
        InputError: the phases do not lie on one grid.
    """
    for pattern in _PHASES:
        matches = [match for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))]
        if matches:
            return _together([read_stack(folder / match[0]) for match in matches], [match[1] for match in matches])
    return None


def _together(stacks: Sequence[Stack], words: Sequence[str]) -> Stack:
    first = stacks[0]
    for stack, word in zip(stacks, words, strict=True):
        if stack.voxels.shape != first.voxels.shape or not np.allclose(stack.affine, first.affine, atol=0.01):
            raise InputError(
                "moved-frames", f"The phases {words[0]} and {word} do not lie on one grid.", "Resample them to one."
            )
    numbers = [float(word) if word.isdigit() else float(index) for index, word in enumerate(words)]
    voxels = np.concatenate([stack.voxels for stack in stacks])
    times = np.array(numbers) - numbers[0]
    return first.with_voxels(voxels, frame_times_ms=times, times_guess="frame numbers")


def _acdc_body(folder: Path) -> Body | None:
    """Height and weight from ACDC's `Info.cfg`, lines of `Key: value`."""
    try:
        lines = (folder / "Info.cfg").read_text(encoding="utf-8").splitlines()
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        return Body(float(values["Height"]), float(values["Weight"]))
    except (OSError, ValueError, KeyError):
        return None


def unpacked(archive: Path, folder: Path) -> Path:
    """A zip's files, unpacked under numbers: a file's name is trusted neither as a path nor to name nobody.

    Raises:
        InputError: "damaged-archive" or "large-archive".
    """
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            size = sum(member.file_size for member in members)
            if size > min(MAX_UNPACKED_BYTES, shutil.disk_usage(folder).free):
                message = f"The zip would unpack to {size / 1e9:.1f} GB."
                raise InputError("large-archive", message, "Free some space, or unpack it yourself.")
            for number, member in enumerate(members):
                with zipped.open(member) as packed, (folder / f"{number:06d}").open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError("damaged-archive", "The zip is damaged or encrypted.", "Download it again.") from error
    return folder
