"""Words that a shell completes: commands, options, the settings' values, and names of files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from calid.errors import ResourceError
from calid.run.settings import OPTIONS

SHELLS = ("bash", "zsh", "tcsh")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that makes a shell complete a command line.

    Args:
        parser: the parser of all commands.
        shell: one of `SHELLS`.

    Raises:
        ResourceError: "no-shtab" if the package is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ResourceError("no-shtab", "Completion needs the package shtab.", "pip install shtab") from error
    _tell_values(parser, files=shtab.FILE)
    return shtab.complete(parser, shell=shell)


def _tell_values(parser: argparse.ArgumentParser, *, files: Any) -> None:
    """Tell of each argument what it can be; the parser only completes from now on, since it would refuse numbers.

    Args:
        parser: the parser.
        files: what shtab takes for names of files.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _tell_values(command, files=files)
        elif action.type is Path or action.dest == "manifest":
            action.complete = files  # type: ignore[attr-defined]  # shtab's own
        elif action.dest in OPTIONS and action.choices is None:
            action.choices = [str(choice) for choice in OPTIONS[action.dest].choices] or None
