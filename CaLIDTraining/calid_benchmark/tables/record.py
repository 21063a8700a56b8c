"""What a table leaves behind: its figures as JSON and Markdown, with everything that made them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from calid.errors import WeightsError
from calid.heart.segmentation import DEFAULT_MODEL as SEGMENTER
from calid.method.weights import find_model, read_manifest
from calid.run.batches import DEFAULT_MODEL
from calid.run.settings import DeviceName
from calid_training.errors import UsageError
from calid_training.prepare import INDEX_NAME

from calid_benchmark.segmenters import segmenter_folder


class Weighted(Protocol):
    """What has made rows of a table, and is recorded with them."""

    @property
    def weights(self) -> Sequence[tuple[str, str]]:
        """(model name, SHA-256) of all that is behind it."""
        ...


def cell(figure: Mapping[str, float] | None, digits: int) -> str:
    """A figure as printed: mean [low, high], or the mean alone where there is no interval."""
    if figure is None:
        return "-"
    limits = [f"{figure[name]:.{digits}f}" for name in ("low", "high") if name in figure]
    return " ".join([f"{figure['mean']:.{digits}f}", *([f"[{', '.join(limits)}]"] if limits else [])])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table and an empty one."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def paragraphs(notes: Iterable[str]) -> list[str]:
    """The lines of notes below a table, each with an empty one before it."""
    return [line for note in notes for line in ("", note)]


def probability(p: float | None) -> str:
    """A p-value as printed; "-" where the test is not possible."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True)
class Place:
    """Where a table goes, and what is said of how it was made.

    Args:
        out: folder for the table.
        models: folder with the manifest of CaLID's models; None takes the bundled ones.
        device: "auto", "cpu", "cuda" or "mps".
        into: Markdown files that the table is also written into.
        prepared: folder of the prepared sets behind the table, or None.
        said: what the user said on the command line, by name.
    """

    out: Path
    models: Path | None = None
    device: DeviceName = "auto"
    into: tuple[Path, ...] = ()
    prepared: Path | None = None
    said: Mapping[str, Any] = field(default_factory=dict)


def place_of(options: Namespace, table: str = "") -> Place:
    """The place that a command line names.

    Args:
        options: options of a table.
        table: name of one of several tables: a folder below `out`, and only files that have a place for it.
    """
    said = {key: value for key, value in vars(options).items() if key != "run"}
    into = tuple(file for file in options.into if not table or has_place(file, table))
    return Place(options.out / table, options.models, options.device, into, said.get("prepared"), said)


def facts_behind(place: Place, settings: Mapping[str, Any], systems: Iterable[Weighted] = ()) -> dict[str, Any]:
    """Everything that made a table."""
    entry = read_manifest(place.models).get(DEFAULT_MODEL)
    weights = {name: sha256 for system in systems for name, sha256 in system.weights}
    options = {**place.said, "out": place.out, **settings}
    return {
        "model": None if entry is None else entry.name,
        "model_sha256": None if entry is None else entry.sha256,
        "weights": weights | _segmenter(place.models),
        "prepared_sha256": None if place.prepared is None else _sha256(place.prepared / INDEX_NAME),
        "revision": _revision(),
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "options": {key: str(value) for key, value in options.items()},
    }


def machine() -> dict[str, Any]:
    """The processor, the cores this process may use, and how busy they are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": cores,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _segmenter(models_folder: Path | None) -> dict[str, str]:
    try:
        return {SEGMENTER: find_model(SEGMENTER, segmenter_folder(models_folder)).sha256}
    except WeightsError:
        return {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def write_table(
    place: Place,
    name: str,
    text: str,
    record: Mapping[str, Any],
    *,
    systems: Iterable[Weighted] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Print a table, and write it as Markdown, as JSON with all that made it, and into the files that want it.

    Args:
        place: folder and files for it.
        name: name of the table.
        text: table as Markdown.
        record: figures of the table.
        systems: who made its rows.
        settings: what the table was made with, by name, beside and instead of what the user said.
    """
    place.out.mkdir(parents=True, exist_ok=True)
    made_by = {"made_by": facts_behind(place, settings or {}, systems)}
    (place.out / f"{name}.json").write_text(json.dumps({**record, **made_by}, indent=1))
    (place.out / f"{name}.md").write_text(text)
    print(text)
    for file in place.into:
        write_into(file, name, text)


def has_place(file: Path, name: str) -> bool:
    """Whether a Markdown file has a place for the table `name`."""
    return _place_of(name).search(file.read_text()) is not None


def write_into(file: Path, name: str, text: str) -> None:
    """Put a table into its place in a Markdown file, instead of what was there.

    Raises:
        UsageError: if there is no place for it.
    """
    begin, end = _marks_of(name)
    filled, count = _place_of(name).subn(lambda _: f"{begin}\n{text.strip()}\n{end}", file.read_text())
    if count == 0:
        raise UsageError(f"{file} has no place for {name}: it needs the lines {begin} and {end}")
    file.write_text(filled)


def _marks_of(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _place_of(name: str) -> re.Pattern[str]:
    return re.compile(".*?".join(_marks_of(name)), re.DOTALL)
