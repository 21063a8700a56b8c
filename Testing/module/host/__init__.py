"""A small host for the module's own code: real MRML (`slicer-core`), Qt (PySide6) and stand-ins for what only 3D Slicer has.

`host.install()` makes `import slicer`, `import qt` and `import ctk` work as they do inside Slicer; see Testing/README.md for
what is real here and what is stood in for.
"""

from __future__ import annotations

import importlib.util
import os

WHAT_IS_NEEDED = "slicer-core==5.12.4.0 and PySide6-Essentials>=6.7"


def isAvailable() -> bool:
    """True when both packages that the host is made of are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("slicer", "PySide6"))


def install():
    """Start the host once; returns the `Application` that stands in for Slicer's."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    from .application import startApplication

    return startApplication()
