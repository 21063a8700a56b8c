"""`calid-evaluate interpolation`: slice n from n-1 and n+1 on patients no model ever saw (paper, Table I's protocol).

Every stack is cut to heart-centred 128 x 128 crops at 1.8 mm, scaled to [0, 1] between its 1st and 99.5th percentile.
Figures are per slice, then per patient, then over patients; nothing is averaged over data sets or spacings.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.settings import Settings
from calid.weights import find_model
from scipy.stats import spearmanr
from tqdm import tqdm

from calid_training import metrics
from calid_training.crops import CropPlan, apply_crop, heart_center
from calid_training.prepare import PreparedCase, load_cases
from calid_training.systems import Named, between, interpolation_systems

PIXEL_MM, SIZE = 1.8, 128
FIGURES = ("psnr", "ssim", "sharpness", "feature_distance")
UNCERTAINTY_PIXELS_PER_SLICE = 2000
CARD_BEGIN, CARD_END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True, eq=False)
class Question:
    """The slices of one stack at one spacing with both their neighbors.

    Args:
        group: "<set> <ED|ES|...> <spacing> mm", a block of the table.
        before, truth, after: (N, 128, 128) float32 in [0, 1].
        labels: (N, 128, 128) the experts' labels of `truth`, or None.
    """

    group: str
    patient: str
    before: np.ndarray
    truth: np.ndarray
    after: np.ndarray
    labels: np.ndarray | None = None


def questions(cases: Iterable[PreparedCase]) -> list[Question]:
    """One question per frame of every case that has at least three slices."""
    found = []
    for case in cases:
        native_mm, _, spacing = case.entry.spacing_mm
        column, row = heart_center(case)
        plan = CropPlan((float(column), float(row)), PIXEL_MM, angle=0.0, mirrored=False, gamma=1.0, size=SIZE)
        for index, frame in enumerate(case.images):
            if len(frame) < 3:
                continue
            images = (apply_crop(frame, plan, native_mm=native_mm)[:, 0].numpy() + 1) / 2
            labels = None if case.labels is None else _cut_labels(case.labels[index, 1:-1], plan, native_mm=native_mm)
            group = f"{case.entry.dataset} {case.entry.series} {spacing:.0f} mm"
            found.append(Question(group, case.entry.patient, images[:-2], images[1:-1], images[2:], labels))
    return found


def _cut_labels(labels: np.ndarray, plan: CropPlan, *, native_mm: float) -> np.ndarray:
    """The labels (N, Y, X) on the crop's pixels: the structure with the largest share of each."""
    masks = [(labels == label).astype(np.float32) for label in range(int(labels.max(initial=0)) + 1)]
    shares = [apply_crop(mask, plan, native_mm=native_mm)[:, 0].numpy() for mask in masks]
    return np.argmax(shares, axis=0).astype(np.uint8)


def judge(
    question: Question, made: np.ndarray, extract: metrics.FeatureExtractor | None
) -> tuple[dict[str, list[float]], np.ndarray | None]:
    """Figures of every slice, and the pooled features of what was made (for the Frechet distance)."""
    truth = question.truth
    figures = {
        "psnr": metrics.psnr(truth, made),
        "ssim": metrics.ssim(truth, made),
        "gradient": metrics.gradient_magnitude(made),
        "true_gradient": metrics.gradient_magnitude(truth),
    }
    if extract is None:
        return figures, None
    features = extract(torch.from_numpy(made)[:, None])
    figures["feature_distance"] = metrics.feature_distance(extract(torch.from_numpy(truth)[:, None]), features)
    return figures, metrics.pooled(features)


def evaluate(
    asked: Sequence[Question], systems: Sequence[Named], extract: metrics.FeatureExtractor | None
) -> dict[str, dict[str, Any]]:
    """{group: {system: row}}; a row has means over patients, 95 % intervals and p against linear interpolation."""
    tables: dict[str, dict[str, Any]] = {}
    for group in sorted({question.group for question in asked}):
        members = [question for question in asked if question.group == group]
        truth_features = None
        if extract is not None:
            truth_features = _all_features(members, extract)
        raw = {system.name: _rows(system, members, extract) for system in tqdm(systems, desc=group, unit=" systems")}
        tables[group] = {
            name: _summary(rows, raw["linear"], truth_features) | {"seconds_per_slice": rows["seconds_per_slice"]}
            for name, rows in raw.items()
        }
    return tables


def _all_features(members: Sequence[Question], extract: metrics.FeatureExtractor) -> np.ndarray:
    return np.concatenate([metrics.pooled(extract(torch.from_numpy(question.truth)[:, None])) for question in members])


def _rows(system: Named, members: Sequence[Question], extract: metrics.FeatureExtractor | None) -> dict[str, Any]:
    per_patient: dict[str, dict[str, list[float]]] = {}
    pooled, seconds = [], 0.0
    for question in members:
        start = time.perf_counter()
        made = np.asarray(system.make(question.before, question.after), np.float32).clip(0, 1)
        seconds += time.perf_counter() - start
        figures, features = judge(question, made, extract)
        patient = per_patient.setdefault(question.patient, {})
        for name, values in figures.items():
            patient.setdefault(name, []).extend(values)
        pooled.append(features)
    count = sum(len(question.truth) for question in members)
    return {"patients": per_patient, "pooled": pooled, "slices": count, "seconds_per_slice": seconds / count}


def _summary(rows: dict[str, Any], linear: dict[str, Any], truth: np.ndarray | None) -> dict[str, Any]:
    mine, theirs = (_patient_means(side["patients"]) for side in (rows, linear))
    row: dict[str, Any] = {"patients": len(rows["patients"]), "slices": rows["slices"]}
    for name in FIGURES:
        if name in mine:
            low, high = metrics.interval(mine[name])
            p = metrics.paired_p(mine[name], theirs[name])
            row[name] = {"mean": float(np.mean(mine[name])), "low": low, "high": high, "p_against_linear": p}
    if truth is not None:
        row["frechet"] = metrics.frechet_distance(truth, np.concatenate(rows["pooled"]))
    return row


def _patient_means(patients: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Per-patient means; sharpness is the ratio of a patient's mean gradients, made to true."""
    means: dict[str, list[float]] = {}
    for figures in patients.values():
        for name in ("psnr", "ssim", "feature_distance"):
            if name in figures:
                means.setdefault(name, []).append(float(np.mean(figures[name])))
        means.setdefault("sharpness", []).append(float(np.sum(figures["gradient"]) / np.sum(figures["true_gradient"])))
    return means


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


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown; brackets are 95 % bootstrap intervals over patients."""
    lines = []
    for group, rows in tables.items():
        first = next(iter(rows.values()))
        lines += [f"**{group}**: {first['patients']} patients, {first['slices']} slices", ""]
        lines += ["| system | PSNR dB | SSIM | sharpness | feature distance | Frechet | s/slice |", "|" + "---|" * 7]
        for name, row in rows.items():
            cells = [_cell(row.get(figure), digits) for figure, digits in zip(FIGURES, (2, 3, 2, 3), strict=True)]
            frechet = f"{row['frechet']:.2f}" if "frechet" in row else "-"
            lines.append(f"| {name} | {' | '.join(cells)} | {frechet} | {row['seconds_per_slice']:.2f} |")
        lines.append("")
    return "\n".join(lines)


def _cell(figure: Mapping[str, float] | None, digits: int) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def facts(models_folder: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that made a table."""
    entry = find_model("calid-2d", models_folder)
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return {
        "model": entry.name,
        "model_sha256": entry.sha256,
        "revision": revision.stdout.strip(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "options": {key: str(value) for key, value in options.items()},
    }


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--prepared", type=Path, required=True, help="folder made by calid-train prepare")
    parser.add_argument("--datasets", nargs="+", default=["acdc"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--systems", nargs="+", help="only these rows; linear is always among them")
    parser.add_argument("--models", type=Path, help="folder with the manifest; the bundled models by default")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    parser.add_argument("--card", type=Path, help="model card to write the tables into")
    parser.add_argument("--out", type=Path, default=Path("evaluation") / "interpolation")


def run(options: Namespace) -> int:
    cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
    asked = first_of_each(questions(cases), options.quick)
    systems = interpolation_systems(
        models_folder=options.models, steps=options.steps, samples=options.samples, device=options.device
    )
    if options.systems:
        systems = [system for system in systems if system.name in {"linear", *options.systems}]
    tables = evaluate(asked, systems, segmenter_features(options.models))
    trust = uncertainty(asked, models_folder=options.models, samples=options.samples, device=options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = {key: value for key, value in vars(options).items() if key != "run"}
    record = {"tables": tables, "uncertainty": trust, "made_by": facts(options.models, shown)}
    (options.out / "interpolation.json").write_text(json.dumps(record, indent=1))
    text = markdown(tables) + f"\nUncertainty: Spearman correlation with the error {trust['spearman']:.2f}\n"
    (options.out / "interpolation.md").write_text(text)
    if options.card is not None:
        write_into_card(options.card, text)
    print(text)
    return 0


def write_into_card(card: Path, text: str) -> None:
    """Put the tables between the card's marks."""
    before, _, rest = card.read_text().partition(CARD_BEGIN)
    _, _, after = rest.partition(CARD_END)
    if not rest or not after:
        raise ValueError(f"{card} has no place for figures: it needs the lines {CARD_BEGIN} and {CARD_END}")
    card.write_text(f"{before}{CARD_BEGIN}\n{text.strip()}\n{CARD_END}{after}")


def first_of_each(asked: Sequence[Question], count: int | None) -> list[Question]:
    """The first `count` questions of every group, or all."""
    if count is None:
        return list(asked)
    groups = sorted({question.group for question in asked})
    return [q for group in groups for q in [q for q in asked if q.group == group][:count]]


def segmenter_features(models_folder: Path | None) -> metrics.FeatureExtractor | None:
    """The frozen encoder of the bundled segmenter, or None where it is not installed."""
    from calid.device import choose_device
    from calid.errors import WeightsError
    from calid.medformer import features
    from calid.segmentation import warm_segmenter

    try:
        segmenter = warm_segmenter(choose_device("cpu"), models_folder)
    except WeightsError:
        return None
    return lambda images: features(segmenter.model, images)
