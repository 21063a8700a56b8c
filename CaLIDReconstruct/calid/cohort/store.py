"""The folder of a cohort's results, which is also all there is to know of its progress.

    OUT/cohort.json        settings, and the names of all cases
    OUT/cases/NAME/        a case that is done: figures.json, and what else is kept; appears whole or not at all
    OUT/failures/NAME.json a case that failed: code, message, remedy
    OUT/working/           cases under way
    OUT/cohort.csv, OUT/failures.csv   made from these files, at any time, by anybody

There is no lock and no database: whatever is killed at whatever moment leaves whole cases and some rubbish in
`working`, which the next run sweeps away. Two runs at one case at once, as after a job is queued again, do it twice.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from calid.cohort.row import COLUMNS, row_of
from calid.errors import InputError, OutputError, SettingsError
from calid.heart.figures import read_figures
from calid.images import whole_file

FIGURES_NAME = "figures.json"

TABLE_NAMES = ("cohort.csv", "failures.csv", "cohort.json")
"""The files that lie in OUT itself."""
FAILURE_COLUMNS = ("case", "code", "message", "remedy")


class Store:
    """The results in one folder.

    Args:
        folder: OUT.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cases, self._failures, self._working = (folder / name for name in ("cases", "failures", "working"))

    def begin(self, asked: Mapping[str, Any], names: Sequence[str]) -> None:
        """Make the folder for a cohort, or take up the same cohort again, with more cases perhaps.

        Args:
            asked: what is to be done, JSON values.
            names: names of all cases, in the order of the table.

        Raises:
            SettingsError: "other-cohort" if the folder holds results of other settings.
            OutputError: the folder cannot be written.
        """
        try:
            for folder in (self._cases, self._failures, self._working):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                "unwritable", f"{self.folder} cannot be written ({error.strerror}).", "Choose another."
            ) from error
        new: dict[str, Any] = {"asked": dict(asked), "cases": []}
        known = self._read_cohort() if self._cohort_path.is_file() else new
        differing = sorted(key for key in {*known["asked"], *asked} if known["asked"].get(key) != asked.get(key))
        if differing:
            raise SettingsError(
                "other-cohort",
                f"{self.folder} was begun with other settings ({', '.join(differing)}).",
                "Choose another folder, or the same settings.",
            )
        every = list(dict.fromkeys([*known["cases"], *names]))
        if every != known["cases"]:
            self._write(self._cohort_path, json.dumps({"asked": dict(asked), "cases": every}, indent=1) + "\n")

    @property
    def _cohort_path(self) -> Path:
        return self.folder / "cohort.json"

    def _read_cohort(self) -> dict[str, Any]:
        try:
            known = json.loads(self._cohort_path.read_text(encoding="utf-8"))
            return {"asked": dict(known["asked"]), "cases": list(known["cases"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "no-cohort", f"{self.folder} holds no cohort.", "Give the folder of a cohort run."
            ) from error

    def is_done(self, name: str) -> bool:
        """Whether a case has its results."""
        return (self._cases / name / FIGURES_NAME).is_file()

    @contextmanager
    def working_folder(self) -> Iterator[Path]:
        """An empty folder for a case under way; what dead processes left is swept, and so is this one at the end."""
        whole_file.sweep(self._working)
        folder = self._working / whole_file.temporary_name(".case")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, name: str, folder: Path) -> None:
        """Let a case's results appear, all at once.

        Raises:
            OutputError: they cannot be moved into place.
        """
        target = self._cases / name
        try:
            for path in folder.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
            if target.exists():  # of somebody who worked on the same case
                shutil.rmtree(target)
            folder.replace(target)
        except OSError as error:
            raise OutputError(
                "unwritable", f"The results cannot be written ({error.strerror}).", "Check the disk."
            ) from error
        (self._failures / f"{name}.json").unlink(missing_ok=True)

    def fail(self, name: str, *, code: str, message: str, remedy: str) -> None:
        """Note why a case failed, unless somebody else has done it."""
        if not self.is_done(name):
            self._write(
                self._failures / f"{name}.json", json.dumps({"code": code, "message": message, "remedy": remedy})
            )

    def sweep(self) -> None:
        """Remove what dead processes left, and the folder of cases under way if nobody is at work."""
        whole_file.sweep(self._working)
        with suppress(OSError):
            self._working.rmdir()

    def status(self) -> tuple[list[str], dict[str, dict[str, str]], list[str]]:
        """Names of the cases that are done, the failures by name, and the names that are neither."""
        names = self._read_cohort()["cases"]
        done = [name for name in names if self.is_done(name)]
        failures = {name: found for name in names if name not in set(done) and (found := self._failure(name))}
        return done, failures, [name for name in names if name not in {*done, *failures}]

    def _failure(self, name: str) -> dict[str, str] | None:
        path = self._failures / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError:
            return None

    def write_tables(self) -> None:
        """Make `cohort.csv` and `failures.csv` from the cases that are done and those that failed."""
        done, failures, _ = self.status()
        rows = (row_of(name, read_figures(self._cases / name / FIGURES_NAME)) for name in done)
        self._write(self.folder / "cohort.csv", _csv(COLUMNS, rows))
        listed = ({"case": name, **failure} for name, failure in failures.items())
        self._write(self.folder / "failures.csv", _csv(FAILURE_COLUMNS, listed))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with whole_file.whole_file(path, (path.suffix,), overwrite=True) as draft:
            draft.write_text(text, encoding="utf-8", newline="")


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
