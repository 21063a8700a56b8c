"""The scripted module "CaLID Reconstruction": Slicer's classes, each a thin cover of `CaLIDReconstructLib`."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path

import slicer
import vtk
from CaLIDReconstructLib import DemoCase, Installation
from CaLIDReconstructLib.Logic import Logic
from CaLIDReconstructLib.Panel import Panel
from CaLIDReconstructLib.Parameters import CaLIDReconstructParameterNode
from CaLIDReconstructLib.Segmentations import loadTerminology
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

DOCUMENTATION = "https://github.com/CaLID-MR/SlicerCaLID/blob/main/docs/slicer.md"


class CaLIDReconstruct(ScriptedLoadableModule):
    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("CaLID Reconstruction")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Cardiac")]
        self.parent.dependencies = ["Segmentations", "Sequences", "SubjectHierarchy", "Terminologies"]
        self.parent.contributors = ["The CaLID authors"]
        self.parent.helpText = _(
            "Fills in the missing slices of a cardiac short-axis stack or cine with a latent diffusion model. "
            "Generated slices are synthetic and marked; acquired slices are kept bit by bit. Not for diagnosis."
        )
        self.parent.helpText += '<p><a href="{url}">{words}</a></p>'.format(
            url=DOCUMENTATION, words=_("Documentation and tutorial")
        )
        self.parent.acknowledgementText = _("Built on 3D Slicer, PyTorch and MONAI.")
        slicer.app.connect("startupCompleted()", onStartup)


def onStartup() -> None:
    """Register the sample case and the terminology; downloads and installs nothing."""
    DemoCase.register(Path(__file__).parent / "Resources" / "Icons")
    loadTerminology()


class CaLIDReconstructWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel. Logic and installation can be given by tests."""

    def __init__(self, parent=None, logic=None, installation=None) -> None:
        self._given = (logic, installation)
        self.ui = self.logic = self.panel = None  # made in `setup`, which Slicer calls
        self._parameterNode = None
        self._guiTag = None
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/CaLIDReconstruct.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        logic, installation = self._given
        self.logic = logic or CaLIDReconstructLogic()
        self.panel = Panel(self.ui, self.logic, installation)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        for event in ("NodeAddedEvent", "NodeRemovedEvent", "EndBatchProcessEvent"):
            self.addObserver(slicer.mrmlScene, getattr(slicer.mrmlScene, event), self.onSceneChanged)
        self.setParameterNode(self.logic.getParameterNode())

    def cleanup(self) -> None:
        self.setParameterNode(None)
        self.removeObservers()
        self.panel.close()

    def enter(self) -> None:
        self.setParameterNode(self.logic.getParameterNode())

    def exit(self) -> None:
        self.setParameterNode(None)

    def onReload(self) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in ("CaLIDReconstructLib", "calid")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, _caller, _event) -> None:
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        self.panel.onSceneClosed()
        self.onSceneEndImport(caller, event)

    def onSceneEndImport(self, _caller, _event) -> None:
        if self.parent.isEntered:
            self.setParameterNode(self.logic.getParameterNode())

    def onSceneChanged(self, _caller, _event) -> None:
        self.panel.onSceneChanged()

    def setParameterNode(self, parameterNode: CaLIDReconstructParameterNode | None) -> None:
        """Bind the panel to another parameter node, or to none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.panel.refresh)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.panel.refresh)
        self.panel.setParameters(parameterNode)


class CaLIDReconstructLogic(Logic, ScriptedLoadableModuleLogic):
    """Everything the panel does, as calls: `CaLIDReconstructLogic().upsample(node, factor=8)`."""

    def __init__(self, preferences=None, makeTransport=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        Logic.__init__(self, preferences, makeTransport)

    def getParameterNode(self) -> CaLIDReconstructParameterNode:
        return CaLIDReconstructParameterNode(super().getParameterNode())


class CaLIDReconstructTest(ScriptedLoadableModuleTest):
    """Runs in the application: Developer mode, "Reload and Test", or the CTest of an extension build."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for name in ("test_demoCaseIsUpsampledByLinearInterpolation", "test_cancelLeavesTheSceneAsItWas"):
            self.setUp()
            try:
                getattr(self, name)()
            except unittest.SkipTest as reason:  # "Reload and Test" would show it as a failure
                self.delayDisplay(f"{name} was skipped: {reason}")

    def test_demoCaseIsUpsampledByLinearInterpolation(self) -> None:
        if not Installation.isReady():
            self.skipTest("the engine's packages are not installed, which a test must not do")
        self.delayDisplay("Upsampling the demo case without a model")
        sax = DemoCase.load().sax
        logic = CaLIDReconstructLogic()
        try:
            result = logic.upsample(sax, method="linear", factor=2)
        finally:
            logic.close()
        before = slicer.util.arrayFromVolume(sax)
        after = slicer.util.arrayFromVolume(result.volume)
        assert after.shape[0] == 2 * before.shape[0] - 1
        assert (after[::2] == before).all()

    def test_cancelLeavesTheSceneAsItWas(self) -> None:
        self.delayDisplay("Cancelling a run")
        from CaLIDReconstructLib.Logic import Quiet
        from CaLIDReconstructLib.Settings import RunSettings

        sax = DemoCase.load().sax
        count = slicer.mrmlScene.GetNumberOfNodes()
        logic = CaLIDReconstructLogic()
        listener = Quiet()
        try:
            job = logic.start(sax, RunSettings(method="linear"), listener)
            job.cancel()
            while not job.isDone:
                logic.poll()
                slicer.app.processEvents()
        finally:
            logic.close()
        assert listener.wasCancelled
        assert slicer.mrmlScene.GetNumberOfNodes() == count
