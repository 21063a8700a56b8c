"""Who answered what: the slices that systems made of questions, as a value that tables are functions of.

`ask` is the only place where the tables' questions are put to a system. The slices lie in files of a folder, so that
memory holds one stack at a time however many patients and systems there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calid_benchmark.controls import Filter, as_sharp_as
from calid_benchmark.systems import Named
from calid_benchmark.tables.questions import StackQuestion, answerable, by_group

FITTED_SLICES = 512
"""Slices of a group on which a control's filter is fitted, at most (give or take one of every stack)."""

Sides = Callable[[Named, StackQuestion], tuple[np.ndarray, np.ndarray]]
"""The two stacks of slices between which a system is asked."""


@dataclass(frozen=True)
class Kept:
    """One answer.

    Args:
        file: file of the slices (N, Y, X), float32 in [0, 1].
        seconds: seconds that the system took.
        slices: their number N.
    """

    file: Path
    seconds: float
    slices: int

    def images(self) -> np.ndarray:
        """The slices (N, Y, X)."""
        return np.load(self.file)


@dataclass(frozen=True, eq=False)
class Answers:
    """Everything that was answered.

    Args:
        asked: the questions, in their order.
        rows: {row: {question: its answer}}, rows in their order; a row may have answered only some questions.
        ceilings: rows that were shown the true slices.
        controls: {control: the learned row that it belongs to}.
        filters: {control: {group: what made it as sharp as that row}}.
    """

    asked: tuple[StackQuestion, ...]
    rows: Mapping[str, Mapping[StackQuestion, Kept]]
    ceilings: frozenset[str] = frozenset()
    controls: Mapping[str, str] = field(default_factory=dict)
    filters: Mapping[str, Mapping[str, Filter]] = field(default_factory=dict)

    def of(self, row: str, members: Sequence[StackQuestion]) -> Iterator[tuple[StackQuestion, Kept]]:
        """The questions among `members` that a row answered, with the answers."""
        answers = self.rows[row]
        return ((question, answers[question]) for question in members if question in answers)


def between_neighbors(system: Named, question: StackQuestion) -> tuple[np.ndarray, np.ndarray]:
    """The neighbors of every inner slice; for a ceiling the slice itself, twice."""
    return (question.truth, question.truth) if system.sees_truth else (question.before, question.after)


def of_themselves(system: Named, question: StackQuestion) -> tuple[np.ndarray, np.ndarray]:
    """Every slice twice: what a system of codes makes of it is its reconstruction."""
    del system
    return question.images, question.images


def ask(
    systems: Sequence[Named],
    asked: Sequence[StackQuestion],
    folder: Path,
    *,
    slow_patients: int | None = None,
    sides: Sides = between_neighbors,
) -> Answers:
    """Let every system answer, once.

    Args:
        systems: who is asked.
        asked: questions that are put.
        folder: folder for the slices; it is the caller's to delete.
        slow_patients: how many patients of a group the slow rivals are asked about; None is all.
        sides: what a question's slices are made between, see `Sides`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = {question: index for index, question in enumerate(asked)}
    groups = by_group(asked).values()
    rows: dict[str, dict[StackQuestion, Kept]] = {}
    for place, system in enumerate(tqdm(systems, desc="asking", unit=" systems")):
        members = [q for group in groups for q in answerable(system.name, group, slow_patients=slow_patients)]
        rows[system.name] = {}
        for question in members:
            images, seconds = system.told(question.spacing_mm).answer(*sides(system, question))
            rows[system.name][question] = _kept(folder / f"{place}-{number[question]}.npy", images, seconds)
    ceilings = frozenset(system.name for system in systems if system.sees_truth)
    return Answers(tuple(asked), rows, ceilings)


def _kept(file: Path, images: np.ndarray, seconds: float) -> Kept:
    np.save(file, images)
    return Kept(file, seconds, len(images))


def control_name(learned: str, without: str) -> str:
    """The row of a control at equal sharpness."""
    return f"{without}, as sharp as {learned}"


def with_controls(answers: Answers, controls: Mapping[str, str], folder: Path) -> Answers:
    """The answers and, after every learned row, its control: the row without the learned part, made as sharp.

    The filter of a group is fitted on at most `FITTED_SLICES` slices, spread evenly over it.

    Args:
        answers: answers of all rows; pairs of which one is missing are left out.
        controls: {learned row: row without the learned part}.
        folder: folder for the controls' slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[StackQuestion, Kept]] = {}
    owners: dict[str, str] = {}
    filters: dict[str, dict[str, Filter]] = {}
    for learned, kept in answers.rows.items():
        rows[learned] = dict(kept)
        without = controls.get(learned)
        if without is None or without not in answers.rows:
            continue
        name, place = control_name(learned, without), len(rows)
        fitted: dict[str, Filter] = {}
        try:
            for group, members in by_group(answers.asked).items():
                pairs = [(mine, kept[question]) for question, mine in answers.of(without, members) if question in kept]
                if pairs:
                    fitted[group] = _fitted(pairs)
        except ValueError as error:  # a model that has learned nothing may be noisier than any gain makes its control
            tqdm.write(f"{name} is left out: {error}", file=sys.stderr)
            continue
        owners[name], rows[name], filters[name] = learned, {}, fitted
        for question, mine in answers.rows[without].items():
            if question in kept:
                images = filters[name][question.group](mine.images())
                rows[name][question] = _kept(folder / f"control-{place}-{mine.file.name}", images, mine.seconds)
    return replace(answers, rows=rows, controls=owners, filters=filters)


def _fitted(pairs: Sequence[tuple[Kept, Kept]]) -> Filter:
    """The filter that makes the first of every pair as sharp as the second, over all of them."""
    step = max(1, -(-sum(mine.slices for mine, _ in pairs) // FITTED_SLICES))
    sides = (np.concatenate([kept.images()[::step] for kept in side]) for side in zip(*pairs, strict=True))
    return as_sharp_as(*sides)
