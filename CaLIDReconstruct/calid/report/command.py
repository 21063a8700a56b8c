"""`calid report`: one HTML file about one heart, readable offline, with nothing in it that loads from elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calid import __version__
from calid.errors import ResourceError, SettingsError
from calid.heart import figures
from calid.heart.volumes import Function
from calid.images.body import Body
from calid.images.checks import warnings
from calid.images.files import read_lax_folder, read_stack, read_study
from calid.images.overview import told
from calid.images.whole_file import check_new_file, whole_file
from calid.labels import LABELS
from calid.report import chapters, page
from calid.report.case import Case, Missing, Tools, gather
from calid.report.chapters import with_unit
from calid.report.comparison import ViewAgreement
from calid.report.trust import Trust
from calid.run.logs import tell
from calid.run.settings import add_flags, from_flags
from calid.stack import LaxImage, Stack

DEFAULT_TITLE = "A heart, upsampled"
SUFFIXES = (".html", ".htm")


# --- the document -----------------------------------------------------------------------------------------------------


def as_html(case: Case, title: str = DEFAULT_TITLE, *, body: Body | None = None) -> str:
    """The whole report as HTML."""
    return _made(case, title, body)[0]


def _made(case: Case, title: str, body: Body | None) -> tuple[str, dict[str, Any]]:
    """The report as HTML, and its figures as data."""
    with _temporary_folder() as folder:
        long_axis, views = chapters.long_axis(case, Path(folder))
    values = case_figures(case, views, body=body)
    view, scripts = chapters.in_3d(case)
    sections = [
        page.tiles(_headline(case)),
        page.section("Long-axis views", *long_axis),
        page.section("The ventricles in 3D", *view),
        page.section("Function", *chapters.function(case)),
        page.section("Trust", *chapters.trust(case.trust, case.method), *chapters.guidance(case)),
        page.section("Provenance", page.facts(_provenance(case))),
        _data(values),
    ]
    return page.page(title, _lead(case), sections, scripts=scripts), values


def _lead(case: Case) -> str:
    if case.sparse is None:
        return f"{case.dense.num_slices} slices, {case.dense.spacing_mm[2]:.1f} mm apart, taken as they came."
    return (
        f"{case.sparse.num_slices} acquired short-axis slices, {case.sparse.spacing_mm[2]:.1f} mm apart, became "
        f"{case.dense.num_slices}, {case.dense.spacing_mm[2]:.1f} mm apart, by {case.method}."
    )


def _headline(case: Case) -> list[tuple[str, str]]:
    shown = [("slices", f"{case.dense.num_slices}"), ("acquired", f"{int((~np.asarray(case.dense.generated)).sum())}")]
    if isinstance(case.function, Function):
        lv, rv = case.function.lv, case.function.rv
        shown += [("LV EDV", with_unit(lv.edv_ml, "ml")), ("LV EF", with_unit(lv.ef_percent, "%"))]
        shown += [("LV mass", with_unit(case.function.mass_g, "g")), ("RV EF", with_unit(rv.ef_percent, "%"))]
    if isinstance(case.trust, Trust):
        shown.append(("error beside linear", f"{case.trust.score:.2f}"))
    return shown


def _provenance(case: Case) -> dict[str, Any]:
    facts: dict[str, Any] = dict(case.dense.provenance)
    if isinstance(case.labels, Stack):
        facts |= {name: value for name, value in case.labels.provenance.items() if name not in facts}
    if case.seconds is not None:
        facts["seconds to upsample"] = f"{case.seconds:.1f}"
    facts["report made"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    facts["report by"] = f"CaLID {__version__}, Python {platform.python_version()}, numpy {np.__version__}"
    return facts


# --- the same for programs --------------------------------------------------------------------------------------------


def _temporary_folder() -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix="calid-report-")
    except OSError as err:
        message = f"There is no folder for temporary files ({err.strerror or err})."
        raise ResourceError("no-temporary-folder", message, "Let TMPDIR name one that exists and has room.") from err


def case_figures(
    case: Case, views: Sequence[ViewAgreement], *, command: str = "report", body: Body | None = None
) -> dict[str, Any]:
    """The case's figures as data (`docs/figures.md`).

    Args:
        case: the heart.
        views: its agreement with the acquired long-axis images.
        command: name of the command that asks.
        body: height and weight, by which volumes are indexed.
    """
    by_view = {one.view: {name: dataclasses.asdict(figure) for name, figure in one.columns.items()} for one in views}
    return figures.document(
        command,
        case.dense,
        function=_or_reason(case.function),
        function_acquired=_or_reason(case.sparse_function),
        function_long_axis=_or_reason(case.long_axis_function),
        wall_thickness=figures.wall_section(case.labels) if isinstance(case.labels, Stack) else case.labels.reason,
        long_axis=by_view or figures.NO_VIEWS,
        trust=case.trust.reason if isinstance(case.trust, Missing) else case.trust.as_json(),
        body=body,
        findings=warnings(case.dense if case.sparse is None else case.sparse),
        seconds={} if case.seconds is None else {"upsample": case.seconds},
        labels=None if isinstance(case.labels, Missing) else case.labels,
    )


def _or_reason(found: Function | Missing) -> Function | str:
    return found.reason if isinstance(found, Missing) else found


def _data(values: dict[str, Any]) -> str:
    """The figures as a JSON value in the page, element `calid-report`."""
    text = json.dumps(values).replace("<", "\\u003c")
    return f'<script type="application/json" id="calid-report">{text}</script>\n'


# --- the file ---------------------------------------------------------------------------------------------------------


def write_report(html: str, path: Path, *, overwrite: bool = False) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: if the name does not end in .html, something exists there, or it cannot be written.
    """
    with whole_file(path, SUFFIXES, overwrite=overwrite) as draft:
        draft.write_text(html, encoding="utf-8")


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid report`."""
    parser.add_argument("input", type=Path, help="sparse or dense stack: a volume file, or a folder of DICOM files")
    parser.add_argument("output", type=Path, help="the report, .html")
    parser.add_argument("--series", metavar="NUMBER_OR_UID", help="in a DICOM folder: a series of the short axis")
    parser.add_argument(
        "--lax", type=Path, metavar="DIR", dest="views", help="folder of long-axis images (DICOM or volume files)"
    )
    parser.add_argument("--labels", type=Path, metavar="PATH", help="labels of the dense stack, instead of a model's")
    add_flags(parser, ["factor", "method", "steps", "seed", "device"])
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="models to use instead of the bundled ones")
    parser.add_argument("--title", default=DEFAULT_TITLE, help="the report's heading; name no patient")
    figures.add_json_argument(parser)
    figures.add_body_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing report")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the report; exit code 0."""
    sources = (options.input, options.views, options.labels, options.models)
    check_new_file(options.output, SUFFIXES, overwrite=options.overwrite, sources=sources)
    figures.check_json_output(options)
    body = figures.body_from(options)
    if options.input.is_dir():
        study = read_study(options.input, options.series)
        stack, lax = study.sax, study.lax
    else:
        stack, lax = read_stack(options.input, options.series), ()
    for line in told(stack, options.input):
        tell(line)
    if options.views is not None:
        lax = read_lax_folder(options.views)
    labels = None if options.labels is None else read_stack(options.labels)  # before the work, not after it
    case = gather(stack, tuple(lax), _tools(options, stack, lax, labels), source=options.input.name)
    html, values = _made(case, options.title, body)
    write_report(html, options.output, overwrite=options.overwrite)
    if options.json is not None:
        figures.write_figures(values, options.json, overwrite=options.overwrite)
    print(f"{options.output}: {_lead(case)} {page.STANDING_NOTE}")
    return 0


def _tools(options: argparse.Namespace, stack: Stack, lax: Sequence[LaxImage], labels: Stack | None) -> Tools:
    """The engine's model and segmenter as the command line asks for them, or the labels that are given."""
    from calid.report.tools import engine_tools

    tools = engine_tools(stack, from_flags(options), lax=lax, models_folder=options.models)
    return tools if labels is None else dataclasses.replace(tools, segment=partial(_fitting, labels))


def _fitting(labels: Stack, dense: Stack) -> Stack:
    """Labels read from a file, with the dense stack's marks, if they are labels and lie on its grid."""
    if labels.voxels.shape != dense.voxels.shape or not np.allclose(labels.affine, dense.affine, atol=1e-2):
        raise SettingsError(
            "labels-misfit",
            f"The labels {labels.voxels.shape} do not lie on the stack's grid {dense.voxels.shape}.",
            "Give labels of the dense stack itself.",
        )
    known = [0, *(label.value for label in LABELS)]
    odd = labels.voxels[~np.isin(labels.voxels, known)]
    if odd.size:
        raise SettingsError(
            "unknown-labels",
            f"The labels hold the value {odd[0]:g} in {odd.size} voxels; known are {', '.join(map(str, known))}.",
            "Give labels with " + ", ".join(f"{label.value} for {label.name}" for label in LABELS) + ".",
        )
    return dense.with_voxels(labels.voxels.astype(np.uint8))
