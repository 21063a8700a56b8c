"""Throughput of `calid cohort` against a call for each heart: `python Testing/benchmarks/cohort.py [--cases N]`.

N subjects like those of the UK Biobank (11 slices; made from the bundled heart, one dose of noise for each) go through

- a call of `calid upsample` and one of `calid segment --json` for each subject, as a script in a shell would do it;
- `calid cohort` with one worker process, which loads the models once;
- `calid cohort` with as many workers as there are cores, if there are several.

All upsample, label and measure, and keep the dense stack and the labels. Printed are the seconds of each, their ratio,
the bytes of what is kept, and what 50,000 subjects of 50 frames take: hours of a core and terabytes. Times on shared
machines vary: compare lines of one run. `load` is the number of processes that wanted a core when it began.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SUBJECTS, FRAMES = 50_000, 50
"""The UK Biobank's short-axis cines."""


def make_subjects(folder: Path, count: int, frames: int) -> list[Path]:
    """Write `count` cines of `frames` frames and 11 slices, 8.9 mm apart."""
    from calid.images.files import read_stack, write_stack
    from calid.report.demo import CASE_FOLDER, SAX_NAME
    from calid.run.reconstruct import upsample
    from calid.run.settings import Settings

    sax = read_stack(CASE_FOLDER / SAX_NAME).frames(0, frames)
    eleven = upsample(sax, Settings(factor=2, method="linear")).stack
    folder.mkdir()
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 2, eleven.voxels.shape)
        voxels = np.clip(eleven.voxels + noise, 0, 4095).astype(np.int16)
        paths.append(folder / f"subject{number:02d}.seq.nrrd")
        acquired = np.zeros(eleven.num_slices, bool)
        write_stack(eleven.with_voxels(voxels, generated=acquired, provenance={}), paths[-1])
    return paths


def seconds_of(*commands: list[str]) -> float:
    """Wall time of commands of `calid`, one after the other."""
    started = time.monotonic()
    for command in commands:
        subprocess.run([sys.executable, "-m", "calid", "-q", *command], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def calls(path: Path, folder: Path, options: list[str]) -> list[list[str]]:
    """What a script in a shell would call for one subject."""
    dense = folder / path.name
    labels = folder / path.name.replace(".seq.nrrd", ".seg.nrrd")
    return [
        ["upsample", str(path), str(dense), *options],
        ["segment", str(dense), str(labels), "--json", str(labels.with_suffix(".json"))],
    ]


def cohort(subjects: Path, out: Path, workers: int, options: list[str]) -> float:
    """Seconds of `calid cohort` over all subjects."""
    keep = ["--keep", "dense", "labels", "--no-trust"]
    return seconds_of(["cohort", str(subjects), str(out), "--workers", str(workers), *keep, *options])


def bytes_of(out: Path, pattern: str) -> float:
    """Mean size of a kind of file of all cases."""
    return float(np.mean([path.stat().st_size for path in out.glob(f"cases/*/{pattern}")]))


def main() -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4, help="number of subjects (4)")
    parser.add_argument("--frames", type=int, default=10, help="frames of each, at most 25 (10)")
    parser.add_argument("--factor", default="8", help="slices for every gap (8)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    options = ["--factor", chosen.factor]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_subjects(folder / "in", chosen.cases, chosen.frames)
        (folder / "calls").mkdir()
        took = {"calls": sum(seconds_of(*calls(path, folder / "calls", options)) for path in paths)}
        took["cohort, 1 worker"] = cohort(folder / "in", folder / "one", 1, options)
        if cores > 1:
            took[f"cohort, {cores} workers"] = cohort(folder / "in", folder / "all", cores, options)
        kept = {kind: bytes_of(folder / "one", kind) for kind in ("dense.*", "labels.*", "figures.json")}
        with (folder / "one" / "cohort.csv").open(encoding="utf-8", newline="") as file:
            model = next(csv.DictReader(file))["model"]
    images = chosen.cases * chosen.frames
    best = min(took.values())
    core_hours = SUBJECTS * FRAMES * best * cores / images / 3600
    asked = f"{chosen.cases} subjects of {chosen.frames} frames, factor {chosen.factor}, {model}"
    print(f"{asked}; {cores} cores; load {load:.1f}")
    for way, seconds in took.items():
        print(f"{way:20} {seconds:8.1f} s  {seconds / images:6.2f} s/frame  ratio {took['calls'] / seconds:5.2f}")
    print(f"{SUBJECTS} subjects of {FRAMES} frames: {core_hours:,.0f} core hours")
    for keep, kinds in (("everything", list(kept)), ("labels", list(kept)[1:]), ("figures only", list(kept)[2:])):
        # figures grow less than with the frames, stacks and labels as they do
        size = sum(kept[kind] * (1 if kind.endswith("json") else FRAMES / chosen.frames) for kind in kinds)
        print(f"  keep {keep:13} {size / 1e6:8.2f} MB a subject, {size * SUBJECTS / 1e12:6.3f} TB in all")
    if chosen.json:
        found = {"seconds": took, "kept_bytes": kept, "cores": cores, "load": load, "core_hours": core_hours}
        chosen.json.write_text(json.dumps({**vars(chosen), **found, "json": None}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
