"""The pictures beside the tables: means with intervals, curves, and sheets of slices; matplotlib without a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

HIGHLIGHT, PLAIN = "#0b5d7a", "#8aa0ab"
PIXELS_PER_INCH = 120
TITLES = {"psnr": "PSNR dB", "ssim": "SSIM", "feature_distance": "feature distance", "dice": "Dice", "voe": "VOE %"}
TITLES |= {f"{name}_{unit}": f"{name.upper()} {unit}" for name in ("asd", "hd", "assd") for unit in ("px", "mm")}


def dots(path: Path, title: str, panels: Mapping[str, Mapping[str, Mapping[str, float] | None]]) -> None:
    """One panel per figure, one line per system: its mean and its 95 % interval, if it has one; CaLID's are dark.

    Dots, because bars that do not begin at 0 would exaggerate, and bars that do would hide the differences.

    Args:
        panels: {figure: {system: {mean, and low and high if known} or None}}.
    """
    systems = list(next(iter(panels.values())))
    figure = Figure(figsize=(3.2 * len(panels) + 1.6, 0.32 * len(systems) + 1.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        for place, system in enumerate(systems):
            row = rows[system]
            if row is not None:
                low, high = row.get("low", row["mean"]), row.get("high", row["mean"])
                around = [[max(row["mean"] - low, 0)], [max(high - row["mean"], 0)]]
                color = HIGHLIGHT if system.startswith("CaLID") else PLAIN
                axis.errorbar(row["mean"], place, xerr=around, fmt="o", color=color, capsize=3, markersize=5)
        axis.set_title(TITLES.get(name, name), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(systems)), systems)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=PIXELS_PER_INCH)


def curves(path: Path, title: str, panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> None:
    """One panel per figure, one curve per system over the number of steps (logarithmic).

    Args:
        panels: {figure: {system: (steps, values)}}.
    """
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for axis, (name, systems) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for system, (steps, values) in systems.items():
            axis.plot(steps, values, marker="o", markersize=3, label=system)
        axis.set_xscale("log", base=2)
        ticks = sorted({step for steps, _ in systems.values() for step in steps})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel("steps", fontsize=8)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=PIXELS_PER_INCH)


def sheet(path: Path, title: str, rows: Mapping[str, Mapping[str, np.ndarray]], *, inches: float = 1.5) -> None:
    """Gray or colored pictures in [0, 1], a row each with a column per heading; NaN is left white.

    Args:
        rows: {row: {column: (Y, X) or (Y, X, 3)}}; a column that a row lacks stays empty.
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    first = next(iter(next(iter(rows.values())).values()))
    size = (inches * len(columns) + 0.4, inches * first.shape[0] / first.shape[1] * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (row, pictures) in zip(axes, rows.items(), strict=True):
        for axis, column in zip(line, columns, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
            if column in pictures:
                axis.imshow(pictures[column], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if axis in axes[0]:
                axis.set_title(column, fontsize=8)
        line[0].set_ylabel(row, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=PIXELS_PER_INCH)


def error_bars(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{figure: {system: cell}} for `dots`, from a table's {system: {figure: cell}}."""
    return {name: {system: row.get(name) for system, row in rows.items()} for name in names}
