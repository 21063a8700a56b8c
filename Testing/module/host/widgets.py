"""Stand-ins for the CTK and qMRML widgets that the panel's `.ui` names; `ctk` and `slicer.qMRML...` point here.

They keep the properties, signals and methods that the module uses, on a real MRML scene. They do not look like the
real ones.
"""

from __future__ import annotations

import sys
import types

import shiboken6
import slicer
from PySide6.QtCore import QEvent, Qt, Signal

from . import pythonqt

qt = pythonqt.makeModule()


class Dynamic:
    """A property of a stand-in, kept as a dynamic Qt property, so that the `.ui` can set it too."""

    def __init__(self, name: str, default) -> None:
        self.name, self.default = name, default

    def __get__(self, instance, owner):
        if instance is None:
            return self
        value = instance.property(self.name)
        return self.default if value is None else value

    def __set__(self, instance, value) -> None:
        instance.setProperty(self.name, value)


class Reacting:
    """Calls `propertyChanged` when a dynamic property was written, by the `.ui` or by the module."""

    def event(self, event) -> bool:
        handled = super().event(event)
        if event.type() == QEvent.DynamicPropertyChange:
            self.propertyChanged(bytes(event.propertyName().data()).decode())
        return handled


@pythonqt.customWidget
class ctkCollapsibleButton(Reacting, qt.QWidget):
    contentsCollapsed = Signal(bool)
    HEADER = 24
    text = Dynamic("text", "")
    collapsed = Dynamic("collapsed", False)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.setContentsMargins(2, self.HEADER, 2, 2)

    def propertyChanged(self, name: str) -> None:
        self.update()
        if name == "collapsed":
            self._apply()
            self.contentsCollapsed.emit(self.collapsed)

    def _apply(self) -> None:
        for child in self.findChildren(qt.QWidget, options=Qt.FindDirectChildrenOnly):
            child.setVisible(not self.collapsed)
        self.setMaximumHeight(self.HEADER + 4 if self.collapsed else 16777215)

    def showEvent(self, event) -> None:
        if self.collapsed:
            self._apply()
        super().showEvent(event)

    def mousePressEvent(self, event) -> None:
        if event.position().y() < self.HEADER:
            self.collapsed = not self.collapsed

    def paintEvent(self, event) -> None:
        del event
        painter = qt.QPainter(self)
        painter.fillRect(0, 0, self.property("width"), self.HEADER - 4, qt.QColor(214, 219, 228))
        painter.setPen(qt.QColor(30, 30, 30))
        painter.drawText(8, 15, ("▸  " if self.collapsed else "▾  ") + self.text)
        painter.end()


@pythonqt.customWidget
class ctkPathLineEdit(qt.QWidget):
    """Speaks at every key, but as the real one only of a path: its validator refuses an empty text."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._comboBox, self._hadValidInput = qt.QComboBox(self), False
        self._comboBox.setEditable(True)
        self._comboBox.setInsertPolicy(qt.QComboBox.NoInsert)
        self._comboBox.setValidator(qt.QRegularExpressionValidator(qt.QRegularExpression(".+"), self))
        self._comboBox.editTextChanged.connect(self._onText)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._comboBox)

    def comboBox(self):
        return self._comboBox

    def _onText(self, text: str) -> None:
        hasValidInput = self._comboBox.lineEdit().hasAcceptableInput()
        if hasValidInput:
            self.currentPathChanged.emit(text)
        if hasValidInput != self._hadValidInput:
            self._hadValidInput = hasValidInput
            self.validInputChanged.emit(hasValidInput)

    @property
    def currentPath(self) -> str:
        return self._comboBox.property("currentText")

    @currentPath.setter
    def currentPath(self, value: str) -> None:
        self._comboBox.setEditText(value)


@pythonqt.customWidget
class qMRMLWidget(qt.QWidget):
    def setMRMLScene(self, scene) -> None:
        self.scene = scene
        for receiver in getattr(self, "sceneReceivers", []):
            receiver.setMRMLScene(scene)

    def mrmlScene(self):
        return getattr(self, "scene", None)


@pythonqt.customWidget
class qMRMLNodeComboBox(Reacting, qt.QComboBox):
    currentNodeChanged = Signal(object)
    nodeTypes = Dynamic("nodeTypes", ())
    noneEnabled = Dynamic("noneEnabled", False)

    def __init__(self, parent=None) -> None:
        self._scene, self._ids = None, []
        super().__init__(parent)
        self.currentIndexChanged.connect(lambda _: self.currentNodeChanged.emit(self.currentNode()))

    def propertyChanged(self, name: str) -> None:
        del name
        self._refresh()

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
            self._observe(scene, event)
        self._refresh()

    def _observe(self, scene, event: int) -> None:
        def react(*_args) -> None:
            if shiboken6.isValid(self):
                self._refresh()
            else:
                scene.RemoveObserver(tag)

        tag = scene.AddObserver(event, react)

    def _nodes(self) -> list:
        nodes = [node for name in self.nodeTypes for node in slicer.util.getNodesByClass(name)]
        return [node for node in nodes if node.GetClassName() in self.nodeTypes and not node.GetHideFromEditors()]

    def _refresh(self) -> None:
        if not self._scene:
            return
        current = self.currentNodeID
        blocked = self.blockSignals(True)
        self.clear()
        entries = [("", "None")] if self.noneEnabled else []
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
