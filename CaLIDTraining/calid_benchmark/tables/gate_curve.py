"""`calid-evaluate gate-curve RUN ...`: what every hour of training brought, figure by figure (GATES.md).

Two blocks. The gate's figures of every run, in the order in which they are given: the runs of one stage after the
other, or the same stage stopped at different times. And, of every run by itself, the figures that it logged on its
validation crops, epoch by epoch.

Hours are those of the clock between the first and the last line of a run's log, over all its starts, without the time
in which it stood still; multiply them by the cores or GPUs that it had.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from calid.run.device import choose_device
from calid.run.settings import DeviceName
from calid_training.runs import read_checkpoint

from calid_benchmark import perceptual
from calid_benchmark.tables import gates
from calid_benchmark.tables.questions import StackQuestion, add_place_arguments, add_set_arguments, asked_of
from calid_benchmark.tables.record import markdown_table, place_of, write_table

PAUSE_SECONDS = 600
"""Two lines of a log that lie further apart than this have a pause between them, which is not counted."""
ROWS = (gates.REFERENCE, "1 steps, temperature 1", "2 steps, temperature 0.5")


@dataclass(frozen=True)
class Logged:
    """A figure that a run logged.

    Args:
        step: optimizer steps done by then.
        seconds: time by then, see `working_seconds`.
        value: value of the figure.
    """

    step: int
    seconds: float
    value: float


def logged(run: Path) -> dict[str, list[Logged]]:
    """{tag: what was logged under it, in the order of the steps} over all starts of a run, from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float, float]]] = {}
    for folder in sorted({file.parent for file in run.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((one.step, one.wall_time, one.value) for one in events.Scalars(tag))
    times = sorted(time for values in found.values() for _, time, _ in values)
    spent = dict(zip(times, working_seconds(times), strict=True))
    return {
        tag: [Logged(step, spent[time], value) for step, time, value in sorted(values)] for tag, values in found.items()
    }


def working_seconds(times: Sequence[float]) -> list[float]:
    """Seconds of work up to each of some times of the clock, in their order, without pauses.

    >>> working_seconds([100, 130, 190, 9000, 9030])
    [0.0, 30.0, 90.0, 90.0, 120.0]
    """
    gaps = [later - earlier for earlier, later in pairwise(times)]
    steps = [gap if gap <= PAUSE_SECONDS else 0.0 for gap in gaps]
    return [0.0, *np.cumsum(steps).tolist()] if times else []


def hours_of(run: Path) -> float | None:
    """Hours of a run, None where its log is not here."""
    seconds = [one.seconds for values in logged(run).values() for one in values]
    return max(seconds) / 3600 if seconds else None


def epochs_of(run: Path) -> list[dict[str, float]]:
    """{"step", "hours", figure: value} of every validation of a run; figures are named as they were logged."""
    lines: dict[int, dict[str, float]] = {}
    for tag, values in logged(run).items():
        if tag.startswith("val/"):
            for one in values:
                line = lines.setdefault(one.step, {"step": one.step, "hours": one.seconds / 3600})
                line[tag.removeprefix("val/")] = one.value
    return [lines[step] for step in sorted(lines)]


def gates_of(
    run: Path,
    ways: Mapping[str, gates.Way],
    asked: Sequence[StackQuestion],
    judges: gates.GateJudges,
    *,
    device: DeviceName,
) -> list[list[str]]:
    """The lines of one run: its name, steps, hours, way, and the gate's figures.

    Args:
        run: folder of the run.
        ways: the ways of the run that are judged, by name.
        asked: questions that are put.
        judges: features, LPIPS and segmenter.
        device: where the networks run.
    """
    hours, step = hours_of(run), read_checkpoint(run)["global_step"]
    head = [run.name, f"{step:,}", "-" if hours is None else f"{hours:.2f}"]
    lines = []
    for name, way in ways.items():
        made = gates.answered(asked, way, autocast=choose_device(device).autocast())
        lines.append([*head, name, *gates.cells_of(made, gates.figures_of_slices(made, judges), judges)])
    return lines


def markdown(lines: Sequence[Sequence[str]], epochs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Both blocks as Markdown."""
    text = markdown_table(["run", "steps", "hours", "way", *gates.HEADS], lines) if lines else []
    for run, rows in epochs.items():
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "hours")]
        body = [
            [f"{row['step']:,.0f}", f"{row['hours']:.2f}", *(f"{row[n]:.4g}" if n in row else "-" for n in names)]
            for row in rows
        ]
        text += [f"**{run}**, validation crops", "", *markdown_table(["step", "hours", *names], body)]
    return "\n".join(text)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of the codec or of the denoiser of codes")
    parser.add_argument("--logs-only", action="store_true", help="only what the runs logged; asks no network")
    add_set_arguments(parser, split="validation", required=False)
    parser.add_argument("--rows", nargs="+", help=f"these ways to a slice instead of: {', '.join(ROWS)}")
    gates.add_way_arguments(parser, draw_steps=[1, 2], temperatures=[0.5])
    perceptual.add_arguments(parser)
    add_place_arguments(parser, table="gate-curve")


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    lines = []
    if not options.logs_only:
        asked, judges = gates.far_apart(asked_of(options)), gates.judges_of(options)
        for one in options.runs:
            ways = gates.ways_of(one, draw_steps=options.draw_steps, temperatures=options.temperatures)
            ways = {name: way for name, way in ways.items() if name in (options.rows or ROWS)}
            lines += gates_of(one, ways, asked, judges, device=options.device)
    epochs = {one.name: epochs_of(one) for one in options.runs}
    record: dict[str, Any] = {"gates": lines, "epochs": epochs}
    write_table(place_of(options), "gate-curve", markdown(lines, epochs), record)
    return 0
