"""What a recipe will take, told before it is spent: optimizer steps, hours on this machine, bytes on disk.

Hours are computed, not measured: the floating-point operations of the networks' forward passes, three times as many
for what learns, at the speed at which this machine convolves. Discriminators, loading, validation and waiting for
others come on top.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.method.codec import Codec, CodecConfig
from calid.method.motion import REFINED_PASSES, Motion, MotionConfig
from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig, folded
from calid.method.weights import config_from
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calid_training.datasets import Item, items_of
from calid_training.lpips import AlexNetLPIPS
from calid_training.precision import suited
from calid_training.recipe_steps import RecipeStep

LEARNING = 3
"""Passes of a learning step in forward passes: there, and twice as much back."""
COPIES = 8
"""Tensors of every weight on disk: itself, Adam's two moments and the average, in two checkpoints."""


@dataclass(frozen=True)
class Known:
    """The networks that earlier steps of a recipe have trained, by their widths; a later stage may build on them."""

    motion: MotionConfig = field(default_factory=MotionConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)

    def after(self, step: RecipeStep) -> Known:
        """These and the one that a step trains."""
        settings, command = step.settings(), step.command[0]
        widths = settings["model"].get("network", {})
        if command == "motion":
            return replace(self, motion=config_from(MotionConfig, widths))
        if command == "codec":
            return replace(self, codec=config_from(CodecConfig, widths))
        if command == "code-denoiser":
            return replace(self, denoiser=config_from(DenoiserConfig, widths))
        return self


def estimate_of(steps: Sequence[RecipeStep], data: Path) -> str:
    """Lines for every step and their sums; `data` is the folder with the raw sets."""
    precisions = {suited(step.settings()["trainer"]["precision"])[0] for step in steps if step.configs}
    speeds, known = {one: flops_per_second(one) for one in sorted(precisions)}, Known()
    lines = [f"This machine convolves {speed / 1e9:,.1f} GFLOP/s in {one} now." for one, speed in speeds.items()]
    lines, hours, size = [*lines, ""], 0.0, 0
    for step in steps:
        told = ""
        if step.command[0] == "prepare":
            count, needed = prepared_bytes(data, step.command[step.command.index("--datasets") + 1 :])
            told, size = f"{count} stacks, {needed / 1e9:.1f} GB", size + needed
        elif step.configs:
            number, needed = optimizer_steps(step.settings()), checkpoint_bytes(step, known)
            speed = speeds[suited(step.settings()["trainer"]["precision"])[0]]
            mine = number * flops_of_step(step, known) / speed / 3600
            told = f"{number:,} steps, about {mine:,.1f} h, {needed / 1e9:.1f} GB of checkpoints"
            hours, size, known = hours + mine, size + needed, known.after(step)
        lines += [f"{step.name}: {told}" if told else step.name, f"  {step.program} {shlex.join(step.arguments())}"]
    return "\n".join([*lines, "", f"In all about {hours:,.1f} hours of one such device and {size / 1e9:.1f} GB."])


def optimizer_steps(settings: Mapping[str, Any]) -> int:
    """Steps of a training run, as its configuration has them."""
    trainer = settings["trainer"]
    return trainer["max_epochs"] * settings["data"]["batches"] // _batches_together(settings)


def _batches_together(settings: Mapping[str, Any]) -> int:
    """Batches that make one step."""
    return settings["trainer"].get("accumulate_grad_batches", 1) * settings["model"].get("accumulate", 1)


def flops_of_step(step: RecipeStep, known: Known) -> float:
    """Floating-point operations of one optimizer step on all devices together, backward passes among them."""
    settings = step.settings()
    trainer, data = settings["trainer"], settings["data"]
    devices = trainer["devices"] if isinstance(trainer["devices"], int) else 1
    crops = data["batch_size"] * devices * _batches_together(settings)
    with torch.device(_device(step)), torch.inference_mode():
        return crops * PASSES[step.command[0]](settings, known.after(step))


def checkpoint_bytes(step: RecipeStep, known: Known) -> int:
    """Bytes of a run's checkpoints, which hold the networks that learn."""
    with torch.device(_device(step)):
        network = NETWORKS[step.command[0]](step.settings(), known.after(step))
    return COPIES * 4 * sum(parameter.numel() for parameter in network.parameters())


def _device(step: RecipeStep) -> str:
    """Where the operations of a step are counted: the paper's networks without values, small ones by running them.

    (PyTorch has no autocast for tensors without values, which the motion and the codec ask for.)
    """
    return "meta" if step.command[0] in ON_META else "cpu"


ON_META = ("autoencoder", "cine-autoencoder", "denoiser", "cine-denoiser")


def _counted(work: Any, *inputs: Any) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        work(*inputs)
    return float(counter.get_total_flops())


def _crop(settings: Mapping[str, Any], *, deep: bool = False, channels: int = 1) -> torch.Tensor:
    """One crop of a run, over time where it is `deep`."""
    data = settings["data"]
    return torch.empty(1, channels, *((data["frames"],) if deep else ()), *[data["sizes"][0]] * 2)


def _autoencoder(settings: Mapping[str, Any], _: Known) -> Autoencoder:
    return Autoencoder(config_from(AutoencoderConfig, settings["model"]["network"]))


def _autoencoder_passes(settings: Mapping[str, Any], known: Known) -> float:
    network = _autoencoder(settings, known)
    crop = _crop(settings, deep=network.config.spatial_dims == 3)
    return LEARNING * _counted(lambda x: network.decode(network.encode(x)[0]), crop)


def _denoiser(settings: Mapping[str, Any], _: Known) -> Denoiser:
    model = settings["model"]
    widths = model.get("network", {})
    prediction = model.get("prediction", widths.get("prediction", "velocity"))
    return Denoiser(config_from(DenoiserConfig, {**widths, "prediction": prediction}))


def _denoiser_passes(settings: Mapping[str, Any], known: Known) -> float:
    network, data = _denoiser(settings, known), settings["data"]
    deep = network.config.spatial_dims == 3
    size = [*([data["frames"] // 4] if deep else []), *[data["sizes"][0] // 4] * 2]
    z, image, t = torch.empty(1, network.config.latent_channels, *size), _crop(settings, deep=deep), torch.zeros(1)
    condition = _counted(network.condition, image, image, (z, z))
    z_c = network.condition(image, image, (z, z))
    draws = settings["model"].get("noise_draws", 1)
    return LEARNING * (condition + draws * _counted(network, z, t.long(), z_c))


def _motion(_: Mapping[str, Any], known: Known) -> Motion:
    return Motion(known.motion)


def _motion_passes(settings: Mapping[str, Any], known: Known) -> float:
    crop, judged = _crop(settings), settings["model"].get("perceptual_weight", 0)
    return LEARNING * _counted(_motion(settings, known), crop, crop) + (_judged(crop) if judged else 0)


def _codec(_: Mapping[str, Any], known: Known) -> Codec:
    return Codec(known.codec)


def _judged(image: torch.Tensor) -> float:
    """What LPIPS takes of a made image and its truth, of which only the made one is asked for gradients."""
    return (LEARNING + 1) * _counted(AlexNetLPIPS.untrained().features, image)


def _codec_passes(settings: Mapping[str, Any], known: Known) -> float:
    crop, codec, motion = _crop(settings), _codec(settings, known), _motion(settings, known)
    gap = torch.empty(1)
    moving, seeing = _counted(motion, crop, crop), _counted(codec.see, crop, crop, gap)
    sight = codec.see(crop, crop, gap)
    code = codec.encode(crop, sight)
    coding = _counted(codec.encode, crop, sight) + _counted(codec.decode, code, sight)
    return moving + LEARNING * (seeing + coding) + _judged(crop)


def _code_denoiser(_: Mapping[str, Any], known: Known) -> Denoiser:
    return Denoiser(known.denoiser)


def _code_denoiser_passes(settings: Mapping[str, Any], known: Known) -> float:
    """Eq. 5 on codes; with `image_weight` also two draws of every slice, decoded and judged."""
    model, crop, gap = settings["model"], _crop(settings), torch.empty(1)
    codec, motion, network = _codec(settings, known), _motion(settings, known), _code_denoiser(settings, known)
    sight = codec.see(crop, crop, gap)
    code, z_c = codec.encode(crop, sight), network.tau1(sight.features[-1])
    given = REFINED_PASSES * _counted(motion, crop, crop) + _counted(codec.see, crop, crop, gap)
    given += _counted(codec.encode, crop, sight)
    walk = _counted(network, code, torch.zeros(1).long(), z_c)
    learned = _counted(network.tau1, sight.features[-1]) + model.get("noise_draws", 4) * walk
    if not model.get("image_weight", 0):
        return given + LEARNING * learned
    draw = model.get("draw_steps", 2) * walk + _counted(codec.decode, code, sight)
    return given + LEARNING * (learned + 2 * draw) + 2 * _judged(crop)


def _cine_codes(_: Mapping[str, Any], known: Known) -> nn.Module:
    """The layers over time alone: nothing else learns."""
    return Denoiser(replace(known.denoiser, temporal=True)).temporal


def _cine_code_passes(settings: Mapping[str, Any], known: Known) -> float:
    """Frames are coded one by one; gradients pass through the frozen layers between those that learn."""
    frames = settings["data"]["frames"]
    clip, codec, motion = folded(_crop(settings, deep=True)), _codec(settings, known), _motion(settings, known)
    network, gap = Denoiser(replace(known.denoiser, temporal=True)), torch.empty(frames)
    sight = codec.see(clip, clip, gap)
    code, z_c = codec.encode(clip, sight), network.tau1(sight.features[-1])
    given = REFINED_PASSES * _counted(motion, clip, clip) + _counted(codec.see, clip, clip, gap)
    given += _counted(codec.encode, clip, sight) + _counted(network.tau1, sight.features[-1])
    z, z_c = (x.unflatten(0, (1, frames)).transpose(1, 2) for x in (code, z_c))
    return given + LEARNING * _counted(network, z, torch.zeros(1).long(), z_c)


PASSES = {
    "autoencoder": _autoencoder_passes,
    "cine-autoencoder": _autoencoder_passes,
    "denoiser": _denoiser_passes,
    "cine-denoiser": _denoiser_passes,
    "motion": _motion_passes,
    "codec": _codec_passes,
    "code-denoiser": _code_denoiser_passes,
    "cine-codes": _cine_code_passes,
}
"""(settings of a run, networks) -> floating-point operations for one of its crops, of every stage that a recipe has."""
NETWORKS = {
    "autoencoder": _autoencoder,
    "cine-autoencoder": _autoencoder,
    "denoiser": _denoiser,
    "cine-denoiser": _denoiser,
    "motion": _motion,
    "codec": _codec,
    "code-denoiser": _code_denoiser,
    "cine-codes": _cine_codes,
}
"""(settings of a run, networks) -> what learns, of every stage that a recipe has."""


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
            return int(np.prod(nibabel.load(images[0]).shape))  # type: ignore[attr-defined]  # images have one
        except Exception:  # noqa: BLE001 (a bad file is left out later)
            return 0
    if first.suffix == ".png":
        return sum(int(np.prod(Image.open(file).size)) for file in item.files)
    files = [found for file in item.files for found in (file.rglob("*") if file.is_dir() else [file])]
    return sum(file.stat().st_size for file in files if file.is_file()) // 2


def flops_per_second(precision: str) -> float:
    """How fast this machine convolves in one of Lightning's precisions: 3 x 3, 64 channels, 64 x 64 pixels."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
    images = torch.zeros(4, 64, 64, 64, device=device)
    work, best = 2 * images.numel() * 64 * 9, 0.0
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=not precision.startswith("32")):
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(4):
                layer(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 4 * work / (time.perf_counter() - start))
    return best
