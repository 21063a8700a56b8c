"""The bundled demo case: loaded as a study, suitable as it is, offered in the Sample Data module."""

from __future__ import annotations

import hashlib
import os
import sys
import types
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import slicer
from CaLIDReconstructLib import DemoCase, Inputs, LaxPlanes, Suitability

SOURCE = Path(os.environ.get("CALID_SLICER_SOURCE", "."))
SAMPLE_DATA = SOURCE / "Modules" / "Scripted" / "SampleData" / "SampleData.py"
ICONS = DemoCase.DEMO_FOLDER.parent / "Icons"

pytestmark = pytest.mark.skipif(not DemoCase.isThere(), reason="the demo case is not bundled in this checkout")


def test_the_case_is_a_cine_that_can_be_upsampled():
    chosen = Inputs.resolve(DemoCase.load().sax)
    assert chosen.isCine
    assert Suitability.blockingFailure(Inputs.readStack(chosen), chosen.name) is None


def test_all_its_long_axis_images_are_found_as_planes():
    nodes = DemoCase.load()
    planes = LaxPlanes.acquiredPlanes(nodes.sax)
    assert {plane.name for plane in planes} == {"2ch", "3ch", "4ch", "rv-2ch", "rvot"}
    assert {plane.volume for plane in planes} == set(nodes.lax.values())


def test_everything_lies_in_one_study():
    nodes = DemoCase.load()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (nodes.sax, *nodes.lax.values())}
    assert [hierarchy.GetItemName(parent) for parent in parents] == [DemoCase.STUDY_NAME]


def test_the_thumbnail_is_there():
    assert (ICONS / "CaLIDDemoCase.png").is_file()


@pytest.mark.skipif(not SAMPLE_DATA.is_file(), reason="CALID_SLICER_SOURCE names no Slicer source with SampleData.py")
def test_slicers_own_sample_data_module_takes_the_registration(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(SAMPLE_DATA.parent)])
    DemoCase.register(ICONS)
    DemoCase.register(ICONS)
    (source,) = slicer.modules.sampleDataSources[DemoCase.CATEGORY]
    assert source.sampleName == DemoCase.SAMPLE_NAME
    source.customDownloader(source)
    assert slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")


def registered(monkeypatch) -> dict:
    """What is told to the Sample Data module."""
    told = {}
    logic = types.SimpleNamespace(
        registerCustomSampleDataCategory=lambda *_, **__: None,
        registerCustomSampleDataSource=lambda **values: told.update(values),
    )
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=logic))
    DemoCase.register(ICONS)
    return told


def test_a_download_by_name_finds_the_bundled_files_the_short_axis_first(monkeypatch):
    """`SampleData.downloadSample` asks no custom downloader: it wants addresses, and returns the first node."""
    told = registered(monkeypatch)
    assert told["nodeNames"][0] == "sax"
    assert len({len(told[name]) for name in ("uris", "fileNames", "nodeNames", "checksums", "loadFileTypes")}) == 1
    for uri, checksum in zip(told["uris"], told["checksums"], strict=True):
        path = Path(urllib.request.url2pathname(urllib.parse.urlparse(uri).path))
        assert checksum == f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert told["sampleName"] == "CaLID demo case"  # what the button reads


@pytest.mark.skipif(not SAMPLE_DATA.is_file(), reason="CALID_SLICER_SOURCE names no Slicer source with SampleData.py")
def test_slicers_own_download_by_name_works(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(SAMPLE_DATA.parent)])
    import SampleData

    DemoCase.register(ICONS)
    logic = SampleData.SampleDataLogic()
    monkeypatch.setattr(
        SampleData.SampleDataLogic,
        "downloadFileIntoCache",
        lambda self, uri, name, checksum=None, **_: self.downloadFile(uri, str(tmp_path), name, checksum),
    )
    loaded = []
    monkeypatch.setattr(
        SampleData.SampleDataLogic,
        "loadNode",
        lambda _self, path, name, kind=None, _properties=None: loaded.append((Path(path), name, kind)) or name,
    )
    assert logic.downloadSample(DemoCase.SAMPLE_NAME) == "sax"
    assert {kind for _, _, kind in loaded} == {"SequenceFile"}
    for path, _, _ in loaded:
        original = DemoCase.DEMO_FOLDER / path.name.removeprefix("CaLID-")
        assert path.read_bytes() == original.read_bytes()
