"""The single slices of a scene, however its DICOM importers laid them out: position by position, frames by time.

A short-axis cine may be one volume per slice, one sequence per slice, or one sequence in which positions and phases
run through each other in the order of the scanner's numbers (GE counts through the phases of one slice after the
other, Philips may count through the slices of one phase after the other).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import slicer
from calid.geometry import SAME_POSITION_MM, Plane, plane_of, positions_along, tilt_degrees

from . import Inputs, Nodes
from .FrameTimes import frameTimes
from .Messages import ModuleError
from .Results import isGenerated

SAME_ORIENTATION_DEGREES = 1.0


@dataclass(frozen=True, eq=False)
class LooseSlice:
    """One position with all its frames.

    Args:
        name: name of the volume or sequence that it comes from.
        plane: plane of the slice, without the transform above it.
        frames: volume nodes in the order of time, or of their numbers where no times are known.
        times_ms: (T,) increasing; None where only numbers are known.
        shown: a node of the scene that the slice can be seen in.
    """

    name: str
    plane: Plane
    frames: tuple
    times_ms: np.ndarray | None
    shown: object

    def voxels(self) -> np.ndarray:
        """(T, 1, Y, X)."""
        return np.stack([slicer.util.arrayFromVolume(node) for node in self.frames])


@dataclass(frozen=True, eq=False)
class _Image:
    """One image at one time."""

    node: object
    plane: Plane
    time_ms: float | None
    number: int


_Lying = TypeVar("_Lying", LooseSlice, _Image)


def findSlices() -> list[LooseSlice]:
    """Every slice of the scene that lies in a volume or sequence of single slices; results are left out."""
    found, taken = [], set()
    nodes = [
        *slicer.util.getNodesByClass("vtkMRMLSequenceNode"),
        *slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"),
    ]
    for node in nodes:
        try:
            chosen = Inputs.resolve(node)
        except ModuleError:
            continue
        key = chosen.nodes[0].GetID()
        if key not in taken and not isGenerated(node) and _isSingle(chosen.reference):
            taken.add(key)
            found += slicesOf(chosen)
    return found


def slicesOf(chosen: Inputs.Input) -> list[LooseSlice]:
    """The positions in one volume or sequence of single slices."""
    images = _images(chosen)
    shown = chosen.volume or chosen.sequence
    return [_slice(chosen.name, position, shown) for position in grouped(images, _isSamePlace)]


def _isSingle(node) -> bool:
    return node.GetImageData().GetDimensions()[2] == 1


def _images(chosen: Inputs.Input) -> list[_Image]:
    if chosen.sequence is None:
        return [_Image(chosen.volume, _plane(chosen.volume), None, 0)]
    nodes = Nodes.items(chosen.sequence)
    times = frameTimes(chosen.sequence)
    if times.differsBy or not all(Nodes.hasImage(node) and _isSingle(node) for node in nodes):
        return []
    known = [None] * len(nodes) if times.ms is None else times.ms.tolist()
    return [
        _Image(node, _plane(node), time, number) for number, (node, time) in enumerate(zip(nodes, known, strict=True))
    ]


def _plane(node) -> Plane:
    return plane_of(Nodes.stackFromVolume(node))


def grouped(found: Iterable[_Lying], belong: Callable[[Plane, Plane], bool]) -> list[list[_Lying]]:
    """Images or slices in groups, each with those whose planes belong to that of its first."""
    groups: list[list[_Lying]] = []
    for one in found:
        group = next((group for group in groups if belong(one.plane, group[0].plane)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return groups


def _isSamePlace(plane: Plane, other: Plane) -> bool:
    """Whether two images show the same pixels."""
    return (
        plane.size == other.size
        and tilt_degrees(plane, other) < SAME_ORIENTATION_DEGREES
        and abs(np.ptp(positions_along(plane.normal, [plane, other]))) < SAME_POSITION_MM
    )


def _slice(name: str, images: list[_Image], shown) -> LooseSlice:
    times = [image.time_ms for image in images]
    areKnown = None not in times and (len(times) == 1 or len(set(times)) > 1)
    ordered = sorted(images, key=lambda image: (image.time_ms if areKnown else 0.0, image.number))
    times_ms = np.array([image.time_ms for image in ordered]) if areKnown else None
    return LooseSlice(name, images[0].plane, tuple(image.node for image in ordered), times_ms, shown)
