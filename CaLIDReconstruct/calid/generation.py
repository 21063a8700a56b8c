"""The model over the frames of a stack: starts, levels, draws, and back to the stack's intensities.

Every slice can be drawn several times. Draw 0 is what "detail" shows. Further draws see the problem mirrored (it has no
preferred direction: left and right, up and down, before and after can be exchanged), so that their mean also averages
over what the networks do differently in a mirror, and start from other noise.

A 2D model makes every frame by itself. A 2D+T model makes the frames of a cine together, all of them where they fit
into memory, else window by window (`cycle.py`). The latents of the paper's 2D+T networks are also fewer over time.

Images and latents are (frames, draws, slots, C, rows, columns) throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter

from calid.bisection import Gap, Plan
from calid.cycle import Window, window_at, windows
from calid.device import BYTES_PER_PIXEL, MEMORY_SHARE, free_system_bytes
from calid.diffusion import slerp
from calid.errors import is_out_of_memory
from calid.interpolator import Interpolator
from calid.preparation import Preparation
from calid.progress import Watch
from calid.settings import Settings

SPREAD = 0.5  # how far the further draws of CaLID+ start from its own start towards fresh noise
HELD_BYTES = 105  # for each pixel of a slice while a window is made: images, starts, a level's copies; measured
CODING_EVALUATIONS = 3  # what encoding or decoding an image costs, in network evaluations

BRIGHTNESS_SIGMA_PIXELS = 10.0  # coarser than the ventricles' walls, finer than the coils' shading
BRIGHTNESS_FLOOR = 0.02  # of the intensity window: air has no brightness to compare
GAIN_LIMITS = (0.7, 1.4)

TEXTURE_SIGMA_PIXELS = 3.0  # texture is what is finer
TEXTURE_LIMITS = (1.0, 2.0)

Frame = tuple[np.ndarray, np.ndarray | None]
"""Values (slots, Y, X) float32 of one dense frame, and their standard deviation where there were several draws."""


def linear_slices(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Linear interpolation of acquired (Z, Y, X) images at every slot: (slots, Y, X) float32."""
    images = images.astype(np.float32)
    position = np.arange(plan.num_slots) / plan.factor
    below = np.minimum(position.astype(int), plan.num_acquired - 2)
    weight = (position - below).astype(np.float32)[:, None, None]
    return (1 - weight) * images[below] + weight * images[below + 1]


def frames_together(interpolator: Interpolator, plan: Plan, *, pixels: int, draws: int) -> int:
    """How many frames go through the levels at once: all that fit into memory, or what fills a batch of a 2D model.

    Args:
        interpolator: the model.
        plan: which slices it makes.
        pixels: of an image.
        draws: of every slice.
    """
    if not interpolator.is_over_time:
        return max(1, interpolator.device.batch_size(pixels) // ((plan.num_acquired - 1) * draws))
    frame_bytes = pixels * (BYTES_PER_PIXEL + HELD_BYTES * plan.num_slots * draws)
    free_bytes = min(interpolator.device.free_bytes(), free_system_bytes())  # networks there, what they made here
    multiple = interpolator.frame_multiple
    return max(1, int(free_bytes * MEMORY_SHARE / frame_bytes) // multiple) * multiple


def frames_made(
    interpolator: Interpolator, plan: Plan, *, frames: int, pixels: int, draws: int, is_periodic: bool = False
) -> int:
    """How many frames a run makes; those that windows share are made in each of them."""
    if not interpolator.is_over_time:
        return frames
    size = frames_together(interpolator, plan, pixels=pixels, draws=draws)
    made = windows(num_frames=frames, size=size, is_periodic=is_periodic, multiple=interpolator.frame_multiple)
    return sum(len(window.frames) for window in made)


def work(plan: Plan, settings: Settings, *, frames: int, draws: int) -> int:
    """The cost of a run in network evaluations of one slice, coding of images included."""
    evaluations = plan.num_generated * draws * (settings.steps + 3 * CODING_EVALUATIONS)
    if settings.method == "calid+":
        evaluations += plan.num_acquired * (settings.steps + CODING_EVALUATIONS)
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
        is_periodic: whether the frames show one whole cardiac cycle; for a 2D+T model.
    """

    interpolator: Interpolator
    preparation: Preparation
    plan: Plan
    settings: Settings
    draws: int
    watch: Watch
    is_periodic: bool = False

    def frames(self, voxels: np.ndarray) -> Iterator[Frame]:
        """Dense frames of acquired voxels (T, Z, Y, X), in order; frames that do not fit are halved and tried again."""
        start, size, multiple = 0, self._frames_together(), self.interpolator.frame_multiple
        while start < len(voxels):
            window = self._window(start, size, len(voxels))
            try:
                images = self._made(voxels, window)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(window.frames) == multiple:
                    raise
                size = len(window.frames) // 2 // multiple * multiple
                continue
            for index in range(window.kept.start, window.kept.stop):
                yield self._restored(images[index], voxels[window.frames[index]])
            start += window.num_kept

    def _frames_together(self) -> int:
        """How many frames go through the levels at once: all that fit, or what fills a batch of a 2D model."""
        pixels = int(np.prod(self.preparation.padded_shape))
        return frames_together(self.interpolator, self.plan, pixels=pixels, draws=self.draws)

    def _window(self, start: int, size: int, num_frames: int) -> Window:
        if not self.interpolator.is_over_time:
            return window_at(start, num_frames=num_frames, size=size, context=0)
        multiple = self.interpolator.frame_multiple
        return window_at(start, num_frames=num_frames, size=size, is_periodic=self.is_periodic, multiple=multiple)

    def _made(self, voxels: np.ndarray, window: Window) -> torch.Tensor:
        """Images (frames, draws, slots, 1, H, W) of a window."""
        chosen = voxels[list(window.frames)]
        frames, slices = chosen.shape[:2]
        acquired = self.preparation.prepare(chosen.reshape(frames * slices, *chosen.shape[2:]))
        acquired = acquired.unflatten(0, (frames, slices))
        images = torch.zeros(frames, self.draws, self.plan.num_slots, *acquired.shape[2:])
        images[:, :, :: self.plan.factor] = acquired[:, None]
        starts = self._starts(acquired, window)
        for number, level in enumerate(self.plan.levels, start=1):
            self.watch.stage = f"level {number} of {len(self.plan.levels)}"
            self._make_level(level, images, starts, window)
        return images

    def _make_level(self, level: tuple[Gap, ...], images: torch.Tensor, starts: torch.Tensor, window: Window) -> None:
        """Fill the targets of one level into `images` and, for CaLID+, into `starts`."""
        before, target, after = ([getattr(gap, side) for gap in level] for side in ("before", "target", "after"))
        if self.settings.method == "calid+":
            starts[:, :, target] = _over_slices(slerp, starts[:, :, before], starts[:, :, after])
        seen = _swapped(_mirrored(images[:, :, before]), _mirrored(images[:, :, after]))
        moved = _over_slices(self.interpolator.halfway, *seen).unbind(3)
        z_0 = self._by_model(self.interpolator.interpolate, window, *moved, _mirrored(starts[:, :, target]))
        images[:, :, target] = _mirrored(self._pictured(z_0, moved, seen).clamp(-1, 1))

    def _by_model(self, run: Callable[..., torch.Tensor], window: Window, *tensors: torch.Tensor) -> torch.Tensor:
        """What the denoiser makes of tensors (frames, draws, slots, ...): frame by frame, or the frames together."""
        asked = partial(run, steps=self.settings.steps, tick=self.watch.tick)
        if not self.interpolator.is_over_time:
            return _over_slices(asked, *tensors)
        return _over_sequences(partial(asked, is_periodic=window.is_periodic), *tensors)

    def _pictured(self, z_0: torch.Tensor, moved: Sequence[torch.Tensor], seen: Sequence[torch.Tensor]) -> torch.Tensor:
        """The slices between: D(z_0) and nothing else, as in the paper, or as much of it as the model's strength says.

        With a strength, what is taken from the diffusion is how z_0 differs from the latents of the neighbors' mean. So
        the texture that the autoencoder cannot hold stays, and a model whose draws err more than they add can be taken
        at less than its full strength.

        Args:
            z_0: latents that the denoiser made.
            moved: both neighbors, brought half-way.
            seen: both neighbors as they are.
        """
        decoded = self._coded(self.interpolator.decode, z_0)
        self.watch.tick(decoded.shape[:3].numel() * 3 * CODING_EVALUATIONS)
        strength = self.interpolator.strength(self.settings.mode)
        if strength is None:
            return decoded
        mean = (moved[0] + moved[1]) / 2
        change = decoded - self._coded(self.interpolator.decode, self._coded(self.interpolator.encode, mean))
        made = _over_slices(with_brightness_of, mean, mean + strength * change)
        return _over_slices(with_texture_of, *seen, made) if self.settings.mode == "detail" else made

    def _coded(self, run: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
        """What E or D makes of a tensor."""
        return (_over_sequences if self.interpolator.codes_sequences else _over_slices)(run, tensor)

    def _starts(self, acquired: torch.Tensor, window: Window) -> torch.Tensor:
        """z_T of every slot: (frames of the latents, draws, slots, C, h, w).

        CaLID: noise that is a function of (seed, slot, draw), and of the frame only in the share of its power that the
        model wants: a slice flickers for having drawn other noise. CaLID+: the inverted acquired slices, from which the
        levels interpolate.
        """
        shape = self.interpolator.latent_shape(acquired.shape[-2:])
        starts, frames = self._noises(shape), window.frames[:: self.interpolator.frames_per_latent]
        starts = starts.expand(len(frames), *starts.shape).clone()
        share = self.interpolator.noise_share
        if share < 1:
            own = torch.stack([self._noises(shape, frame + 1) for frame in frames])  # 0 is no key
            starts = share**0.5 * starts + (1 - share) ** 0.5 * own
        if self.settings.method == "calid+":
            noise = starts[:, :, :: self.plan.factor]
            starts[:, :, :: self.plan.factor] = self._inverted(acquired, noise, window)
        return starts

    def _noises(self, shape: Sequence[int], *frame: int) -> torch.Tensor:
        """(draws, slots, *shape), a function of the seed, slot, draw, and frame if one is named."""
        keys = [(self.settings.seed, slot, draw) for draw in range(self.draws) for slot in range(self.plan.num_slots)]
        noise = torch.stack([_noise((*key, *frame), shape) for key in keys])
        return noise.reshape(self.draws, self.plan.num_slots, *shape)

    def _inverted(self, acquired: torch.Tensor, noise: torch.Tensor, window: Window) -> torch.Tensor:
        """z_T of the acquired slices in every draw; draws after the first start between them and noise."""
        self.watch.stage = "inverting the acquired slices"
        images = acquired[:, None]
        latents = self._coded(self.interpolator.encode, images)
        self.watch.tick(images.shape[:3].numel() * CODING_EVALUATIONS)
        inverted = self._by_model(self.interpolator.invert, window, images, latents)
        inverted = inverted.expand_as(noise)
        spread = _over_slices(lambda own, other: slerp(own, other, SPREAD), inverted, noise)
        spread[:, 0] = inverted[:, 0]
        return spread

    def _restored(self, images: torch.Tensor, raw: np.ndarray) -> Frame:
        """One frame's values and spread in the stack's intensities.

        Intensities beyond the networks' window are carried past them, linearly from slice to slice.

        Args:
            images: (draws, slots, 1, H, W).
            raw: (slices, Y, X) acquired voxels.
        """
        draws = np.stack([self.preparation.restore(draw) for draw in images])
        value = draws.mean(axis=0) if self.settings.mode == "fidelity" else draws[0]
        x0, x1, y0, y1 = self.preparation.roi
        inside = self.preparation.blend_weights(*raw.shape[1:])[y0:y1, x0:x1]
        beyond = linear_slices(self.preparation.excess(raw[:, y0:y1, x0:x1]), self.plan)
        dense = linear_slices(raw, self.plan)
        dense[:, y0:y1, x0:x1] += inside * (value + beyond - dense[:, y0:y1, x0:x1])
        if self.draws == 1:
            return dense, None
        spread = np.zeros_like(dense)
        strength = self.interpolator.strength(self.settings.mode) or 1.0
        spread[:, y0:y1, x0:x1] = inside * draws.std(axis=0, ddof=1) / strength  # as wide as the model's own draws
        return dense, spread


def with_brightness_of(reference: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W) in [-1, 1] whose smooth brightness is the reference's; detail stays theirs.

    Draws differ in overall brightness more than neighboring slices do, which shows as stripes in long-axis cuts. A
    smooth gain removes that. Differs from the paper, which decodes and is done.
    """
    shades = (_blurred((x.clamp(-1, 1) + 1) / 2, BRIGHTNESS_SIGMA_PIXELS) for x in (reference, images))
    wanted, had = (shade + BRIGHTNESS_FLOOR for shade in shades)
    return (images + 1) * (wanted / had).clamp(*GAIN_LIMITS) - 1


def with_texture_of(before: torch.Tensor, after: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W) whose fine texture is as strong as that of their neighbors, which a mean averages away."""
    fine = [x - _blurred(x, TEXTURE_SIGMA_PIXELS) for x in (before, after, images)]
    strengths = [x.abs().mean(dim=(1, 2, 3), keepdim=True) for x in fine]
    gain = (strengths[0] + strengths[1]) / 2 / strengths[2].clamp_min(1e-6)
    return images + (gain.clamp(*TEXTURE_LIMITS) - 1) * fine[2]


def _blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images (N, 1, H, W) under a Gaussian; beyond its edge an image goes on as its nearest pixel."""
    margin = round(3 * sigma)
    padded = F.pad(images, [margin] * 4, mode="replicate")
    return GaussianFilter(2, sigma)(padded)[..., margin:-margin, margin:-margin]


def _over_slices(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function of batches (N, ...) to tensors (frames, draws, slots, ...)."""
    lead = tensors[0].shape[:3]
    result = run(*(tensor.flatten(0, 2) for tensor in tensors))
    return result.reshape(*lead, *result.shape[1:])


def _over_sequences(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function of sequences (N, C, frames, ...) to tensors (frames, draws, slots, C, ...)."""
    _, draws, slots = tensors[0].shape[:3]
    result = run(*(tensor.movedim(0, 3).flatten(0, 1) for tensor in tensors))
    return result.unflatten(0, (draws, slots)).movedim(3, 0)


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


def _noise(key: tuple[int, ...], shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))
