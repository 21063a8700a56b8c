"""CaLID as a Python library: lazy, typed, and documented by examples that run."""

from __future__ import annotations

import doctest
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import calid
import numpy as np
import phantoms
import pytest
from calid import library
from calid.errors import SettingsError
from test_reconstruct import cine


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.strip()


def test_importing_calid_takes_less_than_a_third_of_a_second_and_loads_no_package():
    """In seconds of the processor, whatever else keeps it busy."""
    told = run_python(
        "import sys, time; start = time.process_time(); import calid; print(time.process_time() - start);"
        "print(sorted({'numpy', 'scipy', 'torch', 'monai', 'vtkmodules', 'SimpleITK', 'pydicom'} & set(sys.modules)))"
    )
    seconds, loaded = told.splitlines()
    assert float(seconds) < 0.3
    assert loaded == "[]"


def test_threads_that_wait_soon_give_their_core_away_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    told = "import os, calid; print(os.environ['GOMP_SPINCOUNT'])"
    assert int(run_python(told)) <= 1000
    assert run_python(told, GOMP_SPINCOUNT="7") == "7"


def test_reading_and_writing_a_file_needs_neither_torch_nor_monai_nor_vtk(tmp_path):
    calid.write(cine(frames=1), tmp_path / "sparse.nrrd")
    told = run_python(
        f"import sys, calid; stack = calid.read({str(tmp_path / 'sparse.nrrd')!r})\n"
        f"calid.write(stack, {str(tmp_path / 'again.nii.gz')!r})\n"
        "print(stack.num_slices, sorted({'torch', 'monai', 'vtkmodules'} & set(sys.modules)))"
    )
    assert told == "3 []"
    np.testing.assert_allclose(calid.read(tmp_path / "again.nii.gz").affine, cine(frames=1).affine, atol=1e-3)


def test_the_examples_in_the_documentation_run(tmp_path):
    calid.write(cine(frames=1), tmp_path / "sparse.nrrd")
    known = {
        "sparse_path": tmp_path / "sparse.nrrd",
        "folder": tmp_path,
        "heart_labels": phantoms.heart_labels(contractions=(1.0, 0.8)),
    }
    results = doctest.testmod(library, extraglobs=known)
    assert results.failed == 0
    assert results.attempted >= 10


def test_every_function_of_the_library_says_the_types_it_takes_and_gives_and_is_offered_by_the_package():
    functions = [name for name, _ in inspect.getmembers(library, inspect.isfunction) if not name.startswith("_")]
    functions = [name for name in functions if getattr(library, name).__module__ == "calid.library"]
    assert len(functions) >= 8
    for name in functions:
        function = getattr(calid, name)
        assert function is getattr(library, name)
        assert name in calid.__all__
        assert set(function.__annotations__) == {*inspect.signature(function).parameters, "return"}
        assert function.__doc__
    assert (Path(calid.__file__).parent / "py.typed").is_file()
    assert get_type_hints(calid.Stack.frame)["return"] is calid.Stack


def test_a_stack_in_a_shell_is_one_line_without_its_voxels():
    dense = calid.upsample(cine(frames=2, slices=3, size=(40, 56)), factor=2, method="linear")
    told = "2 frame(s) of 5 slices (3 acquired), 56 x 40 pixels, int16, 1.40 x 1.40 x 4.50 mm"
    assert repr(dense) == f"<Stack of {told}>"


def test_upsampling_with_a_model_gives_draws_and_their_spread(random_models):
    sax = cine(frames=1)
    dense, spread = calid.uncertainty(sax, factor=2, steps=1, samples=2, device="cpu", models_folder=random_models)
    assert dense.voxels.shape == spread.voxels.shape == (1, 5, *sax.voxels.shape[2:])
    np.testing.assert_array_equal(dense.voxels[:, ::2], sax.voxels)
    assert (spread.voxels[:, ::2] == 0).all()
    assert spread.voxels[:, 1::2].max() > 0


def test_a_setting_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(SettingsError, match=r"no setting 'faktor'.*factor"):
        calid.upsample(cine(frames=1), faktor=4)
    with pytest.raises(SettingsError, match="no uncertainty"):
        calid.uncertainty(cine(frames=1), method="linear")
    with pytest.raises(AttributeError, match="upsmaple"):
        calid.upsmaple  # noqa: B018 (asking is what is tested)
