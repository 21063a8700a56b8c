"""The one rule of dependence: calid_training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "CaLIDReconstruct" / "calid"
FORBIDDEN = {
    "CaLIDReconstruct/calid": {"slicer", "qt", "ctk", "calid_training", "CaLIDReconstructLib", "CaLIDReconstruct"},
    "CaLIDReconstruct/CaLIDReconstructLib": {"torch", "monai", "calid_training", "CaLIDReconstruct"},
    "CaLIDTraining/calid_training": {"slicer", "qt", "ctk", "CaLIDReconstructLib", "CaLIDReconstruct"},
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_nobody_imports_upwards(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {path.name: imported(path) & FORBIDDEN[folder] for path in files}
    assert {name: names for name, names in found.items() if names} == {}


def test_the_engine_never_draws_on_a_screen():
    rendering = [
        path.name
        for path in ENGINE.rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in ("vtkRenderingOpenGL2", "vtkRenderWindow("))
    ]
    assert rendering == []


def test_no_pickles_are_loaded():
    for path in [*ENGINE.rglob("*.py"), *(ROOT / "CaLIDTraining").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path.name}:{node.lineno}"
