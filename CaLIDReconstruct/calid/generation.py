"""The model over the frames of a stack: starts, levels, draws, and back to the stack's intensities.

Every slice can be drawn several times. Draw 0 is what "detail" shows. Further draws see the problem mirrored (it has no
preferred direction: left and right, up and down, before and after can be exchanged), so that their mean also averages
over what the networks do differently in a mirror, and start from other noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers import GaussianFilter

from calid.bisection import Gap, Plan
from calid.diffusion import slerp
from calid.interpolator import Interpolator
from calid.preparation import Preparation
from calid.progress import Watch
from calid.settings import Settings

SPREAD = 0.5  # how far the further draws of CaLID+ start from its own start towards fresh noise
CODING_EVALUATIONS = 3  # what encoding or decoding an image costs, in network evaluations

BRIGHTNESS_SIGMA_PIXELS = 10.0  # coarser than the ventricles' walls, finer than the coils' shading
BRIGHTNESS_FLOOR = 0.02  # of the intensity window: air has no brightness to compare
GAIN_LIMITS = (0.7, 1.4)

Frame = tuple[np.ndarray, np.ndarray | None]
"""Values (slots, Y, X) float32 of one dense frame, and their standard deviation where there were several draws."""


def linear_slices(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Linear interpolation of acquired (Z, Y, X) images at every slot: (slots, Y, X) float32."""
    images = images.astype(np.float32)
    position = np.arange(plan.num_slots) / plan.factor
    below = np.minimum(position.astype(int), plan.num_acquired - 2)
    weight = (position - below).astype(np.float32)[:, None, None]
    return (1 - weight) * images[below] + weight * images[below + 1]


def fading_slices(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Each acquired (Z, Y, X) image at its own slot, fading to nothing half-way to its neighbors: (slots, Y, X)."""
    position = np.arange(plan.num_slots) / plan.factor
    nearest = np.rint(position).astype(int)
    weight = (1 - 2 * np.abs(position - nearest)).astype(np.float32)[:, None, None]
    return weight * images[nearest]


def work(plan: Plan, settings: Settings, *, frames: int, draws: int) -> int:
    """The cost of a run in network evaluations of one slice, coding of images included."""
    evaluations = plan.num_generated * draws * (settings.steps + CODING_EVALUATIONS)
    evaluations += plan.num_acquired * 2 * CODING_EVALUATIONS
    if settings.method == "calid+":
        evaluations += plan.num_acquired * settings.steps
    return evaluations * frames


@dataclass(frozen=True)
class Generation:
    """One run of the model.

    Args:
        interpolator: the model.
        preparation: how the stack is shown to it.
        plan: which slices it makes from which.
        settings: method, mode, steps and seed.
        draws: of every slice.
        watch: told of every network evaluation.
    """

    interpolator: Interpolator
    preparation: Preparation
    plan: Plan
    settings: Settings
    draws: int
    watch: Watch

    def frames(self, voxels: np.ndarray) -> Iterator[Frame]:
        """Dense frames of acquired voxels (T, Z, Y, X), in order.

        As many frames as fill a batch go through a level together, so that no batch is nearly empty.
        """
        pixels = int(np.prod(self.preparation.padded_shape))
        batch = self.interpolator.device.batch_size(pixels)
        group = max(1, batch // ((self.plan.num_acquired - 1) * self.draws))
        for start in range(0, len(voxels), group):
            yield from self._together(voxels[start : start + group])

    def _together(self, voxels: np.ndarray) -> Iterator[Frame]:
        frames, slices = voxels.shape[:2]
        acquired = self.preparation.prepare(voxels.reshape(frames * slices, *voxels.shape[2:]))
        self.watch.stage = "encoding the acquired slices"
        latents = self.interpolator.encode(acquired)
        kept = self.interpolator.decode(latents)
        self.watch.tick(len(acquired) * 2 * CODING_EVALUATIONS)
        acquired, latents, kept = (x.reshape(frames, slices, *x.shape[1:]) for x in (acquired, latents, kept))
        images = self._bisect(acquired, latents)
        for made, lost, raw in zip(images, acquired - kept, voxels, strict=True):
            yield self._restored(made, lost, raw)

    def _bisect(self, acquired: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """(frames, slices, 1, H, W) -> (frames, draws, slots, 1, H, W), level by level."""
        frames, _, *shape = acquired.shape
        images = acquired.new_zeros(frames, self.draws, self.plan.num_slots, *shape)
        images[:, :, :: self.plan.factor] = acquired[:, None]
        starts = self._starts(acquired, latents)
        for number, level in enumerate(self.plan.levels, start=1):
            self.watch.stage = f"level {number} of {len(self.plan.levels)}"
            self._make_level(level, images, starts)
        return images

    def _make_level(self, level: tuple[Gap, ...], images: torch.Tensor, starts: torch.Tensor) -> None:
        """Fill the targets of one level into `images` and, for CaLID+, into `starts`."""
        before, target, after = ([getattr(gap, side) for gap in level] for side in ("before", "target", "after"))
        if self.settings.method == "calid+":
            starts[:, :, target] = _over_slices(slerp, starts[:, :, before], starts[:, :, after])
        seen = _mirrored(images[:, :, before]), _mirrored(images[:, :, after])
        made = _over_slices(self._between, *_swapped(*seen), _mirrored(starts[:, :, target]))
        images[:, :, target] = _mirrored(made)

    def _between(self, before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
        z_0 = self.interpolator.interpolate(before, after, z_T, steps=self.settings.steps, tick=self.watch.tick)
        made = with_brightness_of((before + after) / 2, self.interpolator.decode(z_0)).clamp(-1, 1)
        self.watch.tick(len(made) * CODING_EVALUATIONS)
        return made

    def _starts(self, acquired: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """z_T of every slot: (frames, draws, slots, C, h, w).

        CaLID: noise that is a function of (seed, slot, draw) and not of the frame, so that a slice does not flicker
        for having drawn other noise. CaLID+: the inverted acquired slices, from which the levels interpolate.
        """
        frames, _, *shape = latents.shape
        keys = [(self.settings.seed, slot, draw) for draw in range(self.draws) for slot in range(self.plan.num_slots)]
        noise = torch.stack([_noise(key, shape) for key in keys]).reshape(self.draws, self.plan.num_slots, *shape)
        starts = noise.expand(frames, *noise.shape).clone()
        if self.settings.method == "calid+":
            noise = starts[:, :, :: self.plan.factor]
            starts[:, :, :: self.plan.factor] = self._inverted(acquired, latents, noise)
        return starts

    def _inverted(self, acquired: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z_T of the acquired slices in every draw; draws after the first start between them and noise."""
        self.watch.stage = "inverting the acquired slices"
        flat = acquired.flatten(0, 1), latents.flatten(0, 1)
        inverted = self.interpolator.invert(*flat, steps=self.settings.steps, tick=self.watch.tick)
        inverted = inverted.reshape(len(acquired), 1, *noise.shape[2:]).expand_as(noise)
        spread = _over_slices(lambda own, other: slerp(own, other, SPREAD), inverted, noise)
        spread[:, 0] = inverted[:, 0]
        return spread

    def _restored(self, images: torch.Tensor, lost: torch.Tensor, raw: np.ndarray) -> Frame:
        """One frame's values and spread in the stack's intensities.

        What the networks cannot hold is carried past them: intensities beyond their window linearly from slice to
        slice, and the texture that the autoencoder loses of each acquired slice near that slice. Without the latter,
        acquired slices stand out as sharp lines in long-axis cuts.

        Args:
            images: (draws, slots, 1, H, W) as the networks made them.
            lost: (slices, 1, H, W) acquired slices less their way through the autoencoder.
            raw: (slices, Y, X) acquired voxels.
        """
        draws = np.stack([self.preparation.restore(draw) for draw in images])
        value = draws.mean(axis=0) if self.settings.mode == "fidelity" else draws[0]
        x0, x1, y0, y1 = self.preparation.roi
        inside = self.preparation.blend_weights(*raw.shape[1:])[y0:y1, x0:x1]
        carried = linear_slices(self.preparation.excess(raw[:, y0:y1, x0:x1]), self.plan)
        carried += fading_slices(self.preparation.restore_difference(lost), self.plan)
        dense = linear_slices(raw, self.plan)
        dense[:, y0:y1, x0:x1] += inside * (value + carried - dense[:, y0:y1, x0:x1])
        if self.draws == 1:
            return dense, None
        spread = np.zeros_like(dense)
        spread[:, y0:y1, x0:x1] = inside * draws.std(axis=0, ddof=1)
        return dense, spread


def with_brightness_of(reference: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W) in [-1, 1] whose smooth brightness is the reference's; detail stays theirs.

    Draws differ in overall brightness more than neighboring slices do, which shows as stripes in long-axis cuts. A
    smooth gain removes that. Differs from the paper, which decodes and is done.
    """
    blur = GaussianFilter(2, BRIGHTNESS_SIGMA_PIXELS)
    wanted, had = (blur((x.clamp(-1, 1) + 1) / 2) + BRIGHTNESS_FLOOR for x in (reference, images))
    return (images + 1) * (wanted / had).clamp(*GAIN_LIMITS) - 1


def _over_slices(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function of batches (N, ...) to tensors (frames, draws, slots, ...)."""
    lead = tensors[0].shape[:3]
    result = run(*(tensor.flatten(0, 2) for tensor in tensors))
    return result.reshape(*lead, *result.shape[1:])


def _mirrored(tensor: torch.Tensor) -> torch.Tensor:
    """Each draw of (frames, draws, slots, C, rows, columns) in its own mirror; applied twice, nothing has changed."""
    draws = range(tensor.shape[1])
    return torch.stack([tensor[:, draw].flip(_mirror_axes(draw)) for draw in draws], dim=1)


def _mirror_axes(draw: int) -> tuple[int, ...]:
    return ((), (-1,), (-2,), (-2, -1))[draw % 4]


def _swapped(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every second four draws see the slices in the other order."""
    swaps = torch.tensor([draw % 8 >= 4 for draw in range(before.shape[1])])
    swaps = swaps.reshape(1, -1, *[1] * (before.ndim - 2))
    return torch.where(swaps, after, before), torch.where(swaps, before, after)


def _noise(key: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))
