"""What the engine needs and whether it is there: said without importing it, installed only after a click."""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import slicer
from slicer.i18n import tr as _

from .EngineProcess import engineCommand, killTree, startProcess

REQUIREMENTS_FILE = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
TORCH_REQUIREMENT = ">=2.2"
TORCH_DOWNLOAD = "0.2 GB (CPU) - 3 GB (CUDA)"
PACKAGES_DOWNLOAD = "10 MB"
KEPT_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "SimpleITK")
SELF_CHECK_TIMEOUT_S = 120.0

# Runs in the engine's interpreter: imports torch for real and multiplies on the device, which is what fails when an
# installation is half there or the graphics card is newer than the build of torch.
SELF_CHECK = """
import json, sys
report = {"python": sys.version.split()[0]}
try:
    import torch
    report["torch"] = torch.__version__
    report["device"], report["device_name"], report["memory_bytes"] = "cpu", "", None
    if torch.cuda.is_available():
        try:
            x = torch.ones(8, 8, device="cuda")
            (x @ x).sum().item()
            report["device"] = "cuda"
            report["device_name"] = torch.cuda.get_device_name()
            report["memory_bytes"] = torch.cuda.mem_get_info()[0]
        except Exception as error:
            report["cuda_error"] = str(error).splitlines()[0]
    elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        report["device"] = "mps"
    for name in ("monai", "einops", "safetensors", "tqdm", "nibabel", "scipy", "SimpleITK", "pydicom", "vtk", "calid"):
        try:
            report[name] = getattr(__import__(name), "__version__", "installed")
        except Exception as error:
            report.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
except Exception as error:
    report["errors"] = {"torch": f"{type(error).__name__}: {error}"}
print("CALID-SELF-CHECK " + json.dumps(report))
"""


class TorchState(enum.Enum):
    """Whether PyTorch is there and can be used."""

    MISSING = "missing"
    HALF_INSTALLED = "half installed"
    TOO_OLD = "too old"
    PRESENT = "present"


@dataclass(frozen=True)
class SelfCheck:
    """What the engine's interpreter said about itself.

    Args:
        report: versions, device and memory, as the check printed them.
        torch: whether torch is there, and whole.
        problem: the first thing that is wrong, empty when all is well.
    """

    report: dict
    torch: TorchState
    problem: str = ""

    @property
    def isFine(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem

    def text(self) -> str:
        """The outcome as lines to show and to copy."""
        report = self.report
        lines = [_("Python {version}").format(version=report["python"])] if "python" in report else []
        if "torch" in report:
            lines.append(
                _("PyTorch {version}, device: {device}").format(version=report["torch"], device=_device(report))
            )
        if "cuda_error" in report:
            lines.append(
                _("The graphics card cannot be used, so the CPU will be: {reason}").format(reason=report["cuda_error"])
            )
        lines += [f"{name} {report[name]}" for name in ("monai", "einops", "safetensors", "calid") if name in report]
        return "\n".join([*lines, self.problem or _("All is well.")])


def _device(report: dict) -> str:
    from .Messages import memoryText

    name = report.get("device_name") or report["device"]
    memory = report.get("memory_bytes")
    return _("{name} ({memory} free)").format(name=name, memory=memoryText(memory)) if memory else name


def torchState() -> TorchState:
    """Whether torch is installed in Slicer's Python, judged from its files alone; it is not imported."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = None
    isFound = importlib.util.find_spec("torch") is not None
    if version and isFound:
        return TorchState.PRESENT if _isNewEnough(version) else TorchState.TOO_OLD
    return TorchState.HALF_INSTALLED if version or isFound else TorchState.MISSING


def _isNewEnough(torchVersion: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(TORCH_REQUIREMENT).contains(torchVersion, prereleases=True)


def missingRequirements() -> list[str]:
    """The packages of requirements.txt that are not installed, as pip would be given them."""
    from slicer import packaging

    return [str(wanted) for wanted in packaging.load_requirements(REQUIREMENTS_FILE) if not packaging.pip_check(wanted)]


def isReady(interpreter: str = "") -> bool:
    """True when a run can be expected to work; another interpreter is believed until it fails."""
    return bool(interpreter) or (torchState() is TorchState.PRESENT and not missingRequirements())


@dataclass(frozen=True)
class InstallationPlan:
    """What a click would change in Slicer's Python; false when that is nothing.

    Args:
        removesTorch: whether the torch that is there is taken away first.
        installsTorch: whether torch is downloaded.
        requirements: the other packages to download, as pip would be given them.
    """

    removesTorch: bool = False
    installsTorch: bool = False
    requirements: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.installsTorch or bool(self.requirements)

    @property
    def needsRestart(self) -> bool:
        """True while this process holds the torch to remove: Windows keeps its files, Python the old modules."""
        return self.removesTorch and "torch" in sys.modules

    def lines(self) -> list[str]:
        """The steps in words."""
        lines = []
        if self.removesTorch:
            lines.append(_("remove the PyTorch that is there"))
        if self.installsTorch:
            lines.append(
                _("download and install PyTorch {requirement}, {size}").format(
                    requirement=TORCH_REQUIREMENT, size=TORCH_DOWNLOAD
                )
            )
        if self.requirements:
            lines.append(
                _("download and install {packages}, about {size}").format(
                    packages=", ".join(self.requirements), size=PACKAGES_DOWNLOAD
                )
            )
        return lines


class Installer(Protocol):
    """Installs what is missing. Contract: is only called after the user's confirmation; raises on failure."""

    def installTorch(self) -> None:
        """Install torch of the version that the engine needs."""

    def removeTorch(self) -> None:
        """Take the torch that is there away."""

    def installRequirements(self) -> None:
        """Install the other packages that are missing."""


class SlicerInstaller:
    """Torch by the PyTorch extension, the rest by `slicer.packaging`."""

    def installTorch(self) -> None:
        """Install torch with the PyTorch extension.

        Raises:
            RuntimeError: the extension is not installed, or the user declined.
        """
        try:
            import PyTorchUtils
        except ModuleNotFoundError as error:
            raise RuntimeError(
                _("The PyTorch extension is missing: install 'PyTorch' in the Extensions Manager and restart Slicer.")
            ) from error
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=TORCH_REQUIREMENT)

    def removeTorch(self) -> None:
        """Remove torch, and torchvision with it."""
        slicer.util.pip_uninstall("torch torchvision")  # the extension installs the two, fitted to each other

    def installRequirements(self) -> None:
        """Install what requirements.txt names, leaving what is there as it is.

        Without constraints pip takes the newest monai, and with it the torch that this one wants: gigabytes, and on
        Windows a build without CUDA in place of the user's.
        """
        from slicer import packaging

        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text("\n".join(_keptVersions()), encoding="utf-8")
            packaging.pip_ensure(
                packaging.load_requirements(REQUIREMENTS_FILE),
                constraints=constraints,
                prompt_install=False,
                requester="CaLID",
            )


def _keptVersions() -> list[str]:
    """The packages that must stay as they are, as lines of a pip constraints file."""
    lines = []
    for name in KEPT_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(f"{name}=={importlib.metadata.version(name)}")
    return lines


class Installation:
    """Says what is missing, asks, and installs.

    Args:
        installer: does the work.
        confirm: confirm(text) -> bool, asks the user.
    """

    def __init__(self, installer: Installer | None = None, confirm: Callable[[str], bool] | None = None) -> None:
        self.installer = installer or SlicerInstaller()
        self.confirm = confirm or slicer.util.confirmOkCancelDisplay

    def plan(self) -> InstallationPlan:
        """What a click on Install would do."""
        state = torchState()
        return InstallationPlan(
            removesTorch=state in (TorchState.HALF_INSTALLED, TorchState.TOO_OLD),
            installsTorch=state is not TorchState.PRESENT,
            requirements=tuple(missingRequirements()),
        )

    def repairPlan(self) -> InstallationPlan:
        """What a click on Repair would do: torch anew, and what else is missing."""
        return InstallationPlan(removesTorch=True, installsTorch=True, requirements=tuple(missingRequirements()))

    def isAgreed(self, plan: InstallationPlan) -> bool:
        """Ask the user."""
        return self.confirm(
            _("CaLID is going to change Slicer's Python environment:") + "\n\n- " + "\n- ".join(plan.lines())
        )

    def carryOut(self, plan: InstallationPlan) -> None:
        """Do what the user agreed to."""
        if plan.removesTorch:
            self.installer.removeTorch()
        if plan.installsTorch:
            self.installer.installTorch()
            importlib.invalidate_caches()  # else the new torch's version is not seen by the constraints
        if plan.requirements:
            self.installer.installRequirements()
            importlib.invalidate_caches()


class SelfCheckProcess:
    """The self-check as a child process; `poll` gives the outcome once it is there.

    Args:
        interpreter: path of another Python; empty for Slicer's own.
        timeout_s: a check that takes longer is ended; importing torch from a slow disk takes a minute.
    """

    def __init__(self, interpreter: str = "", *, timeout_s: float = SELF_CHECK_TIMEOUT_S) -> None:
        environment = slicer.util.startupEnvironment() if interpreter else os.environ
        command = engineCommand(interpreter, environment=environment, arguments=("-c", SELF_CHECK))
        self._isOwnPython = not interpreter
        self._timeout_s, self._start = timeout_s, time.monotonic()
        # A file takes any amount of output; a pipe that is read only at the end fills up and stops the process.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the check
        self._process, self._error = None, ""
        try:
            self._process = startProcess(
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            self._error = str(error)

    def poll(self) -> SelfCheck | None:
        """The outcome, or None while the check runs."""
        if self._process is None:
            return self._failed(self._error)
        if self._process.poll() is None:
            if time.monotonic() - self._start < self._timeout_s:
                return None
            self.kill()
            return self._failed(
                _("The check was ended, because it took more than {seconds} s.").format(seconds=round(self._timeout_s))
            )
        self._output.seek(0)
        output = self._output.read().decode("utf-8", errors="replace")
        self._output.close()
        return selfCheckFrom(output, isOwnPython=self._isOwnPython)

    def kill(self) -> None:
        """End the check; it has no outcome then."""
        if self._process is not None and self._process.poll() is None:
            killTree(self._process)
        self._output.close()

    def _failed(self, problem: str) -> SelfCheck:
        return SelfCheck({}, _stateFromFiles(isOwnPython=self._isOwnPython), problem)


def _stateFromFiles(*, isOwnPython: bool) -> TorchState:
    """What the files say where the check itself says nothing; those of another Python are not known."""
    return torchState() if isOwnPython else TorchState.MISSING


def selfCheckFrom(output: str, *, isOwnPython: bool) -> SelfCheck:
    """What the self-check's output means.

    Args:
        output: all that the process printed.
        isOwnPython: whether it ran in Slicer's Python, whose installed files we can look at.
    """
    marked = [line for line in output.splitlines() if line.startswith("CALID-SELF-CHECK ")]
    if not marked:
        last = output.strip().splitlines()[-1] if output.strip() else ""
        problem = _("The interpreter did not run the check: {line}").format(line=last)
        return SelfCheck({}, _stateFromFiles(isOwnPython=isOwnPython), problem)
    report = json.loads(marked[-1].removeprefix("CALID-SELF-CHECK "))
    errors = report.get("errors", {})
    if "torch" in errors:
        state = _stateFromFiles(isOwnPython=isOwnPython)
        if state is not TorchState.MISSING or "No module named 'torch'" not in errors["torch"]:
            problem = _("PyTorch is only half installed ({error}). Click 'Repair' to install it again.")
            return SelfCheck(report, TorchState.HALF_INSTALLED, problem.format(error=errors["torch"]))
        return SelfCheck(report, TorchState.MISSING, _("PyTorch is not installed. Click 'Install'."))
    if not _isNewEnough(report["torch"]):
        problem = _("PyTorch {version} is too old, {requirement} is needed. Click 'Repair' to replace it.")
        problem = problem.format(version=report["torch"], requirement=TORCH_REQUIREMENT)
        return SelfCheck(report, TorchState.TOO_OLD, problem)
    if errors:
        name, error = next(iter(errors.items()))
        return SelfCheck(report, TorchState.PRESENT, f"{name}: {error}")
    return SelfCheck(report, TorchState.PRESENT)
