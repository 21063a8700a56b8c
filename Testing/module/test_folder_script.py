"""The script for a whole folder: it goes on where it stopped, past whatever is wrong with one case, and always ends."""

from __future__ import annotations

import importlib.util
import sys

import hearts
import numpy as np
import pytest
import scripted
import slicer
from calid.images import files
from CaLIDReconstructLib.Logic import Reconstruction
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
def logic():
    """The module's logic on a good engine in memory."""
    preferences = Preferences()
    preferences.interpreter = preferences.modelsFolder = ""
    made = Reconstruction(preferences, lambda: scripted.ScriptedTransport(scripted.good))
    yield made
    made.close()


@pytest.fixture
def folders(tmp_path):
    """(IN_FOLDER, OUT_FOLDER), the first with the cases a (a cine), b (one slice only) and c (a volume)."""
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    stack = hearts.picture(2)
    files.write_stack(stack, inputs / "a.seq.nrrd")
    files.write_stack(stack.with_voxels(stack.voxels[:, :1], generated=None), inputs / "b.seq.nrrd")
    files.write_stack(stack.frame(0), inputs / "c.nii.gz")
    return inputs, outputs


def arguments(folders) -> list[str]:
    return [*map(str, folders), "--method", "linear", "--factor", "2"]


def test_the_script_goes_on_where_it_stopped_and_past_a_bad_case(script, logic, folders, capsys):
    inputs, outputs = folders
    stack = files.read_stack(inputs / "a.seq.nrrd")
    assert script.main(arguments(folders), logic) == 1
    assert "only one slice" in (outputs / "failed.txt").read_text()
    made = files.read_stack(outputs / "a.seq.nrrd")
    assert np.array_equal(made.voxels[:, ::2], stack.voxels)
    assert np.array_equal(made.generated, np.arange(made.num_slices) % 2 == 1)
    assert np.array_equal(files.read_stack(outputs / "c.nrrd").voxels[:, ::2], stack.voxels[:1])
    before = (outputs / "a.seq.nrrd").stat().st_mtime_ns
    capsys.readouterr()
    script.main(arguments(folders), logic)
    assert "a: already there" in capsys.readouterr().out
    assert (outputs / "a.seq.nrrd").stat().st_mtime_ns == before


def test_a_case_that_succeeds_later_is_no_longer_among_the_failed(script, logic, folders):
    inputs, outputs = folders
    script.main(arguments(folders), logic)
    assert (outputs / "failed.txt").read_text().startswith("b: ")
    files.write_stack(hearts.picture(), inputs / "b.seq.nrrd", overwrite=True)
    assert script.main(arguments(folders), logic) == 0
    assert not (outputs / "failed.txt").exists()


def test_an_error_that_nobody_thought_of_stops_one_case_only(script, logic, folders, monkeypatch):
    _, outputs = folders
    read = files.read_stack

    def broken(path):
        if path.name.startswith("a"):
            raise ZeroDivisionError
        return read(path)

    monkeypatch.setattr(files, "read_stack", broken)
    assert script.main(arguments(folders), logic) == 2
    assert "a: ZeroDivisionError" in (outputs / "failed.txt").read_text()
    assert (outputs / "c.nrrd").is_file()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["--factor", "3"], "invalid choice: 3"), (["--method", "magic"], "magic"), (["--device", "tpu"], "tpu")],
)
def test_a_setting_that_does_not_exist_is_refused_before_any_case(script, folders, capsys, wrong, said):
    with pytest.raises(SystemExit):
        script.main([*map(str, folders), *wrong])
    assert said in capsys.readouterr().err
    assert not folders[1].exists()


def test_slicer_ends_whatever_happens(script, folders, monkeypatch):
    codes = []
    monkeypatch.setattr(slicer.util, "exit", codes.append)
    monkeypatch.setattr(sys, "argv", ["upsample_folder.py", "no such folder", str(folders[1])])
    with pytest.raises(SystemExit):
        script.run()
    monkeypatch.setattr(script, "main", lambda _arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.run()
    monkeypatch.setattr(script, "main", lambda _arguments: 3)
    script.run()
    monkeypatch.setattr(script, "main", lambda _arguments: 0)
    script.run()
    assert codes == [1, 1, 1, 0]
