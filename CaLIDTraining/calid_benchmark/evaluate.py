"""`calid-evaluate`: one subcommand per table, each printed and written as JSON, Markdown and pictures."""

from __future__ import annotations

import sys

from calid_training.errors import told_in_one_line
from calid_training.parsers import Parser

from calid_benchmark.tables import TABLES, table_module


def program(arguments: list[str] | None = None) -> int:
    """Entry point of `calid-evaluate`: `main`, with one line for what the user can mend."""
    return told_in_one_line(main, "calid-evaluate", arguments)


def main(arguments: list[str] | None = None) -> int:
    """Make one table and return the exit code."""
    options = build_parser().parse_args(arguments)
    return options.run(options)


def build_parser() -> Parser:
    """The parser of all tables; a table's help begins with what its module says of it."""
    parser = Parser(prog="calid-evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="table")
    for name in TABLES:
        module = table_module(name)
        told = module.__doc__ or ""
        command = commands.add_parser(name, help=told.splitlines()[0].partition(": ")[2], description=told)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(program())
