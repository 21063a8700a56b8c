"""Which cases a cohort has: a CSV file, or a folder in one of the layouts in which cardiac MR is published."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from calid.errors import CalidError, InputError, SettingsError
from calid.images.body import Body
from calid.images.files import suffix_of
from calid.run.settings import OPTIONS, Settings

CASE_SETTINGS = tuple(name for name in OPTIONS if name not in ("device", "roi"))
"""Settings that a case may have of its own; the device is the machine's, and a region does not go into one cell."""

MANIFEST_COLUMNS = ("case", "path", "views", "height_cm", "weight_kg", *CASE_SETTINGS)

_NAME = re.compile(r"\w(?:[\w .+=@()-]{0,98}[\w+=@()-])?")
_UK_BIOBANK = re.compile(r"(?P<subject>\w+)_20209_(?P<visit>\d+_\d+)\.zip")


@dataclass(frozen=True)
class CohortCase:
    """One line of the manifest.

    Args:
        name: how the case is called in every output, message and log.
        path: volume file, UK Biobank zip, or folder.
        views: folder or zip of long-axis images, where they do not lie beside the short axis.
        body: height and weight, where the manifest gives them.
        settings: settings of this case that differ from the cohort's.
    """

    name: str
    path: Path
    views: Path | None = None
    body: Body | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def cases_of(path: Path) -> list[CohortCase]:
    """The cases of a CSV file or of a folder, in their order there.

    Args:
        path: CSV file with the columns `case` and `path` and any others of `MANIFEST_COLUMNS`, whose paths are relative
            to the file's folder; or a folder, each of whose sub-folders, volume files and UK Biobank zips is a case.

    Raises:
        InputError: there is nothing there, or a line cannot be used; the message names it.
    """
    if path.is_dir():
        cases = find_cases(path)
    elif path.is_file():
        cases = _from_csv(path)
    else:
        raise InputError("missing-file", f"{path} does not exist.", "Give a CSV file or a folder of cases.")
    if not cases:
        raise InputError("no-cases", f"{path} holds no cases.", "Give a CSV file or a folder of cases.")
    _need_different_names(cases)
    return cases


def find_cases(folder: Path) -> list[CohortCase]:
    """The cases of a folder: each sub-folder, volume file, and UK Biobank zip of short-axis images (field 20209).

    The zip of long-axis images (field 20208) of the same subject and visit belongs to the case.
    """
    cases = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        suffix = suffix_of(path)
        if biobank := _UK_BIOBANK.fullmatch(path.name):
            views = path.with_name(f"{biobank['subject']}_20208_{biobank['visit']}.zip")
            name = f"{biobank['subject']}_{biobank['visit']}"
            cases.append(CohortCase(_checked(name, path.name), path, views if views.is_file() else None))
        elif path.is_dir():
            cases.append(CohortCase(_checked(path.name, path.name), path))
        elif suffix is not None:
            cases.append(CohortCase(_checked(path.name[: -len(suffix)], path.name), path))
    return cases


def shard(cases: Sequence[CohortCase], index: int, count: int) -> list[CohortCase]:
    """Every `count`-th case from the `index`-th on, counted from 1, so that all shards together are all cases once."""
    return list(cases[index - 1 :: count])


def _need_different_names(cases: Sequence[CohortCase]) -> None:
    """Return if no two names are one file name on any system."""
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.setdefault(case.name.casefold(), case.name)
        if other is not case.name:
            raise InputError(
                "same-case", f"Two cases are called {other!r} and {case.name!r}.", "Give each case a name of its own."
            )


def _checked(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            "case-name",
            f"{where}: {name!r} cannot be the name of a case.",
            "Use up to 100 letters, digits, blanks and . _ + = @ ( ) -, and begin with a letter or digit.",
        )
    return name


# --- CSV --------------------------------------------------------------------------------------------------------------


def _from_csv(path: Path) -> list[CohortCase]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            _need_columns(path, rows.fieldnames or ())
            return [_case(row, path.parent, f"{path.name}, line {rows.line_num}") for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError("bad-manifest", f"{path.name} is no CSV file in UTF-8: {error}.", "Save it again.") from error


def _need_columns(path: Path, names: Sequence[str]) -> None:
    for name in ("case", "path"):
        if name not in names:
            raise InputError("bad-manifest", f"{path.name} has no column '{name}'.", "Begin it with: case,path")
    for name in names:
        if name not in MANIFEST_COLUMNS:
            raise InputError(
                "bad-manifest", f"{path.name} has a column '{name}'.", f"Columns may be {', '.join(MANIFEST_COLUMNS)}."
            )


def _case(row: Mapping[str, str | None], folder: Path, where: str) -> CohortCase:
    if None in row.values() or None in row:
        raise InputError("bad-manifest", f"{where} has another number of values than there are columns.", "Mend it.")
    given = {name: value.strip() for name, value in row.items() if value and value.strip()}
    if "path" not in given:
        raise InputError("bad-manifest", f"{where} has no path.", "Give one, or remove the line.")
    return CohortCase(
        name=_checked(given.get("case", ""), where),
        path=folder / given["path"],
        views=folder / given["views"] if "views" in given else None,
        body=_body(given, where),
        settings=_settings(given, where),
    )


def _body(given: Mapping[str, str], where: str) -> Body | None:
    sizes = [given.get(name) for name in ("height_cm", "weight_kg")]
    if sizes == [None, None]:
        return None
    try:
        return Body(*(float(size or "nan") for size in sizes))
    except ValueError as error:
        raise InputError("bad-manifest", f"{where}: {error}.", "Give both height_cm and weight_kg, or none.") from error


def _settings(given: Mapping[str, str], where: str) -> dict[str, Any]:
    chosen = {name: _value(name, given[name]) for name in CASE_SETTINGS if name in given}
    try:
        Settings(**chosen)
    except (CalidError, TypeError) as error:
        raise SettingsError("settings", f"{where}: {error}", "Mend the line.") from error
    return chosen


def _value(name: str, text: str) -> Any:
    """A setting from its text in a table; what is no number stays as it is, and is judged by `Settings`."""
    if name == "frames":
        return tuple(int(part) if part.isdigit() else part for part in text.split(":"))
    return int(text) if text.isdigit() else text


def with_settings(settings: Settings, case: CohortCase) -> Settings:
    """The cohort's settings with those of one case."""
    return replace(settings, **case.settings)
