"""The setup part of the panel: one installation at a time, and paths that are taken when they are whole."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import hearts
import pytest
import slicer
from CaLIDReconstructLib import Installation, PathChoice
from CaLIDReconstructLib.Installation import TorchState
from CaLIDReconstructLib.Parameters import Preferences


class BusyInstaller:
    """Installs torch as Slicer does: clicks are handled meanwhile. Notes what could be clicked.

    Args:
        meanwhile: called while torch is being installed.
        failure: raised at the end.
    """

    def __init__(self, monkeypatch, meanwhile=lambda: None, failure: Exception | None = None) -> None:
        self.monkeypatch, self.meanwhile, self.failure = monkeypatch, meanwhile, failure
        self.started = 0

    def removeTorch(self) -> None:
        """Nothing to do."""

    def installTorch(self) -> None:
        self.started += 1
        slicer.app.processEvents()
        self.meanwhile()
        if self.failure:
            raise self.failure
        self.monkeypatch.setattr(Installation, "torchState", lambda: TorchState.PRESENT)


@pytest.fixture
def lacking(opened, monkeypatch):
    """lacking(...) opens a panel without torch, whose user agrees to everything."""
    monkeypatch.setattr(Installation, "SELF_CHECK", "print()")

    def open_(**options):
        monkeypatch.setattr(Installation, "torchState", lambda: TorchState.MISSING)
        installer = BusyInstaller(monkeypatch, **options)
        panel = opened(installer=installer, agrees=True)
        return panel, installer

    return open_


def buttons(panel) -> dict[str, bool]:
    names = ("installButton", "repairButton", "selfCheckButton", "upsampleButton")
    return {name: getattr(panel.ui, name).enabled for name in names}


def test_while_packages_are_installed_nothing_else_can_be_started(lacking, monkeypatch):
    hearts.addPicture()
    seen = {}

    def meanwhile() -> None:
        seen.update(
            buttons(panel), label=panel.ui.selfCheckLabel.text, cursor=slicer.app.qtApplication.overrideCursor()
        )
        panel.panel.setup.install()
        panel.panel.setup.onRepair()
        panel.panel.estimate.ask()

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    panel, installer = lacking(meanwhile=meanwhile)
    panel.ui.installButton.click()
    assert installer.started == 1
    assert "Installing" in seen.pop("label")
    assert seen.pop("cursor") is not None
    assert not any(seen.values())
    assert panel.transports == []
    assert slicer.app.qtApplication.overrideCursor() is None
    panel.until(lambda: not panel.panel.setup.isBusy)
    assert buttons(panel) == {
        "installButton": False,
        "repairButton": True,
        "selfCheckButton": True,
        "upsampleButton": True,
    }


def test_a_torch_that_is_being_repaired_is_not_tried(opened, monkeypatch):
    hearts.addPicture()
    monkeypatch.setattr(Installation, "SELF_CHECK", "print()")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    panel = opened(installer=BusyInstaller(monkeypatch, meanwhile=lambda: panel.panel.estimate.ask()), agrees=True)
    panel.until(lambda: panel.ui.deviceReasonLabel.text)
    panel.ui.repairButton.click()
    assert [transport.isKilled for transport in panel.transports] == [True]


def test_after_a_failed_installation_it_can_be_tried_again(lacking):
    panel, installer = lacking(failure=RuntimeError("no network"))
    panel.ui.installButton.click()
    assert "no network" in panel.ui.selfCheckLabel.text
    assert slicer.app.qtApplication.overrideCursor() is None
    panel.ui.installButton.click()
    assert installer.started == 2


def test_a_torch_that_is_in_use_is_replaced_after_a_restart_only(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    restarted, questions = [], []
    monkeypatch.setattr(slicer.util, "restart", lambda: restarted.append(True))
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, **_: questions.append(text) or answer)
    panel = opened(agrees=True)
    for answer in (False, True):
        panel.ui.repairButton.click()
        assert restarted == [True] * answer
    assert panel.confirmations == []  # nothing was removed
    assert "not saved" in questions[0]
    assert "after a restart" in panel.ui.selfCheckLabel.text


def test_the_setup_opens_by_itself_once_and_stays_closed_when_it_is_closed(lacking):
    hearts.addPicture()
    panel, _ = lacking()
    assert not panel.ui.setupBox.collapsed
    panel.ui.setupBox.collapsed = True
    panel.parameters.steps = 12
    assert panel.ui.setupBox.collapsed


def test_after_an_installation_the_device_is_asked_for_again(opened):
    hearts.addPicture()
    panel = opened()
    panel.until(lambda: panel.ui.deviceReasonLabel.text)
    before = panel.commands.count("info")
    panel.panel.onSetupChanged()
    panel.until(lambda: panel.commands.count("info") == before + 1)


# --- paths ---


@pytest.fixture
def quickly(monkeypatch):
    """A pause in typing is over soon."""
    monkeypatch.setattr(PathChoice, "APPLY_DELAY_MS", 50)


def typeInto(edit, text: str) -> None:
    """Type as a user does: the text grows key by key, and events are handled in between."""
    for count in range(len(text) + 1):
        edit.currentPath = text[:count]
        slicer.app.processEvents()


@pytest.mark.usefixtures("quickly")
def test_a_path_is_taken_when_it_is_whole_and_not_at_every_key(opened):
    hearts.addPicture()
    panel = opened()
    panel.until(lambda: panel.ui.deviceReasonLabel.text)
    chosen = []
    panel.panel.setup._paths[0].onChosen = lambda: chosen.append(panel.logic.preferences.interpreter)
    typeInto(panel.ui.interpreterEdit, "/opt/python")
    assert chosen == []
    panel.until(lambda: chosen)
    assert chosen == ["/opt/python"]


def test_another_interpreter_is_kept_in_the_settings_and_gets_another_engine(opened):
    hearts.addPicture()
    panel = opened()
    panel.until(lambda: panel.ui.deviceReasonLabel.text)
    typeInto(panel.ui.interpreterEdit, "/opt/python")
    assert not panel.transports[0].isKilled
    panel.panel.setup.finishPaths()
    assert panel.transports[0].isKilled
    assert Preferences().interpreter == "/opt/python"
    assert "/opt/python" not in panel.parameters.parameterNode.GetParameterNamesAsCommaSeparatedList()
    assert "/opt/python" in panel.ui.setupLabel.text
    panel.until(lambda: panel.commands.count("info") == 2)  # the device line is about the other engine


def test_a_run_takes_the_path_that_was_just_typed(opened):
    hearts.addPicture()
    panel = opened()
    typeInto(panel.ui.modelsFolderEdit, "/data/models")
    panel.run()
    request = next(r for t in panel.transports for r in t.requests if r["command"] == "upsample")
    assert request["models"] == "/data/models"


@pytest.mark.usefixtures("quickly")
def test_an_emptied_path_is_the_default_again(opened):
    panel = opened()
    typeInto(panel.ui.interpreterEdit, "/opt/python")
    panel.until(lambda: Preferences().interpreter)
    typeInto(panel.ui.interpreterEdit, "")
    panel.until(lambda: not Preferences().interpreter)


def test_one_click_gives_the_default_back(opened):
    panel = opened()
    assert not panel.ui.defaultModelsFolderButton.enabled
    typeInto(panel.ui.modelsFolderEdit, "/data/models")
    panel.panel.setup.finishPaths()
    assert Preferences().modelsFolder == "/data/models"
    panel.ui.defaultModelsFolderButton.click()
    assert Preferences().modelsFolder == ""
    assert panel.ui.modelsFolderEdit.currentPath == ""
    assert not panel.ui.defaultModelsFolderButton.enabled
