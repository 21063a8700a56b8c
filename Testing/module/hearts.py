"""Nodes of computed hearts for the module's tests."""

from __future__ import annotations

import numpy as np
import phantoms
import slicer
from calid.stack import Stack
from CaLIDReconstructLib import Nodes

SPACING_MM = (2.6, 2.4, 10.0)


def labels(frames: int = 1, seed: int = 3) -> Stack:
    """A beating, oblique heart as labels."""
    contractions = tuple(np.linspace(1.0, 0.75, frames))
    return phantoms.heart_labels(SPACING_MM, seed=seed, contractions=contractions)


def picture(frames: int = 1, seed: int = 3) -> Stack:
    """The same heart as an MR-like picture, with noise, int16."""
    stack = phantoms.pictured(labels(frames, seed))
    noise = np.random.default_rng(seed).normal(0, 6, stack.voxels.shape)
    return stack.with_voxels((stack.voxels + noise).astype(np.int16))


def dense(stack: Stack, factor: int) -> Stack:
    """The grid of a result, filled by repetition, with marks, as the engine would write it."""
    slices = (stack.num_slices - 1) * factor + 1
    nearest = np.arange(slices) // factor
    affine = stack.affine.copy()
    affine[:3, 2] /= factor
    generated = np.arange(slices) % factor != 0
    made = {"method": "repeated", "steps": 8}
    return Stack(stack.voxels[:, nearest], affine, stack.frame_times_ms, generated, provenance=made)


def longAxis(stack: Stack, heart: np.ndarray, *, angle: float = 0.0, pixel_mm: float = 2.0) -> Stack:
    """An acquired long-axis image through the LV axis of `phantoms.heart_labels`, by the phantom's formula.

    Args:
        stack: gives place and times.
        heart: `phantoms.heart_frame(seed)`.
        angle: radians about the long axis, from the septum.
    """
    across = np.cos(angle) * heart[:, 0] + np.sin(angle) * heart[:, 1]
    base_lps = np.array([12.0, -31.0, 7.0])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([-across, -heart[:, 2], np.cross(across, heart[:, 2])], axis=1) * [pixel_mm, pixel_mm, 8]
    affine[:3, 3] = base_lps + 90 * across + 40 * heart[:, 2]
    shape = (stack.num_frames, 1, 76, 90)
    plane = Stack(np.zeros(shape, np.int16), affine, stack.frame_times_ms)
    rows, columns = np.indices(shape[2:])
    points = plane.to_lps(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    contractions = np.linspace(1.0, 0.75, stack.num_frames)
    local = (points - base_lps) @ heart
    levels = np.array([40, 220, 90, 200], np.int16)
    frames = [levels[phantoms.heart_at(local, contraction)] for contraction in contractions]
    return plane.with_voxels(np.stack(frames)[:, None])


def nodeIds() -> set[str]:
    """The IDs of all nodes in the scene."""
    nodes = slicer.mrmlScene.GetNodes()
    return {nodes.GetItemAsObject(index).GetID() for index in range(nodes.GetNumberOfItems())}


def addUnplayed(frames: int, name: str = "alone"):
    """The picture as a sequence that no browser plays."""
    stack = picture(frames)
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    for frame in range(frames):
        sequence.SetDataNodeAtValue(Nodes.dataNode(stack, name, frame), str(frame))
    return sequence


def addPicture(frames: int = 1, name: str = "SAX"):
    """The picture as nodes; returns (shown volume, sequence or None)."""
    return Nodes.addStack(picture(frames), name)
