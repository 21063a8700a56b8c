"""`calid serve`: the engine as a process that stays warm between runs and is spoken to in lines of JSON.

A request is one line on stdin, `{"id": ..., "command": ..., ...}`; answers are events, one ASCII line each on stdout:
`ready`, `progress`, `log`, `frame`, `case`, `file`, `result`, `error`, `cancelled`. Requests are served one after
another; `cancel` and the end of stdin are seen while one runs and take effect at its next network evaluation. Voxels
travel through files, or, for a caller on another computer (`--apart`), through the lines themselves. `docs/protocol.md`
lists every request and event.
"""

from __future__ import annotations

import argparse
import os
import sys

from calid.serve.exchange import Exchange
from calid.serve.server import Server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid serve`."""
    parser.add_argument(
        "--apart",
        action="store_true",
        help="for a caller on another computer: files come and go through the lines, nothing else of the disk is used",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve stdin until it ends. Whatever else prints to stdout is sent to stderr, so that the events stay clean."""
    events = os.fdopen(os.dup(1), "w", encoding="ascii", newline="\n")
    os.dup2(2, 1)
    exchange = Exchange() if options.apart else None
    server = Server(events, exchange)
    try:
        server.serve(sys.stdin.buffer)
    finally:
        if exchange is not None:
            exchange.remove()
    if server.is_forsaken:
        os._exit(0)  # a thread still waits for a line; Python's own end would wait for it, or abort
    return 0
