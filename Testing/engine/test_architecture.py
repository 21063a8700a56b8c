"""The one rule of dependence: benchmark -> training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "CaLIDReconstruct" / "calid"
SLICER = {"slicer", "qt", "ctk", "CaLIDReconstructLib", "CaLIDReconstruct"}
FORBIDDEN = {
    "CaLIDReconstruct/calid": {*SLICER, "calid_training", "calid_benchmark"},
    "CaLIDReconstruct/CaLIDReconstructLib": {
        "torch",
        "monai",
        "calid_training",
        "calid_benchmark",
        "CaLIDReconstruct",
    },
    "CaLIDTraining/calid_training": {*SLICER, "calid_benchmark"},
    "CaLIDTraining/calid_benchmark": SLICER,
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


def test_the_training_names_the_benchmark_nowhere_not_even_in_a_string():
    """The rivals' commands reach `calid-train` through the entry points of the installed package."""
    files = sorted((ROOT / "CaLIDTraining" / "calid_training").rglob("*.py"))
    assert [path.name for path in files if "calid_benchmark" in path.read_text(encoding="utf-8")] == []


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
