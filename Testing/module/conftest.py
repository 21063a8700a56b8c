"""Every module test gets an empty MRML scene in the host application; without slicer-core and PySide6 it is skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import host  # noqa: E402 - found through the line above

REPOSITORY = Path(__file__).resolve().parents[2]
WITHOUT_HOST = ("test_extension.py", "test_dependencies.py")

if host.isAvailable():
    host.install()


class _NeedsHost(pytest.Module):
    """Stands for a test file that cannot run here and says why."""

    def collect(self):
        pytest.skip(f"needs {host.WHAT_IS_NEEDED} (see Testing/README.md)", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent):
    if host.isAvailable() or module_path.name in WITHOUT_HOST:
        return None
    return _NeedsHost.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def scene(request):
    """The scene, emptied before and after every test; a test fails on any error that VTK prints meanwhile."""
    if not host.isAvailable():
        yield None
        return
    import slicer
    import vtk

    window = vtk.vtkStringOutputWindow()
    vtk.vtkOutputWindow.SetInstance(window)
    slicer.mrmlScene.Clear()
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear()
    errors = [part.strip() for part in window.GetOutput().split("\n\n") if "ERR" in part]
    if errors and request.node.get_closest_marker("vtk_errors") is None:
        pytest.fail(f"{len(errors)} VTK errors:\n" + "\n".join(errors[:4]), pytrace=False)


@pytest.fixture(scope="session")
def layoutViews():
    """The views of the process, made as layouts ask for them."""
    from host.views import LayoutViews

    return LayoutViews((240, 240))


@pytest.fixture
def views(layoutViews):
    """The views in the user's layout, four-up."""
    import slicer

    layoutViews.layoutNode.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    return layoutViews


@pytest.fixture
def opened(monkeypatch):
    """opened(script) opens a panel that lacks nothing; it is closed after the test."""
    from CaLIDReconstructLib import Installation
    from opened_panel import Opened

    monkeypatch.setattr(Installation, "torchState", lambda: Installation.TorchState.PRESENT)
    monkeypatch.setattr(Installation, "missingRequirements", list)
    made = []

    def open_(*args, **options) -> Opened:
        made.append(Opened(*args, **options))
        return made[-1]

    yield open_
    for each in made:
        each.widget.cleanup()
