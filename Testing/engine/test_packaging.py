"""Containers, the conda recipe and scripts: what they name is there, linters find nothing, and their steps work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calid import __version__
from calid.method.weights import models_folder, read_manifest

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "examples").glob("*.sh"))]
CONDA_NAMES = {"torch": "pytorch"}
TORCH_INDEX = re.compile(r"https://download\.pytorch\.org/whl/(cpu|cu\d+)")


@pytest.fixture(scope="module")
def project() -> dict:
    """What pyproject.toml says of the project."""
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest of its line) of the Dockerfile, broken lines joined."""
    text = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined if line.strip())]


def apptainer() -> dict[str, list[str]]:
    """{section: its lines} of the Apptainer definition; the header under an empty name."""
    found: dict[str, list[str]] = {"": []}
    section = ""
    for line in (PACKAGING / "apptainer.def").read_text(encoding="utf-8").splitlines():
        if line.startswith("%"):
            section = line[1:].strip()
            found[section] = []
        elif line.strip() and not line.startswith("#"):
            found[section].append(line.strip())
    return found


def steps(kind: str) -> list[str]:
    """The commands that build an image."""
    return [rest for word, rest in dockerfile() if word == "RUN"] if kind == "docker" else apptainer()["post"]


def recipe() -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((PACKAGING / "conda" / "recipe.yaml").read_text(encoding="utf-8"))


# --- what they name is there ------------------------------------------------------------------------------------------


def test_the_images_are_made_of_files_of_this_repository():
    copied = [rest.split()[:-1] for word, rest in dockerfile() if word == "COPY" and "--from=" not in rest]
    taken = [line.split()[0] for line in apptainer()["files"]]
    names = {name for names in copied for name in names}
    assert names == set(taken)
    assert [name for name in names if not (ROOT / name).exists()] == []
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not names & set(left_out)
    stages = {rest.rpartition(" AS ")[2] for word, rest in dockerfile() if word == "FROM" and " AS " in rest}
    assert {re.match(r"--from=(\S+)", rest)[1] for _, rest in dockerfile() if rest.startswith("--from=")} == stages


@pytest.mark.parametrize("kind", ["docker", "apptainer"])
def test_an_image_installs_the_pinned_torch_and_extras_that_exist(project, kind):
    text = " && ".join(steps(kind))
    (extras,) = re.findall(r"calid-\*\.whl\)\[([^]]+)\]", text)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert re.findall(r'pip install --no-cache-dir "(hatchling[^"]+)"', text) == project["build-system"]["requires"]
    assert text.count("grep '^torch==' requirements.lock") == 1
    pinned = re.findall(r"^torch==(\S+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(pinned) == 1
    assert text.index("torch==") < text.index("--constraint requirements.lock")


def test_both_images_have_one_python_that_the_project_supports_and_the_same_index(project):
    bases = {rest.split()[0] for word, rest in dockerfile() if word == "FROM"}
    assert bases == {dict(line.split(": ") for line in apptainer()[""])["From"]}
    (base,) = bases
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]
    (argument,) = [rest for word, rest in dockerfile() if word == "ARG"]
    assert argument.lower() == apptainer()["arguments"][0]
    text = (PACKAGING / "Dockerfile").read_text() + (PACKAGING / "apptainer.def").read_text()
    named = re.findall(r"https://download\S+", text)
    assert {TORCH_INDEX.fullmatch(one)[1][:2] for one in named} == {"cp", "cu"}


def test_what_an_image_starts_is_a_command_of_the_project(project):
    entry = dict(dockerfile())["ENTRYPOINT"]
    assert entry == '["calid"]'
    assert apptainer()["runscript"] == ['exec calid "$@"']
    assert "calid" in project["project"]["scripts"]
    labels = dict(line.split(" ", 1) for line in apptainer()["labels"])
    assert labels["org.opencontainers.image.licenses"] == project["project"]["license"]


def test_commands_in_comments_scripts_and_the_recipe_are_commands():
    from calid.__main__ import build_parser

    texts = [path.read_text(encoding="utf-8") for path in (*PACKAGING.glob("*er*"), ROOT / "examples" / "Snakefile")]
    texts += [path.read_text(encoding="utf-8") for path in SCRIPTS] + [
        line for test in recipe()["tests"] for line in test.get("script", [])
    ]
    known = build_parser([])._subparsers._group_actions[0].choices
    typed = re.findall(r"(?:^|[ \"])calid(?::cuda|\.sif)? ([a-z]+)\b(?![/.])", "\n".join(texts), re.MULTILINE)
    assert len(typed) > 6
    assert set(typed) <= set(known)


def test_the_conda_recipe_asks_for_what_the_project_asks_for(project):
    told = recipe()
    assert told["context"]["version"] == __version__
    assert (PACKAGING / "conda" / told["source"]["path"]).resolve() == ROOT
    scripts = [f"{name} = {target}" for name, target in project["project"]["scripts"].items()]
    assert told["build"]["python"]["entry_points"] == scripts
    needed = [re.match(r"([\w-]+)(.*)", one).groups() for one in project["project"]["dependencies"]]
    wanted = {f"{CONDA_NAMES.get(name.lower(), name.lower())} {bound}" for name, bound in needed}
    python = f"python {project['project']['requires-python']}"
    assert set(told["requirements"]["run"]) == {*wanted, python}
    host = {one.replace("hatchling>=", "hatchling >=") for one in project["build-system"]["requires"]}
    assert set(told["requirements"]["host"]) == {python, "pip", *host}
    assert told["about"]["license"] == project["project"]["license"]
    assert (ROOT / told["about"]["license_file"]).is_file()


def test_the_version_is_the_same_wherever_it_is_told():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == __version__


def test_model_cards_begin_as_hugging_face_reads_them_with_the_manifests_license():
    yaml = pytest.importorskip("yaml")
    models = list(read_manifest().values())
    assert len(models) >= 3
    for model in models:
        begin, told, text = (models_folder() / model.card).read_text(encoding="utf-8").split("---\n", 2)
        card = yaml.safe_load(told)
        assert begin == ""
        assert text.strip().startswith(f"# Model card: `{model.name}`")
        assert card["license"] == model.license.lower()
        assert card["library_name"] == "calid"
        assert card["pipeline_tag"] in ("image-to-image", "image-segmentation")
        assert card.get("base_model", "") == model.base


def test_the_citation_names_the_paper_and_its_first_author():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= set(cited)
    (paper,) = cited["references"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["authors"][0]["family-names"] == "Bubeck"


# --- linters ----------------------------------------------------------------------------------------------------------


def linter(name: str) -> str:
    """Path of a program of the development extra, beside Python or anywhere."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def said(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    return done.stdout + done.stderr if done.returncode else ""


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert said(linter("hadolint"), str(PACKAGING / "Dockerfile")) == ""


def test_shellcheck_finds_nothing_in_scripts_and_in_the_images_steps():
    check = [linter("shellcheck"), "--severity", "style"]
    assert said(*check, *map(str, SCRIPTS)) == ""
    for kind in ("docker", "apptainer"):
        script = "\n".join(steps(kind)).replace("{{ torch_index }}", '"$TORCH_INDEX"')
        assert said(*check, "--shell", "sh", "--exclude", "SC2012", "-", input=f"#!/bin/sh\nset -e\n{script}\n") == ""


def test_rattler_build_makes_a_package_plan_of_the_recipe():
    rattler = pytest.importorskip("rattler_build")
    read = rattler.Stage0Recipe.from_file(PACKAGING / "conda" / "recipe.yaml")
    (made,) = read.render(rattler.VariantConfig(), rattler.RenderConfig())
    package = made.recipe.package
    assert (str(package.name), str(package.version)) == ("calid", __version__)


# --- the steps themselves ---------------------------------------------------------------------------------------------


def copied_to(folder: Path) -> None:
    """What the images are made of, as the repository has it."""
    names = [line.split()[0] for line in apptainer()["files"]]
    listed = subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["docker", "apptainer"])
@pytest.mark.skipif(os.name == "nt", reason="the images are Linux")
def test_the_steps_of_an_image_make_a_calid_that_answers(tmp_path, kind):
    """All but the base image and torch's own index: in a clean folder and environment, with the index that pip has."""
    source, wheels, clean = tmp_path / "source", tmp_path / "wheels", tmp_path / "clean"
    copied_to(source)
    wheels.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    shutil.copy2(source / "requirements.lock", wheels)
    environment = {"PATH": f"{clean / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin", "HOME": str(tmp_path)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    place = source
    for step in steps(kind) if kind == "apptainer" else dockerfile():
        if kind == "docker" and step[0] == "WORKDIR":
            place = {"/source": source, "/wheels": wheels, "/data": tmp_path}[step[1]]
        if kind == "docker" and step[0] != "RUN":
            continue
        command = step if kind == "apptainer" else step[1]
        command = re.sub(r'--index-url (?:"\$TORCH_INDEX"|\{\{ torch_index \}\})', "", command)
        command = command.replace("/tmp/wheels", str(wheels)).replace("-d /wheels", f"-d {wheels}")
        command = command.replace("cd /source", f"cd {source}").replace("/source ", f"{source} ")
        done = subprocess.run(
            ["sh", "-ec", command], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        if "No matching distribution" in done.stderr or "NewConnectionError" in done.stderr:
            pytest.skip("pip reaches no index")
        assert done.returncode == 0, done.stderr[-2000:]
    calid = str(clean / "bin" / "calid")
    asked = [calid, "info", "--device", "cpu"]
    told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert "calid-2d" in told.stdout
    demo = [calid, "demo", "out", "--every", "25"]
    subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert (tmp_path / "out" / "index.html").is_file()
