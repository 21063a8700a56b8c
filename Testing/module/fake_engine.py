"""An engine for tests of what a real one does only by accident: it crashes, hangs, prints rubbish, starts slowly.

Run as `python fake_engine.py BEHAVIOR`; it speaks the protocol of `calid serve` as far as its behavior lets it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def say(event: str, **values) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def answer(behavior: str, request: dict) -> None:
    """Act out one request."""
    identity = request.get("id")
    if behavior == "crash":
        print("Traceback: RuntimeError: something broke", file=sys.stderr, flush=True)
        sys.exit(3)
    if behavior == "kill":
        os.kill(os.getpid(), 9)
    if behavior == "memory":
        print("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", file=sys.stderr, flush=True)
        sys.exit(1)
    if behavior == "rubbish":
        print("Downloading ... 100%", flush=True)
        print('{"event": 7}', flush=True)
        print("\udce4\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), flush=True)
    if behavior in ("hang", "child"):
        say("progress", id=identity, fraction=0.1, stage="working", seconds_left=100.0)
        time.sleep(600)
    say("progress", id=identity, fraction=0.5, stage="half", seconds_left=1.0)
    say("result", id=identity, seconds=0.1)


def launch(*arguments: str) -> int:
    """Be what PythonSlicer is, a launcher: of a child that was killed it tells neither signal nor exit code."""
    child = subprocess.run([sys.executable, __file__, *arguments], check=False)
    if child.returncode >= 0:
        return child.returncode
    print(f"error: [{sys.executable}] exit abnormally - Report the problem.", file=sys.stderr, flush=True)
    return 1


def main() -> int:
    behavior = sys.argv[1]
    if behavior == "launched":
        return launch(*sys.argv[2:])
    if behavior == "missing":
        print("ModuleNotFoundError: No module named 'torch'", file=sys.stderr, flush=True)
        return 1
    if behavior == "slow":
        time.sleep(600)
    if behavior == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(sys.argv[2]).write_text(f"{os.getpid()} {child.pid}", encoding="ascii")
    say("ready", protocol=1, version="0")
    for line in sys.stdin:
        request = json.loads(line)
        if request["command"] == "shutdown":
            break
        if request["command"] != "cancel":
            answer(behavior, request)
    return 0


if __name__ == "__main__":
    sys.exit(main())
