"""What is missing is said, asked for, installed and checked; nothing happens without a yes."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from types import SimpleNamespace

import pytest
import slicer
from CaLIDReconstructLib import Installation
from CaLIDReconstructLib.Installation import (
    InstallationPlan,
    SelfCheckProcess,
    SlicerInstaller,
    TorchState,
    selfCheckFrom,
)
from slicer import packaging


class Installer:
    """Notes what it was asked to do."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def installTorch(self) -> None:
        self.done.append("torch")

    def removeTorch(self) -> None:
        self.done.append("remove torch")

    def installRequirements(self) -> None:
        self.done.append("requirements")


@pytest.fixture
def installed(monkeypatch):
    """Sets what seems to be installed: installed(torchState, missing requirements)."""

    def set_(state: TorchState, missing: list[str]) -> None:
        monkeypatch.setattr(Installation, "torchState", lambda: state)
        monkeypatch.setattr(Installation, "missingRequirements", lambda: missing)

    return set_


@pytest.mark.parametrize(
    ("state", "missing", "done"),
    [
        (TorchState.MISSING, ["monai>=1.4"], ["torch", "requirements"]),
        (TorchState.PRESENT, ["monai>=1.4"], ["requirements"]),
        (TorchState.HALF_INSTALLED, [], ["remove torch", "torch"]),
        (TorchState.TOO_OLD, [], ["remove torch", "torch"]),
        (TorchState.PRESENT, [], []),
    ],
)
def test_what_is_missing_and_nothing_else_is_installed(installed, state, missing, done):
    installed(state, missing)
    installer = Installer()
    installation = Installation.Installation(installer)
    installation.carryOut(installation.plan())
    assert installer.done == done
    assert bool(installation.plan()) == bool(done)


def test_the_question_says_what_and_how_big(installed):
    installed(TorchState.TOO_OLD, ["monai>=1.4", "einops>=0.6"])
    asked = []
    installation = Installation.Installation(Installer(), confirm=lambda text: asked.append(text) or False)
    assert not installation.isAgreed(installation.plan())
    (question,) = asked
    for word in ("remove", "PyTorch", "GB", "monai>=1.4", "einops>=0.6", "MB"):
        assert word in question


def test_repair_removes_and_installs_torch_and_what_else_is_missing(installed):
    installed(TorchState.PRESENT, ["monai>=1.4"])
    installer = Installer()
    installation = Installation.Installation(installer)
    installation.carryOut(installation.repairPlan())
    assert installer.done == ["remove torch", "torch", "requirements"]


def test_only_a_torch_that_this_process_holds_asks_for_a_restart_before_it_is_removed(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert not InstallationPlan(removesTorch=True, installsTorch=True).needsRestart
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert InstallationPlan(removesTorch=True, installsTorch=True).needsRestart
    assert not InstallationPlan(requirements=("monai>=1.4",)).needsRestart


@pytest.fixture
def versions(monkeypatch):
    """versions(name=version) are installed, and nothing else."""

    def set_(**found: str) -> None:
        def version(name: str) -> str:
            if name not in found:
                raise importlib.metadata.PackageNotFoundError(name)
            return found[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))

    return set_


@pytest.mark.skipif(not hasattr(packaging, "installed"), reason="Slicer's own packaging would call pip")
def test_the_requirements_leave_torch_and_slicers_packages_as_they_are(versions, monkeypatch):
    versions(torch="2.5.1+cu124", numpy="2.4.6", scipy="1.17.1", SimpleITK="2.5.5")
    monkeypatch.setattr(packaging, "installed", [])
    SlicerInstaller().installRequirements()
    ((requirements, constraints),) = packaging.installed
    assert "monai>=1.4" in requirements
    assert constraints == ["torch==2.5.1+cu124", "numpy==2.4.6", "scipy==1.17.1", "SimpleITK==2.5.5"]


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, TorchState.MISSING),
        ({"torch": "2.1.2"}, TorchState.TOO_OLD),
        ({"torch": "2.2.0"}, TorchState.PRESENT),
        ({"torch": "2.5.1+cu124"}, TorchState.PRESENT),
        ({"torch": "2.9.0a0+git1"}, TorchState.PRESENT),
    ],
)
def test_a_torch_is_present_from_the_version_on_that_the_engine_needs(versions, found, state):
    versions(**found)
    assert Installation.torchState() is state


def test_readiness_needs_torch_and_the_requirements(installed):
    installed(TorchState.PRESENT, [])
    assert Installation.isReady()
    installed(TorchState.PRESENT, ["monai>=1.4"])
    assert not Installation.isReady()
    installed(TorchState.MISSING, [])
    assert not Installation.isReady()
    assert Installation.isReady("/opt/python")


def output(**report) -> str:
    return "some warning\nCALID-SELF-CHECK " + json.dumps(report) + "\n"


def test_a_torch_that_is_there_but_cannot_be_imported_is_called_half_installed(installed):
    installed(TorchState.PRESENT, [])
    check = selfCheckFrom(output(errors={"torch": "OSError: libtorch_cpu.so: file too short"}), isOwnPython=True)
    assert check.torch is TorchState.HALF_INSTALLED
    assert "Repair" in check.text()
    assert "file too short" in check.text()


def test_a_torch_that_is_not_there_is_called_missing(installed):
    installed(TorchState.MISSING, [])
    check = selfCheckFrom(output(errors={"torch": "ModuleNotFoundError: No module named 'torch'"}), isOwnPython=True)
    assert check.torch is TorchState.MISSING
    assert "Install" in check.text()


def test_a_graphics_card_that_cannot_compute_is_said():
    check = selfCheckFrom(
        output(python="3.12", torch="2.4", device="cpu", cuda_error="no kernel image is available"), isOwnPython=True
    )
    assert check.isFine
    assert "no kernel image" in check.text()


def test_a_torch_that_is_too_old_is_said():
    check = selfCheckFrom(output(torch="2.1.2", device="cpu"), isOwnPython=True)
    assert check.torch is TorchState.TOO_OLD
    assert ">=2.2" in check.text()
    assert "Repair" in check.text()


def test_device_and_memory_are_reported():
    check = selfCheckFrom(
        output(torch="2.4", device="cuda", device_name="RTX 4070", memory_bytes=11.5e9), isOwnPython=True
    )
    assert "RTX 4070 (11.5 GB free)" in check.text()


def test_an_interpreter_that_prints_nothing_is_a_problem():
    assert not selfCheckFrom("bash: no such program\n", isOwnPython=False).isFine


def outcomeOf(check: SelfCheckProcess):
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        outcome = check.poll()
        if outcome is not None:
            return outcome
        time.sleep(0.05)
    check.kill()
    raise AssertionError("the self-check did not end")


def test_the_self_check_really_imports_torch_in_another_process():
    pytest.importorskip("torch", reason="the engine's packages are not installed")
    outcome = outcomeOf(SelfCheckProcess(timeout_s=500))
    assert outcome.torch is TorchState.PRESENT
    assert outcome.isFine, outcome.text()
    assert "device" in outcome.text()


def test_a_self_check_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(Installation, "SELF_CHECK", "import time; time.sleep(600)")
    now = [100.0]
    monkeypatch.setattr(Installation, "time", SimpleNamespace(monotonic=lambda: now[0]))
    check = SelfCheckProcess(timeout_s=0.3)
    assert check.poll() is None
    now[0] += 0.4
    assert "0 s" in check.poll().problem
    assert check._process.poll() is not None


def test_a_self_check_that_prints_much_comes_to_its_end(monkeypatch):
    last = output(torch="2.4", device="cpu")
    monkeypatch.setattr(Installation, "SELF_CHECK", f"print('warning ' * 100_000)\nprint({last!r})")
    assert outcomeOf(SelfCheckProcess()).isFine


def test_the_self_check_of_a_missing_interpreter_says_so(monkeypatch):
    monkeypatch.setattr(slicer.util, "startupEnvironment", dict)
    assert "no/such/python" in outcomeOf(SelfCheckProcess("/no/such/python")).problem
