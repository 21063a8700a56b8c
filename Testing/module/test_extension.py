"""What the Extensions Index and an installed extension ask of this repository; reads files only."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "CaLIDReconstruct"
ENTRY = REPOSITORY / "Resources" / "CaLID.json"
UI = MODULE / "Resources" / "UI" / "CaLIDReconstruct.ui"
CMAKE = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
SCHEMA_KEYS = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
SCHEMA_KEYS |= {"enabled", "tier"}
LARGEST_CLONE_BYTES = 96_000_000
TEXT_SUFFIXES = {".py", ".txt", ".md", ".json", ".ui", ".toml", ".yml", ".yaml", ".cmake"}


def entry() -> dict:
    return json.loads(ENTRY.read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """The files under version control, or everything where this is no clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def setting(name: str) -> str:
    """The quoted value of a CMake variable, found with the index's own pattern."""
    found = re.findall(r"set\s*\(" + name + r'\s*"([^"]+)"[ ]*\)', CMAKE)
    assert len(found) == 1, f"{name} must be one quoted string"
    return found[0]


# --- the Extensions Index ---


def test_the_entry_has_only_keys_of_the_schema_and_all_required_ones():
    keys = set(entry())
    assert keys <= SCHEMA_KEYS
    assert {"$schema", "category", "scm_url"} <= keys
    assert 1 <= entry()["tier"] <= 5
    assert entry()["scm_url"].startswith("https://")


def test_the_extension_is_named_as_the_index_wants():
    projects = re.findall(r"project\s*\(\s*([^\s\)\n\r]+)", CMAKE, re.IGNORECASE)
    assert projects[0] == ENTRY.stem == "CaLID"
    assert not ENTRY.stem.lower().startswith("slicer")
    repositoryName = entry()["scm_url"].rstrip("/").split("/")[-1]
    assert repositoryName.startswith("Slicer")


def test_the_category_is_one_of_the_index():
    assert entry()["category"] == "Cardiac"


def test_dependencies_of_entry_and_cmake_agree():
    assert setting("EXTENSION_DEPENDS").split() == entry()["build_dependencies"]


def test_the_entry_ends_lines_with_lf():
    assert b"\r" not in ENTRY.read_bytes()


def test_every_text_file_ends_lines_with_lf():
    wrong = [path.name for path in tracked() if path.suffix in TEXT_SUFFIXES and b"\r" in path.read_bytes()]
    assert wrong == []


def test_there_is_a_license_in_the_root():
    assert "Apache License" in (REPOSITORY / "LICENSE.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_icon_and_screenshots_are_urls_of_pictures_in_this_repository(name):
    urls = setting(name).split()
    assert urls
    prefix = entry()["scm_url"].replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    for url in urls:
        assert url.startswith(prefix)
        assert (REPOSITORY / url.removeprefix(prefix)).is_file(), url


@pytest.mark.parametrize(
    "name", ["EXTENSION_HOMEPAGE", "EXTENSION_CONTRIBUTORS", "EXTENSION_DESCRIPTION", "EXTENSION_RECOMMENDS"]
)
def test_the_metadata_is_there(name):
    assert setting(name)


def test_the_description_says_that_slices_are_synthetic_and_names_the_license():
    description = setting("EXTENSION_DESCRIPTION")
    assert "synthetic" in description
    assert "Apache-2.0" in description


def quoted(name: str) -> list[str]:
    """The quoted values of a CMake list."""
    (values,) = re.findall(r"set\s*\(" + name + r"\s+([^)]*)\)", CMAKE)
    return re.findall(r'"([^"]*)"', values)


def test_no_metadata_falls_apart_where_cmake_and_the_index_split_it():
    """CMake takes a semicolon for the end of an item, the catalog a blank for the end of a keyword."""
    settings = re.findall(r"set\s*\((EXTENSION_\w+)", CMAKE)
    assert len(settings) > 6
    assert [name for name in settings if ";" in "".join(quoted(name))] == []
    assert len(quoted("EXTENSION_KEYWORDS")) > 3
    assert [word for word in quoted("EXTENSION_KEYWORDS") if " " in word] == []


SOURCE = Path(os.environ.get("CALID_SLICER_SOURCE", "."))
GENERATOR = SOURCE / "Extensions" / "CMake" / "SlicerFunctionGenerateExtensionDescription.cmake"
TEMPLATE = SOURCE / "Utilities" / "Templates" / "Extensions" / "extension_description.s4ext.in"


def hasNewCmake() -> bool:
    """Slicer's functions refuse a CMake before 3.28."""
    if not shutil.which("cmake"):
        return False
    said = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (3, 28)


@pytest.mark.skipif(
    not (GENERATOR.is_file() and TEMPLATE.is_file() and hasNewCmake()),
    reason="needs CMake 3.28, and CALID_SLICER_SOURCE with CMake, Extensions/CMake and Utilities/Templates/Extensions",
)
def test_slicers_own_functions_put_the_whole_metadata_into_the_catalog(tmp_path):
    """Called as SlicerExtensionCPack.cmake calls it, whose arguments are not quoted."""
    names = re.findall(r"set\s*\(EXTENSION_(\w+)", CMAKE)
    lines = [line for line in CMAKE.splitlines() if line.startswith("set(EXTENSION_")]
    arguments = " ".join(f"EXTENSION_{name} ${{EXTENSION_{name}}}" for name in names)
    place = "EXTENSION_WC_TYPE git EXTENSION_WC_REVISION 1 EXTENSION_WC_ROOT x EXTENSION_WC_URL https://y"
    other = f'{place} DESTINATION_DIR "{tmp_path}" SLICER_REVISION 2 SLICER_WC_ROOT z EXTENSION_NAME CaLID'
    call = f"slicerFunctionGenerateExtensionDescription({arguments} {other})"
    script = tmp_path / "describe.cmake"
    script.write_text("\n".join([f'include("{GENERATOR}")', *lines, call]), encoding="utf-8")
    made = subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "CaLID.s4ext").read_text(encoding="utf-8")
    written = dict(line.partition(" ")[::2] for line in text.splitlines() if line and not line.startswith("#"))
    assert written["description"] == setting("EXTENSION_DESCRIPTION")
    assert "ot for diagnosis" in written["description"]
    assert "CC BY-NC-SA 4.0" in written["description"]
    assert written["keywords"].split(" ") == quoted("EXTENSION_KEYWORDS")
    assert written["contributors"] == setting("EXTENSION_CONTRIBUTORS")
    assert written["screenshoturls"] == setting("EXTENSION_SCREENSHOTURLS")


def test_the_icon_has_128_by_128_pixels():
    header = (MODULE / "Resources" / "Icons" / "CaLIDReconstruct.png").read_bytes()[:24]
    assert struct.unpack(">II", header[16:24]) == (128, 128)


@pytest.mark.parametrize("name", ["panel.png", "comparison.jpg"])
def test_screenshots_are_there_and_small(name):
    path = REPOSITORY / "Resources" / "Screenshots" / name
    assert 5_000 < path.stat().st_size < 300_000


def test_a_clone_stays_below_the_limit_of_the_index():
    """What a clone fetches, packed anew: a checkout may happen to store it otherwise, loose or without deltas."""
    command = ["git", "pack-objects", "--revs", "--stdout", "-q", "--no-reuse-delta", "--threads=1"]
    history = subprocess.run(command, input=b"HEAD\n", cwd=REPOSITORY, capture_output=True, check=False)
    if history.returncode:
        pytest.skip("not a git clone")
    files = sum(path.stat().st_size for path in tracked())
    assert files + len(history.stdout) <= LARGEST_CLONE_BYTES


# --- what is installed ---


def installed() -> set[str]:
    """The files that CaLIDReconstruct/CMakeLists.txt installs, its patterns expanded."""
    text = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
    patterns = re.findall(
        r"^  ((?:CaLIDReconstructLib|calid|Resources)\S*/\S+|\$\{MODULE_NAME\}\.py)$", text, re.MULTILINE
    )
    names: set[str] = set()
    for pattern in patterns:
        folder, _, ending = pattern.replace("${MODULE_NAME}", "CaLIDReconstruct").rpartition("/")
        paths = (MODULE / folder).rglob(ending) if folder else [MODULE / ending]
        names |= {path.relative_to(MODULE).as_posix() for path in paths if path.is_file()}
    return names


def test_every_tracked_file_of_the_module_is_installed():
    needed = {path.relative_to(MODULE).as_posix() for path in tracked() if path.is_relative_to(MODULE)}
    assert needed - installed() - {"CMakeLists.txt"} == set()


def test_what_the_module_names_is_installed():
    needed = {
        "CaLIDReconstruct.py",
        "calid/serve/server.py",
        "CaLIDReconstructLib/Panel.py",
        "Resources/UI/CaLIDReconstruct.ui",
        "Resources/Icons/CaLIDReconstruct.png",
        "Resources/requirements.txt",
        "Resources/SegmentationCategoryTypeModifier-CaLID.term.json",
        "Resources/Scripts/upsample_folder.py",
    }
    assert needed <= installed()


def test_requirements_have_lower_bounds_only_and_no_torch():
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert {re.split(r"[>=<]", line)[0] for line in requirements} == {
        "monai",
        "einops",
        "safetensors",
        "tqdm",
        "nibabel",
    }
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+", line) for line in requirements)


# --- the .ui and the code ---


def libraryTrees() -> dict[str, ast.Module]:
    paths = [MODULE / "CaLIDReconstruct.py", *(MODULE / "CaLIDReconstructLib").glob("*.py")]
    return {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def uiNames() -> set[str]:
    return {widget.get("name") for widget in ElementTree.parse(UI).iter("widget")}


def test_every_widget_that_the_code_names_is_in_the_ui():
    used = {
        node.attr
        for tree in libraryTrees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (getattr(node.value, "attr", "") == "ui" or getattr(node.value, "id", "") == "ui")
    }
    assert len(used) > 30
    assert used - uiNames() == set()


def test_every_parameter_of_the_ui_is_in_the_parameter_node():
    tree = libraryTrees()["Parameters.py"]
    (node,) = (item for item in tree.body if getattr(item, "name", "") == "CaLIDReconstructParameterNode")
    parameters = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    named = {
        item.findtext("string")
        for item in ElementTree.parse(UI).iter("property")
        if item.get("name") == "SlicerParameterName"
    }
    assert named == parameters


def test_every_node_selector_gets_the_scene():
    root = ElementTree.parse(UI).getroot()
    selectors = {item.get("name") for item in root.iter("widget") if item.get("class") == "qMRMLNodeComboBox"}
    connected = {item.findtext("receiver") for item in root.iter("connection")}
    assert selectors
    assert selectors == connected


def test_every_button_and_choice_explains_itself():
    root = ElementTree.parse(UI).getroot()
    explained = ("QPushButton", "QComboBox", "QSpinBox", "QCheckBox", "qMRMLNodeComboBox", "ctkPathLineEdit")
    silent = [
        item.get("name")
        for item in root.iter("widget")
        if item.get("class") in explained and not any(p.get("name") == "toolTip" for p in item.findall("property"))
    ]
    assert silent == []


def test_a_path_edit_browses_for_what_it_holds():
    """ctkPathLineEdit opens a dialog for files as soon as its filters include them, and they do by default."""
    root = ElementTree.parse(UI).getroot()
    edits = {item.get("name"): item for item in root.iter("widget") if item.get("class") == "ctkPathLineEdit"}
    filters = {name: item.findtext("property[@name='filters']/set").split("|") for name, item in edits.items()}
    assert "ctkPathLineEdit::Files" in filters["interpreterEdit"]
    assert "ctkPathLineEdit::Dirs" in filters["modelsFolderEdit"]
    assert "ctkPathLineEdit::Files" not in filters["modelsFolderEdit"]


def shownTexts(tree: ast.Module) -> list[str]:
    """String literals that are assigned to a widget's text or tool tip without translation."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            names = [getattr(target, "attr", "") for target in node.targets]
            if node.value.value and any(name in ("text", "toolTip", "title", "helpText") for name in names):
                found.append(node.value.value)
    return found


def test_every_text_that_is_shown_goes_through_the_translation():
    assert {name: texts for name, tree in libraryTrees().items() if (texts := shownTexts(tree))} == {}


def test_translated_texts_are_literals_formatted_afterwards():
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in libraryTrees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "_"
        and not (len(node.args) == 1 and isinstance(node.args[0], ast.Constant))
    ]
    assert wrong == []


def test_signals_are_connected_in_the_way_that_both_bindings_know():
    """`widget.connect("clicked()", f)` works in Slicer only, `widget.clicked.connect(f)` in the tests too."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in libraryTrees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "connect"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and not ast.unparse(node.func).startswith("slicer.app.")
    ]
    assert wrong == []
