"""`calid-evaluate downstream`: one segmenter on slices that systems made, against experts' labels of the real ones.

The paper's Table II, with Dice: slice n is made from n-1 and n+1 (see `interpolation.py`), segmented by the bundled
MedFormer, and compared with the expert's labels of the slice that was left out. "original" is the same segmenter on the
real slice: the most that can be reached. Dice is over all of a patient's slices together, then averaged over patients.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.device import choose_device
from calid.segmentation import Segmenter, warm_segmenter
from tqdm import tqdm

from calid_training import metrics
from calid_training.evaluate_segmenter import STRUCTURE_NAMES, overlap
from calid_training.interpolation import Question, facts, first_of_each, questions
from calid_training.prepare import load_cases
from calid_training.systems import Named, interpolation_systems

ORIGINAL = "original"


def segmented(segmenter: Segmenter, images: np.ndarray) -> np.ndarray:
    """Labels (N, Y, X) of images (N, Y, X) in [0, 1]."""
    foreground = segmenter.foreground(torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None])
    background = 1 - foreground.sum(dim=1, keepdim=True)
    return torch.cat([background, foreground], dim=1).argmax(dim=1).numpy().astype(np.uint8)


def evaluate(asked: Sequence[Question], systems: Sequence[Named], segmenter: Segmenter) -> dict[str, dict[str, Any]]:
    """{group: {system: {structure: {mean, low, high, p_against_linear}}}}."""
    tables: dict[str, dict[str, Any]] = {}
    for group in sorted({question.group for question in asked}):
        members = [question for question in asked if question.group == group and question.labels is not None]
        dice = {ORIGINAL: [_dice(segmented(segmenter, question.truth), question.labels) for question in members]}
        for system in tqdm(systems, desc=group, unit=" systems"):
            made = [system.make(question.before, question.after).clip(0, 1) for question in members]
            labels = [segmented(segmenter, images) for images in made]
            dice[system.name] = [_dice(a, question.labels) for a, question in zip(labels, members, strict=True)]
        tables[group] = {name: _row(values, dice["linear"]) for name, values in dice.items()}
    return tables


def _dice(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    figures = {name: overlap(made == label, truth == label)["dice"] for label, name in STRUCTURE_NAMES.items()}
    return figures | {"mean": float(np.mean(list(figures.values())))}


def _row(patients: Sequence[Mapping[str, float]], linear: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"patients": len(patients)}
    for name in (*STRUCTURE_NAMES.values(), "mean"):
        mine, theirs = ([patient[name] for patient in side] for side in (patients, linear))
        low, high = metrics.interval(mine)
        p = metrics.paired_p(mine, theirs)
        row[name] = {"mean": float(np.mean(mine)), "low": low, "high": high, "p_against_linear": p}
    return row


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables as Markdown; brackets are 95 % bootstrap intervals over patients."""
    names = (*STRUCTURE_NAMES.values(), "mean")
    lines = []
    for group, rows in tables.items():
        lines += [f"**{group}**: {rows[ORIGINAL]['patients']} patients, Dice", ""]
        lines += [f"| slices | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
        for system, row in rows.items():
            cells = [f"{row[name]['mean']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]" for name in names]
            lines.append(f"| {system} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--prepared", type=Path, required=True, help="folder made by calid-train prepare")
    parser.add_argument("--datasets", nargs="+", default=["acdc"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--systems", nargs="+", default=["linear", "CaLID", "CaLID+", "CaLID, one step"])
    parser.add_argument("--models", type=Path, help="folder with the manifest; the bundled models by default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    parser.add_argument("--out", type=Path, default=Path("evaluation") / "downstream")


def run(options: Namespace) -> int:
    cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
    asked = first_of_each(questions(cases), options.quick)
    offered = interpolation_systems(models_folder=options.models, device=options.device)
    systems = [system for system in offered if system.name in options.systems]
    tables = evaluate(asked, systems, warm_segmenter(choose_device(options.device), options.models))
    options.out.mkdir(parents=True, exist_ok=True)
    shown = {key: value for key, value in vars(options).items() if key != "run"}
    record = {"tables": tables, "made_by": facts(options.models, shown)}
    (options.out / "downstream.json").write_text(json.dumps(record, indent=1))
    text = markdown(tables)
    (options.out / "downstream.md").write_text(text)
    print(text)
    return 0
