"""The 17 segments of the LV as a bull's-eye: apex in the middle, anterior wall on top, septum on the left."""

from __future__ import annotations

import numpy as np
import qt
from calid.heart.wall import RINGS, SEGMENTS, Segment

SIZE = 250
RADII = {"basal": 1.0, "mid": 0.76, "apical": 0.52, "apex": 0.26}
"""Outer radius of each ring over that of the whole."""

# From thin to thick: even in lightness, so that it reads in gray as well.
_RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], float)
_UNKNOWN = (150, 150, 150)
_CENTERED = 0x0084  # Qt::AlignCenter; its Python type differs between the bindings
_LETTERS = {"anterior": (0.5, 0.06), "inferior": (0.5, 0.94), "septal": (0.06, 0.5), "lateral": (0.94, 0.5)}
_SHARE = 0.38  # of the picture's width is the radius of the whole, with room for the letters around it


def pixmap(values: np.ndarray, letters: dict[str, str], size: int = SIZE):
    """Paint values by segment.

    Args:
        values: (17,) in the order of `SEGMENTS`; NaN is gray.
        letters: "anterior", "inferior", "septal" and "lateral" -> what is written on that side.
        size: rows and columns of the picture in pixels.
    """
    picture = qt.QPixmap(size, size)
    picture.fill(qt.QColor(0, 0, 0, 0))
    painter = qt.QPainter(picture)
    painter.setRenderHint(qt.QPainter.Antialiasing, True)
    low, high = limits(values)
    for ring in (*RINGS, "apex"):
        for segment in SEGMENTS:
            if segment.ring == ring:
                _paintSegment(painter, segment, values[segment.number - 1], (low, high), size)
    for segment in SEGMENTS:
        _writeValue(painter, segment, values[segment.number - 1], (low, high), size)
    painter.setPen(qt.QColor(128, 128, 128))
    for side, (x, y) in _LETTERS.items():
        painter.drawText(qt.QRect(round(x * size) - 18, round(y * size) - 10, 36, 20), _CENTERED, letters[side])
    painter.end()
    return picture


def limits(values: np.ndarray) -> tuple[float, float]:
    """The values that the ends of the ramp stand for."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def rampColor(value: float, ends: tuple[float, float]) -> tuple[int, int, int]:
    """Red, green and blue of a value between the ends of the ramp."""
    if not np.isfinite(value):
        return _UNKNOWN
    place = (len(_RAMP) - 1) * np.clip((value - ends[0]) / (ends[1] - ends[0]), 0, 1)
    return tuple(round(float(np.interp(place, np.arange(len(_RAMP)), channel))) for channel in _RAMP.T)


def place(segment: Segment) -> tuple[float, float]:
    """(x, y) of a segment's middle, from -1 to 1, to the right and downwards."""
    if segment.ring == "apex":
        return 0.0, 0.0
    inner = next(radius for radius in RADII.values() if radius < RADII[segment.ring])
    radius = (RADII[segment.ring] + inner) / 2
    angle = np.deg2rad(180 - segment.angle_deg)
    return radius * np.cos(angle), -radius * np.sin(angle)


def _paintSegment(painter, segment: Segment, value: float, ends: tuple[float, float], size: int) -> None:
    radius = RADII[segment.ring] * _SHARE * size
    corner, width = round(size / 2 - radius), round(2 * radius)
    painter.setBrush(qt.QBrush(qt.QColor(*rampColor(value, ends))))
    painter.setPen(qt.QColor(255, 255, 255))
    if segment.ring == "apex":
        painter.drawEllipse(corner, corner, width, width)
        return
    start = 180 - segment.angle_deg - segment.width_deg / 2  # the septum is on the left, where Qt has 180 degrees
    painter.drawPie(corner, corner, width, width, round(16 * start), round(16 * segment.width_deg))


def _writeValue(painter, segment: Segment, value: float, ends: tuple[float, float], size: int) -> None:
    x, y = place(segment)
    lightness = float(np.dot(rampColor(value, ends), (0.3, 0.59, 0.11)))
    painter.setPen(qt.QColor(0, 0, 0) if lightness > 130 else qt.QColor(255, 255, 255))
    text = f"{value:.0f}" if np.isfinite(value) and abs(value) >= 20 else f"{value:.1f}" if np.isfinite(value) else "-"
    middle = size / 2 + _SHARE * size * np.array([x, y])
    painter.drawText(qt.QRect(round(middle[0]) - 22, round(middle[1]) - 10, 44, 20), _CENTERED, text)
