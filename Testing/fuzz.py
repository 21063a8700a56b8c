"""Thousands of damaged and odd inputs: each must be refused in one clear line or be read right.

    python Testing/fuzz.py                           all kinds, about 5,000 inputs, some minutes
    python Testing/fuzz.py --kinds nrrd dicom        some of them
    python Testing/fuzz.py --share 0.02              fewer of each
    python Testing/fuzz.py --kinds nrrd --only 271   one input again, with its traceback

Every input follows from its kind and its number alone, so a fault can be had again. Kinds of input: volume files
damaged in their bytes and in the fields of their headers, compressed voxels without end, DICOM studies with odd
elements and damaged files, lines for `calid serve`, and signals at any moment of a run. What is read is compared with
an independent reader (nibabel, pynrrd, a few lines of numpy for MetaImage, the written pixels for DICOM), voxel by
voxel at its place in the patient. Workers are processes: a crash or a hang is a fault of the input they were given.

Printed for each kind: tried, refused well, read right, read in part (and said so), faults.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from calid.errors import CalidError
from fuzz_outcomes import FAULT, IN_PART, REFUSED, RIGHT, SECONDS_PER_INPUT, WrongError
from fuzz_processes import lines_of_protocol, signals
from fuzz_studies import dicom
from fuzz_volumes import endless, volume

RESIDENT_LIMIT_BYTES = 64 << 20  # by which one small input may make the process grow


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        run: makes one in a folder and judges what becomes of it; raises `CalidError` where it is refused.
        count: of a whole run.
        each: how many inputs one of them is.
    """

    run: Callable[[random.Random, Path], str]
    count: int
    each: int = 1


KINDS = {
    "nii": Kind(volume(".nii"), 700),
    "nii.gz": Kind(volume(".nii.gz"), 700),
    "nrrd": Kind(volume(".nrrd"), 700),
    "seq.nrrd": Kind(volume(".seq.nrrd"), 700),
    "mha": Kind(volume(".mha"), 700),
    "endless": Kind(endless, 60),
    "dicom": Kind(dicom, 900),
    "lines": Kind(lines_of_protocol, 12, each=50),
    "signals": Kind(signals, 16),
}


def work(kind: str, numbers: range) -> None:
    """Judge inputs in this process; one line of JSON before and one after each."""
    for number in numbers:
        print(json.dumps({"begun": number}), flush=True)
        print(
            json.dumps({"number": number, **dict(zip(("outcome", "words"), judged(kind, number), strict=True))}),
            flush=True,
        )


def judged(kind: str, number: int, *, loud: bool = False) -> tuple[str, str]:
    """The outcome for one input, and in words what is wrong if it is a fault."""
    rng = random.Random(f"{kind} {number}")
    with tempfile.TemporaryDirectory(prefix="calid-fuzz-") as name:
        folder, said = Path(name), StringIO()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with redirect_stdout(StringIO()), redirect_stderr(said):
                outcome = KINDS[kind].run(rng, folder)
        except CalidError as error:
            text = str(error)
            bad = "\n" in text or len(text) > 1200 or "0x" in text or not error.remedy
            return (FAULT, f"badly told: {text[:300]}") if bad else (REFUSED, error.code)
        except WrongError as error:
            return FAULT, str(error)
        except Exception as error:  # noqa: BLE001 (this is what is looked for)
            if loud:
                traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            return FAULT, f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        if grown > RESIDENT_LIMIT_BYTES and number:
            return FAULT, f"the process grew by {grown >> 20} MB"
        left = [path.name for path in folder.rglob(".calid-*")]
        return (FAULT, f"left {left}") if left else (outcome, "")


def results(kind: str, count: int) -> Iterator[tuple[int, str, str]]:
    """The outcomes of a kind's inputs, from a worker that is started anew when one kills it."""
    next_number = 0
    while next_number < count:
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", kind, str(next_number), str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(worker, lines), daemon=True).start()
        while next_number < count:
            try:
                line = lines.get(timeout=2 * SECONDS_PER_INPUT)
            except queue.Empty:
                worker.kill()
                yield next_number, FAULT, "hangs"
                next_number += 1
                break
            if not line:
                worker.wait()
                said = worker.stderr.read()[-200:] if worker.stderr else ""
                yield next_number, FAULT, f"the process ends with {worker.returncode}: {said}"
                next_number += 1
                break
            event = json.loads(line)
            if "outcome" in event:
                yield event["number"], event["outcome"], event["words"]
                next_number = event["number"] + 1
        worker.kill()
        worker.wait()


def _pump(worker: subprocess.Popen, lines: queue.Queue) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put("")


def main(arguments: list[str] | None = None) -> int:
    """Run, print the counts, and return 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=" ".join(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of a whole run (default 1)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one input of the kinds, with its traceback")
    parser.add_argument("--shown", type=int, default=20, help="faults of a kind that are printed (default 20)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker[0], range(int(options.worker[1]), int(options.worker[2])))
        return 0
    if options.only is not None:
        for kind in options.kinds:
            print(kind, options.only, *judged(kind, options.only, loud=True))
        return 0
    return 1 if _table(options) else 0


def _table(options: argparse.Namespace) -> int:
    """Run the kinds and print their counts; how many faults there are."""
    print(
        f"{'kind':10} {'tried':>6} {'refused well':>13} {'read right':>11} {'in part':>8} {'faults':>7} {'seconds':>8}"
    )
    total: Counter[str] = Counter()
    for kind in options.kinds:
        begun, each = time.monotonic(), KINDS[kind].each
        found: Counter[str] = Counter()
        faults = []
        for number, outcome, words in results(kind, max(1, round(options.share * KINDS[kind].count))):
            found[outcome] += each if outcome != FAULT else 1
            if outcome == FAULT:
                faults.append(f"  {kind} {number}: {words}")
        _print_row(kind, found, time.monotonic() - begun)
        print(*faults[: options.shown], sep="\n" if faults else "", end="\n" if faults else "", flush=True)
        total += found
    _print_row("all", total, 0)
    return total[FAULT]


def _print_row(kind: str, found: Counter[str], seconds: float) -> None:
    tried = sum(found.values())
    print(
        f"{kind:10} {tried:6} {found[REFUSED]:13} {found[RIGHT]:11} {found[IN_PART]:8} {found[FAULT]:7} {seconds:8.0f}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
