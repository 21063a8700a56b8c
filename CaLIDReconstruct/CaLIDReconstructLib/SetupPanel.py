"""The panel's setup part: what is missing, install, self-check, repair, and which Python and models to use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from subprocess import CalledProcessError

import slicer
from slicer.i18n import tr as _

from .Installation import Installation, InstallationPlan, SelfCheck, SelfCheckProcess, TorchState, isReady
from .Logic import Logic
from .PathChoice import PathChoice


class SetupPanel:
    """Says what the engine lacks and mends it, each time only after a click and a confirmation.

    Args:
        ui: the named widgets.
        logic: whose engine is ended when another interpreter or other models are chosen.
        installation: None for the real one.
        log: called with a level of `logging` and a line for the user's log.
        onChanged: called when what is installed, the interpreter or the models changed, and around an installation.
        onBusy: called when `poll` has something to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        installation: Installation | None,
        log: Callable[[str, str], None],
        *,
        onChanged: Callable[[], None],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.log = ui, logic, log
        self.installation = installation or Installation()
        self.onChanged, self.onBusy = onChanged, onBusy
        self.lastCheck: SelfCheck | None = None
        self.isInstalling = False
        self._plan = InstallationPlan()
        self._check: SelfCheckProcess | None = None
        ui.installButton.clicked.connect(self.onInstall)
        ui.selfCheckButton.clicked.connect(self.onSelfCheck)
        ui.repairButton.clicked.connect(self.onRepair)
        self._paths = [
            PathChoice(edit, button, logic.preferences, name, self._onPathChosen)
            for edit, button, name in (
                (ui.interpreterEdit, ui.defaultInterpreterButton, "interpreter"),
                (ui.modelsFolderEdit, ui.defaultModelsFolderButton, "modelsFolder"),
            )
        ]

    @property
    def isBusy(self) -> bool:
        """Whether a self-check is under way."""
        return self._check is not None

    def close(self) -> None:
        """End a self-check and take no more paths; the panel is going away."""
        for path in self._paths:
            path.close()
        if self._check is not None:
            self._check.kill()
            self._check = None

    def finishPaths(self) -> None:
        """Take paths that were just typed without waiting for the pause."""
        for path in self._paths:
            path.finish()

    def refresh(self) -> None:
        """Say what is missing; nothing is imported or installed for that."""
        interpreter = self.logic.preferences.interpreter
        plan = InstallationPlan() if self.logic.isReady else self.installation.plan()
        if plan:
            self.ui.setupLabel.text = _("Before the first run: {steps}. Click 'Install'.").format(
                steps="; ".join(plan.lines())
            )
        elif self.logic.isRemote:
            self.ui.setupLabel.text = _("The engine runs on {host}.").format(host=self.logic.preferences.remoteHost)
        else:
            self.ui.setupLabel.text = (
                _("The engine runs in {path}.").format(path=interpreter)
                if interpreter
                else _("Everything the engine needs is installed.")
            )
        if plan and plan != self._plan:
            self.ui.setupBox.collapsed = False  # once for each plan, so that the user can close it again
        self._plan = plan
        self._showButtons()

    def _showButtons(self) -> None:
        canRepair = self.lastCheck is None or self.lastCheck.torch is not TorchState.MISSING
        self.ui.installButton.enabled = bool(self._plan) and not self.isInstalling
        self.ui.selfCheckButton.enabled = self._check is None and not self.isInstalling
        self.ui.repairButton.enabled = canRepair and not self.isInstalling

    def onInstall(self) -> None:
        """Install what is missing."""
        self.install()

    def install(self) -> bool:
        """Ask and install; True when the engine can be expected to run afterwards."""
        return self._change(self.installation.plan()) and isReady(self.logic.preferences.interpreter)

    def onRepair(self) -> None:
        """Install PyTorch anew."""
        self._change(self.installation.repairPlan())

    def _change(self, plan: InstallationPlan) -> bool:
        if self.isInstalling or not plan:
            return False
        if plan.needsRestart:
            self._offerRestart()
            return False
        if not self.installation.isAgreed(plan):
            return False
        self.logic.endEngines()  # a running engine would keep files of the old packages open
        try:
            with self._installing():
                self.installation.carryOut(plan)
        except (RuntimeError, CalledProcessError, OSError, ImportError) as error:
            self.ui.selfCheckLabel.text = _("Installation failed: {reason}").format(reason=error)
            self.log("error", self.ui.selfCheckLabel.text)
            return False
        self.onSelfCheck()
        return True

    @contextlib.contextmanager
    def _installing(self) -> Iterator[None]:
        """Meanwhile nothing else can be started: Slicer handles clicks at every line that pip prints."""
        self.isInstalling = True
        self.ui.selfCheckLabel.text = _("Installing ... This takes minutes; the Python console shows how far it is.")
        self.onChanged()
        try:
            with slicer.util.WaitCursor():
                yield
        finally:
            self.isInstalling = False
            self.onChanged()

    def _offerRestart(self) -> None:
        reason = _("PyTorch is in use in this session and can only be replaced after a restart of Slicer.")
        self.ui.selfCheckLabel.text = reason
        question = _("{reason}\n\nRestart now? What is not saved in the scene is lost.").format(reason=reason)
        if slicer.util.confirmYesNoDisplay(question, windowTitle=_("Restart Slicer")):
            slicer.util.restart()

    def onSelfCheck(self) -> None:
        """Import torch in a child process and show what it says."""
        self.finishPaths()
        if self._check is None:
            self.ui.selfCheckLabel.text = _("Checking ...")
            self._check = SelfCheckProcess(self.logic.preferences.interpreter)
            self._showButtons()
            self.onBusy()

    def poll(self) -> None:
        """Show the outcome of a self-check, once it is there."""
        outcome = self._check.poll() if self._check is not None else None
        if outcome is None:
            return
        self._check, self.lastCheck = None, outcome
        self.ui.selfCheckLabel.text = outcome.text()
        self._showButtons()
        self.log("info" if outcome.isFine else "error", outcome.text())

    def _onPathChosen(self) -> None:
        self.logic.endEngines()
        self.onChanged()
