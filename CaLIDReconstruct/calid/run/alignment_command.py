"""`calid align`: how far the slices of different breath-holds are off, as a table and as JSON; moved, if asked."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from calid.errors import OutputError
from calid.images.files import check_fits, check_output, read_heart, write_stack
from calid.images.whole_file import check_new_file, whole_file
from calid.run.alignment import align
from calid.run.shifts import Alignment, Shift, moved


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid align`."""
    parser.add_argument("input", type=Path, help="short-axis stack: a volume file, or a folder of DICOM files")
    parser.add_argument("output", type=Path, nargs="?", help="the stack with its slices moved within their planes")
    parser.add_argument("--lax", type=Path, metavar="DIR", help="folder of long-axis images (DICOM or volume files)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the shifts as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Tell the shifts, and write what is asked for; exit code 0."""
    sources = (options.input, options.lax)
    if options.output is not None:
        check_output(options.output, overwrite=options.overwrite, sources=sources)
    if options.json is not None:
        check_new_file(options.json, (".json",), overwrite=options.overwrite, sources=sources)
    if options.json is not None and options.output == options.json:
        raise OutputError("same-output", f"{options.json} is asked for twice.", "Give two different names.")
    sax, lax = read_heart(options.input, lax_folder=options.lax)
    found = align(sax, {view.name: view.stack for view in lax})
    if options.output is not None:
        stack, found = moved(sax, found)
        check_fits(stack, options.output)
        write_stack(stack, options.output, overwrite=options.overwrite)
    if options.json is not None:
        with whole_file(options.json, (".json",), overwrite=options.overwrite) as draft:
            draft.write_text(json.dumps(found.as_json(), indent=1, allow_nan=False), encoding="utf-8")
    print(table(found))
    print(found.summary)
    return 0


def table(found: Alignment) -> str:
    """The shifts of slices and views as lines of text, with their uncertainty."""
    heads = f"{'':<28}{'along rows':>18}{'along columns':>18}{'through plane':>18}   mm"
    return "\n".join([heads, *(_row(shift) for shift in (*found.slices, *found.views))])


def _row(shift: Shift) -> str:
    cells = [
        f"{value:+.1f} +- {spread:.1f}" if math.isfinite(spread) else "unknown"
        for value, spread in zip(shift.mm, shift.uncertainty_mm, strict=True)
    ]
    return f"{shift.name[:27]:<28}" + "".join(f"{cell:>18}" for cell in cells)
