"""What it adds that walls run on through the gaps beside: `python Testing/benchmarks/curved_paths.py PREPARED`.

Of every prepared stack, each FACTOR-th slice is kept, and CaLID+ makes those between as `calid upsample` does, with
straight paths and with curved ones. Printed are the means over the slices that were left out, and p of Wilcoxon's
signed ranks over these slices. GATES.md of the training tells what was found.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from calid.heart.medformer import features
from calid.method import paths
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import Settings
from calid_benchmark import metrics
from calid_benchmark.segmenters import judging_segmenter, network_of
from calid_benchmark.tables.questions import StackQuestion, questions
from calid_benchmark.ways import generated
from calid_training.prepare import load_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--datasets", nargs="+", default=["chla"])
    parser.add_argument("--split", default="validation")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--straight-mm", nargs="+", type=float, default=[paths.STRAIGHT_MM], metavar="MM")
    options = parser.parse_args()
    asked = questions(load_cases(options.prepared, datasets=options.datasets, split=options.split))
    for spacing_mm in sorted({round(question.spacing_mm) for question in asked}):
        members = [question for question in asked if round(question.spacing_mm) == spacing_mm]
        print(f"slices {spacing_mm} mm apart, 1 of {options.factor} kept; paths half as curved at", flush=True)
        straight = None
        for millimeters in (0.0, *options.straight_mm):
            paths.STRAIGHT_MM = max(millimeters, 1e-9)  # 0: no gap is so near that its path is curved
            made = [judged(question, start, options.factor) for question in members for start in range(options.factor)]
            found = np.concatenate([one for one in made if one is not None])
            psnr, fd = found.mean(axis=0)
            line = f"{millimeters:g} mm: {len(found)} slices, PSNR {psnr:.3f} dB, feature distance {fd:.4f}"
            if straight is None:
                straight = found
            else:
                p = (metrics.paired_p(list(found[:, column]), list(straight[:, column])) for column in range(2))
                line += ", p {:.0e} and {:.0e}".format(*(math.nan if one is None else one for one in p))
            print(line, flush=True)


def judged(question: StackQuestion, start: int, factor: int) -> np.ndarray | None:
    """(slices, PSNR and feature distance) of what is made between every factor-th slice; None where two are left."""
    kept = question.images[start::factor]
    if len(kept) < 3:
        return None
    interpolator = warm_interpolator(choose_device("cpu"), None)
    slice_mm = factor * question.spacing_mm
    dense = generated(interpolator, kept[None], factor, Settings(factor=factor), slice_mm=slice_mm)[0][0]
    between = np.arange(len(dense)) % factor > 0
    made, truth = dense[between].clip(0, 1), question.images[start:][: len(dense)][between]
    extract = partial(features, network_of(judging_segmenter(choose_device("cpu"), None)))
    with torch.inference_mode():
        seen = [extract(torch.from_numpy(np.ascontiguousarray(side, np.float32))[:, None]) for side in (truth, made)]
    return np.stack([metrics.psnr(truth, made), metrics.feature_distance(*seen)], axis=1)


if __name__ == "__main__":
    main()
