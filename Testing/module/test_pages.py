"""The pages about the module say what the panel says, and their first heart can be had as they tell it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scripted
from calid.images import files
from CaLIDReconstructLib import DemoCase
from host.application import MODULE_FOLDER

DOCS = MODULE_FOLDER.parent / "docs"
FIRST_HEART = DOCS / "how-to" / "first-heart-in-slicer.md"
UI = MODULE_FOLDER / "Resources" / "UI" / "CaLIDReconstruct.ui"
SLICERS_OWN = ("CaLID", "Edit > Application Settings > Modules > Temporary directory")
SLICERS_OWN += ("Extensions Manager", "Sample Data", "Cardiac", "PyTorch", "Slice view menu > Rotate to volume plane")
PHASES = 3


def buttons() -> dict[str, str]:
    """The names of the panel's buttons by what is written on them."""
    found = {}
    for widget in ElementTree.parse(UI).iter("widget"):
        if widget.get("class") == "QPushButton":
            text = widget.find("property[@name='text']/string")
            found[(text.text or "").rstrip(".") if text is not None else ""] = widget.get("name")
    return found


def texts() -> list[str]:
    """All sentences that the panel may show, values in braces."""
    shown = [text.text or "" for text in ElementTree.parse(UI).iter("string")]
    for path in sorted((MODULE_FOLDER / "CaLIDReconstructLib").glob("*.py")):
        source = re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8"))
        shown += re.findall(r'_\(\s*"((?:[^"\\]|\\.)*)"', source)
    return [*shown, *(sentence for text in shown for sentence in text.split(". ")), "CaLID Reconstruction"]


def is_shown(words: str, among: list[str]) -> bool:
    """Whether one of these texts holds the words, or with some values is held by them."""
    telling = [text for text in among if len(re.sub(r"\{\w+\}", "", text)) > 8]
    patterns = (re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for text in telling)
    return any(words in text for text in among) or any(re.search(pattern, words) for pattern in patterns)


def test_what_the_page_calls_a_button_is_one():
    page = (DOCS / "slicer.md").read_text(encoding="utf-8")
    words = {found.strip(" .:") for found in re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", page)}
    named = {part.strip(" .:") for word in words if word not in SLICERS_OWN for part in re.split(" > |: ", word)}
    shown = texts()
    assert sorted(word for word in named if not is_shown(word, shown)) == []


def test_messages_are_quoted_as_they_are_shown():
    page = (DOCS / "slicer.md").read_text(encoding="utf-8")
    _, _, troubleshooting = page.partition("## Troubleshooting")
    quoted = [
        part.strip(" .") for part in re.findall(r'"([^"]+)"', " ".join(re.findall(r"\*\*(.*?)\*\*", troubleshooting)))
    ]
    assert len(quoted) > 12
    shown = texts()
    wanted = [words for whole in quoted for words in whole.split(" ... ") if words]
    assert [words for words in wanted if not is_shown(words.strip(" ."), shown)] == []


@pytest.fixture
def short_case(monkeypatch, tmp_path):
    """The demo case with its first phases only."""
    if not DemoCase.isThere():
        pytest.skip("the demo case is not bundled in this checkout")
    for path in DemoCase.DEMO_FOLDER.rglob("*.nrrd"):
        files.write_stack(files.read_stack(path).frames(0, PHASES), tmp_path / path.name)
    load = DemoCase.load
    monkeypatch.setattr(DemoCase, "load", lambda: load(tmp_path))


def engine(request: dict) -> list[dict]:
    """A good engine, whose segmenter finds the same heart in every slice, smaller from phase to phase."""
    if request["command"] != "segment":
        return scripted.good(request)
    stack = files.read_stack(Path(request["input"]))
    rows, columns = np.indices(stack.voxels.shape[2:]) - np.array(stack.voxels.shape[2:])[:, None, None] / 2
    labels = np.zeros(stack.voxels.shape, np.uint8)
    for phase, frame in enumerate(labels):
        away = np.hypot(rows, columns)
        frame[:, (away < 26) & (columns < 0)] = 3
        frame[:, away < 20] = 2
        frame[:, away < 12 - phase] = 1
    files.write_labels(stack.with_voxels(labels), Path(request["output"]))
    return [{"event": "result", "output": request["output"]}]


@pytest.mark.usefixtures("views", "short_case")
def test_the_first_heart_comes_by_the_buttons_of_the_page_in_their_order(opened):
    panel, known, clicked = opened(engine), buttons(), []
    for word in re.findall(r"\*\*([^*]+)\*\*", FIRST_HEART.read_text(encoding="utf-8")):
        if word in ("CaLID", "O", "N"):  # the extension, and two keys
            continue
        button = getattr(panel.ui, known[word])
        assert button.enabled, f"{word}: {button.toolTip}"
        button.click()
        panel.until(lambda: not panel.panel.isRunning)
        clicked.append(word)
        if word == "Compare long axis":
            assert panel.panel.results.comparison is not None
    assert clicked == [
        "Try on sample data",
        "Upsample",
        "Compare long axis",
        "Tint generated",
        "Show 3D",
        "Volume curves",
    ]
    result = panel.panel.results.result
    assert result.sequence.GetNumberOfDataNodes() == PHASES
    assert len(panel.panel.results.planes()) == 5
    assert not result.segmentation.GetDisplayNode().GetVisibility3D()
    assert "EF" in panel.ui.functionLabel.text
