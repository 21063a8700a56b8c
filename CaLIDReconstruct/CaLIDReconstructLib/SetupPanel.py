"""The panel's setup part: what is missing, install, self-check, repair, and which Python and models to use."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CalledProcessError

from slicer.i18n import tr as _

from .Installation import Installation, SelfCheck, SelfCheckProcess, TorchState, isReady
from .Logic import Reconstruction


class SetupPanel:
    """Says what the engine lacks and mends it, each time only after a click and a confirmation.

    Args:
        ui: the named widgets.
        logic: whose engine is ended when another interpreter is chosen.
        installation: None for the real one.
        log: log(level, message).
        onChanged: called when what is installed, or the interpreter, changed.
        onBusy: called when `poll` has something to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Reconstruction,
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
        self._check: SelfCheckProcess | None = None
        ui.interpreterEdit.currentPath = logic.preferences.interpreter
        ui.modelsFolderEdit.currentPath = logic.preferences.modelsFolder
        ui.installButton.clicked.connect(self.onInstall)
        ui.selfCheckButton.clicked.connect(self.onSelfCheck)
        ui.repairButton.clicked.connect(self.onRepair)
        ui.interpreterEdit.currentPathChanged.connect(self.onInterpreter)
        ui.modelsFolderEdit.currentPathChanged.connect(self.onModelsFolder)

    @property
    def isBusy(self) -> bool:
        return self._check is not None

    def close(self) -> None:
        if self._check is not None:
            self._check.kill()
            self._check = None

    def refresh(self) -> None:
        """Say what is missing; nothing is imported or installed for that."""
        interpreter = self.logic.preferences.interpreter
        plan = [] if isReady(interpreter) else self.installation.plan()
        if plan:
            self.ui.setupLabel.text = _("Before the first run: {steps}. Click 'Install'.").format(steps="; ".join(plan))
            self.ui.setupBox.collapsed = False
        else:
            self.ui.setupLabel.text = (
                _("The engine runs in {path}.").format(path=interpreter)
                if interpreter
                else _("Everything the engine needs is installed.")
            )
        self.ui.installButton.enabled = bool(plan)

    def onInstall(self) -> None:
        self.install()

    def install(self) -> bool:
        """Ask and install; True when the engine can be expected to run afterwards."""
        return self._change(self.installation.install) and isReady(self.logic.preferences.interpreter)

    def onRepair(self) -> None:
        self._change(self.installation.repair)

    def _change(self, action: Callable[[], bool]) -> bool:
        self.logic.client.shutdown()  # a running engine would keep files of the old packages open
        try:
            isDone = action()
        except (RuntimeError, CalledProcessError, OSError, ImportError) as error:
            self.ui.selfCheckLabel.text = _("Installation failed: {reason}").format(reason=error)
            self.log("error", self.ui.selfCheckLabel.text)
            return False
        if isDone:
            self.onSelfCheck()
            self.onChanged()
        return isDone

    def onSelfCheck(self) -> None:
        """Import torch in a child process and show what it says."""
        if self._check is None:
            self.ui.selfCheckLabel.text = _("Checking ...")
            self.ui.selfCheckButton.enabled = False
            self._check = SelfCheckProcess(self.logic.preferences.interpreter)
            self.onBusy()

    def poll(self) -> None:
        outcome = self._check.poll() if self._check is not None else None
        if outcome is None:
            return
        self._check, self.lastCheck = None, outcome
        self.ui.selfCheckButton.enabled = True
        self.ui.selfCheckLabel.text = outcome.text()
        self.ui.repairButton.enabled = outcome.torch is not TorchState.MISSING
        self.log("info" if outcome.isFine else "error", outcome.text())

    def onInterpreter(self, *_args) -> None:
        self._prefer("interpreter", self.ui.interpreterEdit.currentPath)

    def onModelsFolder(self, *_args) -> None:
        self._prefer("modelsFolder", self.ui.modelsFolderEdit.currentPath)

    def _prefer(self, name: str, path: str) -> None:
        if getattr(self.logic.preferences, name) != path:
            setattr(self.logic.preferences, name, path)
            if not self.logic.isBusy:
                self.logic.client.shutdown()
            self.onChanged()
