"""The main job: a sparse stack in, a dense one out. Read this file first; it is the data flow from top to bottom."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from calid import __version__
from calid.bisection import FACTORS, Factor, Plan, plan_bisection, resolve_factor
from calid.checks import check_stack
from calid.device import Device, choose_device
from calid.diffusion import slerp
from calid.errors import Cancelled, SettingsError
from calid.interpolator import DEFAULT_MODEL, Interpolator, load_interpolator
from calid.preparation import Preparation, plan_preparation
from calid.stack import Stack

Method = Literal["calid", "calid+", "linear"]
Mode = Literal["detail", "fidelity"]

METHODS: tuple[Method, ...] = ("calid", "calid+", "linear")
MODES: tuple[Mode, ...] = ("detail", "fidelity")
DEFAULT_SAMPLES = 8  # the mean of 8 draws is 0.5 dB from the mean of all
MAX_STEPS, MAX_SAMPLES = 1000, 64
SPREAD = 0.5  # how far the further draws of CaLID+ start from its own start towards fresh noise
EVALUATION_GROUP = 16  # pairs of slices evaluated together
DECODING_EVALUATIONS = 3  # what encoding and decoding an image costs, in network evaluations
NOTE = "Generated slices are not acquired data; not for diagnosis."


@dataclass(frozen=True)
class Settings:
    """What the user can choose. Values are checked here; whether they fit the stack is checked when it is known.

    Args:
        factor: 2, 4, 8 or 16 new gaps for each, or "isotropic": slices about as far apart as pixels.
        method: "calid" starts from noise, "calid+" from its neighbors' inverted latents, "linear" needs no model.
        mode: "detail" is one draw, as sharp as an acquired slice; "fidelity" the mean of `samples` draws.
        samples: draws for "fidelity" and for the uncertainty; None is 1 where one is enough, else 8.
        steps: DDIM steps.
        seed: of every random number; same seed, same device: same voxels.
        roi: (x0, x1, y0, y1) half-open columns and rows in which slices are generated; linear around it.
        frames: (first, last + 1) frames to keep; None keeps all.
        device: "auto", "cpu", "cuda" or "mps".
    """

    factor: Factor = "isotropic"
    method: Method = "calid+"
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
        _require_choice("mode", self.mode, MODES)
        _require_choice("device", self.device, ("auto", "cpu", "cuda", "mps"))
        _require_range("steps", self.steps, 1, MAX_STEPS)
        _require_range("seed", self.seed, 0, 2**32 - 1)
        if self.samples is not None:
            _require_range("samples", self.samples, 1, MAX_SAMPLES)


def _require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise SettingsError(
            name, f"The {name} '{value}' is not possible.", f"Choose one of: {', '.join(map(str, choices))}."
        )


def _require_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SettingsError(name, f"{name} is {value}.", f"Give a whole number from {low} to {high}.")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `fraction` of 1, what it does, and the seconds it still needs (None while unknown)."""

    fraction: float
    stage: str
    seconds_left: float | None


@dataclass(frozen=True)
class Reconstruction:
    """What a run made.

    Args:
        stack: the dense stack on the sparse one's in-plane grid; acquired slices are bit-exact.
        uncertainty: standard deviation of the draws in the stack's intensities (float32), or None.
    """

    stack: Stack
    uncertainty: Stack | None


class _Watch:
    """Counts work, reports progress and stops the run when asked to."""

    def __init__(
        self, total: int, progress: Callable[[Progress], None] | None, is_cancelled: Callable[[], bool] | None
    ) -> None:
        self.total, self.done, self.stage, self.start = max(total, 1), 0, "starting", time.monotonic()
        self.progress, self.is_cancelled = progress, is_cancelled

    def tick(self, count: int) -> None:
        if self.is_cancelled is not None and self.is_cancelled():
            raise Cancelled
        self.done += count
        if self.progress is not None:
            fraction = min(self.done / self.total, 1.0)
            left = (time.monotonic() - self.start) * (1 - fraction) / fraction if fraction > 0 else None
            self.progress(Progress(fraction=fraction, stage=self.stage, seconds_left=left))


def upsample(
    stack: Stack,
    settings: Settings,
    *,
    models_folder: Path | None = None,
    uncertainty: bool = False,
    progress: Callable[[Progress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    on_frame: Callable[[int, Stack], None] | None = None,
    source: str = "",
) -> Reconstruction:
    """Fill in the missing slices of a short-axis stack.

    Args:
        stack: sparse SAX stack, static or cine.
        settings: what to do.
        models_folder: where the manifest lies; None takes the bundled models.
        uncertainty: also return the standard deviation over the draws.
        progress: told after every network evaluation.
        is_cancelled: asked at every network evaluation.
        on_frame: given (index, dense static stack) as soon as a frame is complete, in order.
        source: how errors name the input.

    Raises:
        InputError: if the stack is unsuitable.
        SettingsError: if a setting does not fit the stack.
        WeightsError, ResourceError: if the model or the device is not usable.
        Cancelled: if `is_cancelled` said so.
    """
    stack = _chosen_frames(stack, settings.frames)
    check_stack(stack, source=source)
    plan = plan_bisection(stack.num_slices, resolve_factor(settings.factor, stack))
    if settings.method == "linear":
        if uncertainty:
            raise SettingsError("uncertainty", "Linear interpolation has no uncertainty.", "Choose calid or calid+.")
        facts, made = {}, _linear_frames(stack, plan, _Watch(stack.num_frames, progress, is_cancelled))
    else:
        preparation = plan_preparation(stack, roi=settings.roi)
        interpolator = warm_interpolator(choose_device(settings.device), models_folder)
        watch = _Watch(work(plan, settings, frames=stack.num_frames, uncertainty=uncertainty), progress, is_cancelled)
        run = _Run(interpolator, preparation, plan, settings, _num_draws(settings, uncertainty), watch)
        facts, made = run.facts(), run.frames(stack)
    provenance = _provenance(stack, settings, plan) | facts
    return _collect(stack, plan, made, provenance, uncertainty=uncertainty, on_frame=on_frame)


@lru_cache(maxsize=2)
def warm_interpolator(device: Device, models_folder: Path | None, name: str = DEFAULT_MODEL) -> Interpolator:
    """The model on a device, kept between runs."""
    return load_interpolator(device, name=name, models_folder=models_folder)


def work(plan: Plan, settings: Settings, *, frames: int, uncertainty: bool = False) -> int:
    """The cost of a run in network evaluations of one slice, coding of images included."""
    if settings.method == "linear":
        return frames
    draws = _num_draws(settings, uncertainty)
    evaluations = plan.num_generated * draws * (settings.steps + DECODING_EVALUATIONS)
    if settings.method == "calid+":
        evaluations += plan.num_acquired * (settings.steps + DECODING_EVALUATIONS)
    return evaluations * frames


def _num_draws(settings: Settings, uncertainty: bool) -> int:
    if settings.mode == "fidelity" or uncertainty:
        return settings.samples or DEFAULT_SAMPLES
    return 1


def _chosen_frames(stack: Stack, frames: tuple[int, int] | None) -> Stack:
    if frames is None:
        return stack
    first, end = frames
    if not 0 <= first < end <= stack.num_frames:
        raise SettingsError(
            "frames",
            f"The frames {first}:{end} are not among the {stack.num_frames} frames of the input.",
            f"Give A:B with 0 <= A < B <= {stack.num_frames}.",
        )
    return stack.frames(first, end)


def linear_slices(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Linear interpolation of acquired (Z, Y, X) images at every slot: (slots, Y, X) float32."""
    images = images.astype(np.float32)
    position = np.arange(plan.num_slots) / plan.factor
    below = np.minimum(position.astype(int), plan.num_acquired - 2)
    weight = (position - below).astype(np.float32)[:, None, None]
    return (1 - weight) * images[below] + weight * images[below + 1]


Frame = tuple[np.ndarray, np.ndarray | None]
"""Values (slots, Y, X) float32 of one dense frame, and their standard deviation where there were several draws."""


def _linear_frames(stack: Stack, plan: Plan, watch: _Watch) -> Iterator[Frame]:
    watch.stage = "interpolating"
    for images in stack.voxels:
        watch.tick(1)
        yield linear_slices(images, plan), None


@dataclass(frozen=True)
class _Run:
    """One run of the model over the frames of a stack."""

    interpolator: Interpolator
    preparation: Preparation
    plan: Plan
    settings: Settings
    draws: int
    watch: _Watch

    def facts(self) -> dict[str, Any]:
        """What the model adds to the provenance."""
        entry, device = self.interpolator.entry, self.interpolator.device
        return {
            "model": entry.name,
            "model_sha256": entry.sha256,
            "model_license": entry.license,
            "steps": self.settings.steps,
            "seed": self.settings.seed,
            "draws": self.draws,
            "device": device.reason,
            "precision": str(device.autocast_dtype or torch.float32).removeprefix("torch."),
            "torch": torch.__version__,
            "platform": platform.platform(terse=True),
        }

    def frames(self, stack: Stack) -> Iterator[Frame]:
        """Dense frames in order. As many frames as fill a batch go together, so that no batch is nearly empty."""
        pixels = int(np.prod(self.preparation.padded_shape))
        batch = self.interpolator.device.batch_size(pixels)
        group = max(1, batch // ((stack.num_slices - 1) * self.draws))
        for start in range(0, stack.num_frames, group):
            yield from self.group(stack.voxels[start : start + group])

    def group(self, voxels: np.ndarray) -> Iterator[Frame]:
        """Dense frames of voxels (T, Z, Y, X), all of them together level by level."""
        frames, slices = voxels.shape[:2]
        acquired = self.preparation.prepare(voxels.reshape(frames * slices, *voxels.shape[2:]))
        images = self._bisect(acquired.reshape(frames, slices, *acquired.shape[1:]))
        for frame, raw in zip(images, voxels, strict=True):
            yield self._combined(frame, raw)

    def _bisect(self, acquired: torch.Tensor) -> torch.Tensor:
        """(frames, slices, 1, H, W) -> (frames, draws, slots, 1, H, W), level by level."""
        frames, _, *shape = acquired.shape
        images = acquired.new_zeros(frames, self.draws, self.plan.num_slots, *shape)
        images[:, :, :: self.plan.factor] = acquired[:, None]
        starts = self._starts(acquired)
        for number, level in enumerate(self.plan.levels, start=1):
            self.watch.stage = f"level {number} of {len(self.plan.levels)}"
            before, target, after = ([getattr(gap, side) for gap in level] for side in ("before", "target", "after"))
            if self.settings.method == "calid+":
                starts[:, :, target] = _grouped(slerp, starts[:, :, before], starts[:, :, after])
            images[:, :, target] = self._between(images[:, :, before], images[:, :, after], starts[:, :, target])
        return images

    def _between(self, before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
        def run(before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
            z_0 = self.interpolator.interpolate(before, after, z_T, steps=self.settings.steps, tick=self.watch.tick)
            made = self.interpolator.decode(z_0).clamp(-1, 1)
            self.watch.tick(len(made) * DECODING_EVALUATIONS)
            return made

        return _grouped(run, before, after, z_T)

    def _starts(self, acquired: torch.Tensor) -> torch.Tensor:
        """z_T of every slot: (frames, draws, slots, C, h, w).

        CaLID: noise that is a function of (seed, slot, draw) and not of the frame, so that a slice does not flicker
        for having drawn other noise. CaLID+: the inverted acquired slices, to be interpolated level by level; draws
        after the first start between those and noise.
        """
        frames, slices, _, *size = acquired.shape
        shape = self.interpolator.latent_shape(size)
        noise = torch.stack(
            [
                torch.stack([_noise((self.settings.seed, slot, draw), shape) for slot in range(self.plan.num_slots)])
                for draw in range(self.draws)
            ]
        )
        starts = noise.expand(frames, *noise.shape).clone()
        if self.settings.method == "calid+":
            self.watch.stage = "inverting the acquired slices"
            flat = acquired.flatten(0, 1)
            latents = self.interpolator.encode(flat)
            self.watch.tick(len(flat) * DECODING_EVALUATIONS)
            inverted = self.interpolator.invert(flat, latents, steps=self.settings.steps, tick=self.watch.tick)
            known = starts[:, :, :: self.plan.factor]
            inverted = inverted.reshape(frames, 1, slices, *shape).expand_as(known)
            spread = _grouped(lambda a, b: slerp(a, b, SPREAD), inverted, known)
            spread[:, 0] = inverted[:, 0]
            starts[:, :, :: self.plan.factor] = spread
        return starts

    def _combined(self, images: torch.Tensor, raw: np.ndarray) -> Frame:
        """Draws (draws, slots, 1, H, W) and the acquired voxels (Z, Y, X) -> values and spread of one frame."""
        draws = np.stack([self.preparation.restore(draw) for draw in images])
        value = draws.mean(axis=0) if self.settings.mode == "fidelity" else draws[0]
        x0, x1, y0, y1 = self.preparation.roi
        weight = self.preparation.blend_weights(*raw.shape[1:])
        dense = linear_slices(raw, self.plan)
        carried = linear_slices(self.preparation.excess(raw[:, y0:y1, x0:x1]), self.plan)
        inside = weight[y0:y1, x0:x1]
        dense[:, y0:y1, x0:x1] += inside * (value + carried - dense[:, y0:y1, x0:x1])
        if self.draws == 1:
            return dense, None
        spread = np.zeros_like(dense)
        spread[:, y0:y1, x0:x1] = inside * draws.std(axis=0, ddof=1)
        return dense, spread


def draw_between(
    pairs: np.ndarray, interpolator: Interpolator, preparation: Preparation, plan: Plan, settings: Settings
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The slice half-way between each of (N, 2, Y, X) pairs, and its standard deviation over the draws or None.

    The same code that upsamples a stack, for those who evaluate it: every pair is a frame of its own.
    """
    run = _Run(interpolator, preparation, plan, settings, _num_draws(settings, False), _Watch(1, None, None))
    middle = plan.num_slots // 2
    return [
        (values[middle], None if deviation is None else deviation[middle])
        for group in np.array_split(pairs, max(1, len(pairs) // EVALUATION_GROUP))
        for values, deviation in run.group(group)
    ]


def _grouped(run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function of batches (N, ...) to tensors (frames, draws, slots, ...)."""
    lead = tensors[0].shape[:3]
    result = run(*(tensor.flatten(0, 2) for tensor in tensors))
    return result.reshape(*lead, *result.shape[1:])


def _noise(key: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))


def _collect(
    stack: Stack,
    plan: Plan,
    made: Iterator[Frame],
    provenance: dict[str, Any],
    *,
    uncertainty: bool,
    on_frame: Callable[[int, Stack], None] | None,
) -> Reconstruction:
    """Put frames into the stack's own type, with the acquired slices as they came."""
    affine = stack.affine.copy()
    affine[:3, 2] /= plan.factor
    generated = np.ones(plan.num_slots, bool)
    generated[:: plan.factor] = stack.generated
    shape = (stack.num_frames, plan.num_slots, *stack.voxels.shape[2:])
    dense = Stack(
        np.zeros(shape, stack.voxels.dtype), affine, stack.frame_times_ms, generated, {**stack.provenance, **provenance}
    )
    spread = np.zeros(shape, np.float32) if uncertainty else None
    for index, (values, deviation) in enumerate(made):
        dense.voxels[index] = _as_dtype(values, stack.voxels.dtype)
        dense.voxels[index, :: plan.factor] = stack.voxels[index]
        if spread is not None and deviation is not None:
            spread[index] = deviation
            spread[index, :: plan.factor] = 0
        if on_frame is not None:
            on_frame(index, dense.frame(index))
    deviations = None if spread is None else replace(dense, voxels=spread).noted(quantity="standard deviation")
    return Reconstruction(stack=dense, uncertainty=deviations)


def _as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.rint(values).clip(limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def _provenance(stack: Stack, settings: Settings, plan: Plan) -> dict[str, Any]:
    chosen = asdict(settings)
    return {
        "calid": __version__,
        "method": settings.method,
        "mode": settings.mode,
        "factor": plan.factor,
        "roi": chosen["roi"],
        "frames": chosen["frames"],
        "acquired_slices": plan.num_acquired,
        "acquired_spacing_mm": float(stack.spacing_mm[2]),
        "note": NOTE,
    }
