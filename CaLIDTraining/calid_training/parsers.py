"""The parser of `calid-train` and `calid-evaluate`: its help tells defaults, and shows examples as they are typed."""

from __future__ import annotations

from argparse import SUPPRESS, Action, ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

PREPARED_HELP = "folder made by calid-train prepare"


class _WithDefaults(RawDescriptionHelpFormatter):
    """Adds its default to what an option's help says, where the default tells anything."""

    def _get_help_string(self, action: Action) -> str:
        words, default = action.help or "", action.default
        is_nothing = default in (None, False, "", [], SUPPRESS) or (isinstance(default, Path) and default.is_absolute())
        if not action.option_strings or is_nothing or "default" in words:
            return words
        typed = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{words} (default: {typed})"


class Parser(ArgumentParser):
    """A parser whose help reads so, as that of its subcommands does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _WithDefaults, **options})
