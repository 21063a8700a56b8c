"""`calid-evaluate cine`: does the heart beat smoothly in slices that were made?

Table I's 2D+T rows, Fig. 3 and 7.

A cine's middle slice is made from its neighbors, frame by frame by the 2D model (with other noise in every frame, as in
the paper's comparison, and with the same noise, as the engine runs it) and all frames together by the 2D+T model.

Two questions. On held-out cines where the middle slice was left out (semi-synthetic, from `calid-train cine`, or real):
how close are the slices, and how do they change in time against the true ones? On `--dicom`, a cine whose slices are
too far apart to leave one out: how do slices half-way between two acquired ones change in time, against these two?

| figure | of frames x_t (the frames of a whole cycle follow each other in a ring) | right |
|---|---|---|
| change | mean abs(x_t+1 - x_t) / the true slices' | 1 |
| flicker | mean abs(x_t-1 - 2 x_t + x_t+1) / the true slices' | 1; less has less noise, more flickers |
| above 4th | energy of the temporal spectrum above the 4th harmonic / the true slices' | 1, as flicker |
| motion error | rms(change - true change) / rms(true change) | 0; 1 is a slice that does not move |
| LV roughness | rms second difference of the segmenter's LV area / its mean, % | as the acquired slices' |

A true slice holds thermal noise of its own in every frame, which nobody can or should predict.

LPIPS-alex and rFID are as in the interpolation table, over all frames. Seconds are wall time for one slice of one
frame. Figures are means over a sequence's frames, then over sequences; tests are Wilcoxon's signed ranks over sequences
(two-sided, uncorrected, of six or more) of a 2D+T row against the same row frame by frame.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from calid.heart.segmentation import Segmenter
from calid.method.weights import read_manifest
from calid.run.batches import CINE_MODEL, DEFAULT_MODEL, Interpolator
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import DeviceName, Method, Settings
from calid_training.prepare import load_cases
from matplotlib.figure import Figure
from tqdm import tqdm

from calid_benchmark import metrics, perceptual
from calid_benchmark.beating import motion_error, roughness, temporal_figures
from calid_benchmark.perceptual import Perceptual
from calid_benchmark.segmenters import judging_segmenter
from calid_benchmark.tables.drawings import PIXELS_PER_INCH, sheet
from calid_benchmark.tables.interpolation import notes_of, perceptual_cells
from calid_benchmark.tables.passages import Passage, passages_of
from calid_benchmark.tables.questions import SIZE, add_place_arguments
from calid_benchmark.tables.record import Place, cell, markdown_table, place_of, probability, write_table
from calid_benchmark.ways import generated

DATASETS, SPLIT = ("chla", "sunnybrook"), "validation"
PHASES = 8
"""Shown of a cycle (Fig. 3)."""
ACQUIRED = "acquired"
OVER_TIME = ", 2D+T"
SHOWN = ("linear", "CaLID", f"CaLID{OVER_TIME}", "CaLID+", f"CaLID+{OVER_TIME}")
FIGURES = {
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "sharpness": ("sharpness", 2),
    "change": ("change", 2),
    "flicker": ("flicker", 2),
    "above_4th": ("above 4th", 2),
    "motion_error": ("motion error", 2),
    "roughness": ("LV roughness %", 2),
}
"""Figures with an interval: {name: (heading, digits)}."""

Maker = Callable[[np.ndarray, np.ndarray, bool], np.ndarray]
"""(before, after (T, Y, X) in [0, 1], whether the frames are a whole cycle) -> the slices between, the same shape."""


@dataclass(frozen=True, eq=False)
class Row:
    """What makes the slices of a row.

    Args:
        make: function that makes them.
        weights: (model name, SHA-256) of all that is behind it.
    """

    make: Maker
    weights: tuple[tuple[str, str], ...] = ()


def rows_of(*, models_folder: Path | None, device: DeviceName, steps: int) -> dict[str, Row]:
    """The rows of the table: of the 2D model and the 2D+T model, as far as the folder has them."""
    names = read_manifest(models_folder)

    def row(name: str, method: Method, steps: int = steps, *, own_noise: bool = False) -> Row:
        interpolator = warm_interpolator(choose_device(device), models_folder, name)
        if own_noise:
            interpolator = replace(interpolator, noise_share=0.0)
        settings = Settings(factor=2, method=method, steps=steps, device=device)
        entry = interpolator.entry
        return Row(partial(made_by, interpolator, settings), ((entry.name, entry.sha256),))

    rows = {"linear": Row(lambda before, after, _: (before + after) / 2)}
    if DEFAULT_MODEL in names:
        rows["CaLID, noise of its own in every frame"] = row(DEFAULT_MODEL, "calid", own_noise=True)
    ways: dict[str, tuple[Method, int]] = {
        "CaLID": ("calid", steps),
        "CaLID+": ("calid+", steps),
        "CaLID, one step": ("calid", 1),
    }
    for name, (method, few) in ways.items():
        models = {"": DEFAULT_MODEL, OVER_TIME: CINE_MODEL}
        rows |= {name + kind: row(model, method, few) for kind, model in models.items() if model in names}
    return rows


def made_by(
    interpolator: Interpolator, settings: Settings, before: np.ndarray, after: np.ndarray, spans_cycle: bool
) -> np.ndarray:
    """The slices between, exactly as `calid upsample` makes them of a cine of two slices."""
    frames = generated(interpolator, np.stack([before, after], axis=1), 2, settings, is_periodic=spans_cycle)
    return np.stack([values[1] for values, _ in frames])


def figures_of_frames(sequence: Passage, frames: np.ndarray, segmenter: Segmenter) -> dict[str, float]:
    """All figures of frames made for a sequence; where no slice was acquired, against the mean of its neighbors'."""
    ring = sequence.spans_cycle
    found = {"roughness": roughness(segmenter, frames, ring=ring)}
    if sequence.truth is None:
        sides = [temporal_figures(frames, side, ring=ring) for side in (sequence.before, sequence.after)]
        return found | {name: float(2 / sum(1 / side[name] for side in sides)) for name in sides[0]}
    truth = sequence.truth
    gradients = (np.sum(metrics.gradient_magnitude(x)) for x in (frames, truth))
    return {
        **found,
        **temporal_figures(frames, truth, ring=ring),
        "psnr": float(np.mean(metrics.psnr(truth, frames))),
        "ssim": float(np.mean(metrics.ssim(truth, frames))),
        "sharpness": float(np.divide(*gradients)),
        "motion_error": motion_error(frames, truth, ring=ring),
    }


def acquired_figures(sequence: Passage, segmenter: Segmenter) -> dict[str, float]:
    """What the acquired slices themselves come to."""
    shown = [sequence.before, sequence.after] if sequence.truth is None else [sequence.truth]
    rough = float(np.mean([roughness(segmenter, frames, ring=sequence.spans_cycle) for frames in shown]))
    return {"roughness": rough, "change": 1.0, "flicker": 1.0, "above_4th": 1.0}


def evaluate(
    asked: Sequence[Passage], rows: Mapping[str, Row], segmenter: Segmenter, judges: Perceptual
) -> dict[str, dict[str, Any]]:
    """{group: {row: {figure: cell, "rfid", "seconds_per_slice"}}} over the sequences of a group."""
    tables: dict[str, dict[str, Any]] = {}
    for group in sorted({sequence.group for sequence in asked}):
        members = [sequence for sequence in asked if sequence.group == group]
        found = {ACQUIRED: [acquired_figures(sequence, segmenter) for sequence in members]}
        whole: dict[str, dict[str, float]] = {ACQUIRED: {}}
        for name, row in tqdm(rows.items(), desc=group, unit=" rows"):
            start = time.perf_counter()
            made = [row.make(s.before, s.after, s.spans_cycle).clip(0, 1) for s in members]
            seconds = (time.perf_counter() - start) / sum(map(len, made))
            pairs = list(zip(members, made, strict=True))
            found[name] = [
                figures_of_frames(s, frames, segmenter) | perceptual_of(s, frames, judges) for s, frames in pairs
            ]
            whole[name] = {"seconds_per_slice": seconds, **over_all(pairs, judges)}
        tables[group] = {name: _row(name, found) | whole[name] for name in found}
    return tables


def perceptual_of(sequence: Passage, frames: np.ndarray, judges: Perceptual) -> dict[str, float]:
    """LPIPS of a sequence, where it is measured and the true slices are there."""
    if judges.lpips is None or sequence.truth is None:
        return {}
    return {"lpips": float(np.mean(judges.lpips(sequence.truth, frames)))}


def over_all(made: Sequence[tuple[Passage, np.ndarray]], judges: Perceptual) -> dict[str, float]:
    """rFID over all frames of a group, where it is measured and the true slices are there."""
    pairs = [(sequence.truth, frames) for sequence, frames in made if sequence.truth is not None]
    if judges.rfid is None or not pairs:
        return {}
    return {"rfid": judges.rfid(pairs)}


def _row(name: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """A row's figures, compared with linear interpolation, and where it is a 2D+T row with its frame-by-frame row."""
    row: dict[str, Any] = {"sequences": len(found[name])}
    still = found.get(name.removesuffix(OVER_TIME)) if name.endswith(OVER_TIME) else None

    def values(side: Sequence[Mapping[str, float]], figure: str) -> list[float]:
        return [one.get(figure, np.nan) for one in side]

    for figure in found[name][0]:
        mine = values(found[name], figure)
        row[figure] = metrics.compared(mine, values(found["linear"], figure))
        if still is not None and row[figure] is not None:
            row[figure]["p_against_2d"] = metrics.paired_p(mine, values(still, figure))
    return row


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown; brackets are 95 % bootstrap intervals over sequences."""
    lines = []
    for group, rows in tables.items():
        lines += [f"**{group}**: {rows[ACQUIRED]['sequences']} sequences", ""]
        kept = [name for name in FIGURES if any(row.get(name) for row in rows.values())]
        heads = ["slices", *(FIGURES[name][0] for name in kept), "LPIPS-alex", "rFID", "s/slice"]
        lines += markdown_table(heads, [[name, *_cells(row, kept)] for name, row in rows.items()])
        lines += _tests(rows, kept)
    return "\n".join([*lines, *notes])


def _cells(row: Mapping[str, Any], kept: Sequence[str]) -> list[str]:
    figures = [cell(row.get(figure), FIGURES[figure][1]) for figure in kept]
    seconds = f"{row['seconds_per_slice']:.2f}" if "seconds_per_slice" in row else "-"
    return [*figures, *(perceptual_cells(row) if "psnr" in row else ("-", "-")), seconds]


def _tests(rows: Mapping[str, Mapping[str, Any]], kept: Sequence[str]) -> list[str]:
    """p of the 2D+T rows against the frame-by-frame ones, where there are enough sequences."""
    tested = {
        name: [probability((row.get(figure) or {}).get("p_against_2d")) for figure in kept]
        for name, row in rows.items()
        if name.endswith(OVER_TIME)
    }
    if all(p == "-" for cells in tested.values() for p in cells):
        return []
    heads = ["slices", *(FIGURES[name][0] for name in kept)]
    return ["p of 2D+T against frame by frame:", "", *markdown_table(heads, [[k, *v] for k, v in tested.items()])]


def shown(sequence: Passage, rows: Mapping[str, Row]) -> dict[str, np.ndarray]:
    """{heading: frames (T, Y, X)} of the acquired slice and of what the rows in `SHOWN` make."""
    first = sequence.before if sequence.truth is None else sequence.truth
    title = f"{ACQUIRED}, {'before' if sequence.truth is None else 'left out'}"
    made = (name for name in SHOWN if name in rows)
    sides = sequence.before, sequence.after, sequence.spans_cycle
    return {title: first, **{name: rows[name].make(*sides).clip(0, 1) for name in made}}


def draw_phases(path: Path, sequence: Passage, pictures: Mapping[str, np.ndarray]) -> None:
    """Fig. 3: phases spread over the cycle, one column each, a row per kind of slice."""
    count = len(sequence.before)
    phases = np.unique(np.linspace(0, count - 1, min(PHASES, count)).astype(int))
    rows = {name: {f"frame {t + 1} of {count}": frames[t] for t in phases} for name, frames in pictures.items()}
    sheet(path, f"{sequence.group}, {sequence.patient}: phases of the cycle", rows)


def draw(path: Path, sequences: Sequence[Passage], pictures: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Fig. 7: cross-sections along x and y over time, one row per sequence and cut, one column per kind of slice.

    Time runs downwards, twice around where the frames are a whole cycle.
    """
    columns = max(map(len, pictures))
    figure = Figure(figsize=(1.9 * columns, 2.6 * len(sequences)), layout="constrained")
    axes = figure.subplots(2 * len(sequences), columns, squeeze=False)
    for number, (sequence, made) in enumerate(zip(sequences, pictures, strict=True)):
        for column, (name, frames) in enumerate(made.items()):
            for cut, line in enumerate((frames[:, SIZE // 2], frames[:, :, SIZE // 2])):
                axis = axes[2 * number + cut, column]
                axis.imshow(np.tile(line, (1 + sequence.spans_cycle, 1)), cmap="gray", vmin=0, vmax=1, aspect="auto")
                axis.set_xticks([])
                axis.set_yticks([])
                if cut == 0:
                    axis.set_title(name, fontsize=8)
                if column == 0:
                    axis.set_ylabel(f"{sequence.group}\n{sequence.patient}, {'xy'[cut]} over time", fontsize=6)
    figure.savefig(path, dpi=PIXELS_PER_INCH)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--prepared", type=Path, required=True, help="folder made by calid-train cine or prepare")
    parser.add_argument("--datasets", nargs="+", metavar="SET", default=list(DATASETS), help="prepared sets")
    parser.add_argument("--split", default=SPLIT, help="whose stacks: train, validation or test")
    parser.add_argument(
        "--dicom", type=Path, help="DICOM folder of a real cine, whose slices are too far apart to leave one out"
    )
    parser.add_argument(
        "--gaps", type=int, default=1, metavar="N", help="how many gaps of the real cine, from the middle"
    )
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N sequences of every set")
    parser.add_argument("--systems", nargs="+", help="only these rows; linear is always among them")
    parser.add_argument("--steps", type=int, default=Settings().steps, help="DDIM steps")
    perceptual.add_arguments(parser)
    add_place_arguments(parser, table="cine")


def make(
    place: Place,
    asked: Sequence[Passage],
    segmenter: Segmenter,
    judges: Perceptual,
    *,
    names: Sequence[str] | None = None,
    steps: int = Settings().steps,
) -> None:
    """Make the table and its picture.

    Args:
        place: folder and files for them.
        asked: sequences whose slices are made.
        segmenter: measures the ventricle.
        judges: LPIPS and rFID.
        names: the rows, linear interpolation always among them; None is all.
        steps: DDIM steps.
    """
    rows = rows_of(models_folder=place.models, device=place.device, steps=steps)
    rows = {name: row for name, row in rows.items() if names is None or name in {"linear", *names}}
    tables = evaluate(asked, rows, segmenter, judges)
    text = markdown(tables, [*notes_of([], judges), ""])
    write_table(place, "cine", text, {"tables": tables, "not_measured": judges.reasons}, systems=rows.values())
    firsts = [next(s for s in asked if s.group == group) for group in tables]
    pictures = [shown(sequence, rows) for sequence in firsts]
    draw(place.out / "space-time.png", firsts, pictures)
    for sequence, made in zip(firsts, pictures, strict=True):
        draw_phases(place.out / f"phases-{sequence.group.replace(' ', '-')}.png", sequence, made)


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    segmenter = judging_segmenter(choose_device(options.device), options.models)
    cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
    asked = passages_of(cases, segmenter, count=options.quick, dicom=options.dicom, gaps=options.gaps)
    judges = perceptual.measures_of(options)
    make(place_of(options), asked, segmenter, judges, names=options.systems, steps=options.steps)
    return 0
