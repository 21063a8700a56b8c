"""The hearts of the scene as a table of files, as the engine takes many hearts; file names name no patient."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import slicer
from calid.images import files
from calid.stack import Stack

from . import Inputs, LongAxisFiles, Suitability
from .Messages import ModuleError
from .Results import isGenerated

TABLE = "hearts.csv"


def heartsInScene() -> list[Inputs.Input]:
    """The short-axis stacks of the scene that can be upsampled; results and doubtful ones are left out."""
    found: dict[str, Inputs.Input] = {}
    nodes = slicer.util.getNodesByClass("vtkMRMLSequenceNode") + slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    for node in nodes:
        if node.GetHideFromEditors() or isGenerated(node):
            continue
        try:
            chosen = Inputs.resolve(node)
            stack = Inputs.readStack(chosen)
        except ModuleError:
            continue
        if Suitability.blockingFailure(stack, "") is None and not Suitability.alignedPlane(stack):
            found.setdefault(chosen.nodes[0].GetID(), chosen)
    return [chosen for chosen in found.values() if not isGenerated(chosen.nodes[0])]


def writeHearts(hearts: list[Inputs.Input], folder: Path) -> Path:
    """Write hearts with the long-axis images of their studies, and the table that names them; returns its path.

    A heart's name is made of what it shows: the same heart has the same name again, and another one never.

    Args:
        hearts: short-axis stacks of the scene.
        folder: is made; what is there already is kept.

    Raises:
        OSError, OutputError: a file could not be written.
    """
    rows = []
    for chosen in hearts:
        stack = Inputs.readStack(chosen)
        name = f"heart-{_digest(stack)}"
        place = folder / name
        views = _viewsOf(chosen)
        if not (place / "sax.seq.nrrd").exists():
            (place / "lax").mkdir(parents=True, exist_ok=True)
            stackVolume = chosen.placed
            LongAxisFiles.writeViews(LongAxisFiles.named(views), stackVolume, place / "lax", overwrite=True)
            files.write_stack(stack, place / "sax.seq.nrrd")
        rows.append((name, f"{name}/sax.seq.nrrd", f"{name}/lax" if views else ""))
    table = folder / TABLE
    draft = table.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("case", "path", "lax"), *rows])
    draft.replace(table)
    return table


def _digest(stack: Stack) -> str:
    made = hashlib.sha256(np.ascontiguousarray(stack.voxels))
    made.update(np.round(stack.affine, 3).tobytes())
    return made.hexdigest()[:10]


def _viewsOf(chosen: Inputs.Input) -> list:
    """The long-axis images of the same study: those of another patient may cross the stack as well."""
    shown = chosen.placed
    return [node for node in LongAxisFiles.viewsOf(shown) if _studyOf(node) == _studyOf(shown)]


def _studyOf(node) -> int:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    return hierarchy.GetItemParent(item) if item else 0
