"""What the engine needs and whether it is there: said without importing it, installed only after a click."""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import json
import os
import subprocess
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
    for name in ("monai", "einops", "safetensors", "calid"):
        try:
            report[name] = getattr(__import__(name), "__version__", "installed")
        except Exception as error:
            report.setdefault("errors", {})[name] = f"{type(error).__name__}: {error}"
except Exception as error:
    report["errors"] = {"torch": f"{type(error).__name__}: {error}"}
print("CALID-SELF-CHECK " + json.dumps(report))
"""


class TorchState(enum.Enum):
    MISSING = "missing"
    HALF_INSTALLED = "half installed"
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
        return TorchState.PRESENT
    return TorchState.HALF_INSTALLED if version or isFound else TorchState.MISSING


def missingRequirements() -> list[str]:
    """The packages of requirements.txt that are not installed, as pip would be given them."""
    from slicer import packaging

    return [str(wanted) for wanted in packaging.load_requirements(REQUIREMENTS_FILE) if not packaging.pip_check(wanted)]


def isReady(interpreter: str = "") -> bool:
    """True when a run can be expected to work; another interpreter is believed until it fails."""
    return bool(interpreter) or (torchState() is TorchState.PRESENT and not missingRequirements())


class Installer(Protocol):
    """Installs what is missing. Contract: is only called after the user's confirmation; raises on failure."""

    def installTorch(self) -> None: ...

    def removeTorch(self) -> None: ...

    def installRequirements(self) -> None: ...


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
        slicer.util.pip_uninstall("torch")

    def installRequirements(self) -> None:
        from slicer import packaging

        packaging.pip_ensure(packaging.load_requirements(REQUIREMENTS_FILE), prompt_install=False, requester="CaLID")


class Installation:
    """Says what is missing, asks, installs, and checks the outcome.

    Args:
        installer: does the work.
        confirm: confirm(text) -> bool, asks the user.
    """

    def __init__(self, installer: Installer | None = None, confirm: Callable[[str], bool] | None = None) -> None:
        self.installer = installer or SlicerInstaller()
        self.confirm = confirm or slicer.util.confirmOkCancelDisplay

    def plan(self) -> list[str]:
        """What a click on Install would do, one line each; empty when nothing is missing."""
        state = torchState()
        lines = []
        if state is TorchState.HALF_INSTALLED:
            lines.append(_("remove the half-installed PyTorch"))
        if state is not TorchState.PRESENT:
            lines.append(
                _("download and install PyTorch {requirement}, {size}").format(
                    requirement=TORCH_REQUIREMENT, size=TORCH_DOWNLOAD
                )
            )
        missing = missingRequirements()
        if missing:
            lines.append(
                _("download and install {packages}, about {size}").format(
                    packages=", ".join(missing), size=PACKAGES_DOWNLOAD
                )
            )
        return lines

    def install(self) -> bool:
        """Ask and install what is missing; returns False when the user said no or nothing was missing."""
        return self._carryOut(self.plan(), repairTorch=torchState() is TorchState.HALF_INSTALLED)

    def repair(self) -> bool:
        """Ask, then remove torch and install it again."""
        lines = [
            _("remove PyTorch"),
            _("download and install PyTorch {requirement}, {size}").format(
                requirement=TORCH_REQUIREMENT, size=TORCH_DOWNLOAD
            ),
        ]
        return self._carryOut(lines, repairTorch=True)

    def _carryOut(self, lines: list[str], *, repairTorch: bool) -> bool:
        question = _("CaLID is going to change Slicer's Python environment:") + "\n\n- " + "\n- ".join(lines)
        if not lines or not self.confirm(question):
            return False
        if repairTorch:
            self.installer.removeTorch()
        if repairTorch or torchState() is not TorchState.PRESENT:
            self.installer.installTorch()
        if missingRequirements():
            self.installer.installRequirements()
        importlib.invalidate_caches()
        return True


class SelfCheckProcess:
    """The self-check as a child process; `poll` gives the outcome once it is there."""

    TIMEOUT_S = 120

    def __init__(self, interpreter: str = "") -> None:
        environment = slicer.util.startupEnvironment() if interpreter else os.environ
        command = engineCommand(interpreter, environment=environment, arguments=("-c", SELF_CHECK))
        self._isOwnPython = not interpreter
        self._error = ""
        try:
            self._process = startProcess(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            self._process, self._error = None, str(error)

    def poll(self) -> SelfCheck | None:
        """The outcome, or None while the check runs."""
        if self._process is None:
            return SelfCheck({}, TorchState.MISSING, self._error)
        if self._process.poll() is None:
            return None
        output = self._process.stdout.read().decode("utf-8", errors="replace")
        self._process.stdout.close()
        return evaluate(output, isOwnPython=self._isOwnPython)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            killTree(self._process)
            self._process.stdout.close()


def evaluate(output: str, *, isOwnPython: bool) -> SelfCheck:
    """What the self-check's output means.

    Args:
        output: all that the process printed.
        isOwnPython: it ran in Slicer's Python, whose installed files we can look at.
    """
    marked = [line for line in output.splitlines() if line.startswith("CALID-SELF-CHECK ")]
    if not marked:
        last = output.strip().splitlines()[-1] if output.strip() else ""
        problem = _("The interpreter did not run the check: {line}").format(line=last)
        return SelfCheck({}, torchState() if isOwnPython else TorchState.MISSING, problem)
    report = json.loads(marked[-1].removeprefix("CALID-SELF-CHECK "))
    errors = report.get("errors", {})
    if "torch" in errors:
        state = torchState() if isOwnPython else TorchState.MISSING
        if state is not TorchState.MISSING or "No module named 'torch'" not in errors["torch"]:
            problem = _("PyTorch is only half installed ({error}). Click 'Repair' to install it again.")
            return SelfCheck(report, TorchState.HALF_INSTALLED, problem.format(error=errors["torch"]))
        return SelfCheck(report, TorchState.MISSING, _("PyTorch is not installed. Click 'Install'."))
    if errors:
        name, error = next(iter(errors.items()))
        return SelfCheck(report, TorchState.PRESENT, f"{name}: {error}")
    return SelfCheck(report, TorchState.PRESENT)
