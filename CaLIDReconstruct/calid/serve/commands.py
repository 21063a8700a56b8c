"""What each request of `calid serve` may hold, and what is done for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from calid.errors import SettingsError
from calid.run.settings import COHORT_SETTINGS, OPTIONS, checked, from_json

PROGRESS_INTERVAL_S = 0.1
FRAME_NAME = "frame{index:04d}.nrrd"
SEGMENTING_SHARE = 0.5  # of the time of labels with surfaces
FLAGS = ("overwrite", "raw", "segment", "uncertainty")
COUNTS = {"num_frames": (1, 10_000), "num_views": (0, 100)}  # of a heart that an estimate is told a part of
Request = dict[str, Any]
Emit = Callable[..., None]
Answer = Callable[[Request, Callable[[], bool], Emit], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """What a request may ask, field by field.

    Args:
        answer: function that does it.
        required: the fields it cannot do without.
        reads: paths of files and folders that are read.
        writes: paths of files and folders that are written.
        others: further fields it takes.
    """

    answer: Answer
    required: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def fields(self) -> set[str]:
        """All that it takes."""
        return {*self.reads, *self.writes, *self.others}

    def check(self, request: Request) -> None:
        """A misspelt field would otherwise be a setting that is silently not used.

        Raises:
            SettingsError: "bad-request" naming what is missing, unknown, no path, no flag or no number, or the name of
                a setting that is not possible.
        """
        missing = [key for key in self.required if not request.get(key)]
        if missing:
            raise bad_request(f"The request lacks {', '.join(missing)}.", "Name the file.")
        known = {"id", "command", *self.fields}
        unknown = sorted(request.keys() - known)
        if unknown:
            raise bad_request(f"The request has unknown fields: {', '.join(unknown)}.", f"Known: {sorted(known)}.")
        for key, value in request.items():
            if value is not None and key in known - {"id", "command"}:
                self._check_field(key, value)

    def _check_field(self, key: str, value: Any) -> None:
        """Settings are checked by `settings.checked`; paths, flags and numbers here."""
        if key in (*self.reads, *self.writes):
            if not isinstance(value, str) or not _is_file_name(value):
                raise bad_request(f"'{key}' is no path: {str(value)[:200]!r}.", "Send a text.")
        elif key in OPTIONS:
            checked(key, value)
        elif key in FLAGS:
            if not isinstance(value, bool):
                raise bad_request(f"'{key}' is neither true nor false: {str(value)[:200]!r}.", "Send one of both.")
        elif key in COUNTS and not (type(value) is int and COUNTS[key][0] <= value <= COUNTS[key][1]):
            least, most = COUNTS[key]
            raise bad_request(f"'{key}' is {str(value)[:200]!r}.", f"Send a whole number from {least} to {most}.")


def _is_file_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def bad_request(message: str, remedy: str) -> SettingsError:
    """The error of a request that makes no sense."""
    return SettingsError("bad-request", message, remedy)


def command_of(request: Request) -> Command:
    """The command that a request asks for, its fields checked.

    Raises:
        SettingsError: "unknown-command", or as `Command.check`.
    """
    name = request["command"]
    if name not in COMMANDS:
        raise SettingsError(
            "unknown-command", f"The command '{name}' is not known.", f"Send one of: {', '.join(COMMANDS)}."
        )
    COMMANDS[name].check(request)
    return COMMANDS[name]


def _path(request: Request, key: str) -> Path | None:
    return Path(request[key]) if request.get(key) else None


def _upsample(request: Request, is_cancelled: Callable[[], bool], emit: Emit) -> dict[str, Any]:
    from calid.images.whole_file import need_apart
    from calid.run.job import Job

    job = Job(
        source=Path(request["input"]),
        output=Path(request["output"]),
        settings=from_json(request),
        uncertainty=_path(request, "uncertainty"),
        overwrite=bool(request.get("overwrite", False)),
        models_folder=_path(request, "models"),
        series=_series(request),
        views=_path(request, "views"),
    )
    folder = _path(request, "frames_folder")
    if folder is not None:
        read = [path for path in (job.source, job.views) if path is not None]
        need_apart(folder / FRAME_NAME.format(index=0), read)
    show_frame = None if folder is None else partial(_show_frame, folder, emit)
    made = job.run(progress=_Throttled(emit), is_cancelled=is_cancelled, on_frame=show_frame, tell=_log_to(emit))
    return {"output": str(job.output), "provenance": made.stack.history}


def _show_frame(folder: Path, emit: Emit, index: int, frame: Any) -> None:
    from calid.images.files import write_stack

    path = folder / FRAME_NAME.format(index=index)
    write_stack(frame, path, overwrite=True)
    emit("frame", index=index, path=str(path))


class _Throttled:
    """Progress events, at most ten a second, the last one always.

    Args:
        emit: function that sends them.
        part: the beginning and the end of this work in the whole request's progress.
    """

    def __init__(self, emit: Emit, part: tuple[float, float] = (0.0, 1.0)) -> None:
        self._emit, self._part, self._last = emit, part, 0.0

    def __call__(self, progress: Any) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_INTERVAL_S and progress.fraction < 1:
            return
        self._last = now
        begin, end = self._part
        left = None if progress.seconds_left is None else round(progress.seconds_left, 1)
        fraction = begin + (end - begin) * progress.fraction
        self._emit("progress", fraction=round(fraction, 4), stage=progress.stage, seconds_left=left)


def _series(request: Request) -> str | None:
    """The number or UID of a series of the short axis, or None."""
    series = request.get("series")
    if series is not None and (isinstance(series, bool) or not isinstance(series, str | int)):
        raise bad_request(f"'series' is no number or UID: {series!r}.", "Send one that `study` lists.")
    return None if series is None else str(series)


def _log_to(emit: Emit) -> Callable[[str], None]:
    return lambda line: emit("log", level="info", message=line)


def _study(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    """What a DICOM folder holds, and, if a folder to write to is given, its short axis and views as sequence files."""
    from calid.images.files import write_stack
    from calid.images.folder import look
    from calid.images.study import read_study
    from calid.images.whole_file import need_apart

    source, folder, series = Path(request["input"]), _path(request, "folder"), _series(request)
    if folder is None:
        return {"study": look(source, series).as_json()}
    study = read_study(source, series)
    need_apart(folder / "sax.seq.nrrd", (source,))
    folder.mkdir(parents=True, exist_ok=True)
    sax, lax = folder / "sax.seq.nrrd", []
    write_stack(study.sax, sax, overwrite=True)
    for index, view in enumerate(study.lax):
        path = folder / f"lax{index + 1:02d}.seq.nrrd"
        write_stack(view.stack, path, overwrite=True)
        lax.append({"name": view.name, "path": str(path)})
    return {
        "study": study.overview.as_json(),
        "sax": str(sax),
        "lax": lax,
        "left_out": list(study.left_out),
    }


def _check(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    from calid.images.checks import findings
    from calid.images.files import read_stack

    return {"findings": [asdict(finding) for finding in findings(read_stack(Path(request["input"]), _series(request)))]}


def _estimate(request: Request, is_cancelled: Callable[[], bool], _: Emit) -> dict[str, Any]:
    from calid.images.files import read_stack
    from calid.run.job import estimate

    return estimate(
        read_stack(Path(request["input"]), _series(request)),
        from_json(request),
        uncertainty=bool(request.get("uncertainty")),
        models_folder=_path(request, "models"),
        num_frames=request.get("num_frames"),
        num_views=request.get("num_views") or 0,
        is_cancelled=is_cancelled,
    )


def _info(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    from calid.run.job import information

    return {"result": information(request.get("device", "auto"), _path(request, "models"))}


def _segment(request: Request, is_cancelled: Callable[[], bool], emit: Emit) -> dict[str, Any]:
    from calid.heart.anatomy import clean_labels
    from calid.heart.segmentation import license_notice, segment
    from calid.images.files import check_output, read_stack, write_labels
    from calid.images.whole_file import need_apart
    from calid.run.progress import Watch

    output, overwrite = Path(request["output"]), bool(request.get("overwrite", False))
    check_output(output, overwrite=overwrite, sources=(Path(request["input"]), _path(request, "models")))
    emit("log", level="info", message=license_notice(_path(request, "models")))
    folder = _path(request, "surfaces_folder")
    if folder is not None:
        need_apart(folder / "any.vtp", (Path(request["input"]),))
    labels = segment(
        read_stack(Path(request["input"]), _series(request)),
        device=request.get("device", "auto"),
        models_folder=_path(request, "models"),
        progress=_Throttled(emit, (0.0, 1.0 if folder is None else SEGMENTING_SHARE)),
        is_cancelled=is_cancelled,
    )
    labels = labels if request.get("raw") else clean_labels(labels)
    if folder is not None:
        _write_surfaces(
            labels, folder, Watch(labels.num_frames, _Throttled(emit, (SEGMENTING_SHARE, 1.0)), is_cancelled)
        )
    write_labels(labels, output, overwrite=overwrite)
    return {"output": str(output), "provenance": dict(labels.provenance)}


def _dicom(request: Request, _: Callable[[], bool], __: Emit) -> dict[str, Any]:
    """A dense stack as a derived series of the DICOM files that its acquired slices come from."""
    from calid.images.dicom_out import check_folder, find_sources, write_series
    from calid.images.files import read_stack

    source, output, overwrite = Path(request["source"]), Path(request["output"]), bool(request.get("overwrite", False))
    check_folder(output, overwrite=overwrite, source=source)
    dense = read_stack(Path(request["input"]))
    write_series(dense, find_sources(source, dense), output, overwrite=overwrite)
    return {"output": str(output), "images": dense.num_frames * dense.num_slices}


def _cohort(request: Request, is_cancelled: Callable[[], bool], emit: Emit) -> dict[str, Any]:
    """Many hearts into one table, as `calid cohort`; a case that fails is told and does not stop the others."""
    from calid.cohort.command import do_cohort, done_before
    from calid.cohort.manifest import cases_of
    from calid.cohort.work import KEEP, Procedure

    out, keep = Path(request["output"]), request.get("keep") or []
    if not isinstance(keep, list) or not set(keep) <= set(KEEP):
        raise bad_request(f"'keep' is {str(keep)[:200]!r}.", f"Send a list of some of {', '.join(KEEP)}.")
    workers = request.get("workers")
    if workers is not None and type(workers) is not int:
        raise bad_request(f"'workers' is {str(workers)[:200]!r}.", "Send a whole number.")
    manifest = Path(request["input"])
    cases = cases_of(manifest)
    before = done_before(cases, out)
    failed: list[str] = []
    done = len(before)

    def on_done(name: str, outcome: str) -> None:
        nonlocal done
        done += 1
        failed.extend([name] if outcome == "failed" else [])
        emit("case", name=name, outcome=outcome, done=done, cases=len(cases), failed=len(failed))

    procedure = Procedure(
        settings=from_json(request),
        is_segmented=request.get("segment", True) is not False,
        keep=tuple(name for name in KEEP if name in keep and name != "figures"),
        models_folder=_path(request, "models"),
    )
    emit("case", name=None, outcome=None, done=done, cases=len(cases), failed=0)
    do_cohort(manifest, cases, procedure, out, workers=workers, on_done=on_done, is_cancelled=is_cancelled)
    return {"table": str(out / "cohort.csv"), "cases": len(cases), "before": len(before), "failed": failed}


def _write_surfaces(labels: Any, folder: Path, watch: Any) -> None:
    """The closed surfaces of every frame, `frame0000-LV.vtp` and so on, in LPS mm."""
    from calid.heart.surfaces import SHOWN_GRID_MM, surfaces, without_surface, write_surface
    from calid.labels import LABELS

    watch.stage, there = "surfaces", []
    for index in range(labels.num_frames):
        found = surfaces(labels, index, grid_mm=SHOWN_GRID_MM)
        there.append(set(found))
        for label in LABELS:
            if label.value in found:
                write_surface(found[label.value], folder / f"frame{index:04d}-{label.key}.vtp", overwrite=True)
        watch.tick(1)
    for sentence in without_surface(labels, there):
        logging.getLogger("calid").warning(sentence)


COMMANDS = {
    "upsample": Command(
        _upsample,
        required=("input", "output"),
        reads=("input", "views", "models"),
        writes=("output", "uncertainty", "frames_folder"),
        others=("overwrite", "series", *OPTIONS),
    ),
    "segment": Command(
        _segment,
        required=("input", "output"),
        reads=("input", "models"),
        writes=("output", "surfaces_folder"),
        others=("raw", "device", "overwrite", "series"),
    ),
    "check": Command(_check, required=("input",), reads=("input",), others=("series",)),
    "study": Command(_study, required=("input",), reads=("input",), writes=("folder",), others=("series",)),
    "estimate": Command(
        _estimate,
        required=("input",),
        reads=("input", "models"),
        others=("uncertainty", "num_frames", "num_views", "series", *OPTIONS),
    ),
    "dicom": Command(
        _dicom,
        required=("input", "source", "output"),
        reads=("input", "source"),
        writes=("output",),
        others=("overwrite",),
    ),
    "cohort": Command(
        _cohort,
        required=("input", "output"),
        reads=("input", "models"),
        writes=("output",),
        others=("keep", "workers", "segment", *COHORT_SETTINGS),
    ),
    "info": Command(_info, reads=("models",), others=("device",)),
}
