"""Resident memory of training's data against the number of subjects: `python Testing/benchmarks/training_memory.py`.

Makes synthetic prepared sets (noise; cines as those of UK Biobank, but smaller), draws batches of triplets and clips
in a process of its own, and prints its memory. "Own" is what the process has allocated (RssAnon); pages of the
sets' files that are mapped for a moment belong to the system, which takes them back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

SUBJECTS, BATCHES = (100, 300, 1000), 15
SHAPE = (10, 8, 96, 96)


def make(folder: Path, subjects: int) -> None:
    """A prepared set of noise."""
    from calid_training.prepare import INDEX_NAME

    (folder / "ukbb").mkdir(parents=True)
    noise = np.random.default_rng(0).random(SHAPE).astype(np.float16)
    entries = []
    for number in range(subjects):
        np.save(folder / "ukbb" / f"{number}-cine.npy", noise)
        entry = {"dataset": "ukbb", "patient": str(number), "series": "cine", "file": f"ukbb/{number}-cine.npy"}
        entry |= {"split": "validation" if number < 5 else "train", "shape": SHAPE, "annotated": (), "sha256": ""}
        entries.append(entry | {"spacing_mm": (1.8, 1.8, 8.0), "center": (47.5, 47.5), "closes": True})
    (folder / INDEX_NAME).write_text(json.dumps(entries))


def measure(folder: Path) -> dict[str, float]:
    """MB after drawing batches of both kinds."""
    from calid_training.cine_data import ClipData
    from calid_training.data import TripletData

    settings = {"prepared": folder, "datasets": ["ukbb"], "sizes": (64,), "size_weights": (1.0,), "batches": BATCHES}
    for data in (TripletData(**settings, batch_size=8), ClipData(**settings, batch_size=1, frames=8)):
        data.setup("fit")
        for _ in data.train_stream:
            pass
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, nargs="+", default=list(SUBJECTS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    for subjects in options.subjects:
        with TemporaryDirectory() as folder:
            make(Path(folder) / "prepared", subjects)
            command = [sys.executable, __file__, "--measure", str(Path(folder) / "prepared")]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        size = subjects * np.prod(SHAPE) * 2 / 2**20
        print(
            f"{subjects:5} subjects, {size:7,.0f} MB on disk: own memory {found['RssAnon']:.0f} MB, "
            f"mapped files {found['RssFile']:.0f} MB, peak {found['VmHWM']:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
