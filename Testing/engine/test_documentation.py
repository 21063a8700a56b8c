"""The how-to pages run: their Python from top to bottom, their links and commands as they are written."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "docs").glob("*.md")], ids=lambda page: page.stem)
def test_commands_on_a_page_are_commands(page):
    from calid.__main__ import MODULES

    known = {"upsample", "info", "serve", "completion", *MODULES}
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    typed = [word for block in blocks for word in re.findall(r"^calid (\w+)", block, re.MULTILINE)]
    assert set(typed) <= known


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
