"""What the tables ask: every inner slice of a stack from its two neighbors, on patients no model ever saw.

Every stack is cut to a heart-centered 128 x 128 crop at 1.8 mm, scaled to [0, 1] between its 1st and 99.5th percentile.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calid_training.crops import CropPlan, apply_crop
from calid_training.datasets import SUNNYBROOK_PHASES
from calid_training.prepare import AnyCase, case_center, load_cases

from calid_benchmark import rivals
from calid_benchmark.systems import SLOW_BASELINES, Offer, Source, offered

PIXEL_MM, SIZE = 1.8, 128
NUMBERED_PHASES = {"ED": 1, "ES": 8}
"""Sunnybrook's experts drew at end diastole and end systole, mostly in the phases 20 and 7 to 9 of 20, but do not say
which is which: a phase belongs to the nearer of these."""


@dataclass(frozen=True, eq=False)
class StackQuestion:
    """One stack in one phase.

    Args:
        group: "<set> <ED|ES|cine> <spacing> mm", a block of a table; nothing is averaged over groups.
        patient: one number each; may have several stacks in a group.
        spacing_mm: distance between neighboring slices.
        images: (Z, 128, 128) float32 in [0, 1].
        stack_labels: (Z, 128, 128) the expert's labels of the slices, or None where nothing was drawn in this frame.
        annotated: the labels that the expert drew.
    """

    group: str
    patient: str
    spacing_mm: float
    images: np.ndarray
    stack_labels: np.ndarray | None = None
    annotated: tuple[int, ...] = (1, 2, 3)

    @property
    def before(self) -> np.ndarray:
        """(Z - 2, 128, 128) the neighbor before each inner slice."""
        return self.images[:-2]

    @property
    def truth(self) -> np.ndarray:
        """(Z - 2, 128, 128) the inner slices, which are to be made."""
        return self.images[1:-1]

    @property
    def after(self) -> np.ndarray:
        """(Z - 2, 128, 128) the neighbor after each inner slice."""
        return self.images[2:]

    @property
    def drawn(self) -> np.ndarray:
        """`stack_labels`, where they have to be there; raises ValueError if they are not."""
        if self.stack_labels is None:
            raise ValueError(f"{self.group}, {self.patient}: nobody labeled this frame")
        return self.stack_labels

    @property
    def labels(self) -> np.ndarray | None:
        """The expert's labels of `truth`, or None."""
        return None if self.stack_labels is None else self.stack_labels[1:-1]


def questions(cases: Iterable[AnyCase]) -> list[StackQuestion]:
    """One question per frame of every case that has at least three slices."""
    return [question for case in cases if case.entry.shape[1] >= 3 for question in _of_case(case)]


def _of_case(case: AnyCase) -> list[StackQuestion]:
    entry = case.entry
    native_mm, _, spacing = entry.spacing_mm
    center, labels_of = case_center(case), case.labels
    group = f"{entry.dataset} {phase_of(entry.series)} {spacing:.0f} mm"
    found = []
    for index, frame in enumerate(case.images):
        images = cut_around(center, frame, native_mm=native_mm)
        drawn = None if labels_of is None or not labels_of[index].any() else labels_of[index]
        labels = None if drawn is None else _cut_labels(center, drawn, native_mm=native_mm)
        found.append(StackQuestion(group, entry.patient, spacing, images, labels, tuple(entry.annotated)))
    return found


def phase_of(series: str) -> str:
    """ED, ES or cine, as the name of a series has it at its end or as the number of its phase says.

    >>> [phase_of(series) for series in ("ED", "LV_ES", "cine", "phase20-from02", "phase07-from04")]
    ['ED', 'ES', 'cine', 'ED', 'ES']
    """
    numbered = re.match(r"phase(\d+)", series)
    if numbered is None:
        return series.rpartition("_")[2]
    away = {name: abs(int(numbered[1]) - phase) for name, phase in NUMBERED_PHASES.items()}
    return min(away, key=lambda name: min(away[name], SUNNYBROOK_PHASES - away[name]))


def cut_around(center: np.ndarray, images: np.ndarray, *, native_mm: float) -> np.ndarray:
    """The 128 x 128 crop at 1.8 mm of images (N, Y, X) in [0, 1] around (column, row): float32 in [0, 1]."""
    return (apply_crop(images, _plan_around(center), native_mm=native_mm)[:, 0].numpy() + 1) / 2


def _plan_around(center: np.ndarray) -> CropPlan:
    column, row = center
    return CropPlan((float(column), float(row)), PIXEL_MM, angle=0.0, mirrored=False, gamma=1.0, size=SIZE)


def _cut_labels(center: np.ndarray, labels: np.ndarray, *, native_mm: float) -> np.ndarray:
    """The labels (N, Y, X) on the crop's pixels: the structure with the largest share of each."""
    plan = _plan_around(center)
    masks = [(labels == label).astype(np.float32) for label in range(int(labels.max(initial=0)) + 1)]
    shares = [apply_crop(mask, plan, native_mm=native_mm)[:, 0].numpy() for mask in masks]
    return np.argmax(shares, axis=0).astype(np.uint8)


def by_group(asked: Sequence[StackQuestion]) -> dict[str, list[StackQuestion]]:
    """{group: its questions}, groups in alphabetical order."""
    groups = sorted({question.group for question in asked})
    return {group: [question for question in asked if question.group == group] for group in groups}


def answerable(system: str, members: Sequence[StackQuestion], *, slow_patients: int | None) -> list[StackQuestion]:
    """The questions of a group that a system is asked: all, or about the first patients where it is a slow baseline."""
    patients = list(dict.fromkeys(question.patient for question in members))
    asked = patients[:slow_patients] if system in SLOW_BASELINES else patients
    return [question for question in members if question.patient in asked]


def first_of_each(asked: Sequence[StackQuestion], count: int | None) -> list[StackQuestion]:
    """The first `count` questions of every group, or all."""
    return [question for members in by_group(asked).values() for question in members[:count]]


def add_question_arguments(parser: ArgumentParser, *, table: str) -> None:
    """What every table about prepared stacks is asked with."""
    add_set_arguments(parser)
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    add_source_arguments(parser, table=table)


def add_slow_argument(parser: ArgumentParser) -> None:
    """How much is asked of the slow rivals."""
    names = ", ".join(SLOW_BASELINES)
    parser.add_argument(
        "--slow-baselines", type=int, metavar="N", help=f"ask {names} only about the first N patients of every group"
    )


def notes_of_slow(patients: int | None) -> list[str]:
    """What a table says where the slow baselines were asked less."""
    if patients is None:
        return []
    names = ", ".join(SLOW_BASELINES)
    return [f"{names}: asked about {patients} patient(s) of every group only, and compared with the others on these."]


def add_set_arguments(
    parser: ArgumentParser, *, datasets: Sequence[str] = ("acdc",), split: str = "test", required: bool = True
) -> None:
    """Which prepared stacks: of these sets and this split where nothing is said."""
    parser.add_argument("--prepared", type=Path, required=required, help="folder made by calid-train prepare")
    parser.add_argument("--datasets", nargs="+", metavar="SET", default=list(datasets), help="prepared sets")
    parser.add_argument("--split", default=split, help="whose stacks: train, validation or test")


def add_source_arguments(parser: ArgumentParser, *, table: str) -> None:
    """Who answers."""
    parser.add_argument(
        "--systems", nargs="+", metavar="NAME", help="only these rows; linear and CaLID+ are always among them"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=rivals.WEIGHTS,
        help="folder with the trained baselines; CaLIDTraining/weights by default",
    )
    parser.add_argument("--steps", type=int, default=Source.steps, help="DDIM steps of CaLID; baselines have their own")
    parser.add_argument("--samples", type=int, default=Source.samples, help="draws of the rows that are means of draws")
    parser.add_argument("--optimization-steps", type=int, help="of DeepRecon; 1000 in its paper, which is the default")
    add_place_arguments(parser, table=table)


def add_place_arguments(parser: ArgumentParser, *, table: str) -> None:
    """Where the models lie, what they run on, and where the table goes.

    Args:
        parser: parser of the table.
        table: folder below the default one; empty for all tables.
    """
    parser.add_argument("--models", type=Path, help="folder with the manifest; the bundled models by default")
    parser.add_argument("--device", default="auto", help="where the networks run: auto, cpu, cuda or mps")
    parser.add_argument("--out", type=Path, default=Path("evaluation") / table, help="folder for the table")
    parser.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="Markdown files to write the table into, between <!-- TABLE: begin --> and <!-- TABLE: end -->",
    )


def asked_of(options: Namespace) -> list[StackQuestion]:
    """The questions that the options name."""
    cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
    return first_of_each(questions(cases), options.quick)


def source_of(options: Namespace) -> Source:
    """Where the weights of the systems that the options name lie, and how they run."""
    return Source(
        options.models, options.weights, options.steps, options.samples, options.device, options.optimization_steps
    )


def offer_of(options: Namespace) -> Offer:
    """The systems that the options name."""
    return offered(source_of(options))
