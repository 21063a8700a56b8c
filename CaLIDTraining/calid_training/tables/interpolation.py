"""`calid-evaluate interpolation`: slice n from n-1 and n+1 on patients no model ever saw (CaLID, Table I).

Figures are per slice, then per patient, then over patients; nothing is averaged over data sets or spacings. Brackets
are 95 % bootstrap intervals over patients, tests are Wilcoxon's signed ranks over patients, two-sided, uncorrected.
"reconstruction" is no interpolation: E and D of the true slice, the most that any method in this latent space reaches.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.device import choose_device
from calid.errors import WeightsError
from calid.medformer import features
from calid.segmentation import warm_segmenter
from calid.settings import Settings
from scipy.stats import spearmanr
from tqdm import tqdm

from calid_training import metrics, perceptual
from calid_training.perceptual import Perceptual
from calid_training.systems import Named, between, chosen
from calid_training.tables.drawings import dots, error_bars, sheet
from calid_training.tables.questions import Question, add_question_arguments, asked_of, by_group, offer_of
from calid_training.tables.record import cell, markdown_table, paragraphs, probability, write_table

FIGURES = {"psnr": 2, "ssim": 3, "sharpness": 2, "feature_distance": 3, "lpips": 3}
"""Figures with an interval, and their digits."""
HEADS = ("PSNR dB", "SSIM", "sharpness", "feature distance", "LPIPS-alex", "Frechet", "rFID", "s/slice")
UNCERTAINTY_PIXELS_PER_SLICE = 2000
CARD_BEGIN, CARD_END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True)
class Judges:
    """What the figures are measured with.

    Args:
        extract: the segmenter's features, or None where it is not installed.
        perceptual: LPIPS and rFID, or why they are not measured.
    """

    extract: metrics.FeatureExtractor | None = None
    perceptual: Perceptual = field(default_factory=Perceptual)


@dataclass(eq=False)
class Tally:
    """What one system's slices of one group came to so far."""

    patients: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    pooled: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def slices(self) -> int:
        return sum(len(images) for images in self.images)


def evaluate(asked: Sequence[Question], systems: Sequence[Named], judges: Judges) -> dict[str, dict[str, Any]]:
    """{group: {system: row}}; a row has means over patients, 95 % intervals and p against linear and CaLID+."""
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group(asked).items():
        tallies, truth_pooled = {system.name: Tally() for system in systems}, []
        for question in tqdm(members, desc=group, unit=" stacks"):
            truth = None if judges.extract is None else judges.extract(torch.from_numpy(question.truth)[:, None])
            if truth is not None:
                truth_pooled.append(metrics.pooled(truth))
            for system in systems:
                judge(tallies[system.name], system, question, truth, judges)
        truths = np.concatenate([question.truth for question in members])
        truth_features = np.concatenate(truth_pooled) if truth_pooled else None
        rows = {name: _summary(tally, tallies) for name, tally in tallies.items()}
        for name, row in rows.items():
            row |= _over_all(tallies[name], truths, truth_features, judges)
        tables[group] = rows
    return tables


def judge(tally: Tally, system: Named, question: Question, truth: list[torch.Tensor] | None, judges: Judges) -> None:
    """Let a system answer a question, and add every slice's figures to its tally.

    Args:
        truth: features of the true slices, None where there is no extractor.
    """
    sides = (question.truth, question.truth) if system.sees_truth else (question.before, question.after)
    made, seconds = system.answer(*sides)
    tally.seconds += seconds
    tally.images.append(made)
    figures = {
        "psnr": metrics.psnr(question.truth, made),
        "ssim": metrics.ssim(question.truth, made),
        "gradient": metrics.gradient_magnitude(made),
        "true_gradient": metrics.gradient_magnitude(question.truth),
    }
    if judges.extract is not None and truth is not None:
        found = judges.extract(torch.from_numpy(made)[:, None])
        figures["feature_distance"] = metrics.feature_distance(truth, found)
        tally.pooled.append(metrics.pooled(found))
    if judges.perceptual.lpips is not None:
        figures["lpips"] = judges.perceptual.lpips(question.truth, made)
    patient = tally.patients.setdefault(question.patient, {})
    for name, values in figures.items():
        patient.setdefault(name, []).extend(values)


def _summary(tally: Tally, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    mine, linear = (_patient_means(side.patients) for side in (tally, tallies["linear"]))
    best = _patient_means(tallies["CaLID+"].patients) if "CaLID+" in tallies else {}
    row: dict[str, Any] = {"patients": len(tally.patients), "slices": tally.slices}
    row |= {name: metrics.compared(mine[name], linear[name], best.get(name)) for name in FIGURES if name in mine}
    return row | {"seconds_per_slice": tally.seconds / tally.slices}


def _over_all(tally: Tally, truths: np.ndarray, truth_features: np.ndarray | None, judges: Judges) -> dict[str, float]:
    """The figures that only whole sets of slices have."""
    found = {}
    if truth_features is not None:
        found["frechet"] = metrics.frechet_distance(truth_features, np.concatenate(tally.pooled))
    if judges.perceptual.rfid is not None:
        found["rfid"] = judges.perceptual.rfid(truths, np.concatenate(tally.images))
    return found


def _patient_means(patients: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Per-patient means; sharpness is the ratio of a patient's mean gradients, made to true."""
    means: dict[str, list[float]] = {}
    for figures in patients.values():
        for name in FIGURES:
            if name in figures:
                means.setdefault(name, []).append(float(np.mean(figures[name])))
        means.setdefault("sharpness", []).append(float(np.sum(figures["gradient"]) / np.sum(figures["true_gradient"])))
    return means


def add_times(
    tables: Mapping[str, Mapping[str, Any]], asked: Sequence[Question], systems: Sequence[Named], *, steps: int
) -> None:
    """Add the generation time of a slice at `steps` steps to the rows of systems that have steps, on one stack."""
    first = asked[0]
    for system in systems:
        if system.at_steps is None:
            continue
        slow = system.at_steps(steps)
        start = time.perf_counter()
        slow.make(first.before[:2], first.after[:2])
        seconds = (time.perf_counter() - start) / len(first.before[:2])
        for rows in tables.values():
            rows[system.name][f"seconds_per_slice_at_{steps}"] = seconds


def uncertainty(asked: Sequence[Question], *, models_folder: Path | None, samples: int, device: str) -> dict[str, Any]:
    """Does the standard deviation say where the error is? Spearman correlation over voxels, and error by its decile."""
    settings = Settings(factor=2, method="calid+", mode="fidelity", samples=samples, device=device)
    rng, errors, deviations = np.random.default_rng(0), [], []
    for question in tqdm(asked, desc="uncertainty", unit=" stacks"):
        drawn = between(question.before, question.after, settings=settings, models_folder=models_folder)
        for truth, (value, deviation) in zip(question.truth, drawn, strict=True):
            chosen = rng.choice(truth.size, UNCERTAINTY_PIXELS_PER_SLICE, replace=False)
            errors.append(np.abs(truth - value).ravel()[chosen])
            deviations.append(deviation.ravel()[chosen])
    error, deviation = np.concatenate(errors), np.concatenate(deviations)
    edges = np.quantile(deviation, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, deviation, side="right") - 1, 0, 9)
    return {
        "spearman": float(spearmanr(error, deviation).statistic),
        "deciles": [
            {"deviation": float(deviation[bins == i].mean()), "error": float(error[bins == i].mean())}
            for i in range(10)
            if (bins == i).any()
        ],
    }


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown, the tests below each, and notes at the end."""
    lines = []
    for group, rows in tables.items():
        first = next(iter(rows.values()))
        timed = sorted({key for row in rows.values() for key in row if key.startswith("seconds_per_slice_at_")})
        heads = [*HEADS, *(f"s/slice at {key.rpartition('_')[2]}" for key in timed)]
        lines += [f"**{group}**: {first['patients']} patients, {first['slices']} slices", ""]
        lines += markdown_table(["system", *heads], [[name, *_cells(row, timed)] for name, row in rows.items()])
        lines += _tests(rows)
    return "\n".join([*lines, *notes])


def _cells(row: Mapping[str, Any], timed: Sequence[str]) -> list[str]:
    cells = {name: cell(row.get(name), digits) for name, digits in FIGURES.items()}
    lpips = cells["lpips"] if "lpips" in row else "not measured"
    frechet = f"{row['frechet']:.2f}" if "frechet" in row else "-"
    rfid = f"{row['rfid']:.1f}" if "rfid" in row else "not measured"
    times = [f"{row[key]:.2f}" if key in row else "-" for key in timed]
    first = [cells[name] for name in FIGURES if name != "lpips"]
    return [*first, lpips, frechet, rfid, f"{row['seconds_per_slice']:.2f}", *times]


def _tests(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """p against linear interpolation and against CaLID+, where there are enough patients."""
    names = [name for name in FIGURES if all(name in row for row in rows.values())]
    tested = {name: [_pair(row[figure]) for figure in names] for name, row in rows.items()}
    if all(pair == "- / -" for pairs in tested.values() for pair in pairs):
        return []
    return [
        "p against linear / against CaLID+:",
        "",
        *markdown_table(["system", *names], [[name, *pairs] for name, pairs in tested.items()]),
    ]


def _pair(figure: Mapping[str, float | None]) -> str:
    return f"{probability(figure['p_against_linear'])} / {probability(figure.get('p_against_calid_plus'))}"


def draw(
    folder: Path, tables: Mapping[str, Mapping[str, Any]], asked: Sequence[Question], systems: Sequence[Named]
) -> None:
    """Means of every group, and a sheet of slices: the truth and what every system made of its neighbors."""
    for group, rows in tables.items():
        names = [name for name in ("psnr", "ssim", "sharpness", "feature_distance") if name in rows["linear"]]
        dots(folder / f"{group.replace(' ', '-')}.png", f"{group}: slice n from n-1 and n+1", error_bars(rows, names))
    sheet(folder / "slices.png", "The slice between: truth, and each system", sample_slices(asked, systems))


def sample_slices(asked: Sequence[Question], systems: Sequence[Named]) -> dict[str, dict[str, np.ndarray]]:
    """{group: {heading: picture}}: the middle slice of the first stack of every group."""
    rows = {}
    for group, members in by_group(asked).items():
        question = members[0]
        middle = len(question.truth) // 2
        pictures = {"before": question.before[middle], "truth": question.truth[middle], "after": question.after[middle]}
        for system in systems:
            if not system.sees_truth:
                pictures[system.name] = system.answer(question.before, question.after).images[middle]
        rows[group] = pictures
    return rows


def add_arguments(parser: ArgumentParser) -> None:
    add_question_arguments(parser, table="interpolation")
    perceptual.add_arguments(parser)
    parser.add_argument("--time-steps", type=int, metavar="N", help="also time N steps, as the paper's 128")
    parser.add_argument(
        "--no-uncertainty", action="store_true", help="leave out how well the deviation tells the error"
    )
    parser.add_argument("--card", type=Path, help="model card to write the tables into")


def run(options: Namespace) -> int:
    asked, offer = asked_of(options), offer_of(options)
    systems = chosen(offer.systems, options.systems)
    judges = Judges(segmenter_features(options.models), perceptual.measures_of(options))
    tables = evaluate(asked, systems, judges)
    if options.time_steps is not None:
        add_times(tables, asked, systems, steps=options.time_steps)
    notes, trust = notes_of(offer.notes, judges), None
    if not options.no_uncertainty:
        trust = uncertainty(asked, models_folder=options.models, samples=options.samples, device=options.device)
        notes.insert(0, f"Uncertainty: Spearman correlation with the error {trust['spearman']:.2f}")
    text = markdown(tables, ["", *notes, ""])
    if options.card is not None:
        write_into_card(options.card, text)
    record = {"tables": tables, "uncertainty": trust, "notes": list(offer.notes)}
    write_table(options, "interpolation", text, record | {"not_measured": judges.perceptual.reasons}, systems=systems)
    draw(options.out, tables, asked, systems)
    return 0


def notes_of(notes: Sequence[str], judges: Judges) -> list[str]:
    """What is not in the table, and why, as paragraphs."""
    reasons = [f"{name} is not measured: {reason}." for name, reason in judges.perceptual.reasons.items()]
    return paragraphs([*notes, *reasons])


def write_into_card(card: Path, text: str) -> None:
    """Put the tables between the card's marks."""
    before, _, rest = card.read_text().partition(CARD_BEGIN)
    _, _, after = rest.partition(CARD_END)
    if not rest or not after:
        raise ValueError(f"{card} has no place for figures: it needs the lines {CARD_BEGIN} and {CARD_END}")
    card.write_text(f"{before}{CARD_BEGIN}\n{text.strip()}\n{CARD_END}{after}")


@lru_cache(maxsize=1)
def segmenter_features(models_folder: Path | None) -> metrics.FeatureExtractor | None:
    """The frozen encoder of the bundled segmenter, or None where it is not installed."""
    try:
        segmenter = warm_segmenter(choose_device("cpu"), models_folder)
    except WeightsError:
        return None
    return lambda images: features(segmenter.model, images)
