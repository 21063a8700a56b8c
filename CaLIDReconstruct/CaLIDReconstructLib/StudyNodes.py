"""One examination as nodes: the short axis and the long-axis views, together in a study of the subject hierarchy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import slicer
from calid.stack import Stack

from . import Nodes


@dataclass
class StudyNodes:
    """The shown nodes of an examination.

    Args:
        sax: the short axis.
        lax: the long-axis views by name.
    """

    sax: object = None
    lax: dict = field(default_factory=dict)


def addStudy(title: str, images: Iterable[tuple[str, Stack]]) -> StudyNodes:
    """Put images into the scene, in a study of their own: the one of several slices is the short axis.

    Args:
        title: name of the study.
        images: names and stacks of the images.
    """
    nodes = StudyNodes()
    item = _studyItem(title)
    for name, stack in images:
        node, sequence = Nodes.addStack(stack, name)
        _move(node, sequence, item)
        node.GetDisplayNode().AutoWindowLevelOn()
        if stack.num_slices > 1:
            nodes.sax = node
        else:
            nodes.lax[name] = node
    return nodes


def _studyItem(title: str) -> int:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    return hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), title) if hierarchy is not None else 0


def _move(node, sequence, studyItem: int) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for moved in (node, sequence):
        if hierarchy is None or moved is None:
            continue
        item = hierarchy.GetItemByDataNode(moved) or hierarchy.CreateItem(studyItem, moved)
        hierarchy.SetItemParent(item, studyItem)
