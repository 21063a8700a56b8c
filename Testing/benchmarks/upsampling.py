"""Seconds and peak memory of upsampling: `python Testing/benchmarks/upsampling.py [--quick | --cine | --clinical]`.

Every line runs in a process of its own (peak memory is a process's) after one warm-up; model loading is not counted.
`--avx2` asks what a processor without AVX-512 and bfloat16 would take, `--busy N` keeps N cores busy with other work
meanwhile. Times on shared machines vary: compare lines of one run, not runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

BASE = {"slices": 11, "frames": 1, "steps": 2, "pixels": 128, "factor": 8, "roi": "heart"}
BASE |= {"method": "calid", "mode": "detail", "model": "auto"}
CINE, CLINICAL = "25 frames", "256 x 256, 30 frames"
QUESTIONS: dict[str, list[dict]] = {
    "11 slices to 81": [{}, {"method": "calid+"}, {"mode": "fidelity"}, {"method": "linear"}],
    CINE: [
        {"frames": 25, "method": method, "model": model} for method in ("calid", "calid+") for model in ("2d", "2d+t")
    ],
    CLINICAL: [{"frames": 30, "pixels": 256, "method": "calid+", "roi": roi} for roi in ("heart", "all")],
    "steps": [{"steps": steps} for steps in (1, 4, 16)],
    "slices": [{"slices": slices} for slices in (6, 21)],
    "frames": [{"frames": frames, "model": "2d"} for frames in (2, 4)],
    "pixels": [{"pixels": pixels} for pixels in (96, 192, 256)],
}


PIXEL_MM = 1.8, 1.4  # of small and of large images
RADIUS_MM = 35.0
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def beating_disk(shape: tuple[int, ...], pixel_mm: float) -> np.ndarray:
    """(T, Z, Y, X) a bright disk in noise, a third smaller in the middle of the beat."""
    voxels = np.random.default_rng(0).integers(0, 300, shape).astype(np.int16)
    place = (np.arange(shape[-1]) - shape[-1] / 2) * pixel_mm
    distance = np.hypot(place[:, None], place)
    for frame, images in enumerate(voxels):
        images[:, distance < RADIUS_MM * (1 - np.sin(np.pi * frame / shape[0]) / 3)] += 600
    return voxels


def measure(case: dict, models: Path | None) -> dict[str, float]:
    """Upsample a beating disk in noise once warm; seconds and peak resident memory of this process in GB."""
    from calid.run.reconstruct import Settings, upsample
    from calid.stack import Stack

    if os.environ.items() >= AVX2_ALONE.items():
        import torch

        torch.cpu._is_avx512_bf16_supported = bool  # the processor itself still has it; the engine asks this

    shape = (case["frames"], case["slices"], case["pixels"], case["pixels"])
    pixel_mm = PIXEL_MM[case["pixels"] > 128]
    stack = Stack(beating_disk(shape, pixel_mm), np.diag([pixel_mm, pixel_mm, 8.0, 1.0]), np.arange(shape[0]) * 30.0)
    settings = {key: case[key] for key in ("factor", "method", "mode", "model", "steps", "roi")}
    upsample(stack.frames(0, 1), Settings(**settings | {"factor": 2, "steps": 1}), models_folder=models)  # warm
    start = time.perf_counter()
    upsample(stack, Settings(**settings), models_folder=models)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2}


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many other processes that never rest, as long as the context lasts."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the first question")
    parser.add_argument("--cine", action="store_true", help="only 25 frames, frame by frame and together")
    parser.add_argument("--clinical", action="store_true", help="only a clinical cine, in the heart and everywhere")
    parser.add_argument("--avx2", action="store_true", help="neither AVX-512 nor bfloat16")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N processes that never rest (0)")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one), options.models)))
        return 0
    environment = os.environ | (AVX2_ALONE if options.avx2 else {})
    rows = []
    only = [name for name, asked in ((CINE, options.cine), (CLINICAL, options.clinical)) if asked]
    for question in only or QUESTIONS:
        cases = QUESTIONS[question]
        for changes in cases:
            command = [sys.executable, __file__, "--one", json.dumps(BASE | changes)]
            if options.models:
                command += ["--models", str(options.models)]
            with busy(options.busy):
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            row = {"question": question, **changes, **json.loads(done.stdout.splitlines()[-1])}
            row["times_the_first"] = row["seconds"] / rows[0]["seconds"] if rows else 1.0
            rows.append(row)
            asked = ", ".join(f"{key} {value}" for key, value in changes.items()) or "CaLID, 2 steps"
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
