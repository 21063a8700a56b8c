"""From a run folder to what is used: the latent space for stage two, the model that ships with its manifest entry.

`calid-train export autoencoder --run runs/autoencoder --prepared prepared --out autoencoder.safetensors`
`calid-train export segmenter --run runs/segmenter --models CaLIDReconstruct/Resources/Models`
`calid-train export model --run runs/denoiser --models CaLIDReconstruct/Resources/Models --name calid-2d`
"""

from __future__ import annotations

import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from calid.medformer import MedFormerConfig
from calid.networks import Autoencoder, AutoencoderConfig, DenoiserConfig, LatentSpace
from calid.weights import MANIFEST_NAME, config_from, read_latent_space, read_tensors
from safetensors.torch import save_file

MOMENT_BATCHES = 40


def main(arguments: list[str]) -> int:
    parser = ArgumentParser(prog="calid-train export", description=__doc__)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("autoencoder", help="the latent space for stage two")
    first.add_argument("--run", type=Path, required=True, help="run folder of stage one")
    first.add_argument("--prepared", type=Path, required=True)
    first.add_argument("--out", type=Path, required=True)
    first.set_defaults(run_command=_export_autoencoder)
    second = commands.add_parser("model", help="the interpolation model that ships")
    second.add_argument("--run", type=Path, required=True, help="run folder of stage two")
    second.add_argument("--models", type=Path, required=True, help="folder with the manifest")
    second.add_argument(
        "--autoencoder", type=Path, help="refined autoencoder file to ship instead of the trained-on one"
    )
    second.add_argument("--name", default="calid-2d")
    second.add_argument("--license", default="CC-BY-4.0")
    second.add_argument("--trained-on", default="")
    second.set_defaults(run_command=_export_model)
    third = commands.add_parser("segmenter", help="the segmenter that ships")
    third.add_argument("--run", type=Path, required=True, help="run folder of the segmenter")
    third.add_argument("--models", type=Path, required=True, help="folder with the manifest")
    third.set_defaults(run_command=_export_segmenter)
    options = parser.parse_args(arguments)
    options.run_command(options)
    return 0


def checkpoint_of(run: Path) -> dict[str, torch.Tensor]:
    """The (averaged) weights of the last checkpoint of a run; nothing but tensors and plain values is unpickled."""
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def run_config(run: Path) -> dict[str, Any]:
    """The newest resolved configuration that Lightning's command line left in a run folder."""
    configs = sorted(run.glob("lightning_logs/*/config.yaml"), key=lambda path: path.stat().st_mtime)
    return yaml.safe_load(configs[-1].read_text())


def part_of(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries below `prefix.`, without it."""
    return {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}


def _export_autoencoder(options: Namespace) -> None:
    config = config_from(AutoencoderConfig, run_config(options.run)["model"]["network"])
    autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(part_of(checkpoint_of(options.run), "network"))
    data = run_config(options.run)["data"]
    refined = run_config(options.run)["model"].get("refine")
    if refined:  # E is unchanged, and a denoiser was trained on these very moments
        before = read_latent_space(Path(refined))
        mean, std = before.mean.flatten(), before.std.flatten()
    else:
        mean, std = latent_moments(autoencoder.eval(), options.prepared, datasets=data["datasets"])
    space = LatentSpace(autoencoder, mean=mean, std=std)
    save_file(space.state_dict(), options.out, metadata={"config": json.dumps(asdict(config))})
    print(f"{options.out}: latent mean {mean.tolist()}, std {std.tolist()}")


@torch.inference_mode()
def latent_moments(
    autoencoder: Autoencoder, prepared: Path, *, datasets: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and standard deviation of E's posterior means over heart-centred training crops."""
    from calid_training.data import TripletData

    data = TripletData(prepared=prepared, datasets=datasets, sizes=(128,), size_weights=(1.0,), batches=MOMENT_BATCHES)
    data.setup("fit")
    latents = torch.cat([autoencoder.encode(batch["target"])[0] for batch in data.train_stream])
    channels = latents.transpose(0, 1).flatten(1)
    return channels.mean(dim=1), channels.std(dim=1)


def _export_model(options: Namespace) -> None:
    model = run_config(options.run)["model"]
    state = checkpoint_of(options.run)
    _, metadata = read_tensors(Path(model["autoencoder"]))
    config = {
        "autoencoder": json.loads(metadata["config"]),
        "denoiser": asdict(config_from(DenoiserConfig, {**model["network"], "prediction": model["prediction"]})),
    }
    tensors = {f"denoiser.{key}": value for key, value in part_of(state, "network").items()}
    space = part_of(state, "latent_space")
    if options.autoencoder is not None:
        space = _refined(space, read_tensors(options.autoencoder)[0])
    tensors |= {f"latent_space.{key}": value for key, value in space.items()}
    write_model(options.models, options.name, tensors, config, license=options.license, trained_on=options.trained_on)


def _export_segmenter(options: Namespace) -> None:
    from calid_training.segmenter import SEGMENTER_FACTS, segmenter_config

    network = config_from(MedFormerConfig, run_config(options.run)["model"]["network"])
    state = part_of(checkpoint_of(options.run), "average.module")
    write_model(options.models, "segmenter", state, segmenter_config(network), **SEGMENTER_FACTS)


def _refined(trained_on: Mapping[str, torch.Tensor], refined: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The refined autoencoder's tensors, if its E and moments are those the denoiser was trained on."""
    for key, value in trained_on.items():
        is_decoder = key.startswith(("autoencoder.decoder", "autoencoder.post_quant_conv"))
        if not is_decoder and not torch.allclose(value, refined[key], atol=1e-4):  # averaging weights rounds them
            raise ValueError(f"the refined autoencoder has another {key} than the denoiser was trained on")
    return refined


def write_model(
    folder: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    **facts: Any,
) -> Path:
    """Write `<name>.safetensors` in half precision and set its entry in the folder's manifest."""
    path = folder / f"{name}.safetensors"
    half = {key: value.half().contiguous() for key, value in tensors.items()}
    partial = path.with_suffix(".part")
    save_file(half, partial, metadata={"config": json.dumps(config)})
    partial.replace(path)
    content = path.read_bytes()
    entry = {
        "name": name,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "config": config,
        **facts,
    }
    set_entry(folder / MANIFEST_NAME, entry)
    print(f"{path}: {len(content) / 1e6:.1f} MB")
    return path


def set_entry(manifest: Path, entry: Mapping[str, Any]) -> None:
    """Add or replace one model's entry, keeping what it said that the new one does not."""
    models = json.loads(manifest.read_text())["models"] if manifest.is_file() else []
    old = next((model for model in models if model["name"] == entry["name"]), {})
    models = [model for model in models if model["name"] != entry["name"]] + [{**old, **entry}]
    partial = manifest.with_suffix(".part")
    partial.write_text(json.dumps({"models": sorted(models, key=lambda model: model["name"])}, indent=2) + "\n")
    partial.replace(manifest)
