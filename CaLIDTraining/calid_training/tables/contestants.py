"""Who runs in the speed table: every system at our trained size and at its paper's, with random weights.

What a run costs does not depend on the weights, so none are loaded; what it makes would be noise, and is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from calid.device import choose_device
from calid.diffusion import Schedule
from calid.interpolator import DEFAULT_MODEL, Interpolator
from calid.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig, LatentSpace
from calid.settings import Settings
from calid.weights import Entry, config_from, find_model

from calid_training import baselines
from calid_training.systems import Named, classical_systems, generated
from calid_training.train import CONFIGS

OURS, PAPER, NONE = "our sizes", "paper sizes", "no network"
STEPS = {"DiffAE": 64, "DMCVR": 128, "CaLID": 8, "CaLID+": 8}
"""Diffusion steps that the paper recommends for each; systems not named here have none, or their own."""


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
        name: of the system.
        block: the sizes it belongs to.
        make: builds it with a number of steps; None is its own.
        steps: its own number of diffusion steps, None where it has no such choice.
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
        return generated(self.interpolator, slices[None], factor, self.settings)[0][0]

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        new = (acquired - 1) * (factor - 1)
        if self.settings.method == "calid":
            return new * self.settings.steps
        return (3 * new if naive else new + acquired) * self.settings.steps


@dataclass(frozen=True)
class PlainRunner:
    """A system without a network."""

    system: Named

    def whole_heart(self, slices: np.ndarray, factor: int) -> np.ndarray:
        return self.system.whole_heart(slices, factor)

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        del acquired, factor, naive
        return 0


def contestants(*, models: Path | None, device: str, paper: bool = True) -> list[Contestant]:
    """All lines; `paper=False` leaves out the papers' sizes."""
    found = [
        Contestant(system.name, NONE, partial(_plain, system))
        for system in classical_systems()
        if system.name != "nearest"
    ]
    for block in (OURS, PAPER) if paper else (OURS,):
        for name in baselines.NAMES:
            make = partial(_baseline, name, paper=block == PAPER, device=device)
            found.append(Contestant(name, block, make, STEPS.get(name)))
        configs = paper_configs() if block == PAPER else shipped_configs(models)
        interpolator = untrained_interpolator(*configs, device=device)
        for name, method in (("CaLID", "calid"), ("CaLID+", "calid+")):
            found.append(Contestant(name, block, partial(_calid, interpolator, method), STEPS[name]))
    return found


def _plain(system: Named, steps: int | None) -> Runner:
    del steps
    return PlainRunner(system)


def _baseline(name: str, steps: int | None, *, paper: bool, device: str) -> Runner:
    return baselines.untrained(name, paper=paper, steps=steps, device=device)


def _calid(interpolator: Interpolator, method: str, steps: int | None) -> Runner:
    return CalidRunner(interpolator, Settings(factor=2, method=method, steps=steps or STEPS["CaLID"]))


def shipped_configs(models: Path | None) -> tuple[AutoencoderConfig, DenoiserConfig]:
    """The sizes of the model that ships."""
    config = find_model(DEFAULT_MODEL, models).config
    return config_from(AutoencoderConfig, config["autoencoder"]), config_from(DenoiserConfig, config["denoiser"])


def paper_configs() -> tuple[AutoencoderConfig, DenoiserConfig]:
    """The sizes of `paper-autoencoder.yaml` and `paper-denoiser.yaml` (the paper leaves the widths open)."""
    files = (CONFIGS / f"paper-{stage}.yaml" for stage in ("autoencoder", "denoiser"))
    autoencoder, denoiser = (yaml.safe_load(file.read_text())["model"] for file in files)
    network: dict[str, Any] = {**denoiser["network"], "prediction": denoiser["prediction"]}
    return config_from(AutoencoderConfig, autoencoder["network"]), config_from(DenoiserConfig, network)


def untrained_interpolator(autoencoder: AutoencoderConfig, denoiser: DenoiserConfig, *, device: str) -> Interpolator:
    """CaLID with random weights."""
    place, channels = choose_device(device), autoencoder.latent_channels
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(autoencoder), mean=torch.zeros(channels), std=torch.ones(channels))
    return Interpolator(
        space.to(place.torch_device).eval(),
        Denoiser(denoiser).to(place.torch_device).eval(),
        Schedule(prediction=denoiser.prediction, zero_terminal_snr=denoiser.prediction == "velocity"),
        place,
        Entry(name="untrained", file="", sha256="", bytes=0, license="none", config={}),
    )
