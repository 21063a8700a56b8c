"""CaLID and CaLID+ exactly as the paper has them, with nothing of what the engine adds (`calid.method.model.PAPER`).

CaLID starts from noise of its own for every slice, walks to z_0 (Eq. 6) and shows D(z_0). CaLID+ starts from the slerp
of both neighbors' inverted latents (Eq. 7 and 8), each inverted under the very condition of its gap, without rescaling,
anew for every gap; deeper levels of a bisection invert what the level above made. No bound is put on z_0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from calid.method.diffusion import slerp
from calid.method.model import PAPER, CaLID, Departures
from calid.run.batches import Interpolator, load_interpolator
from calid.run.device import Device

from calid_benchmark.rivals.slices import as_images, as_slices

SMALL = "calid-paper"
"""Name of the weights of the paper's model at our size, among the rivals'."""
MOVED = replace(PAPER, motion=True)
"""The paper's inference on a model whose denoiser was trained on moved neighbors: the motion has to stay."""
NOISE_SEED = 0
STEPS = 8
"""The paper's number of DDIM steps."""


@dataclass(frozen=True)
class PaperForm:
    """A model, asked as the paper asks it.

    Args:
        interpolator: the model on its device.
        steps: number of steps of the walk, and of the inversion.
        refined: whether it starts from inverted latents (CaLID+).
        departures: `PAPER`, or `MOVED` where the denoiser knows only moved neighbors.
    """

    interpolator: Interpolator
    steps: int
    refined: bool
    departures: Departures = PAPER

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The slices between: (N, Y, X) in [0, 1] twice -> (N, Y, X)."""
        sides = as_images(before), as_images(after)
        shape = (len(before), *self.interpolator.latent_shape(before.shape[1:]))
        z_T = torch.from_numpy(np.random.default_rng(NOISE_SEED).standard_normal(shape, dtype=np.float32))
        return as_slices(self.interpolator.batched(self._made, *sides, z_T))

    def _made(self, before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
        model = self._model()
        if self.refined:
            seen = model.halfway(before, after) if self.departures.motion else (before, after)
            invert = partial(model.invert, steps=self.steps, neighbors=seen, departures=self.departures)
            z_T = slerp(invert(before), invert(after))
        return model.between(before, after, z_T, steps=self.steps, departures=self.departures)

    def _model(self) -> CaLID:
        """The networks under a schedule that does not bound z_0."""
        model = self.interpolator.model
        if not isinstance(model, CaLID):
            raise TypeError("the paper's form is of a model whose latents are those of single slices")
        schedule = replace(model.schedule, max_latent=math.inf)
        return CaLID(model.latent_space, model.denoiser, schedule, model.motion)

    def at_steps(self, steps: int) -> PaperForm:
        """The same with another number of steps."""
        return replace(self, steps=steps)


def small_model(device: Device, weights: Path) -> Interpolator:
    """The paper's model at our size: no motion, no anchor, epsilon.

    Raises:
        WeightsError: if it is not there, damaged or does not fit.
    """
    return load_interpolator(device, name=SMALL, models_folder=weights)
