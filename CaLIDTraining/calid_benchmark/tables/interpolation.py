"""`calid-evaluate interpolation`: slice n from n-1 and n+1 on patients no model ever saw (CaLID, Table I).

Figures are per slice, then per patient, then over patients; nothing is averaged over data sets or spacings. Brackets
are 95 % bootstrap intervals over patients, tests are Wilcoxon's signed ranks over patients, two-sided, uncorrected.
"reconstruction" is no interpolation: E and D of the true slice, the most that any method in this latent space reaches.

Three rows are CaLID without its diffusion, so that what each part adds can be told apart. All begin with the neighbors
as the motion network brings them half-way. "CaLID's motion alone" is their mean. "motion and texture" is that mean with
its fine texture made as strong as the neighbors', as the engine does after the diffusion: CaLID's rows differ from it
by what the diffusion adds. "motion, 8 views" averages that mean over the eight mirrored and swapped views of
"fidelity", which differs from it likewise.

Rows of fewer patients (`--slow-baselines`) are compared with the others on these patients, their Frechet distances and
rFID are to these patients' slices alone, and grow as slices become fewer.
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
from calid.errors import WeightsError
from calid.heart.medformer import features
from calid.heart.segmentation import warm_segmenter
from calid.run.device import choose_device
from calid.run.settings import Settings
from scipy.stats import spearmanr
from tqdm import tqdm

from calid_benchmark import metrics, perceptual
from calid_benchmark.perceptual import Perceptual
from calid_benchmark.systems import Named, between, chosen
from calid_benchmark.tables.drawings import dots, error_bars, sheet
from calid_benchmark.tables.questions import (
    PIXEL_MM,
    SIZE,
    Question,
    add_question_arguments,
    add_slow_argument,
    answerable,
    asked_of,
    by_group,
    notes_of_slow,
    offer_of,
)
from calid_benchmark.tables.record import cell, markdown_table, paragraphs, probability, write_table

FIGURES = {"psnr": 2, "ssim": 3, "sharpness": 2, "feature_distance": 3, "lpips": 3}
"""Figures with an interval, and their digits."""
HEADS = ("PSNR dB", "SSIM", "sharpness", "feature distance", "LPIPS-alex", "Frechet", "rFID", "s/slice")
UNCERTAINTY_PIXELS_PER_SLICE, HEART_PIXELS = 2000, 40


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
    true_pooled: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    truths: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def slices(self) -> int:
        return sum(len(images) for images in self.images)


def evaluate(
    asked: Sequence[Question], systems: Sequence[Named], judges: Judges, *, slow_patients: int | None = None
) -> dict[str, dict[str, Any]]:
    """{group: {system: row}}; a row has means over patients, 95 % intervals and p against linear and CaLID+.

    Args:
        asked: the questions.
        systems: who answers, linear interpolation among them.
        judges: what the answers are measured with.
        slow_patients: how many patients of a group the slow baselines are asked about; None is all.
    """
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group(asked).items():
        tallies = {system.name: Tally() for system in systems}
        answering = {system.name: answerable(system.name, members, slow_patients=slow_patients) for system in systems}
        for question in tqdm(members, desc=group, unit=" stacks"):
            truth = None if judges.extract is None else judges.extract(torch.from_numpy(question.truth)[:, None])
            for system in systems:
                if question in answering[system.name]:
                    judge(tallies[system.name], system, question, truth, judges)
        tables[group] = {name: _summary(tally, tallies) | _over_all(tally, judges) for name, tally in tallies.items()}
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
    tally.truths.append(question.truth)
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
        tally.true_pooled.append(metrics.pooled(truth))
    if judges.perceptual.lpips is not None:
        figures["lpips"] = judges.perceptual.lpips(question.truth, made)
    patient = tally.patients.setdefault(question.patient, {})
    for name, values in figures.items():
        patient.setdefault(name, []).extend(values)


def _summary(tally: Tally, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """A row, compared with linear interpolation and CaLID+ on the patients that it was asked about."""

    def means(side: Tally) -> dict[str, list[float]]:
        return _patient_means({patient: side.patients[patient] for patient in tally.patients})

    mine, linear = means(tally), means(tallies["linear"])
    best = means(tallies["CaLID+"]) if "CaLID+" in tallies else {}
    row: dict[str, Any] = {"patients": len(tally.patients), "slices": tally.slices}
    row |= {name: metrics.compared(mine[name], linear[name], best.get(name)) for name in FIGURES if name in mine}
    return row | {"seconds_per_slice": tally.seconds / tally.slices}


def _over_all(tally: Tally, judges: Judges) -> dict[str, float]:
    """The figures that only whole sets of slices have."""
    found = {}
    if tally.pooled:
        found["frechet"] = metrics.frechet_distance(*(np.concatenate(x) for x in (tally.true_pooled, tally.pooled)))
    if judges.perceptual.rfid is not None:
        found["rfid"] = judges.perceptual.rfid(*(np.concatenate(x) for x in (tally.truths, tally.images)))
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
    """Does the standard deviation say where the error is? Figures of some pixels of every slice.

    Returns:
        "everywhere" and "heart" (within 40 pixels, 72 mm, of the crop's center): each with the Spearman correlation of
        error and deviation, and both of their means by the deviation's decile.
    """
    settings = Settings(factor=2, method="calid+", mode="fidelity", samples=samples, device=device)
    rng = np.random.default_rng(0)
    places = {"everywhere": np.arange(SIZE**2), "heart": np.flatnonzero(_near_center())}
    found: dict[str, list[np.ndarray]] = {name: [] for name in places}
    for question in tqdm(asked, desc="uncertainty", unit=" stacks"):
        drawn = between(question.before, question.after, settings=settings, models_folder=models_folder)
        for truth, (value, deviation) in zip(question.truth, drawn, strict=True):
            pairs = np.stack([np.abs(truth - value).ravel(), deviation.ravel()])
            for name, pixels in places.items():
                found[name].append(pairs[:, rng.choice(pixels, UNCERTAINTY_PIXELS_PER_SLICE, replace=False)])
    slices = len(found["heart"])
    return {"slices": slices} | {name: _trust(*np.concatenate(pairs, axis=1)) for name, pairs in found.items()}


def _near_center() -> np.ndarray:
    """(128, 128) whether a pixel is where the heart is: crops are centred on it."""
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    return np.hypot(rows, columns) <= HEART_PIXELS


def _trust(error: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
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
        body = [[name, str(row["patients"]), *_cells(row, timed)] for name, row in rows.items()]
        lines += markdown_table(["system", "patients", *heads], body)
        lines += _tests(rows)
    return "\n".join([*lines, *notes])


def _cells(row: Mapping[str, Any], timed: Sequence[str]) -> list[str]:
    cells = [cell(row.get(name), digits) for name, digits in FIGURES.items() if name != "lpips"]
    lpips, rfid = perceptual_cells(row)
    frechet = f"{row['frechet']:.2f}" if "frechet" in row else "-"
    times = [f"{row[key]:.2f}" if key in row else "-" for key in timed]
    return [*cells, lpips, frechet, rfid, f"{row['seconds_per_slice']:.2f}", *times]


def perceptual_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """LPIPS-alex and rFID of a row as printed."""
    lpips = cell(row["lpips"], FIGURES["lpips"]) if "lpips" in row else "not measured"
    return lpips, f"{row['rfid']:.1f}" if "rfid" in row else "not measured"


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
    add_slow_argument(parser)
    parser.add_argument("--time-steps", type=int, metavar="N", help="also time N steps, as the paper's 128")
    parser.add_argument(
        "--uncertainty-every",
        type=int,
        default=5,
        metavar="N",
        help="how well the deviation tells the error, on every Nth stack; 0 leaves it out",
    )


def run(options: Namespace) -> int:
    asked, offer = asked_of(options), offer_of(options)
    systems = chosen(offer.systems, options.systems)
    judges = Judges(segmenter_features(options.models), perceptual.measures_of(options))
    tables = evaluate(asked, systems, judges, slow_patients=options.slow_baselines)
    if options.time_steps is not None:
        add_times(tables, asked, systems, steps=options.time_steps)
    remarks, trust = [*notes_of_slow(options.slow_baselines), *offer.notes], None
    if options.uncertainty_every:
        some = asked[:: options.uncertainty_every]
        trust = uncertainty(some, models_folder=options.models, samples=options.samples, device=options.device)
        remarks.insert(0, trust_note(trust))
    text = markdown(tables, [*notes_of(remarks, judges.perceptual), ""])
    record = {"tables": tables, "uncertainty": trust, "notes": list(offer.notes)}
    write_table(options, "interpolation", text, record | {"not_measured": judges.perceptual.reasons}, systems=systems)
    draw(options.out, tables, asked, systems)
    return 0


def trust_note(trust: Mapping[str, Any]) -> str:
    """What `uncertainty` found, as a sentence."""
    everywhere, heart = (trust[name]["spearman"] for name in ("everywhere", "heart"))
    return (
        f"Uncertainty: over {trust['slices']} slices, the Spearman correlation of the standard deviation over the "
        f"draws with the error is {everywhere:.2f} over all pixels, and {heart:.2f} within {HEART_PIXELS} pixels "
        f"({HEART_PIXELS * PIXEL_MM:.0f} mm) of the crop's center, where the heart is."
    )


def notes_of(notes: Sequence[str], measures: Perceptual) -> list[str]:
    """What is not in the table, and why, as paragraphs."""
    reasons = [f"{name} is not measured: {reason}." for name, reason in measures.reasons.items()]
    return paragraphs([*notes, *reasons])


@lru_cache(maxsize=1)
def segmenter_features(models_folder: Path | None) -> metrics.FeatureExtractor | None:
    """The frozen encoder of the bundled segmenter, or None where it is not installed."""
    try:
        segmenter = warm_segmenter(choose_device("cpu"), models_folder)
    except WeightsError:
        return None
    return lambda images: features(segmenter.model, images)
