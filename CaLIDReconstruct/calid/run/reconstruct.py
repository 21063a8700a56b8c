"""The main job: a sparse stack in, a dense one out; the data flow from top to bottom. `generation` makes the slices."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calid import STANDING_NOTE, __version__
from calid.errors import SettingsError
from calid.images.checks import check_stack, warnings
from calid.method.bisection import Bisection, linear_slices, plan_bisection, resolve_factor
from calid.method.weights import models_folder as chosen_folder
from calid.run.alignment import align
from calid.run.batches import DEFAULT_MODEL, Interpolator, choose_model, load_interpolator
from calid.run.device import Device, choose_device
from calid.run.generation import Frame, Generation, cost, num_draws, windows_of
from calid.run.guidance import CORRECTING_EVALUATIONS, Guide, corrections_by, guide_of
from calid.run.preparation import Preparation, plan_preparation
from calid.run.progress import Progress, Watch
from calid.run.region import checked_box, heart_box
from calid.run.settings import Settings
from calid.run.shifts import PROVENANCE_KEY, Alignment, moved
from calid.run.windows import Window, spans_the_cycle
from calid.stack import GUIDED_KEY, LaxImage, Stack

LOG = logging.getLogger("calid")

FRAMES_PER_EVALUATION = 3  # of a slice and a view that are compared in the time of one network evaluation

RUN_FACTS = (
    *("calid", "method", "mode", "factor", "roi", "frames", "acquired_slices", "acquired_spacing_mm", "note", "input"),
    *("model", "model_sha256", "model_base_sha256", "is_periodic", "model_license", "model_choice"),
    *("steps", "seed", "draws", "device", "precision", "torch", "platform"),
    *("align", "lax", PROVENANCE_KEY, GUIDED_KEY),
)
"""What a run adds to the provenance."""


@dataclass(frozen=True)
class Reconstruction:
    """What a run made.

    Args:
        stack: the dense stack on the sparse one's in-plane grid; acquired slices are bit-exact, or as the alignment
            has moved them.
        uncertainty: standard deviation of the draws in the stack's intensities (float32), or None.
    """

    stack: Stack
    uncertainty: Stack | None


def upsample(
    stack: Stack,
    settings: Settings,
    *,
    lax: Sequence[LaxImage] = (),
    models_folder: Path | None = None,
    uncertainty: bool = False,
    progress: Callable[[Progress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
    on_plan: Callable[[Reconstruction], None] | None = None,
    on_frame: Callable[[int, Stack], None] | None = None,
    source: str = "",
) -> Reconstruction:
    """Fill in the missing slices of a short-axis stack.

    Args:
        stack: sparse SAX stack, static or cine.
        settings: what to do.
        lax: long-axis images of the same heart, for the alignment and as guides; those that do not cross the stack are
            not used.
        models_folder: where the manifest lies; None takes the bundled models.
        uncertainty: also return the standard deviation over the draws.
        progress: function told how far the run is, after every network evaluation and every step of alignment and
            guidance.
        is_cancelled: function asked as often whether to stop.
        on_plan: function given, before the first slice is made, what will be made, whole but for its voxels; what it
            raises ends the run.
        on_frame: function given (index, dense static stack) as soon as a frame is complete, in order.
        source: name of the input in error messages.

    Raises:
        InputError: if the stack is unsuitable.
        SettingsError: if a setting does not fit the stack.
        WeightsError, ResourceError: if the model or the device is not usable.
        Cancelled: if `is_cancelled` said so.
    """
    views = {view.name: view.stack for view in lax if view.stack.num_slices == 1}
    run = plan_run(
        stack, settings, uncertainty=uncertainty, models_folder=models_folder, num_views=len(views), source=source
    )
    _log(run)
    watch = Watch(run.work, progress, is_cancelled)
    run = _aligned(run, views, watch)
    planned = _planned(run, uncertainty=uncertainty)
    if on_plan is not None:
        on_plan(planned)
    for finding in warnings(run.stack):
        LOG.warning("%s %s", finding.message, finding.remedy)
    voxels = np.empty(planned.stack.voxels.shape, run.stack.voxels.dtype)
    spread = np.zeros(voxels.shape, np.float32) if planned.uncertainty is not None else None
    for index, (values, deviation) in enumerate(_dense_frames(run, watch)):
        voxels[index] = _as_dtype(values, voxels.dtype)
        voxels[index, :: run.plan.factor] = run.stack.voxels[index]  # acquired slices stay as they came
        if spread is not None and deviation is not None:
            spread[index] = deviation
            spread[index, :: run.plan.factor] = 0
        if on_frame is not None:
            on_frame(index, planned.stack.frame(index).with_voxels(voxels[index : index + 1]))
    uncertain = None if planned.uncertainty is None or spread is None else planned.uncertainty.with_voxels(spread)
    return Reconstruction(planned.stack.with_voxels(voxels), uncertain)


@dataclass(frozen=True)
class RunPlan:
    """All that is decided before the first slice is made.

    Args:
        stack: the chosen frames, checked.
        settings: as they are really used.
        plan: which slices are made from which.
        preparation: how the stack is shown to the networks.
        num_frames: number of frames of the whole run, more than the stack's where that is a sample of it.
        draws: number of draws of every slice.
        num_views: long-axis images that the slices are compared with.
        interpolator: the model, or None for linear interpolation.
        model_choice: why it is that one.
        is_periodic: whether the frames show one whole cardiac cycle, and the model makes use of it.
        alignment: how far the slices are off; None where it was not asked for.
        guide: the long-axis images that correct the motion, or None.
    """

    stack: Stack
    settings: Settings
    plan: Bisection
    preparation: Preparation
    num_frames: int
    draws: int = 1
    num_views: int = 0
    interpolator: Interpolator | None = None
    model_choice: str = ""
    is_periodic: bool = False
    alignment: Alignment | None = None
    guide: Guide | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels of an image as the networks see it."""
        return math.prod(self.preparation.padded_shape)

    @property
    def work(self) -> int:
        """The cost in network evaluations of one slice; of linear interpolation in frames."""
        return self.aligning + self.guiding + self.generating

    @property
    def generating(self) -> int:
        """The part of the work that makes the slices."""
        if self.interpolator is None:
            return self.num_frames
        frames = sum(len(window.frames) for window in self.windows(self.interpolator))
        in_region = self.preparation.region is not None
        return cost(self.interpolator, self.plan, self.settings, frames=frames, draws=self.draws, in_region=in_region)

    @property
    def aligning(self) -> int:
        """The part that compares slices with long-axis images."""
        return self.num_views * self.plan.num_acquired * self.comparing

    @property
    def comparing(self) -> int:
        """The part of one slice and one image."""
        return -(-self.num_frames // FRAMES_PER_EVALUATION)

    @property
    def guiding(self) -> int:
        """The part that corrects the motion by long-axis images."""
        if not self.can_guide or self.interpolator is None:
            return 0
        moving = self.interpolator.moving_evaluations(self.plan, in_region=self.preparation.region is not None)
        return self.num_frames * (moving + CORRECTING_EVALUATIONS * self.plan.num_generated)

    @property
    def can_guide(self) -> bool:
        """Whether there are long-axis images, and they may guide a model that moves slices."""
        return bool(
            self.num_views and self.settings.lax != "off" and self.interpolator is not None and self.interpolator.moves
        )

    def windows(self, interpolator: Interpolator) -> list[Window]:
        """Which frames the model makes together."""
        return windows_of(
            interpolator,
            self.plan,
            frames=self.num_frames,
            pixels=self.pixels,
            draws=self.draws,
            is_periodic=self.is_periodic,
        )


def plan_run(
    stack: Stack,
    settings: Settings,
    *,
    uncertainty: bool = False,
    models_folder: Path | None = None,
    num_frames: int | None = None,
    num_views: int = 0,
    source: str = "",
) -> RunPlan:
    """Check the input and the settings against each other and load the model.

    Args:
        stack: sparse SAX stack, or one frame of it.
        settings: what to do.
        uncertainty: whether the standard deviation over the draws is asked for.
        models_folder: where the manifest lies; None takes the bundled models.
        num_frames: number of frames of the whole input, where `stack` is one frame of it.
        num_views: long-axis images of the same heart.
        source: name of the input in error messages.

    Raises:
        InputError, SettingsError, WeightsError, ResourceError: as `upsample`.
    """
    if settings.method == "linear" and uncertainty:
        raise SettingsError("uncertainty", "Linear interpolation has no uncertainty.", "Choose calid or calid+.")
    settings, whole = settings.resolved(uncertainty=uncertainty), stack
    if num_frames is None:
        stack = _chosen_frames(stack, settings.frames)
        num_frames = stack.num_frames
    check_stack(stack, source=source)
    rows, columns = stack.voxels.shape[2:]
    box = None if isinstance(settings.roi, str) else checked_box(settings.roi, rows=rows, columns=columns)
    run = RunPlan(
        stack=stack,
        settings=settings,
        plan=plan_bisection(stack.num_slices, resolve_factor(settings.factor, stack)),
        preparation=plan_preparation(stack),
        num_frames=num_frames,
        num_views=0 if settings.align == "off" else num_views,
    )
    if settings.method == "linear":
        return run
    model, reason = choose_model(settings.model, frames=num_frames, models_folder=models_folder)
    interpolator = warm_interpolator(choose_device(settings.device), models_folder, model)
    is_periodic = interpolator.is_over_time and spans_the_cycle(stack)
    draws = num_draws(interpolator, settings, uncertainty=uncertainty)
    run = replace(run, interpolator=interpolator, model_choice=reason, is_periodic=is_periodic, draws=draws)
    if interpolator.estimates(settings.mode, settings.steps):
        return run
    if settings.roi == "heart":
        box = heart_box(whole)  # of all frames, so that a frame does not depend on which others are kept
    return run if box is None else replace(run, preparation=run.preparation.within(box))


def _log(run: RunPlan) -> None:
    """For those who want to know more: what makes the slices, and with which settings."""
    by = "linear interpolation"
    if run.interpolator is not None:
        by = f"{run.interpolator.entry.name} ({run.model_choice}) on {run.interpolator.device.reason}"
    acquired, made = run.plan.num_acquired, run.plan.num_slots
    LOG.info("%d slices to %d, %d frame(s), by %s", acquired, made, run.stack.num_frames, by)
    LOG.debug("%s", run.settings)


def _aligned(run: RunPlan, views: Mapping[str, Stack], watch: Watch) -> RunPlan:
    """The run with its slices' shifts told or, if asked for, undone; then its long-axis images may guide it."""
    if run.settings.align == "off":
        return run
    watch.stage = "comparing breath-holds"
    alignment = align(run.stack, views, tick=partial(watch.tick, run.comparing))
    if run.settings.align == "on":
        stack, alignment = moved(run.stack, alignment)
        run = replace(run, stack=stack.with_voxels(stack.voxels, provenance=run.stack.provenance))
        LOG.warning("%s", alignment.summary)
    elif alignment.is_noticeable:
        LOG.warning("%s To move them: --align on, or calid align.", alignment.summary)
    run = replace(run, alignment=alignment)
    if not run.can_guide:
        return run
    guide = guide_of(run.stack, views, alignment, run.preparation, run.plan)
    if guide is None:
        watch.tick(run.guiding)
    return replace(run, guide=guide)


def warm_interpolator(device: Device, models_folder: Path | None, name: str = DEFAULT_MODEL) -> Interpolator:
    """The model on a device, kept between runs; another folder in CALID_MODELS is another model."""
    return kept_interpolator(device, chosen_folder(models_folder), name)


@lru_cache(maxsize=2)
def kept_interpolator(device: Device, models_folder: Path, name: str) -> Interpolator:
    """What `warm_interpolator` keeps."""
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


def _dense_frames(run: RunPlan, watch: Watch) -> Iterator[Frame]:
    """Dense frames of a run, one after another."""
    if run.interpolator is None:
        return _linear_frames(run, watch)
    corrections = None
    if run.guide is not None:
        periodic = spans_the_cycle(run.stack)
        corrections = corrections_by(run.guide, run.interpolator, run.stack.voxels, watch, is_periodic=periodic)
    generation = Generation(
        run.interpolator, run.preparation, run.plan, run.settings, run.draws, watch, run.is_periodic, corrections
    )
    return generation.frames(run.stack.voxels)


def _linear_frames(run: RunPlan, watch: Watch) -> Iterator[Frame]:
    watch.stage = "interpolating"
    for images in run.stack.voxels:
        watch.tick(1)
        yield linear_slices(images, run.plan), None


def _planned(run: RunPlan, *, uncertainty: bool) -> Reconstruction:
    """What a run will make, with zeros that take no memory in place of its voxels."""
    stack, plan = run.stack, run.plan
    affine = stack.affine.copy()
    affine[:3, 2] /= plan.factor
    generated = np.ones(plan.num_slots, bool)
    generated[:: plan.factor] = stack.generated
    shape = (stack.num_frames, plan.num_slots, *stack.voxels.shape[2:])
    dense = replace(
        stack,
        voxels=np.broadcast_to(np.zeros((), stack.voxels.dtype), shape),
        affine=affine,
        generated=generated,
        provenance=_provenance(run),
    )
    if not uncertainty:
        return Reconstruction(dense, None)
    spread = dense.with_voxels(np.broadcast_to(np.float32(0), shape)).noted(quantity="standard deviation")
    return Reconstruction(dense, spread)


def _as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.rint(values).clip(limits.min, limits.max).astype(dtype)
    return values.astype(dtype)


def _provenance(run: RunPlan) -> dict[str, Any]:
    """What the input's history says of its acquisition, and all of this run; an earlier run's facts become `input`."""
    stack, settings, plan = run.stack, run.settings, run.plan
    history = dict(stack.provenance)
    earlier = {key: history.pop(key) for key in RUN_FACTS if key in history}
    return {
        **history,
        **({"input": earlier} if earlier else {}),
        "calid": __version__,
        "method": settings.method,
        "mode": settings.mode,
        "factor": plan.factor,
        "roi": run.preparation.box and list(run.preparation.box),
        "frames": settings.frames and list(settings.frames),
        "acquired_slices": plan.num_acquired - int(np.asarray(stack.generated).sum()),
        "acquired_spacing_mm": float(stack.spacing_mm[2]),
        "note": STANDING_NOTE,
        "align": settings.align,
        "lax": settings.lax,
        **({} if run.alignment is None else {PROVENANCE_KEY: run.alignment.as_json()}),
        **({} if run.guide is None else {GUIDED_KEY: [view.name for view in run.guide.views]}),
        **_model_provenance(run),
    }


def _model_provenance(run: RunPlan) -> dict[str, Any]:
    interpolator, settings = run.interpolator, run.settings
    if interpolator is None:
        return {}
    entry, device = interpolator.entry, interpolator.device
    over_time = {"model_base_sha256": entry.base_sha256, "is_periodic": run.is_periodic}
    return {
        "model": entry.name,
        "model_sha256": entry.sha256,
        **(over_time if interpolator.is_over_time else {}),
        "model_license": entry.license,
        "model_choice": run.model_choice,
        "steps": settings.steps,
        "seed": settings.seed,
        "draws": run.draws,
        "device": device.reason,
        "precision": str(device.autocast_dtype or torch.float32).removeprefix("torch."),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
    }
