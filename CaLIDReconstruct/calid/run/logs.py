"""What is said on stderr, and how: plain sentences for people, lines of JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}
_LOGGERS = ("calid", "py.warnings")  # the second has what libraries warn of, once logging captures it


def json_line(level: str, message: str, *, logger: str = "calid", created: float | None = None, **more: Any) -> str:
    """One JSON object: time (UTC), level, logger, message, and what else there is to tell."""
    moment = datetime.fromtimestamp(time.time() if created is None else created, timezone.utc)
    line = {"time": moment.isoformat(timespec="milliseconds"), "level": level, "logger": logger, "message": message}
    return json.dumps(line | more)


class JsonLines(logging.Formatter):
    """Log records as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        more = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        level, message = record.levelname.lower(), record.getMessage()
        return json_line(level, message, logger=record.name, created=record.created, **more)


def set_up_logging(*, verbosity: int = 0, as_json: bool = False) -> None:
    """Choose how much is said on stderr, and how.

    Args:
        verbosity: -1 for errors only, 0 for warnings, 1 for what is done, 2 for the settings too; beyond is the same.
        as_json: whether everything is said as lines of JSON.
    """
    logging.getLogger("calid").setLevel(LEVELS[max(-1, min(verbosity, 2))])
    logging.captureWarnings(as_json)
    for logger in map(logging.getLogger, _LOGGERS):
        for handler in [one for one in logger.handlers if isinstance(one, _Ours)]:
            logger.removeHandler(handler)
        if sys.stderr is not None and (as_json or logger.name == "calid"):
            logger.addHandler(_Ours(sys.stderr, as_json=as_json))
        logger.propagate = not as_json


def chosen_logging() -> dict[str, Any]:
    """What `set_up_logging` was told, for another process of the same run."""
    level = logging.getLogger("calid").getEffectiveLevel()
    return {"verbosity": next((v for v, known in LEVELS.items() if known == level), 0), "as_json": is_json()}


def is_json() -> bool:
    """Whether the user asked for lines of JSON (`--log-json`)."""
    return any(isinstance(handler, _Ours) and handler.as_json for handler in logging.getLogger("calid").handlers)


def is_quiet() -> bool:
    """Whether the user asked for nothing but errors (`-q`)."""
    return logging.getLogger("calid").level >= logging.ERROR


def tell(line: str) -> None:
    """Say what a user should know of this run, unless nothing but errors is asked for."""
    if not is_quiet():
        print(json_line("info", line) if is_json() else f"calid: {line}", file=sys.stderr, flush=True)


def tell_error(message: str, *, code: str, remedy: str = "", **more: Any) -> None:
    """Say what went wrong.

    Args:
        message: what is wrong, and where.
        code: stable name of the error.
        remedy: what the user can do about it.
        **more: fields that only programs are told.
    """
    plain = f"calid: error: {message} {remedy}".rstrip()
    line = json_line("error", message, code=code, remedy=remedy, **more) if is_json() else plain
    print(line, file=sys.stderr, flush=True)


class _Ours(logging.StreamHandler):
    """Says on a stream what is logged; plain sentences only where no other program listens to them."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        super().__init__(stream)
        self.as_json = as_json
        self.setFormatter(JsonLines() if as_json else logging.Formatter("calid: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if self.as_json or not logging.getLogger().handlers:
            super().emit(record)


@contextmanager
def unsaid() -> Iterator[None]:
    """Meanwhile nothing is logged: for runs that only judge another one."""
    logger = logging.getLogger("calid")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:  # noqa: ARG001 (logging's own form of a filter)
    return False
