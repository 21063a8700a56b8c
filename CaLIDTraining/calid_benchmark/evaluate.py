"""`calid-evaluate`: one subcommand per table, each printed and written as JSON, Markdown and pictures."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from calid_benchmark.tables import TABLES, table_module


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `calid-evaluate`."""
    parser = ArgumentParser(prog="calid-evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="table")
    for name in TABLES:
        module = table_module(name)
        command = commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
