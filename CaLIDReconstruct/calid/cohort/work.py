"""One case from its images to its folder of results: what every worker does, on this machine or on another.

The models are loaded by the first case of a process and serve all its others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calid.cohort.manifest import CohortCase, with_settings
from calid.cohort.store import FIGURES_NAME, Store
from calid.errors import DEBUG_VARIABLE, CalidError, is_out_of_memory, out_of_memory
from calid.run.settings import Settings
from calid.stack import Stack

LOG = logging.getLogger("calid")

KEEP = ("dense", "labels", "meshes", "ed-es", "figures")
"""What may stay of a case; its figures always do."""


@dataclass(frozen=True)
class Procedure:
    """What is done with every case.

    Args:
        settings: settings of the upsampling.
        is_upsampled: whether slices are filled in; else the acquired ones are measured.
        is_segmented: whether the ventricles are labeled and measured.
        is_tried: whether the model is tried on left-out slices.
        has_report: whether a report is written.
        keep: what stays beside the figures, some of `KEEP`: the dense stack, its labels, the surfaces of every frame,
            stack and labels at end-diastole and end-systole.
        models_folder: folder of the models; None takes the bundled ones.
    """

    settings: Settings
    is_upsampled: bool = True
    is_segmented: bool = True
    is_tried: bool = True
    has_report: bool = False
    keep: tuple[str, ...] = ()
    models_folder: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """What two runs into one folder must agree in; where a case is computed is not part of it."""
        values = asdict(self)
        values["settings"].pop("device")
        values["models_folder"] = self.models_folder and str(self.models_folder.resolve())
        return values | {"keep": sorted(self.keep)}


def do_case(case: CohortCase, procedure: Procedure, out: Path) -> str:
    """Do one case and leave its results, or why there are none.

    Args:
        case: which one.
        procedure: what to do with it.
        out: folder of the cohort.

    Returns:
        "done" or "failed".

    Raises:
        OutputError: not even a failure can be written; there is no use in going on.
    """
    store = Store(out)
    try:
        with store.working_folder() as folder, _named(case):
            results, scratch = folder / "results", folder / "scratch"
            results.mkdir()
            scratch.mkdir()
            _do(case, procedure, results, scratch)
            store.finish(case.name, results)
    except CalidError as error:
        reason = error
    except Exception as error:  # noqa: BLE001 (whatever is wrong with one case, the others go on)
        reason = out_of_memory() if is_out_of_memory(error) else _unexpected(error)
    else:
        return "done"
    store.fail(
        case.name,
        code=reason.code,
        message=without_names(reason.message, case),
        remedy=without_names(reason.remedy, case),
    )
    return "failed"


@contextmanager
def _named(case: CohortCase) -> Iterator[None]:
    """Meanwhile what is logged says of which case, and no name but the case's own."""

    def rename(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{case.name}: {without_names(record.getMessage(), case)}", ()
        return True

    LOG.addFilter(rename)
    try:
        yield
    finally:
        LOG.removeFilter(rename)


def _unexpected(error: Exception) -> CalidError:
    said = " ".join(str(error).split())
    remedy = f"Run the case alone with {DEBUG_VARIABLE}=1."
    return CalidError("internal", f"unexpected {type(error).__name__}: {said}", remedy)


def _do(case: CohortCase, procedure: Procedure, results: Path, scratch: Path) -> None:
    from calid.cohort.layouts import read_case
    from calid.heart.figures import write_figures
    from calid.report.case import Tools, gather
    from calid.report.chapters import view_agreements
    from calid.report.command import as_html, case_figures, write_report
    from calid.report.tools import engine_tools

    started = time.monotonic()
    source = read_case(case, scratch)
    seconds = {"read": time.monotonic() - started}
    settings = with_settings(procedure.settings, case)
    if procedure.is_upsampled or procedure.is_segmented:
        tools = engine_tools(
            source.sax, settings, lax=source.lax, models_folder=procedure.models_folder, is_silent=True
        )
    else:
        tools = Tools(upsample=_as_it_is)
    if not procedure.is_upsampled:
        tools = replace(tools, upsample=_as_it_is)
    if not procedure.is_segmented:
        tools = replace(tools, segment=None)
    if not procedure.is_tried:
        tools = replace(tools, predict=None)
    if not procedure.has_report:
        tools = replace(tools, guided=None)  # what guidance does for views that are left out stands in reports alone
    heart = gather(source.sax, source.lax, tools, source=case.name)
    seconds |= {} if heart.seconds is None else {"upsample": heart.seconds}
    _keep(heart.dense, heart.labels if isinstance(heart.labels, Stack) else None, procedure.keep, results)
    if procedure.has_report:
        write_report(as_html(heart, case.name, body=source.body), results / "report.html")
    figures = case_figures(heart, view_agreements(heart), command="cohort", body=source.body)
    figures["seconds"] |= seconds | {"total": time.monotonic() - started}
    write_figures({"case": case.name, **figures}, results / FIGURES_NAME)


def _as_it_is(stack: Stack) -> Stack:
    return stack


def _keep(dense: Stack, labels: Stack | None, keep: tuple[str, ...], folder: Path) -> None:
    """Write what is asked for beside the figures."""
    from calid.images.files import write_labels, write_stack

    suffix = ".seq.nrrd" if dense.num_frames > 1 else ".nrrd"
    if "dense" in keep:
        write_stack(dense, folder / f"dense{suffix}")
    if labels is None:
        return
    if "labels" in keep:
        write_labels(labels, folder / "labels.seg.nrrd")
    if "ed-es" in keep:
        for moment, frame in _moments(labels).items():
            write_stack(dense.frame(frame), folder / f"dense-{moment}.nrrd")
            write_labels(labels.frame(frame), folder / f"labels-{moment}.seg.nrrd")
    if "meshes" in keep:
        _keep_meshes(labels, folder / "meshes")


def _moments(labels: Stack) -> dict[str, int]:
    """The frames of end-diastole and end-systole."""
    from calid.heart.volumes import cardiac_function

    with suppress(CalidError):
        function = cardiac_function(labels)
        return {"ed": function.ed_frame} | ({} if function.es_frame is None else {"es": function.es_frame})
    return {}


def _keep_meshes(labels: Stack, folder: Path) -> None:
    from calid.heart.surfaces import surfaces, write_surface
    from calid.labels import KEYS

    folder.mkdir()
    for frame in range(labels.num_frames):
        for value, mesh in surfaces(labels, frame).items():
            write_surface(mesh, folder / f"frame{frame:04d}-{KEYS[value]}.vtp")


def without_names(text: str, case: CohortCase) -> str:
    """A message without the names of files and folders, which may name a person: the case has a name of its own.

    A file below the case's folder becomes its number in the sorted list of all of them.
    """
    names: dict[str, str] = {}
    for path in (case.path, case.views):
        if path is None:
            continue
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            for number, file in enumerate(files, start=1):
                said = f"file {number}"
                names |= {str(file): said, file.relative_to(path).as_posix(): said, file.name: said}
        names |= {str(path): case.name, str(path.resolve()): case.name, path.name: case.name}
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 1:
            text = text.replace(name, names[name])
    return text
