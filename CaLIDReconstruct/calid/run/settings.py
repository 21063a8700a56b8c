"""What the user can choose, checked when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calid.errors import SettingsError
from calid.method.bisection import FACTORS, Factor

Method = Literal["calid", "calid+", "linear"]
Mode = Literal["detail", "fidelity"]
Model = Literal["auto", "2d", "2d+t"]

METHODS: tuple[Method, ...] = ("calid", "calid+", "linear")
MODES: tuple[Mode, ...] = ("detail", "fidelity")
MODELS: tuple[Model, ...] = ("auto", "2d", "2d+t")
DEVICES = ("auto", "cpu", "cuda", "mps")
MAX_STEPS, MAX_SAMPLES, MAX_SEED = 1000, 64, 2**32 - 1
DEFAULT_SAMPLES = 8  # the mean of 8 draws is 0.5 dB from the mean of all


@dataclass(frozen=True)
class Settings:
    """Settings of one run; whether they fit a stack is checked when it is known.

    Args:
        factor: 2, 4, 8 or 16 new gaps for each, or "isotropic": slices about as far apart as pixels.
        method: "calid" starts from noise, "calid+" from its neighbors' inverted latents, "linear" needs no model.
        model: "2d" makes every frame by itself, "2d+t" all together; "auto" is 2D+T for a cine, if it is installed.
        mode: "detail" is one draw; "fidelity" an estimate of the mean of all, by one step in `samples` mirrored views.
            Where the uncertainty is asked for too, it is the mean of `samples` whole draws, and so another result.
        samples: draws for "fidelity" and for the uncertainty; None is 1 where one is enough, else 8.
        steps: DDIM steps.
        seed: of every random number; same seed, same device: same voxels.
        roi: (x0, x1, y0, y1) half-open columns and rows in which slices are generated; linear around it.
        frames: (first, last + 1) frames to keep; None keeps all.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        SettingsError: if a value is not possible; its code is the setting's name.
    """

    factor: Factor = "isotropic"
    method: Method = "calid+"
    model: Model = "auto"
    mode: Mode = "detail"
    samples: int | None = None
    steps: int = 8
    seed: int = 0
    roi: tuple[int, int, int, int] | None = None
    frames: tuple[int, int] | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        _require_choice("factor", self.factor, (*FACTORS, "isotropic"))
        _require_choice("method", self.method, METHODS)
        _require_choice("model", self.model, MODELS)
        _require_choice("mode", self.mode, MODES)
        _require_choice("device", self.device, DEVICES)
        _require_range("steps", self.steps, 1, MAX_STEPS)
        _require_range("seed", self.seed, 0, MAX_SEED)
        if self.samples is not None:
            _require_range("samples", self.samples, 1, MAX_SAMPLES)

    def resolved(self, *, uncertainty: bool) -> Settings:
        """The settings a run really uses: fidelity takes the best estimator of the mean of all draws.

        One velocity step from noise predicts that mean. It is closer to the truth than the mean of 8 draws of 8 steps
        and costs an eighth (CaLIDTraining/RESULTS.md); the draws then only average over mirrored views. Where their
        spread is asked for, whole draws are needed and their mean is taken.
        """
        if self.mode == "fidelity" and self.method != "linear" and not uncertainty:
            return replace(self, method="calid", steps=1)
        return self

    def draws(self, *, uncertainty: bool) -> int:
        """How many slices are drawn for each one that is shown."""
        if self.mode == "fidelity" or uncertainty:
            return self.samples or DEFAULT_SAMPLES
        return 1


def _require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise SettingsError(
            name, f"The {name} '{value}' is not possible.", f"Choose one of: {', '.join(map(str, choices))}."
        )


def _require_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(name, f"{name} is {value!r}.", f"Give a whole number from {low} to {high}.")
