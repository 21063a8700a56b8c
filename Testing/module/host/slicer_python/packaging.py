"""Stand-in for `slicer.packaging`: reads requirements and says what is missing; it never installs."""

import importlib.metadata

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


def pip_ensure(requirements, prompt_install=True, requester=None, **_options):
    installed.append(([str(requirement) for requirement in requirements], prompt_install, requester))
