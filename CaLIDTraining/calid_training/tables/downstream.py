"""`calid-evaluate downstream`: one segmenter on slices that systems made, against experts' labels (CaLID, Table II).

Slice n is made from n-1 and n+1 (see `questions`), segmented by the bundled MedFormer, and compared with the expert's
labels of the slice that was left out. "original" is the same segmenter on the real slice: the most that can be reached.
"shape-based" is no image at all: the experts' labels of both neighbors, interpolated by their signed distances.

"Dice" is over all of a patient's slices together; "Dice per slice" and the distances are means over slices. A slice on
which neither has the structure is left out; where one of the two lacks it, Dice is 0, and distances do not exist and
are left out ("one empty" counts these). Means are per patient first, then over patients. Pixels are 1.8 mm.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from calid.device import choose_device
from calid.segmentation import Segmenter, most_likely, warm_segmenter
from tqdm import tqdm

from calid_training import metrics
from calid_training.baselines import shape_based
from calid_training.segmenter import STRUCTURE_NAMES
from calid_training.systems import Named, chosen
from calid_training.tables.drawings import dots, error_bars
from calid_training.tables.questions import PIXEL_MM, Question, add_question_arguments, asked_of, by_group, offer_of
from calid_training.tables.record import cell, markdown_table, paragraphs, probability, write_table

ORIGINAL, SHAPE_BASED = "original", "shape-based (labels given)"
DISTANCES = ("asd", "hd", "assd")
FIGURES = ("dice", "dice_per_slice", *(f"{name}_{unit}" for name in DISTANCES for unit in ("px", "mm")))

Answers = Callable[[Question], np.ndarray]
"""A question -> labels (N, Y, X) of its slices."""


def segmented(segmenter: Segmenter, images: np.ndarray) -> np.ndarray:
    """Labels (N, Y, X) of images (N, Y, X) in [0, 1]."""
    foreground = segmenter.foreground(torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None])
    return most_likely(foreground)


def answers(systems: Sequence[Named], segmenter: Segmenter) -> dict[str, Answers]:
    """{row: how it labels the slices of a question}."""

    def by_images(system: Named) -> Answers:
        return lambda question: segmented(segmenter, system.answer(question.before, question.after).images)

    rows: dict[str, Answers] = {ORIGINAL: lambda question: segmented(segmenter, question.truth)}
    rows |= {system.name: by_images(system) for system in systems if not system.sees_truth}
    rows[SHAPE_BASED] = lambda question: shape_based.between(question.stack_labels[:-2], question.stack_labels[2:])
    return rows


def evaluate(asked: Sequence[Question], rows: Mapping[str, Answers]) -> dict[str, dict[str, Any]]:
    """{group: {row: {structure or "mean": {figure: {mean, low, high, p...}, "one_empty": slices}}}}."""
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group([question for question in asked if question.labels is not None]).items():
        found: dict[str, list[dict[str, dict[str, float]]]] = {}
        for name, labels_of in tqdm(rows.items(), desc=group, unit=" rows"):
            found[name] = [compare(labels_of(question), question) for question in members]
        tables[group] = {name: _row(patients, found) for name, patients in found.items()}
    return tables


def compare(made: np.ndarray, question: Question) -> dict[str, dict[str, float]]:
    """{structure: {figure: value}} of one question's labels (N, Y, X), and their mean over structures."""
    structures = {
        name: compare_masks(made == label, question.labels == label)
        for label, name in STRUCTURE_NAMES.items()
        if label in question.annotated
    }
    names = (*FIGURES, "one_empty")
    return structures | {"mean": {name: _mean([one[name] for one in structures.values()]) for name in names}}


def compare_masks(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Figures of one structure on slices (N, Y, X); NaN where a figure does not exist."""
    pairs = [(a, b) for a, b in zip(made, truth, strict=True) if a.any() or b.any()]
    both = [metrics.distances(a, b, (1.0, 1.0)) for a, b in pairs if a.any() and b.any()]
    figures = {
        "dice": metrics.overlap(made, truth)["dice"] if pairs else np.nan,
        "dice_per_slice": _mean([metrics.overlap(a, b)["dice"] for a, b in pairs]),
        "one_empty": float(len(pairs) - len(both)),
    }
    for name in DISTANCES:
        pixels = _mean([one[name] for one in both])
        figures |= {f"{name}_px": pixels, f"{name}_mm": pixels * PIXEL_MM}
    return figures


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that exist, NaN if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _row(
    patients: Sequence[Mapping[str, Mapping[str, float]]],
    found: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]],
) -> dict[str, Any]:
    def values(side: Sequence[Mapping[str, Mapping[str, float]]], structure: str, name: str) -> list[float]:
        return [patient[structure][name] for patient in side]

    row: dict[str, Any] = {"patients": len(patients)}
    for structure in patients[0]:
        row[structure] = {"one_empty": float(np.sum(values(patients, structure, "one_empty")))}
        for name in FIGURES:
            sides = (patients, found["linear"], found.get("CaLID+", found["linear"]))
            row[structure][name] = metrics.compared(*(values(side, structure, name) for side in sides))
    return row


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown, a block per structure; brackets are 95 % bootstrap intervals over patients."""
    heads = ["slices", "Dice", "Dice per slice", "ASD mm (px)", "HD mm (px)", "ASSD mm (px)", "p of Dice", "one empty"]
    lines = []
    for group, rows in tables.items():
        structures = [name for name in rows[ORIGINAL] if name != "patients"]
        for structure in structures:
            lines += [f"**{group}, {structure}**: {rows[ORIGINAL]['patients']} patients", ""]
            lines += markdown_table(heads, [[name, *_cells(row[structure])] for name, row in rows.items()])
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
    add_question_arguments(parser, table="downstream")


def run(options: Namespace) -> int:
    offer = offer_of(options)
    systems = chosen(offer.systems, options.systems)
    segmenter = warm_segmenter(choose_device(options.device), options.models)
    tables = evaluate(asked_of(options), answers(systems, segmenter))
    text = markdown(tables, paragraphs(offer.notes))
    write_table(options, "downstream", text, {"tables": tables, "notes": list(offer.notes)}, systems=systems)
    for group, rows in tables.items():
        means = {name: row["mean"] for name, row in rows.items()}
        path = options.out / f"{group.replace(' ', '-')}.png"
        dots(path, f"{group}: mean of the structures", error_bars(means, ("dice", "asd_mm", "hd_mm", "assd_mm")))
    return 0
