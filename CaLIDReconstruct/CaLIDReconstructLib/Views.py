"""What the module does to the application's views: show a volume along its own axes, play its cine, turn to a heart."""

from __future__ import annotations

import slicer

from . import Inputs, Nodes


def showVolume(volumeNode) -> None:
    """Show a volume in the slice views, and let the sequence toolbar play its cine."""
    showInSliceViews(volumeNode)
    Nodes.showBrowser(Inputs.resolve(volumeNode).browser)


def showInSliceViews(volumeNode) -> None:
    """Show a volume in the slice views, turned to its own axes: axial cuts of an oblique stack are thin stripes."""
    if slicer.app.layoutManager() is not None:  # without a main window there are no views
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True, rotateToVolumePlane=True)


def centerThreeDViews() -> None:
    """Turn the 3D views to what there is now: a heart lies far from the middle of an empty view."""
    layoutManager = slicer.app.layoutManager()
    for index in range(layoutManager.threeDViewCount if layoutManager is not None else 0):
        layoutManager.threeDWidget(index).threeDView().resetFocalPoint()
