"""Worker processes on this machine: each does one case after another, and a lost one is replaced.

A worker that dies (killed, out of memory, a crash in a library) costs the case it was at one attempt; a case that
loses its worker twice has failed. Workers end by themselves when the process that started them is gone, however it
went, so none is ever left at work behind its successor's back.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from calid.cohort.manifest import CohortCase
from calid.cohort.store import Store
from calid.cohort.work import Procedure, do_case
from calid.errors import Cancelled, ResourceError
from calid.run.logs import chosen_logging, set_up_logging

MAX_ATTEMPTS = 2
CANCEL_INTERVAL_S = 0.5
MAX_LOSSES = 10
"""So many workers lost in a row, without a case that ends, are the machine's fault and not the cases'."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share half of torch's state


@dataclass
class _Worker:
    """A process, the pipe to it, its number, and the case it is at."""

    process: Any
    pipe: Connection
    number: int
    case: CohortCase | None = None


def run_here(
    cases: Sequence[CohortCase],
    procedure: Procedure,
    out: Path,
    *,
    workers: int,
    threads: int,
    gpus: Sequence[str] = (),
    on_done: Callable[[str, str], None],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Do all cases.

    Args:
        cases: which ones.
        procedure: what to do with each.
        out: folder of the cohort.
        workers: number of processes.
        threads: number of processor threads that each may use.
        gpus: names of the GPUs that workers take in turn, as CUDA knows them; none leaves the choice to the settings.
        on_done: function given the name of each case as it ends, and "done" or "failed".
        is_cancelled: function asked twice a second whether to stop.

    Raises:
        Cancelled: if `is_cancelled` said so; what was under way is given up.
        ResourceError: "lost-workers" if one worker after another dies.
    """
    crew = _Crew(cases, procedure, out, gpus, on_done)
    with _few_threads(threads):
        try:
            crew.work(min(workers, len(cases)), is_cancelled)
        finally:
            crew.dismiss()


class _Crew:
    """Workers and the queue that they work off."""

    def __init__(
        self,
        cases: Sequence[CohortCase],
        procedure: Procedure,
        out: Path,
        gpus: Sequence[str],
        on_done: Callable[[str, str], None],
    ) -> None:
        self._procedure, self._out, self._gpus, self._on_done = procedure, out, gpus, on_done
        self._waiting, self._attempts = deque(cases), Counter[str]()
        self._workers: list[_Worker] = []
        self._losses = 0  # without a case that ended in between

    def work(self, count: int, is_cancelled: Callable[[], bool]) -> None:
        """Work the queue off with `count` workers."""
        self._workers += [self._hired(number) for number in range(count)]
        while self._waiting or any(worker.case for worker in self._workers):
            for worker in self._workers:
                if worker.case is None and self._waiting:
                    self._hand_next_to(worker)
            ends = [end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)]
            connection.wait(ends, timeout=CANCEL_INTERVAL_S)
            if is_cancelled():
                raise Cancelled
            for worker in list(self._workers):
                if worker.case is not None and (answer := _answer(worker)) is not None:
                    name, worker.case = worker.case.name, None
                    self._losses = 0
                    self._on_done(name, answer)
                elif not worker.process.is_alive():
                    self._lose(worker)

    def _hired(self, number: int) -> _Worker:
        ours, theirs = _SPAWN.Pipe()
        gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        name = f"calid-worker-{number + 1}"
        work = (theirs, self._procedure, self._out, gpu, chosen_logging())
        process = _SPAWN.Process(target=_work, args=work, daemon=True, name=name)
        process.start()
        theirs.close()
        return _Worker(process, ours, number)

    def _hand_next_to(self, worker: _Worker) -> None:
        """Give a worker its next case; that it died meanwhile is noticed by what follows."""
        worker.case = self._waiting.popleft()
        self._attempts[worker.case.name] += 1
        with suppress(OSError):
            worker.pipe.send(worker.case)

    def _lose(self, worker: _Worker) -> None:
        """Put a lost worker's case first in the queue again, or give it up; replace the worker if there is work."""
        worker.pipe.close()
        self._workers.remove(worker)
        case, code = worker.case, worker.process.exitcode
        if case is None:
            return  # it was idle, since nothing waits any more
        self._losses += 1
        if self._losses > MAX_LOSSES:
            message = f"{self._losses} workers ended one after another (exit code {code})."
            raise ResourceError("lost-workers", message, "Look at what they printed; choose fewer workers.")
        if self._attempts[case.name] < MAX_ATTEMPTS:
            self._waiting.appendleft(case)
        else:
            Store(self._out).fail(
                case.name,
                code="lost-worker",
                message=f"The process that worked on it ended {MAX_ATTEMPTS} times (exit code {code}).",
                remedy="Choose fewer workers if memory ran out, or run the case alone.",
            )
            self._on_done(case.name, "failed")
        self._workers.append(self._hired(worker.number))

    def dismiss(self) -> None:
        """End the workers: idle ones by a word, those at work (the run was stopped) at once."""
        for worker in self._workers:
            with suppress(OSError):
                if worker.case is None:
                    worker.pipe.send(None)
                else:
                    worker.process.terminate()
        for worker in self._workers:
            worker.process.join(timeout=10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _answer(worker: _Worker) -> str | None:
    """What a worker has said of its case, if it has; a dead one's last word counts."""
    try:
        return worker.pipe.recv() if worker.pipe.poll() else None
    except (EOFError, OSError):
        return None


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """While workers are started: what they inherit says how many threads their libraries may use."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- in the worker ----------------------------------------------------------------------------------------------------


def _work(pipe: Connection, procedure: Procedure, out: Path, gpu: str | None, logging: dict[str, Any]) -> None:
    """Do the cases that come through the pipe until it says None or breaks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides what it means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_up_logging(**logging)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with suppress(EOFError, OSError):
        while (case := pipe.recv()) is not None:
            pipe.send(do_case(case, procedure, out))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
