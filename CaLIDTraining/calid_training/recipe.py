"""`calid-train recipe NAME DATA OUT`: a whole model, from raw data to a table, stage by stage.

Every step is a command that could be typed by hand, and `--dry-run` prints them with their steps, hours and bytes. A
recipe that was stopped goes on with the step that it was in, and that step from its newest checkpoint. Nothing that is
done is done again, unless its command has changed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calid_training.estimate import estimate
from calid_training.recipe_steps import EVALUATE, TRAIN, Step
from calid_training.stages import CONFIGS

DONE_NAME = "recipe.json"


@dataclass(frozen=True)
class Plan:
    """What the user asked for.

    Args:
        data: folder with the raw sets.
        out: folder for everything that is made.
        datasets: sets that train.
        judged: sets whose test patients judge.
        license: of the weights, or None for the one that follows from the data.
        alexnet: weights for LPIPS, or None.
        devices: GPUs (or processes) of every training step; None leaves the configurations' number.
        accumulate: batches for one step, where a batch does not fit a device.
        overrides: {stage: {key: value}} over everything else.
    """

    data: Path
    out: Path
    datasets: tuple[str, ...]
    judged: tuple[str, ...]
    license: str | None = None
    alexnet: Path | None = None
    devices: int | None = None
    accumulate: int = 1
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def prepared(self) -> Path:
        return self.out / "prepared"

    @property
    def models(self) -> Path:
        return self.out / "models"

    def run(self, name: str) -> Path:
        """The run folder of a stage."""
        return self.out / "runs" / name

    def prepare(self, datasets: Iterable[str]) -> Step:
        """Prepare the sets that train and judge."""
        sets = list(dict.fromkeys(datasets))
        return Step("prepare", ("prepare", "--data", str(self.data), "--out", str(self.prepared), "--datasets", *sets))

    def stage(self, name: str, command: str, *on_top: str, manual: bool = False, **changes: Any) -> Step:
        """A training step.

        Args:
            name: of the step and its run folder.
            command: of `calid-train`.
            *on_top: configurations over the command's own.
            manual: whether the stage steps its optimizers itself, and accumulates by a setting of its own.
            **changes: settings over the configurations, dots written as two underscores.
        """
        files = tuple(CONFIGS / f"{one}.yaml" for one in ("base", command, *on_top))
        settings = {"data.prepared": str(self.prepared), "data.datasets": list(self.datasets)}
        settings |= {"trainer.default_root_dir": str(self.run(name))}
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        settings |= self._sizes(Step(name, (command,), TRAIN, files).settings(), manual=manual)
        return Step(name, (command,), TRAIN, files, settings | dict(self.overrides.get(name, {})))

    def _sizes(self, settings: Mapping[str, Any], *, manual: bool) -> dict[str, Any]:
        """The batch on each device, so that all devices together make the steps of the configuration."""
        trainer, data = settings["trainer"], settings["data"]
        before = trainer["devices"] if isinstance(trainer["devices"], int) else 1
        devices = before if self.devices is None else self.devices
        if devices == before and self.accumulate == 1:
            return {} if self.devices is None else {"trainer.devices": devices}
        total = before * data["batch_size"]
        if total % (devices * self.accumulate):
            raise ValueError(f"{devices} devices x {self.accumulate} batches a step cannot share a batch of {total}")
        found: dict[str, Any] = {"trainer.devices": devices, "data.batch_size": total // (devices * self.accumulate)}
        if self.accumulate > 1:
            key = "model.accumulate" if manual else "trainer.accumulate_grad_batches"
            found |= {key: self.accumulate, "data.batches": data["batches"] * self.accumulate}
        return found

    def export(self, kind: str, *options: str) -> Step:
        """An export step."""
        return Step(f"export {kind}", ("export", *options))

    def export_code(self, name: str, out: Path) -> Step:
        """Export the latent space of a stage's run."""
        run, prepared = str(self.run(name)), str(self.prepared)
        return Step(
            f"export {name}", ("export", "autoencoder", "--run", run, "--prepared", prepared, "--out", str(out))
        )

    def released(self) -> list[str]:
        """Options of models that are written to a manifest."""
        return ["--models", str(self.models), *([] if self.license is None else ["--license", self.license])]

    def evaluate(self, *command: str) -> Step:
        """The table at the end."""
        networks = [] if self.alexnet is None else ["--alexnet", str(self.alexnet)]
        place = ["--models", str(self.models), "--out", str(self.out / "table"), *networks]
        return Step("evaluate", (*command, *place), EVALUATE)


def small(plan: Plan) -> list[Step]:
    """The models that ship: small networks with a motion, on a processor."""
    coded, refined, moved = (plan.out / f"{name}.safetensors" for name in ("autoencoder", "refined", "motion"))
    prepared = ["--prepared", str(plan.prepared)]
    model = ["model", "--run", str(plan.run("denoiser")), "--autoencoder", str(refined), *plan.released()]
    return [
        plan.prepare([*plan.datasets, *plan.judged]),
        plan.stage("autoencoder", "autoencoder", manual=True),
        plan.export_code("autoencoder", coded),
        plan.stage("refined", "autoencoder", "autoencoder-refine", manual=True, model__refine=str(coded)),
        plan.export_code("refined", refined),
        plan.stage("motion", "motion"),
        plan.export("motion", "motion", "--run", str(plan.run("motion")), "--out", str(moved)),
        plan.stage("denoiser", "denoiser", model__autoencoder=str(coded), model__motion=str(moved)),
        plan.export("model", *model),
        plan.evaluate("interpolation", *prepared, "--datasets", *plan.judged),
    ]


def paper_2d(plan: Plan) -> list[Step]:
    """The paper's 2D model at its size, with its training."""
    coded = plan.out / "autoencoder.safetensors"
    prepared = ["--prepared", str(plan.prepared)]
    lpips = {} if plan.alexnet is None else {"model__alexnet": str(plan.alexnet)}
    return [
        plan.prepare([*plan.datasets, *plan.judged]),
        plan.stage("autoencoder", "autoencoder", "paper-autoencoder", manual=True, **lpips),
        plan.export_code("autoencoder", coded),
        plan.stage("denoiser", "denoiser", "paper-denoiser", model__autoencoder=str(coded)),
        plan.export("model", "model", "--run", str(plan.run("denoiser")), *plan.released()),
        plan.evaluate("interpolation", *prepared, "--datasets", *plan.judged),
    ]


def paper_2dt(plan: Plan) -> list[Step]:
    """The paper's 2D+T model at its size: every convolution 3D, clips over the whole cycle."""
    coded = plan.out / "autoencoder.safetensors"
    lpips = {} if plan.alexnet is None else {"model__alexnet": str(plan.alexnet)}
    return [
        plan.prepare([*plan.datasets, *plan.judged]),
        plan.stage("autoencoder", "cine-autoencoder", manual=True, **lpips),
        plan.export_code("autoencoder", coded),
        plan.stage("denoiser", "cine-denoiser", "cine-paper", model__autoencoder=str(coded)),
        plan.export("model", "model", "--run", str(plan.run("denoiser")), *plan.released()),
    ]


RECIPES = {"paper-2d": paper_2d, "paper-2d+t": paper_2dt, "small": small}
TRAINING = {"paper-2d": ("ukbb",), "paper-2d+t": ("ukbb",), "small": ("autofd", "chla", "sunnybrook")}
JUDGED = {"paper-2d": ("ukbb",), "paper-2d+t": (), "small": ("acdc",)}


def cook(steps: Sequence[Step], out: Path) -> int:
    """Run the steps that are not done yet, each as a program of its own; the first failure ends it.

    Returns:
        0, or the failed step's exit code.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / DONE_NAME
    done: dict[str, list[str]] = json.loads(record.read_text()) if record.is_file() else {}
    for number, step in enumerate(steps, start=1):
        arguments = step.arguments()
        if done.get(step.name) == arguments:
            print(f"[{number}/{len(steps)}] {step.name}: done", flush=True)
            continue
        program = _program(step.program)
        if program is None:
            print(f"[{number}/{len(steps)}] {step.name}: left out, {step.program} is not installed", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {step.name}: {step.program} {shlex.join(arguments)}", flush=True)
        ended = subprocess.run([*program, *arguments], check=False).returncode
        if ended:
            print(f"The recipe stopped in '{step.name}'; the same command goes on from there.", flush=True)
            return ended
        done[step.name] = arguments
        partial = record.with_suffix(".part")
        partial.write_text(json.dumps(done, indent=1))
        partial.replace(record)
    return 0


def _program(name: str) -> list[str] | None:
    """How a console script is started: as the module where it is this package's, else the script beside Python."""
    if name == TRAIN:
        return [sys.executable, "-m", "calid_training.train"]
    suffix = ".exe" if os.name == "nt" else ""
    beside = Path(sys.executable).with_name(f"{name}{suffix}")
    found = str(beside) if beside.is_file() else shutil.which(name)
    return None if found is None else [found]


def main(arguments: list[str]) -> int:
    """Entry point of `calid-train recipe`."""
    options = _parser().parse_args(arguments)
    plan = Plan(
        options.data,
        options.out,
        tuple(options.datasets or TRAINING[options.name]),
        tuple(JUDGED[options.name] if options.judged is None else options.judged),
        options.license,
        options.alexnet,
        options.devices,
        options.accumulate,
        _overrides(options),
    )
    steps = RECIPES[options.name](plan)
    if not plan.judged:
        steps = [step for step in steps if step.program != EVALUATE]
    if options.dry_run:
        print(estimate(steps, plan.data))
        return 0
    plan.models.mkdir(parents=True, exist_ok=True)
    return cook(steps, plan.out)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="calid-train recipe", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("data", type=Path, help="folder that holds one folder per set")
    parser.add_argument("out", type=Path, help="folder for everything that is made")
    parser.add_argument("--datasets", nargs="+", metavar="SET", help="sets that train instead of the recipe's own")
    parser.add_argument("--judged", nargs="*", metavar="SET", help="sets whose test patients judge; none leaves it out")
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
