"""The one rule of dependence: benchmark -> training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py."""

from __future__ import annotations

import ast
from pathlib import Path

import architecture
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

NOUNS = {"stack", "geometry", "labels", "errors"}
ARROWS = {
    "stack": set(),
    "labels": set(),
    "errors": set(),
    "geometry": {"stack"},
    "method": NOUNS,
    "images": NOUNS,
    "run": {"method", "images", *NOUNS},
    "heart": {"run", "method", "images", *NOUNS},
    "report": {"heart", "run", "images", *NOUNS},
    "cohort": {"report", "heart", "run", "images", "method", *NOUNS},
}
"""Which wings of the engine may import which; `__main__`, `serve` and `library` stand at the door and may use all."""


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


def test_the_wings_of_the_engine_import_only_what_lies_below_them():
    graph = architecture.arrows("calid")
    found = {
        f"{room} -> {target}"
        for room, targets in graph.items()
        for target in targets
        if (inside := architecture.wing(room).removeprefix("calid.")) in ARROWS
        and architecture.wing(target).removeprefix("calid.") not in ARROWS[inside] | {inside, "calid"}
    }
    assert found == set()


@pytest.mark.parametrize("package", architecture.PACKAGES)
def test_no_imports_run_in_a_circle_neither_of_rooms_nor_of_wings(package):
    graph = {room: targets - {package} for room, targets in architecture.arrows(package).items() if room != package}
    assert architecture.floors(graph) >= architecture.floors(architecture.wings(graph))


def test_settings_are_read_without_torch():
    """Slicer offers their choices before anything is installed."""
    waiting, seen = ["calid.run.settings"], set()
    while waiting:
        room = waiting.pop()
        seen.add(room)
        waiting += architecture.arrows("calid")[room] - seen
    outside = {name for room in seen for name in imported(architecture.rooms("calid")[room])}
    assert not outside & {"torch", "monai", "safetensors", "scipy", "vtk", "pydicom", "nibabel"}


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
