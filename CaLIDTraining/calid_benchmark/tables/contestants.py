"""Who runs in the speed table: every system at our trained size and at its paper's, with random weights.

What a run costs does not depend on the weights, so none are loaded; what it makes would be noise, and is thrown away.
CaLID at our size runs with all that ships (motion, strength, texture); at the paper's size it decodes z_0 and is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from calid.method.codec import Codec, CodecConfig
from calid.method.coded import CodedCaLID
from calid.method.model import CaLID
from calid.method.motion import Motion, MotionConfig
from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig, LatentSpace
from calid.method.weights import ModelEntry, config_from, find_model
from calid.run.batches import DEFAULT_MODEL, Interpolator, departures_of
from calid.run.device import choose_device
from calid.run.settings import Method, Settings
from calid_training.stages import CONFIGS

from calid_benchmark import paper_form, rivals
from calid_benchmark.rivals import diffae, dmcvr
from calid_benchmark.systems import Named, classical_systems
from calid_benchmark.ways import generated

OURS, PAPER, NONE = "our sizes", "paper sizes", "no network"
STEPS = {"DiffAE": diffae.STEPS, "DMCVR": dmcvr.STEPS, "CaLID": paper_form.STEPS, "CaLID+": paper_form.STEPS}
"""Diffusion steps of each as its paper recommends; others have none."""
OUR_STEPS = STEPS | {"CaLID": Settings().steps, "CaLID+": Settings().steps}
"""The same at our sizes, where CaLID takes as many as it ships with."""


class Runner(Protocol):
    """What is timed."""

    def whole_heart(self, slices: np.ndarray, factor: int) -> np.ndarray:
        """(Z, Y, X) in [0, 1] -> ((Z - 1) * factor + 1, Y, X)."""
        ...

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """Evaluations of the generating network; `naive` inverts both neighbors anew for every new slice."""
        ...


@dataclass(frozen=True)
class Contestant:
    """A line of the table.

    Args:
        name: name of the system.
        block: the sizes it belongs to.
        make: builds it with a number of steps; None is its own.
        steps: number of its diffusion steps, None where it has no such choice.
    """

    name: str
    block: str
    make: Callable[[int | None], Runner]
    steps: int | None = None


@dataclass(frozen=True)
class CalidRunner:
    """CaLID or CaLID+ as `calid upsample` runs it."""

    interpolator: Interpolator
    settings: Settings

    def whole_heart(self, slices: np.ndarray, factor: int) -> np.ndarray:
        """See `Runner`."""
        return generated(self.interpolator, slices[None], factor, self.settings)[0][0]

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """See `Runner`; every slice is inverted once for both its sides, or twice more for every new one."""
        new = (acquired - 1) * (factor - 1)
        if self.settings.method == "calid":
            return new * self.settings.steps
        return (3 * new if naive else new + acquired) * self.settings.steps


@dataclass(frozen=True)
class PlainRunner:
    """A system without a network."""

    system: Named

    def whole_heart(self, slices: np.ndarray, factor: int) -> np.ndarray:
        """See `Runner`."""
        return self.system.whole_heart(slices, factor)

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """See `Runner`: none."""
        del acquired, factor, naive
        return 0


def contestants(*, models: Path | None, device: str, paper: bool = True) -> list[Contestant]:
    """All lines; `paper=False` leaves out the papers' sizes."""
    found = [
        Contestant(system.name, NONE, partial(_plain, system))
        for system in classical_systems()
        if system.name != "nearest"
    ]
    for block, steps in ((OURS, OUR_STEPS), (PAPER, STEPS)) if paper else ((OURS, OUR_STEPS),):
        for name in rivals.NAMES:
            make = partial(_baseline, name, paper=block == PAPER, device=device)
            found.append(Contestant(name, block, make, steps.get(name)))
        sizes = paper_sizes() if block == PAPER else shipped_sizes(models)
        interpolator = untrained_interpolator(sizes, device=device)
        methods: dict[str, Method] = {"CaLID": "calid", "CaLID+": "calid+"}
        for name, method in methods.items():
            found.append(Contestant(name, block, partial(_calid, interpolator, method, steps[name]), steps[name]))
    return found


def _plain(system: Named, steps: int | None) -> Runner:
    del steps
    return PlainRunner(system)


def _baseline(name: str, steps: int | None, *, paper: bool, device: str) -> Runner:
    return rivals.untrained(name, paper=paper, steps=steps, device=device)


def _calid(interpolator: Interpolator, method: Method, usual: int, steps: int | None) -> Runner:
    return CalidRunner(interpolator, Settings(factor=2, method=method, steps=steps or usual))


@dataclass(frozen=True)
class Sizes:
    """What CaLID's cost depends on.

    Args:
        coder: widths of E and D, of single slices or with a codec.
        denoiser: widths of eps_theta, tau1 and tau2.
        motion: widths of what brings neighbors half-way, or None.
        engine: the manifest's values that say how much the engine does beside decoding z_0; empty as in the paper.
    """

    coder: AutoencoderConfig | CodecConfig
    denoiser: DenoiserConfig
    motion: MotionConfig | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


def shipped_sizes(models: Path | None) -> Sizes:
    """The sizes of the model that ships."""
    config = find_model(DEFAULT_MODEL, models).config
    has_codec = "codec" in config
    coder = (
        config_from(CodecConfig, config["codec"])
        if has_codec
        else config_from(AutoencoderConfig, config["autoencoder"])
    )
    return Sizes(
        coder,
        config_from(DenoiserConfig, config["denoiser"]),
        config_from(MotionConfig, config["motion"]) if "motion" in config else None,
        {name: config[name] for name in ("strength", "codec") if name in config},
    )


def paper_sizes() -> Sizes:
    """The sizes of `paper-autoencoder.yaml` and `paper-denoiser.yaml` (the paper leaves the widths open)."""
    files = (CONFIGS / f"paper-{stage}.yaml" for stage in ("autoencoder", "denoiser"))
    autoencoder, denoiser = (yaml.safe_load(file.read_text())["model"] for file in files)
    network: dict[str, Any] = {**denoiser["network"], "prediction": denoiser["prediction"]}
    return Sizes(config_from(AutoencoderConfig, autoencoder["network"]), config_from(DenoiserConfig, network))


def untrained_interpolator(sizes: Sizes, *, device: str) -> Interpolator:
    """CaLID with random weights."""
    place = choose_device(device)
    torch.manual_seed(0)
    motion = None if sizes.motion is None else Motion(sizes.motion)
    model = _untrained(sizes.coder, Denoiser(sizes.denoiser), motion).to(place.torch_device).eval()
    entry = ModelEntry(name="untrained", file="", sha256="", bytes=0, license="none", config=dict(sizes.engine))
    return Interpolator(model, place, entry, departures_of(sizes.engine))


def _untrained(coder: AutoencoderConfig | CodecConfig, denoiser: Denoiser, motion: Motion | None) -> CaLID | CodedCaLID:
    if isinstance(coder, CodecConfig):
        if motion is None:
            raise ValueError("a model with a codec has a motion")
        return CodedCaLID(Codec(coder), denoiser, motion)
    moments = {"mean": torch.zeros(coder.latent_channels), "std": torch.ones(coder.latent_channels)}
    return CaLID(LatentSpace(Autoencoder(coder), **moments), denoiser, motion=motion)
