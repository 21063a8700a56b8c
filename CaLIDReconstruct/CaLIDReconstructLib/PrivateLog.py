"""The panel's log as it may be sent to others: without the names that can be a patient's or the user's."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import slicer

from .Workspace import temporaryFolder

NAMED_CLASSES = ("vtkMRMLVolumeNode", "vtkMRMLSequenceNode")


class PrivateLog:
    """Keeps lines, and with them the names of the scene's images: a node may be gone when the log is copied."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: set[str] = set()

    def add(self, line: str) -> None:
        """Keep a line, and the names that the scene's images have now."""
        self._lines.append(line)
        for name in NAMED_CLASSES:
            self._names |= {node.GetName() for node in slicer.util.getNodesByClass(name) if node.GetName()}

    def report(self, head: list[str]) -> str:
        """The head and all lines, with "[node]", "[temp]" and "[home]" in place of names and folders."""
        text = "\n".join([*head, "", *self._lines])
        temporary = {temporaryFolder(), tempfile.gettempdir()}
        marks = [*((Path(folder), "[temp]") for folder in temporary), (Path.home(), "[home]")]
        for folder, mark in sorted(marks, key=lambda each: -len(str(each[0]))):
            if folder.name:
                for spelling in _spellings(str(folder)):
                    text = text.replace(spelling, mark)
        return _withoutNames(text, self._names)


def _spellings(folder: str) -> set[str]:
    """The folder as the system, JSON and Qt write it."""
    return {folder, folder.replace("\\", "\\\\"), folder.replace("\\", "/")}


def _withoutNames(text: str, names: set[str]) -> str:
    """The text without these names; inside a longer word they are another word."""
    if not names:
        return text
    longestFirst = sorted(names, key=len, reverse=True)
    return re.sub(rf"(?<!\w)(?:{'|'.join(map(re.escape, longestFirst))})(?!\w)", "[node]", text)
