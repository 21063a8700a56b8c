"""The scene's long-axis images as files for the engine, under names of their own: a node's may be a patient's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from calid.geometry import ras_to_lps
from calid.images import files
from calid.stack import GUIDED_KEY

from . import Inputs, LaxPlanes
from .Messages import ModuleError
from .Results import readProvenance


def viewName(index: int) -> str:
    """What the engine is told that a long-axis image is called."""
    return f"long axis {index + 1}"


def named(views: Sequence, known: Sequence = ()) -> dict[str, object]:
    """Long-axis images by the names that the engine is told.

    Args:
        views: volume nodes.
        known: those of an earlier run, None for one that is gone; they keep their names, so that one that guided a
            result is known again, and none takes the name of one that is gone.
    """
    kept = {viewName(index): node for index, node in enumerate(known) if node is not None and node in views}
    others = [node for node in views if node not in kept.values()]
    return kept | {viewName(len(known) + index): node for index, node in enumerate(others)}


def viewsOf(stackVolume) -> list:
    """The volume nodes of the long-axis images that cross a stack; none where they cannot be brought into its space.

    Args:
        stackVolume: volume node with the stack's geometry.
    """
    try:
        return [plane.volume for plane in LaxPlanes.acquiredPlanes(stackVolume)]
    except ModuleError:
        return []


def writeViews(views: Mapping[str, object], stackVolume, folder: Path, *, overwrite: bool = False) -> None:
    """Write long-axis images in the space that the stack is written in: without the transforms above the stack.

    Args:
        views: names and volume nodes, see `named`.
        stackVolume: the stack's volume node.
        folder: folder that exists, for a file of each image.
        overwrite: whether files of these names are replaced.
    """
    toStack = np.linalg.inv(LaxPlanes.toWorld(stackVolume))
    for name, node in views.items():
        stack = Inputs.readStack(Inputs.resolve(node))
        affine = ras_to_lps(toStack @ LaxPlanes.ijkToWorld(node))
        files.write_stack(replace(stack, affine=affine), folder / f"{name}.seq.nrrd", overwrite=overwrite)


def guides(result) -> list:
    """The volume nodes of the long-axis images that guided a result, as far as they are in the scene.

    Args:
        result: a `RunResult`.
    """
    names = readProvenance(result.node).get(GUIDED_KEY, [])
    return [node for index, node in enumerate(result.views) if node is not None and viewName(index) in names]
