"""`calid-train`: prepare the sets, train the stages one after the other, export what ships.

Every stage is Lightning's own command line: configs are YAML, any value is a flag (`calid-train STAGE --help`), several
GPUs and nodes are `--trainer.devices 4 --trainer.num_nodes 2`. Running the same command again resumes from the last
checkpoint. CaLIDTraining/README.md says which stages make which model, in which order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from calid_training.errors import told_in_one_line
from calid_training.parsers import PREPARED_HELP, Parser
from calid_training.stages import CONFIGS, Stage, all_stages

if TYPE_CHECKING:
    from lightning import Trainer

SPLITS_HELP = "CSV file (dataset, patient, split) instead of the sets' own rules; who is not named is left out"


def program(arguments: list[str] | None = None) -> int:
    """Entry point of `calid-train`: `main`, with one line for what the user can mend."""
    return told_in_one_line(main, "calid-train", arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = _commands()
    if not arguments or arguments[0] not in commands:
        is_asked = arguments[:1] in (["-h"], ["--help"])
        print(_help(), file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    return commands[arguments[0]](arguments[1:])


def _help() -> str:
    """What `calid-train --help` says: every command with its summary."""
    summaries = {"recipe": "a whole model by one command, from raw data to a table"}
    summaries |= {"prepare": "bring data sets into the form that trains", "cine": "make cines of pairs of phases"}
    summaries |= {command: stage.summary for command, stage in all_stages().items()}
    summaries |= {"export": "make of a run folder what the next stage, or the engine, uses"}
    lines = [f"  {command:<18}{summary}" for command, summary in summaries.items()]
    return "\n".join(["usage: calid-train COMMAND ...", "", __doc__ or "", "commands:", *lines])


def _commands() -> dict[str, Callable[[list[str]], int]]:
    """{command: what runs it}."""
    stages = {command: partial(run_stage, command, stage) for command, stage in all_stages().items()}
    return {"recipe": _recipe, "prepare": _prepare, "cine": _cine, **stages, "export": _export}


def _recipe(arguments: list[str]) -> int:
    from calid_training.recipe import main as recipe_main

    return recipe_main(arguments)


def _prepare(arguments: list[str]) -> int:
    from calid_training.datasets import LICENSE_CLEAN, READERS, SPLIT_FILE, read_splits
    from calid_training.prepare import MAX_WORKERS, prepare

    parser = Parser(prog="calid-train prepare", description="Write the prepared form of the data sets.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds one folder per set")
    parser.add_argument("--out", type=Path, default=Path("prepared"), help="folder for the prepared sets")
    known = f"{', '.join(sorted(READERS))}, or the name of a folder of your own with {SPLIT_FILE}"
    parser.add_argument("--datasets", nargs="+", metavar="SET", default=list(LICENSE_CLEAN), help=known)
    parser.add_argument(
        "--workers", type=int, help=f"processes that read stacks; by default one a core, {MAX_WORKERS} at most"
    )
    parser.add_argument("--splits", type=Path, metavar="FILE", help=SPLITS_HELP)
    options = parser.parse_args(arguments)
    splits = None if options.splits is None else read_splits(options.splits)
    done = prepare(options.data, options.out, datasets=options.datasets, workers=options.workers, splits=splits)
    print(f"{done.index}: {done.prepared} stacks prepared, {done.kept} were there, {len(done.left_out)} left out")
    return 0 if done.prepared or done.kept else 1


def _cine(arguments: list[str]) -> int:
    from calid_training.cine import make_cines
    from calid_training.datasets import LICENSE_CLEAN

    parser = Parser(prog="calid-train cine", description="Make semi-synthetic cines of prepared ED/ES pairs.")
    parser.add_argument("--prepared", type=Path, default=Path("prepared"), help=PREPARED_HELP)
    parser.add_argument("--out", type=Path, default=Path("prepared-cine"), help="folder for the cines")
    parser.add_argument("--datasets", nargs="+", metavar="SET", default=list(LICENSE_CLEAN), help="prepared sets")
    parser.add_argument("--seed", type=int, default=0, help="start of all random noise")
    parser.add_argument("--patients", type=int, metavar="N", help="only the first N of every set and split")
    options = parser.parse_args(arguments)
    print(
        make_cines(
            options.prepared, options.out, datasets=options.datasets, seed=options.seed, patients=options.patients
        )
    )
    return 0


def _export(arguments: list[str]) -> int:
    from calid_training.export import main as export_main

    return export_main(arguments)


def run_stage(command: str, stage: Stage, arguments: list[str]) -> int:
    """Fit one stage with Lightning's command line; resumes if its run folder holds a checkpoint.

    Args:
        command: name of the stage and of its default configuration, `<command>.yaml`.
        stage: the module and its data.
        arguments: anything LightningCLI takes; `--trainer.default_root_dir` is the run folder.
    """
    import warnings

    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from calid_training.data import Reseeding
    from calid_training.precision import suited
    from calid_training.runs import CHECKPOINTS, RunRecord, WholeFiles, newest_checkpoint

    class StageCLI(LightningCLI):
        """Checkpoints lie in the run folder under fixed names, and numbers are as precise as the hardware can."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            parser.set_defaults({"checkpoint.save_last": True, "checkpoint.enable_version_counter": False})
            parser.link_arguments(
                "trainer.default_root_dir", "checkpoint.dirpath", lambda root: str(Path(root) / CHECKPOINTS)
            )

        def before_instantiate_classes(self) -> None:
            trainer = self.config["trainer"]
            trainer["precision"], reason = suited(trainer["precision"], trainer["accelerator"])
            print(f"{command}: precision {trainer['precision']}{reason}", flush=True)

    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")  # it is our own argv
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # that is resuming
    cli = StageCLI(
        *stage.classes(),
        run=False,
        args=["--config", str(CONFIGS / "base.yaml"), "--config", str(stage.configs / f"{command}.yaml"), *arguments],
        save_config_callback=RunRecord,
        save_config_kwargs={"save_to_log_dir": False},
        seed_everything_default=1,
        trainer_defaults={"callbacks": [Reseeding()]},
    )
    cli.trainer.strategy.checkpoint_io = WholeFiles()
    if not cli.model.automatic_optimization:
        _allow_partial_losses(cli.trainer)
    run = Path(cli.trainer.default_root_dir)
    newest = newest_checkpoint(run)
    print(f"{command}: {'starts in ' + str(run) if newest is None else 'goes on from ' + str(newest)}", flush=True)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=None if newest is None else str(newest))
    return 0


def _allow_partial_losses(trainer: Trainer) -> None:
    """Let several processes train a GAN, each of whose losses leaves out a part of it.

    `strategy: ddp_find_unused_parameters_true` in a configuration does the same, but not for a single device: there it
    is refused on Apple's GPUs, and needs a process group, which not every system has.
    """
    from lightning.pytorch.strategies import DDPStrategy

    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs["find_unused_parameters"] = True


if __name__ == "__main__":
    sys.exit(program())
