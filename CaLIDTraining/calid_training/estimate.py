"""What a recipe will take, told before it is spent: optimizer steps, hours on this machine, bytes on disk.

Hours are computed, not measured: the floating-point operations of the networks' forward passes, three times as many
for learning, at the speed at which this machine convolves. Loading, validation and waiting for others come on top.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.method.motion import Motion, MotionConfig
from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig
from calid.method.weights import config_from
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from calid_training.datasets import Item, items_of
from calid_training.recipe_steps import Step

LEARNING = 3
"""Passes of a learning step in forward passes: there, and twice as much back."""
COPIES = 8
"""Tensors of every weight on disk: itself, Adam's two moments and the average, in two checkpoints."""


def estimate(steps: Sequence[Step], data: Path) -> str:
    """Lines for every step and their sums; `data` is the folder with the raw sets."""
    speed = flops_per_second()
    lines, hours, size = [f"This machine convolves {speed / 1e9:,.1f} GFLOP/s at the moment.", ""], 0.0, 0
    for step in steps:
        told = ""
        if step.command[0] == "prepare":
            count, needed = prepared_bytes(data, step.command[step.command.index("--datasets") + 1 :])
            told, size = f"{count} stacks, {needed / 1e9:.1f} GB", size + needed
        elif step.configs:
            settings = step.settings()
            number, needed = optimizer_steps(settings), checkpoint_bytes(settings)
            mine = LEARNING * number * flops_of_step(settings) / speed / 3600
            told = f"{number:,} steps, about {mine:,.1f} h, {needed / 1e9:.1f} GB of checkpoints"
            hours, size = hours + mine, size + needed
        lines += [f"{step.name}: {told}" if told else step.name, f"  {step.program} {shlex.join(step.arguments())}"]
    return "\n".join([*lines, "", f"In all about {hours:,.1f} hours of one such device and {size / 1e9:.1f} GB."])


def optimizer_steps(settings: Mapping[str, Any]) -> int:
    """Steps of a training run, as its configuration has them."""
    trainer, model = settings["trainer"], settings["model"]
    together = trainer.get("accumulate_grad_batches", 1) * model.get("accumulate", 1)
    return trainer["max_epochs"] * settings["data"]["batches"] // together


def _networks(settings: Mapping[str, Any]) -> tuple[torch.nn.Module, tuple[int, ...], float]:
    """The network of a run on tensors without storage, the shape of one of its crops, and forward passes for each."""
    model, data = settings["model"], settings["data"]
    widths, size = model.get("network", {}), data["sizes"][0]
    with torch.device("meta"):
        if "attention" in widths:
            prediction = model.get("prediction", widths.get("prediction", "velocity"))
            config = config_from(DenoiserConfig, {**widths, "prediction": prediction})
            latents = size // 4
            deep = (data["frames"] // 4,) if config.spatial_dims == 3 else ()
            return (
                Denoiser(config),
                (config.latent_channels, *deep, latents, latents),
                float(model.get("noise_draws", 1)),
            )
        if "latent_channels" in widths:
            coder = config_from(AutoencoderConfig, widths)
            deep = (data["frames"],) if coder.spatial_dims == 3 else ()
            return Autoencoder(coder), (1, *deep, size, size), 1.0
        return Motion(config_from(MotionConfig, widths)), (1, size, size), 1.0


def flops_of_step(settings: Mapping[str, Any]) -> float:
    """Floating-point operations of the forward passes of one optimizer step on all devices together."""
    network, shape, draws = _networks(settings)
    crop = torch.empty(1, *shape, device="meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if isinstance(network, Denoiser):
            images = torch.empty(1, 1, *(4 * length for length in shape[1:]))
            z_c = network.condition(images, images, (crop, crop))
            network(crop, torch.zeros(1, dtype=torch.long), z_c)
        elif isinstance(network, Autoencoder):
            network.decode(network.encode(crop)[0])
        else:
            network(crop, crop)
    trainer, model, data = settings["trainer"], settings["model"], settings["data"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    together = trainer.get("accumulate_grad_batches", 1) * model.get("accumulate", 1)
    return counter.get_total_flops() * draws * data["batch_size"] * devices * together


def checkpoint_bytes(settings: Mapping[str, Any]) -> int:
    """Bytes of a run's checkpoints."""
    return COPIES * 4 * sum(parameter.numel() for parameter in _networks(settings)[0].parameters())


def prepared_bytes(data: Path, datasets: Sequence[str]) -> tuple[int, int]:
    """Stacks of some sets, and the bytes of their prepared form; only headers are read."""
    items = [item for dataset in datasets if (data / dataset).is_dir() for item in items_of(data, dataset)]
    return len(items), sum(2 * _voxels(item) for item in items)


def _voxels(item: Item) -> int:
    """Voxels of an item's images, as well as headers tell."""
    first = item.files[0] if item.files else Path()
    images = [file for file in item.files if file.name.endswith((".nii", ".nii.gz"))]
    if images:
        import nibabel

        try:
            return int(np.prod(nibabel.load(images[0]).shape))
        except Exception:  # noqa: BLE001 (a bad file is left out later)
            return 0
    if first.suffix == ".png":
        return sum(int(np.prod(Image.open(file).size)) for file in item.files)
    files = [found for file in item.files for found in (file.rglob("*") if file.is_dir() else [file])]
    return sum(file.stat().st_size for file in files if file.is_file()) // 2


def flops_per_second() -> float:
    """How fast this machine convolves: 3 x 3, 64 channels, 64 x 64 pixels, forwards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
    images = torch.zeros(4, 64, 64, 64, device=device)
    work = 2 * images.numel() * 64 * 9
    best = 0.0
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(4):
                layer(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 4 * work / (time.perf_counter() - start))
    return best
