"""Multi-volumes: one volume node whose voxels hold all frames, as MultiVolumeImporter makes them by choice.

The node's class belongs to an extension that need not be installed; its attributes and components tell what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
from calid.stack import Stack
from slicer.i18n import tr as _

from . import Nodes
from .DicomSources import sourceFiles
from .FrameTimes import FRAME_LABELS, NUMBERED, labelTimes

COUNT = "MultiVolume.NumberOfFrames"


@dataclass(frozen=True, eq=False)
class MultiVolume:
    """A multi-volume that can be made a cine."""

    node: object

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.GetName()

    @property
    def shown(self):
        """The node that the frames can be seen in."""
        return self.node

    @property
    def numFrames(self) -> int:
        """How many frames every voxel holds."""
        return self.node.GetImageData().GetNumberOfScalarComponents()

    def files(self) -> list[Path]:
        """The DICOM files that it was loaded from."""
        return sourceFiles(self.node)

    def label(self) -> str:
        """How the panel offers it, such as "Multi-volume, 9 slices, 25 frames: 7: SAX"."""
        slices = self.node.GetImageData().GetDimensions()[2]
        return _("Multi-volume, {slices} slices, {frames} frames: {name}").format(
            slices=slices, frames=self.numFrames, name=self.name
        )

    def stack(self) -> Stack:
        """Its frames as a cine."""
        voxels = np.moveaxis(slicer.util.arrayFromVolume(self.node), -1, 0)
        times = labelTimes(self.node, self.numFrames)
        if times is None or not (np.diff(times) > 0).all():
            numbers = np.arange(self.numFrames, dtype=float)
            return Stack(np.array(voxels), Nodes.affineLps(self.node), numbers, times_guess=NUMBERED)
        return Stack(np.array(voxels), Nodes.affineLps(self.node), times)


def isMultiVolume(node) -> bool:
    """True for a volume node with the marks of a multi-volume and as many components as frames."""
    if node is None or not node.IsA("vtkMRMLVolumeNode") or node.GetAttribute(FRAME_LABELS) is None:
        return False
    image = node.GetImageData()
    return image is not None and 1 < image.GetNumberOfScalarComponents() == int(node.GetAttribute(COUNT) or 0)


def find() -> list[MultiVolume]:
    """The multi-volumes of the scene that have slices to fill in between."""
    nodes = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    return [MultiVolume(node) for node in nodes if isMultiVolume(node) and node.GetImageData().GetDimensions()[2] > 1]
