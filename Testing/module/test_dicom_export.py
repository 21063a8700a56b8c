"""The DICOM button: where the files of an input are found, what the engine is asked, and why it may not be possible."""

from __future__ import annotations

from pathlib import Path

import file_phantoms
import hearts
import imported_nodes
import numpy as np
import pytest
import slicer
from calid.images.files import read_stack
from CaLIDReconstructLib import DicomSources, FrameTimes, Inputs, Nodes, SaxAssembly
from CaLIDReconstructLib.StudyNodes import addStudy


class Database:
    """As `slicer.dicomDatabase`."""

    isOpen = True

    def __init__(self, files: dict[str, str], interval: str = "") -> None:
        self.files, self.interval, self.asked = files, interval, 0

    def fileForInstance(self, uid: str) -> str:
        return self.files.get(uid, "")

    def instanceValue(self, uid: str, tag: str) -> str:
        self.asked += 1
        assert tag == "0018,1062"
        return self.interval if uid in self.files else ""


@pytest.fixture
def database(tmp_path, monkeypatch):
    """database(count, interval) knows the files of images 1.2.3.1, 1.2.3.2 and so on."""

    def make(count: int, interval: str = "") -> Database:
        files = {}
        for number in range(1, count + 1):
            path = tmp_path / f"image{number}.dcm"
            path.write_bytes(b"DICM")
            files[f"1.2.3.{number}"] = str(path)
        made = Database(files, interval)
        monkeypatch.setattr(slicer, "dicomDatabase", made, raising=False)
        DicomSources._beatOf.cache_clear()
        return made

    yield make
    DicomSources._beatOf.cache_clear()


def names(node) -> list[str]:
    return sorted(path.name for path in DicomSources.sourceFiles(node))


def test_the_files_of_a_volume_that_the_scalar_reader_loaded_are_in_the_database(database):
    database(3)
    stack = hearts.picture()
    node = imported_nodes.scalarVolume(stack.voxels[0][:3], stack.affine)
    assert names(node) == ["image1.dcm", "image2.dcm", "image3.dcm"]
    database(2)
    assert names(node) == ["image1.dcm", "image2.dcm"]


def test_the_files_of_an_image_sequence_are_those_of_its_items_and_stay_known_when_it_is_assembled(database):
    stack = hearts.picture(2)
    times = np.tile([0.0, 40.0], (stack.num_slices, 1))
    database(2 * stack.num_slices)
    _, sequence = imported_nodes.imageSequence(imported_nodes.images(stack, times, "slices"))
    assert len(names(sequence)) == 2 * stack.num_slices
    node = SaxAssembly.assemble(SaxAssembly.findGroups()[0])
    assert names(Inputs.resolve(node).nodes[0]) == names(sequence)


def test_a_multi_volume_names_its_files_itself(tmp_path):
    stack = hearts.picture(2)
    _, sequence = imported_nodes.multiVolumeSequence(stack, [0, 40])
    paths = [tmp_path / f"{index}.dcm" for index in range(2)]
    for path in paths:
        path.write_bytes(b"DICM")
    sequence.SetAttribute("MultiVolume.FrameFileList", ",".join(map(str, paths)))
    assert names(sequence) == ["0.dcm", "1.dcm"]


def test_the_length_of_the_beat_is_asked_of_the_database_once(database):
    stack = hearts.picture(2)
    times = np.tile([0.0, 40.0], (stack.num_slices, 1))
    known = database(2 * stack.num_slices, "812.5")
    _, sequence = imported_nodes.imageSequence(imported_nodes.images(stack, times, "slices"))
    assert [FrameTimes.beatMs(sequence) for _ in range(3)] == [812.5] * 3
    assert known.asked == 1
    node = SaxAssembly.assemble(SaxAssembly.findGroups()[0])
    assert Nodes.stackFromSequence(Inputs.resolve(node).sequence).beat_ms == 812.5
    _, other = Nodes.addStack(stack, "of a file")
    assert FrameTimes.beatMs(other) is None


@pytest.mark.parametrize("interval", ["", "0", "none"])
def test_a_header_without_a_beat_gives_none(database, interval):
    database(3, interval)
    stack = hearts.picture()
    assert DicomSources.nominalBeatMs(imported_nodes.scalarVolume(stack.voxels[0][:3], stack.affine)) is None


def test_an_input_that_was_no_dicom_is_explained_on_the_button(opened):
    hearts.addPicture()
    panel = opened()
    assert not panel.ui.dicomExportButton.enabled
    assert "no result" in panel.ui.dicomExportButton.toolTip
    panel.run()
    assert not panel.ui.dicomExportButton.enabled
    assert "not loaded from DICOM" in panel.ui.dicomExportButton.toolTip


def test_a_result_becomes_a_series_of_the_study_that_its_input_was_loaded_from(opened, monkeypatch, tmp_path):
    """With the engine's real command, in this process."""
    pytest.importorskip("pydicom")
    import scripted
    from calid.serve.commands import COMMANDS

    def script(request: dict) -> list[dict]:
        if request["command"] != "dicom":
            return scripted.good(request)
        assert all(path.is_symlink() for path in Path(request["source"]).iterdir())
        return [{"event": "result", **COMMANDS["dicom"].answer(request, lambda: False, lambda *_, **__: None)}]

    study = tmp_path / "study of DOE"
    file_phantoms.write_stack(study, hearts.picture(2))
    stack = read_stack(study)
    node = addStudy("study", [("short axis", stack)]).sax
    DicomSources.noteFolder(Inputs.resolve(node).nodes[0], str(study))
    panel = opened(script)
    panel.parameters.inputNode = node
    panel.run()
    assert panel.ui.dicomExportButton.enabled, panel.ui.dicomExportButton.toolTip
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(panel.panel.dicomExport, "chooseFolder", lambda: str(out))
    for name in ("CaLID", "CaLID 2"):
        panel.ui.dicomExportButton.click()
        panel.until(lambda: "images are written" in panel.ui.statusLabel.text)
        made = read_stack(out / name)
        assert made.num_slices == panel.panel.results.result.volume.GetImageData().GetDimensions()[2]
        assert np.array_equal(made.voxels[:, ~made.generated], stack.voxels)
        panel.ui.statusLabel.text = ""
    assert "DOE" not in panel.panel.report()
    assert panel.ui.dicomExportButton.enabled


def test_moved_slices_are_no_longer_images_of_the_study(opened):
    import json

    from CaLIDReconstructLib.Results import PROVENANCE, readProvenance

    node, _ = hearts.addPicture()
    DicomSources.noteFiles(node, [Path(__file__)])
    panel = opened()
    panel.run()
    assert panel.ui.dicomExportButton.enabled
    result = panel.panel.results.result
    shifts = {"applied": True, "slices": [{"name": "slice 1", "mm": [3, 0, 0], "uncertainty_mm": [1, 1, 1]}]}
    result.node.SetAttribute(PROVENANCE, json.dumps({**readProvenance(result.node), "alignment": shifts}))
    panel.panel.refresh()
    assert not panel.ui.dicomExportButton.enabled
    assert "were moved" in panel.ui.dicomExportButton.toolTip
