"""The real .ui and widget of the module, opened on an engine in memory and an installer that only takes notes."""

from __future__ import annotations

import time

import scripted
import slicer
from CaLIDReconstructLib import Installation
from CaLIDReconstructLib.Parameters import Preferences
from host.application import MODULE_FOLDER, loadModule, openWidget

MODULE, MODULE_INSTANCE = loadModule(MODULE_FOLDER / "CaLIDReconstruct.py")


class Opened:
    """A panel on a scripted engine.

    Args:
        script: what the engine answers, see `scripted`.
        agreedLicense: the license that the user agreed to earlier.
        installer: does what the user agreed to.
        agrees: the user's answer to what is going to be installed.
        options: of the `scripted.ScriptedTransport`.
    """

    def __init__(
        self,
        script=scripted.good,
        *,
        agreedLicense: str = "CC-BY-NC-SA-4.0",
        installer: object = None,
        agrees: bool = False,
        **options,
    ) -> None:
        self.transports: list[scripted.ScriptedTransport] = []
        self.confirmations: list[str] = []
        self.agrees = agrees
        preferences = Preferences()
        preferences.interpreter = preferences.modelsFolder = ""
        preferences.remoteHost = preferences.remoteProgram = preferences.agreedHost = ""
        preferences.agreedLicense = agreedLicense
        logic = MODULE.CaLIDReconstructLogic(preferences, lambda: self._engine(script, options))
        installation = Installation.Installation(installer or object(), confirm=self._confirm)
        self.widget = openWidget(MODULE, "CaLIDReconstruct", logic=logic, installation=installation)
        self.widget.parent.show()
        self.ui, self.panel, self.logic = self.widget.ui, self.widget.panel, logic

    def _engine(self, script, options) -> scripted.ScriptedTransport:
        self.transports.append(scripted.ScriptedTransport(script, **options))
        return self.transports[-1]

    def _confirm(self, text: str) -> bool:
        self.confirmations.append(text)
        return self.agrees

    @property
    def parameters(self):
        return self.panel.parameters

    def until(self, condition, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.ui.statusLabel.text
            slicer.app.processEvents()
            time.sleep(0.005)

    def run(self) -> None:
        self.ui.upsampleButton.click()
        self.until(lambda: not self.panel.isRunning)

    @property
    def commands(self) -> list[str]:
        return [command for transport in self.transports for command in transport.commands]
