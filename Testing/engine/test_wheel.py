"""The package as it is published: built, unpacked elsewhere, and run from there without the repository and offline."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, as pip would install it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("calid-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str) -> str:
    """The output of a command, run from the unpacked wheel alone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CALID_")}
    environment["PYTHONPATH"] = str(site)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def metadata(site: Path) -> email.message.Message:
    (path,) = site.glob("calid-*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def test_the_wheel_names_its_licenses_and_links_to_nothing_that_is_not_there(site):
    told = metadata(site)
    assert told["License-Expression"] == "Apache-2.0 AND CC-BY-4.0 AND CC-BY-NC-SA-4.0"
    assert len(told.get_all("License-File")) == 3
    assert {"report", "training", "dicom", "mesh", "cohort"} <= set(told.get_all("Provides-Extra"))
    links = re.findall(r"\]\(([^)]+)\)", told.get_payload())
    assert len(links) > 10
    assert all(link.startswith(("https://", "#")) for link in links)


def test_every_link_of_the_description_leads_to_a_file_of_the_repository(site):
    links = re.findall(r"\]\(https://[^)]+?/SlicerCaLID/(?:blob/)?main/([^)#]+)", metadata(site).get_payload())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_unpacked_wheel_has_its_models_and_its_demo_case(site, tmp_path):
    told = run(
        site,
        tmp_path,
        "-c",
        "import calid; from calid.method.weights import check_file, models_folder, read_manifest\n"
        "from calid.report.demo import CASE_FOLDER, read_demo\n"
        "print(calid.__file__, models_folder(), CASE_FOLDER, sep='\\n')\n"
        "for entry in read_manifest().values(): check_file(entry)\n"
        "sax, lax = read_demo(CASE_FOLDER); print(sax.num_slices, len(lax))",
    ).splitlines()
    assert all(Path(line).is_relative_to(site) for line in told[:3])
    assert told[3] == "6 5"


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment_with_all_extras(site, tmp_path):
    """`pip install` of the wheel and nothing else, then `calid demo`, the tests' smoke part, and what extras bring."""
    (wheel,) = site.parent.glob("calid-*.whl")
    python = tmp_path / "clean" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "clean")], check=True, env=outside())
    install(python, str(wheel))
    assert "torch" in said_by(python, tmp_path, "-m", "pip", "list")
    assert "6 slices became" in said_by(python, tmp_path, "-m", "calid", "demo", "out", "--every", "25")
    assert (tmp_path / "out" / "index.html").is_file()
    install(python, "pytest", "hypothesis")
    paths = [str(ROOT / "Testing" / "engine" / f"test_{name}.py") for name in SMOKE]
    told = said_by(python, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
    assert re.search(r"\d+ passed", told)
    assert "failed" not in told
    install(python, f"{wheel}[{','.join(EXTRAS)}]")
    for module in EXTRAS.values():
        said_by(python, tmp_path, "-c", f"import {module}")
    assert "calid" in said_by(python, tmp_path, "-m", "calid", "completion", "bash")
    assert "usage" in said_by(python, tmp_path, "-m", "calid_training.train", "--help").lower()


SMOKE = ("bisection", "diffusion", "function", "geometry", "library", "surfaces")
"""Parts of the engine's tests that need nothing but the engine, pytest and hypothesis."""

EXTRAS = {
    "cohort": "distributed",
    "completion": "shtab",
    "dicom": "highdicom",
    "mesh": "tetgen",
    "report": "calid.report",
    "training": "lightning",
}
"""Extras of the wheel, and a module that each brings."""


def outside() -> dict[str, str]:
    """The environment without anything that leads to this repository."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("CALID_")}


def install(python: Path, *what: str) -> None:
    """Let pip install, with the pinned versions; skips the test where it finds no index."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "requirements.lock"), *what]
    done = subprocess.run(pip, env=outside(), capture_output=True, text=True, check=False)
    if any(word in done.stderr for word in ("NewConnectionError", "Temporary failure", "No matching distribution")):
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def said_by(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, env=outside(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
