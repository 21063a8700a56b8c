"""`calid cohort MANIFEST OUT` and `calid cohort status OUT`."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from calid.cohort.manifest import MANIFEST_COLUMNS, CohortCase, cases_of, shard
from calid.cohort.store import TABLE_NAMES, Store
from calid.cohort.work import KEEP, Procedure
from calid.errors import SettingsError
from calid.images.whole_file import need_apart
from calid.run.logs import tell, tell_error
from calid.run.progress import case_bar
from calid.run.settings import COHORT_SETTINGS, add_flags, from_flags

STATUS = "status"
MAX_WORKERS = 256
EXIT_FAILURES = 3
THREADS_PER_WORKER = 4
"""More processor threads than these do not make one case much faster; more workers do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid cohort`."""
    parser.description = (
        "Upsample, segment and measure many hearts. The same command again goes on where it stopped. "
        "`calid cohort status OUT` tells how far it is, and writes its tables anew."
    )
    parser.add_argument(
        "manifest",
        help=f"CSV file with the columns case, path (and any of {', '.join(MANIFEST_COLUMNS[2:])}), or a folder of "
        "cases: UK Biobank zips, ACDC, M&Ms, Kaggle, one DICOM folder each, volume files; or the word 'status'",
    )
    parser.add_argument("out", type=Path, help="folder for the results: cohort.csv, failures.csv, cases/NAME/")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=["figures"],
        choices=KEEP,
        help="what stays of each case beside its figures: dense stack, labels, surfaces of every frame, or stack and "
        "labels at ED and ES alone",
    )
    parser.add_argument("--no-upsample", action="store_true", help="measure the acquired slices")
    parser.add_argument("--no-segment", action="store_true", help="label nothing, measure no function")
    parser.add_argument("--no-trust", action="store_true", help="do not try the model on left-out slices")
    parser.add_argument("--report", action="store_true", help="also write a report of each case")
    add_flags(parser, COHORT_SETTINGS)
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="models to use instead of the bundled ones")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes on this machine (default: by its GPUs, cores)"
    )
    parser.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only every N-th case from the I-th on, for job arrays"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="Dask cluster that does the work, such as tcp://host:8786"
    )
    parser.set_defaults(run=run)


def _shard(text: str) -> tuple[int, int]:
    index, count = (int(part) for part in text.split("/"))
    if not 1 <= index <= count:
        raise ValueError
    return index, count


def run(options: argparse.Namespace) -> int:
    """Do the cohort, or tell how far it is.

    Returns:
        0 when all cases of this run are done, 3 when some failed.
    """
    if options.manifest == STATUS:
        return show_status(options.out)
    manifest, procedure = Path(options.manifest), _procedure(options)
    cases = cases_of(manifest)
    mine = shard(cases, *options.shard) if options.shard else cases
    done = len(done_before(mine, options.out))
    with case_bar(total=len(mine), done=done) as bar:
        failed, reasons = 0, options.out / TABLE_NAMES[1]

        def on_done(name: str, outcome: str) -> None:
            nonlocal failed
            failed += outcome == "failed"
            if outcome == "failed":
                with bar.external_write_mode():
                    tell_error(f"{name} failed.", code="case-failed", remedy=f"See {reasons}.", case=name)
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()

        how = {"workers": options.workers, "scheduler": options.scheduler}
        do_cohort(manifest, cases, procedure, options.out, mine=mine, on_done=on_done, **how)
    print(f"{options.out / 'cohort.csv'}: {len(mine) - failed} of {len(mine)} cases are done, {failed} failed.")
    return EXIT_FAILURES if failed else 0


def done_before(cases: Sequence[CohortCase], out: Path) -> list[str]:
    """Names of the cases that an earlier run into the same folder has done."""
    store = Store(out)
    return [case.name for case in cases if store.is_done(case.name)]


def do_cohort(
    manifest: Path,
    cases: Sequence[CohortCase],
    procedure: Procedure,
    out: Path,
    *,
    mine: Sequence[CohortCase] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    on_done: Callable[[str, str], None],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Do the cases that are not done yet, and write the tables, however it ends.

    Args:
        manifest: what the cases were read from.
        cases: the whole cohort.
        procedure: what to do with each case.
        out: folder of the cohort.
        mine: cases of this run; None takes all.
        workers: number of processes on this machine; None chooses by its GPUs and cores.
        scheduler: address of a Dask cluster that does the work instead.
        on_done: function given the name of each case as it ends, and "done" or "failed".
        is_cancelled: function asked twice a second whether to stop; the cases under way are given up then.

    Raises:
        CalidError: the folder or the models cannot be used, or one worker after another dies.
        Cancelled: if `is_cancelled` said so.
    """
    _need_apart(manifest, cases, out)
    store = Store(out)
    store.begin(procedure.as_json(), [case.name for case in cases])
    waiting = [case for case in (cases if mine is None else mine) if not store.is_done(case.name)]
    try:
        if waiting:
            _do_all(waiting, procedure, out, workers, scheduler, on_done, is_cancelled)
    finally:
        store.sweep()
        store.write_tables()


def _procedure(options: argparse.Namespace) -> Procedure:
    return Procedure(
        settings=from_flags(options),
        is_upsampled=not options.no_upsample,
        is_segmented=not options.no_segment,
        is_tried=not options.no_trust,
        has_report=options.report,
        keep=tuple(name for name in KEEP if name in options.keep and name != "figures"),
        models_folder=options.models,
    )


def _need_apart(manifest: Path, cases: Sequence[CohortCase], out: Path) -> None:
    """Return if no case lies among the results, and no result replaces what is read or lies in a folder of it."""
    read = [path for case in cases for path in (case.path, case.views) if path is not None]
    for path in read:
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            message = f"{path.name} is to be read and lies in {out}."
            raise SettingsError("same-folder", message, "Choose another folder for results.")
    need_apart(out / TABLE_NAMES[0], [manifest, *read])
    for name in TABLE_NAMES[1:]:
        need_apart(out / name, [manifest])


def _do_all(
    cases: list[CohortCase],
    procedure: Procedure,
    out: Path,
    workers: int | None,
    scheduler: str | None,
    on_done: Callable[[str, str], None],
    is_cancelled: Callable[[], bool],
) -> None:
    if procedure.is_segmented or (procedure.is_upsampled and procedure.settings.method != "linear"):
        _need_models(procedure)
    if scheduler:
        from calid.cohort.on_dask import run_on_dask

        run_on_dask(scheduler, cases, procedure, out, on_done=on_done)
        return
    from calid.cohort.crew import run_here

    gpus = _gpus(procedure.settings.device)
    count = _workers(workers, len(gpus))
    threads = max(1, _cores() // count)
    run_here(
        cases, procedure, out, workers=count, threads=threads, gpus=gpus, on_done=on_done, is_cancelled=is_cancelled
    )


def _need_models(procedure: Procedure) -> None:
    """Return if there are models at all: else every case would fail for the same reason."""
    from calid.heart.segmentation import license_notice
    from calid.method.weights import read_manifest

    read_manifest(procedure.models_folder)
    if procedure.is_segmented:
        tell(license_notice(procedure.models_folder))


def _workers(asked: int | None, gpus: int) -> int:
    """As many as asked for; else one for each GPU, or one for every few cores."""
    if asked is not None and not 1 <= asked <= MAX_WORKERS:
        raise SettingsError("workers", f"{asked} workers are not possible.", f"Give a number from 1 to {MAX_WORKERS}.")
    return asked or gpus or max(1, _cores() // THREADS_PER_WORKER)


def _cores() -> int:
    """Processor cores that this process may use; a job of a cluster may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus(device: str) -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes; a cluster may have set it."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return visible[:count] if len(visible) >= count > 0 and visible[0] else [str(index) for index in range(count)]


def show_status(out: Path) -> int:
    """Write the tables, and print how many cases are done, failed and to do; exit code 0."""
    store = Store(out)
    done, failures, waiting = store.status()
    store.write_tables()
    total = len(done) + len(failures) + len(waiting)
    print(f"{len(done)} of {total} cases are done, {len(failures)} failed, {len(waiting)} are to do.")
    for code, count in Counter(failure.get("code", "") for failure in failures.values()).most_common():
        print(f"  {count} failed with {code}; see {out / 'failures.csv'}")
    return 0
