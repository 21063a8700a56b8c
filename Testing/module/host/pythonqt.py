"""PySide6 under PythonQt's names and property rules: `label.text` is a value, `label.setText()` still works.

Installed as the module `qt`. Signals are connected with `widget.clicked.connect(f)`, which both bindings know.
"""

from __future__ import annotations

import contextlib
import sys
import types
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

CUSTOM_WIDGETS: dict[str, type] = {}

# Left as methods. The readers of all but objectName are virtual: shiboken would take the descriptor for an override in
# Python, which asks for the property again, and so on until the stack is used up.
LEFT_AS_THEY_ARE = {"objectName", "sizeHint", "minimumSizeHint", "duration"}


class _Property:
    """On an instance the Qt property's value, on the class what PySide6 has under that name (a static method)."""

    def __init__(self, name: str, original) -> None:
        self.name, self.original = name, original

    def __get__(self, instance, owner):
        return self.original if instance is None else instance.property(self.name)

    def __set__(self, instance, value) -> None:
        if not instance.setProperty(self.name, value) and instance.metaObject().indexOfProperty(self.name) < 0:
            raise AttributeError(f"{type(instance).__name__} has no property {self.name}")


def _givePropertyRules(cls: type) -> None:
    meta = getattr(cls, "staticMetaObject", None)
    if meta is None:
        return
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if name not in LEFT_AS_THEY_ARE:
            with contextlib.suppress(TypeError, AttributeError):
                setattr(cls, name, _Property(name, getattr(cls, name, None)))


def customWidget(cls: type) -> type:
    """Class decorator: `QUiLoader` makes this class where a `.ui` file names it."""
    CUSTOM_WIDGETS[cls.__name__] = cls
    return cls


class QUiLoader(QtUiTools.QUiLoader):
    """Loads a `.ui` with the stand-in widgets and replays the file's own mrmlSceneChanged connections."""

    def __init__(self) -> None:
        super().__init__()
        for cls in CUSTOM_WIDGETS.values():
            self.registerCustomWidget(cls)

    def load(self, file, parent=None):
        widget = super().load(file, parent)
        file.seek(0)
        named = {child.objectName(): child for child in widget.findChildren(QtCore.QObject)}
        named[widget.objectName()] = widget
        connections = ElementTree.fromstring(bytes(file.readAll().data())).iter("connection")
        widget.sceneReceivers = [
            named[connection.findtext("receiver")]
            for connection in connections
            if connection.findtext("signal").startswith("mrmlSceneChanged")
        ]
        widget.namedChildren = named  # keeps the Python halves of the widgets alive
        return widget


def _flatten(module: types.ModuleType) -> None:
    for source in (QtCore, QtGui, QtWidgets):
        for name in dir(source):
            if not name.startswith("_"):
                setattr(module, name, getattr(source, name))
    seen = set()
    for cls in list(vars(module).values()):
        if isinstance(cls, type) and issubclass(cls, QtCore.QObject) and cls not in seen:
            seen.add(cls)
            _givePropertyRules(cls)
    QtCore.QObject.name = property(lambda self: self.objectName(), lambda self, value: self.setObjectName(value))
    QtCore.QObject.className = lambda self: self.metaObject().className()


def makeModule() -> types.ModuleType:
    """The module `qt`, put into sys.modules."""
    module = types.ModuleType("qt", __doc__)
    sys.modules["qt"] = module
    _flatten(module)
    module.QUiLoader = QUiLoader
    return module
