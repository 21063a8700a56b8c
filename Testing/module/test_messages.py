"""Failures in the user's words, and the temporary folders that a killed Slicer leaves."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import slicer
from calid.images import checks
from CaLIDReconstructLib import Messages, Workspace

LIBRARY = Path(Messages.__file__).parent


def codesUsed() -> set[str]:
    """Every code that the library itself gives to a failure."""
    calls = [
        node
        for path in LIBRARY.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failure" and node.args
    ]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_failure_of_the_module_has_a_title():
    assert "busy" in codesUsed()
    assert {code for code in codesUsed() if not Messages.failure(code).title} == set()


def test_an_engine_error_keeps_its_place_between_a_translated_title_and_remedy(monkeypatch):
    remedy = "Load the missing slice, or keep only the slices on one side of the gap."
    german = {"A slice is missing.": "Eine Schicht fehlt.", remedy: "Laden Sie die fehlende Schicht."}
    monkeypatch.setattr(slicer.app, "translations", german)
    event = {"code": "missing-slice", "message": "Gap 3 of 9 is 21.0 mm.", "remedy": "Load the missing slice."}
    text = Messages.failureFromEvent(event).text()
    assert text == "Eine Schicht fehlt. Gap 3 of 9 is 21.0 mm. Laden Sie die fehlende Schicht."


def test_a_finding_of_the_checks_is_told_in_translated_words_wherever_its_code_is_known():
    tree = ast.parse(Path(checks.__file__).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if getattr(getattr(node, "func", None), "id", "") == "Finding"]
    codes = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert len(codes) > 10
    assert {code for code in codes if not Messages.failure(code).title} == set()
    assert {code for code in codes if not Messages.failure(code).remedy} == set()


def test_an_unknown_error_keeps_the_engines_own_words():
    event = {"code": "brand-new", "message": "Something new.", "remedy": "Do this."}
    assert Messages.failureFromEvent(event).text() == "Something new. Do this."


def test_a_temporary_folder_that_cannot_be_written_is_called_so(tmp_path):
    with pytest.raises(Messages.ModuleError) as raised:
        Workspace.Workspace(str(tmp_path / "not there"))
    assert raised.value.failure.code == "unwritable"
    assert "Application Settings" in str(raised.value)


def test_a_full_disk_is_told_from_other_file_errors():
    assert Messages.failureFromError(OSError(errno.ENOSPC, "full")).code == "disk-full"
    assert Messages.failureFromError(OSError(errno.EACCES, "no")).code != "disk-full"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "less than a second"), (42, "42 s"), (250, "4 min"), (7500, "2 h 5 min")]
)
def test_times_are_said_as_people_say_them(seconds, text):
    assert Messages.timeText(seconds) == text


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f"CaLID-{dead.pid}-abc"
    stale.mkdir()
    (stale / "input.nrrd").write_bytes(b"x")
    living = Workspace.Workspace(str(tmp_path))
    other = tmp_path / "CaLID-notes"
    other.mkdir()
    assert Workspace.removeStale(str(tmp_path)) == 1
    assert not stale.exists()
    assert living.folder.is_dir()
    assert str(os.getpid()) in living.folder.name
    assert other.is_dir()
    living.remove()
    assert not living.folder.exists()
