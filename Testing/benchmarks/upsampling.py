"""Seconds and peak memory of upsampling: `python Testing/benchmarks/upsampling.py [--quick | --cine]`.

Every line runs in a process of its own (peak memory is a process's) after one warm-up; model loading is not counted.
Times on shared machines vary: compare lines of one run, not runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BASE = {"slices": 11, "frames": 1, "steps": 8, "pixels": 128, "factor": 8}
BASE |= {"method": "calid", "mode": "detail", "model": "auto"}
CINE = "25 frames"
QUESTIONS: dict[str, list[dict]] = {
    "11 slices to 81": [{}, {"method": "calid+"}, {"mode": "fidelity"}, {"method": "linear"}],
    CINE: [
        {"frames": 25, "method": method, "model": model} for method in ("calid", "calid+") for model in ("2d", "2d+t")
    ],
    "steps": [{"steps": steps} for steps in (1, 2, 4, 16)],
    "slices": [{"slices": slices} for slices in (6, 21)],
    "frames": [{"frames": frames, "model": "2d"} for frames in (2, 4)],
    "pixels": [{"pixels": pixels} for pixels in (96, 192, 256)],
}


def measure(case: dict, models: Path | None) -> dict[str, float]:
    """Upsample noise of the asked size once warm; seconds and peak resident memory of this process in GB."""
    from calid.run.reconstruct import Settings, upsample
    from calid.stack import Stack

    shape = (case["frames"], case["slices"], case["pixels"], case["pixels"])
    voxels = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    stack = Stack(voxels, np.diag([1.8, 1.8, 8.0, 1.0]), np.arange(case["frames"]) * 30.0)
    settings = {key: case[key] for key in ("factor", "method", "mode", "model", "steps")}
    upsample(stack.frames(0, 1), Settings(**settings | {"factor": 2, "steps": 1}), models_folder=models)  # warm
    start = time.perf_counter()
    upsample(stack, Settings(**settings), models_folder=models)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the first question")
    parser.add_argument("--cine", action="store_true", help="only 25 frames, frame by frame and together")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one), options.models)))
        return 0
    rows = []
    for question, cases in ({CINE: QUESTIONS[CINE]} if options.cine else QUESTIONS).items():
        for changes in cases:
            command = [sys.executable, __file__, "--one", json.dumps(BASE | changes)]
            if options.models:
                command += ["--models", str(options.models)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {"question": question, **changes, **json.loads(done.stdout.splitlines()[-1])}
            row["times_the_first"] = row["seconds"] / rows[0]["seconds"] if rows else 1.0
            rows.append(row)
            asked = ", ".join(f"{key} {value}" for key, value in changes.items()) or "CaLID, 8 steps"
            print(
                f"{question:>16} | {asked:<40} | {row['seconds']:7.1f} s | x{row['times_the_first']:5.2f} "
                f"| {row['peak_gb']:.2f} GB",
                flush=True,
            )
        if options.quick:
            break
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
