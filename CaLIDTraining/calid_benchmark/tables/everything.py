"""`calid-evaluate all`: every table and figure, one after the other, in folders of their own below one folder.

Tables that need more than prepared stacks are made where their data are named: long-axis planes (`--study`, with
`--meshes`), cines (`--cines`) and the segmenter on original slices (`--data`). Systems are loaded once, and slices are
made once: the tables share them. `--quick` takes a little of everything, to see in minutes that it works.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from calid_benchmark import perceptual, rivals
from calid_benchmark.tables import table
from calid_benchmark.tables.questions import add_place_arguments, add_set_arguments
from calid_benchmark.tables.record import has_place

QUICK = {
    "interpolation": ["--quick", "1", "--samples", "2"],
    "downstream": ["--quick", "1", "--samples", "2"],
    "reconstruction": ["--quick", "1"],
    "steps": ["--quick", "1", "--counts", "1", "8"],
    "denoising": [],
    "long-axis": ["--phases", "2", "--samples", "2"],
    "cine": ["--quick", "1"],
    "segmenter": ["--quick", "1"],
    "speed": ["--rounds", "1", "--no-paper", "--affordable", "0"],
}
FULL = {
    "interpolation": ["--time-steps", "128", "--slow-baselines", "6"],
    "downstream": ["--slow-baselines", "6"],
    "reconstruction": ["--quick", "2"],
    "steps": ["--quick", "1", "--counts", "1", "2", "4", "8", "16", "32", "64"],
    "long-axis": ["--phases", "5"],
    "speed": ["--rounds", "3", "--affordable", "100"],
}
"""What keeps the whole below an hour on two cores; each table by itself has more. Seconds on ACDC's test patients and
two idle cores: interpolation 1100, downstream 260, reconstruction 270, steps 380, long-axis 90, cine 400, segmenter 40,
speed 560. Six patients are the fewest that a paired test can tell anything of."""


def planned(options: Namespace) -> list[tuple[str, list[str]]]:
    """(table, arguments) of everything that the options allow, in the order in which it is made."""
    prepared = ["--prepared", str(options.prepared), "--datasets", *options.datasets, "--split", options.split]
    place = ["--device", options.device, *_given("--models", options.models)]
    rows = [] if options.systems is None else ["--systems", *options.systems]
    source = [*place, *rows, "--weights", str(options.weights)]
    source += _given("--optimisation-steps", options.optimisation_steps)
    networks = [*_given("--alexnet", options.alexnet), *_given("--inception", options.inception)]
    plan = [
        ("interpolation", [*prepared, *source, *networks]),
        ("downstream", [*prepared, *source]),
        ("reconstruction", [*prepared, *source]),
        ("steps", [*prepared, *source, *networks]),
        ("denoising", [*prepared, *source]),
    ]
    if options.study is not None:
        study = [str(options.study), *_given("--meshes", options.meshes), *source]
        plan.append(("long-axis", study))
    if options.cines is not None:
        cines = ["--prepared", str(options.cines), *place, *networks, *_given("--dicom", options.study)]
        plan.append(("cine", cines))
    if options.data is not None:
        plan.append(("segmenter", ["--data", str(options.data), *place]))
    return [*plan, ("speed", [*place, *rows])]


def _given(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]


def make(name: str, arguments: list[str]) -> float:
    """Make one table and return the seconds that it took."""
    module, parser = table(name), ArgumentParser(prog=f"calid-evaluate {name}")
    module.add_arguments(parser)
    start = time.perf_counter()
    module.run(parser.parse_args(arguments))
    return time.perf_counter() - start


def check_places(files: Iterable[Path], names: Sequence[str]) -> None:
    """Refuse files that none of the tables would be written into, before the work.

    Raises:
        ValueError: naming the first of them.
    """
    for file in files:
        if not any(has_place(file, name) for name in names):
            raise ValueError(f"{file} has no place for any of: {', '.join(names)}")


def _into(files: Iterable[Path], name: str) -> list[str]:
    wanted = [str(file) for file in files if has_place(file, name)]
    return ["--into", *wanted] if wanted else []


def add_arguments(parser: ArgumentParser) -> None:
    add_set_arguments(parser)
    parser.add_argument("--study", type=Path, help="DICOM folder with short- and long-axis cines, for long-axis")
    parser.add_argument("--meshes", type=Path, help="the study's fitted ventricles, for long-axis")
    parser.add_argument("--cines", type=Path, help="folder of prepared cines made by calid-train cine, for cine")
    parser.add_argument("--data", type=Path, help="folder with the raw sets, for segmenter")
    parser.add_argument("--systems", nargs="+", help="only these rows; linear and CaLID+ are always among them")
    parser.add_argument("--weights", type=Path, default=rivals.WEIGHTS, help="folder with the trained baselines")
    parser.add_argument("--optimisation-steps", type=int, default=100, help="of DeepRecon; 1000 in its paper")
    perceptual.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="a little of everything, in minutes")
    add_place_arguments(parser, table="")


def run(options: Namespace) -> int:
    plan = planned(options)
    check_places(options.into, [name for name, _ in plan])
    lines = ["# Tables", ""]
    for name, arguments in plan:
        extra = (QUICK if options.quick else FULL).get(name, [])
        seconds = make(name, [*arguments, *extra, "--out", str(options.out / name), *_into(options.into, name)])
        lines.append(f"- [{name}]({name}/{name}.md): {seconds:.0f} s")
        (options.out / "index.md").write_text("\n".join([*lines, ""]))
    return 0
