"""What will come out, before the click: slices and spacing at once, time and memory once the engine has tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import qt
from calid.method.bisection import resolve_factor
from calid.stack import Stack
from slicer.i18n import tr as _

from .Logic import Logic
from .Messages import EXPECTED_ERRORS, Failure, failureFromError, memoryText, timeText
from .Notices import Level, show
from .Settings import RunSettings

DELAY_MS = 400


@dataclass(frozen=True)
class Question:
    """A run that could be started now.

    Args:
        node: volume or sequence node of the input.
        settings: the settings of the run.
        geometry: the input's geometry; its voxels take no memory.
        canAsk: whether the engine may be started to answer.
    """

    node: object
    settings: RunSettings
    geometry: Stack
    canAsk: bool

    def isSame(self, other: Question | None) -> bool:
        """Whether an answer to the other question answers this one."""
        return other is not None and (self.node, self.settings) == (other.node, other.settings)


class EstimatePanel:
    """Shows what the chosen run would make and take.

    Args:
        ui: the named widgets.
        logic: the engine; a question warms it up as well.
        question: gives the run that could be started now, or None.
        log: called with a level of `logging` and a line for the user's log.
        onBusy: called when there is an answer to wait for.
    """

    def __init__(
        self,
        ui,
        logic: Logic,
        question: Callable[[], Question | None],
        log: Callable[[str, str], None],
        onBusy: Callable[[], None],
    ) -> None:
        self.ui, self.logic, self.question, self.log, self.onBusy = ui, logic, question, log, onBusy
        self._asked: Question | None = None
        self._requestId: str | None = None
        self._answer: tuple[Question, dict] | None = None
        self._deviceAsked: tuple | None = None
        self.timer = qt.QTimer()
        self.timer.setInterval(DELAY_MS)
        self.timer.setSingleShot(True)
        self.timer.timeout.connect(self.ask)

    def close(self) -> None:
        """Ask nothing more; the panel is going away."""
        self.timer.stop()

    def forgetDevice(self) -> None:
        """Ask for the device again with the next estimate: another engine may find another one."""
        self._deviceAsked = self._answer = None

    def schedule(self) -> None:
        """Show what is known at once, and ask for the rest when the user has paused."""
        question = self.question()
        if question is None:
            self._clear()
            return
        self._showOutcome(question)
        if self._answer is not None and question.isSame(self._answer[0]):
            self._showAnswer()
        else:
            self._answer = None
            self._show(self.ui.estimateLabel, "")
            self.timer.start()

    def ask(self) -> None:
        """Ask the engine, in the background, what the run would take."""
        question = self.question()
        if question is None or not question.canAsk or self._requestId is not None:
            return  # the answer under way will ask again if the input or the settings changed meanwhile
        self._asked = question
        try:
            self._requestId = self.logic.estimate(
                question.node, question.settings, lambda event, reason: self._onAnswer(question, event, reason)
            )
        except EXPECTED_ERRORS as error:
            self._show(self.ui.estimateLabel, failureFromError(error, otherwise="unwritable").text(), Level.WARNING)
            return
        self._showOutcome(question)
        self.onBusy()

    def withdraw(self) -> None:
        """Drop the question under way, so that a run that begins does not wait for a trial."""
        self.timer.stop()
        if self._requestId is not None:
            self.logic.client.withdraw(self._requestId)
            asked, self._requestId, self._asked = self._asked, None, None
            self._showOutcome(asked)

    def _showOutcome(self, question: Question) -> None:
        text = outcomeText(question)
        if self._requestId is not None:
            text = "\n".join([text, _("Estimating the time it takes ...")])
        self._show(self.ui.outcomeLabel, text)

    def _showAnswer(self) -> None:
        question, event = self._answer
        text = estimateText(event, withSegmentation=question.settings.segment)
        self._show(self.ui.estimateLabel, text, Level.INFO if event.get("fits", True) else Level.WARNING)

    def _clear(self) -> None:
        """Show nothing; an answer is kept for when the same is asked again."""
        for label in (self.ui.outcomeLabel, self.ui.estimateLabel):
            self._show(label, "")

    @staticmethod
    def _show(label, text: str, level: Level = Level.INFO) -> None:
        show(label, text, level)
        label.visible = bool(text)

    def _onAnswer(self, asked: Question, event: dict | None, reason: Failure | None) -> None:
        if asked is not self._asked:
            return  # it was withdrawn
        self._requestId = self._asked = None
        now = self.question()
        if now is None:
            self._clear()
            return
        self._showOutcome(now)
        if not asked.isSame(now):
            self.timer.start()
        elif event is not None:
            self._answer = asked, event
            self._showAnswer()
            self._askDevice(asked.settings)
        elif reason is not None:
            self._show(self.ui.estimateLabel, reason.text(), Level.WARNING)
            self.log("warning", "\n".join(filter(None, [reason.text(), reason.details])))

    def _askDevice(self, settings: RunSettings) -> None:
        """Show the device with the reason for it and its memory; asked again when another one is chosen."""
        wanted = (settings.device, settings.modelsFolder)
        if wanted != self._deviceAsked:
            self._deviceAsked = wanted
            fields = {"device": settings.device, "models": settings.modelsFolder or None}
            self.logic.ask("info", self._onDevice, **fields)

    def _onDevice(self, event: dict | None, reason: Failure | None) -> None:
        if event is not None:
            self.ui.deviceReasonLabel.text = deviceText(event.get("result", {}))
        elif reason is not None:
            self.ui.deviceReasonLabel.text = reason.text()


def outcomeText(question: Question) -> str:
    """Such as "11 slices, 10.0 mm apart \u2192 81 slices, 1.25 mm apart"."""
    stack = question.geometry
    factor = resolve_factor(question.settings.factor, stack)
    spacing = float(stack.spacing_mm[2])
    return _("{before} slices, {wide} mm apart \u2192 {after} slices, {narrow} mm apart").format(
        before=stack.num_slices,
        wide=f"{spacing:.1f}",
        after=(stack.num_slices - 1) * factor + 1,
        narrow=f"{spacing / factor:.2f}",
    )


def estimateText(event: dict, *, withSegmentation: bool) -> str:
    """The time and memory that the engine expects and the device it would take; segmenting comes on top of it."""
    parts = []
    if event.get("seconds") is not None:
        parts.append(_("Expected time: {time}").format(time=timeText(float(event["seconds"]))))
    if event.get("device"):
        parts.append(_("on {device}").format(device=event["device"]))
    if parts and withSegmentation:
        parts.append(_("and the segmentation after it"))
    lines = [" ".join(parts)]
    if event.get("memory_bytes") is not None:
        needed, free = (memoryText(float(event[name])) for name in ("memory_bytes", "free_bytes"))
        lines.append(_("Memory: {needed} of {free} free").format(needed=needed, free=free))
    if not event.get("fits", True):
        lines.append(tooLargeText())
    return "\n".join(filter(None, lines))


def tooLargeText() -> str:
    """What to do about a run that is expected not to fit."""
    return _(
        "This will probably not fit into memory: choose a region of interest, the shown frame only, fewer samples, a "
        "smaller factor, or close other programs."
    )


def deviceText(information: dict) -> str:
    """The device with the reason why, its free memory and the version of PyTorch."""
    parts = [str(information["device"])] if information.get("device") else []
    if information.get("free_memory_gb") is not None:
        parts.append(_("{memory} of memory free").format(memory=memoryText(1e9 * float(information["free_memory_gb"]))))
    if information.get("torch"):
        parts.append(f"PyTorch {information['torch']}")
    return ", ".join(parts)
