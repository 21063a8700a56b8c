"""Prepared sets: every case as arrays on a common intensity scale that are read where they lie, and an index of them.

`calid-train prepare --data DIR --out prepared` writes `<out>/<dataset>/<patient>-<series>.npy` (float16), the labels
beside it as `...-labels.npy`, and `<out>/index.json`. The arrays are not compressed, so that training maps them into
memory and touches only the slices it draws: its memory does not grow with the set. Sets can be added one by one.

Stacks are read in several processes. A run that was stopped goes on; a stack whose files changed is prepared again; one
that cannot be read is left out and named, in the output and in `<out>/left-out.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from calid.run.preparation import intensity_window
from calid.run.windows import closes
from tqdm import tqdm

from calid_training.datasets import LICENSE_CLEAN, Item, RawCase, Splits, items_of
from calid_training.errors import UsageError

INDEX_NAME, JOURNAL_NAME, LEFT_OUT_NAME = "index.json", "index.journal", "left-out.json"
MAX_WORKERS = 8
"""Processes that read stacks, unless more are asked for: disks are seldom faster."""


@dataclass(frozen=True)
class IndexEntry:
    """One line of the index: a prepared case and where it lies.

    Args:
        dataset, patient, series, split: see `datasets.RawCase`.
        file: path of the images below the prepared folder.
        spacing_mm: distance in mm between (columns, rows, slices).
        shape: (frames, slices, rows, columns).
        annotated: labels of the structures that an expert drew.
        sha256: SHA-256 of the images' file and, if there is one, the labels': a run tells by it what it was trained on.
        labels_file: path of the labels below the prepared folder, "" without labels.
        center: (column, row) of the heart, see `case_center`; None in an index of version 0.1.
        closes: whether the last frame is followed by the first; None in an index of version 0.1.
        source: hash of names, sizes and times of the files that the case was made of.
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
    labels_file: str = ""
    center: tuple[float, float] | None = None
    closes: bool | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """Set, patient and series."""
        return f"{self.dataset}/{self.patient}/{self.series}"


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in memory: `images` (T, Z, Y, X) float16 in [0, 1]; `labels` the same shape in uint8, or None."""

    entry: IndexEntry
    images: np.ndarray
    labels: np.ndarray | None

    @property
    def drawn(self) -> np.ndarray:
        """The labels, where they have to be there; raises ValueError if they are not."""
        return _required(self.labels, self.entry)


@dataclass(frozen=True, eq=False)
class StoredCase:
    """A prepared case on disk, with the same attributes: its arrays are mapped into memory when they are asked for.

    Nothing stays open between two questions: a set of ten thousand subjects has more files than a process may open.
    """

    entry: IndexEntry
    folder: Path

    @property
    def images(self) -> np.ndarray:
        """(T, Z, Y, X) float16 in [0, 1]."""
        if self.entry.file.endswith(".npz"):
            return _unpacked(self.folder / self.entry.file)["images"]
        return np.load(self.folder / self.entry.file, mmap_mode="r")

    @property
    def labels(self) -> np.ndarray | None:
        """(T, Z, Y, X) uint8, or None."""
        if self.entry.file.endswith(".npz"):
            return _unpacked(self.folder / self.entry.file).get("labels")
        return np.load(self.folder / self.entry.labels_file, mmap_mode="r") if self.entry.labels_file else None

    @property
    def drawn(self) -> np.ndarray:
        """The labels, where they have to be there; raises ValueError if they are not."""
        return _required(self.labels, self.entry)


def _required(labels: np.ndarray | None, entry: IndexEntry) -> np.ndarray:
    if labels is None:
        raise UsageError(f"{entry.name} has no labels, which are needed here")
    return labels


AnyCase: TypeAlias = PreparedCase | StoredCase


@cache
def _unpacked(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a case that version 0.1 prepared; they are compressed, and stay in memory."""
    with np.load(path) as arrays:
        return dict(arrays)


def case_center(case: AnyCase) -> np.ndarray:
    """(column, row) of the labeled structures' centroid over all slices, or the image center without labels."""
    if case.entry.center is not None:
        return np.array(case.entry.center)
    return np.array(_center(case.labels, case.entry.shape[2:]))


def _center(labels: np.ndarray | None, size: tuple[int, ...]) -> tuple[float, float]:
    if labels is None or not labels.any():
        return (size[1] - 1) / 2, (size[0] - 1) / 2
    _, _, rows, columns = np.nonzero(labels)
    return float(columns.mean()), float(rows.mean())


def spans_cycle(case: AnyCase) -> bool:
    """Whether the last frame of a cine is followed by its first."""
    return closes(case.images) if case.entry.closes is None else case.entry.closes


def scaled_images(case: RawCase) -> np.ndarray:
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


@dataclass(frozen=True)
class Outcome:
    """What `prepare` did.

    Args:
        index: file of the index.
        prepared: stacks that were read now.
        kept: stacks that were there already.
        left_out: {stack: why it could not be read}.
    """

    index: Path
    prepared: int
    kept: int
    left_out: Mapping[str, str]


def prepare(
    data: Path,
    out: Path,
    *,
    datasets: Sequence[str] = LICENSE_CLEAN,
    workers: int | None = None,
    splits: Splits | None = None,
) -> Outcome:
    """Write the prepared form of the named sets.

    Args:
        data: folder that holds one folder per set.
        out: folder for the prepared sets; other sets that are there stay.
        datasets: keys of `datasets.READERS`, or folders of one's own data.
        workers: processes that read stacks; 0 reads in this one, None takes one for every core, `MAX_WORKERS` at most.
        splits: who is in which split, instead of the sets' own rules; who is not named is left out.
    """
    items = [item for dataset in datasets for item in items_of(data, dataset, splits)]
    out.mkdir(parents=True, exist_ok=True)
    there = {entry.name: entry for entry in _entries_so_far(out)}
    kept = [there[item.name] for item in items if _is_current(there.get(item.name), item, out)]
    current = {entry.name for entry in kept}
    waiting = [item for item in items if item.name not in current]
    made: list[IndexEntry] = []
    left_out: dict[str, str] = {}
    with (out / JOURNAL_NAME).open("a", encoding="utf-8") as journal:
        for item, found in _outcomes(waiting, out, workers):
            if isinstance(found, IndexEntry):
                made.append(found)
                journal.write(json.dumps(asdict(found)) + "\n")
                journal.flush()
            else:
                left_out[item.name] = found
                print(f"left out: {item.name} ({_shown(item, data)}): {found}", flush=True)
    index = _write_index(out, [*kept, *made], replaced=set(datasets))
    _write_json(out / LEFT_OUT_NAME, left_out)
    return Outcome(index, len(made), len(kept), left_out)


def _outcomes(items: Sequence[Item], out: Path, workers: int | None) -> Iterator[tuple[Item, IndexEntry | str]]:
    """Every item with its entry, or why there is none, as they come."""
    count = min(os.cpu_count() or 1, MAX_WORKERS) if workers is None else workers
    with tqdm(total=len(items), unit=" stacks", disable=not items) as bar:
        if count <= 1 or len(items) <= 1:
            for item in items:
                yield item, _prepared(item, out)
                bar.update()
            return
        with ProcessPoolExecutor(min(count, len(items)), mp_context=get_context("spawn")) as pool:
            futures: dict[Future[IndexEntry | str], Item] = {pool.submit(_prepared, item, out): item for item in items}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
                bar.update()


def _prepared(item: Item, out: Path) -> IndexEntry | str:
    """Read an item and write its prepared form: its entry, or in a line why it cannot be read."""
    try:
        return replace(_write_case(replace(item.read(), split=item.split), out), source=_source(item))
    except Exception as error:  # noqa: BLE001 (whatever is wrong with one stack, the others go on)
        words = " ".join(str(getattr(error, "message", None) or error).split())
        return f"{type(error).__name__}: {words}"


def _shown(item: Item, data: Path) -> str:
    """The first of an item's files, below the data."""
    first = item.files[0] if item.files else Path()
    return str(first.relative_to(data)) if first.is_relative_to(data) else first.name


def _source(item: Item) -> str:
    """Names, sizes and times of an item's files, as a hash; of a folder those of the files in it."""
    files = [found for file in item.files for found in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    facts = [(file.name, *_size_and_time(file)) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _is_current(entry: IndexEntry | None, item: Item, out: Path) -> bool:
    if entry is None or not entry.source or entry.split != item.split:
        return False
    files = [name for name in (entry.file, entry.labels_file) if name]
    return all((out / name).is_file() for name in files) and entry.source == _source(item)


def _entries_so_far(out: Path) -> list[IndexEntry]:
    """The index and, after it, what a run that was stopped has added; its last line may be cut off."""
    found = read_index(out) if (out / INDEX_NAME).is_file() else []
    journal = out / JOURNAL_NAME
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []:
        try:
            found.append(_entry(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def write_cases(cases: Iterable[RawCase], out: Path) -> Path:
    """Write the prepared form of cases from anywhere and return the index, which keeps the other sets of the folder."""
    written = [_write_case(case, out) for case in cases]
    return _write_index(out, written, replaced={entry.dataset for entry in written})


def _write_index(out: Path, entries: Sequence[IndexEntry], *, replaced: set[str]) -> Path:
    """Write the index: these entries, and of the sets that are not replaced those that it has."""
    index = out / INDEX_NAME
    kept = [entry for entry in read_index(out) if entry.dataset not in replaced] if index.is_file() else []
    # Whichever came first, crops are drawn alike.
    ordered = sorted([*kept, *entries], key=lambda entry: (entry.dataset, entry.patient, entry.series))
    _write_json(index, [asdict(entry) for entry in ordered])
    (out / JOURNAL_NAME).unlink(missing_ok=True)
    return index


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def _write_case(case: RawCase, out: Path) -> IndexEntry:
    path = out / case.dataset / f"{case.patient}-{case.series}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    images = scaled_images(case)
    labels = None if case.labels is None else case.labels.voxels.astype(np.uint8)
    labels_path = path.with_name(f"{case.patient}-{case.series}-labels.npy")
    digest = hashlib.sha256(_save(path, images))
    if labels is not None:
        digest.update(_save(labels_path, labels))
    x, y, z = (float(value) for value in case.stack.spacing_mm)
    return IndexEntry(
        dataset=case.dataset,
        patient=case.patient,
        series=case.series,
        split=case.split,
        file=path.relative_to(out).as_posix(),
        spacing_mm=(x, y, z),
        shape=case.stack.voxels.shape,
        annotated=case.annotated,
        sha256=digest.hexdigest(),
        labels_file="" if labels is None else labels_path.relative_to(out).as_posix(),
        center=_center(labels, images.shape[2:]),
        closes=bool(len(images) > 1 and closes(images)),
    )


def _save(path: Path, array: np.ndarray) -> bytes:
    """Write an array; the file appears when it is whole. Returns the SHA-256 of its values."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()


def read_index(folder: Path) -> list[IndexEntry]:
    """The index of a prepared folder.

    Raises:
        FileNotFoundError: if there is none, with the command that makes it.
    """
    path = Path(folder) / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with: calid-train prepare --data DIR --out {folder}")
    return [_entry(record) for record in json.loads(path.read_text(encoding="utf-8"))]


def _entry(record: dict) -> IndexEntry:
    lists = {key: tuple(record[key]) for key in ("spacing_mm", "shape", "annotated")}
    if record.get("center") is not None:
        lists["center"] = tuple(record["center"])
    return IndexEntry(**{**record, **lists})


def provenance_of(
    entries: Iterable[IndexEntry], datasets: Iterable[str], *, split: str = "train"
) -> dict[str, dict[str, Any]]:
    """{set: cases, patients and SHA-256} of the cases of a split; the hash is that of the sorted hashes of their files.

    Args:
        entries: lines of the index.
        datasets: the sets; those without a case in the split are left out.
        split: split of the cases.
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


def load_cases(folder: Path, *, datasets: Sequence[str], split: str) -> Iterator[StoredCase]:
    """The prepared cases of one split, whose arrays stay on disk until they are asked for."""
    for entry in read_index(folder):
        if entry.dataset in datasets and entry.split == split:
            yield StoredCase(entry, Path(folder))
