"""What may be sent to others holds no name of a node, and no folder that holds the user's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path, PureWindowsPath

import hearts
import pytest
import slicer
from CaLIDReconstructLib import PrivateLog


def test_the_name_of_a_node_is_left_out_also_when_the_node_is_gone():
    volume, _ = hearts.addPicture(name="DOE^JANE")
    log = PrivateLog.PrivateLog()
    log.add("error: The chosen node holds no image. DOE^JANE")
    slicer.mrmlScene.RemoveNode(volume)
    log.add("error: The input was removed from the scene during the run. DOE^JANE")
    assert "DOE" not in log.report([])
    assert log.report([]).count("[node]") == 2


def test_a_name_inside_another_word_leaves_that_word_alone():
    hearts.addPicture(name="CPU")
    log = PrivateLog.PrivateLog()
    log.add("CPU: DefaultCPUAllocator")
    assert log.report(["versions"]).splitlines() == ["versions", "", "[node]: DefaultCPUAllocator"]


def test_the_longer_of_two_names_is_left_out_as_a_whole():
    hearts.addPicture(name="DOE")
    hearts.addPicture(name="DOE JANE")
    log = PrivateLog.PrivateLog()
    log.add("DOE JANE is unevenly spaced")
    assert log.report([]).endswith("\n[node] is unevenly spaced")


@pytest.mark.parametrize("folder", [Path("/home/jane.doe"), PureWindowsPath(r"C:\Users\Jane Doe")])
def test_home_and_temporary_folder_are_left_out_as_the_system_json_and_qt_write_them(monkeypatch, folder):
    monkeypatch.setattr(PrivateLog, "Path", lambda path: type(folder)(path))
    monkeypatch.setattr(PrivateLog.Path, "home", lambda: folder, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder / "Temp"))
    log = PrivateLog.PrivateLog()
    for path in (folder / "python", folder / "Temp" / "CaLID-1-x"):
        log.add(f"{path} {json.dumps(str(path))} {path.as_posix()}")
    report = log.report([str(folder)])
    assert "doe" not in report.lower()
    assert report.count("[temp]") == 3
    assert report.count("[home]") == 4
