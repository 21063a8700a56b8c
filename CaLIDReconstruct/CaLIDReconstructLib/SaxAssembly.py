"""One stack from many: a short-axis cine that was loaded as loose slices or as a multi-volume, the common failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calid.errors import InputError
from calid.geometry import Plane, affine_of, order_along_normal, positions_along, tilt_degrees, typical_gap
from calid.images import checks
from calid.images.assembly import phase_findings, plane_findings
from calid.stack import Stack
from slicer.i18n import tr as _

from . import MultiVolumes, Nodes
from .DicomSources import nominalBeatMs, noteFiles, sourceFiles
from .FrameTimes import NUMBERED
from .LooseSlices import SAME_ORIENTATION_DEGREES, LooseSlice, findSlices, grouped
from .Messages import Failure, ModuleError, failureFromError
from .Results import copyWindowLevel, placeInStudy

FEWEST_SLICES = 3


@dataclass(frozen=True, eq=False)
class SaxGroup:
    """Single slices of one orientation and size, lowest position first."""

    slices: tuple[LooseSlice, ...]

    @property
    def planes(self) -> list[Plane]:
        """Where the slices lie."""
        return [each.plane for each in self.slices]

    @property
    def numFrames(self) -> int:
        """The largest number of frames of a slice."""
        return max(len(each.frames) for each in self.slices)

    @property
    def name(self) -> str:
        """The first slice's name."""
        return self.slices[0].name

    @property
    def shown(self):
        """A node that the first slice can be seen in."""
        return self.slices[0].shown

    def files(self) -> list[Path]:
        """The DICOM files that the slices were loaded from."""
        return [path for each in self.slices for frame in each.frames for path in sourceFiles(frame)]

    def label(self) -> str:
        """How the panel offers it, such as "9 slices, 25 frames, 10.0 mm apart: 7: SAX ..."."""
        positions = positions_along(self.planes[0].normal, self.planes)
        gap = typical_gap(np.abs(np.diff(positions)))
        return _("{slices} slices, {frames} frames, {gap} mm apart: {first} ...").format(
            slices=len(self.slices), frames=self.numFrames, gap=f"{gap:.1f}", first=self.name
        )

    def stack(self) -> Stack:
        """All slices as one stack.

        Raises:
            InputError: they do not make one, with the engine's own reason.
            ModuleError: they lie under different transforms.
        """
        _requireOneTransform(self.slices)
        names = [each.name for each in self.slices]
        times, areGuessed = frameTimesOf(self.slices)
        checks.raise_first([*plane_findings(self.planes, names), *phase_findings(times, names)])
        voxels = np.concatenate([each.voxels() for each in self.slices], axis=1)
        thickness_mm = float(Nodes.stackFromVolume(self.slices[0].frames[0]).spacing_mm[2])
        guess = NUMBERED if areGuessed else ""
        beats = [beat for each in self.slices if (beat := nominalBeatMs(each.frames[0])) is not None]
        return Stack(
            voxels,
            affine_of(self.planes, thickness_mm),
            np.median(times, axis=0),
            beat_ms=float(np.median(beats)) if beats and len(times[0]) > 1 else None,
            times_guess=guess,
        )


Assemblable = SaxGroup | MultiVolumes.MultiVolume


def findGroups() -> list[Assemblable]:
    """What can be made a stack: parallel single slices, the largest group first, and multi-volumes."""
    groups = [_sorted(group) for group in grouped(findSlices(), _belongs) if len(group) >= FEWEST_SLICES]
    return [*sorted(groups, key=lambda group: -len(group.slices)), *MultiVolumes.find()]


def assemble(group: Assemblable):
    """Make one volume or cine of a group, beside its first slice in the study; the slices stay as they are.

    Returns:
        the node to choose as input: the volume, or the shown node of the new cine.

    Raises:
        ModuleError: the slices do not make a stack, with the engine's own reason, or lie under different transforms.
    """
    name = _("{first} stack").format(first=group.name)
    try:
        stack = group.stack()
        checks.check_stack(stack, source=name)
    except InputError as error:
        raise ModuleError(failureFromError(error)) from error
    node, sequence = Nodes.addStack(stack, name)
    noteFiles(sequence or node, group.files())
    shown = group.shown
    if shown.IsA("vtkMRMLVolumeNode"):
        node.SetAndObserveTransformNodeID(shown.GetTransformNodeID())
        copyWindowLevel(shown, node)
    placeInStudy(node, shown)
    return node


def frameTimesOf(slices: Sequence[LooseSlice]) -> tuple[list[np.ndarray], bool]:
    """The times of each slice's frames, and whether they are only numbers.

    A slice that has none takes those of the others, which show the same phases; without any times frames are counted
    in each slice from the first: a scanner's numbers may run on from slice to slice.
    """
    known = [each.times_ms for each in slices if each.times_ms is not None]
    if not known:
        return [np.arange(len(each.frames), dtype=float) for each in slices], len(slices[0].frames) > 1
    usual = np.median([times for times in known if len(times) == len(known[0])], axis=0)
    times = []
    for each in slices:
        own = each.times_ms
        if own is None:
            own = usual if len(each.frames) == len(usual) else np.arange(len(each.frames), dtype=float)
        times.append(own)
    return times, False


def _belongs(plane: Plane, other: Plane) -> bool:
    """Whether two slices can be of one stack: their pixels and directions agree."""
    return (
        plane.size == other.size
        and np.allclose(plane.spacing_mm, other.spacing_mm, rtol=1e-3)
        and tilt_degrees(plane, other) < SAME_ORIENTATION_DEGREES
    )


def _requireOneTransform(slices: Sequence[LooseSlice]) -> None:
    shown = [each.shown for each in slices if each.shown.IsA("vtkMRMLVolumeNode")]
    for other in shown[1:]:
        if other.GetTransformNodeID() != shown[0].GetTransformNodeID():
            names = f"{shown[0].GetName()} / {other.GetName()}"
            title = _("The slices do not lie under the same transform.")
            remedy = _("Put all slices under one transform, or harden the transforms.")
            raise ModuleError(Failure("mixed-transforms", title, names, remedy))


def _sorted(group: list[LooseSlice]) -> SaxGroup:
    order = order_along_normal([each.plane for each in group])
    return SaxGroup(tuple(group[index] for index in order))
