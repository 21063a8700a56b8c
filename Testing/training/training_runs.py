"""Short runs of `calid-train` on a processor, and what they logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from calid.__main__ import main as calid
from calid.images.files import read_stack, write_stack
from calid_training.train import main
from phantoms import beating_case

ON_CPU = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
SMALL_CROPS = ["--data.datasets", "[phantom]", "--data.sizes", "[32]", "--data.size_weights", "[1.0]"]
SMALL_DENOISER = [
    *("--model.network.channels", "[16,16,32]", "--model.network.tau1_channels", "[16,16,16]"),
    *("--model.network.attention", "[false,false,true]", "--model.network.condition_attention", "[false,false,true]"),
    *("--model.network.norm_num_groups", "16", "--model.network.head_channels", "16"),
]


def train(
    stage: str, prepared: Path, run: Path, options: list[str], *, epochs: int, config: Path | None = None
) -> None:
    """Run a stage on crops of 32 pixels of the set "phantom"; a config comes before these, options come after."""
    places = ["--data.prepared", str(prepared), "--trainer.default_root_dir", str(run)]
    on_top = [] if config is None else ["--config", str(config)]
    assert main([stage, *on_top, *ON_CPU, *SMALL_CROPS, *places, "--trainer.max_epochs", str(epochs), *options]) == 0


def whole_and_resumed(
    stage: str, prepared: Path, folder: Path, options: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last checkpoints of two epochs in one run, and of the same run stopped after the first and gone on with."""
    ends = []
    for name, parts in (("whole", (2,)), ("resumed", (1, 2))):
        for epochs in parts:
            train(stage, prepared, folder / name, options, epochs=epochs)
        ends.append(torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True))
    return ends[0], ends[1]


def upsample_with(models: Path, folder: Path) -> None:
    """Let `calid upsample` use a model that has just been exported: it makes a phantom's gaps twice as many."""
    sparse, dense = folder / "sparse.nrrd", folder / "dense.nrrd"
    stack, _ = beating_case(seed=9)
    write_stack(stack, sparse)
    settings = ["--factor", "2", "--models", str(models), "--device", "cpu"]
    assert calid(["upsample", str(sparse), str(dense), *settings]) == 0
    assert read_stack(dense).num_slices == 2 * stack.num_slices - 1


def averaging(folder: Path, decay: float) -> list[str]:
    """Options for an average over few steps; one over 1000 would hide what a short run learns."""
    path = folder / "averaging.yaml"
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": decay}}
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [average]}}))
    return ["--config", str(path)]


def scalars(run: Path, tag: str) -> list[float]:
    """A logged curve, over all starts of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = []
    for folder in sorted(run.glob("lightning_logs/version_*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points += [(event.step, event.value) for event in events.Scalars(tag)]
    return [value for _, value in sorted(points)]
