"""The main job: a sparse stack in, a dense one out. Read this file first; it is the data flow from top to bottom."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calid import STANDING_NOTE, __version__
from calid.bisection import Plan, plan_bisection, resolve_factor
from calid.checks import check_stack
from calid.cycle import spans_the_cycle
from calid.device import Device, choose_device
from calid.errors import SettingsError
from calid.generation import Frame, Generation, frames_made, linear_slices, work
from calid.interpolator import DEFAULT_MODEL, Interpolator, choose_model, load_interpolator
from calid.preparation import plan_preparation
from calid.progress import Progress, Watch
from calid.settings import Settings
from calid.stack import Stack


@dataclass(frozen=True)
class Reconstruction:
    """What a run made.

    Args:
        stack: the dense stack on the sparse one's in-plane grid; acquired slices are bit-exact.
        uncertainty: standard deviation of the draws in the stack's intensities (float32), or None.
    """

    stack: Stack
    uncertainty: Stack | None


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
    settings = settings.resolved(uncertainty=uncertainty)
    stack = _chosen_frames(stack, settings.frames)
    check_stack(stack, source=source)
    plan = plan_bisection(stack.num_slices, resolve_factor(settings.factor, stack))
    provenance = _provenance(stack, settings, plan)
    if settings.method == "linear":
        if uncertainty:
            raise SettingsError("uncertainty", "Linear interpolation has no uncertainty.", "Choose calid or calid+.")
        frames = _linear_frames(stack, plan, Watch(stack.num_frames, progress, is_cancelled))
    else:
        preparation = plan_preparation(stack, roi=settings.roi)
        model, reason = choose_model(settings.model, frames=stack.num_frames, models_folder=models_folder)
        interpolator = warm_interpolator(choose_device(settings.device), models_folder, model)
        draws = settings.draws(uncertainty=uncertainty)
        is_periodic = interpolator.is_over_time and spans_the_cycle(stack)
        pixels = math.prod(preparation.padded_shape)
        made = frames_made(interpolator, plan, frames=stack.num_frames, pixels=pixels, draws=draws)
        watch = Watch(work(plan, settings, frames=made, draws=draws), progress, is_cancelled)
        generation = Generation(interpolator, preparation, plan, settings, draws, watch, is_periodic)
        frames = generation.frames(stack.voxels)
        provenance |= _model_provenance(generation) | {"model_choice": reason}
    return _collect(stack, plan, frames, provenance, uncertainty=uncertainty, on_frame=on_frame)


@lru_cache(maxsize=2)
def warm_interpolator(device: Device, models_folder: Path | None, name: str = DEFAULT_MODEL) -> Interpolator:
    """The model on a device, kept between runs."""
    return load_interpolator(device, name=name, models_folder=models_folder)


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


def _linear_frames(stack: Stack, plan: Plan, watch: Watch) -> Iterator[Frame]:
    watch.stage = "interpolating"
    for images in stack.voxels:
        watch.tick(1)
        yield linear_slices(images, plan), None


def _collect(
    stack: Stack,
    plan: Plan,
    frames: Iterator[Frame],
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
    for index, (values, deviation) in enumerate(frames):
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
    return {
        "calid": __version__,
        "method": settings.method,
        "mode": settings.mode,
        "factor": plan.factor,
        "roi": settings.roi and list(settings.roi),
        "frames": settings.frames and list(settings.frames),
        "acquired_slices": plan.num_acquired,
        "acquired_spacing_mm": float(stack.spacing_mm[2]),
        "note": STANDING_NOTE,
    }


def _model_provenance(generation: Generation) -> dict[str, Any]:
    interpolator, settings = generation.interpolator, generation.settings
    entry, device = interpolator.entry, interpolator.device
    over_time = {"model_base_sha256": entry.base_sha256, "is_periodic": generation.is_periodic}
    return {
        "model": entry.name,
        "model_sha256": entry.sha256,
        **(over_time if interpolator.is_over_time else {}),
        "model_license": entry.license,
        "steps": settings.steps,
        "seed": settings.seed,
        "draws": generation.draws,
        "device": device.reason,
        "precision": str(device.autocast_dtype or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
    }
