"""How far a run is, and how it is stopped."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from calid.errors import Cancelled
from calid.run.logs import is_json, is_quiet, json_line

LOG = logging.getLogger("calid")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `fraction` of 1, what it does, and the seconds it still needs (None while unknown)."""

    fraction: float
    stage: str
    seconds_left: float | None


class Watch:
    """Counts work, reports progress and stops the run when asked to.

    Args:
        total: work of the whole run, in any unit.
        progress: function told after every piece of work how far the run is.
        is_cancelled: function asked before every piece of work is counted whether to stop.
    """

    def __init__(
        self,
        total: int,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._stage = "starting"
        self._total, self._done, self._start = max(total, 1), 0, time.monotonic()
        self._progress, self._is_cancelled = progress, is_cancelled

    @property
    def stage(self) -> str:
        """What the run does; a new stage is logged with the seconds since the start."""
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        if stage != self._stage:
            LOG.info("%.1f s: %s", time.monotonic() - self._start, stage)
        self._stage = stage

    def tick(self, count: int) -> None:
        """Count finished work.

        Raises:
            Cancelled: if the run is to stop.
        """
        if self._is_cancelled is not None and self._is_cancelled():
            raise Cancelled
        self._done += count
        if self._progress is not None:
            fraction = min(self._done / self._total, 1.0)
            left = (time.monotonic() - self._start) * (1 - fraction) / fraction if fraction > 0 else None
            self._progress(Progress(fraction=fraction, stage=self.stage, seconds_left=left))


BAR = "{desc}{percentage:3.0f}%|{bar}| {remaining} left"  # tqdm puts a colon after the description
CASE_BAR = "{n_fmt} of {total_fmt} cases|{bar}| {remaining} left{postfix}"
LINE_SECONDS = 30.0
"""So often a run tells how far it is where no bar can move: in a log or a pipe."""


class _Lines(tqdm):
    """A plain line now and then instead of a bar."""

    def __init__(self, **options: Any) -> None:
        options["bar_format"] = options["bar_format"].replace("|{bar}|", ",")
        super().__init__(mininterval=LINE_SECONDS, delay=LINE_SECONDS, miniters=1, leave=False, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002 (tqdm's own)
        if msg is None and self.n > self.initial and sys.stderr is not None:
            said = str(self).strip()
            line = json_line("info", said, fraction=round(self.n / self.total, 4)) if is_json() else said
            print(line, file=sys.stderr, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Lines stay."""

    def close(self) -> None:
        self.disable = True
        super().close()


def _bar(*, is_silent: bool = False, **options: Any) -> tqdm:
    if is_silent or sys.stderr is None:
        return tqdm(disable=True, **options)
    return tqdm(**options) if sys.stderr.isatty() and not is_json() else _Lines(**options)


def progress_bar(*, is_silent: bool = False) -> tqdm:
    """A bar of 100 % on stderr, lines in a log, or nothing where that is asked for."""
    return _bar(is_silent=is_silent or is_quiet(), total=100, bar_format=BAR)


def case_bar(*, total: int, done: int) -> tqdm:
    """A bar of many cases, some of which were done before, with the time that the others will take."""
    return _bar(is_silent=is_quiet(), total=total, initial=done, bar_format=CASE_BAR)


def shown_on(bar: tqdm) -> Callable[[Progress], None]:
    """What moves the bar."""

    def show(progress: Progress) -> None:
        bar.set_description(progress.stage, refresh=False)
        bar.update(100 * progress.fraction - bar.n)

    return show
