"""One step of a recipe as a program of its own, which ends when the recipe ends.

A recipe that is killed (SIGKILL, out of memory) cannot end its step. Left to itself, a training would go on and write
into the run folder that the next start of the recipe trains in.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from importlib.metadata import EntryPoint, entry_points

WATCH_SECONDS = 0.5


def installed(name: str) -> EntryPoint | None:
    """The console script of this name, such as "calid-train", or None where it is not installed."""
    return next(iter(entry_points(group="console_scripts", name=name)), None)


def end_with_parent() -> None:
    """Watch from a thread whether the process that started this one is still there; without it, end at once.

    On Windows a process keeps the number of its parent, and goes on by itself.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def main() -> int:
    """Run the program that the first argument names with the other arguments."""
    end_with_parent()
    program = installed(sys.argv[1])
    if program is None:
        print(f"{sys.argv[1]} is not installed", file=sys.stderr)
        return 2
    return program.load()(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
