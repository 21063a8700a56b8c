"""Seconds that alignment and guidance of a heart take: `python Testing/benchmarks/guiding.py STUDY [--phases N]`.

STUDY is a DICOM folder with short-axis and long-axis cines. Upsampling itself and the loading of the model are not
counted. Times on shared machines vary; the processor's seconds vary less.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from calid.images.study import read_study
from calid.run.alignment import align
from calid.run.guidance import corrections_by, guide_of
from calid.run.progress import Watch
from calid.run.reconstruct import plan_run
from calid.run.settings import Settings
from calid.run.windows import spans_the_cycle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--phases", type=int, default=25)
    parser.add_argument("--factor", type=int, default=8)
    options = parser.parse_args()
    study = read_study(options.study)
    frames = np.unique(np.linspace(0, study.sax.num_frames - 1, options.phases).astype(int))
    sax = replace(study.sax, voxels=study.sax.voxels[frames], frame_times_ms=study.sax.frame_times_ms[frames])
    views = {view.name: view.stack for view in study.lax}
    run = plan_run(sax, Settings(factor=options.factor))
    if run.interpolator is None:
        raise SystemExit("the model is not installed")
    clocks = [_clocks()]
    found = align(sax, views)
    clocks.append(_clocks())
    guide = guide_of(sax, views, found, run.preparation, run.plan)
    if guide is None:
        raise SystemExit("no view crosses the slices")
    watch = Watch(1)
    corrections_by(guide, run.interpolator, sax.voxels, watch, is_periodic=spans_the_cycle(sax))
    clocks.append(_clocks())
    print(f"{len(frames)} phases, {run.plan.num_generated} new slices each, load {os.getloadavg()[0]:.1f}")
    for name, (wall, processor) in zip(("alignment", "guidance"), np.diff(clocks, axis=0), strict=True):
        print(f"{name}: {wall:.1f} s of the clock, {processor:.1f} s of processors")


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


if __name__ == "__main__":
    main()
