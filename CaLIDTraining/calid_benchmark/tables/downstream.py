"""`calid-evaluate downstream`: one segmenter on slices that systems made, against experts' labels (CaLID, Table II).

Slice n is made from n-1 and n+1 (see `questions`), segmented by the bundled MedFormer, and compared with the expert's
labels of the slice that was left out. "original" is the same segmenter on the real slice: the most that can be reached.
"shape-based" is no image at all: the experts' labels of both neighbors, interpolated by their signed distances.

"Dice" is over all of a patient's slices together; "Dice per slice" and the distances are means over slices. A slice on
which neither has the structure is left out; where one of the two lacks it, Dice is 0, and distances do not exist and
are left out ("one empty" counts these). Means are per stack first, then over a patient's stacks, then over patients.
Pixels are 1.8 mm; frames that nobody labeled are not asked for.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from calid.heart.segmentation import Segmenter
from calid.run.device import choose_device
from calid_training.segmenter import STRUCTURE_NAMES
from tqdm import tqdm

from calid_benchmark import metrics
from calid_benchmark.rivals import shape_based
from calid_benchmark.segmenters import judging_segmenter, segmented
from calid_benchmark.systems import CONTROLS, Named, chosen
from calid_benchmark.tables.answers import Answers, ask, with_controls
from calid_benchmark.tables.drawings import dots, error_bars
from calid_benchmark.tables.questions import (
    PIXEL_MM,
    StackQuestion,
    add_question_arguments,
    add_slow_argument,
    asked_of,
    by_group,
    notes_of_slow,
    offer_of,
)
from calid_benchmark.tables.record import Place, cell, markdown_table, paragraphs, place_of, probability, write_table

ORIGINAL, SHAPE_BASED = "original", "shape-based (labels given)"
DISTANCES = ("asd", "hd", "assd")
SPACINGS = {"px": (1.0, 1.0), "mm": (PIXEL_MM, PIXEL_MM)}
LENGTHS = tuple(f"{name}_{unit}" for name in DISTANCES for unit in SPACINGS)
FIGURES = ("dice", "dice_per_slice", *LENGTHS)

Labeled = Callable[[StackQuestion], np.ndarray | None]
"""A question -> labels (N, Y, X) of its slices, or None where the row was not asked."""


def labelings_of(answers: Answers, segmenter: Segmenter) -> dict[str, Labeled]:
    """{row: how the slices that it answered are labeled}, between the real slices and the experts' own contours."""

    def by_images(row: str) -> Labeled:
        def labels_of(question: StackQuestion) -> np.ndarray | None:
            kept = answers.rows[row].get(question)
            return None if kept is None else segmented(segmenter, kept.images())

        return labels_of

    rows: dict[str, Labeled] = {ORIGINAL: lambda question: segmented(segmenter, question.truth)}
    rows |= {row: by_images(row) for row in answers.rows if row not in answers.ceilings}
    rows[SHAPE_BASED] = lambda question: shape_based.between(question.drawn[:-2], question.drawn[2:])
    return rows


def evaluate(asked: Sequence[StackQuestion], rows: Mapping[str, Labeled]) -> dict[str, dict[str, Any]]:
    """{group: {row: {structure or "mean": {figure: {mean, low, high, p...}, "one_empty": slices}}}}.

    Args:
        asked: the questions; those about frames without labels are left out.
        rows: who labels the slices.
    """
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group([question for question in asked if question.labels is not None]).items():
        found: dict[str, list[tuple[str, metrics.Figures]]] = {}
        for name, labels_of in tqdm(rows.items(), desc=group, unit=" rows"):
            made = ((question, labels_of(question)) for question in members)
            stacks: list[tuple[str, metrics.Figures]] = [
                (question.patient, compare_labels(labels, question)) for question, labels in made if labels is not None
            ]
            if stacks:
                found[name] = stacks
        tables[group] = {name: _row(stacks, found) for name, stacks in found.items()}
    return tables


def compare_labels(made: np.ndarray, question: StackQuestion) -> dict[str, dict[str, float]]:
    """{structure: {figure: value}} of one question's labels (N, Y, X), and their mean over structures."""
    truth = question.drawn[1:-1]
    structures = {
        name: compare_slices(made == label, truth == label)
        for label, name in STRUCTURE_NAMES.items()
        if label in question.annotated
    }
    names = (*FIGURES, "one_empty")
    means = {name: metrics.known_mean([one[name] for one in structures.values()]) for name in names}
    return structures | {"mean": means}


def compare_slices(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of one structure on slices (N, Y, X); NaN where a figure does not exist."""
    pairs = [(a, b) for a, b in zip(made, truth, strict=True) if a.any() or b.any()]
    found = [metrics.compare_masks(a, b, SPACINGS) for a, b in pairs]
    return {
        "dice": metrics.compare_masks(made, truth, {})["dice"],
        "dice_per_slice": metrics.known_mean([one["dice"] for one in found]),
        "one_empty": float(sum(np.isnan(one["hd_px"]) for one in found)),
        **{name: metrics.known_mean([one[name] for one in found]) for name in LENGTHS},
    }


def _row(
    stacks: Sequence[tuple[str, metrics.Figures]], found: Mapping[str, Sequence[tuple[str, metrics.Figures]]]
) -> dict[str, Any]:
    """A row, compared with linear interpolation and CaLID+ on the patients that it was asked about."""
    asked = {patient for patient, _ in stacks}
    others = (found[name] if name in found else found["linear"] for name in ("linear", "CaLID+"))
    sides = [metrics.per_patient(stacks)]
    sides += [metrics.per_patient((patient, one) for patient, one in other if patient in asked) for other in others]
    row: dict[str, Any] = {"patients": len(asked)}
    for structure in sides[0][0]:
        row[structure] = {"one_empty": sum(one[structure]["one_empty"] for _, one in stacks if structure in one)}
        for name in FIGURES:
            row[structure][name] = metrics.compared(*([one[structure][name] for one in side] for side in sides))
    return row


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown, a block per structure; brackets are 95 % bootstrap intervals over patients."""
    heads = ["slices", "patients", "Dice", "Dice per slice", "ASD mm (px)", "HD mm (px)", "ASSD mm (px)"]
    heads += ["p of Dice", "one empty"]
    lines = []
    for group, rows in tables.items():
        structures = [name for name in rows[ORIGINAL] if name != "patients"]
        for structure in structures:
            lines += [f"**{group}, {structure}**: {rows[ORIGINAL]['patients']} patients", ""]
            body = [[name, str(row["patients"]), *_cells(row[structure])] for name, row in rows.items()]
            lines += markdown_table(heads, body)
    return "\n".join([*lines, "p of Dice: against linear / against CaLID+.", *notes, ""])


def _cells(figures: Mapping[str, Any]) -> list[str]:
    distances = [f"{cell(figures[f'{name}_mm'], 2)} ({_plain(figures[f'{name}_px'])})" for name in DISTANCES]
    dice = figures["dice"]
    pair = "-"
    if dice is not None:
        pair = f"{probability(dice['p_against_linear'])} / {probability(dice['p_against_calid_plus'])}"
    overlaps = [cell(figures[name], 3) for name in ("dice", "dice_per_slice")]
    return [*overlaps, *distances, pair, f"{figures['one_empty']:.0f}"]


def _plain(figure: Mapping[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.2f}"


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_question_arguments(parser, table="downstream")
    add_slow_argument(parser)


def make(
    place: Place,
    answers: Answers,
    segmenter: Segmenter,
    *,
    systems: Sequence[Named],
    notes: Sequence[str] = (),
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        answers: answers of all rows.
        segmenter: labels the slices.
        systems: systems that answered, whose weights the table names.
        notes: remarks below the table.
    """
    tables = evaluate(answers.asked, labelings_of(answers, segmenter))
    write_table(
        place,
        "downstream",
        markdown(tables, paragraphs(notes)),
        {"tables": tables, "notes": list(notes)},
        systems=systems,
    )
    for group, rows in tables.items():
        means = {name: row["mean"] for name, row in rows.items()}
        path = place.out / f"{group.replace(' ', '-')}.png"
        dots(path, f"{group}: mean of the structures", error_bars(means, ("dice", "asd_mm", "hd_mm", "assd_mm")))


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    offer = offer_of(options)
    systems = chosen(offer.systems, options.systems)
    segmenter = judging_segmenter(choose_device(options.device), options.models)
    notes = [*notes_of_slow(options.slow_baselines), *offer.notes]
    with TemporaryDirectory() as folder:
        answers = ask(systems, asked_of(options), Path(folder), slow_patients=options.slow_baselines)
        answers = with_controls(answers, CONTROLS, Path(folder))
        make(place_of(options), answers, segmenter, systems=systems, notes=notes)
    return 0
