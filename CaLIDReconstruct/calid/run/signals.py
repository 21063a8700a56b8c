"""How a command ends when it is asked to from outside."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SAME_WISH_S = 1.0


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP where nobody ignores it, end what runs as Ctrl-C does: half-written files are taken away.

    A second signal within a moment is the same wish, and does not interrupt that.
    """
    last = -math.inf

    def end(*_: object) -> None:
        nonlocal last
        is_new, last = time.monotonic() - last > SAME_WISH_S, time.monotonic()
        if is_new:
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) in usual}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Once it ends, nothing that still comes may end it in another way.
            signal.signal(number, handler if last == -math.inf else signal.SIG_IGN)
