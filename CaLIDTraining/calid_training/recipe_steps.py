"""The steps of a recipe: commands that could be typed by hand, and what their configurations come to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TRAIN, EVALUATE = "calid-train", "calid-evaluate"


@dataclass(frozen=True)
class RecipeStep:
    """One command of a recipe.

    Args:
        name: name of the step.
        command: arguments of the program without its settings.
        program: `calid-train` or `calid-evaluate`.
        configs: configurations of a training step, in the order in which they are read.
        changes: {"data.batch_size": 8, ...} of a training step, over its configurations.
    """

    name: str
    command: tuple[str, ...]
    program: str = TRAIN
    configs: tuple[Path, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Everything after the program."""
        flags = [part for key, value in self.changes.items() for part in (f"--{key}", _flag(value))]
        on_top = [part for path in self.configs[2:] for part in ("--config", str(path))]
        return [*self.command, *on_top, *flags]

    def settings(self) -> dict[str, Any]:
        """The merged configuration of a training step, as far as its files and changes say it."""
        merged: dict[str, Any] = {}
        for path in self.configs:
            merged = _merged(merged, yaml.safe_load(path.read_text()))
        for key, value in self.changes.items():
            merged = _merged(merged, _nested(key.split("."), value))
        return merged


def _flag(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The second mapping over the first, at every depth."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
