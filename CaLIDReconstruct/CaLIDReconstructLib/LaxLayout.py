"""The long-axis comparison: rows of planes, columns acquired | original | upsampled, and the 3D models beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.sax.saxutils import quoteattr

import numpy as np
import slicer
import vtk
from calid.stack import nearest_frames
from slicer.i18n import tr as _

from . import Inputs, Nodes
from .AcquiredRegion import AcquiredRegion
from .FrameTimes import beatMs, frameTimes
from .LaxPlanes import LaxPlane, crossingPair
from .Messages import ModuleError, failure

PLANES_AT_FIRST = 4  # more rows make small pictures; the user may choose more
LAYOUT_ID = 15730
FIRST_VIEW_GROUP = 1573
HEIGHT_PER_STACK = 1.7
TINT_OPACITY = 0.3
COLORS = ("#d98c00", "#2f7ed8", "#7a3fb0", "#1f9d55")
COLUMNS = ("acquired", "original", "upsampled")


def viewTag(row: int, column: str) -> str:
    """The singleton tag of one of our slice views."""
    return f"CaLID{row + 1}{column.capitalize()}"


def layoutXml(planes: Sequence[LaxPlane], columns: Sequence[str], title: str, guides: Sequence = ()) -> str:
    """The layout's description: a row per plane on the left, the 3D view on the right.

    Args:
        planes: one row each.
        columns: keys of `COLUMNS`, from left to right.
        title: heading of the upsampled column.
        guides: volume nodes of the long-axis images that guided the upsampled volume.
    """
    rows = "".join(
        '<item><layout type="horizontal">'
        + "".join(_viewXml(row, column, _viewLabel(plane, column, title, guides)) for column in columns)
        + "</layout></item>"
        for row, plane in enumerate(planes)
    )
    view3d = (
        '<item splitSize="300"><view class="vtkMRMLViewNode" singletontag="1">'
        '<property name="viewlabel" action="default">1</property></view></item>'
    )
    return (
        '<layout type="horizontal" split="true"><item splitSize="700">'
        f'<layout type="vertical">{rows}</layout></item>{view3d}</layout>'
    )


def _viewXml(row: int, column: str, label: str) -> str:
    properties = (
        ("orientation", "Axial"),
        ("viewlabel", label),
        ("viewcolor", COLORS[row % len(COLORS)]),
        ("viewgroup", str(FIRST_VIEW_GROUP + row)),
    )
    inside = "".join(
        f'<property name="{name}" action="default">{quoteattr(v)[1:-1]}</property>' for name, v in properties
    )
    return f'<item><view class="vtkMRMLSliceNode" singletontag="{viewTag(row, column)}">{inside}</view></item>'


def _viewLabel(plane: LaxPlane, column: str, title: str, guides: Sequence = ()) -> str:
    """What stands in a view's corner; an image that guided the result proves nothing of it, and is told so."""
    label = f"{plane.name} {_heading(column, title)}"
    hasGuided = column == "acquired" and any(node is plane.volume for node in guides)
    return _("{label} (guided the result: no proof of it)").format(label=label) if hasGuided else label


def _heading(column: str, title: str) -> str:
    return {"acquired": _("acquired"), "original": _("original, smoothed by Slicer"), "upsampled": title}[column]


class LaxComparison:
    """Shows the comparison and brings the user's layout back, unless the user has chosen another one meanwhile.

    Args:
        original: volume node of the input as it is shown.
        upsampled: volume node of the result as it is shown.
        planes: planes to look at; see `LaxPlanes.acquiredPlanes` and `LaxPlanes.derivedPlanes`.
        generatedMask: labelmap of the generated slices, or None.
        onLayoutChanged: called when another layout takes the place of ours.
        title: name of the method that made the upsampled volume.
        guides: volume nodes of the long-axis images that guided the upsampled volume.
    """

    def __init__(
        self,
        original,
        upsampled,
        planes: Sequence[LaxPlane],
        generatedMask=None,
        onLayoutChanged: Callable[[], None] = lambda: None,
        *,
        title: str = "CaLID",
        guides: Sequence = (),
    ) -> None:
        if not planes:
            raise ModuleError(failure("no-long-axis"))
        self.original, self.upsampled, self.planes = original, upsampled, list(planes)
        self.generatedMask, self.title, self.guides = generatedMask, title, guides
        self._region = AcquiredRegion(original)
        self.onLayoutChanged = onLayoutChanged
        self._previousLayout: int | None = None
        self._observed: list[tuple] = []
        self._frameLink: FrameLink | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands beside each other; no acquired image where every plane is derived."""
        hasAcquired = any(plane.volume is not None for plane in self.planes)
        return COLUMNS if hasAcquired else COLUMNS[1:]

    def heading(self, column: str) -> str:
        """What a column shows, in words."""
        return _heading(column, self.title)

    def enter(self) -> None:
        """Arrange the views and fill them."""
        layoutNode = _layoutNode()
        # Ours may be shown already, from an older scene's file: then there is nothing of the user's to go back to.
        self._previousLayout = layoutNode.SlicerLayoutFourUpView if _isOurs() else layoutNode.GetViewArrangement()
        # A file that named our layout would open as an empty window where nobody has described it yet.
        layoutNode.SetSaveWithScene(False)
        self._arrange()
        scene = slicer.mrmlScene
        self._observed = [
            (layoutNode, layoutNode.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onLayoutModified)),
            # Before the scene resets its layout: Slicer then brings back the one that it saw last.
            (scene, scene.AddObserver(scene.StartCloseEvent, lambda *_: self.leave())),
        ]

    def show(self, planes: Sequence[LaxPlane]) -> None:
        """Show other planes; the user's own layout is still the one from before `enter`."""
        self._release()
        self.planes = list(planes)
        self._arrange()

    def showResult(self, upsampled, generatedMask, title: str = "CaLID", guides: Sequence = ()) -> None:
        """Show another result of the same input; planes, zoom and the places of the views stay."""
        self.upsampled, self.generatedMask, self.title, self.guides = upsampled, generatedMask, title, guides
        for row, plane in enumerate(self.planes):
            for column in self.columns:
                sliceNode = _sliceNode(row, column)
                if sliceNode is not None:
                    sliceNode.SetLayoutLabel(_viewLabel(plane, column, title, guides))
        self.showOriginal(False)
        self.tintGenerated(False)

    def _arrange(self) -> None:
        layoutNode = _layoutNode()
        xml = layoutXml(self.planes, self.columns, self.title, self.guides)
        if layoutNode.IsLayoutDescription(LAYOUT_ID):
            layoutNode.SetLayoutDescription(LAYOUT_ID, xml)
        else:
            layoutNode.AddLayoutDescription(LAYOUT_ID, xml)
        layoutNode.SetViewArrangement(LAYOUT_ID)
        self.fill()
        self._frameLink = FrameLink(self.original, [plane.volume for plane in self.planes if plane.volume is not None])

    def _release(self) -> None:
        if self._frameLink is not None:
            self._frameLink.remove()
            self._frameLink = None
        for row in range(len(self.planes)):
            for column in self.columns:
                sliceNode = _sliceNode(row, column)
                if sliceNode is not None:
                    sliceNode.SetSliceVisible(False)

    def fill(self) -> None:
        """Put volumes and planes into the views; called again when the views have got their size."""
        shownIn3d = crossingPair(self.planes)
        for row, plane in enumerate(self.planes):
            for column in self.columns:
                self._fillView(row, plane, column)
                sliceNode = _sliceNode(row, column)
                if sliceNode is not None:
                    sliceNode.SetSliceVisible(column == "upsampled" and row in shownIn3d)
        shown = [_sliceNode(row, column) for row in range(len(self.planes)) for column in self.columns]
        self._region.showIn([node for node in shown if node is not None])

    def leave(self) -> None:
        """Give the user's own layout back where ours is still shown."""
        self._release()
        self._region.remove()
        if not self._observed:
            return
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        layoutNode = _layoutNode()
        layoutNode.SetSaveWithScene(True)
        if _isOurs():
            layoutNode.SetViewArrangement(self._previousLayout)

    def _onLayoutModified(self, *_args) -> None:
        if not _isOurs():
            self.onLayoutChanged()

    def showOriginal(self, isOriginal: bool) -> None:
        """Show the original in the place of the upsampled stack, or the upsampled stack again."""
        shown = self.original if isOriginal else self.upsampled
        for row in range(len(self.planes)):
            composite = _compositeNode(row, "upsampled")
            if composite is not None and shown is not None:
                composite.SetBackgroundVolumeID(shown.GetID())

    def tintGenerated(self, isTinted: bool) -> None:
        """Color what was generated in the upsampled views."""
        mask = self.generatedMask.GetID() if isTinted and self.generatedMask is not None else None
        for row in range(len(self.planes)):
            composite = _compositeNode(row, "upsampled")
            if composite is not None:
                composite.SetLabelVolumeID(mask)
                composite.SetLabelOpacity(TINT_OPACITY)

    def _fillView(self, row: int, plane: LaxPlane, column: str) -> None:
        sliceNode, composite = _sliceNode(row, column), _compositeNode(row, column)
        if sliceNode is None:
            return
        # A view that is there already keeps the label of the plane that it showed before.
        sliceNode.SetLayoutLabel(_viewLabel(plane, column, self.title, self.guides))
        sliceNode.SetViewGroup(FIRST_VIEW_GROUP + row)
        right, _up, normal, center = plane.sliceToRas[:3].T
        sliceNode.SetSliceToRASByNTP(*normal, *right, *center, 0)
        self._setFieldOfView(sliceNode)
        if composite is not None:
            shown = {"acquired": plane.volume, "original": self.original, "upsampled": self.upsampled}[column]
            composite.SetBackgroundVolumeID(shown.GetID() if shown is not None else None)
            composite.SetForegroundVolumeID(None)
            composite.SetLabelVolumeID(None)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)

    def _setFieldOfView(self, sliceNode) -> None:
        """As high as the stack is thick, with a margin; millimeters are square."""
        slices = self.original.GetImageData().GetDimensions()[2]
        height_mm = HEIGHT_PER_STACK * slices * float(np.linalg.norm(Nodes.affineRas(self.original)[:3, 2]))
        width, height = (max(1, value) for value in sliceNode.GetDimensions()[:2])
        perPixel_mm = height_mm / min(width, height)
        sliceNode.SetFieldOfView(width * perPixel_mm, height * perPixel_mm, sliceNode.GetFieldOfView()[2])


class FrameLink:
    """Keeps the browsers of other cines at the frame of the same cardiac phase as the short-axis cine's.

    Args:
        stackVolume: shown node of the short axis; a static one leads nothing.
        others: shown nodes of the cines that follow.
    """

    def __init__(self, stackVolume, others: Sequence) -> None:
        self._leader = Inputs.resolve(stackVolume)
        cines = [Inputs.resolve(node) for node in others]
        self._followers = [cine for cine in cines if cine.browser not in (None, self._leader.browser)]
        self._tag: int | None = None
        if self._leader.browser is not None:
            self._tag = self._leader.browser.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self.update())
            self.update()

    def update(self) -> None:
        """Move every follower to the leader's phase."""
        times_ms = Nodes.frameTimesMs(self._leader.sequence)
        for follower in self._followers:
            times, items = _timesInOrder(follower.sequence)
            beats = {"beat_ms": beatMs(follower.sequence), "at_beat_ms": beatMs(self._leader.sequence)}
            frames = nearest_frames(times, times_ms, **beats)
            wanted = int(items[frames[min(self._leader.frame, len(frames) - 1)]])
            if follower.browser.GetSelectedItemNumber() != wanted:
                follower.browser.SetSelectedItemNumber(wanted)

    def remove(self) -> None:
        """Let the browsers go their own ways again."""
        if self._tag is not None:
            self._leader.browser.RemoveObserver(self._tag)
            self._tag = None


def _timesInOrder(sequence) -> tuple[np.ndarray, np.ndarray]:
    """(T,) increasing times or numbers of a sequence's items, and the items' indices in that order."""
    times = frameTimes(sequence).ms
    if times is None or len(np.unique(times)) < len(times):
        count = sequence.GetNumberOfDataNodes()
        return np.arange(count, dtype=float), np.arange(count)
    order = np.argsort(times)
    return times[order], order


def _layoutNode():
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def _isOurs() -> bool:
    return _layoutNode().GetViewArrangement() == LAYOUT_ID


def _sliceNode(row: int, column: str):
    return slicer.mrmlScene.GetSingletonNode(viewTag(row, column), "vtkMRMLSliceNode")


def _compositeNode(row: int, column: str):
    sliceNode = _sliceNode(row, column)
    return slicer.vtkMRMLSliceLogic.GetSliceCompositeNode(sliceNode) if sliceNode is not None else None
