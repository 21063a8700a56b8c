"""Stand-ins for the CTK and qMRML widgets that the panel's `.ui` names; `ctk` and `slicer.qMRML...` point here.

They keep the properties, signals and methods that the module uses, on a real MRML scene. They do not look like the real ones.
"""

from __future__ import annotations

import sys
import types

import slicer
from PySide6.QtCore import Property, Qt, Signal

from . import pythonqt

qt = pythonqt.makeModule()


@pythonqt.customWidget
class ctkCollapsibleButton(qt.QWidget):
    contentsCollapsed = Signal(bool)
    HEADER = 24

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(2, self.HEADER, 2, 2)

    def _setText(self, value: str) -> None:
        self._text = value
        self.update()

    def _setCollapsed(self, value: bool) -> None:
        self._collapsed = value
        self._apply()
        self.contentsCollapsed.emit(value)

    def _apply(self) -> None:
        for child in self.findChildren(qt.QWidget, options=Qt.FindDirectChildrenOnly):
            child.setVisible(not self._collapsed)
        self.setMaximumHeight(self.HEADER + 4 if self._collapsed else 16777215)

    def showEvent(self, event) -> None:
        if self._collapsed:
            self._apply()
        super().showEvent(event)

    def mousePressEvent(self, event) -> None:
        if event.position().y() < self.HEADER:
            self.setProperty("collapsed", not self._collapsed)

    def paintEvent(self, event) -> None:
        del event
        painter = qt.QPainter(self)
        painter.fillRect(0, 0, self.property("width"), self.HEADER - 4, qt.QColor(214, 219, 228))
        painter.setPen(qt.QColor(30, 30, 30))
        painter.drawText(8, 15, ("▸  " if self._collapsed else "▾  ") + self._text)
        painter.end()

    text = Property(str, lambda self: self._text, _setText)
    collapsed = Property(bool, lambda self: self._collapsed, _setCollapsed)


@pythonqt.customWidget
class ctkPathLineEdit(qt.QLineEdit):
    currentPathChanged = Signal(str)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.textChanged.connect(self.currentPathChanged)

    currentPath = Property(str, lambda self: self.property("text"), lambda self, value: self.setText(value))
    filters = Property(int, lambda self: 0, lambda self, value: None)
    settingKey = Property(str, lambda self: "", lambda self, value: None)


@pythonqt.customWidget
class qMRMLWidget(qt.QWidget):
    def setMRMLScene(self, scene) -> None:
        self.scene = scene
        for receiver in getattr(self, "sceneReceivers", []):
            receiver.setMRMLScene(scene)

    def mrmlScene(self):
        return getattr(self, "scene", None)


@pythonqt.customWidget
class qMRMLNodeComboBox(qt.QComboBox):
    currentNodeChanged = Signal(object)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._scene, self._types, self._ids = None, [], []
        self._noneEnabled, self._base, self._hidden = False, "", {}
        self.currentIndexChanged.connect(lambda _: self.currentNodeChanged.emit(self.currentNode()))

    def _set(self, name: str, value) -> None:
        setattr(self, name, value)
        self._refresh()

    nodeTypes = Property("QStringList", lambda self: self._types, lambda self, v: self._set("_types", list(v)))
    noneEnabled = Property(bool, lambda self: self._noneEnabled, lambda self, v: self._set("_noneEnabled", v))
    baseName = Property(str, lambda self: self._base, lambda self, v: self._set("_base", v))
    addEnabled = Property(bool, lambda self: True, lambda self, v: None)
    removeEnabled = Property(bool, lambda self: True, lambda self, v: None)
    renameEnabled = Property(bool, lambda self: True, lambda self, v: None)
    showChildNodeTypes = Property(bool, lambda self: False, lambda self, v: None)
    noneDisplay = Property(str, lambda self: "", lambda self, v: None)

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
            scene.AddObserver(event, lambda *_: self._refresh())
        self._refresh()

    def _nodes(self) -> list:
        nodes = [node for name in self._types for node in slicer.util.getNodesByClass(name)]
        return [node for node in nodes if node.GetClassName() in self._types and not node.GetHideFromEditors()]

    def _refresh(self) -> None:
        if not self._scene:
            return
        current = self.currentNodeID
        blocked = self.blockSignals(True)
        self.clear()
        entries = [("", "None")] if self._noneEnabled else []
        entries += [(node.GetID(), node.GetName()) for node in self._nodes()]
        self._ids = [identifier for identifier, _ in entries]
        for _, name in entries:
            self.addItem(name)
        self.setCurrentIndex(self._ids.index(current) if current in self._ids else min(len(self._ids), 1) - 1)
        self.blockSignals(blocked)
        if current != self.currentNodeID:
            self.currentNodeChanged.emit(self.currentNode())

    @property
    def currentNodeID(self) -> str:
        index = self.property("currentIndex")
        return self._ids[index] if 0 <= index < len(self._ids) else ""

    def currentNode(self):
        return self._scene.GetNodeByID(self.currentNodeID) if self._scene and self.currentNodeID else None

    def setCurrentNode(self, node) -> None:
        identifier = node.GetID() if node else ""
        self.setCurrentIndex(self._ids.index(identifier) if identifier in self._ids else -1)


@pythonqt.customWidget
class qMRMLSegmentationShow3DButton(qt.QPushButton):
    def setSegmentationNode(self, node) -> None:
        self.segmentationNode = node


def _derived(name: str, base: type) -> type:
    return pythonqt.customWidget(type(name, (base,), {}))


# Named by the real parameterNodeWrapper when it looks for a widget's connector; the panel uses none of them.
CTK_ONLY_NAMED = {
    "ctkCheckBox": qt.QCheckBox,
    "ctkCheckablePushButton": qt.QPushButton,
    "ctkColorPickerButton": qt.QPushButton,
    "ctkComboBox": qt.QComboBox,
    "ctkDirectoryButton": qt.QPushButton,
    "ctkDoubleRangeSlider": qt.QWidget,
    "ctkDoubleSlider": qt.QSlider,
    "ctkDoubleSpinBox": qt.QDoubleSpinBox,
    "ctkRangeWidget": qt.QWidget,
    "ctkSliderWidget": qt.QWidget,
}
QMRML_ONLY_NAMED = {
    "qMRMLRangeWidget": qt.QWidget,
    "qMRMLSliderWidget": qt.QWidget,
    "qMRMLSpinBox": qt.QDoubleSpinBox,
}


def install() -> None:
    """Put the module `ctk` into sys.modules and the qMRML classes into `slicer`."""
    ctk = types.ModuleType("ctk", __doc__)
    sys.modules["ctk"] = ctk
    for cls in (ctkCollapsibleButton, ctkPathLineEdit):
        setattr(ctk, cls.__name__, cls)
    for cls in (qMRMLWidget, qMRMLNodeComboBox, qMRMLSegmentationShow3DButton):
        setattr(slicer, cls.__name__, cls)
    for name, base in CTK_ONLY_NAMED.items():
        setattr(ctk, name, _derived(name, base))
    for name, base in QMRML_ONLY_NAMED.items():
        setattr(slicer, name, _derived(name, base))
