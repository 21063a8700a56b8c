"""Prepared sets: every case as one float16 array on a common intensity scale, with an index that says what it is.

`calid-train prepare --data DIR --out prepared` writes `<out>/<dataset>/<patient>-<series>.npz` and `<out>/index.json`.
Sets can be added to a folder one by one. Training and evaluation read only this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from calid.run.preparation import intensity_window
from tqdm import tqdm

from calid_training.datasets import LICENCE_CLEAN, Case, read_cases

INDEX_NAME = "index.json"


@dataclass(frozen=True)
class Entry:
    """One line of the index: a prepared case and where it lies.

    Args:
        file: path below the prepared folder.
        spacing_mm: (columns, rows, slices).
        shape: (frames, slices, rows, columns).
        annotated: labels an expert drew.
        sha256: of the file, so that a run can say what it was trained on.
    """

    dataset: str
    patient: str
    series: str
    split: str
    file: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int, int]
    annotated: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A prepared case in memory: `images` (T, Z, Y, X) float16 in [0, 1]; `labels` the same shape in uint8, or None."""

    entry: Entry
    images: np.ndarray
    labels: np.ndarray | None


def scaled_images(case: Case) -> np.ndarray:
    """The case's voxels scaled to [0, 1] between the 1st and 99.5th percentile and clipped, (T, Z, Y, X) float16.

    Slices that were windowed one by one when the set was made are scaled one by one.
    """
    voxels = case.stack.voxels.astype(np.float32)
    if case.per_slice_intensity:
        return np.stack([[_scaled(image) for image in frame] for frame in voxels])
    return _scaled(voxels)


def _scaled(voxels: np.ndarray) -> np.ndarray:
    low, high = intensity_window(voxels)
    return ((voxels - low) / (high - low)).clip(0, 1).astype(np.float16)


def prepare(data: Path, out: Path, *, datasets: Sequence[str] = LICENCE_CLEAN) -> Path:
    """Write the prepared form of the named sets and return the index.

    Args:
        data: folder that holds one folder per set.
        out: where the prepared sets go; other sets that are there stay.
        datasets: keys of `datasets.READERS`.
    """
    cases = (case for dataset in datasets for case in read_cases(data, dataset))
    return write_cases(tqdm(cases, unit=" cases"), out)


def write_cases(cases: Iterable[Case], out: Path) -> Path:
    """Write the prepared form of cases from anywhere and return the index, which keeps the other sets of the folder."""
    written = [_write_case(case, out) for case in cases]
    index, replaced = out / INDEX_NAME, {entry.dataset for entry in written}
    kept = [entry for entry in read_index(out) if entry.dataset not in replaced] if index.is_file() else []
    entries = sorted(kept + written, key=lambda entry: entry.dataset)  # whichever came first, crops are drawn alike
    partial = index.with_suffix(".part")
    partial.write_text(json.dumps([asdict(entry) for entry in entries], indent=1))
    partial.replace(index)
    return index


def _write_case(case: Case, out: Path) -> Entry:
    path = out / case.dataset / f"{case.patient}-{case.series}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"images": scaled_images(case)}
    if case.labels is not None:
        arrays["labels"] = case.labels.voxels.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    x, y, z = (float(value) for value in case.stack.spacing_mm)
    return Entry(
        dataset=case.dataset,
        patient=case.patient,
        series=case.series,
        split=case.split,
        file=str(path.relative_to(out)),
        spacing_mm=(x, y, z),
        shape=case.stack.voxels.shape,
        annotated=case.annotated,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def read_index(folder: Path) -> list[Entry]:
    """The index of a prepared folder.

    Raises:
        FileNotFoundError: if there is none, with the command that makes it.
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: calid-train prepare --data DIR --out {folder}")
    return [_entry(record) for record in json.loads(path.read_text())]


def _entry(record: dict) -> Entry:
    lists = {key: tuple(record[key]) for key in ("spacing_mm", "shape", "annotated")}
    return Entry(**{**record, **lists})


def provenance_of(
    entries: Iterable[Entry], datasets: Iterable[str], *, split: str = "train"
) -> dict[str, dict[str, Any]]:
    """{set: cases, patients and SHA-256} of the cases of a split; the hash is that of the sorted hashes of their files.

    Args:
        entries: the index.
        datasets: the sets; those without a case in the split are left out.
        split: of the cases.
    """
    found = {}
    for dataset in datasets:
        members = [entry for entry in entries if (entry.dataset, entry.split) == (dataset, split)]
        if members:
            hashes = "\n".join(sorted(entry.sha256 for entry in members))
            found[dataset] = {
                "cases": len(members),
                "patients": len({entry.patient for entry in members}),
                "sha256": hashlib.sha256(hashes.encode()).hexdigest(),
            }
    return found


def load_cases(folder: Path, *, datasets: Sequence[str], split: str) -> Iterator[PreparedCase]:
    """Load the prepared cases of one split into memory."""
    for entry in read_index(folder):
        if entry.dataset in datasets and entry.split == split:
            with np.load(Path(folder) / entry.file) as arrays:
                yield PreparedCase(entry, arrays["images"], arrays.get("labels"))
