"""The script for a whole folder: `calid cohort` with the panel's interpreter and models, and Slicer always ends."""

from __future__ import annotations

import importlib.util
import sys

import hearts
import numpy as np
import pytest
import slicer
from calid.images import files
from CaLIDReconstructLib.Parameters import Preferences
from host.application import MODULE_FOLDER


@pytest.fixture
def script():
    """The script as a module."""
    path = MODULE_FOLDER / "Resources" / "Scripts" / "upsample_folder.py"
    spec = importlib.util.spec_from_file_location("upsample_folder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def preferences():
    """Slicer's own interpreter and the bundled models."""
    chosen = Preferences()
    chosen.interpreter = chosen.modelsFolder = ""
    return chosen


def test_a_folder_is_done_past_a_bad_case_and_goes_on_where_it_stopped(
    script, preferences, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    stack = hearts.picture(2)
    files.write_stack(stack, tmp_path / "in" / "a.seq.nrrd")
    files.write_stack(stack.with_voxels(stack.voxels[:, :1], generated=None), tmp_path / "in" / "b.seq.nrrd")
    arguments = [
        "in",
        "out",
        "--method",
        "linear",
        "--factor",
        "2",
        "--no-segment",
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    assert script.main(arguments, preferences) == 3
    made = files.read_stack(tmp_path / "out" / "cases" / "a" / "dense.seq.nrrd")
    assert np.array_equal(made.voxels[:, ::2], stack.voxels)
    assert np.array_equal(made.generated, np.arange(made.num_slices) % 2 == 1)
    assert "only one slice" in (tmp_path / "out" / "failures.csv").read_text(encoding="utf-8")
    before = (tmp_path / "out" / "cases" / "a" / "dense.seq.nrrd").stat().st_mtime_ns
    files.write_stack(stack, tmp_path / "in" / "b.seq.nrrd", overwrite=True)
    assert script.main(arguments, preferences) == 0
    assert (tmp_path / "out" / "cases" / "a" / "dense.seq.nrrd").stat().st_mtime_ns == before
    assert "2 of 2 cases are done" in capfd.readouterr().out


def test_the_panels_choices_are_taken_and_those_typed_win(script, preferences, monkeypatch):
    commands = []

    class Ended:
        def wait(self):
            return 0

        def poll(self):
            return 0

    monkeypatch.setattr(script, "startProcess", lambda command: commands.append(command) or Ended())
    preferences.modelsFolder = "/models"
    script.main(["in", "out"], preferences)
    script.main(["in", "out", "--models", "/mine", "--keep", "labels"], preferences)
    first, second = (command.arguments for command in commands)
    assert first[1:] == ("-m", "calid", "cohort", "in", "out", "--keep", "dense", "--models", "/models")
    assert second[1:] == ("-m", "calid", "cohort", "in", "out", "--models", "/mine", "--keep", "labels")


def test_slicer_ends_whatever_happens(script, monkeypatch):
    codes = []
    monkeypatch.setattr(slicer.util, "exit", codes.append)
    monkeypatch.setattr(script, "main", lambda _arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.run()
    monkeypatch.setattr(sys, "argv", ["upsample_folder.py", "in", "out"])
    for code in (3, 0):
        monkeypatch.setattr(script, "main", lambda _arguments, code=code: code)
        script.run()
    assert codes == [1, 3, 0]
