"""What is logged, and how: plain sentences for people, lines of JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(*, verbosity: int = 0, as_json: bool = False) -> None:
    """Log CaLID's own records to stderr.

    Args:
        verbosity: -1 for errors only, 0 for warnings, 1 for what is done, 2 for everything; beyond is the same.
        as_json: whether records are lines of JSON.
    """
    logger = logging.getLogger("calid")
    logger.setLevel(LEVELS[max(-1, min(verbosity, 2))])
    for handler in [one for one in logger.handlers if isinstance(one, _Ours)]:
        logger.removeHandler(handler)
    if as_json and sys.stderr is not None:
        handler = _Ours(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.propagate = False
    else:
        logger.propagate = True


class _Ours(logging.StreamHandler):
    """A handler that this module may take away again."""
