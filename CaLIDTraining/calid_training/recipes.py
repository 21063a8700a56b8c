"""The recipes: which steps make a whole model, from raw data to a table.

`shipped` trains the model that ships, at its size and with its budget; `small` the same stages in minutes, to see that
everything works. `paper-2d` and `paper-2d+t` are the paper's models at its size, with its training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calid.run.batches import DEFAULT_MODEL

from calid_training.datasets import LICENSE_CLEAN
from calid_training.errors import UsageError
from calid_training.recipe_steps import EVALUATE, TRAIN, RecipeStep
from calid_training.stages import CONFIGS

SMALL_ROWS = ("registration", "CaLID's motion alone", "CaLID's D, code 0", "CaLID", "CaLID+", "fidelity")
"""Rows of the small recipe's table."""
TEMPERATURE = 0.3
"""How far draws of the model that ships go from their mean (GATES.md)."""


@dataclass(frozen=True)
class Ingredients:
    """What the user asked for.

    Args:
        data: folder with the raw sets.
        out: folder for everything that is made.
        datasets: sets that train.
        judged: sets whose test patients judge.
        license: license of the weights, or None for the one that follows from the data.
        alexnet: weights for LPIPS, or None.
        devices: GPUs (or processes) of every training step; None leaves the configurations' number.
        accumulate: number of batches that make one step, where a batch does not fit a device.
        overrides: {stage: {key: value}} over everything else.
        splits: file that says who is in which split, or None for the sets' own rules.
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
    splits: Path | None = None

    @property
    def prepared(self) -> Path:
        """Folder of the prepared sets."""
        return self.out / "prepared"

    @property
    def cines(self) -> Path:
        """Folder of the cines that are made of the prepared sets."""
        return self.out / "prepared-cine"

    @property
    def models(self) -> Path:
        """Folder of the finished models."""
        return self.out / "models"

    def run(self, name: str) -> Path:
        """The run folder of a stage."""
        return self.out / "runs" / name

    def prepare(self) -> RecipeStep:
        """Prepare the sets that train and judge."""
        sets = list(dict.fromkeys([*self.datasets, *self.judged]))
        listed = () if self.splits is None else ("--splits", str(self.splits))
        places = ("--data", str(self.data), "--out", str(self.prepared))
        return RecipeStep("prepare", ("prepare", *places, *listed, "--datasets", *sets))

    def make_cines(self, *options: str) -> RecipeStep:
        """Make cines of the prepared sets that train."""
        places = ("--prepared", str(self.prepared), "--out", str(self.cines))
        return RecipeStep("cine", ("cine", *places, *options, "--datasets", *self.datasets))

    def stage(self, name: str, command: str, *on_top: str, manual: bool = False, **changes: Any) -> RecipeStep:
        """A training step.

        Args:
            name: name of the step and its run folder.
            command: command of `calid-train`.
            *on_top: configurations over the command's own.
            manual: whether the stage steps its optimizers itself, and accumulates by a setting of its own.
            **changes: settings over the configurations, dots written as two underscores.
        """
        files = tuple(CONFIGS / f"{one}.yaml" for one in ("base", command, *on_top))
        settings = {"data.prepared": str(self.prepared), "data.datasets": list(self.datasets)}
        settings |= {"trainer.default_root_dir": str(self.run(name))}
        settings |= {key.replace("__", "."): str(value) for key, value in changes.items() if value is not None}
        settings |= self._sizes(RecipeStep(name, (command,), TRAIN, files).settings(), manual=manual)
        return RecipeStep(name, (command,), TRAIN, files, settings | dict(self.overrides.get(name, {})))

    def _sizes(self, settings: Mapping[str, Any], *, manual: bool) -> dict[str, Any]:
        """The batch on each device, so that all devices together make the steps of the configuration."""
        trainer, data = settings["trainer"], settings["data"]
        before = trainer["devices"] if isinstance(trainer["devices"], int) else 1
        devices = before if self.devices is None else self.devices
        if devices == before and self.accumulate == 1:
            return {} if self.devices is None else {"trainer.devices": devices}
        total = before * data["batch_size"]
        if total % (devices * self.accumulate):
            raise UsageError(f"{devices} devices x {self.accumulate} batches a step cannot share a batch of {total}")
        found: dict[str, Any] = {"trainer.devices": devices, "data.batch_size": total // (devices * self.accumulate)}
        if self.accumulate > 1:
            key = "model.accumulate" if manual else "trainer.accumulate_grad_batches"
            found |= {key: self.accumulate, "data.batches": data["batches"] * self.accumulate}
        return found

    def export(self, kind: str, run: str, *options: object, step: str = "") -> RecipeStep:
        """An export step.

        Args:
            kind: subcommand of `calid-train export`.
            run: the stage whose run is exported.
            *options: further ones of the command.
            step: name of the step; by default it is named after the run.
        """
        told = ("--run", str(self.run(run)), *map(str, options))
        return RecipeStep(step or f"export {run}", ("export", kind, *told))

    def released(self, models: Path | None = None) -> list[str]:
        """Options of models that are written to a manifest, by default the finished models'."""
        told = [] if self.license is None else ["--license", self.license]
        return ["--models", str(models or self.models), *told]

    def evaluate(self, table: str, *options: str, prepared: Path, datasets: Iterable[str]) -> RecipeStep:
        """A table at the end.

        Args:
            table: command of `calid-evaluate`.
            *options: further ones of the command.
            prepared: folder of what is asked about.
            datasets: sets in it that are asked about.
        """
        networks = [] if self.alexnet is None else ["--alexnet", str(self.alexnet)]
        places = ["--prepared", str(prepared), "--models", str(self.models), "--out", str(self.out / "table")]
        command = (table, *places, *networks, *options, "--datasets", *datasets)
        return RecipeStep(f"evaluate {table}", command, EVALUATE)


def shipped(asked: Ingredients, *, small: bool = False) -> list[RecipeStep]:
    """The model that ships: motion, codec, denoiser of codes, it and D on images and on draws, then layers over time.

    Args:
        asked: sets, places and hardware.
        small: whether every stage has minutes only, and the tables ask about few patients.
    """

    def stage(name: str, command: str, *on_top: str, **changes: Any) -> RecipeStep:
        return asked.stage(name, command, *on_top, *([f"small/{name}"] if small else []), **changes)

    nearer = "motion-images"
    moving, motion, codec = (asked.out / f"{name}.safetensors" for name in ("motion", nearer, "codec"))
    draft, nearly = (asked.out / name for name in ("draft", "draft-images"))
    begun, seen, model = (folder / f"{DEFAULT_MODEL}.safetensors" for folder in (draft, nearly, asked.models))
    images, draws, learned = "code-denoiser-images", "code-denoiser-draws", {"model__alexnet": asked.alexnet}
    cines = {"data__prepared": asked.cines}
    few = ["--quick", "6", "--uncertainty-every", "0", "--systems", *SMALL_ROWS] if small else []
    fewer = ["--quick", "3"] if small else []
    return [
        asked.prepare(),
        stage("motion", "motion"),
        asked.export("motion", "motion", "--out", moving),
        stage(nearer, "motion", nearer, model__start=moving, **learned),
        asked.export("motion", nearer, "--out", motion),
        stage("codec", "codec", model__motion=motion, **learned),
        asked.export("codec", "codec", "--prepared", asked.prepared, "--out", codec),
        stage("code-denoiser", "code-denoiser", model__codec=codec, **learned),
        asked.export("coded", "code-denoiser", "--half", *asked.released(draft)),
        stage(images, "code-denoiser", images, model__codec=begun, model__start=begun, **learned),
        asked.export("coded", images, "--half", *asked.released(nearly)),
        stage(draws, "code-denoiser", images, draws, model__codec=seen, model__start=seen, **learned),
        asked.export("coded", draws, "--temperature", TEMPERATURE, *asked.released()),
        asked.make_cines(*(["--patients", "8"] if small else [])),
        stage("cine-codes", "cine-codes", model__base=model, **cines, **learned),
        asked.export("cine", "cine-codes", *asked.released()),
        asked.evaluate("interpolation", *few, prepared=asked.prepared, datasets=asked.judged),
        asked.evaluate("cine", *fewer, prepared=asked.cines, datasets=asked.datasets),
    ]


def small(asked: Ingredients) -> list[RecipeStep]:
    """The model that ships, every stage in minutes of a processor."""
    return shipped(asked, small=True)


def paper_2d(asked: Ingredients) -> list[RecipeStep]:
    """The paper's 2D model at its size, with its training."""
    coded = asked.out / "autoencoder.safetensors"
    return [
        asked.prepare(),
        asked.stage("autoencoder", "autoencoder", "paper-autoencoder", manual=True, model__alexnet=asked.alexnet),
        asked.export("autoencoder", "autoencoder", "--prepared", asked.prepared, "--out", coded),
        asked.stage("denoiser", "denoiser", "paper-denoiser", model__autoencoder=coded),
        asked.export("model", "denoiser", *asked.released()),
        asked.evaluate("interpolation", prepared=asked.prepared, datasets=asked.judged),
    ]


def paper_2dt(asked: Ingredients) -> list[RecipeStep]:
    """The paper's 2D+T model at its size: every convolution 3D, clips over the whole cycle."""
    coded = asked.out / "autoencoder.safetensors"
    return [
        asked.prepare(),
        asked.stage("autoencoder", "cine-autoencoder", manual=True, model__alexnet=asked.alexnet),
        asked.export("autoencoder", "autoencoder", "--prepared", asked.prepared, "--out", coded),
        asked.stage("denoiser", "cine-denoiser", "cine-paper", model__autoencoder=coded),
        asked.export("model", "denoiser", *asked.released()),
        asked.evaluate("cine", "--split", "test", prepared=asked.prepared, datasets=asked.judged),
    ]


@dataclass(frozen=True)
class Recipe:
    """A whole model.

    Args:
        steps: makes its steps.
        datasets: sets that train, unless the user names others.
        judged: sets whose test patients judge, likewise.
        needs_alexnet: whether nothing can be trained without LPIPS.
    """

    steps: Callable[[Ingredients], list[RecipeStep]]
    datasets: tuple[str, ...]
    judged: tuple[str, ...]
    needs_alexnet: bool = False


PAPERS = ("ukbb",)
RECIPES = {
    "paper-2d": Recipe(paper_2d, PAPERS, PAPERS),
    "paper-2d+t": Recipe(paper_2dt, PAPERS, PAPERS),
    "shipped": Recipe(shipped, LICENSE_CLEAN, ("acdc",), needs_alexnet=True),
    "small": Recipe(small, LICENSE_CLEAN, ("acdc",), needs_alexnet=True),
}
