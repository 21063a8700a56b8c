"""The report of a result: one HTML page that the engine makes, in a process of its own, of the nodes as they are."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from calid.images import files
from slicer.i18n import tr as _

from . import LongAxisFiles
from .EngineProcess import engineCommand, killTree, startProcess
from .Logic import Logic
from .Messages import EXPECTED_ERRORS, failureFromError
from .Notices import Level, show
from .Results import readResult
from .RunResult import RunResult
from .Workspace import Workspace


class ReportExport:
    """Writes `calid report` of the chosen result.

    Args:
        ui: the named widgets.
        logic: says which Python runs the engine.
        result: gives the chosen result, or None.
        log: called with a level of `logging` and a line for the user's log.
        onBusy: called when `poll` has something to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        result: Callable[[], RunResult | None],
        log: Callable[[str, str], None],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.result, self.log, self.onBusy = ui, logic, result, log, onBusy
        self._process: subprocess.Popen | None = None
        self._workspace: Workspace | None = None
        self._output = None
        ui.reportButton.clicked.connect(self.onReport)

    @property
    def isBusy(self) -> bool:
        """Whether a report is being made."""
        return self._process is not None

    def close(self) -> None:
        """End a report that is being made, and remove its files."""
        if self._process is not None and self._process.poll() is None:
            killTree(self._process)
        self._tidy()

    def onReport(self) -> None:
        """Ask where to, write what the engine needs, and start it."""
        result = self.result()
        path = self.chooseFile() if result is not None and not self.isBusy else ""
        if not path:
            return
        try:
            self._start(result, Path(path))
        except EXPECTED_ERRORS as error:
            self._fail(failureFromError(error, otherwise="unwritable").text())
        else:
            self.ui.reportButton.enabled = False
            show(self.ui.statusLabel, _("Making the report ... You can go on working."))
            self.onBusy()

    def poll(self) -> None:
        """Say how it went, once the engine is done."""
        if self._process is None or self._process.poll() is None:
            return
        self._output.seek(0)
        said = self._output.read().decode("utf-8", errors="replace").strip().splitlines()
        code = self._process.returncode
        self._tidy()
        if code:
            self._fail(_("No report: {reason}").format(reason=said[-1] if said else code))
        else:
            show(self.ui.statusLabel, _("The report is written. It names no patient and is not for diagnosis."))

    def _start(self, result: RunResult, path: Path) -> None:
        interpreter = self.logic.preferences.interpreter
        self._workspace = Workspace()
        dense = self._workspace.file("heart.seq.nrrd" if result.sequence is not None else "heart.nrrd")
        files.write_stack(readResult(result.node), dense)
        arguments = ["-m", "calid", "report", str(dense), str(path), "--overwrite"]
        if result.labels is not None:
            labels = self._workspace.file("labels.seg.nrrd")
            files.write_labels(result.labels, labels)
            arguments += ["--labels", str(labels)]
        views = LongAxisFiles.named(LongAxisFiles.viewsOf(result.volume), result.views)
        if views:
            folder = self._workspace.subfolder("lax")
            LongAxisFiles.writeViews(views, result.volume, folder)
            arguments += ["--lax", str(folder)]
        if self.logic.preferences.modelsFolder:
            arguments += ["--models", self.logic.preferences.modelsFolder]
        environment = slicer.util.startupEnvironment() if interpreter else os.environ
        command = engineCommand(interpreter, environment=environment, arguments=tuple(arguments))
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        self._process = startProcess(command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT)

    def _tidy(self) -> None:
        if self._workspace is not None:
            self._workspace.remove()
        if self._output is not None:
            self._output.close()
        self._process = self._workspace = self._output = None
        self.ui.reportButton.enabled = True

    def _fail(self, reason: str) -> None:
        self._tidy()
        show(self.ui.statusLabel, reason, Level.ERROR)
        self.log("error", reason)

    def chooseFile(self) -> str:
        """Ask the user; empty when they think better of it."""
        chosen = qt.QFileDialog.getSaveFileName(
            self.ui.reportButton, _("Save report"), "calid-report.html", _("Report (*.html)")
        )
        return chosen if isinstance(chosen, str) else chosen[0]  # the bindings differ
