"""Odd lines for `calid serve`, and signals at any moment of a run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from calid.images.files import read_stack, write_stack
from fuzz_outcomes import REFUSED, RIGHT, SECONDS_PER_INPUT, WrongError
from fuzz_volumes import original, written

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".seq.nrrd", ".mha")


def lines_of_protocol(rng: random.Random, folder: Path) -> str:
    """Fifty odd lines for one `calid serve`: it answers the good request behind them, and ends with its input."""
    source = str(written(folder, ".nrrd"))
    lines = [_odd_line(rng, source, folder) for _ in range(50)]
    engine = subprocess.Popen(
        [sys.executable, "-m", "calid", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
    )
    ask = b'{"id": "last", "command": "check", "input": ' + json.dumps(source).encode() + b"}\n"
    try:
        events, said = engine.communicate(b"\n".join(lines) + b"\n" + ask, timeout=SECONDS_PER_INPUT)
    except subprocess.TimeoutExpired as late:
        engine.kill()
        engine.communicate()
        raise WrongError("the engine does not end when its input ends") from late
    answers = [json.loads(line) for line in events.decode("ascii").splitlines()]
    if engine.returncode != 0:
        raise WrongError(f"the engine ended with {engine.returncode}: {said[-300:].decode('utf-8', 'replace')}")
    last = [answer for answer in answers if answer.get("id") == "last"]
    if not last or last[-1]["event"] not in ("result", "cancelled"):
        raise WrongError(f"the good request got {last[-1:]}")
    internal = [answer for answer in answers if answer.get("code") == "internal"]
    if internal:
        raise WrongError(f"{len(internal)} answers are internal errors: {internal[0]['message'][:200]}")
    return REFUSED


def _odd_line(rng: random.Random, source: str, folder: Path) -> bytes:
    kinds = (None, True, 0, -1, 1.5, 1e9, "", "x" * 300, "\0", [], {}, [1, 2], [0, 1e9], "linear", "nan", {"a": [1]})
    if rng.random() < 0.2:
        return rng.choice((b"[" * 50_000, b"\xff\xfe\xe9", b"{}", b"[]", b"null", b"7", b'"x"', b"{", b'{"a":' * 3000,
                           rng.randbytes(200).replace(b"\n", b" "), b'{"command": "cancel"}', b" " * 1000))  # fmt: skip
    request = {
        "id": rng.choice(("a", 1, None)),
        "command": rng.choice(("check", "estimate", "upsample", "segment", "info", "cancel", "nonsense")),
        "input": source,
        "output": str(folder / "no-such-folder" / "o.nrrd"),
        "method": "linear",
    }
    names = (*request, "factor", "steps", "seed", "roi", "frames", "samples", "mode", "model", "device", "num_frames",
             "uncertainty", "overwrite", "models", "unknown", "frames_folder", "surfaces_folder")  # fmt: skip
    for _ in range(rng.choice((1, 1, 2, 3))):
        request[rng.choice(names)] = rng.choice(kinds)
    return json.dumps(request).encode()


def signals(rng: random.Random, folder: Path) -> str:
    """SIGTERM or SIGINT, one or several, at any moment of a run: a whole result or none, and nothing else."""
    source, out = folder / "in.nrrd", folder / "out"
    out.mkdir()
    stack = original(".seq.nrrd")
    write_stack(stack.with_voxels(np.tile(stack.voxels, (1, 1, 10, 10))), source)
    words = [
        "upsample",
        str(source),
        str(out / f"o{rng.choice(VOLUME_SUFFIXES)}"),
        "--method",
        "linear",
        "--factor",
        "16",
    ]
    run = subprocess.Popen([sys.executable, "-m", "calid", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    when = rng.random()
    deadline = time.monotonic() + SECONDS_PER_INPUT
    while when > 0.3 and run.poll() is None and not list(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.002)  # until it begins to write
    time.sleep(rng.random() * (0.3 if when > 0.3 else 3))
    for _ in range(rng.choice((1, 1, 3))):
        run.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
    _, said = run.communicate(timeout=SECONDS_PER_INPUT)
    left = [path.name for path in out.iterdir()]
    if left == [Path(words[2]).name]:  # it was faster
        read_stack(out / left[0])
        return RIGHT
    if left:
        raise WrongError(f"exit {run.returncode} leaves {left}")
    if run.returncode not in (130, -signal.SIGTERM, -signal.SIGINT) or b"unexpected" in said:
        raise WrongError(f"exit {run.returncode}: {said[-300:].decode('utf-8', 'replace')}")
    return REFUSED
