"""The application object, the scene and the MRML logics: what `slicer.app` and `slicer.mrmlScene` are in the tests."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtWidgets

HOST_FOLDER = Path(__file__).parent
MODULE_FOLDER = HOST_FOLDER.parents[2] / "CaLIDReconstruct"

LOGICS = {
    "colors": (slicer.vtkMRMLColorLogic, "Colors"),
    "volumes": (slicer.vtkSlicerVolumesLogic, "Volumes"),
    "terminologies": (slicer.vtkSlicerTerminologiesModuleLogic, "Terminologies"),
    "segmentations": (slicer.vtkSlicerSegmentationsModuleLogic, "Segmentations"),
    "subjecthierarchy": (slicer.vtkSlicerSubjectHierarchyModuleLogic, "SubjectHierarchy"),
    "sequences": (slicer.vtkSlicerSequencesLogic, "Sequences"),
    "markups": (slicer.vtkSlicerMarkupsLogic, "Markups"),
    "plots": (slicer.vtkSlicerPlotsLogic, "Plots"),
}

OWNED_BY_PLUGINS = (
    "vtkMRMLScalarVolumeNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLTableNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLPlotSeriesNode",
    "vtkMRMLTransformNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLModelNode",
)

_running: Application | None = None


class _Unconnected:
    """A signal source that nothing in the tests fires."""

    def connect(self, *args) -> None:
        pass

    def disconnect(self, *args) -> None:
        pass


class Application:
    """The part of `slicer.app` that the module and Slicer's own Python use."""

    def __init__(self, scene, logic, qtApplication) -> None:
        self.scene, self.logic, self.qtApplication = scene, logic, qtApplication
        self.revision, self.majorVersion, self.minorVersion = "0", 5, 12
        self.applicationVersion = "5.12 (test host)"
        self.temporaryPath = tempfile.gettempdir()
        self.translations: dict[str, str] = {}
        self.settingsFolder = tempfile.mkdtemp(prefix="calid-host-settings-")
        atexit.register(shutil.rmtree, self.settingsFolder, ignore_errors=True)
        ini = QtCore.QSettings.Format.IniFormat
        QtCore.QSettings.setDefaultFormat(ini)
        QtCore.QSettings.setPath(ini, QtCore.QSettings.Scope.UserScope, self.settingsFolder)
        qtApplication.setOrganizationName("CaLID")
        self._settings = QtCore.QSettings()

    def connect(self, *args) -> None:
        """Signals such as startupCompleted() are never sent here."""

    def disconnect(self, *args) -> None:
        pass

    def moduleManager(self):
        return _Unconnected()

    def translate(self, context: str, text: str) -> str:
        del context
        return self.translations.get(text, text)

    def processEvents(self) -> None:
        self.qtApplication.processEvents()

    def testingEnabled(self) -> bool:
        return True

    def commandOptions(self):
        return types.SimpleNamespace(testingEnabled=True, noMainWindow=True)

    def userSettings(self):
        return self._settings

    settings = userSettings

    def applicationLogic(self):
        return self.logic

    def mrmlScene(self):
        return self.scene

    def clipboard(self):
        return self.qtApplication.clipboard()

    def layoutManager(self):
        return None

    def setOverrideCursor(self, cursor) -> None:
        del cursor

    def restoreOverrideCursor(self) -> None:
        pass

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass


def _useSlicerPython() -> None:
    """Make `slicer.i18n`, `slicer.ScriptedLoadableModule` and the like importable.

    They are Slicer's own where CALID_SLICER_SOURCE names a Slicer source tree, and small stand-ins otherwise.
    """
    source = os.environ.get("CALID_SLICER_SOURCE")
    folder = Path(source) / "Base" / "Python" / "slicer" if source else HOST_FOLDER / "slicer_python"
    if not (folder / "i18n.py").is_file():
        raise RuntimeError(
            f"CALID_SLICER_SOURCE={source} has no Base/Python/slicer/i18n.py: name a Slicer source tree."
        )
    slicer.__path__.append(str(folder))
    if source:
        spec = importlib.util.spec_from_file_location("slicer.util", folder / "util.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["slicer.util"] = slicer.util = module
        spec.loader.exec_module(module)


def _startLogics(scene):
    """The application logic with the module logics that `slicer.util` and the module look up."""
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(logic)
    slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(logic)
    modules = types.SimpleNamespace()
    # slicer-core brings no terminology files; its complaints about that would hide real errors.
    vtk.vtkObject.GlobalWarningDisplayOff()
    for name, (cls, title) in LOGICS.items():
        moduleLogic = cls()
        moduleLogic.SetMRMLScene(scene)
        moduleLogic.SetMRMLApplicationLogic(logic)
        logic.SetModuleLogic(title, moduleLogic)
        setattr(modules, name, types.SimpleNamespace(logic=lambda found=moduleLogic: found))
    vtk.vtkObject.GlobalWarningDisplayOn()
    slicer.modules = modules
    return logic


class SubjectHierarchyPlugins:
    """What the application does with items when nodes come and go, see qSlicerSubjectHierarchyPluginLogic."""

    def __init__(self, scene) -> None:
        self.scene = scene
        scene.AddObserver(scene.NodeAddedEvent, self._onNodeAdded)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._onNodeAboutToBeRemoved)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _caller, _event, node) -> None:
        isOwned = any(node.IsA(name) for name in OWNED_BY_PLUGINS)
        if self.scene.IsImporting() or node.GetHideFromEditors() or not isOwned:
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAboutToBeRemoved(self, _caller, _event, node) -> None:
        if self.scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)


def startApplication() -> Application:
    """Build scene, logics and widgets once for the whole test process."""
    global _running
    if _running is not None:
        return _running
    qtApplication = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    from . import widgets

    widgets.install()
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    logic = _startLogics(scene)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    slicer.app = _running = Application(scene, logic, qtApplication)
    _running.hierarchyPlugins = SubjectHierarchyPlugins(scene)
    _useSlicerPython()
    sys.path.insert(0, str(MODULE_FOLDER))
    return _running


def loadModule(path: Path):
    """Import a scripted module's file as Slicer's factory does; returns (Python module, module instance)."""
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    parent = types.SimpleNamespace(path=str(path))
    instance = getattr(module, name)(parent)
    setattr(slicer.modules, name.lower(), types.SimpleNamespace(path=str(path), name=name))
    slicer.util.modulePath = lambda wanted: getattr(slicer.modules, wanted.lower()).path
    return module, instance


def openWidget(module, name: str, **injected):
    """Make the module's widget in a parent as Slicer's factory does; returns the widget object."""
    from . import pythonqt, widgets

    del pythonqt
    parent = widgets.qMRMLWidget()
    parent.setLayout(widgets.qt.QVBoxLayout())
    parent.isEntered = True
    parent.setMRMLScene(slicer.mrmlScene)
    widget = getattr(module, f"{name}Widget")(parent, **injected)
    widget.setup()
    return widget
