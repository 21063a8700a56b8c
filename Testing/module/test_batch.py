"""The batch: what the engine is asked for a folder and for the studies of a scene, and how it is followed and ended."""

from __future__ import annotations

import csv
from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
import scripted
from calid.images.files import read_stack
from CaLIDReconstructLib import Nodes, SceneHearts
from CaLIDReconstructLib.StudyNodes import addStudy


def cohort(request: dict) -> list[dict]:
    """An engine that does three hearts, of which one fails."""
    if request["command"] != "cohort":
        return scripted.good(request)
    events = [{"event": "case", "name": None, "outcome": None, "done": 0, "cases": 3, "failed": 0}]
    for done, outcome in enumerate(("done", "failed", "done"), start=1):
        told = {"name": "DOE", "outcome": outcome, "done": done, "cases": 3, "failed": int(done > 1)}
        events.append({"event": "case", **told})
    return [*events, {"event": "result", "cases": 3, "failed": ["DOE"], "table": "cohort.csv"}]


@pytest.fixture
def batch(opened, monkeypatch, tmp_path):
    """batch(script) is a panel whose user takes tmp_path/in and tmp_path/out."""

    def make(script=cohort, **options):
        panel = opened(script, **options)
        answers = iter([str(tmp_path / "in"), str(tmp_path / "out")] * 9)
        monkeypatch.setattr(panel.panel.batch, "chooseFolder", lambda *_: next(answers))
        return panel

    (tmp_path / "out").mkdir()
    return make


def test_a_folder_is_done_by_the_engines_cohort_with_the_panels_settings(batch, tmp_path):
    panel = batch()
    panel.parameters.segmentResult = False
    panel.parameters.seed = 7
    panel.ui.batchLabelsCheckBox.checked = True
    panel.ui.batchFolderButton.click()
    assert panel.panel.batch.isRunning
    assert not panel.ui.batchFolderButton.enabled
    panel.until(lambda: not panel.panel.batch.isRunning)
    (request,) = [each for transport in panel.transports for each in transport.requests if each["command"] == "cohort"]
    assert (request["input"], request["output"]) == (str(tmp_path / "in"), str(tmp_path / "out"))
    assert (request["segment"], request["seed"], request["keep"]) == (False, 7, ["dense", "labels"])
    assert "roi" not in request
    assert "2 of 3 hearts are done" in panel.ui.batchLabel.text
    assert "1 failed" in panel.ui.batchLabel.text
    assert panel.ui.batchLabel.text.startswith("\u26a0")
    assert "DOE" not in panel.panel.report()


def test_a_batch_takes_nothing_that_the_engine_does_not_know(batch):
    """The fields are those of the real command."""
    from calid.serve.commands import COMMANDS

    panel = batch(lambda request: COMMANDS["cohort"].check(request) or cohort(request))
    panel.ui.batchFolderButton.click()
    panel.until(lambda: not panel.panel.batch.isRunning)


def test_a_batch_can_be_cancelled_and_says_that_it_goes_on(batch):
    panel = batch(lambda request: [] if request["command"] == "cohort" else scripted.good(request))
    panel.ui.batchFolderButton.click()
    panel.ui.batchCancelButton.click()
    panel.until(lambda: not panel.panel.batch.isRunning)
    assert "goes on from there" in panel.ui.batchLabel.text


def test_a_run_goes_on_beside_a_batch(batch):
    hearts.addPicture()
    panel = batch(lambda request: [] if request["command"] == "cohort" else scripted.good(request))
    panel.ui.batchFolderButton.click()
    panel.run()
    assert panel.panel.results.result is not None
    assert panel.panel.batch.isRunning
    panel.ui.batchCancelButton.click()
    panel.until(lambda: not panel.panel.batch.isRunning)


def test_a_batch_that_cannot_begin_says_why(batch):
    panel = batch(lambda _request: scripted.error("no-cases", "in holds no cases."))
    panel.ui.batchFolderButton.click()
    panel.until(lambda: not panel.panel.batch.isRunning)
    assert panel.ui.batchLabel.text.startswith("\u2716")
    assert "holds no cases" in panel.ui.batchLabel.text


def test_a_scene_without_hearts_is_said(batch):
    panel = batch()
    panel.ui.batchSceneButton.click()
    assert "no short-axis stack" in panel.ui.batchLabel.text


def test_the_studies_of_a_scene_become_a_table_that_names_nobody(tmp_path):
    """Each heart has the long-axis images of its own study, in the space of its stack."""
    frame = phantoms.heart_frame(3)
    for number, name in enumerate(("DOE^JANE", "ROE^RICHARD")):
        stack = hearts.picture(2, seed=3)
        stack = stack.with_voxels(stack.voxels + np.int16(number))
        addStudy(name, [(f"{name} sax", stack), (f"{name} 4ch", hearts.longAxis(stack, frame))])
    found = SceneHearts.heartsInScene()
    table = SceneHearts.writeHearts(found, tmp_path / "hearts")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["case"] for row in rows}) == 2
    for row in rows:
        assert read_stack(table.parent / row["path"]).num_frames == 2
        assert [path.name for path in (table.parent / row["lax"]).iterdir()] == ["long axis 1.seq.nrrd"]
    everything = " ".join(str(path) for path in table.parent.rglob("*")) + table.read_text()
    assert "DOE" not in everything
    assert "ROE" not in everything
    before = [row["case"] for row in rows]
    Nodes.addStack(hearts.picture(2, seed=4), "third")
    again = SceneHearts.writeHearts(SceneHearts.heartsInScene(), tmp_path / "hearts")
    with again.open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)][:2] == before


def test_the_scene_is_handed_over_as_its_table(batch, tmp_path):
    hearts.addPicture(frames=2)
    panel = batch()
    panel.panel.batch.chooseFolder = lambda *_: str(tmp_path / "out")
    panel.ui.batchSceneButton.click()
    panel.until(lambda: not panel.panel.batch.isRunning)
    (request,) = [each for transport in panel.transports for each in transport.requests if each["command"] == "cohort"]
    assert Path(request["input"]).name == "hearts.csv"
    assert Path(request["output"]) == tmp_path / "out" / "results"
