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
from calid.generation import Generation
from calid.interpolator import Interpolator
from calid.preparation import GRID_MULTIPLE, Preparation
from calid.progress import Watch
from calid.reconstruct import warm_interpolator
from calid.settings import Settings

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
    made = between(before, after, settings=settings, models_folder=models_folder)
    return np.stack([value for value, _ in made])


def between(
    before: np.ndarray, after: np.ndarray, *, settings: Settings, models_folder: Path | None
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """(value, standard deviation over the draws) of every slice between: each pair is a frame of two slices."""
    interpolator = warm_interpolator(choose_device(settings.device), models_folder)
    rows, columns = before.shape[1:]
    if rows % GRID_MULTIPLE or columns % GRID_MULTIPLE:
        raise ValueError(f"evaluation images must be multiples of {GRID_MULTIPLE} pixels, got {rows} x {columns}")
    whole = Preparation(0.0, 1.0, (0, columns, 0, rows), (rows, columns), (rows, columns))
    plan, draws = plan_bisection(2, 2), settings.draws(uncertainty=False)
    generation = Generation(interpolator, whole, plan, settings, draws, Watch(1))
    frames = generation.frames(np.stack([before, after], axis=1))
    return [(values[1], None if deviation is None else deviation[1]) for values, deviation in frames]


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
        Named("fidelity", partial(bound, settings=settings("calid", "fidelity", 1, samples)), samples),
        Named(
            "CaLID, mean of draws",
            partial(bound, settings=settings("calid", "fidelity", steps, samples)),
            steps * samples,
        ),
        Named(
            "CaLID+, mean of draws",
            partial(bound, settings=settings("calid+", "fidelity", steps, samples)),
            steps * (samples + 2),
        ),
    ]
