"""How long a run will take on this machine: a few slices of its size are made, and the rest is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from calid.method.bisection import plan_bisection
from calid.method.guidance import GAP_MM, Lines, corrected
from calid.run.batches import Interpolator
from calid.run.generation import Generation
from calid.run.guidance import SAMPLES
from calid.run.intersections import RADIUS_MM, Image, images_of, landscape
from calid.run.progress import Watch
from calid.run.reconstruct import RunPlan

SLICES, FRAMES, STEPS = 3, 4, 8


def expected_seconds(run: RunPlan, interpolator: Interpolator, watch: Watch) -> float:
    """Seconds of the whole run, the comparison with long-axis images and the guidance by them included.

    Args:
        run: the plan, its stack as many frames as are at hand.
        interpolator: the model.
        watch: what is asked at every network evaluation whether to stop.
    """
    evaluation = _seconds_per_evaluation(run, interpolator, watch)
    seconds = run.generating * evaluation
    frames = run.stack.num_frames
    if run.num_views:
        pairs = run.num_views * run.plan.num_acquired
        seconds += pairs * run.num_frames * _seconds_taken(lambda: _compare(run)) / frames
    if run.can_guide:
        moving = interpolator.moving_evaluations(run.plan, in_region=run.preparation.region is not None)
        correcting = run.plan.num_generated * _seconds_taken(lambda: _correct(run, watch)) / frames
        seconds += run.num_frames * (moving * evaluation + correcting)
    return seconds


def _seconds_per_evaluation(run: RunPlan, interpolator: Interpolator, watch: Watch) -> float:
    """What a unit of `RunPlan.generating` takes, by a small run that has all parts of the whole one."""
    slices, frames = min(SLICES, run.plan.num_acquired), FRAMES if interpolator.is_over_time else 1
    settings = replace(run.settings, steps=min(run.settings.steps, STEPS))
    trial = replace(run, settings=settings, plan=plan_bisection(slices, 2), draws=1, num_frames=frames)
    generation = Generation(interpolator, trial.preparation, trial.plan, settings, 1, watch, trial.is_periodic)
    voxels = run.stack.voxels[[0] * frames, :slices]
    return _seconds_taken(lambda: list(generation.frames(voxels))) / trial.generating


def _seconds_taken(work: Callable[[], object]) -> float:
    """What it takes the second time; the first is slow."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _compare(run: RunPlan) -> None:
    """A slice with an image of its size and frames that stands upright on it."""
    one = images_of(run.stack)[0]
    row, column, normal = (one.affine[:3, 0], one.affine[:3, 1], one.directions_lps[:, 2])
    upright = one.affine.copy()
    upright[:3, 1] = normal * np.linalg.norm(column)
    middle = one.affine[:3, :3] @ [one.pixels.shape[2] / 2, one.pixels.shape[1] / 2, 0] + one.affine[:3, 3]
    upright[:3, 3] = middle - row * one.pixels.shape[2] / 2 - upright[:3, 1] * one.pixels.shape[1] / 2
    landscape(one, Image(one.pixels, upright, one.thickness_mm, one.frame_times_ms, one.beat_ms), middle)


def _correct(run: RunPlan, watch: Watch) -> None:
    """One slice between two, in all frames at hand, by lines through its middle."""
    images = run.preparation.prepare(run.stack.voxels[:, :2].reshape(-1, *run.stack.voxels.shape[2:]))
    before, after = images.unflatten(0, (-1, 2)).split(1, dim=1)
    rows, columns = before.shape[-2:]
    reach = RADIUS_MM / float(np.mean(run.stack.spacing_mm[:2]))
    angles = torch.arange(run.num_views) * torch.pi / run.num_views
    along = torch.linspace(-1, 1, int(2 * reach))[:, None]
    ways = torch.stack([angles.sin(), angles.cos()], dim=-1)
    points = (torch.tensor([rows, columns]) / 2 + along[:, None] * reach * ways).flatten(0, 1)
    lines = Lines(
        points[None, :, None].expand(-1, -1, SAMPLES, -1),
        torch.zeros(len(before), 1, len(points)),
        torch.ones(1, len(points)),
    )
    fields = torch.zeros(len(before), 1, 4, rows, columns)
    with torch.inference_mode():
        pair = before[:, :, 0], after[:, :, 0]
        corrected(*pair, fields, lines, gap_mm=GAP_MM, is_periodic=False, tick=lambda: watch.tick(0))
