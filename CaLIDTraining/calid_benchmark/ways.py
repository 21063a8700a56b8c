"""The ways to the slice between two others: CaLID as the engine runs it, what it is made of, and the plain ones.

Slices are float32 (N, Y, X) in [0, 1]. A function of two stacks makes the slices half-way; one of a stack and a factor
the whole dense stack, ((Z - 1) * factor + 1, Y, X). `systems` gives them their rows in the tables.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from calid.method.bisection import linear_slices, plan_bisection
from calid.method.coded import CodedCaLID
from calid.method.model import CaLID
from calid.method.texture import with_texture_of
from calid.run.batches import Interpolator
from calid.run.device import choose_device
from calid.run.generation import Generation, num_draws
from calid.run.preparation import GRID_MULTIPLE, Preparation
from calid.run.progress import Watch
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import Settings

from calid_benchmark.rivals.slices import as_images, as_slices

COMMON_SPACING_MM = 10.0
VIEWS = tuple(product(((), (-1,), (-2,), (-2, -1)), (1, -1)))
"""The axes that are mirrored and the order of the neighbors in the eight views that "fidelity" takes of a gap."""


def nearest(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The slice before: half-way, both are equally near."""
    del after
    return before


def nearest_slices(slices: np.ndarray, factor: int) -> np.ndarray:
    """The staircase: every new slice is the acquired one nearest to it."""
    return slices[np.floor(np.arange((len(slices) - 1) * factor + 1) / factor + 0.5).astype(int)]


def linear(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mean of both in image space ("Bilinear Pixel" of Table I)."""
    return (before + after) / 2


def linear_between(slices: np.ndarray, factor: int) -> np.ndarray:
    """Linear interpolation along the slice axis."""
    return linear_slices(slices, plan_bisection(len(slices), factor))


def latent_linear(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """The mean of both in the latent space of the autoencoder ("Bilinear Latent" of Table I)."""
    latents = [encoded(interpolator, images) for images in (before, after)]
    return decoded(interpolator, (latents[0] + latents[1]) / 2)


def latent_linear_between(slices: np.ndarray, factor: int, *, interpolator: Interpolator) -> np.ndarray:
    """Latents of the acquired slices, each encoded once, interpolated linearly along the slice axis and decoded."""
    latents = encoded(interpolator, slices).numpy()
    plan = plan_bisection(len(slices), factor)
    dense = linear_slices(latents.reshape(len(latents), 1, -1), plan).reshape(-1, *latents.shape[1:])
    return decoded(interpolator, torch.from_numpy(dense))


def reconstruction(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """E and D applied to the slice before: not an interpolation, but the most that a latent method can keep."""
    del after
    return decoded(interpolator, encoded(interpolator, before))


def encoded(interpolator: Interpolator, slices: np.ndarray) -> torch.Tensor:
    """E: slices (N, Y, X) in [0, 1] -> latents, of a model whose latents are those of single slices."""
    return interpolator.batched(_single_slice_model(interpolator).encode, as_images(slices))


def decoded(interpolator: Interpolator, latents: torch.Tensor) -> np.ndarray:
    """D: latents -> slices (N, Y, X) in [0, 1]."""
    model = _single_slice_model(interpolator)
    return as_slices(interpolator.batched(model.decode, latents, magnification=model.downsampling))


def _single_slice_model(interpolator: Interpolator) -> CaLID:
    if not isinstance(interpolator.model, CaLID):
        raise TypeError(f"{interpolator.entry.name} codes what its neighbors do not show, and no slice alone")
    return interpolator.model


def moved_mean(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """The mean of both after CaLID's motion has brought them half-way: what its denoiser starts from."""
    return as_slices(interpolator.halfway(as_images(before), as_images(after)).mean(dim=1))


def moved_mean_with_texture(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """`moved_mean`, its texture made as strong as the neighbors': all that CaLID does but for its diffusion."""
    images = as_images(before), as_images(after)
    return as_slices(with_texture_of(*images, interpolator.halfway(*images).mean(dim=1)))


def moved_mean_of_views(before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator) -> np.ndarray:
    """The mean of `moved_mean` in all `VIEWS`: all that "fidelity" does but for its diffusion."""
    images = as_images(before), as_images(after)
    made = [
        interpolator.halfway(*(x.flip(axes) for x in images[::order])).mean(dim=1).flip(axes) for axes, order in VIEWS
    ]
    return as_slices(torch.stack(made).mean(dim=0))


def calid(
    before: np.ndarray,
    after: np.ndarray,
    *,
    settings: Settings,
    models_folder: Path | None,
    spacing_mm: float = COMMON_SPACING_MM,
) -> np.ndarray:
    """CaLID or CaLID+ exactly as `calid upsample` runs it, on two-slice stacks, two spacings apart."""
    made = draws_between(before, after, settings=settings, models_folder=models_folder, spacing_mm=spacing_mm)
    return np.stack([value for value, _ in made])


def calid_between(
    slices: np.ndarray,
    factor: int,
    *,
    settings: Settings,
    models_folder: Path | None,
    spacing_mm: float = COMMON_SPACING_MM,
) -> np.ndarray:
    """CaLID or CaLID+ exactly as `calid upsample` runs it, on a whole stack."""
    interpolator = warm_interpolator(choose_device(settings.device), models_folder)
    return generated(interpolator, slices[None], factor, settings, slice_mm=spacing_mm)[0][0]


def draws_between(
    before: np.ndarray,
    after: np.ndarray,
    *,
    settings: Settings,
    models_folder: Path | None,
    spacing_mm: float = COMMON_SPACING_MM,
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """(value, standard deviation over the draws) of every slice between: each pair is a frame of two slices.

    The slice between was left out: `spacing_mm` is from it to either side.
    """
    interpolator = warm_interpolator(choose_device(settings.device), models_folder)
    frames = generated(interpolator, np.stack([before, after], axis=1), 2, settings, slice_mm=2 * spacing_mm)
    return [(values[1], None if deviation is None else deviation[1]) for values, deviation in frames]


def generated(
    interpolator: Interpolator,
    voxels: np.ndarray,
    factor: int,
    settings: Settings,
    *,
    is_periodic: bool = False,
    slice_mm: float = COMMON_SPACING_MM,
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Dense frames of stacks (T, Z, Y, X) in [0, 1] exactly as `calid upsample` makes them, with their deviations.

    Args:
        interpolator: the model.
        voxels: voxels of the sparse stacks.
        factor: number of gaps that each acquired one becomes.
        settings: method, mode and steps.
        is_periodic: whether the frames are one whole cardiac cycle.
        slice_mm: distance of the stacks' slices.
    """
    rows, columns = voxels.shape[2:]
    if rows % GRID_MULTIPLE or columns % GRID_MULTIPLE:
        raise ValueError(f"evaluation images must be multiples of {GRID_MULTIPLE} pixels, got {rows} x {columns}")
    whole = Preparation(0.0, 1.0, (rows, columns), (rows, columns), (rows, columns), slice_mm)
    plan, draws = plan_bisection(voxels.shape[1], factor), num_draws(interpolator, settings, uncertainty=False)
    return list(Generation(interpolator, whole, plan, settings, draws, Watch(1), is_periodic).frames(voxels))


def coded_model(interpolator: Interpolator) -> CodedCaLID:
    """The networks of an interpolator that knows the neighbors."""
    if not isinstance(interpolator.model, CodedCaLID):
        raise TypeError(f"{interpolator.entry.name} has no codec")
    return interpolator.model


def drawn(
    before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator, settings: Settings, spacing_mm: float
) -> np.ndarray:
    """What an interpolator makes between slices that are two spacings apart."""
    pairs = np.stack([before, after], axis=1)
    return np.stack([made[1] for made, _ in generated(interpolator, pairs, 2, settings, slice_mm=2 * spacing_mm)])


def of_code(
    before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator, scale: float, spacing_mm: float
) -> np.ndarray:
    """What D makes of codes from N(0, scale^2), the same for every question."""
    model, images = coded_model(interpolator), (as_images(before), as_images(after))
    shape = (len(before), *interpolator.latent_shape(before.shape[1:]))
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))

    def run(before: torch.Tensor, after: torch.Tensor, code: torch.Tensor, gap_mm: torch.Tensor) -> torch.Tensor:
        return model.codec.decode(code / model.codec.scale, model.see(before, after, gap_mm)).float()

    return as_slices(interpolator.batched(run, *images, scale * noise, torch.full((len(before),), 2 * spacing_mm)))
