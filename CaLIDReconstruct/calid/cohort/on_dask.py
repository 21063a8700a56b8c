"""The same work on an existing Dask cluster, whose workers see the same files (`pip install calid[cohort]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from calid.cohort.manifest import CohortCase
from calid.cohort.store import Store
from calid.cohort.work import Procedure, do_case
from calid.errors import ResourceError

CONNECT_SECONDS = 30


def run_on_dask(
    address: str,
    cases: Sequence[CohortCase],
    procedure: Procedure,
    out: Path,
    *,
    on_done: Callable[[str, str], None],
) -> None:
    """Do all cases on the workers of a scheduler; workers may come and go.

    A case whose worker is lost is done by another; one that loses more workers than the scheduler's setting
    `allowed-failures` has failed.

    Args:
        address: address of the scheduler, such as "tcp://host:8786".
        cases, procedure, out, on_done: as for `crew.run_here`; the paths must mean the same to every worker.

    Raises:
        ResourceError: "no-dask" if it is not installed, "no-scheduler" if nobody answers.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise ResourceError("no-dask", "Dask is not installed.", 'pip install "calid[cohort]"') from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        message = f"No Dask scheduler answers at {address}."
        raise ResourceError("no-scheduler", message, "Start one: dask scheduler; dask worker ADDRESS.") from error
    with client:
        submitted = {
            client.submit(do_case, case, procedure, out.resolve(), key=f"calid-{case.name}", pure=False): case
            for case in cases
        }
        for future in as_completed(list(submitted), loop=client.loop):
            case = submitted.pop(future)
            try:
                on_done(case.name, future.result())
            except KilledWorker as error:
                Store(out).fail(
                    case.name,
                    code="lost-worker",
                    message=f"{error.allowed_failures + 1} Dask workers were lost while they worked on it.",
                    remedy="Give the workers more memory, or run the case alone.",
                )
                on_done(case.name, "failed")
