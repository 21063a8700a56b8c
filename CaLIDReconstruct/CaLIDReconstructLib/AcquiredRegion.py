"""The outline of what the short-axis stack covers, drawn in the long-axis views: beyond it nothing was acquired."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import vtk

from . import Nodes

COLOR = (0.95, 0.80, 0.20)


class AcquiredRegion:
    """A box around the outermost acquired slices, half a gap beyond them; slice views show where they cut it.

    Args:
        original: volume node of the input.
    """

    def __init__(self, original) -> None:
        self._original = original
        self._node = None

    def showIn(self, sliceNodes: Sequence) -> None:
        """Draw the outline in these views and no others; removed again by `remove`."""
        if self._node is None:
            self._node = self._makeNode()
        display = self._node.GetDisplayNode()
        display.RemoveAllViewNodeIDs()
        for node in sliceNodes:
            display.AddViewNodeID(node.GetID())

    def remove(self) -> None:
        """Take the outline out of the scene."""
        if self._node is not None and slicer.mrmlScene.IsNodePresent(self._node):
            display = self._node.GetDisplayNode()
            slicer.mrmlScene.RemoveNode(self._node)
            if display is not None and slicer.mrmlScene.IsNodePresent(display):
                slicer.mrmlScene.RemoveNode(display)
        self._node = None

    def _makeNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLModelNode")
        node.UnRegister(None)
        node.SetName("CaLID acquired region")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        slicer.mrmlScene.AddNode(node)
        node.SetAndObservePolyData(self._box())
        node.SetAndObserveTransformNodeID(self._original.GetTransformNodeID())
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetColor(*COLOR)
        display.SetVisibility3D(False)
        display.SetVisibility2D(True)
        display.SetSliceIntersectionThickness(1)
        return node

    def _box(self):
        """Its surface in RAS mm of the node's own space."""
        columns, rows, slices = self._original.GetImageData().GetDimensions()
        cube = vtk.vtkCubeSource()
        cube.SetBounds(-0.5, columns - 0.5, -0.5, rows - 0.5, -0.5, slices - 0.5)
        triangles = vtk.vtkTriangleFilter()
        triangles.SetInputConnection(cube.GetOutputPort())
        transform = vtk.vtkTransform()
        transform.SetMatrix(slicer.util.vtkMatrixFromArray(np.asarray(Nodes.affineRas(self._original))))
        placed = vtk.vtkTransformPolyDataFilter()
        placed.SetTransform(transform)
        placed.SetInputConnection(triangles.GetOutputPort())
        placed.Update()
        return placed.GetOutput()
