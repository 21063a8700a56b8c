"""Readers of the cardiac MR sets: one function per published folder layout, all listing what can be read as `Item`s.

A case is one patient's stack (static or cine) with its expert labels where the set has them. Labels are mapped here to
the project's own (1 LV cavity, 2 LV myocardium, 3 RV cavity); nothing downstream knows a set's own numbers. Splits are
by patient and follow the rules in `CaLIDTraining/README.md`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import numpy as np
from calid.images.files import read_stack
from calid.stack import Stack
from PIL import Image

from calid_training.errors import UsageError

LV, MYOCARDIUM, RV = 1, 2, 3
ALL_STRUCTURES = (LV, MYOCARDIUM, RV)


@dataclass(frozen=True, eq=False)
class RawCase:
    """One stack of one patient.

    Args:
        dataset: short name of the set, a key of `READERS`.
        patient: identifier inside the set; splits never cut through a patient.
        series: what tells this stack from the patient's others, such as "ED".
        split: "train", "validation" or "test".
        stack: the images, in the units of the files.
        labels: label stack on the same grid, or None.
        annotated: the labels an expert drew; a structure that is not among them may hide in the background.
        per_slice_intensity: True where every slice was windowed by itself, so that neighbors differ in brightness.
    """

    dataset: str
    patient: str
    series: str
    split: str
    stack: Stack
    labels: Stack | None = None
    annotated: tuple[int, ...] = ()
    per_slice_intensity: bool = False

    @property
    def name(self) -> str:
        """Set, patient and series."""
        return f"{self.dataset}/{self.patient}/{self.series}"

    @property
    def drawn(self) -> Stack:
        """The labels, where they have to be there.

        Raises:
            UsageError: if they are not.
        """
        if self.labels is None:
            raise UsageError(f"{self.name} has no labels, which are needed here")
        return self.labels


Splits: TypeAlias = Mapping[tuple[str, str], str]
"""{(set, patient): "train", "validation" or "test"}."""


@dataclass(frozen=True)
class Item:
    """One stack of one patient before it is read: so that many can be read at once, and a bad file be named.

    Args:
        dataset, patient, series, split: see `RawCase`.
        files: files that are read; they decide whether a prepared case is still up to date.
        read: reads it; a function of a module with its arguments, so that other processes can call it.
    """

    dataset: str
    patient: str
    series: str
    split: str
    files: tuple[Path, ...]
    read: Callable[[], RawCase]

    @property
    def name(self) -> str:
        """Set, patient and series."""
        return f"{self.dataset}/{self.patient}/{self.series}"


def items_of(root: Path, dataset: str, splits: Splits | None = None) -> Iterator[Item]:
    """Every stack of one set below `root` (which holds one folder per set), none of them read yet.

    Args:
        root: the folder.
        dataset: name of the set.
        splits: who is in which split, instead of the set's own rule; who is not named is left out.

    Raises:
        FileNotFoundError: if the folder of the set is not there.
        UsageError: if it is no set that is known, nor one of one's own with a file that says how it is split.
    """
    folder = Path(root) / dataset
    if not folder.is_dir():
        raise FileNotFoundError(f"The set '{dataset}' is not at {folder}; give the folder that holds it with --data.")
    items = READERS[dataset](folder) if dataset in READERS else own_items(folder)
    if splits is None:
        return items
    named = (item for item in items if (dataset, item.patient) in splits)
    return (replace(item, split=splits[dataset, item.patient]) for item in named)


def read_splits(file: Path) -> Splits:
    """The splits in a CSV file with the columns `dataset`, `patient` and `split` ("train", "validation" or "test").

    Raises:
        UsageError: naming the line that is wrong; also if a patient is in two splits.
    """
    found: dict[tuple[str, str], str] = {}
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            dataset, patient, split = ((row.get(name) or "").strip() for name in ("dataset", "patient", "split"))
            if not (dataset and patient) or split not in SPLITS:
                choice = ", ".join(SPLITS)
                raise UsageError(f"{file}, line {number}: dataset, patient and split (one of {choice}) are needed")
            if found.setdefault((dataset, patient), split) != split:
                raise UsageError(f"{file}, line {number}: patient {patient} is in two splits: split by patient")
    return found


def read_cases(root: Path, dataset: str) -> Iterator[RawCase]:
    """Yield every case of one set below `root`.

    Raises:
        FileNotFoundError, UsageError: see `items_of`.
    """
    return (item.read() for item in items_of(root, dataset))


def _mapped(labels: Stack, mapping: dict[int, int]) -> Stack:
    table = np.zeros(max(int(labels.voxels.max()), *mapping) + 1, np.uint8)
    for source, target in mapping.items():
        table[source] = target
    return labels.with_voxels(table[labels.voxels.astype(np.int64)])


def _chla(folder: Path) -> Iterator[Item]:
    """Pediatric congenital hearts: NIfTI per ventricle and phase, cavity masks only."""
    for subject in sorted(folder.glob("subject*")):
        number = int(subject.name.removeprefix("subject"))
        for path in sorted(subject.glob("[LR]V_E[DS].nii.gz")):
            series = path.name.removesuffix(".nii.gz")
            split = "validation" if number in (5, 24, 34) else "train"
            mask = subject / f"{series}_mask.nii.gz"
            read = partial(_read_chla, f"{number:02d}", series, split, path, mask)
            yield Item("chla", f"{number:02d}", series, split, (path, mask), read)


def _read_chla(patient: str, series: str, split: str, path: Path, mask_path: Path) -> RawCase:
    structure = LV if series.startswith("LV") else RV
    mask = read_stack(mask_path)
    labels = mask.with_voxels(np.where(mask.voxels > 0, structure, 0).astype(np.uint8))
    return RawCase("chla", patient, series, split, read_stack(path), labels, (structure,))


SUNNYBROOK_PIXEL_MM, SUNNYBROOK_SPACING_MM, SUNNYBROOK_PHASES = 1.33, 9.0, 20
_SUNNYBROOK_NAME = re.compile(r"(SC-(?:HF-I|HF-NI|HYP|N)-(\d+))-IM-(\d+)-(\d+)\.dcm\.png")


def _sunnybrook(folder: Path) -> Iterator[Item]:
    """Adults as PNG slices. The files carry no geometry: typical spacings of the set are assumed."""
    slices: dict[tuple[str, str, int], list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*/Images/*/*.png")):
        match = _SUNNYBROOK_NAME.fullmatch(path.name)
        if match is None:
            continue
        patient, number, _, file_number = match.groups()
        position, phase = divmod(int(file_number) - 1, SUNNYBROOK_PHASES)
        slices.setdefault((patient, number, phase), []).append((position, path))
    for (patient, number, phase), members in sorted(slices.items()):
        for first, run in _consecutive_runs(sorted(members)):
            series = f"phase{phase + 1:02d}-from{first:02d}"
            split = "validation" if number.endswith("1") else "train"
            read = partial(_read_sunnybrook, patient, series, split, tuple(run))
            yield Item("sunnybrook", patient, series, split, tuple(run), read)


def _consecutive_runs(members: list[tuple[int, Path]]) -> Iterator[tuple[int, list[Path]]]:
    """Split (position, path) pairs where a position is missing; yield (first position, paths)."""
    for _, run in groupby(enumerate(members), key=lambda item: item[1][0] - item[0]):
        pairs = [pair for _, pair in run]
        yield pairs[0][0], [path for _, path in pairs]


def _read_sunnybrook(patient: str, series: str, split: str, paths: tuple[Path, ...]) -> RawCase:
    affine = np.diag([SUNNYBROOK_PIXEL_MM, SUNNYBROOK_PIXEL_MM, SUNNYBROOK_SPACING_MM, 1.0])
    images = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    masks = np.stack([_sunnybrook_mask(path) for path in paths])
    stacks = Stack(images[None], affine), Stack(masks[None], affine)
    return RawCase("sunnybrook", patient, series, split, *stacks, (LV,), per_slice_intensity=True)


def _sunnybrook_mask(image_path: Path) -> np.ndarray:
    path = Path(str(image_path).replace("/Images/", "/Labels/"))
    return (np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8) * LV


def _autofd(folder: Path) -> Iterator[Item]:
    """Healthy adults at ED; the labels lie on a longer grid and are put onto the images' by the affines."""
    for subject in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = subject / "sa_ED.nii.gz", subject / "seg_sa_ED.nii.gz"
        yield Item("autofd", subject.name, "ED", "train", files, partial(_read_autofd, subject.name, *files))


def _read_autofd(patient: str, path: Path, labels_path: Path) -> RawCase:
    stack = read_stack(path)
    labels = _mapped(read_stack(labels_path), {1: LV, 2: MYOCARDIUM, 4: RV})
    return RawCase("autofd", patient, "ED", "train", stack, _onto_grid(labels, stack), ALL_STRUCTURES)


def _onto_grid(labels: Stack, stack: Stack) -> Stack:
    """Labels of the slices of `stack`, whose grid differs from the labels' by whole slices only."""
    offset = labels.to_index(stack.origin_lps)
    first = round(offset[2])
    if not np.allclose(offset, [0, 0, first], atol=0.05):
        raise UsageError(f"labels and images are not on one grid: the offset is {offset} voxels")
    return stack.with_voxels(labels.voxels[:, first : first + stack.num_slices])


def acdc_split(number: int) -> str:
    """Who of ACDC's 150 patients does what: 061-080 and the official test patients 101-150 are for judging only.

    001-054 and 081-100 may train (a segmenter; never the interpolation that ships), 055-060 choose.
    """
    if number <= 54 or 81 <= number <= 100:
        return "train"
    return "validation" if number <= 60 else "test"


def _acdc(folder: Path) -> Iterator[Item]:
    """ACDC as published, in one folder or in `training` and `testing`: ED and ES with labels, and the cine if there."""
    for subject in sorted(folder.glob("**/patient[0-9][0-9][0-9]"), key=lambda path: path.name):
        patient, split = subject.name, acdc_split(int(subject.name.removeprefix("patient")))
        info = subject / "Info.cfg"
        for phase in ("ED", "ES"):
            files = (info, *sorted(subject.glob(f"{patient}_frame*.nii.gz")))
            yield Item("acdc", patient, phase, split, files, partial(_read_acdc, subject, phase, split))
        cine = subject / f"{patient}_4d.nii.gz"
        if cine.is_file():
            read = partial(_read_cine, "acdc", patient, split, cine)
            yield Item("acdc", patient, "cine", split, (cine,), read)


def _read_acdc(subject: Path, phase: str, split: str) -> RawCase:
    info = dict(line.split(": ", 1) for line in (subject / "Info.cfg").read_text().splitlines() if ": " in line)
    path = subject / f"{subject.name}_frame{int(info[phase]):02d}.nii.gz"
    labels = read_stack(path.with_name(path.name.replace(".nii.gz", "_gt.nii.gz")))
    labels = _mapped(labels, {1: RV, 2: MYOCARDIUM, 3: LV})
    return RawCase("acdc", subject.name, phase, split, read_stack(path), labels, ALL_STRUCTURES)


def _read_cine(dataset: str, patient: str, split: str, path: Path) -> RawCase:
    return RawCase(dataset, patient, "cine", split, read_stack(path))


def _bivme(folder: Path) -> Iterator[Item]:
    """The one human of the demo: a cine as DICOM."""
    path = folder / "dicoms"
    yield Item("bivme", "patient1", "cine", "test", (path,), partial(_read_cine, "bivme", "patient1", "test", path))


def _mnms(folder: Path) -> Iterator[Item]:
    """M&Ms as published: one folder per subject below Training, Validation and Testing, with a labeled 4D cine."""
    splits = {"Training": "train", "Validation": "validation", "Testing": "test"}
    for path in sorted(folder.glob("**/*_sa.nii.gz")):
        split = next((splits[part] for part in path.relative_to(folder).parts if part in splits), "train")
        truth = path.with_name(path.name.replace("_sa.nii.gz", "_sa_gt.nii.gz"))
        files = (path, truth) if truth.is_file() else (path,)
        yield Item("mnms", path.parent.name, "cine", split, files, partial(_read_mnms, split, *files))


def _read_mnms(split: str, path: Path, truth: Path | None = None) -> RawCase:
    labels = None if truth is None else read_stack(truth)  # 1 LV, 2 myocardium, 3 RV: already ours
    drawn = () if labels is None else ALL_STRUCTURES
    return RawCase("mnms", path.parent.name, "cine", split, read_stack(path), labels, drawn)


def _ukbb(folder: Path) -> Iterator[Item]:
    """UK Biobank in the layout of the usual conversion: one folder per subject with `sa.nii.gz` (4D)."""
    for path in sorted(folder.glob("*/sa.nii.gz")):
        subject = path.parent.name
        split = {"0": "test", "1": "validation"}.get(subject[-1], "train")  # one subject in ten each
        yield Item("ukbb", subject, "cine", split, (path,), partial(_read_cine, "ukbb", subject, split, path))


SPLIT_FILE = "split.csv"
SPLITS = ("train", "validation", "test")


def own_items(folder: Path) -> Iterator[Item]:
    """One's own data: a folder with `split.csv`, a line for every stack.

    Columns: `path` (a NIfTI, NRRD or MetaImage file, or a folder with a DICOM study, below this folder), `patient`,
    `split` ("train", "validation" or "test"), and, where wanted, `series` (default "cine") and `labels` (a label file
    on the same grid: 1 LV cavity, 2 LV myocardium, 3 RV cavity).

    Raises:
        UsageError: naming the line that is wrong; also if a patient is in two splits.
    """
    file = folder / SPLIT_FILE
    if not file.is_file():
        raise UsageError(
            f"'{folder.name}' is none of {', '.join(READERS)}, and {file} is missing, which says its split."
        )
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    split_of: dict[str, str] = {}
    found = []
    for number, row in enumerate(rows, start=2):
        where = f"{file}, line {number}"
        missing = [name for name in ("path", "patient", "split") if not (row.get(name) or "").strip()]
        if missing:
            raise UsageError(f"{where}: {', '.join(missing)} is missing")
        path, patient, split = (row[name].strip() for name in ("path", "patient", "split"))
        if split not in SPLITS:
            raise UsageError(f"{where}: the split is one of {', '.join(SPLITS)}, not '{split}'")
        if split_of.setdefault(patient, split) != split:
            raise UsageError(f"{where}: patient {patient} is in {split_of[patient]} and in {split}: split by patient")
        series, labels = (row.get("series") or "").strip() or "cine", (row.get("labels") or "").strip()
        for name in (patient, series):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise UsageError(f"{where}: names are made of letters, digits, dots and dashes, not '{name}'")
        files = tuple(folder / name for name in (path, labels) if name)
        read = partial(_read_own, folder.name, patient, series, split, *files)
        found.append(Item(folder.name, patient, series, split, files, read))
    yield from found


def _read_own(dataset: str, patient: str, series: str, split: str, path: Path, labels: Path | None = None) -> RawCase:
    drawn = None if labels is None else read_stack(labels)
    return RawCase(dataset, patient, series, split, read_stack(path), drawn, () if drawn is None else ALL_STRUCTURES)


READERS: dict[str, Callable[[Path], Iterator[Item]]] = {
    "acdc": _acdc,
    "autofd": _autofd,
    "bivme": _bivme,
    "chla": _chla,
    "mnms": _mnms,
    "sunnybrook": _sunnybrook,
    "ukbb": _ukbb,
}

LICENSE_CLEAN = ("autofd", "chla", "sunnybrook")
"""The sets that may train the interpolation weights that ship; ACDC may not, and bivme is kept as the unseen demo."""
