"""A scene with a result, saved as .mrb and read again, still says everything; views of it show the heart."""

from __future__ import annotations

import hearts
import numpy as np
import scripted
import slicer
import vtk
from CaLIDReconstructLib import Inputs, Results
from CaLIDReconstructLib.EngineClient import EngineClient
from CaLIDReconstructLib.Job import UpsampleJob
from CaLIDReconstructLib.Logic import Quiet
from CaLIDReconstructLib.Parameters import FactorChoice, FramesChoice
from CaLIDReconstructLib.Settings import RunSettings
from host.application import MODULE_FOLDER, loadModule
from host.views import SliceView, ThreeDView
from scene_files import saveAndReload

MODULE, _ = loadModule(MODULE_FOLDER / "CaLIDReconstruct.py")


def madeResult(frames: int):
    """A cine or volume in the scene with its finished result and segmentation."""
    volume, _ = hearts.addPicture(frames)
    client = EngineClient(lambda: scripted.ScriptedTransport(scripted.good))
    listener = Quiet()
    job = UpsampleJob(client, volume, RunSettings(factor=4, segment=True), listener)
    job.start()
    while not job.isDone:
        client.poll()
        job.advance()
    assert listener.failure is None
    return volume, listener.result


def parameterNode():
    """The module's parameters, as its logic finds or makes them."""
    return MODULE.CaLIDReconstructLogic().getParameterNode()


def test_a_result_survives_saving_and_loading(scene, tmp_path):
    _, result = madeResult(frames=2)
    voxels = [slicer.util.arrayFromVolume(result.sequence.GetNthDataNode(index)).copy() for index in range(2)]
    name, provenance = result.sequence.GetName(), result.sequence.GetAttribute(Results.PROVENANCE)
    saveAndReload(scene, tmp_path)
    sequence = next(n for n in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if n.GetName() == name)
    for index in range(2):
        assert np.array_equal(slicer.util.arrayFromVolume(sequence.GetNthDataNode(index)), voxels[index])
    assert sequence.GetAttribute(Results.PROVENANCE) == provenance
    chosen = Inputs.resolve(sequence)
    assert chosen.browser.GetNumberOfSynchronizedSequenceNodes(True) == 3
    chosen.browser.SetSelectedItemNumber(1)
    assert np.array_equal(slicer.util.arrayFromVolume(chosen.volume), voxels[1])
    assert chosen.volume.GetAttribute(Results.PROVENANCE) == provenance


def test_a_segmentation_survives_saving_and_loading(scene, tmp_path):
    madeResult(frames=1)
    saveAndReload(scene, tmp_path)
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    segmentation = node.GetSegmentation()
    names = {segmentation.GetNthSegment(index).GetName() for index in range(3)}
    assert names == {"LV cavity", "LV myocardium", "RV cavity"}
    assert node.GetAttribute(Results.LICENSE) == "CC-BY-NC-SA-4.0"
    assert node.CreateClosedSurfaceRepresentation()  # the file holds labels only; Slicer makes the surfaces of them
    surface = vtk.vtkPolyData()
    assert node.GetClosedSurfaceRepresentation("LV", surface)
    assert surface.GetNumberOfPoints() > 100


def test_the_users_choices_survive_saving_and_loading(scene, tmp_path):
    volume, sequence = hearts.addPicture(frames=2)
    parameters = parameterNode()
    parameters.inputNode, parameters.factor, parameters.frames = volume, FactorChoice.X8, FramesChoice.CURRENT
    parameters.steps, parameters.outputName, parameters.segmentResult = 21, "mine", False
    saveAndReload(scene, tmp_path)
    restored = parameterNode()
    assert restored.inputNode.GetName() == volume.GetName() or restored.inputNode.GetName() == sequence.GetName()
    assert (restored.factor, restored.frames, restored.steps) == (FactorChoice.X8, FramesChoice.CURRENT, 21)
    assert (restored.outputName, restored.segmentResult) == ("mine", False)


def test_a_slice_view_shows_the_upsampled_heart_and_the_browser_moves_it():
    volume, result = madeResult(frames=3)
    view = SliceView("Red", (200, 200))
    view.composite.SetBackgroundVolumeID(result.volume.GetID())
    view.node.RotateToVolumePlane(result.volume)
    view.logic.FitSliceToAll()
    browser = Inputs.resolve(volume).browser
    pictures = []
    for frame in (0, 2):
        browser.SetSelectedItemNumber(frame)
        pictures.append(view.pixels().astype(int))
    view.close()
    assert pictures[0].std() > 15
    assert np.abs(pictures[0] - pictures[1]).max() > 60


def test_a_3d_view_shows_the_ventricles_in_their_colors():
    _, result = madeResult(frames=1)
    result.segmentation.GetDisplayNode().SetVisibility3D(True)
    view = ThreeDView("1", (240, 200))
    pixels = view.pixels().astype(int)
    view.close()
    reddish = (pixels[..., 0] > pixels[..., 2] + 20).mean()  # the LV, seen through its wall
    bluish = (pixels[..., 2] > pixels[..., 0] + 40).mean()  # the RV
    assert reddish > 0.005
    assert bluish > 0.01
