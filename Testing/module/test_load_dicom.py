"""Load DICOM folder: the engine reads it, the panel shows what it decided and puts everything into one study."""

from __future__ import annotations

import os
from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
import scripted
import slicer
from calid.images import files
from CaLIDReconstructLib import FrameTimes, Inputs, LaxPlanes, Nodes, Workspace

FRAMES = 3
SERIES = [
    {"number": 12, "description": "SA cine", "role": "short axis", "slices": 11, "phases": FRAMES},
    {"number": 7, "description": "4 chamber", "role": "long axis", "slices": 1, "phases": FRAMES},
    {"number": 3, "description": "localizer", "role": "left out", "slices": 9, "phases": 1},
]


def study(request: dict, *, confidence: str = "high") -> list[dict]:
    """What the engine answers: files with times and the beat, and its decision."""
    heart = hearts.picture(FRAMES)
    sax, view = Path(request["folder"]) / "sax.seq.nrrd", Path(request["folder"]) / "lax01.seq.nrrd"
    files.write_stack(type(heart)(heart.voxels, heart.affine, heart.frame_times_ms, beat_ms=860.0), sax)
    files.write_stack(hearts.longAxis(heart, phantoms.heart_frame(3)), view)
    choice = {"series": [12, 13], "description": "SA cine", "slices": 11, "phases": FRAMES}
    decision = {"series": SERIES, "choice": choice, "confidence": confidence, "reasons": ["it has the most slices"]}
    left = ["9 images of localizer: not a cine."]
    lax = [{"name": "4 chamber", "path": str(view)}]
    return [{"event": "result", "study": decision, "sax": str(sax), "lax": lax, "left_out": left}]


@pytest.fixture
def loading(opened, monkeypatch):
    """loading(answer) opens a panel whose engine answers so, and loads a folder with it."""

    def load(answer=study):
        panel = opened(lambda request: answer(request) if request["command"] == "study" else scripted.good(request))
        monkeypatch.setattr(panel.panel.study, "chooseFolder", lambda: "/dicom/EXAM7")
        panel.ui.dicomButton.click()
        panel.until(lambda: not panel.panel.study.isLoading)
        return panel

    return load


def test_short_and_long_axes_are_loaded_as_cines_with_times_in_one_study(loading):
    panel = loading()
    chosen = Inputs.resolve(panel.parameters.inputNode)
    stack = Inputs.readStack(chosen)
    heart = hearts.picture(FRAMES)
    assert np.array_equal(stack.voxels, heart.voxels)
    assert np.allclose(stack.frame_times_ms, heart.frame_times_ms)
    assert stack.beat_ms == 860.0
    assert [plane.name for plane in LaxPlanes.acquiredPlanes(chosen.volume)] == ["4 chamber"]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    shown = [chosen.volume, LaxPlanes.acquiredPlanes(chosen.volume)[0].volume]
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in shown}
    assert [hierarchy.GetItemName(parent) for parent in parents] == ["EXAM7"]
    assert panel.ui.upsampleButton.enabled


def test_the_decision_is_shown(loading):
    text = loading().ui.studyLabel.text
    assert "Series 12, 13 (SA cine): short axis, 11 slices, 3 phases" in text
    assert "Series 7 (4 chamber): long axis, 3 phases" in text
    assert "Left out: 9 images of localizer: not a cine." in text


def test_a_doubtful_decision_asks_to_be_looked_at(loading):
    panel = loading(lambda request: study(request, confidence="low"))
    assert panel.ui.studyLabel.text.startswith("\u26a0")
    assert "it has the most slices" in panel.ui.studyLabel.text


def test_the_engine_is_asked_to_read_and_nothing_is_left_behind(loading):
    panel = loading()
    (request,) = [r for t in panel.transports for r in t.requests if r["command"] == "study"]
    assert request["input"] == "/dicom/EXAM7"
    assert not Path(request["folder"]).exists()
    assert list(Path(Workspace.temporaryFolder()).glob(f"CaLID-{os.getpid()}-*")) == []


def test_a_refusal_is_told_as_an_error_and_adds_nothing(loading):
    answer = scripted.error("several-stacks", "There are cine stacks in different directions.")
    panel = loading(lambda _request: answer[1:])
    assert panel.ui.studyLabel.text.startswith("\u2716")
    assert "different directions" in panel.ui.studyLabel.text
    assert panel.parameters.inputNode is None
    assert panel.ui.dicomButton.enabled


def test_an_answer_that_cannot_be_read_is_told(loading):
    def broken(request):
        events = study(request)
        Path(events[0]["sax"]).write_bytes(b"NRRD")
        return events

    panel = loading(broken)
    assert panel.ui.studyLabel.text.startswith("\u2716")
    assert panel.ui.dicomButton.enabled


def test_a_result_keeps_the_beat_of_its_input(loading):
    panel = loading()
    panel.run()
    result = panel.panel.results.result
    assert FrameTimes.beatMs(result.sequence) == 860.0
    assert np.allclose(Nodes.frameTimesMs(result.sequence), hearts.picture(FRAMES).frame_times_ms)


def test_no_folder_chosen_does_nothing(opened, monkeypatch):
    panel = opened()
    monkeypatch.setattr(panel.panel.study, "chooseFolder", lambda: "")
    panel.ui.dicomButton.click()
    assert panel.commands == []
    assert not panel.ui.studyLabel.isVisibleTo(panel.widget.parent)
