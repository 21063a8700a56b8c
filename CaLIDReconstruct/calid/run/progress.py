"""How far a run is, and how it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from calid.errors import Cancelled


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
        progress: told after every piece of work.
        is_cancelled: asked before every piece of work is counted.
    """

    def __init__(
        self,
        total: int,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.stage = "starting"
        self._total, self._done, self._start = max(total, 1), 0, time.monotonic()
        self._progress, self._is_cancelled = progress, is_cancelled

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


BAR = "{desc}: {percentage:3.0f}%|{bar}| {remaining} left"


def progress_bar() -> tqdm:
    """A bar of 100 % on stderr; silent where stderr is not a terminal."""
    return tqdm(total=100, disable=None, bar_format=BAR)


def shown_on(bar: tqdm) -> Callable[[Progress], None]:
    """What moves the bar."""

    def show(progress: Progress) -> None:
        bar.set_description(progress.stage, refresh=False)
        bar.update(100 * progress.fraction - bar.n)

    return show
