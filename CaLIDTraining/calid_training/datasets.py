"""Readers of the cardiac MR sets: one function per published folder layout, all returning `Case`s.

A case is one patient's stack (static or cine) with its expert labels where the set has them. Labels are mapped here to
the project's own (1 LV cavity, 2 LV myocardium, 3 RV cavity); nothing downstream knows a set's own numbers. Splits are
by patient and follow the rules in `CaLIDTraining/README.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from calid.images.files import read_stack
from calid.stack import Stack
from PIL import Image

LV, MYOCARDIUM, RV = 1, 2, 3
ALL_STRUCTURES = (LV, MYOCARDIUM, RV)


@dataclass(frozen=True, eq=False)
class Case:
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
        return f"{self.dataset}/{self.patient}/{self.series}"


def read_cases(root: Path, dataset: str) -> Iterator[Case]:
    """Yield every case of one set below `root` (which holds one folder per set).

    Raises:
        FileNotFoundError: if the folder of the set is not there.
    """
    folder = Path(root) / dataset
    if not folder.is_dir():
        raise FileNotFoundError(f"The set '{dataset}' is not at {folder}; give the folder that holds it with --data.")
    yield from READERS[dataset](folder)


def _mapped(labels: Stack, mapping: dict[int, int]) -> Stack:
    table = np.zeros(max(int(labels.voxels.max()), *mapping) + 1, np.uint8)
    for source, target in mapping.items():
        table[source] = target
    return labels.with_voxels(table[labels.voxels.astype(np.int64)])


def _chla(folder: Path) -> Iterator[Case]:
    """Paediatric congenital hearts: NIfTI per ventricle and phase, cavity masks only."""
    for subject in sorted(folder.glob("subject*")):
        number = int(subject.name.removeprefix("subject"))
        for path in sorted(subject.glob("[LR]V_E[DS].nii.gz")):
            series = path.name.removesuffix(".nii.gz")
            structure = LV if series.startswith("LV") else RV
            mask = read_stack(subject / f"{series}_mask.nii.gz")
            labels = mask.with_voxels(np.where(mask.voxels > 0, structure, 0).astype(np.uint8))
            split = "validation" if number in (5, 24, 34) else "train"
            yield Case("chla", f"{number:02d}", series, split, read_stack(path), labels, (structure,))


SUNNYBROOK_PIXEL_MM, SUNNYBROOK_SPACING_MM, SUNNYBROOK_PHASES = 1.33, 9.0, 20
_SUNNYBROOK_NAME = re.compile(r"(SC-(?:HF-I|HF-NI|HYP|N)-(\d+))-IM-(\d+)-(\d+)\.dcm\.png")


def _sunnybrook(folder: Path) -> Iterator[Case]:
    """Adults as PNG slices. The files carry no geometry: typical spacings of the set are assumed."""
    slices: dict[tuple[str, str, int], list[tuple[int, Path]]] = {}
    for path in sorted(folder.glob("*/Images/*/*.png")):
        match = _SUNNYBROOK_NAME.fullmatch(path.name)
        if match is None:
            continue
        patient, number, _, file_number = match.groups()
        position, phase = divmod(int(file_number) - 1, SUNNYBROOK_PHASES)
        slices.setdefault((patient, number, phase), []).append((position, path))
    affine = np.diag([SUNNYBROOK_PIXEL_MM, SUNNYBROOK_PIXEL_MM, SUNNYBROOK_SPACING_MM, 1.0])
    for (patient, number, phase), members in sorted(slices.items()):
        for first, run in _consecutive_runs(sorted(members)):
            images = np.stack([np.asarray(Image.open(path).convert("L")) for path in run])
            masks = np.stack([_sunnybrook_mask(path) for path in run])
            yield Case(
                "sunnybrook",
                patient,
                f"phase{phase + 1:02d}-from{first:02d}",
                "validation" if number.endswith("1") else "train",
                Stack(images[None], affine),
                Stack(masks[None], affine),
                (LV,),
                per_slice_intensity=True,
            )


def _consecutive_runs(members: list[tuple[int, Path]]) -> Iterator[tuple[int, list[Path]]]:
    """Split (position, path) pairs where a position is missing; yield (first position, paths)."""
    for _, run in groupby(enumerate(members), key=lambda item: item[1][0] - item[0]):
        pairs = [pair for _, pair in run]
        yield pairs[0][0], [path for _, path in pairs]


def _sunnybrook_mask(image_path: Path) -> np.ndarray:
    path = Path(str(image_path).replace("/Images/", "/Labels/"))
    return (np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8) * LV


def _autofd(folder: Path) -> Iterator[Case]:
    """Healthy adults at ED; the labels lie on a longer grid and are put onto the images' by the affines."""
    for subject in sorted(path for path in folder.iterdir() if path.is_dir()):
        stack = read_stack(subject / "sa_ED.nii.gz")
        labels = _mapped(read_stack(subject / "seg_sa_ED.nii.gz"), {1: LV, 2: MYOCARDIUM, 4: RV})
        yield Case("autofd", subject.name, "ED", "train", stack, _onto_grid(labels, stack), ALL_STRUCTURES)


def _onto_grid(labels: Stack, stack: Stack) -> Stack:
    """Labels of the slices of `stack`, whose grid differs from the labels' by whole slices only."""
    offset = labels.to_index(stack.origin_lps)
    first = round(offset[2])
    if not np.allclose(offset, [0, 0, first], atol=0.05):
        raise ValueError(f"labels and images are not on one grid: the offset is {offset} voxels")
    return stack.with_voxels(labels.voxels[:, first : first + stack.num_slices])


def _acdc(folder: Path) -> Iterator[Case]:
    """ACDC as published: ED and ES with labels, and the whole cine where the 4D file is there."""
    for subject in sorted(folder.glob("patient*")):
        number = int(subject.name.removeprefix("patient"))
        split = "train" if number <= 54 else "validation" if number <= 60 else "test"
        info = dict(line.split(": ", 1) for line in (subject / "Info.cfg").read_text().splitlines() if ": " in line)
        for phase in ("ED", "ES"):
            path = subject / f"{subject.name}_frame{int(info[phase]):02d}.nii.gz"
            labels = read_stack(path.with_name(path.name.replace(".nii.gz", "_gt.nii.gz")))
            labels = _mapped(labels, {1: RV, 2: MYOCARDIUM, 3: LV})
            yield Case("acdc", subject.name, phase, split, read_stack(path), labels, ALL_STRUCTURES)
        cine = subject / f"{subject.name}_4d.nii.gz"
        if cine.is_file():
            yield Case("acdc", subject.name, "cine", split, read_stack(cine))


def _bivme(folder: Path) -> Iterator[Case]:
    """The one human of the demo: a cine as DICOM."""
    yield Case("bivme", "patient1", "cine", "test", read_stack(folder / "dicoms"))


def _mnms(folder: Path) -> Iterator[Case]:
    """M&Ms as published: one folder per subject below Training, Validation and Testing, with a labelled 4D cine."""
    splits = {"Training": "train", "Validation": "validation", "Testing": "test"}
    for path in sorted(folder.glob("**/*_sa.nii.gz")):
        split = next((splits[part] for part in path.relative_to(folder).parts if part in splits), "train")
        truth = path.with_name(path.name.replace("_sa.nii.gz", "_sa_gt.nii.gz"))
        labels = read_stack(truth) if truth.is_file() else None  # 1 LV, 2 myocardium, 3 RV: already ours
        yield Case("mnms", path.parent.name, "cine", split, read_stack(path), labels, ALL_STRUCTURES if labels else ())


def _ukbb(folder: Path) -> Iterator[Case]:
    """UK Biobank in the layout of the usual conversion: one folder per subject with `sa.nii.gz` (4D)."""
    for path in sorted(folder.glob("*/sa.nii.gz")):
        subject = path.parent.name
        split = {"0": "test", "1": "validation"}.get(subject[-1], "train")  # one subject in ten each
        yield Case("ukbb", subject, "cine", split, read_stack(path))


READERS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "acdc": _acdc,
    "autofd": _autofd,
    "bivme": _bivme,
    "chla": _chla,
    "mnms": _mnms,
    "sunnybrook": _sunnybrook,
    "ukbb": _ukbb,
}

LICENCE_CLEAN = ("autofd", "chla", "sunnybrook")
"""The sets that may train the interpolation weights that ship; ACDC may not, and bivme is kept as the unseen demo."""
