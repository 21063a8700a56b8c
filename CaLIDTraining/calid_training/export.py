"""`calid-train export`: from a run folder to what is used: parts for the next stage, models and their manifest.

In the order of the 2D model that ships, then of others:

    calid-train export motion --run runs/motion --out runs/motion/motion.safetensors
    calid-train export codec --run runs/codec --prepared prepared --out runs/codec/codec.safetensors
    calid-train export coded --run runs/code-denoiser --models my-models
    calid-train export cine --run runs/cine-codes --models my-models
    calid-train export segmenter --run runs/segmenter --models my-models
    calid-train export autoencoder --run runs/autoencoder --prepared prepared --out autoencoder.safetensors
    calid-train export model --run runs/denoiser --models my-models --name calid-paper
    calid-train export model --model calid-2d.safetensors --motion motion.safetensors --models my-models
    calid-train export baseline --run runs/diffae --models CaLIDTraining/weights --name DiffAE
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from calid.heart.medformer import MedFormerConfig
from calid.method.motion import MotionConfig
from calid.method.networks import Autoencoder, AutoencoderConfig, DenoiserConfig, LatentSpace
from calid.method.weights import (
    below,
    config_from,
    read_latent_space,
    read_manifest,
    read_motion,
    read_tensors,
)
from calid.run.batches import CINE_MODEL, DEFAULT_MODEL

from calid_training.errors import UsageError
from calid_training.export_coded import add_coded_parsers
from calid_training.parsers import PREPARED_HELP, Parser
from calid_training.runs import checkpoint_of, read_checkpoint, run_config
from calid_training.stages import Stage, all_stages
from calid_training.weight_files import (
    merged,
    origin_in,
    origin_of,
    part_config,
    prefixed,
    released_facts,
    write_model,
    write_tensors,
)

MOMENT_BATCHES, MOMENT_IMAGES = 40, 8  # and images, or one clip, in each
STRENGTH = (0.3, 0.6)  # in detail and in fidelity mode, of models with a motion and without a codec


def main(arguments: list[str]) -> int:
    """Entry point of `calid-train export`."""
    options = build_parser().parse_args(arguments)
    options.run_command(options)
    return 0


def build_parser() -> Parser:
    """The parser of all exports."""
    parser = Parser(prog="calid-train export", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run, part, model, released = _shared_arguments()
    autoencoder = commands.add_parser("autoencoder", parents=[part], help="the latent space for its denoiser")
    autoencoder.add_argument("--prepared", type=Path, required=True, help=PREPARED_HELP)
    autoencoder.set_defaults(run_command=_export_autoencoder)
    motion = commands.add_parser("motion", parents=[part], help="the motion between slices for the codec")
    motion.set_defaults(run_command=_export_motion)
    add_coded_parsers(commands, part=part, run=run, model=model, released=released)
    whole = commands.add_parser(
        "model", parents=[model, released], help="a model in the paper's form, or a finished one with other parts"
    )
    source = whole.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="run folder of the denoiser")
    source.add_argument("--model", type=Path, help="file of a finished model, to ship with other parts")
    whole.add_argument(
        "--autoencoder", type=Path, help="refined autoencoder file to ship instead of the trained-on one"
    )
    whole.add_argument("--motion", type=Path, help="motion file to ship instead of the trained-on one")
    whole.add_argument(
        "--strength",
        type=float,
        nargs=2,
        metavar=("DETAIL", "FIDELITY"),
        help="how far slices go from the mean of their neighbors, 0, to what the diffusion makes of them, 1 (default: "
        f"{STRENGTH} with a motion; without one, what the diffusion makes of them and nothing else, as in the paper)",
    )
    whole.add_argument(
        "--name", help=f"of the model in the manifest; by default {DEFAULT_MODEL}, or {CINE_MODEL} for one over time"
    )
    whole.set_defaults(run_command=_export_model)
    cine = commands.add_parser(
        "cine", parents=[run, model, released], help="the 2D+T model that ships: what it adds to the 2D model beside it"
    )
    cine.add_argument("--name", default=CINE_MODEL, help="of the model in the manifest")
    cine.add_argument("--noise-share", type=float, default=1.0, help="of the noise's power common to all frames")
    cine.add_argument(
        "--strength", type=float, default=0.75, help="of the temporal layers: 1 as trained, 0 leaves the 2D model"
    )
    cine.add_argument("--card", default="", help="model card in the folder with the manifest")
    cine.set_defaults(run_command=_export_cine)
    segmenter = commands.add_parser("segmenter", parents=[run, model, released], help="the segmenter that ships")
    segmenter.set_defaults(run_command=_export_segmenter)
    baseline = commands.add_parser(
        "baseline", parents=[run, model, released], help="a system CaLID is measured against"
    )
    baseline.add_argument("--name", choices=_systems(), required=True, help="of the system in the tables")
    baseline.set_defaults(run_command=_export_baseline)
    return parser


def _shared_arguments() -> tuple[Parser, ...]:
    """Parents: of what comes from a run, of parts in their own files, of models in a manifest, of released ones."""
    run = Parser(add_help=False)
    run.add_argument("--run", type=Path, required=True, help="run folder of the stage")
    part = Parser(add_help=False, parents=[run])
    part.add_argument("--out", type=Path, required=True, help="file to write")
    model = Parser(add_help=False)
    model.add_argument("--models", type=Path, required=True, help="folder for the model and its manifest, models.json")
    released = Parser(add_help=False)
    released.add_argument(
        "--license",
        help="SPDX identifier; by default the one that follows from the data, and nothing freer is accepted",
    )
    released.add_argument("--trained-on", default="", help="the data, in words; by default as the run recorded them")
    released.add_argument("--budget", default="", help="what the training cost, in words; tables print it")
    return run, part, model, released


def _export_autoencoder(options: Namespace) -> None:
    settings = run_config(options.run)
    config = config_from(AutoencoderConfig, settings["model"]["network"])
    autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(below(checkpoint_of(options.run), "network."))
    refined = settings["model"].get("refine")
    if refined:  # E is unchanged, and a denoiser was trained on these very moments
        before = read_latent_space(Path(refined))
        mean, std = before.mean.flatten(), before.std.flatten()
    else:
        mean, std = latent_moments(autoencoder.eval(), options.prepared, trained_on=settings["data"])
    tensors = LatentSpace(autoencoder, mean=mean, std=std).state_dict()
    write_tensors(options.out, tensors, asdict(config), origin_of(options.run, [refined]))
    print(f"{options.out}: latent mean {mean.tolist()}, std {std.tolist()}")


@torch.inference_mode()
def latent_moments(
    autoencoder: Autoencoder, prepared: Path, *, trained_on: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and standard deviation of E's posterior means over heart-centered training crops.

    Args:
        autoencoder: reads slices, or clips where its convolutions are 3D.
        prepared: folder made by `calid-train prepare`.
        trained_on: the data of its run's configuration, which gives the sets, the crops' size and the clips' frames.
    """
    from calid_training.cine_data import ClipData
    from calid_training.data import TripletData

    sets = {"prepared": prepared, "datasets": trained_on["datasets"]}
    crops = {"sizes": trained_on["sizes"][:1], "size_weights": (1.0,), "batches": MOMENT_BATCHES}
    data: TripletData
    if autoencoder.config.spatial_dims == 3:
        data = ClipData(frames=trained_on["frames"], batch_size=1, **sets, **crops)
    else:
        data = TripletData(batch_size=MOMENT_IMAGES, **sets, **crops)
    data.setup("fit")
    latents = torch.cat([autoencoder.encode(batch["target"])[0] for batch in data.train_stream])
    channels = latents.transpose(0, 1).flatten(1)
    return channels.mean(dim=1), channels.std(dim=1)


def _export_motion(options: Namespace) -> None:
    config = {"motion": asdict(config_from(MotionConfig, run_config(options.run)["model"]["network"]))}
    write_tensors(
        options.out, prefixed("motion", below(checkpoint_of(options.run), "network.")), config, origin_of(options.run)
    )
    print(options.out)


def _export_model(options: Namespace) -> None:
    tensors, config = _trained(options.run) if options.model is None else _finished(options.model)
    others = [options.autoencoder, options.motion]
    if options.model is None:
        model = run_config(options.run)["model"]
        origin = origin_of(options.run, [model["autoencoder"], model.get("motion"), model.get("start"), *others])
    else:
        origin = merged([origin_in(options.model), *(origin_in(other) for other in others if other is not None)])
    if options.autoencoder is not None:
        trained_on = below(tensors, "latent_space.")
        tensors |= prefixed("latent_space", _refined(trained_on, read_tensors(options.autoencoder)[0]))
    if options.motion is not None:
        config["motion"] = part_config(options.motion, "motion")
        tensors |= prefixed("motion", read_motion(options.motion).state_dict())
    anchored = {"autoencoder", "motion"} <= config.keys()  # a codec knows the moved neighbors by itself
    strength = options.strength or (STRENGTH if anchored and "strength" not in config else None)
    if strength is not None:
        config["strength"] = dict(zip(("detail", "fidelity"), strength, strict=True))
    name = options.name or (CINE_MODEL if "noise_share" in config else DEFAULT_MODEL)
    facts = released_facts(options, origin)
    write_model(options.models, name, tensors, config, origin, in_8_bits="codec" in config, **facts)


def _trained(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of the model that a run of the denoiser's stage trained."""
    model = run_config(run)["model"]
    if model.get("base") is not None:
        raise UsageError(f"{run} extends a finished 2D model: export what it adds with calid-train export cine")
    state = checkpoint_of(run)
    network = _denoiser_config(model)
    config = {"autoencoder": part_config(model["autoencoder"], "autoencoder"), "denoiser": asdict(network)}
    tensors = prefixed("denoiser", below(state, "network.")) | prefixed("latent_space", below(state, "latent_space."))
    if model.get("motion") is not None:
        config["motion"] = part_config(model["motion"], "motion")
        tensors |= prefixed("motion", below(state, "motion."))
    if network.is_over_time:
        config["noise_share"] = model["noise_shares"][1]
    return tensors, config


def _finished(model: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of a whole model from its file."""
    tensors, metadata = read_tensors(model)
    config = json.loads(metadata["config"])
    if not config.keys() & {"autoencoder", "codec"} or "denoiser" not in config:
        raise UsageError(f"{model} is no whole model: give the file of one, such as calid-2d.safetensors")
    return tensors, config


def _denoiser_config(model: Mapping[str, Any]) -> DenoiserConfig:
    """Of a run's networks; the 2D stage names their prediction beside them, the 2D+T stage among them."""
    prediction = model.get("prediction", model["network"]["prediction"])
    return config_from(DenoiserConfig, {**model["network"], "prediction": prediction})


def _export_cine(options: Namespace) -> None:
    checkpoint = read_checkpoint(options.run)
    if not checkpoint["base_sha256"]:
        raise UsageError(f"{options.run} extends no 2D model: export it whole with calid-train export model")
    temporal = below(checkpoint["state_dict"], "network.temporal.")
    manifest = read_manifest(options.models)
    base = next((entry for entry in manifest.values() if entry.sha256 == checkpoint["base_sha256"]), None)
    if base is None:
        raise UsageError(
            f"the 2D model that {options.run} extends is not in {options.models}: train on that one, or add it"
        )
    foundation = {"name": base.name, "sha256": base.sha256, "license": base.license}
    origin = merged([origin_of(options.run), {"foundations": [foundation]}])
    write_model(
        options.models,
        options.name,
        prefixed("denoiser.temporal", {key: options.strength * value for key, value in temporal.items()}),
        {"denoiser": {"temporal": True}, "noise_share": options.noise_share},
        origin,
        in_8_bits=True,
        **released_facts(options, origin),
        card=options.card,
        base=base.name,
        base_sha256=base.sha256,
    )


def _export_segmenter(options: Namespace) -> None:
    from calid_training.segmenter import segmenter_config

    network = config_from(MedFormerConfig, run_config(options.run)["model"]["network"])
    state = below(checkpoint_of(options.run, "best"), "average.module.")
    origin = origin_of(options.run)
    facts = released_facts(options, origin) | {"card": "segmenter.md"}
    write_model(options.models, "segmenter", state, segmenter_config(network), origin, **facts)


def _systems() -> dict[str, tuple[str, Stage]]:
    """{system of the benchmark's tables: (its training command, its stage)}."""
    return {stage.system: (command, stage) for command, stage in all_stages().items() if stage.system}


def _export_baseline(options: Namespace) -> None:
    command, stage = _systems()[options.name]
    model = run_config(options.run)["model"]
    origin = merged([origin_of(options.run), *_origins_of_runs([model.get("start")])])
    facts = released_facts(options, origin) | {"card": "README.md"}
    tensors = below(checkpoint_of(options.run), "network.")
    config = stage.manifest_config(model)
    write_model(options.models, command.replace("-", "_"), tensors, config, origin, **facts)


def _origins_of_runs(runs: Iterable[str | None]) -> list[dict[str, Any]]:
    """Where the weights of other runs come from that a run started from, as far as these are there."""
    return [origin_of(Path(run)) for run in runs if run is not None and Path(run).is_dir()]


def _refined(trained_on: Mapping[str, torch.Tensor], refined: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The refined autoencoder's tensors, if its E and moments are those the denoiser was trained on."""
    for key, value in trained_on.items():
        is_decoder = key.startswith(("autoencoder.decoder", "autoencoder.post_quant_conv"))
        if not is_decoder and not torch.allclose(value, refined[key], atol=1e-4):  # averaging weights rounds them
            raise UsageError(f"the refined autoencoder has another {key} than the denoiser was trained on")
    return refined
