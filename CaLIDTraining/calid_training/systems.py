"""The systems that are compared, behind one door: two neighbors in, the slice between them out.

A new system is one function with the signature of `System`, registered by name in `SYSTEMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from calid.bisection import plan_bisection
from calid.device import choose_device
from calid.interpolator import Interpolator
from calid.preparation import GRID_MULTIPLE, Preparation
from calid.reconstruct import Settings, draw_between, warm_interpolator

System = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(before, after): (N, Y, X) float32 in [0, 1] -> the slices between, the same shape."""


def nearest(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The slice before: half-way, both are equally near."""
    del after
    return before


def linear(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mean of both in image space ("Bilinear Pixel" of Table I)."""
    return (before + after) / 2


def latent_linear(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """The mean of both in the latent space of the autoencoder ("Bilinear Latent" of Table I)."""
    latents = [interpolator.encode(_as_images(images)) for images in (before, after)]
    return _as_arrays(interpolator.decode((latents[0] + latents[1]) / 2))


def reconstruction(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """E and D applied to the slice before: not an interpolation, but the most that a latent method can keep."""
    del after
    return _as_arrays(interpolator.decode(interpolator.encode(_as_images(before))))


def calid(before: np.ndarray, after: np.ndarray, *, settings: Settings, models_folder: Path | None) -> np.ndarray:
    """CaLID or CaLID+ exactly as `calid upsample` runs it, on two-slice stacks."""
    return np.stack([draw[0] for draw in draws(before, after, settings=settings, models_folder=models_folder)])


def draws(
    before: np.ndarray, after: np.ndarray, *, settings: Settings, models_folder: Path | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(value, standard deviation) of every slice between, for the uncertainty's own evaluation."""
    interpolator = warm_interpolator(choose_device(settings.device), models_folder)
    rows, columns = before.shape[1:]
    if rows % GRID_MULTIPLE or columns % GRID_MULTIPLE:
        raise ValueError(f"evaluation images must be multiples of {GRID_MULTIPLE} pixels, got {rows} x {columns}")
    whole = Preparation(0.0, 1.0, (0, columns, 0, rows), (rows, columns), (rows, columns))
    pairs = np.stack([before, after], axis=1)
    return draw_between(pairs, interpolator, whole, plan_bisection(2, 2), settings)


def _as_images(arrays: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(arrays)[:, None] * 2 - 1


def _as_arrays(images: torch.Tensor) -> np.ndarray:
    return ((images[:, 0].clamp(-1, 1) + 1) / 2).numpy()


@dataclass(frozen=True)
class Named:
    """A system with what the table says of it."""

    name: str
    make: System
    evaluations: int = 0


def interpolation_systems(
    *, models_folder: Path | None = None, steps: int = 8, samples: int = 8, device: str = "auto"
) -> list[Named]:
    """The rows of the interpolation table."""
    interpolator = warm_interpolator(choose_device(device), models_folder)
    bound = partial(calid, models_folder=models_folder)

    def settings(method: str, mode: str, steps: int, samples: int | None = None) -> Settings:
        return Settings(factor=2, method=method, mode=mode, steps=steps, samples=samples, device=device)

    return [
        Named("nearest", nearest),
        Named("linear", linear),
        Named("bilinear latent", partial(latent_linear, interpolator=interpolator)),
        Named("CaLID", partial(bound, settings=settings("calid", "detail", steps)), steps),
        Named("CaLID+", partial(bound, settings=settings("calid+", "detail", steps)), 3 * steps),
        Named("CaLID, one step", partial(bound, settings=settings("calid", "detail", 1)), 1),
        Named(
            "CaLID fidelity",
            partial(bound, settings=settings("calid", "fidelity", steps, samples)),
            steps * samples,
        ),
        Named(
            "CaLID+ fidelity",
            partial(bound, settings=settings("calid+", "fidelity", steps, samples)),
            steps * (samples + 2),
        ),
    ]
