"""The one rule of dependence: benchmark -> training -> calid <- CaLIDReconstructLib <- CaLIDReconstruct.py."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import architecture
import pytest
from calid.run.settings import OPTIONS

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


def test_from_the_command_line_to_the_network_there_are_at_most_twelve_frames():
    pytest.importorskip("torch")
    frames = architecture.frames_to_the_network()
    assert frames[0] == "calid.__main__.main"
    assert frames[-1] == "calid.method.networks.Denoiser.forward"
    assert len(frames) <= 12, frames


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


NEW_SETTING = """
    flavor: str = field(default="plain", metadata=_told("how hearts taste", choices=("plain", "salty")))

    def __post_init__"""
ASK_FOR_IT = """
import argparse, json
from calid.__main__ import build_parser
from calid.cohort.manifest import MANIFEST_COLUMNS
from calid.errors import SettingsError
from calid.run.settings import Settings, from_flags, from_json
from calid.serve.commands import COMMANDS

def flags(command):
    parser = build_parser([command])
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest for action in commands.choices[command]._actions}

def is_refused(value):
    try:
        return not Settings(flavor=value)
    except SettingsError as error:
        return error.code == "flavor"

typed = build_parser(["upsample"]).parse_args(["upsample", "in", "out", "--flavor", "salty"])
print(json.dumps({
    "default": Settings().flavor,
    "typed": from_flags(typed).flavor,
    "sent": from_json({"flavor": "salty"}).flavor,
    "refused": is_refused("sweet"),
    "flags": [command for command in ("upsample", "cohort") if "flavor" in flags(command)],
    "requests": sorted(name for name, command in COMMANDS.items() if "flavor" in command.fields),
    "column": "flavor" in MANIFEST_COLUMNS,
}))
"""


def test_a_new_setting_is_one_edit_and_its_use(tmp_path):
    """In a copy of the engine with one more field, every door knows it: flags, requests, cohorts, and their refusals.

    Its words in README and protocol are asked for by `test_settings.py` and `test_serve.py`, its place in the
    provenance by the former, the panel's choices by the tests of the module.
    """
    shutil.copytree(ENGINE, tmp_path / "calid", ignore=shutil.ignore_patterns("__pycache__"))
    room = tmp_path / "calid" / "run" / "settings.py"
    text = room.read_text(encoding="utf-8")
    room.write_text(text.replace("\n    def __post_init__", NEW_SETTING, 1), encoding="utf-8")
    asked = subprocess.run(
        [sys.executable, "-c", ASK_FOR_IT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(asked.stdout) == {
        "default": "plain",
        "typed": "salty",
        "sent": "salty",
        "refused": True,
        "flags": ["upsample", "cohort"],
        "requests": ["cohort", "estimate", "upsample"],
        "column": True,
    }


def test_every_setting_is_named_where_it_is_declared_and_used_and_told():
    table = {words[0]: words[1:] for words in map(str.split, architecture.settings_table().splitlines())}
    assert [name for name in table if name != "setting"] == list(OPTIONS)
    for name in OPTIONS:
        engine, _, _, pages, every = map(int, table[name])
        assert engine >= 2, f"{name} is declared and not used"
        assert pages >= 2, f"{name} is not told"
        assert every >= engine + pages


def test_lines_of_code_are_those_without_words_and_blanks():
    lines = [
        '"""A room."""',
        "",
        "import os  # its name",
        "",
        "def name():",
        '    """Tell it."""',
        "    return os.name",
    ]
    assert architecture.code_lines("\n".join(lines)) == 3


def test_a_description_of_a_parameter_has_a_subject():
    found = {
        f"{path.name}: {name}: {told}"
        for path in ENGINE.rglob("*.py")
        for name, told in architecture.parameters(path)
        if re.match(
            r"(of|by|for|at|with|from|on|about|told|asked|given|does|sends|makes|written|where it goes)\b", told
        )
    }
    assert found == set()


def test_no_class_has_the_name_of_another_one():
    homes: dict[str, list[str]] = {}
    for package in architecture.PACKAGES:
        for room, path in architecture.rooms(package).items():
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes.setdefault(node.name, []).append(room)
    assert {name: rooms for name, rooms in homes.items() if len(rooms) > 1} == {}


def test_no_attribute_exists_only_after_a_certain_call():
    assert [*architecture.late_attributes("calid"), *architecture.late_attributes("calid_benchmark")] == []
