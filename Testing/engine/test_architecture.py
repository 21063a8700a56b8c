"""The one rule of dependence: calid_training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "CaLIDReconstruct" / "calid"
FORBIDDEN = {
    "CaLIDReconstruct/calid": {"slicer", "qt", "ctk", "calid_training", "CaLIDReconstructLib", "CaLIDReconstruct"},
    "CaLIDReconstruct/CaLIDReconstructLib": {"torch", "monai", "calid_training", "CaLIDReconstruct"},
    "CaLIDTraining/calid_training": {"slicer", "qt", "ctk", "CaLIDReconstructLib", "CaLIDReconstruct"},
}
MAX_CLONE_MB = 90


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


def test_the_clone_stays_small():
    if not (ROOT / ".git").is_dir():
        pytest.skip("not a clone")
    counted = subprocess.run(
        ["git", "count-objects", "-v"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sizes = dict(line.split(": ") for line in counted)
    history = (int(sizes["size"]) + int(sizes["size-pack"])) / 1024
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = sum((ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).is_file())
    assert history + files / 1e6 < MAX_CLONE_MB
