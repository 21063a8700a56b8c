"""The command line: `calid upsample`, `info`, `serve`, `completion`, and the commands of `MODULES`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from calid import __version__
from calid.errors import DEBUG_VARIABLE, CalidError, Cancelled, InputError, is_out_of_memory, out_of_memory
from calid.run.completion import SHELLS, completion
from calid.run.logs import is_json, set_up_logging, tell, tell_error
from calid.run.settings import add_flags, from_flags
from calid.run.signals import ended_by_signals

EXIT_ERROR, EXIT_INTERNAL, EXIT_CANCELLED = 2, 1, 130
SERIES_HELP = "in a DICOM folder: a series of the short axis, instead of what the headers tell"


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        tell_error(f"{message}.", code="usage", remedy=f"See {self.prog} --help.")
        self.exit(EXIT_ERROR)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, see `docs/command-line.md`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_missing_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no Unicode
    set_up_logging(as_json="--log-json" in arguments)  # wrong usage is told, too
    options = build_parser(arguments).parse_args(arguments)
    set_up_logging(verbosity=options.verbose - options.quiet, as_json=options.log_json)
    try:
        with ended_by_signals():
            code = options.run(options)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Who read our words has gone, as `| head` does; the files are written. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CalidError as error:
        return _fail(error)
    except (Cancelled, KeyboardInterrupt):
        tell_error("cancelled; nothing was written", code="cancelled")
        return EXIT_CANCELLED
    except RecursionError:
        remedy = "Export it again, or choose another one."
        return _fail(InputError("nested", "The input is nested without end.", remedy))
    except Exception as error:  # noqa: BLE001 (the last door: one line, and the traceback for those who ask)
        return _fail(out_of_memory()) if is_out_of_memory(error) else _fail_unexpectedly(error)


def _fail(error: CalidError) -> int:
    tell_error(error.message, code=error.code, remedy=error.remedy)
    return EXIT_ERROR


def _fail_unexpectedly(error: Exception) -> int:
    """A defect of ours: one line, and where it was for those who ask."""
    where = traceback.format_exc() if os.environ.get(DEBUG_VARIABLE) else None
    if where and not is_json():
        print(where, file=sys.stderr, end="")
    said = " ".join(str(error).split())
    tell_error(
        f"unexpected {type(error).__name__}: {said}",
        code="internal",
        remedy=f"Set {DEBUG_VARIABLE}=1 to see where.",
        **({"exception": where} if where else {}),
    )
    return EXIT_INTERNAL


def _open_missing_streams() -> None:
    """Give a process that was started without stdout or stderr (`2>&-`) ones that lead nowhere.

    Their numbers would otherwise go to the next files that are opened, and our words into these.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


# Commands that bring their own arguments; a module is imported only for the command that is typed.
MODULES = {
    "align": ("calid.run.alignment_command", "tell how far slices of different breath-holds are off, and move them"),
    "segment": ("calid.heart.segment_command", "label LV cavity, LV myocardium and RV cavity"),
    "report": ("calid.report.command", "one HTML file: long-axis planes, 3D, function, trust"),
    "mesh": ("calid.heart.meshes", "surfaces, walls and tetrahedra of labels"),
    "cohort": ("calid.cohort.command", "many hearts into one table, on one machine or a cluster"),
    "demo": ("calid.report.demo", "upsample the bundled heart and show it"),
    "serve": ("calid.serve", "serve requests on stdin (for 3D Slicer)"),
}


def build_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser of all commands, complete for the one that `arguments` name; for all of them without any."""
    typed = next((word for word in arguments if not word.startswith("-")), None)
    parser = _Parser(
        prog="calid",
        description="Whole hearts from sparse cardiac short-axis MR stacks. The options here come before the command; "
        "`calid COMMAND --help` lists those of a command.",
    )
    parser.add_argument("--version", action="version", version=f"calid {__version__}")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more: what is done; -vv: the settings too"
    )
    parser.add_argument("-q", "--quiet", action="count", default=0, help="say errors only, and show no progress")
    parser.add_argument("--log-json", action="store_true", help="say everything on stderr as lines of JSON")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)
    _add_upsample(commands.add_parser("upsample", help="fill in the missing slices of a stack"))
    info = commands.add_parser(
        "info", help="what an input is: the series of a DICOM folder, or a volume; without one, device and models"
    )
    info.add_argument("input", type=Path, nargs="?", help="a folder of DICOM files, or a volume file")
    info.add_argument("--series", metavar="NUMBER_OR_UID", help=SERIES_HELP)
    add_flags(info, ["device"])
    info.add_argument("--json", type=Path, metavar="FILE", help="also write it as a file, see docs/figures.md")
    info.set_defaults(run=_info)
    for name, (module, summary) in MODULES.items():
        command = commands.add_parser(name, help=summary)
        if typed in (name, "completion"):
            import_module(module).add_arguments(command)
    completion = commands.add_parser("completion", help="print what makes a shell complete calid's words")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=lambda chosen: _completion(parser, chosen.shell))
    return parser


def _add_upsample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="NIfTI, NRRD or MHA file, or a folder of DICOM files")
    parser.add_argument(
        "output", type=Path, help="dense stack; .nii.gz, .nrrd, .seq.nrrd, .mha; or a folder, see --format"
    )
    parser.add_argument(
        "--format",
        default="file",
        choices=("file", "dicom"),
        help="dicom: OUTPUT is a folder for a derived series in the study of the DICOM input, and so is --uncertainty",
    )
    parser.add_argument("--series", metavar="NUMBER_OR_UID", help=SERIES_HELP)
    add_flags(parser)
    parser.add_argument("--views", type=Path, metavar="DIR", help="folder of long-axis images, if not in the input")
    parser.add_argument(
        "--uncertainty",
        type=Path,
        metavar="PATH",
        help="also write the standard deviation of draws; with --mode fidelity this changes OUTPUT to their mean, see "
        "--mode",
    )
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="models to use instead of the bundled ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as data, see docs/figures.md")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    parser.set_defaults(run=_upsample)


def _upsample(options: argparse.Namespace) -> int:
    from calid.heart import figures
    from calid.images.checks import warnings
    from calid.run.job import Job
    from calid.run.progress import progress_bar, shown_on
    from calid.stack import acquired_slices

    figures.check_json_output(options)
    job = Job(
        source=options.input,
        output=options.output,
        settings=from_flags(options),
        uncertainty=options.uncertainty,
        overwrite=options.overwrite,
        as_dicom=options.format == "dicom",
        models_folder=options.models,
        series=options.series,
        views=options.views,
    )
    start = time.monotonic()
    with progress_bar() as bar:
        made = job.run(progress=shown_on(bar), tell=tell)
    seconds = time.monotonic() - start
    dense, facts = made.stack, made.stack.provenance
    print(
        f"{options.output}: {facts['acquired_slices']} slices became {dense.num_slices}, "
        f"{facts['acquired_spacing_mm']:.1f} mm became {dense.spacing_mm[2]:.2f} mm, {dense.num_frames} frame(s), "
        f"{facts.get('device', 'no model')}. {facts['note']}"
    )
    if options.json is not None:
        findings = warnings(acquired_slices(dense) or dense)
        values = figures.document("upsample", dense, findings=findings, seconds={"upsample": seconds})
        figures.write_figures(values, options.json, overwrite=options.overwrite)
    return 0


def _info(options: argparse.Namespace) -> int:
    from calid.heart import figures

    figures.check_json_output(options)
    if options.input is None:
        from calid.run.job import information

        machine = information(options.device)
        print(json.dumps(machine, indent=2))
        values = figures.machine_document(machine)
    else:
        values = figures.input_document(_tell_of(options.input, options.series))
    if options.json is not None:
        figures.write_figures(values, options.json)
    return 0


def _tell_of(path: Path, series: str | None) -> dict[str, Any]:
    """Print what an input is, and return the same for programs: a folder's series, and the stack if there is one."""
    from calid.images.files import read_stack
    from calid.images.folder import look
    from calid.images.overview import facts_as_text, facts_of

    facts: dict[str, Any] = {}
    if path.is_dir():
        overview = look(path, series)
        print(overview.as_text(), end="\n\n")
        facts["study"] = overview.as_json()
    try:
        facts["stack"] = facts_of(read_stack(path, series))
        print(facts_as_text(facts["stack"], path.name))
    except InputError as error:
        if "study" not in facts:
            raise
        print(f"No stack can be made of it: {error}")
    return facts


def _completion(parser: argparse.ArgumentParser, shell: str) -> int:
    print(completion(parser, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
