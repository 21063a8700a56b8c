"""A small host for the module: real MRML (`slicer-core`), Qt (PySide6) and stand-ins for what only 3D Slicer has.

`host.install()` makes `import slicer`, `import qt` and `import ctk` work as they do inside Slicer; see
Testing/README.md for what is real here and what is stood in for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys

# PySide6 6.12 loses a reference to None at nearly every call, which ends Python before 3.12 with a crash.
WHAT_IS_NEEDED = "slicer-core 5.12.4 and PySide6-Essentials 6.8 (before 6.12 on Python before 3.12)"


def isAvailable() -> bool:
    """True when both packages that the host is made of are installed, and fit this Python."""
    if any(importlib.util.find_spec(name) is None for name in ("slicer", "PySide6")):
        return False
    version = tuple(map(int, importlib.metadata.version("PySide6-Essentials").split(".")[:2]))
    return sys.version_info >= (3, 12) or version < (6, 12)


def install():
    """Start the host once; returns the `Application` that stands in for Slicer's."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    from .application import startApplication

    return startApplication()
