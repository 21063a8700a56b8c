"""One stack from many: short-axis cines that were loaded as one volume or sequence per position, the common failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer
from calid.errors import InputError
from calid.geometry import Plane, affine_of, order_along_normal, plane_of, positions_along, tilt_degrees, typical_gap
from calid.images import checks
from calid.images.assembly import phase_findings, plane_findings
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Inputs, Nodes
from .Messages import Failure, ModuleError, engineFailure
from .Results import copyWindowLevel, isGenerated, placeInStudy

SAME_ORIENTATION_DEGREES = 1.0
FEWEST_SLICES = 3


@dataclass(frozen=True)
class SaxGroup:
    """Single-slice inputs of one orientation and size, lowest position first."""

    inputs: tuple[Inputs.Input, ...]
    planes: tuple[Plane, ...]

    @property
    def numFrames(self) -> int:
        return max(_numFrames(chosen) for chosen in self.inputs)

    def label(self) -> str:
        positions = positions_along(self.planes[0].normal, self.planes)
        gap = typical_gap(np.abs(np.diff(positions)))
        return _("{slices} slices, {frames} frames, {gap} mm apart: {first} ...").format(
            slices=len(self.inputs), frames=self.numFrames, gap=f"{gap:.1f}", first=self.inputs[0].name
        )


def findGroups() -> list[SaxGroup]:
    """The groups of parallel single-slice volumes and cines in the scene, largest first."""
    groups: list[list[tuple[Inputs.Input, Plane]]] = []
    for chosen in _singleSlices():
        plane = _plane(chosen)
        for group in groups:
            if _belongs(plane, group[0][1]):
                group.append((chosen, plane))
                break
        else:
            groups.append([(chosen, plane)])
    found = [_sorted(group) for group in groups if len(group) >= FEWEST_SLICES]
    return sorted(found, key=lambda group: -len(group.inputs))


def assemble(group: SaxGroup):
    """Make one volume or cine of a group, beside its first slice in the study; the slices stay as they are.

    Returns:
        the node to choose as input: the volume, or the shown node of the new cine.

    Raises:
        ModuleError: the slices do not make a stack, with the engine's own reason, or lie under different transforms.
    """
    name = _("{first} stack").format(first=group.inputs[0].name)
    transform = _commonTransform(group)
    try:
        stack = _stack(group)
        checks.check_stack(stack, source=name)
    except InputError as error:
        raise ModuleError(engineFailure(error.code, error.message, error.remedy)) from error
    node, _sequence = Nodes.addStack(stack, name)
    node.SetAndObserveTransformNodeID(transform)
    first = group.inputs[0].volume or group.inputs[0].reference
    placeInStudy(node, first)
    copyWindowLevel(first, node)
    return node


def _singleSlices() -> list[Inputs.Input]:
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
        if key not in taken and chosen.reference.GetImageData().GetDimensions()[2] == 1 and not isGenerated(node):
            taken.add(key)
            found.append(chosen)
    return found


def _numFrames(chosen: Inputs.Input) -> int:
    return chosen.sequence.GetNumberOfDataNodes() if chosen.sequence is not None else 1


def _plane(chosen: Inputs.Input) -> Plane:
    """Where a slice lies without the transform above it, which is one and the same for all slices of a stack."""
    return plane_of(Nodes.stackFromVolume(chosen.reference))


def _belongs(plane: Plane, other: Plane) -> bool:
    return (
        plane.size == other.size
        and np.allclose(plane.spacing_mm, other.spacing_mm, rtol=1e-3)
        and tilt_degrees(plane, other) < SAME_ORIENTATION_DEGREES
    )


def _commonTransform(group: SaxGroup) -> str | None:
    """The ID of the transform above all slices, or None."""
    nodes = [chosen.volume or chosen.reference for chosen in group.inputs]
    first, *others = [node.GetTransformNodeID() for node in nodes]
    for chosen, other in zip(group.inputs[1:], others, strict=True):
        if other != first:
            names = f"{group.inputs[0].name} / {chosen.name}"
            title = _("The slices do not lie under the same transform.")
            remedy = _("Put all slices under one transform, or harden the transforms.")
            raise ModuleError(Failure("mixed-transforms", title, names, remedy))
    return first


def _sorted(group: list[tuple[Inputs.Input, Plane]]) -> SaxGroup:
    planes = [plane for _, plane in group]
    order = order_along_normal(planes)
    inputs = tuple(group[index][0] for index in order)
    return SaxGroup(inputs, tuple(planes[index] for index in order))


def _stack(group: SaxGroup) -> Stack:
    names = [chosen.name for chosen in group.inputs]
    stacks = [Inputs.readStack(chosen) for chosen in group.inputs]
    times_ms = [stack.frame_times_ms for stack in stacks]
    checks.raise_first([*plane_findings(group.planes, names), *phase_findings(times_ms, names)])
    voxels = np.concatenate([stack.voxels for stack in stacks], axis=1)
    thickness_mm = float(stacks[0].spacing_mm[2])
    return Stack(voxels, affine_of(group.planes, thickness_mm), np.median(times_ms, axis=0))
