"""What long-axis images add as guides, quickly: `python Testing/benchmarks/left_out_views.py STUDY [--by itself]`.

Edge agreement of the motion's moved mean with each view (as planned, and placed where its own lines want it), gained by
guidance: by the four others, by the view itself, or by all, which bounds what any guidance can gain. Trials set
constants of the guidance: `--set GAP_MM=10 --set RADIUS_MM=75`. GATES.md of the training tells what was tried.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from calid.geometry import heart_center
from calid.images.study import read_study
from calid.method import guidance as method
from calid.method.paths import curved
from calid.run import guidance
from calid.run.alignment import align
from calid.run.progress import Watch
from calid.run.reconstruct import RunPlan, plan_run
from calid.run.settings import Settings
from calid.run.windows import spans_the_cycle
from calid.stack import Stack
from calid_benchmark.tables.guidance import displaced, edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--phases", type=int, default=2)
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--by", choices=("others", "itself", "all"), default="others")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    for name, value in (text.split("=") for text in options.set):
        for module in (module for module in (method, guidance) if hasattr(module, name)):
            setattr(module, name, float(value))
    study = read_study(options.study)
    frames = np.linspace(0, study.sax.num_frames, options.phases, endpoint=False).astype(int)
    sax = replace(study.sax, voxels=study.sax.voxels[frames], frame_times_ms=study.sax.frame_times_ms[frames])
    views = {view.name: view.stack for view in study.lax}
    run = plan_run(sax, Settings(factor=options.factor, roi="all"))
    places = {shift.name: np.array(shift.mm) for shift in align(sax, views).views}
    center = heart_center(sax, list(views.values()))

    def judged(dense: Stack, name: str) -> np.ndarray:
        return np.array([edges(dense, at, center) for at in (views[name], displaced(views[name], places[name]))])

    plain, gains = moved_mean(run, {}), []
    for name in views:
        chosen = {"others": views.keys() - {name}, "itself": {name}, "all": views.keys()}[options.by]
        guided = moved_mean(run, {one: views[one] for one in views if one in chosen})
        gains.append(judged(guided, name) - judged(plain, name))
        print(f"{name}: {gains[-1][0]:+.3f} / {gains[-1][1]:+.3f}", flush=True)
    print("mean: {:+.4f} / {:+.4f}".format(*np.mean(gains, axis=0)))


def moved_mean(run: RunPlan, views: Mapping[str, Stack]) -> Stack:
    """The dense stack of moved means, level by level, guided by some views or by none."""
    interpolator, plan, frames = run.interpolator, run.plan, run.stack.num_frames
    if interpolator is None:
        raise SystemExit("the model is not installed")
    corrections = None
    if views:
        guide = guidance.guide_of(run.stack, views, align(run.stack, views), run.preparation, plan)
        periodic = spans_the_cycle(run.stack)
        if guide is not None:
            watch = Watch(1)
            corrections = guidance.corrections_by(guide, interpolator, run.stack.voxels, watch, is_periodic=periodic)
    size = run.stack.voxels.shape[2:]
    acquired = run.preparation.prepare(run.stack.voxels.reshape(-1, *size))
    images = torch.zeros(frames, plan.num_slots, *acquired.shape[1:])
    images[:, :: plan.factor] = acquired.unflatten(0, run.stack.voxels.shape[:2])
    for number, level in enumerate(plan.levels, start=1):
        before, target, after = ([getattr(gap, side) for gap in level] for side in ("before", "target", "after"))
        pair = images[:, before].flatten(0, 1), images[:, after].flatten(0, 1)
        gap_mm = plan.distance_mm(level[0], run.preparation.slice_mm)
        fields = interpolator.fields(*pair, passes=interpolator.passes(number)).unflatten(0, (frames, len(target)))
        fields = curved(fields, gap_mm)
        told = [] if corrections is None else [corrections[:, target].flatten(0, 1)]
        moved = interpolator.moved(*pair, fields.flatten(0, 1), *told)
        images[:, target] = moved.mean(dim=1, keepdim=True).unflatten(0, (frames, len(target)))
    voxels = run.preparation.restore(images.flatten(0, 1)).reshape(frames, plan.num_slots, *size)
    affine = run.stack.affine.copy()
    affine[:3, 2] /= plan.factor
    return replace(run.stack, voxels=voxels, affine=affine, generated=np.arange(plan.num_slots) % plan.factor != 0)


if __name__ == "__main__":
    main()
