"""The planes to compare in: long-axis images as they were acquired, or planes derived from the segmented heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import slicer
import vtk
from calid.geometry import LONG_AXIS_DEGREES, heart_center, lps_to_ras, ras_to_lps
from calid.heart.longaxis import derive_planes
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Inputs, Nodes
from .Messages import ModuleError, failure
from .Results import isGenerated


@dataclass(frozen=True, eq=False)
class LaxPlane:
    """One plane to look at.

    Args:
        name: as shown in the view's corner.
        sliceToRas: (4, 4) image right, image up, normal and center in world RAS mm.
        volume: the node of the acquired long-axis image, or None for a plane derived from the anatomy.
    """

    name: str
    sliceToRas: np.ndarray
    volume: object | None = None


def toWorld(node) -> np.ndarray:
    """(4, 4) local RAS -> world RAS of a transformable node.

    Raises:
        ModuleError: the transform above it is not linear.
    """
    transform = node.GetParentTransformNode()
    matrix = vtk.vtkMatrix4x4()
    if transform is not None:
        if not transform.IsTransformToWorldLinear():
            raise ModuleError(
                failure("no-long-axis", node.GetName(), remedy=_("Harden its non-linear transform first."))
            )
        transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def ijkToWorld(volumeNode) -> np.ndarray:
    """(4, 4) voxel index -> world RAS mm."""
    return toWorld(volumeNode) @ Nodes.affineRas(volumeNode)


def sliceToRas(ijkToRas: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(4, 4) SliceToRAS that shows an image as it was acquired: columns to the right, rows downwards.

    Args:
        ijkToRas: (4, 4) of the one-slice image.
        center: (3,) RAS mm that the view is centered on, projected into the plane.
    """
    right = ijkToRas[:3, 0] / np.linalg.norm(ijkToRas[:3, 0])
    up = -ijkToRas[:3, 1] / np.linalg.norm(ijkToRas[:3, 1])
    normal = np.cross(right, up)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, up, normal], axis=1)
    matrix[:3, 3] = center - ((center - ijkToRas[:3, 3]) @ normal) * normal
    return matrix


def acquiredPlanes(stackVolume) -> list[LaxPlane]:
    """The long-axis images in the scene: single slices that cross the stack at a steep angle.

    Args:
        stackVolume: volume node with the short-axis stack's geometry.
    """
    stackMatrix = ijkToWorld(stackVolume)
    size = np.array(stackVolume.GetImageData().GetDimensions(), float)
    images = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if _isLaxImage(node, stackVolume)]
    images = [node for node in images if _crosses(ijkToWorld(node), stackMatrix, size)]
    images.sort(key=lambda node: node.GetName())
    center = _heartCenter([ijkToWorld(node) for node in images], stackMatrix, size)
    return [LaxPlane(Inputs.resolve(node).name, sliceToRas(ijkToWorld(node), center), node) for node in images]


def derivedPlanes(labels: Stack, resultVolume) -> list[LaxPlane]:
    """The 2-, 3- and 4-chamber planes of the heart that these labels show.

    Args:
        labels: labels of the result.
        resultVolume: the node whose transform lies above the result.
    """
    world = toWorld(resultVolume)
    planes = []
    for name, plane in derive_planes(labels).items():
        matrix = world @ lps_to_ras(plane.affine)
        rows, columns = plane.voxels.shape[2:]
        center = (matrix @ [(columns - 1) / 2, (rows - 1) / 2, 0, 1])[:3]
        planes.append(LaxPlane(name, sliceToRas(matrix, center)))
    return planes


def crossingPair(planes: Sequence[LaxPlane]) -> tuple[int, ...]:
    """The two planes that are most perpendicular to each other: in 3D more than two would hide the models.

    Returns:
        their indices, or the only plane's.
    """
    if len(planes) < 2:
        return tuple(range(len(planes)))
    normals = [plane.sliceToRas[:3, 2] for plane in planes]
    return min(combinations(range(len(planes)), 2), key=lambda pair: abs(normals[pair[0]] @ normals[pair[1]]))


def _isLaxImage(node, stackVolume) -> bool:
    if node is stackVolume or not Nodes.hasImage(node) or node.IsA("vtkMRMLLabelMapVolumeNode") or isGenerated(node):
        return False
    transform = node.GetParentTransformNode()
    return node.GetImageData().GetDimensions()[2] == 1 and (transform is None or transform.IsTransformToWorldLinear())


def _unitNormal(matrix: np.ndarray) -> np.ndarray:
    normal = np.cross(matrix[:3, 0], matrix[:3, 1])
    return normal / np.linalg.norm(normal)


def _crosses(imageMatrix: np.ndarray, stackMatrix: np.ndarray, size: np.ndarray) -> bool:
    """Steep enough to be a long axis, and the plane passes through the stack's box."""
    normal = _unitNormal(imageMatrix)
    tilt = np.degrees(np.arccos(min(1.0, abs(normal @ _unitNormal(stackMatrix)))))
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T * (size - 1)
    distances = (corners @ stackMatrix[:3, :3].T + stackMatrix[:3, 3] - imageMatrix[:3, 3]) @ normal
    return tilt >= LONG_AXIS_DEGREES and distances.min() < 0 < distances.max()


def _heartCenter(planes: Sequence[np.ndarray], stackMatrix: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(3,) RAS: where the long-axis planes and the stack's middle slice meet."""
    stack = _emptyStack(stackMatrix, size)
    center_lps = heart_center(stack, [_emptyStack(matrix, np.ones(3)) for matrix in planes])
    return lps_to_ras(np.eye(4))[:3, :3] @ center_lps


def _emptyStack(matrixRas: np.ndarray, size: np.ndarray) -> Stack:
    """Geometry alone, as the engine's functions want it; the voxels take no memory."""
    columns, rows, slices = (int(count) for count in size)
    return Stack(np.broadcast_to(np.uint8(0), (1, slices, rows, columns)), ras_to_lps(matrixRas))
