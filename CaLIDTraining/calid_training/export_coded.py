"""Export of the model with a codec: the codec for the denoiser's stage, then the whole that ships."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from calid.method.codec import Codec, CodecConfig
from calid.method.motion import Motion, halfway
from calid.method.networks import DenoiserConfig
from calid.method.weights import below, build_codec, config_from, packed, read_motion, unpacked
from calid.run.batches import DEFAULT_MODEL

from calid_training.parsers import PREPARED_HELP, Parser
from calid_training.runs import checkpoint_of, run_config
from calid_training.weight_files import (
    origin_of,
    part_config,
    prefixed,
    released_facts,
    write_model,
    write_tensors,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

MOMENT_BATCHES, MOMENT_IMAGES = 40, 8  # and images in each


def add_coded_parsers(commands: _SubParsersAction, **parents: Parser) -> None:
    """Their commands, from the parents "part", "run", "model" and "released" of `calid-train export`."""
    codec = commands.add_parser("codec", parents=[parents["part"]], help="the codec and its motion for its denoiser")
    codec.add_argument("--prepared", type=Path, required=True, help=PREPARED_HELP)
    codec.set_defaults(run_command=_export_codec)
    released = [parents[name] for name in ("run", "model", "released")]
    coded = commands.add_parser("coded", parents=released, help="the 2D model that ships: codec, denoiser and motion")
    coded.add_argument("--name", default=DEFAULT_MODEL, help="of the model in the manifest")
    coded.add_argument(
        "--temperature", type=float, default=1.0, help="how far draws go from their mean, 1 is all of the way"
    )
    coded.add_argument(
        "--spread",
        type=float,
        default=1.0,
        help="what the draws' deviation is multiplied with to be as large as errors",
    )
    coded.add_argument("--half", action="store_true", help="half precision instead of 8 bits, to train on")
    coded.set_defaults(run_command=_export_coded)


def _export_codec(options: Namespace) -> None:
    settings = run_config(options.run)
    config = config_from(CodecConfig, settings["model"]["network"])
    state = checkpoint_of(options.run)
    codec = build_codec(asdict(config), below(state, "network."))
    motion = below(state, "motion.")
    sets = settings["data"]["datasets"]
    own_motion = read_motion(Path(settings["model"]["motion"]))
    codec.scale.copy_(code_deviation(codec, own_motion, options.prepared, datasets=sets))
    parts = {"codec": asdict(config), "motion": part_config(settings["model"]["motion"], "motion")}
    tensors = prefixed("codec", codec.state_dict()) | prefixed("motion", motion)
    write_tensors(options.out, tensors, parts, origin_of(options.run, [settings["model"]["motion"]]))
    print(f"{options.out}: deviation of the codes {codec.scale.flatten().tolist()}")


@torch.inference_mode()
def code_deviation(codec: Codec, motion: Motion, prepared: Path, *, datasets: Sequence[str]) -> torch.Tensor:
    """(1, C, 1, 1) root mean square of E's means per channel over heart-centered training crops."""
    from calid_training.data import TripletData

    crops: dict[str, Any] = {"sizes": (128,), "size_weights": (1.0,), "batches": MOMENT_BATCHES}
    data = TripletData(batch_size=MOMENT_IMAGES, prepared=prepared, datasets=datasets, **crops)
    data.setup("fit")
    powers = []
    for batch in data.train_stream:
        sight = codec.see(*halfway(motion, batch["before"], batch["after"]), batch["gap_mm"])
        powers.append(codec.posterior_of(batch["target"], sight)[0].square().mean(dim=(0, 2, 3)))
    return torch.stack(powers).mean(dim=0).sqrt().clamp_min(1e-3).reshape(1, -1, 1, 1)


def _export_coded(options: Namespace) -> None:
    model, state = run_config(options.run)["model"], checkpoint_of(options.run)
    parts = {"denoiser": "network.", "codec": "codec.", "motion": "motion."}
    tensors = {key: value for part, old in parts.items() for key, value in prefixed(part, below(state, old)).items()}
    config = {
        "codec": part_config(model["codec"], "codec"),
        "denoiser": asdict(config_from(DenoiserConfig, model["network"])),
        "motion": part_config(model["codec"], "motion"),
        "temperature": options.temperature,
        "spread": options.spread,
    }
    origin = origin_of(options.run, [model["codec"], model.get("start")])
    facts = released_facts(options, origin)
    write_model(options.models, options.name, tensors, config, origin, in_8_bits=not options.half, **facts)
    if not options.half:
        print(f"8 bits change the weights by {relative_error(tensors):.2%} (root mean square, of all together)")


def relative_error(tensors: dict[str, torch.Tensor]) -> float:
    """Root mean square of what storing weights in 8 bits changes, relative to the weights'."""
    stored = unpacked(packed(tensors))
    pairs = [(value.float(), stored[key]) for key, value in tensors.items() if value.is_floating_point()]
    lost = sum(float((a - b).square().sum()) for a, b in pairs)
    return (lost / sum(float(a.square().sum()) for a, _ in pairs)) ** 0.5
