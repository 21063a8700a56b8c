"""The typed parameter node: what the user chose, saved with the scene; and the settings that belong to the machine."""

from __future__ import annotations

import enum
from typing import Annotated

import qt
from calid.run import settings as engine
from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSequenceNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from .Settings import DEFAULTS


class FactorChoice(enum.Enum):
    """How many times as many gaps between slices the result has."""

    ISOTROPIC = "isotropic"
    X2 = 2
    X4 = 4
    X8 = 8
    X16 = 16

    def label(self) -> str:
        """What the panel shows for it."""
        if self is FactorChoice.ISOTROPIC:
            return _("Isotropic (as fine as the pixels)")
        return _("x{count}").format(count=self.value)


class MethodChoice(enum.Enum):
    """How slices are made."""

    CALID_PLUS = "calid+"
    CALID = "calid"
    LINEAR = "linear"

    def label(self) -> str:
        """What the panel shows for it."""
        return {
            MethodChoice.CALID_PLUS: _("CaLID+ (starts from the neighbors)"),
            MethodChoice.CALID: _("CaLID (starts from noise)"),
            MethodChoice.LINEAR: _("Linear (no model, to compare with)"),
        }[self]


class ModelChoice(enum.Enum):
    """Which of the bundled models works."""

    AUTO = "auto"
    FRAMES = "2d"
    CINE = "2d+t"

    def label(self) -> str:
        """What the panel shows for it."""
        return {
            ModelChoice.AUTO: _("Automatic (by the input)"),
            ModelChoice.FRAMES: _("2D (each frame by itself)"),
            ModelChoice.CINE: _("2D+T (all frames of a cine together)"),
        }[self]


class ModeChoice(enum.Enum):
    """How generated slices look."""

    DETAIL = "detail"
    FIDELITY = "fidelity"

    def label(self) -> str:
        """What the panel shows for it."""
        return {
            ModeChoice.DETAIL: _("Sharp: looks like an MR slice"),
            ModeChoice.FIDELITY: _("Smooth: least error on average"),
        }[self]


class FramesChoice(enum.Enum):
    """Which frames of a cine are worked on."""

    ALL = "all"
    CURRENT = "current"

    def label(self) -> str:
        """What the panel shows for it."""
        return {FramesChoice.ALL: _("All frames"), FramesChoice.CURRENT: _("Shown frame only")}[self]


class DeviceChoice(enum.Enum):
    """Where the engine computes."""

    AUTO = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"

    def label(self) -> str:
        """What the panel shows for it."""
        return {
            DeviceChoice.AUTO: _("Automatic"),
            DeviceChoice.CUDA: _("NVIDIA graphics card (CUDA)"),
            DeviceChoice.MPS: _("Apple graphics (MPS)"),
            DeviceChoice.CPU: _("Processor (CPU)"),
        }[self]


@parameterNodeWrapper
class CaLIDReconstructParameterNode:
    """What one run needs.

    inputNode - the short-axis stack: a volume, or a sequence (or the volume shown of one).
    frames - which frames of a cine are upsampled.
    factor, method, model, mode, samples, steps, seed - see `calid.run.settings.Settings`.
    region - only the part of each slice inside this region is worked on; the rest is linear.
    device - where the engine computes.
    outputName - name of the result; empty for an automatic one.
    segmentResult, markGenerated, mapUncertainty - further results.
    correctShifts - slices of different breath-holds are moved within their planes; else it is only told how far off.
    useLongAxis - the long-axis images of the scene guide the slices that are made.
    """

    inputNode: vtkMRMLScalarVolumeNode | vtkMRMLSequenceNode | None
    frames: FramesChoice = FramesChoice.ALL
    factor: FactorChoice = FactorChoice(DEFAULTS.factor)
    method: MethodChoice = MethodChoice(DEFAULTS.method)
    model: ModelChoice = ModelChoice(DEFAULTS.model)
    mode: ModeChoice = ModeChoice(DEFAULTS.mode)
    samples: Annotated[int, WithinRange(1, engine.MAX_SAMPLES)] = engine.DEFAULT_SAMPLES
    steps: Annotated[int, WithinRange(1, engine.MAX_STEPS)] = DEFAULTS.steps
    seed: Annotated[int, WithinRange(0, 2147483647)] = 0
    region: vtkMRMLMarkupsROINode
    device: DeviceChoice = DeviceChoice.AUTO
    outputName: str = ""
    segmentResult: bool = True
    markGenerated: bool = True
    mapUncertainty: bool = False
    correctShifts: bool = False
    useLongAxis: bool = True


class _Kept:
    """A text in the application's settings, empty at first."""

    def __init__(self, key: str) -> None:
        self.key = f"CaLIDReconstruct/{key}"

    def __get__(self, preferences: Preferences, _owner: type) -> str:
        return str(preferences.settings.value(self.key, "") or "")

    def __set__(self, preferences: Preferences, text: str) -> None:
        preferences.settings.setValue(self.key, text)


class Preferences:
    """Settings of this machine, kept in the application's settings and not in the scene.

    Args:
        settings: a QSettings; None for the application's own.
    """

    interpreter = _Kept("Interpreter")
    """Path of the Python that runs the engine; empty for Slicer's own."""

    remoteHost = _Kept("RemoteHost")
    """The computer that the engine runs on, as ssh calls it; empty for this one."""

    remoteProgram = _Kept("RemoteProgram")
    """How `calid` is called there; empty for "calid"."""

    agreedHost = _Kept("AgreedHost")
    """The computer that the user agreed to send images to; empty before."""

    modelsFolder = _Kept("ModelsFolder")
    """Folder with other weights and their models.json; empty for the bundled ones."""

    agreedLicense = _Kept("AgreedLicense")
    """The license of the segmenter's weights that the user agreed to; empty before."""

    batchFolder = _Kept("BatchFolder")
    """Where the results of the last batch went; empty before."""

    dicomFolder = _Kept("DicomFolder")
    """The DICOM folder that was loaded last; empty before."""

    def __init__(self, settings=None) -> None:
        self.settings = settings or qt.QSettings()
