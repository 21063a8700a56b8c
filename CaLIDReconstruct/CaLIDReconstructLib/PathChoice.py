"""One path of the machine's settings in the panel: taken when typing has paused, and given back with one click."""

from __future__ import annotations

from collections.abc import Callable

import qt

from .Parameters import Preferences

APPLY_DELAY_MS = 1000


class PathChoice:
    """Binds a ctkPathLineEdit and its "Default" button to one of the `Preferences`.

    Args:
        edit: the ctkPathLineEdit.
        defaultButton: empties it, which ctkPathLineEdit itself does not report as another path.
        preferences: where the path is kept.
        name: attribute of `Preferences` that holds the path.
        onChosen: called after another path was taken.
    """

    def __init__(self, edit, defaultButton, preferences: Preferences, name: str, onChosen: Callable[[], None]) -> None:
        self.edit, self.defaultButton = edit, defaultButton
        self.preferences, self.name, self.onChosen = preferences, name, onChosen
        # ctkPathLineEdit speaks at every key; a path that is still being typed must not restart the engine.
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(APPLY_DELAY_MS)
        self._timer.timeout.connect(self.apply)
        edit.currentPath = self._kept
        edit.currentPathChanged.connect(self._onEdited)
        edit.validInputChanged.connect(self._onEdited)
        defaultButton.clicked.connect(self.onDefault)
        defaultButton.enabled = bool(self._kept)

    @property
    def _kept(self) -> str:
        return getattr(self.preferences, self.name)

    def close(self) -> None:
        """Take no more paths; the panel is going away."""
        self._timer.stop()

    def finish(self) -> None:
        """Take a path that was just typed without waiting for the pause."""
        if self._timer.isActive():
            self.apply()

    def apply(self) -> None:
        """Take the path as it stands now."""
        self._timer.stop()
        path = self.edit.currentPath
        self.defaultButton.enabled = bool(path)
        if path != self._kept:
            setattr(self.preferences, self.name, path)
            self.onChosen()

    def onDefault(self, *_args) -> None:
        """Go back to what Slicer or the module brings."""
        self.edit.currentPath = ""
        self.apply()

    def _onEdited(self, *_args) -> None:
        self._timer.start()
