"""Slice and 3D views without a display: Slicer's own displayable managers, drawn to arrays through EGL.

The light-box renderer of the slice view belongs to CTK and is made again here in a few lines; everything else is real.
"""

from __future__ import annotations

import types

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
)
VIEW_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
)


def _pixels(window) -> np.ndarray:
    """(rows, columns, 3) uint8 of what a render window shows."""
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.SetInputBufferTypeToRGB()
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    columns, rows, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1].copy()


def _window(renderer, size: tuple[int, int]):
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    interactor.Initialize()
    return window, interactor


def _managers(factory, names, renderer):
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.SetRenderer(renderer)
    group.Initialize(factory, renderer)
    return group


class SliceView:
    """A slice view on a slice node with this singleton tag, made if it is not there.

    Args:
        tag: layout name, such as "Red".
        size: (columns, rows) in pixels.
    """

    def __init__(self, tag: str, size: tuple[int, int] = (400, 400)) -> None:
        self.renderer = vtk.vtkRenderer()
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window, self._interactor = _window(self.renderer, size)
        self.mapper = vtk.vtkImageMapper()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        self.managers = _managers(factory, SLICE_MANAGERS, self.renderer)
        application = slicer.app.applicationLogic()
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application)
        application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSliceNode")
        if self.node is None:
            self.node = self.logic.AddSliceNode(tag)
        else:
            self.logic.SetSliceNode(self.node)
        self.managers.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)

    @property
    def composite(self):
        return self.logic.GetSliceCompositeNode()

    def pixels(self) -> np.ndarray:
        """(rows, columns, 3) uint8 of the view."""
        self.mapper.SetInputConnection(self.logic.GetImageDataConnection())
        if not self.renderer.HasViewProp(self.actor):
            self.renderer.AddViewProp(self.actor)
        self.window.Render()
        return _pixels(self.window)

    def close(self) -> None:
        slicer.app.applicationLogic().GetSliceLogics().RemoveItem(self.logic)
        self.managers.SetMRMLDisplayableNode(None)
        self.logic.SetMRMLScene(None)


class ThreeDView:
    """The 3D view with this singleton tag."""

    def __init__(self, tag: str = "1", size: tuple[int, int] = (500, 400)) -> None:
        self.renderer = vtk.vtkRenderer()
        self.window, self._interactor = _window(self.renderer, size)
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        self.managers = _managers(factory, VIEW_MANAGERS, self.renderer)
        application = slicer.app.applicationLogic()
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(application)
        application.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLViewNode")
        if self.node is None:
            self.node = self.logic.AddViewNode(tag)
        self.managers.SetMRMLDisplayableNode(self.node)

    def pixels(self, *, towards=(0.0, 1.0, 0.0), up=(0.0, 0.0, 1.0), zoom: float = 1.0) -> np.ndarray:
        """(rows, columns, 3) uint8, with everything in view.

        Args:
            towards: RAS direction from the middle of the scene to the camera.
            up: RAS direction that is upwards in the picture.
            zoom: more than 1 shows the middle larger.
        """
        self.window.Render()
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(*towards)
        camera.SetViewUp(*up)
        self.renderer.ResetCamera()
        camera.Zoom(zoom)
        self.renderer.ResetCameraClippingRange()
        self.window.Render()
        return _pixels(self.window)

    def close(self) -> None:
        slicer.app.applicationLogic().GetViewLogics().RemoveItem(self.logic)
        self.managers.SetMRMLDisplayableNode(None)
        self.logic.SetMRMLScene(None)


class LayoutViews:
    """Plays the layout manager's part: makes a slice view for every slice node that the layout's description names.

    Views and their nodes are singletons that outlive the closing of the scene, as in the application; make one of these
    per process.
    """

    def __init__(self, size: tuple[int, int] = (300, 300)) -> None:
        self.size, self.views = size, {}
        self.layoutLogic = slicer.vtkMRMLLayoutLogic()
        self.layoutLogic.SetMRMLScene(slicer.mrmlScene)
        self.layoutNode = self.layoutLogic.GetLayoutNode()
        self.linkLogic = slicer.vtkMRMLSliceLinkLogic()
        self.linkLogic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self.linkLogic.SetMRMLScene(slicer.mrmlScene)
        slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._onNodeAdded)
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            self._addView(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _caller, _event, node) -> None:
        self._addView(node)

    def _addView(self, node) -> None:
        tag = node.GetSingletonTag() if node.IsA("vtkMRMLSliceNode") else None
        if tag and tag not in self.views:
            self.views[tag] = None
            self.views[tag] = SliceView(tag, self.size)


class LayoutManager:
    """What `slicer.app.layoutManager()` gives: the part that the module and `slicer.util` use."""

    threeDViewCount = 2

    def __init__(self, views: LayoutViews) -> None:
        self._views = views.views
        self.centered: list[int] = []

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._views)

    def sliceWidget(self, name: str):
        return types.SimpleNamespace(mrmlSliceNode=lambda: self._views[name].node)

    def mrmlSliceLogics(self):
        return slicer.app.applicationLogic().GetSliceLogics()

    def threeDWidget(self, index: int):
        view = types.SimpleNamespace(resetFocalPoint=lambda: self.centered.append(index))
        return types.SimpleNamespace(threeDView=lambda: view)


def grid(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Pictures of equal size as one, with a dark gap between them."""
    lines = []
    for row in rows:
        padded = [np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=24) for picture in row]
        lines.append(np.concatenate(padded, axis=1))
    return np.concatenate(lines)
