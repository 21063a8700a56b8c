"""Texts of the panel that must not be overlooked: an error looks like one, by a sign and by its color."""

from __future__ import annotations

import enum

# Readable on the light and on the dark palette.
_LOOKS = {
    "info": ("", ""),
    "warning": ("\u26a0 ", "color: #b26a00;"),
    "error": ("\u2716 ", "color: #d32f2f; font-weight: bold;"),
}


class Level(enum.Enum):
    """How much a text must not be overlooked."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def show(label, text: str, level: Level = Level.INFO) -> None:
    """Put a text into a QLabel, with the sign and the color of its level; an empty text has neither."""
    sign, style = _LOOKS[level.value] if text else _LOOKS["info"]
    label.text = sign + text
    label.setStyleSheet(style)
