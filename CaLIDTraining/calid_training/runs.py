"""A run folder: checkpoints that survive a kill, a copy or a move, and a record of what was trained on what.

Everything that `calid-train export` needs lies in the checkpoint itself: the configuration, the data sets with their
hashes and the revision. So it does not matter which logger a run had, nor whether its folder was moved.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import calid
import lightning as L
import torch
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.cli import SaveConfigCallback

CHECKPOINTS = "checkpoints"
CONFIG_NAME = "config.yaml"
RECORD_KEY = "calid_run"


class DamagedRunError(OSError):
    """A run folder holds checkpoints, but none that can be read."""


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole.

    Lightning writes it to the system's temporary folder, which may be another disk: from there a move is a copy, and a
    kill leaves half a file under the real name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; the file appears when it is whole."""
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.part")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)


def data_module_of(trainer: L.Trainer) -> Any:
    """What a trainer learns from: Lightning sets it, and does not declare it."""
    return trainer.datamodule  # type: ignore[attr-defined]


class RunRecord(SaveConfigCallback):
    """Puts the run's record into every checkpoint, and the resolved configuration into the run folder."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._earlier: list[dict[str, Any]] = []
        self._start: dict[str, Any] | None = None

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the resolved configuration into the run folder."""
        del pl_module, stage
        path = Path(trainer.default_root_dir) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(self._configuration())
        partial.replace(path)

    def _configuration(self) -> str:
        return self.parser.dump(self.config, skip_none=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note configuration, data, foundations, revision and versions of this start."""
        self._start = {
            "config": yaml.safe_load(self._configuration()),
            "data": data_module_of(trainer).provenance(),
            "foundations": list(getattr(pl_module, "foundations", ())),
            "revision": revision(),
            "versions": {
                "calid": calid.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        }

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the records of all starts to a checkpoint."""
        del trainer, pl_module
        starts = [*(one for one in self._earlier if one != self._start), self._start]
        checkpoint[RECORD_KEY] = {"starts": [one for one in starts if one is not None]}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the records of earlier starts."""
        del trainer, pl_module
        self._earlier = checkpoint.get(RECORD_KEY, {}).get("starts", [])


def revision() -> str:
    """The source's git revision, "-dirty" where it was changed; the package's version where there is no repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return f"calid {calid.__version__}"
    return done.stdout.strip()


def newest_checkpoint(run: Path) -> Path | None:
    """The readable checkpoint of a run that has seen the most steps, or None where there is none yet.

    Neither names nor times of files decide: in a copied folder both may be old.

    Raises:
        DamagedRunError: if there are checkpoints and none can be read.
    """
    files = sorted((run / CHECKPOINTS).glob("*.ckpt"))
    steps = {file: found for file in files if (found := _steps_of(file)) is not None}
    if files and not steps:
        raise DamagedRunError(
            f"None of the {len(files)} checkpoint(s) in {run / CHECKPOINTS} can be read. "
            "Bring back one that can, or remove them to start anew."
        )
    return max(steps, key=lambda file: (steps[file], file.name.startswith("last")), default=None)


def _steps_of(file: Path) -> int | None:
    """Steps that a checkpoint has seen, None if it is damaged. Tensors stay on disk."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return int(found["global_step"])
    except Exception:  # noqa: BLE001 (a damaged file may raise anything)
        return None


def read_checkpoint(run: Path, which: Literal["newest", "best"] = "newest") -> dict[str, Any]:
    """The newest checkpoint of a run, or the best where it monitors a figure.

    Nothing but tensors and plain values is unpickled.

    Raises:
        FileNotFoundError: if there is none.
        DamagedRunError: if there are some and none can be read.
    """
    path = newest_checkpoint(run) if which == "newest" else run / CHECKPOINTS / f"{which}.ckpt"
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{run} holds no {which} checkpoint: give the folder of a run that has begun.")
    return torch.load(path, map_location="cpu", weights_only=True)


def checkpoint_of(run: Path, which: Literal["newest", "best"] = "newest") -> dict[str, torch.Tensor]:
    """The (averaged) weights of a checkpoint of a run."""
    return read_checkpoint(run, which)["state_dict"]


def run_starts(run: Path) -> list[dict[str, Any]]:
    """The records of all starts of a run, the newest last; empty for runs from before there were records."""
    path = newest_checkpoint(run)
    if path is None:
        return []
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(RECORD_KEY, {}).get("starts", [])


def run_config(run: Path) -> dict[str, Any]:
    """The newest resolved configuration of a run.

    Raises:
        FileNotFoundError: if neither a checkpoint nor a file tells it.
    """
    starts = run_starts(run)
    if starts:
        return starts[-1]["config"]
    older = sorted(run.glob(f"lightning_logs/*/{CONFIG_NAME}"), key=lambda path: path.stat().st_mtime)
    files = [path for path in (run / CONFIG_NAME, *reversed(older)) if path.is_file()]
    if not files:
        raise FileNotFoundError(f"{run} holds no {CONFIG_NAME}: give the folder of a run that has begun.")
    return yaml.safe_load(files[0].read_text())


def data_of(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """{data set: what is known of it} over all starts; a set that changed between starts is listed with both hashes."""
    found: dict[str, Any] = {}
    for start in starts:
        for name, facts in start["data"].items():
            known = found.setdefault(name, dict(facts))
            if known["sha256"] != facts["sha256"] and facts["sha256"] not in known.get("earlier_sha256", []):
                found[name] = {**facts, "earlier_sha256": [*known.get("earlier_sha256", []), known["sha256"]]}
    return found


def without_places(config: Any) -> Any:
    """A configuration whose paths are reduced to their last part, so that it can be shown to others."""
    if isinstance(config, Mapping):
        return {key: without_places(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_places(value) for value in config]
    if isinstance(config, str) and ("/" in config or "\\" in config):
        return Path(config.replace("\\", "/")).name
    return config
