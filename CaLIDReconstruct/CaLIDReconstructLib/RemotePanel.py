"""The panel's choice of the computer that the engine runs on: asked, tried, and said for as long as it holds."""

from __future__ import annotations

from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from .EstimatePanel import deviceText
from .Logic import Logic
from .Messages import Failure, failure
from .Notices import Level, show
from .RemoteEngine import isHost


class RemotePanel:
    """Connects the engine of another computer, and takes the one on this computer again.

    Args:
        ui: the named widgets.
        logic: whose runs are done there.
        log: called with a level of `logging` and a line for the user's log.
        onChanged: called after another computer was taken.
        onBusy: called when there is an answer to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        log: Callable[[str, str], None],
        *,
        onChanged: Callable[[], None],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.log = ui, logic, log
        self.onChanged, self.onBusy = onChanged, onBusy
        self.isTrying = False
        ui.remoteHostEdit.text = logic.preferences.remoteHost
        ui.remoteProgramEdit.text = logic.preferences.remoteProgram
        ui.remoteHostEdit.textChanged.connect(self.refresh)
        ui.remoteProgramEdit.textChanged.connect(self.refresh)
        ui.remoteButton.clicked.connect(self.onConnect)
        self._say("")
        self.refresh()

    @property
    def _wanted(self) -> tuple[str, str]:
        return self.ui.remoteHostEdit.text.strip(), self.ui.remoteProgramEdit.text.strip()

    @property
    def _isConnected(self) -> bool:
        preferences = self.logic.preferences
        return self.logic.isRemote and self._wanted == (preferences.remoteHost, preferences.remoteProgram)

    def refresh(self, *_args) -> None:
        """Offer what a click would do."""
        self.ui.remoteButton.text = _("Disconnect") if self._isConnected else _("Connect...")
        self.ui.remoteButton.enabled = not self.isTrying and (self.logic.isRemote or bool(self._wanted[0]))
        for widget in (self.ui.modelsFolderEdit, self.ui.interpreterEdit):
            widget.enabled = not self.logic.isRemote

    def onConnect(self) -> None:
        """Ask, and try the other computer; or go back to this one."""
        host, program = self._wanted
        if self._isConnected or not host:
            self._take("", "")
            self._say(_("The engine runs on this computer again."))
            return
        if not isHost(host):
            self._fail(failure("remote-not-found", host))
            return
        if not slicer.util.confirmOkCancelDisplay(question(host), windowTitle=_("Engine on another computer")):
            self._say(_("Nothing was sent; the engine stays where it was."))
            return
        self.logic.preferences.agreedHost = host
        self._take(host, program)
        self.isTrying = True
        self.refresh()
        self._say(_("Connecting ..."))
        self.logic.ask("info", self._onAnswer, device="auto")
        self.onBusy()

    def _onAnswer(self, event: dict | None, reason: Failure | None) -> None:
        self.isTrying = False
        if event is not None:
            what = deviceText(event.get("result", {}))
            self._say(_("Connected: {device}. Runs are done there.").format(device=what))
            self.refresh()
            return
        self._take("", "")
        if reason is not None:
            self._fail(reason)
        else:
            self._say(_("The engine runs on this computer."))

    def _take(self, host: str, program: str) -> None:
        self.logic.endEngines(timeout_s=0.5)
        self.logic.preferences.remoteHost, self.logic.preferences.remoteProgram = host, program
        self.refresh()
        self.onChanged()

    def _fail(self, reason: Failure) -> None:
        self._say("\n".join([reason.text(), _("The engine runs on this computer.")]), Level.ERROR)
        self.log("error", "\n".join([reason.title, reason.remedy]))  # without the computer's name

    def _say(self, text: str, level: Level = Level.INFO) -> None:
        show(self.ui.remoteLabel, text, level)
        self.ui.remoteLabel.visible = bool(text)


def question(host: str) -> str:
    """What leaves this computer, where it goes, and what does not leave."""
    return _(
        "Runs will be done on {host}, which ssh reaches.\n\n"
        "Sent there: the voxels of the short-axis stack and of the long-axis images that a run uses, their positions, "
        "the times of their frames, and the settings of the run. "
        "A heart can be sensitive even without a name.\n\n"
        "Not sent: names of patients, nodes and files, DICOM files and their headers, and whatever else the scene "
        "holds. DICOM folders, batches and reports stay on this computer.\n\n"
        "The files there are removed after each run, and when the connection ends, however it ends."
    ).format(host=host)
