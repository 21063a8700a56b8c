"""`calid-evaluate steps`: every figure against the number of diffusion steps (CaLID, Fig. 2)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from calid_benchmark import perceptual
from calid_benchmark.systems import Named
from calid_benchmark.tables.answers import ask
from calid_benchmark.tables.drawings import curves
from calid_benchmark.tables.interpolation import Judges, evaluate, notes_of, segmenter_features
from calid_benchmark.tables.questions import StackQuestion, add_question_arguments, asked_of, offer_of
from calid_benchmark.tables.record import Place, markdown_table, place_of, write_table

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
PANELS = {"psnr": "PSNR dB", "ssim": "SSIM", "feature_distance": "feature distance", "frechet": "Frechet"}
PANELS |= {"lpips": "LPIPS-alex", "rfid": "rFID", "sharpness": "sharpness", "seconds_per_slice": "s/slice"}


def evaluate_steps(
    asked: Sequence[StackQuestion], systems: Sequence[Named], judges: Judges, *, steps: Sequence[int]
) -> dict[str, dict[str, dict[int, Any]]]:
    """{group: {system: {steps: row}}} of the systems that have steps; a row is one of the interpolation table."""
    linear = next(system for system in systems if system.name == "linear")
    tables: dict[str, dict[str, dict[int, Any]]] = {}
    for count in tqdm(steps, desc="steps"):
        stepped = [system.at_steps(count) for system in systems if system.at_steps is not None]
        with TemporaryDirectory() as folder:
            answers = ask([linear, *stepped], asked, Path(folder))
            found = evaluate(answers, judges)
        for group, rows in found.items():
            for system in stepped:
                tables.setdefault(group, {}).setdefault(system.name, {})[count] = rows[system.name]
    return tables


def value(row: Mapping[str, Any], figure: str) -> float | None:
    """A figure of a row as one number, whether it has an interval or not."""
    found = row.get(figure)
    return found["mean"] if isinstance(found, Mapping) else found


def panels_of(systems: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """{heading: {system: (steps, values)}} of the figures that were measured."""
    panels = {}
    for figure, heading in PANELS.items():
        lines = {
            name: ([*rows], values)
            for name, rows in systems.items()
            if len(values := [found for row in rows.values() if (found := value(row, figure)) is not None]) == len(rows)
        }
        if lines:
            panels[heading] = lines
    return panels


def markdown(tables: Mapping[str, Mapping[str, Mapping[int, Any]]], notes: Sequence[str] = ()) -> str:
    """A table per group and figure: a row per system, a column per number of steps."""
    lines = []
    for group, systems in tables.items():
        first = next(iter(next(iter(systems.values())).values()))
        lines += [f"**{group}**: {first['patients']} patients, {first['slices']} slices", ""]
        for heading, rows in panels_of(systems).items():
            steps = next(iter(rows.values()))[0]
            body = [[name, *(f"{number:.3f}" for number in values)] for name, (_, values) in rows.items()]
            lines += markdown_table([f"{heading} at", *map(str, steps)], body)
    return "\n".join([*lines, *notes, ""])


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_question_arguments(parser, table="steps")
    perceptual.add_arguments(parser)
    parser.add_argument("--counts", nargs="+", type=int, default=list(STEPS), help="numbers of steps")
    parser.set_defaults(quick=2)


def make(
    place: Place,
    asked: Sequence[StackQuestion],
    judges: Judges,
    *,
    systems: Sequence[Named],
    counts: Sequence[int] = STEPS,
    notes: Sequence[str] = (),
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        asked: questions that are put.
        judges: features, LPIPS and rFID.
        systems: linear interpolation, and who is asked at every number of steps.
        counts: the numbers of steps.
        notes: remarks below the table.
    """
    tables = evaluate_steps(asked, systems, judges, steps=counts)
    text = markdown(tables, notes_of(notes, judges.perceptual))
    record = {"tables": tables, "notes": list(notes), "not_measured": judges.perceptual.reasons}
    write_table(place, "steps", text, record, systems=systems)
    for group, found in tables.items():
        curves(place.out / f"{group.replace(' ', '-')}.png", f"{group}: number of diffusion steps", panels_of(found))


def stepped(systems: Sequence[Named], names: Sequence[str] | None) -> list[Named]:
    """The named systems and linear interpolation; without names all of them."""
    return [system for system in systems if names is None or system.name in {"linear", *names}]


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    offer = offer_of(options)
    judges = Judges(segmenter_features(options.models), perceptual.measures_of(options))
    systems = stepped(offer.systems, options.systems)
    make(place_of(options), asked_of(options), judges, systems=systems, counts=options.counts, notes=offer.notes)
    return 0
