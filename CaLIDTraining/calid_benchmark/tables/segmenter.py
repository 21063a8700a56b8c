"""`calid-evaluate segmenter`: the bundled segmenter against experts' labels on patients that never trained anything.

Figures and what is done with empty masks: `calid_benchmark.metrics`.
"per slice" compares in the plane, slice by slice; "per stack" compares volumes in millimeters (and for Dice and VOE
their voxels). Means are per stack first, then over stacks.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from calid.heart.anatomy import clean_labels
from calid.heart.segmentation import Segmenter, load_segmenter, segment_with
from calid.run.device import choose_device
from calid.stack import Stack
from calid_training.datasets import RawCase, read_cases
from calid_training.segmenter import STRUCTURE_NAMES
from tqdm import tqdm

from calid_benchmark import metrics
from calid_benchmark.metrics import DISTANCES
from calid_benchmark.tables.drawings import dots, error_bars
from calid_benchmark.tables.questions import add_place_arguments
from calid_benchmark.tables.record import Place, markdown_table, place_of, write_table

OVERLAPS = ("dice", "voe")


@dataclass(frozen=True)
class Comparison:
    """One structure, once made and once drawn by an expert.

    Args:
        case: name of the case, "<patient>/<phase>".
        phase: "ED" or "ES".
        structure: "lv", "myocardium" or "rv".
        level: "slice" or "stack".
        figures: values by name, "dice", "voe", and "hd_mm", "asd_mm", "assd_mm", per slice also in "_px"; distances are
            missing where one mask is empty.
    """

    case: str
    phase: str
    structure: str
    level: str
    figures: Mapping[str, float]


def comparisons_of(made: Stack, case: RawCase) -> list[Comparison]:
    """All comparisons of a labeled static case, of the structures that its expert drew."""
    found = []
    for value, structure in STRUCTURE_NAMES.items():
        if value not in case.annotated:
            continue
        a, b = made.voxels[0] == value, case.drawn.voxels[0] == value
        spacing = case.stack.spacing_mm[::-1]
        pairs = [("stack", a, b, spacing)]
        pairs += [("slice", x, y, spacing[1:]) for x, y in zip(a, b, strict=True)]
        for level, x, y, spacing_mm in pairs:
            if x.any() or y.any():
                figures = _figures(x, y, spacing_mm, in_pixels=level == "slice")
                found.append(Comparison(f"{case.patient}/{case.series}", case.series, structure, level, figures))
    return found


def _figures(made: np.ndarray, truth: np.ndarray, spacing_mm: np.ndarray, *, in_pixels: bool) -> dict[str, float]:
    spacings = {"mm": spacing_mm, "px": np.ones(made.ndim)} if in_pixels else {"mm": spacing_mm}
    figures = metrics.compare_masks(made, truth, {unit: spacing.tolist() for unit, spacing in spacings.items()})
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def table_rows(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Rows by level, phase ("ED", "ES", "ED+ES") and structure (and their mean): means over stacks, and counts."""
    comparisons = list(comparisons)
    rows = []
    for level in ("slice", "stack"):
        for phase in ("ED", "ES", "ED+ES"):
            for structure in (*STRUCTURE_NAMES.values(), "mean"):
                chosen = [
                    c
                    for c in comparisons
                    if c.level == level and phase in (c.phase, "ED+ES") and structure in (c.structure, "mean")
                ]
                if chosen:
                    rows.append({"level": level, "phase": phase, "structure": structure, **_row(chosen)})
    return rows


def _row(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stacks": len({c.case for c in comparisons}),
        "masks": len(comparisons),
        "one_empty": sum("hd_mm" not in c.figures for c in comparisons),
    }
    for name in sorted({name for c in comparisons for name in c.figures}):
        groups: dict[tuple[str, str], list[float]] = {}
        for c in comparisons:
            if name in c.figures:
                groups.setdefault((c.case, c.structure), []).append(c.figures[name])
        per_stack = [float(np.mean(values)) for values in groups.values()]
        row[name] = {
            "mean": float(np.mean(per_stack)),
            "sd": float(np.std(per_stack)),
            "worst": _worst(name, per_stack),
        }
        patients = {case.partition("/")[0] for case, _ in groups}
        if len(patients) == len(groups):  # an interval over stacks of the same patients would be too narrow
            row[name] |= metrics.summary(per_stack) or {}
    return row


def _worst(name: str, values: Sequence[float]) -> float:
    return min(values) if name == "dice" else max(values)


def evaluate(segmenter: Segmenter, cases: Iterable[RawCase], *, clean: bool) -> list[Comparison]:
    """Segment every labeled case and compare; `clean` judges the volumes after `anatomy.clean_labels`."""
    found = []
    for case in tqdm(cases, desc="segmenter", unit=" stacks"):
        made = segment_with(segmenter, case.stack)
        found += comparisons_of(clean_labels(made) if clean else made, case)
    return found


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown: mean (standard deviation over stacks)."""
    lines = []
    for level, unit_names in (("slice", ("mm", "px")), ("stack", ("mm",))):
        names = [*OVERLAPS, *(f"{name}_{unit}" for unit in unit_names for name in DISTANCES)]
        heads = ["phase", "structure", *names, "stacks", "masks", "one empty"]
        members = [_cells(row, names) for row in rows if row["level"] == level]
        lines += [f"**Per {level}**", "", *markdown_table(heads, members)]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    figures = [_cell(row.get(name), digits=3 if name == "dice" else 2) for name in names]
    return [row["phase"], row["structure"], *figures, *(str(row[name]) for name in ("stacks", "masks", "one_empty"))]


def _cell(figure: Mapping[str, float] | None, *, digits: int) -> str:
    return "-" if figure is None else f"{figure['mean']:.{digits}f} ({figure['sd']:.{digits}f})"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds one folder per set")
    parser.add_argument("--dataset", default="acdc", help="a set with experts' labels")
    parser.add_argument("--split", default="test", help="ACDC's test split is patients 061-080 and 101-150")
    parser.add_argument("--clean", action="store_true", help="judge the cleaned volumes instead of the raw slices")
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks")
    add_place_arguments(parser, table="segmenter")


def make(
    place: Place,
    data: Path,
    *,
    dataset: str = "acdc",
    split: str = "test",
    clean: bool = False,
    stacks: int | None = None,
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        data: folder that holds one folder per set.
        dataset: set whose patients judge.
        split: patients who judge.
        clean: whether the cleaned volumes are judged instead of the raw slices.
        stacks: how many, from the first on; None is all.
    """
    chosen = (case for case in read_cases(data, dataset) if case.split == split)
    cases = islice((case for case in chosen if case.labels is not None and case.stack.num_frames == 1), stacks)
    segmenter = load_segmenter(choose_device(place.device), models_folder=place.models)
    seen: list[tuple[str, int]] = []
    comparisons = evaluate(segmenter, _counted(cases, seen), clean=clean)
    rows = table_rows(comparisons)
    patients, slices = len({patient for patient, _ in seen}), sum(count for _, count in seen)
    record = {
        "patients": patients,
        "slices": slices,
        "rows": rows,
        "comparisons": [asdict(c) for c in comparisons if c.level == "stack"],
    }
    head = f"{dataset} {split}: {patients} patients, {slices} slices"
    write_table(place, "segmenter", f"{head}\n\n{markdown(rows)}", record)
    draw(place.out / "segmenter.png", f"{head}: whole stacks", rows)


def _counted(cases: Iterable[RawCase], seen: list[tuple[str, int]]) -> Iterator[RawCase]:
    """The cases; (patient, number of slices) of each is noted as it goes by."""
    for case in cases:
        seen.append((case.patient, case.stack.num_slices))
        yield case


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    make(
        place_of(options),
        options.data,
        dataset=options.dataset,
        split=options.split,
        clean=options.clean,
        stacks=options.quick,
    )
    return 0


def draw(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Means of whole stacks with their 95 % intervals over patients, a line per phase and structure."""
    shown = [row for row in rows if row["level"] == "stack" and row["phase"] != "ED+ES" and row["structure"] != "mean"]
    stacks = {f"{row['phase']}, {row['structure']}": row for row in shown}
    dots(path, title, error_bars(stacks, ("dice", "voe", "hd_mm", "assd_mm")))
