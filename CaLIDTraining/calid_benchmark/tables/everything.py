"""`calid-evaluate all`: the tables about interpolation, and those whose data are named, below one folder.

Tables that need more than prepared stacks are made where their data are named: long-axis planes (`--study`, with
`--meshes`), cines (`--cines`) and the segmenter on original slices (`--data`). Systems are loaded once, and slices are
made once: the tables about them are functions of the same answers. `--quick` takes a little of everything, to see in
minutes that it works.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from calid.run.device import choose_device
from calid_training.errors import UsageError
from calid_training.prepare import load_cases

from calid_benchmark import perceptual, rivals
from calid_benchmark.segmenters import judging_segmenter
from calid_benchmark.systems import CONTROLS, Source, chosen, offered
from calid_benchmark.tables import (
    cine,
    denoising,
    downstream,
    interpolation,
    long_axis,
    reconstruction,
    segmenter,
    speed,
    steps,
)
from calid_benchmark.tables.answers import ask, of_themselves, with_controls
from calid_benchmark.tables.interpolation import Judges, segmenter_features
from calid_benchmark.tables.passages import passages_of
from calid_benchmark.tables.questions import (
    add_place_arguments,
    add_set_arguments,
    first_of_each,
    notes_of_slow,
    questions,
)
from calid_benchmark.tables.record import Place, has_place, place_of


@dataclass(frozen=True)
class Amount:
    """How much is made of every table; the defaults are the whole of it.

    Args:
        stacks: number of stacks of every group that are asked about; None is all.
        slow_patients: patients of every group about whom the slow rivals are asked.
        samples: draws of the deviation and of means.
        time_steps: steps at which a slice's generation is timed, or None.
        reconstructed: stacks of every group that are made of themselves.
        stepped: stacks of every group that are asked about at every number of steps.
        counts: numbers of steps that they are asked at.
        phases: number of phases of the study's cycle.
        sequences: number of sequences of every set of cines.
        segmented: stacks of the segmenter's table.
        rounds, affordable, paper: see `speed.make`.
    """

    stacks: int | None = None
    slow_patients: int | None = 6
    samples: int = 8
    time_steps: int | None = 128
    reconstructed: int = 2
    stepped: int = 1
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    phases: int = 5
    sequences: int | None = None
    segmented: int | None = None
    rounds: int = 3
    affordable: float = 100
    paper: bool = True


FULL = Amount()
"""What keeps the whole below an hour on two cores; each table by itself has more. Six patients are the fewest that a
paired test can tell anything of."""
QUICK = Amount(1, None, 2, None, 1, 1, (1, 8), 2, 1, 1, 1, 0, paper=False)


def possible(options: Namespace) -> list[str]:
    """The tables for which data are named, in the order in which they are made."""
    further = {"long-axis": options.study, "cine": options.cines, "segmenter": options.data}
    named = [name for name, data in further.items() if data is not None]
    return ["interpolation", "downstream", "reconstruction", "steps", "denoising", *named, "speed"]


def makers(options: Namespace, amount: Amount, folder: Path) -> dict[str, Callable[[Place], None]]:
    """{table: what makes it in a place}; the systems have answered by then.

    Args:
        options: options of the command line.
        amount: how much is made.
        folder: folder for the slices that the systems make.
    """
    source = Source(
        options.models,
        options.weights,
        samples=amount.samples,
        device=options.device,
        optimization_steps=options.optimization_steps,
    )
    offer, cases = offered(source), load_cases(options.prepared, datasets=options.datasets, split=options.split)
    asked, names = first_of_each(questions(cases), amount.stacks), options.systems
    systems, few = chosen(offer.systems, names), first_of_each(asked, amount.reconstructed)
    answers = ask(systems, asked, folder / "between", slow_patients=amount.slow_patients)
    answers = with_controls(answers, CONTROLS, folder / "controls")
    notes = [*notes_of_slow(amount.slow_patients), *offer.notes]
    labels = judging_segmenter(choose_device(options.device), options.models)
    judges = Judges(segmenter_features(options.models), perceptual.measures_of(options))

    def reconstructed(place: Place) -> None:
        who = reconstruction.reconstructing(offer.systems)
        made = ask(who, few, folder / "reconstructed", sides=of_themselves)
        reconstruction.make(place, made, labels, systems=who, notes=offer.notes)

    def beating(place: Place) -> None:
        cines = load_cases(options.cines, datasets=cine.DATASETS, split=cine.SPLIT)
        sequences = passages_of(cines, labels, count=amount.sequences, dicom=options.study)
        cine.make(place, sequences, labels, judges.perceptual)

    return {
        "interpolation": lambda place: interpolation.make(
            place,
            answers,
            judges,
            systems=systems,
            notes=notes,
            time_steps=amount.time_steps,
            uncertainty_every=5,
            samples=amount.samples,
        ),
        "downstream": lambda place: downstream.make(place, answers, labels, systems=systems, notes=notes),
        "reconstruction": reconstructed,
        "steps": lambda place: steps.make(
            place,
            first_of_each(asked, amount.stepped),
            judges,
            systems=steps.stepped(offer.systems, names),
            counts=amount.counts,
            notes=offer.notes,
        ),
        "denoising": lambda place: denoising.make(place, asked, offer, source),
        "long-axis": lambda place: long_axis.make(
            place,
            options.study,
            systems=long_axis.upsampling(offer.systems, names),
            meshes=options.meshes,
            phases=amount.phases,
            notes=offer.notes,
        ),
        "cine": beating,
        "segmenter": lambda place: segmenter.make(place, options.data, stacks=amount.segmented),
        "speed": lambda place: speed.make(
            place, names=names, rounds=amount.rounds, affordable=amount.affordable, paper=amount.paper
        ),
    }


def check_places(files: Iterable[Path], names: Sequence[str]) -> None:
    """Refuse files that none of the tables would be written into, before the work.

    Raises:
        UsageError: naming the first of them.
    """
    for file in files:
        if not any(has_place(file, name) for name in names):
            raise UsageError(f"{file} has no place for any of: {', '.join(names)}")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_set_arguments(parser)
    parser.add_argument("--study", type=Path, help="DICOM folder with short- and long-axis cines, for long-axis")
    parser.add_argument("--meshes", type=Path, help="the study's fitted ventricles, for long-axis")
    parser.add_argument("--cines", type=Path, help="folder of prepared cines made by calid-train cine, for cine")
    parser.add_argument("--data", type=Path, help="folder that holds one folder per set, for segmenter")
    parser.add_argument("--systems", nargs="+", help="only these rows; linear and CaLID+ are always among them")
    parser.add_argument(
        "--weights",
        type=Path,
        default=rivals.WEIGHTS,
        help="folder with the trained baselines; CaLIDTraining/weights by default",
    )
    parser.add_argument("--optimization-steps", type=int, default=100, help="of DeepRecon; 1000 in its paper")
    perceptual.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a little of everything, in minutes")
    add_place_arguments(parser, table="")


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    names = possible(options)
    check_places(options.into, names)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        tables = makers(options, QUICK if options.quick else FULL, Path(folder))
        lines = ["# Tables", "", f"- slices of all systems: {time.perf_counter() - start:.0f} s"]
        for name in names:
            start = time.perf_counter()
            tables[name](place_of(options, name))
            lines.append(f"- [{name}]({name}/{name}.md): {time.perf_counter() - start:.0f} s")
            (options.out / "index.md").write_text("\n".join([*lines, ""]))
    return 0
