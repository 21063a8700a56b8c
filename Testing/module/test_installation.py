"""What is missing is said, asked for, installed and checked; nothing happens without a yes."""

from __future__ import annotations

import json
import time

import pytest
from CaLIDReconstructLib import Installation
from CaLIDReconstructLib.Installation import SelfCheckProcess, TorchState, evaluate


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
        (TorchState.PRESENT, [], []),
    ],
)
def test_what_is_missing_and_nothing_else_is_installed(installed, state, missing, done):
    installed(state, missing)
    installer = Installer()
    Installation.Installation(installer, confirm=lambda _text: True).install()
    assert installer.done == done


def test_the_question_says_what_and_how_big(installed):
    installed(TorchState.MISSING, ["monai>=1.4", "einops>=0.6"])
    asked = []
    Installation.Installation(Installer(), confirm=lambda text: asked.append(text) or False).install()
    (question,) = asked
    for word in ("PyTorch", "GB", "monai>=1.4", "einops>=0.6", "MB"):
        assert word in question


def test_nothing_is_installed_without_a_yes(installed):
    installed(TorchState.MISSING, ["monai>=1.4"])
    installer = Installer()
    assert not Installation.Installation(installer, confirm=lambda _text: False).install()
    assert installer.done == []


def test_repair_removes_and_installs_torch(installed):
    installed(TorchState.PRESENT, [])
    installer = Installer()
    Installation.Installation(installer, confirm=lambda _text: True).repair()
    assert installer.done == ["remove torch", "torch"]


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
    check = evaluate(output(errors={"torch": "OSError: libtorch_cpu.so: file too short"}), isOwnPython=True)
    assert check.torch is TorchState.HALF_INSTALLED
    assert "Repair" in check.text()
    assert "file too short" in check.text()


def test_a_torch_that_is_not_there_is_called_missing(installed):
    installed(TorchState.MISSING, [])
    check = evaluate(output(errors={"torch": "ModuleNotFoundError: No module named 'torch'"}), isOwnPython=True)
    assert check.torch is TorchState.MISSING
    assert "Install" in check.text()


def test_a_graphics_card_that_cannot_compute_is_said():
    check = evaluate(
        output(python="3.12", torch="2.4", device="cpu", cuda_error="no kernel image is available"), isOwnPython=True
    )
    assert check.isFine
    assert "no kernel image" in check.text()


def test_device_and_memory_are_reported():
    check = evaluate(output(torch="2.4", device="cuda", device_name="RTX 4070", memory_bytes=11.5e9), isOwnPython=True)
    assert "RTX 4070 (11.5 GB free)" in check.text()


def test_an_interpreter_that_prints_nothing_is_a_problem():
    assert not evaluate("bash: no such program\n", isOwnPython=False).isFine


def outcomeOf(check: SelfCheckProcess):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        outcome = check.poll()
        if outcome is not None:
            return outcome
        time.sleep(0.05)
    check.kill()
    raise AssertionError("the self-check did not end")


def test_the_self_check_really_imports_torch_in_another_process():
    pytest.importorskip("torch", reason="the engine's packages are not installed")
    outcome = outcomeOf(SelfCheckProcess())
    assert outcome.torch is TorchState.PRESENT
    assert outcome.isFine, outcome.text()
    assert "device" in outcome.text()


def test_the_self_check_of_a_missing_interpreter_says_so(monkeypatch):
    import slicer

    monkeypatch.setattr(slicer.util, "startupEnvironment", dict)
    assert "no/such/python" in outcomeOf(SelfCheckProcess("/no/such/python")).problem
