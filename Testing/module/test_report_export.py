"""The report button: the engine's own command on the nodes as they are, in the background."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import hearts
import numpy as np
import phantoms
import pytest
from calid.images import files
from CaLIDReconstructLib import Nodes, ReportExport

FRAMES = 2
WRITES = "import sys; open(sys.argv[1], 'w').write('<html>heart</html>')"
FAILS = "import sys; print('The stack is no heart.', file=sys.stderr); sys.exit(1)"


@pytest.fixture
def reporting(opened, monkeypatch, tmp_path):
    """reporting(program) makes a result, and a report of it with this Python program in the engine's place."""
    seen = {}

    def start(program: str):
        hearts.addPicture(frames=FRAMES, name="DOE^JANE")
        Nodes.addStack(hearts.longAxis(hearts.picture(FRAMES), phantoms.heart_frame(3)), "DOE 4ch")
        panel = opened()
        panel.run()
        path = tmp_path / "report.html"
        real = ReportExport.startProcess

        def started(command, **streams):
            seen["arguments"] = command.arguments
            value = {key: command.arguments[command.arguments.index(key) + 1] for key in ("--labels", "--lax")}
            seen["dense"] = files.read_stack(Path(command.arguments[4]))
            seen["labels"] = files.read_stack(Path(value["--labels"]))
            seen["lax"] = {each.name: files.read_stack(each) for each in Path(value["--lax"]).iterdir()}
            return real(replace(command, arguments=(sys.executable, "-c", program, str(path))), **streams)

        monkeypatch.setattr(ReportExport, "startProcess", started)
        monkeypatch.setattr(panel.panel.reportExport, "chooseFile", lambda: str(path))
        panel.ui.reportButton.click()
        panel.until(lambda: not panel.panel.reportExport.isBusy)
        return panel, path, seen

    return start


def test_the_engine_gets_the_result_its_labels_and_the_long_axis_images(reporting):
    panel, path, seen = reporting(WRITES)
    assert path.read_text() == "<html>heart</html>"
    assert "report is written" in panel.ui.statusLabel.text
    assert seen["arguments"][1:4] == ("-m", "calid", "report")
    result = panel.panel.results.result
    assert np.array_equal(seen["labels"].voxels, result.labels.voxels)
    assert seen["dense"].generated.any()
    assert [stack.num_frames for stack in seen["lax"].values()] == [FRAMES]
    assert "DOE" not in " ".join(seen["arguments"]) + " ".join(seen["lax"])
    assert not Path(seen["arguments"][4]).exists()  # nothing is left behind
    assert panel.ui.reportButton.enabled


def test_a_report_that_fails_says_why(reporting):
    panel, path, _ = reporting(FAILS)
    assert not path.exists()
    assert panel.ui.statusLabel.text.startswith("\u2716")
    assert "no heart" in panel.ui.statusLabel.text
    assert panel.ui.reportButton.enabled
