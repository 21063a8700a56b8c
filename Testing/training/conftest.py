"""What the tests share: prepared phantom patients to train on and to judge by, and random models of every kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with the set "phantom": two patients, seven slices 16 mm apart, labeled."""
    pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")
    from calid_training.datasets import RawCase
    from calid_training.prepare import write_cases
    from phantoms import beating_case

    folder, cases = tmp_path_factory.mktemp("prepared"), []
    for number in range(2):
        stack, labels = (thinned(one.frame(0)) for one in beating_case(seed=number))
        cases.append(RawCase("phantom", f"{number}", "ED", "test", stack, labels, (1, 2, 3)))
    write_cases(cases, folder)
    return folder


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes prepared folders to train on: the set "phantom" with some patients, the last one for validation."""
    from calid_training.datasets import RawCase
    from calid_training.prepare import write_cases
    from phantoms import beating_case

    @cache
    def made(patients: int, *, still: bool = False) -> Path:
        folder, cases = tmp_path_factory.mktemp("phantoms"), []
        for number in range(patients):
            stack, labels = (one.frame(0) if still else one for one in beating_case(seed=number))
            split = "validation" if number == patients - 1 else "train"
            cases.append(RawCase("phantom", f"{number}", "ED" if still else "cine", split, stack, labels, (1, 2, 3)))
        write_cases(cases, folder)
        return folder

    return made


def thinned(stack):
    """Every second slice."""
    affine = stack.affine.copy()
    affine[:3, 2] *= 2
    return replace(stack, voxels=stack.voxels[:, ::2], affine=affine, generated=None)


@pytest.fixture(scope="session")
def asked(prepared: Path) -> list:
    """The questions about the two patients."""
    from calid_benchmark.tables.questions import questions
    from calid_training.prepare import load_cases

    return questions(load_cases(prepared, datasets=["phantom"], split="test"))


@pytest.fixture(scope="session")
def all_random_models(random_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_models` with an untrained segmenter beside the interpolation model."""
    import torch
    from calid.heart.medformer import COMPACT, MedFormer
    from calid_training.weight_files import write_model

    folder = tmp_path_factory.mktemp("all-models") / "models"
    shutil.copytree(random_models, folder)
    torch.manual_seed(0)
    config = {"network": asdict(COMPACT), "pixel_mm": 1.5, "mirrored": False}
    write_model(folder, "segmenter", MedFormer(COMPACT).state_dict(), config, license="none", trained_on="nothing")
    return folder
