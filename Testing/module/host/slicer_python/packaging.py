"""Stand-in for `slicer.packaging`: reads requirements and says what is missing; it never installs."""

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement

installed = []


def load_requirements(path):
    with open(path, encoding="utf-8") as file:
        lines = [line.split("#")[0].strip() for line in file]
    return [Requirement(line) for line in lines if line]


def pip_check(requirement):
    requirement = Requirement(str(requirement))
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def pip_ensure(
    requirements,
    constraints=None,
    skip_packages=None,
    prompt_install=True,
    prompt_restart=True,
    requester=None,
    skip_in_testing=True,
    show_progress=True,
):
    del skip_packages, prompt_install, prompt_restart, requester, skip_in_testing, show_progress
    lines = Path(constraints).read_text(encoding="utf-8").splitlines() if constraints else []
    installed.append(([str(requirement) for requirement in requirements], lines))
