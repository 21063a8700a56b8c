"""The how-to pages run: their Python from top to bottom, their links and commands as they are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import file_phantoms
import pytest
from test_reconstruct import cine

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, random_models, monkeypatch):
    monkeypatch.setenv("CALID_MODELS", str(random_models))
    study = tmp_path / "study"
    file_phantoms.write_stack(study, file_phantoms.noisy_stack((9, 4, 18, 24), step_ms=81.0))
    known = {"folder": tmp_path, "study": study, "sax": cine(frames=1), "__name__": page.stem}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, page.name, "exec"), known)


def markdown() -> list[Path]:
    found = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "CaLIDTraining").glob("*.md")]
    return sorted(found)


@pytest.mark.parametrize("page", markdown(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_sites_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}" not in menu] == []


@pytest.mark.parametrize("page", markdown(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_a_page_are_understood_with_their_options(page):
    from calid.__main__ import build_parser

    blocks = re.findall(r"```(?:sh)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in re.findall(r"^(?:\.venv/bin/)?calid (.*)", "\n".join(blocks).replace("\\\n", " "), re.MULTILINE):
        typed = shlex.split(line.partition(" > ")[0], comments=True)
        assert build_parser(typed).parse_args(typed).run, line


def test_the_clone_address_is_told_once_and_is_that_of_the_extension():
    entry = json.loads((ROOT / "Resources" / "CaLID.json").read_text(encoding="utf-8"))
    told = {page.name: re.findall(r"git clone (\S+)", page.read_text(encoding="utf-8")) for page in markdown()}
    assert {name: addresses for name, addresses in told.items() if addresses} == {"README.md": [entry["scm_url"]]}


def test_the_package_is_installed_from_where_it_is():
    """It is in no index, where another's package may one day have its name; parts of what is there may be asked for."""
    pages = [page for page in markdown() if page.name != "CHANGELOG.md"]
    assert [
        page.name for page in pages if re.search(r"pip install ['\"]?calid", page.read_text(encoding="utf-8"))
    ] == []
    said = [
        file.name
        for file in (ROOT / "CaLIDReconstruct").rglob("*.py")
        if "pip install calid'" in file.read_text(encoding="utf-8")
    ]
    assert said == []


def test_the_newcomers_path_leads_to_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    path = re.findall(r"^\d\. \[`[^`]+`\]\(([^)]+)\)", text, re.MULTILINE)
    assert len(path) == 5
    assert all((ROOT / file).is_file() for file in path)


def test_the_site_is_built_without_a_warning(tmp_path):
    mkdocs = pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    assert mkdocs
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
    build(config)
    assert (tmp_path / "site" / "how-to" / "own-dicom" / "index.html").is_file()


def test_every_commit_is_checked_by_the_ruff_of_the_environment():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (hooked,) = re.findall(r"ruff-pre-commit\n\s+rev: v([\d.]+)", hooks)
    assert re.findall(r"^ruff==([\d.]+)", locked, re.MULTILINE) == [hooked]
