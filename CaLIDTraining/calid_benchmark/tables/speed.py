"""`calid-evaluate speed`: a whole heart, 11 slices to 81, by every system on the same machine in one run.

End to end: a stack is read from a file, scaled, upsampled and written. Equal care for each: slices go through the
networks in batches, and each is inverted once for both its sides. "Naive" is what the papers' times imply: both
neighbors are inverted anew for every new slice. Rounds visit all systems in turn, so that a busy moment meets them all;
a ratio is taken within a round, and its median and range are over the rounds. CPU seconds are what this process used,
and suffer less from what else the machine does.

Runs that would take more than `--affordable` CPU seconds are not run: seconds per network evaluation, per acquired
slice and per new slice are fitted (non-negative least squares) to small timed runs of the same code, and multiplied by
the exact counts. Such rows say "from N timed evaluations". FLOPs are counted by torch on the small runs; there the same
three costs solve the equations, and multiplied likewise they are exact. All networks have random weights: cost only.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.images.files import read_stack, write_stack
from calid.run.preparation import intensity_window
from calid.stack import Stack
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from calid_benchmark.tables.contestants import NONE, OURS, PAPER, Contestant, Runner, contestants
from calid_benchmark.tables.costs import fitted_costs, solved_costs, work_of
from calid_benchmark.tables.drawings import dots
from calid_benchmark.tables.questions import SIZE, add_place_arguments
from calid_benchmark.tables.record import Place, machine, markdown_table, place_of, write_table

PROBES = {OURS: ((4, 2, 1), (4, 2, 3), (4, 4, 1)), PAPER: ((3, 2, 1), (3, 2, 2), (3, 4, 1))}
"""(acquired slices, factor, steps) of the small runs of each block; together they tell the three costs apart. Smaller
ones would fill no batch: small networks then take up to twice as long for each slice. The papers' networks fill the
machine with less, and take seconds for every slice."""
PAPER_STEPS = 128
REFERENCE = "CaLID"
BUSY = 0.3
"""Load of other processes beyond which the output says so."""


@dataclass(frozen=True)
class Timed:
    """Seconds of one run, on the wall and of the processor."""

    wall: float
    cpu: float


def timed_run(runner: Runner, stack: Stack, factor: int, folder: Path) -> Timed:
    """Read, scale, upsample and write one stack."""
    source, target = folder / "sparse.nrrd", folder / "dense.nrrd"
    write_stack(stack, source, overwrite=True)
    wall, cpu = time.perf_counter(), time.process_time()
    sparse = read_stack(source)
    low, high = intensity_window(sparse.voxels)
    dense = runner.whole_heart(((sparse.voxels[0].astype(np.float32) - low) / (high - low)).clip(0, 1), factor)
    affine = sparse.affine.copy()
    affine[:3, 2] /= factor
    write_stack(Stack((dense[None] * (high - low) + low).astype(np.int16), affine), target, overwrite=True)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu)


def counted_flops(runner: Runner, acquired: int, factor: int) -> float:
    """Floating-point operations of one run.

    Without torch's fused transformer layers, which the counter cannot look into (and which fail under it in bfloat16).
    """
    slices = noise_stack(acquired).voxels[0].astype(np.float32) / 1000
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            runner.whole_heart(slices, factor)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def noise_stack(slices: int) -> Stack:
    """A stack whose voxels do not matter: 128 x 128 at 1.8 mm, 8 mm apart."""
    voxels = np.random.default_rng(0).integers(0, 1000, (1, slices, SIZE, SIZE)).astype(np.int16)
    return Stack(voxels, np.diag([1.8, 1.8, 8.0, 1.0]))


class Race:
    """All contestants, round after round.

    Args:
        lines: contestants, a line of the table each.
        affordable: CPU seconds that a whole heart may take; longer ones are computed from small runs.
        acquired: slices of the heart.
        factor: number of gaps that each acquired one becomes.
    """

    def __init__(self, lines: Sequence[Contestant], *, affordable: float, acquired: int, factor: int) -> None:
        self.lines, self.affordable = lines, affordable
        self.task = acquired, factor
        self._runner = lru_cache(maxsize=2)(self._build)  # the papers' networks are half a gigabyte

    def results(self, *, rounds: int) -> list[dict[str, Any]]:
        """A row per contestant; the first, untimed round warms everything up and counts the FLOPs."""
        warm = {line: self._counts(line) for line in tqdm(self.lines, desc="warm-up and FLOPs")}
        done: dict[Contestant, list[dict[str, Any]]] = {line: [] for line in self.lines}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds):
                for line in tqdm(self.lines, desc=f"round {number + 1} of {rounds}"):
                    done[line].append(self._round(line, Path(folder)))
        references = {line.block: done[line] for line in self.lines if line.name == REFERENCE}
        return [_row(line, warm[line], done[line], references.get(line.block, references[OURS])) for line in self.lines]

    def _build(self, line: Contestant, steps: int | None) -> Runner:
        return line.make(steps)

    def _runs(self, line: Contestant) -> list[tuple[Runner, int, int]]:
        """The small runs: (runner, acquired, factor)."""
        probes = PROBES.get(line.block, PROBES[OURS])
        return [(self._runner(line, steps), acquired, factor) for acquired, factor, steps in probes]

    def _counts(self, line: Contestant) -> dict[str, Any]:
        """Evaluations and FLOPs of a whole heart."""
        runs = self._runs(line)
        costs = solved_costs([work_of(line, *run) for run in runs], [counted_flops(*run) for run in runs])
        own = self._runner(line, line.steps)
        return {
            "evaluations": own.evaluations(*self.task),
            "evaluations_naive": own.evaluations(*self.task, naive=True),
            "flops": costs.of(work_of(line, own, *self.task)),
            "flops_naive": costs.of(work_of(line, own, *self.task, naive=True)),
        }

    def _round(self, line: Contestant, folder: Path) -> dict[str, Any]:
        """Seconds of a whole heart, as measured or from small runs, and of the naive way from small runs."""
        runs = self._runs(line)
        works = [work_of(line, *run) for run in runs]
        small = [timed_run(runner, noise_stack(acquired), factor, folder) for runner, acquired, factor in runs]
        costs = {kind: fitted_costs(works, [getattr(one, kind) for one in small]) for kind in ("wall", "cpu")}
        own = self._runner(line, line.steps)
        found: dict[str, Any] = {"evaluations_timed": sum(runner.evaluations(*task) for runner, *task in runs)}
        for kind, cost in costs.items():
            found[kind] = cost.of(work_of(line, own, *self.task))
            found[f"{kind}_naive"] = cost.of(work_of(line, own, *self.task, naive=True))
        found["measured"] = found["cpu"] <= self.affordable
        if found["measured"]:
            whole = timed_run(own, noise_stack(self.task[0]), self.task[1], folder)
            found |= {"wall": whole.wall, "cpu": whole.cpu}
        if line.steps is not None:
            slow = self._runner(line, PAPER_STEPS)
            found["slice_at_128"] = costs["wall"].of(work_of(line, slow, 2, 2, naive=True))
        return found


def _row(
    line: Contestant,
    counts: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"system": line.name, "block": line.block, "steps": line.steps, **counts}
    row["measured"] = all(one["measured"] for one in rounds)
    row["evaluations_timed"] = sum(one["evaluations_timed"] for one in rounds)
    for kind in ("wall", "cpu", "wall_naive", "cpu_naive", "slice_at_128"):
        if kind in rounds[0]:
            row[kind] = spread([one[kind] for one in rounds])
    for kind in ("wall", "cpu", "wall_naive", "cpu_naive"):
        plain = kind.removesuffix("_naive")
        row[f"ratio_{kind}"] = spread([mine[kind] / its[plain] for mine, its in zip(rounds, reference, strict=True)])
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median ("mean", as tables and drawings call the middle), minimum, maximum and interquartile range."""
    low, median, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
    return {"mean": median, "low": float(min(values)), "high": float(max(values)), "iqr": high - low}


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Ratios of evaluations and FLOPs to CaLID's in the same block (to our size's where there is no network)."""
    references = {row["block"]: row for row in rows if row["system"] == REFERENCE}
    for row in rows:
        reference = references.get(row["block"], references[OURS])
        for name in ("evaluations", "flops"):
            for kind in (name, f"{name}_naive"):
                row[f"ratio_{kind}"] = row[kind] / reference[name]


def task_of(acquired: int, factor: int) -> str:
    """The task in words."""
    return f"{acquired} slices to {(acquired - 1) * factor + 1}"


class OtherLoad:
    """How many cores other processes keep busy: measured from when this is made until it is asked.

    Only Linux says how busy cores have been; elsewhere the answer is None.
    """

    def __init__(self) -> None:
        self._wall, self._begun = time.perf_counter(), self._others()

    def mean(self) -> float | None:
        """Mean load on the cores that this process may use."""
        now = self._others()
        if now is None or self._begun is None:
            return None
        return max(0.0, (now - self._begun) / (time.perf_counter() - self._wall))

    @staticmethod
    def _others() -> float | None:
        """Seconds that the cores have worked since they were started, less those for this process."""
        source = Path("/proc/stat")
        if not source.is_file():
            return None
        names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in source.read_text().splitlines()]
        ticks = sum(int(ticks) for name, *times in lines if name in names for ticks in [*times[:3], *times[5:8]])
        return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def markdown(task: str, rows: Sequence[Mapping[str, Any]], made_on: Mapping[str, Any], load: float | None) -> str:
    """The table as Markdown, a block per size; ratios are to CaLID."""
    lines = [
        f"{task} at {SIZE} x {SIZE}; {made_on['processor']}, {made_on['cores']} cores used. Seconds: median [minimum, "
        "maximum] of the rounds; ratios are to CaLID in the same block; in brackets for the naive way.",
        "",
    ]
    if load is not None and load > BUSY:
        lines += [
            f"**Other processes kept {load:.1f} of these cores busy**: on an idle machine seconds are fewer. The "
            "minima and the CPU seconds suffer least.",
            "",
        ]
    heads = ["system", "steps", "seconds", "CPU seconds", "evaluations", "TFLOP"]
    heads += [f"ratio of {name}" for name in ("evaluations", "FLOP", "wall time", "CPU time")]
    heads += ["s/slice at 128", "how"]
    for block in dict.fromkeys(row["block"] for row in rows):
        lines += [f"**{block}**", ""]
        members = [row for row in rows if row["block"] == block]
        lines += markdown_table(heads, [_cells(row) for row in members])
        lines += _claims(members)
    return "\n".join(lines)


def claims(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """{"DMCVR : CaLID", ...: {"evaluations", "flops", "wall", "cpu": (with equal care, both the naive way)}}."""
    found = {row["system"]: row for row in rows}
    pairs = [(slow, fast) for slow in ("DiffAE", "DMCVR") for fast in ("CaLID", "CaLID+")]
    return {
        f"{slow} : {fast}": {
            name: (
                _amount(found[slow][name]) / _amount(found[fast][name]),
                _amount(found[slow][f"{name}_naive"]) / _amount(found[fast][f"{name}_naive"]),
            )
            for name in ("evaluations", "flops", "wall", "cpu")
        }
        for slow, fast in pairs
        if slow in found and fast in found
    }


def _amount(value: float | Mapping[str, float]) -> float:
    return value["mean"] if isinstance(value, Mapping) else value


def _claims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The papers' claim as a table: what a whole heart costs, in brackets the naive way of both."""
    found = claims(rows)
    if not found:
        return []
    body = [[pair, *(f"{one:.1f} ({naive:.1f})" for one, naive in ratios.values())] for pair, ratios in found.items()]
    return markdown_table(["whole heart", "evaluations", "FLOP", "wall time", "CPU time"], body)


def _cells(row: Mapping[str, Any]) -> list[str]:
    seconds = [f"{row[kind]['mean']:.2f} [{row[kind]['low']:.2f}, {row[kind]['high']:.2f}]" for kind in ("wall", "cpu")]
    ratios = [f"{row[f'ratio_{name}']:.2f} ({row[f'ratio_{name}_naive']:.2f})" for name in ("evaluations", "flops")]
    for kind in ("wall", "cpu"):
        plain, naive = row[f"ratio_{kind}"], row[f"ratio_{kind}_naive"]
        ratios.append(f"{plain['mean']:.2f} [{plain['low']:.2f}, {plain['high']:.2f}] ({naive['mean']:.2f})")
    slow = f"{row['slice_at_128']['mean']:.2f}" if "slice_at_128" in row else "-"
    how = "measured" if row["measured"] else f"from {row['evaluations_timed']} timed evaluations"
    if row["block"] == NONE:
        ratios[:2] = ["-", "-"]
    name = row["system"]
    return [
        name,
        str(row["steps"] or "-"),
        *seconds,
        str(row["evaluations"]),
        f"{row['flops'] / 1e12:.2f}",
        *ratios,
        slow,
        how,
    ]


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--acquired", type=int, default=11, help="slices of the heart")
    parser.add_argument("--factor", type=int, default=8, help="how many times as many are made of them")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed")
    parser.add_argument(
        "--affordable",
        type=float,
        default=300,
        metavar="SECONDS",
        help="CPU time beyond which a run is worked out from a shorter one",
    )
    parser.add_argument("--systems", nargs="+", help="only these rows; CaLID, their measure, is always among them")
    parser.add_argument("--no-paper", action="store_true", help="leave out the papers' sizes")
    add_place_arguments(parser, table="speed")


def make(
    place: Place,
    *,
    names: Sequence[str] | None = None,
    acquired: int = 11,
    factor: int = 8,
    rounds: int = 5,
    affordable: float = 300,
    paper: bool = True,
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        names: the systems that are timed, CaLID always among them; None is all.
        acquired: slices of the heart.
        factor: number of gaps that each acquired one becomes.
        rounds: number of times that everyone is timed.
        affordable: CPU seconds beyond which a whole heart is computed from small runs.
        paper: whether the papers' sizes are timed too.
    """
    lines = contestants(models=place.models, device=place.device, paper=paper)
    lines = [line for line in lines if names is None or line.name in {REFERENCE, *names}]
    others = OtherLoad()
    rows = Race(lines, affordable=affordable, acquired=acquired, factor=factor).results(rounds=rounds)
    load = others.mean()
    add_ratios(rows)
    task = task_of(acquired, factor)
    text = markdown(task, rows, machine(), load)
    write_table(place, "speed", text, {"rows": rows, "load_of_others": load})
    for block in dict.fromkeys(row["block"] for row in rows):
        found = {row["system"]: row for row in rows if row["block"] == block}
        panels = {
            "seconds": {name: row["wall"] for name, row in found.items()},
            "wall time / CaLID's": {name: row["ratio_wall"] for name, row in found.items()},
        }
        dots(place.out / f"{block.replace(' ', '-')}.png", f"{task}, {block}", panels)


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    make(
        place_of(options),
        names=options.systems,
        acquired=options.acquired,
        factor=options.factor,
        rounds=options.rounds,
        affordable=options.affordable,
        paper=not options.no_paper,
    )
    return 0
