"""Questions to an engine in memory: what an estimate leaves behind, whatever comes of it."""

from __future__ import annotations

import errno
from pathlib import Path

import hearts
import pytest
import scripted
import slicer
from calid.errors import OutputError
from calid.images import files
from CaLIDReconstructLib.Logic import Logic
from CaLIDReconstructLib.Settings import RunSettings


@pytest.fixture
def temporaryFolder(tmp_path, monkeypatch) -> Path:
    """The folder that takes the place of Slicer's for temporary files."""
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path))
    return tmp_path


@pytest.fixture
def logic():
    made = Logic(makeTransport=lambda: scripted.ScriptedTransport(scripted.good))
    yield made
    made.close()


def test_the_file_of_an_estimate_is_there_until_the_answer(logic, temporaryFolder):
    volume, _ = hearts.addPicture()
    answers = []
    logic.estimate(volume, RunSettings(), lambda *answer: answers.append(answer))
    (folder,) = temporaryFolder.iterdir()
    assert [path.name for path in folder.iterdir()] == ["input.nrrd"]
    while not answers:
        logic.poll()
    assert list(temporaryFolder.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OutputError("unwritable", "This cannot be written.", ""),
        RuntimeError("the library gave up"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_estimate_whose_file_cannot_be_written_leaves_nothing(logic, temporaryFolder, monkeypatch, error):
    volume, _ = hearts.addPicture()

    def fail(_stack, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(files, "write_stack", fail)
    with pytest.raises(type(error)):
        logic.estimate(volume, RunSettings(), lambda *_: None)
    assert list(temporaryFolder.iterdir()) == []
