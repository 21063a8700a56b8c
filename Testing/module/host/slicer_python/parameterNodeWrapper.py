"""Stand-in for Slicer's typed parameter node: the types and widgets that this module uses, nothing more.

Every parameter is an observed node parameter or node reference, so scenes saved here read in the same form.
"""

import enum
import types
import typing
from dataclasses import dataclass

import qt
import slicer
import vtk

_PROPERTY = "SlicerParameterName"


@dataclass
class WithinRange:
    minimum: float
    maximum: float


def _parts(hint):
    args = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    return args[0], args[1:]


def _nodeClasses(kind):
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return [cls for cls in members if isinstance(cls, type) and issubclass(cls, slicer.vtkMRMLNode)]


class _Parameter:
    def __init__(self, name, hint, default):
        self.name, self.default = name, default
        self.kind, self.annotations = _parts(hint)
        self.nodeClasses = _nodeClasses(self.kind)

    def read(self, node):
        if self.nodeClasses:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if issubclass(self.kind, enum.Enum):
            return self.kind[text]
        return text == "True" if self.kind is bool else self.kind(text)

    def write(self, node, value):
        if self.nodeClasses:
            node.SetNodeReferenceID(self.name, value.GetID() if value else None)
            return
        for annotation in self.annotations:
            if not annotation.minimum <= value <= annotation.maximum:
                raise ValueError(f"{self.name}={value} is outside {annotation.minimum}..{annotation.maximum}")
        node.SetParameter(self.name, value.name if isinstance(value, enum.Enum) else str(value))

    def prepare(self, node):
        if not self.nodeClasses and not node.GetParameter(self.name):
            self.write(node, self.default)


class _Binding:
    """One widget bound to one parameter, both ways."""

    def __init__(self, wrapper, parameter, widget):
        self.wrapper, self.parameter, self.widget = wrapper, parameter, widget
        self.signal, self.get, self.set = self._access()
        self.show()
        self.signal.connect(self.changed)

    def _access(self):
        widget, kind = self.widget, self.parameter.kind
        if self.parameter.nodeClasses:
            widget.nodeTypes = [cls().GetClassName() for cls in self.parameter.nodeClasses]
            return widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
        if isinstance(widget, qt.QComboBox):
            return self._choices(list(kind))
        if isinstance(widget, qt.QCheckBox):
            return widget.stateChanged, lambda: widget.checked, widget.setChecked
        if isinstance(widget, qt.QSpinBox):
            for annotation in self.parameter.annotations:
                widget.setRange(annotation.minimum, annotation.maximum)
            return widget.valueChanged, lambda: widget.value, widget.setValue
        return widget.textChanged, lambda: widget.text, widget.setText

    def _choices(self, values):
        self.widget.clear()
        for value in values:
            self.widget.addItem(value.label() if hasattr(value, "label") else value.name)
        return (
            self.widget.currentIndexChanged,
            lambda: values[self.widget.currentIndex],
            lambda value: self.widget.setCurrentIndex(values.index(value)),
        )

    def show(self):
        value = self.parameter.read(self.wrapper.parameterNode)
        if self.get() != value:
            self.set(value)

    def changed(self):
        if not self.wrapper.showing:
            self.parameter.write(self.wrapper.parameterNode, self.get())


class _Wrapper:
    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self.bindings, self.showing = {}, False
        for parameter in self.allParameters.values():
            parameter.prepare(parameterNode)

    def connectGui(self, gui):
        widgets = [widget for widget in vars(gui).values() if widget.property(_PROPERTY)]
        bindings = [_Binding(self, self.allParameters[widget.property(_PROPERTY)], widget) for widget in widgets]
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show())
        self.bindings[tag] = bindings
        return tag

    def disconnectGui(self, tag):
        for binding in self.bindings.pop(tag, []):
            binding.signal.disconnect(binding.changed)
        if tag is not None:
            self.RemoveObserver(tag)

    def _show(self):
        self.showing = True
        for binding in [binding for bindings in self.bindings.values() for binding in bindings]:
            binding.show()
        self.showing = False

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)


def parameterNodeWrapper(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(cls, name, None)) for name, hint in hints.items()}
    members = {
        name: property(
            lambda self, p=parameter: p.read(self.parameterNode),
            lambda self, value, p=parameter: p.write(self.parameterNode, value),
        )
        for name, parameter in parameters.items()
    }
    return type(cls.__name__, (_Wrapper,), {**members, "allParameters": parameters, "__doc__": cls.__doc__})
