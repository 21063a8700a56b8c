"""The model over the frames of a stack: starts, levels, draws, and back to the stack's intensities.

`Generation.frames` takes window after window of frames, `_drawn` all draws of a window, and `_made` is the loop in
which slices come to be: level by level, the neighbors of every gap go to the model, and the slices between come back.

Every slice can be drawn several times. Draw 0 is what "detail" shows, cooled where its model says so. Further draws are
whole: they go all of the way to where the walk ends, since their spread is to tell all that could be. They see the
problem mirrored (it has no preferred direction: left and right, up and down, before and after can be exchanged), so
that their mean also averages over what the networks do differently in a mirror, and start from other noise.

A 2D model makes every frame by itself. A 2D+T model makes the frames of a cine together, window by window if it is a
long one (`windows.py`). The latents of the paper's 2D+T networks are also fewer over time.

The neighbors of a level's gaps are brought half-way first, on paths that run on through the gaps beside (`paths.py`).
Where the preparation has a region, codec and denoiser work in it alone, and around it, where the motion looks once,
slices are the mean of their moved neighbors, level by level as inside.

What has to fit into memory is cut where that changes nothing: along the draws and the gaps of a level, and the frames
of a 2D model.

Images and latents are (frames, draws, slots, C, rows, columns) throughout, every draw in its own mirror.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from calid.errors import is_out_of_memory, out_of_memory
from calid.method.bisection import Bisection, Gap, linear_slices
from calid.method.diffusion import slerp
from calid.method.guidance import reflected
from calid.method.model import Departures
from calid.method.paths import curved_level
from calid.run.batches import Interpolator
from calid.run.draws import Draws
from calid.run.preparation import Preparation
from calid.run.progress import Watch
from calid.run.settings import Settings
from calid.run.windows import Window, windows

SPREAD = 0.5  # how far the further draws of CaLID+ start from its own start towards fresh noise

DISTINCT_VIEWS = 4
"""So many of all views differ where the motion is found both ways: the mean of both neighbors, moved, is the same for a
view and for its mirror image, left and right, in the other order."""

T = TypeVar("T")
Frame = tuple[np.ndarray, np.ndarray | None]
"""Values (slots, Y, X) float32 of one dense frame, and their standard deviation where there were several draws."""


def windows_of(
    interpolator: Interpolator, plan: Bisection, *, frames: int, pixels: int, draws: int, is_periodic: bool = False
) -> list[Window]:
    """Which frames go through the levels together.

    A 2D+T model makes another slice of a frame in another window. Its windows therefore depend on the frames alone, so
    that the memory of a machine does not decide about voxels. Windows of a 2D model fill a batch.

    Args:
        interpolator: the model.
        plan: which slices it makes.
        frames: number of frames of the stack.
        pixels: number of pixels of an image.
        draws: number of draws of every slice.
        is_periodic: whether the frames show one whole cardiac cycle; for a 2D+T model.
    """
    if interpolator.is_over_time:
        return windows(num_frames=frames, is_periodic=is_periodic, multiple=interpolator.frame_multiple)
    size = max(1, interpolator.device.batch_size(pixels) // ((plan.num_acquired - 1) * draws))
    return windows(num_frames=frames, size=size, context=0)


def cost(
    interpolator: Interpolator, plan: Bisection, settings: Settings, *, frames: int, draws: int, in_region: bool = False
) -> int:
    """The cost of a run in network evaluations of one slice, motion and coding of images included.

    Args:
        interpolator: the model.
        plan: which slices it makes.
        settings: method, mode and steps.
        frames: number of frames that are made; those that windows share are made in each of them.
        draws: number of draws of every slice.
        in_region: whether codec and denoiser work in a region only, around which neighbors are moved as well.
    """
    new = plan.num_generated * draws
    evaluations = new * interpolator.evaluations(settings.steps, settings.mode)
    evaluations += draws * interpolator.moving_evaluations(plan, in_region=in_region)
    if settings.method == "calid+":
        departures = interpolator.departures[settings.mode]
        inversions = plan.num_acquired if departures.self_condition else 2 * new
        evaluations += inversions * interpolator.inversion_evaluations(settings.steps, settings.mode)
    return evaluations * frames


def num_draws(interpolator: Interpolator, settings: Settings, *, uncertainty: bool) -> int:
    """How many slices are drawn for each one that is shown; where nothing is drawn, how many views are looked at."""
    asked = settings.draws(uncertainty=uncertainty)
    return min(asked, DISTINCT_VIEWS) if interpolator.estimates(settings.mode, settings.steps) else asked


@dataclass(frozen=True)
class Generation:
    """One run of the model.

    Args:
        interpolator: the model.
        preparation: how the stack is shown to it.
        plan: which slices it makes from which.
        settings: method, mode, steps and seed.
        draws: number of draws of every slice.
        watch: what counts every network evaluation.
        is_periodic: whether the frames show one whole cardiac cycle; for a 2D+T model.
        corrections: (frames, slots, 6, h, w) of the motion by long-axis images (`guidance.py`), or None.
    """

    interpolator: Interpolator
    preparation: Preparation
    plan: Bisection
    settings: Settings
    draws: int
    watch: Watch
    is_periodic: bool = False
    corrections: torch.Tensor | None = None

    def frames(self, voxels: np.ndarray) -> Iterator[Frame]:
        """Dense frames of acquired voxels (T, Z, Y, X), in order.

        Raises:
            ResourceError: "memory" if frames that are made together do not fit with a single gap.
        """
        for window in self._windows(len(voxels)):
            try:
                made = self._drawn(voxels, window)
            except (RuntimeError, MemoryError) as error:
                if self.interpolator.is_over_time and is_out_of_memory(error):
                    raise out_of_memory(together=len(window.frames)) from error
                raise
            for index, draws in zip(window.frames[window.kept], made, strict=True):
                yield self._restored(draws, voxels[index])

    @property
    def _pixels(self) -> int:
        return int(np.prod(self.preparation.padded_shape))

    def _windows(self, num_frames: int) -> list[Window]:
        return windows_of(
            self.interpolator,
            self.plan,
            frames=num_frames,
            pixels=self._pixels,
            draws=self.draws,
            is_periodic=self.is_periodic,
        )

    def _together(self, images: int) -> int:
        """Number of draws, or of gaps, that fill one batch of the networks if each adds so many images to it."""
        return max(1, self.interpolator.device.batch_size(self._pixels) // images)

    def _drawn(self, voxels: np.ndarray, window: Window) -> list[Draws]:
        """The draws of every frame that a window keeps."""
        chosen = voxels[list(window.frames)]
        frames, slices = chosen.shape[:2]
        acquired = self.preparation.prepare(chosen.reshape(frames * slices, *chosen.shape[2:]))
        acquired = acquired.unflatten(0, (frames, 1, slices))
        region = self.preparation.region
        once = self.settings.method == "calid+" and self._departures.self_condition
        inverted = self._inverted(acquired if region is None else region.cut(acquired), window) if once else None
        kept = range(frames)[window.kept]
        made = [Draws() for _ in kept]
        together = self._together(frames * (slices - 1))
        for draws in [range(1), *_parts(range(1, self.draws), together)]:
            images = self._made(acquired, inverted, window, draws)
            for of_frame, index in zip(made, kept, strict=True):
                for draw, image in zip(draws, images[index], strict=True):
                    of_frame.add(self.preparation.restore(image.flip(_mirror_axes(draw))))
        return made

    def _made(
        self, acquired: torch.Tensor, inverted: torch.Tensor | None, window: Window, draws: Sequence[int]
    ) -> torch.Tensor:
        """Images of a window in some of its draws, level by level.

        Args:
            acquired: images (frames, 1, slices, 1, H, W).
            inverted: their z_T, for CaLID+ where every slice is inverted once.
            window: the frames.
            draws: which ones.
        """
        images = torch.zeros(len(acquired), len(draws), self.plan.num_slots, *acquired.shape[3:])
        images[:, :, :: self.plan.factor] = _mirrored(acquired, draws)
        starts = self._starts(inverted, window, draws)
        between = partial(self.interpolator.model.between, **self._options(window, draws))
        for level in range(1, len(self.plan.levels) + 1):
            self.watch.stage = f"level {level} of {len(self.plan.levels)}"
            for gaps, moved in self._moved(level, images, window, draws):
                before, target, after = ([getattr(gap, side) for gap in gaps] for side in ("before", "target", "after"))
                seen = _in_order(self._within(_neighbors(images, gaps), draws), draws).split(1, dim=3)
                if inverted is not None:
                    starts[:, :, target] = _over_slices(slerp, starts[:, :, before], starts[:, :, after])
                elif self.settings.method == "calid+":
                    starts[:, :, target] = _over_slices(slerp, *self._inverted_between(seen, window))
                *batch, inside = map(self._batch, (*seen, starts[:, :, target], self._within(moved, draws)))
                gaps_mm = self._gaps_mm(gaps, images)
                made = self.interpolator.batched(between, *batch, gaps_mm, inside, tick=self.watch.tick)
                made = self._unbatched(made, like=images[:, :, target])
                images[:, :, target] = self._pasted(made, moved.mean(dim=3, keepdim=True), draws)
        return images

    def _moved(
        self, level: int, images: torch.Tensor, window: Window, draws: Sequence[int]
    ) -> Iterator[tuple[Sequence[Gap], torch.Tensor]]:
        """The gaps of level 1, 2, ..., part by part, with both their neighbors half-way.

        Returns:
            Gaps and (frames, draws, gaps, 2, H, W), in the order in which each draw sees both.
        """
        lead, of_level = images.shape[:2], self.plan.levels[level - 1]

        def found(pair: torch.Tensor, passes: int) -> torch.Tensor:
            sides = pair.flatten(0, 2).split(1, dim=1)
            fields = self.interpolator.fields(*sides, passes=passes, tick=self.watch.tick)
            return fields.unflatten(0, pair.shape[:3])

        def fields_of(gaps: Sequence[Gap]) -> torch.Tensor:
            seen = _in_order(_neighbors(images, gaps), draws)
            fields = found(self._within(seen, draws), self.interpolator.passes(level))
            if self.preparation.region is not None:
                fields = self._pasted(fields, found(seen, 1), draws)
            return _in_order(fields, draws).flatten(0, 1)

        parts = _parts(of_level, self._together(lead.numel()))
        if not self.interpolator.moves:
            for gaps in parts:
                yield gaps, _in_order(_neighbors(images, gaps), draws)
            return
        for gaps, fields in curved_level(parts, fields_of, self._gap_mm(of_level[0])):
            told = [*_neighbors(images, gaps).flatten(0, 2).split(1, dim=1), fields.flatten(0, 1)]
            if self.corrections is not None:
                of_gaps = self.corrections[list(window.frames)][:, [gap.target for gap in gaps]]
                seen = [reflected(of_gaps, _mirror_axes(draw)) for draw in draws]
                told.append(torch.stack(seen, dim=1).flatten(0, 2))
            moved = self.interpolator.moved(*told).unflatten(0, (*lead, len(gaps)))
            yield gaps, _in_order(moved, draws)

    def _within(self, tensor: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
        """What codec and denoiser see of a tensor (frames, draws, slots, C, H, W)."""
        region = self.preparation.region
        if region is None:
            return tensor
        cuts = [region.cut(tensor[:, place], _mirror_axes(draw)) for place, draw in enumerate(draws)]
        return torch.stack(cuts, dim=1)

    def _pasted(self, inside: torch.Tensor, around: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
        """Images made in the region within what surrounds them; without a region, they are all there is."""
        region = self.preparation.region
        if region is None:
            return inside
        pasted = [
            region.paste(around[:, place], inside[:, place], _mirror_axes(draw)) for place, draw in enumerate(draws)
        ]
        return torch.stack(pasted, dim=1)

    def _gaps_mm(self, gaps: Sequence[Gap], images: torch.Tensor) -> torch.Tensor:
        """The distance of both neighbors, for each of what `_batch` makes of a tensor like `images`."""
        distances = torch.tensor([self._gap_mm(gap) for gap in gaps])
        frames = 1 if self.interpolator.is_over_time else images.shape[0]
        return distances.repeat(frames * images.shape[1])

    def _gap_mm(self, gap: Gap) -> float:
        return self.plan.distance_mm(gap, self.preparation.slice_mm)

    def _batch(self, tensor: torch.Tensor) -> torch.Tensor:
        """(frames, draws, slots, C, ...) as the model reads it: every frame, or sequences (N, C, frames, ...)."""
        if not self.interpolator.is_over_time:
            return tensor.flatten(0, 2)
        return tensor.movedim(0, 3).flatten(0, 1)

    def _unbatched(self, batch: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
        """Undo `_batch` of a tensor like `like`."""
        if not self.interpolator.is_over_time:
            return batch.unflatten(0, like.shape[:3])
        return batch.unflatten(0, like.shape[1:3]).movedim(3, 0)

    def _starts(self, inverted: torch.Tensor | None, window: Window, draws: Sequence[int]) -> torch.Tensor:
        """z_T of every slot: (frames of the latents, draws, slots, C, h, w).

        CaLID: noise that is a function of (seed, slot, draw), and of the frame only in the share of its power that the
        model wants: a slice flickers for having drawn other noise. CaLID+: the inverted acquired slices, from which the
        levels interpolate; where E and D know the neighbors, half-way between these and noise.
        """
        starts, frames = self._noises(draws), window.frames[:: self.interpolator.frames_per_latent]
        starts = starts.expand(len(frames), *starts.shape).clone()
        share = self.interpolator.noise_share
        if share < 1:
            own = torch.stack([self._noises(draws, frame + 1) for frame in frames])  # 0 is no key
            starts = share**0.5 * starts + (1 - share) ** 0.5 * own
        if inverted is not None:
            noise = starts[:, :, :: self.plan.factor]
            first_as_inverted = not self.interpolator.knows_neighbors
            starts[:, :, :: self.plan.factor] = _spread(inverted, noise, draws, first_as_inverted=first_as_inverted)
        return _mirrored(starts, draws)

    def _noises(self, draws: Sequence[int], *frame: int) -> torch.Tensor:
        """(draws, slots, C, h, w), a function of the seed, slot, draw, and frame if one is named."""
        shape = self.interpolator.latent_shape(self.preparation.region_shape)
        keys = [(self.settings.seed, slot, draw) for draw in draws for slot in range(self.plan.num_slots)]
        noise = torch.stack([_noise((*key, *frame), shape) for key in keys])
        return noise.unflatten(0, (len(draws), self.plan.num_slots))

    def _inverted(self, acquired: torch.Tensor, window: Window) -> torch.Tensor:
        """z_T of the acquired slices, each inverted once for the gaps on both its sides."""
        self.watch.stage = "inverting the acquired slices"
        invert = partial(self.interpolator.model.invert, **self._options(window))
        z_T = self.interpolator.batched(invert, self._batch(acquired), tick=self.watch.tick)
        return self._unbatched(z_T, like=acquired)

    def _inverted_between(self, seen: Sequence[torch.Tensor], window: Window) -> list[torch.Tensor]:
        """z_T of both neighbors of gaps, inverted under the condition of the gap they serve."""
        model: Any = self.interpolator.model

        def invert(images: torch.Tensor, *neighbors: torch.Tensor) -> torch.Tensor:
            return model.invert(images, neighbors=neighbors, **self._options(window))

        before, after = (self._batch(tensor) for tensor in seen)
        inverted = (self.interpolator.batched(invert, x, before, after, tick=self.watch.tick) for x in (before, after))
        return [self._unbatched(z_T, like=seen[0]) for z_T in inverted]

    @property
    def _departures(self) -> Departures:
        return self.interpolator.departures[self.settings.mode]

    def _options(self, window: Window, draws: Sequence[int] = (0,)) -> dict[str, Any]:
        """What `CaLID.between` and `CaLID.invert` are told beside tensors."""
        departures = self._departures if draws[0] == 0 else replace(self._departures, temperature=1.0)
        return {"steps": self.settings.steps, "is_periodic": window.is_periodic, "departures": departures}

    def _restored(self, draws: Draws, raw: np.ndarray) -> Frame:
        """One frame's values and spread in the stack's intensities.

        Intensities beyond the networks' window are carried past them, linearly from slice to slice.

        Args:
            draws: (slots, Y, X) each.
            raw: (slices, Y, X) acquired voxels.
        """
        value = draws.mean if self.settings.mode == "fidelity" else draws.first
        dense = linear_slices(self.preparation.excess(raw), self.plan) + value
        if draws.count == 1:
            return dense, None
        strength = self._departures.strength or 1.0
        widened = self.interpolator.spread / strength  # as wide as the model's own draws, and as errors are
        return dense, draws.deviation * widened


def _over_slices(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function of batches (N, ...) to tensors (frames, draws, slots, ...)."""
    lead = tensors[0].shape[:3]
    result = run(*(tensor.flatten(0, 2) for tensor in tensors))
    return result.reshape(*lead, *result.shape[1:])


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _spread(
    inverted: torch.Tensor, noise: torch.Tensor, draws: Sequence[int], *, first_as_inverted: bool
) -> torch.Tensor:
    """Where draws start: between inverted latents (frames, 1, ...) and noise; the first from the inverted, if asked."""
    inverted = inverted.expand_as(noise)
    spread = _over_slices(lambda own, other: slerp(own, other, SPREAD), inverted, noise)
    if first_as_inverted and draws[0] == 0:
        spread[:, 0] = inverted[:, 0]
    return spread


def _mirrored(tensor: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
    """(frames, draws, slots, C, rows, columns), or what all draws share, in the mirror of each of them."""
    tensor = tensor.expand(-1, len(draws), *tensor.shape[2:])
    return torch.stack([tensor[:, place].flip(_mirror_axes(draw)) for place, draw in enumerate(draws)], dim=1)


def _mirror_axes(draw: int) -> tuple[int, ...]:
    return ((), (-1,), (-2,), (-2, -1))[draw % 4]


def _neighbors(images: torch.Tensor, gaps: Sequence[Gap]) -> torch.Tensor:
    """Both neighbors of gaps among images (frames, draws, slots, 1, H, W): (frames, draws, gaps, 2, H, W)."""
    before, after = ([getattr(gap, side) for gap in gaps] for side in ("before", "after"))
    return torch.cat([images[:, :, before], images[:, :, after]], dim=3)


def _in_order(pair: torch.Tensor, draws: Sequence[int]) -> torch.Tensor:
    """What half of the channels say of either slice, in each draw's order of both, or back from it.

    Every second four draws see the slice after first.
    """
    before, after = pair.chunk(2, dim=3)
    swapped = torch.tensor([draw % 8 >= 4 for draw in draws]).reshape(1, -1, 1, 1, 1, 1)
    return torch.where(swapped, torch.cat([after, before], dim=3), pair)


def _noise(key: tuple[int, ...], shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))
