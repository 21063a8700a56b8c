"""The bundled demo case: found on disk, loaded as nodes, offered in the Sample Data module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from . import Nodes

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "Resources" / "Demo"
CATEGORY = "CaLID"
SAMPLE_NAME = "CaLIDDemoCase"
STUDY_NAME = "CaLID demo case"


@dataclass
class DemoNodes:
    """The nodes of the demo case: the short-axis cine's shown node, and the long-axis images' by name."""

    sax: object
    lax: dict


def isThere(folder: Path = DEMO_FOLDER) -> bool:
    return folder.is_dir() and any(folder.rglob("*.nrrd"))


def load(folder: Path = DEMO_FOLDER) -> DemoNodes:
    """Load the case into the scene, in a study of its own."""
    from calid.images import files

    sax, lax = None, {}
    item = _studyItem()
    for path in sorted(folder.rglob("*.nrrd")):
        name = path.name.split(".")[0]
        node, sequence = Nodes.addStack(files.read_stack(path), name)
        _move(node, sequence, item)
        node.GetDisplayNode().AutoWindowLevelOn()
        if node.GetImageData().GetDimensions()[2] > 1:
            sax = node
        else:
            lax[name] = node
    return DemoNodes(sax, lax)


def register(iconsFolder: Path) -> None:
    """Offer the case in the Sample Data module; called once the application has started."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataCategory(CATEGORY, title=_("CaLID"))
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(iconsFolder / "CaLIDDemoCase.png"),
        uris=[],
        fileNames=[],
        nodeNames=[],
        customDownloader=_loadSource,
    )


def _loadSource(_source) -> None:
    load()


def _studyItem() -> int:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), STUDY_NAME) if hierarchy is not None else 0


def _move(node, sequence, studyItem: int) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for moved in (node, sequence):
        if hierarchy is None or moved is None:
            continue
        item = hierarchy.GetItemByDataNode(moved) or hierarchy.CreateItem(studyItem, moved)
        hierarchy.SetItemParent(item, studyItem)
