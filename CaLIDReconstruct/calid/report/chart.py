"""The volume-time curve as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calid.report.page import text

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 130, 34, 44


@dataclass(frozen=True)
class Curve:
    """One line of the chart.

    Args:
        name: word at its end.
        times_ms: (T,) moments after the R wave.
        values: (T,) values at these moments.
        color: color in CSS.
        dashed: whether it is dashed, as what others are compared with.
    """

    name: str
    times_ms: np.ndarray
    values: np.ndarray
    color: str
    dashed: bool = False


def volume_curves(curves: Sequence[Curve], marks: Sequence[tuple[float, str]] = ()) -> str:
    """SVG of volumes in ml over the cycle; `marks` are (time in ms, name) of moments such as end-systole."""
    longest = max(float(curve.times_ms[-1]) for curve in curves)
    step = _tick_step(max(float(curve.values.max()) for curve in curves))
    highest = step * np.ceil(max(float(curve.values.max()) for curve in curves) / step)

    def x(time_ms: float) -> float:
        return _LEFT + time_ms / longest * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / highest * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid_line(value, y(value)) for value in np.arange(0, highest + step / 2, step)]
    parts += [_time_label(time, x(time)) for time in np.arange(0, longest + 1, _tick_step(longest))]
    parts += [_mark(x(time), name) for time, name in marks]
    parts += [
        _line(curve, [(x(time), y(value)) for time, value in zip(curve.times_ms, curve.values, strict=True)])
        for curve in curves
    ]
    parts += _names(curves, [y(float(curve.values[-1])) for curve in curves])
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">ms after the R wave</text>')
    parts.append(f'<text x="{_LEFT - 8}" y="{_TOP - 16}" text-anchor="end">ml</text>')
    title = "Volumes over the heart cycle: " + ", ".join(curve.name for curve in curves)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>\n'
    )


def _tick_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, for about five ticks."""
    rough = max(largest, 1e-6) / 5
    power = 10 ** np.floor(np.log10(rough))
    return float(power * min((1, 2, 5, 10), key=lambda factor: abs(factor - rough / power)))


def _grid_line(value: float, y: float) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _time_label(time_ms: float, x: float) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{time_ms:g}</text>'


def _mark(x: float, name: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="var(--quiet)" '
        f'stroke-dasharray="2 4"/><text x="{x:.1f}" y="{_TOP - 8}" text-anchor="middle">{text(name)}</text>'
    )


def _line(curve: Curve, places: list[tuple[float, float]]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="6 5" stroke-width="1.5"' if curve.dashed else ' stroke-width="2.5"'
    return f'<polyline points="{points}" fill="none" stroke="{curve.color}"{dash}/>'


def _names(curves: Sequence[Curve], heights: list[float]) -> list[str]:
    """Names at the lines' right ends, moved apart where they would overlap."""
    order = np.argsort(heights)
    placed = np.array(heights, float)
    for lower, upper in zip(order[1:], order[:-1], strict=True):
        placed[lower] = max(placed[lower], placed[upper] + 16)
    return [
        f'<text x="{_WIDTH - _RIGHT + 8}" y="{place + 4:.1f}" style="fill: {curve.color}">{text(curve.name)}</text>'
        for curve, place in zip(curves, placed, strict=True)
    ]
