"""A scene written to a file and read again, without the application that does it for the user."""

from __future__ import annotations

import zipfile
from pathlib import Path

import slicer


def saveAndReload(scene, folder: Path) -> None:
    """Write the scene as .mrb, clear it, and read the file again as the application does."""
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        node.AddDefaultStorageNode()
    path = folder / "scene.mrb"
    scene.SetURL(str(folder / "scene.mrml"))
    scene.SetRootDirectory(str(folder))
    assert scene.WriteToMRB(str(path))
    scene.Clear()
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    (mrml,) = (folder / "unpacked").rglob("*.mrml")
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.AddDataIOToScene()
    dataManager = slicer.vtkDataIOManagerLogic()
    dataManager.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    dataManager.SetAndObserveDataIOManager(scene.GetDataIOManager())
    scene.SetURL(str(mrml))
    assert scene.Import(None)
    remote.RemoveDataIOFromScene()
