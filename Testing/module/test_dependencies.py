"""Who may import whom: calid_training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py; torch never in Slicer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "CaLIDReconstruct"
ENGINE, LIBRARY, TRAINING = "calid", "CaLIDReconstructLib", "calid_training"
SLICER = {"slicer", "qt", "ctk", "vtkSlicerModuleMRML", "PythonQt"}
IN_SLICER = {"vtk", "numpy", "scipy", "SimpleITK", "requests", "packaging", "PyTorchUtils", "SampleData"}
FORBIDDEN = {
    ENGINE: SLICER | {LIBRARY, TRAINING, "CaLIDReconstruct"},
    TRAINING: SLICER | {LIBRARY, "CaLIDReconstruct"},
    LIBRARY: {TRAINING, "CaLIDReconstruct", "torch", "monai", "einops", "safetensors", "lightning"},
}
FOLDERS = {
    ENGINE: MODULE / ENGINE,
    LIBRARY: MODULE / LIBRARY,
    TRAINING: REPOSITORY / "CaLIDTraining" / TRAINING,
}


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_go_one_way(package):
    files = list(FOLDERS[package].rglob("*.py"))
    assert files
    wrong = {path.name: found for path in files if (found := imported(path) & FORBIDDEN[package])}
    assert wrong == {}


def test_the_module_file_imports_only_slicer_and_the_library():
    allowed = {"slicer", "vtk", LIBRARY} | set(sys.stdlib_module_names)
    assert imported(MODULE / "CaLIDReconstruct.py") <= allowed


def test_the_library_uses_only_what_slicer_brings():
    allowed = {"slicer", "qt", "calid", *IN_SLICER} | set(sys.stdlib_module_names)
    found = {path.name: extra for path in FOLDERS[LIBRARY].glob("*.py") if (extra := imported(path) - allowed)}
    assert found == {}


def test_the_module_file_is_thin():
    lines = (MODULE / "CaLIDReconstruct.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200


def test_what_the_library_uses_of_the_engine_does_not_import_torch():
    """Checked in a new process, because the tests' own may have imported torch for something else."""
    uses = sorted(
        {
            f"{node.module}.{alias.name}"
            if node.module in ("calid", "calid.images") and alias.name != "__version__"
            else node.module
            for path in FOLDERS[LIBRARY].glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "calid"
            for alias in node.names
        }
    )
    assert "calid.images.files" in uses
    code = f"import importlib, sys\nfor name in {uses}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(MODULE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
