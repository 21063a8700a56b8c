"""After the contours were changed: figures, plot, table and surfaces again, from the labels as they are now."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

import slicer
from calid.heart.surfaces import SHOWN_GRID_MM, surfaces
from calid.labels import LABELS
from calid.stack import Stack

from . import Nodes
from .Figures import FigureNodes, Subject, updateFigures
from .RunResult import RunResult
from .Segmentations import SURFACE, halfTurned, nodesOfFrame
from .Transaction import Transaction

DIGESTS = "CaLID.LabelDigests"


def digests(labels: Stack) -> list[int]:
    """A number per frame that changes with its labels."""
    return [zlib.crc32(frame.tobytes()) for frame in labels.voxels]


def noteDigests(node, labels: Stack) -> None:
    """Remember on a result's node for which labels surfaces and figures were made."""
    node.SetAttribute(DIGESTS, json.dumps(digests(labels)))


def recompute(result: RunResult, onFrame: Callable[[int, int], None] = lambda _done, _count: None) -> list[str]:
    """Bring surfaces and figures of a result up to date with its contours.

    Args:
        result: a result with a segmentation.
        onFrame: onFrame(done, count) is called before each frame whose surfaces are made anew.

    Returns:
        what could not be measured and why.
    """
    labels = result.labels
    changed = _changedFrames(result, labels)
    for done, frame in enumerate(changed):
        onFrame(done, len(changed))
        _remakeSurfaces(result, labels, frame)
    nodes = FigureNodes(result.functionTable, result.functionChart, result.segmentTable)
    transaction = Transaction(slicer.mrmlScene)
    hasTimes = result.sequence is not None and Nodes.hasTimes(result.sequence)
    missing = updateFigures(nodes, Subject(result.node.GetName(), result.volume, hasTimes), labels, transaction)
    result.keepFigures(nodes, transaction.nodes)
    noteDigests(result.node, labels)
    return missing


def _changedFrames(result: RunResult, labels: Stack) -> list[int]:
    before = json.loads(result.node.GetAttribute(DIGESTS) or "[]")
    now = digests(labels)
    return [frame for frame, digest in enumerate(now) if frame >= len(before) or before[frame] != digest]


def _remakeSurfaces(result: RunResult, labels: Stack, frame: int) -> None:
    """Put the engine's surfaces of one frame in the place of those of the labels before."""
    found = surfaces(labels, frame, grid_mm=SHOWN_GRID_MM)
    for node in nodesOfFrame(result.segmentation, frame):
        segmentation = node.GetSegmentation()
        for label in LABELS:
            segment = segmentation.GetSegment(label.key)
            if segment is None:
                continue  # the user deleted it
            segment.RemoveRepresentation(SURFACE)
            if label.value in found:
                segment.AddRepresentation(SURFACE, halfTurned(found[label.value]))
        node.Modified()
