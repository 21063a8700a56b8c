"""The command line as a user types it; one run in a process of its own, the rest in this one for speed."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calid.__main__ import main
from calid.images.files import read_stack, write_stack
from test_reconstruct import cine


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "sparse.nrrd"
    write_stack(cine(frames=1), path)
    return path


def test_upsample_writes_a_dense_stack_that_says_what_it_is(sparse, tmp_path, random_models, capsys):
    out = tmp_path / "dense.nrrd"
    options = ["--factor", "4", "--steps", "1", "--device", "cpu", "--models", str(random_models)]
    assert main(["upsample", str(sparse), str(out), *options]) == 0
    dense = read_stack(out)
    assert dense.num_slices == 9
    np.testing.assert_array_equal(dense.voxels[:, ::4], read_stack(sparse).voxels)
    assert dense.provenance["factor"] == 4
    np.testing.assert_array_equal(np.flatnonzero(~dense.generated), [0, 4, 8])
    assert "3 slices became 9" in capsys.readouterr().out


def test_uncertainty_is_written_beside(sparse, tmp_path, random_models):
    out, spread = tmp_path / "dense.nii.gz", tmp_path / "spread.nii.gz"
    options = ["--factor", "2", "--steps", "1", "--samples", "2", "--models", str(random_models)]
    assert main(["upsample", str(sparse), str(out), *options, "--uncertainty", str(spread)]) == 0
    assert read_stack(spread).voxels.shape == read_stack(out).voxels.shape


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--factor", "3"], "factor"),
        (["--factor", "two"], "factor"),
        (["--steps", "0"], "steps"),
        (["--roi", "5:2,0:9"], "region"),
        (["--roi", "nonsense"], "roi"),
        (["--frames", "0:7"], "frames"),
        (["--frames", "1"], "frames"),
        (["--samples", "-1"], "samples"),
        (["--method", "cubic"], "method"),
        (["--device", "abacus"], "device"),
        (["--unknown"], "--unknown"),
        (["--uncertainty", "DENSE"], "twice"),
        (["--uncertainty", "spread.seg.nrrd"], "segmentation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line_and_leave_nothing(sparse, tmp_path, random_models, capsys, options, said):
    out = tmp_path / "dense.nrrd"
    options = [str(out) if option == "DENSE" else option for option in options]
    try:
        code = main(["upsample", str(sparse), str(out), "--models", str(random_models), *options])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.count("\n") == 1
    assert shown.startswith("calid: error: ")
    assert said in shown
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.nrrd"]


def test_warnings_are_told_and_do_not_stop_the_run(sparse, tmp_path, caplog):
    once, twice = tmp_path / "once.nrrd", tmp_path / "twice.nrrd"
    linear = ["--method", "linear", "--factor", "2"]
    assert main(["upsample", str(sparse), str(once), *linear]) == 0
    assert "generated" not in caplog.text
    assert main(["upsample", str(once), str(twice), *linear]) == 0
    assert "generated" in caplog.text


def test_an_upsampled_input_is_told_apart_from_the_new_run(sparse, tmp_path, random_models):
    once, twice = tmp_path / "once.nrrd", tmp_path / "twice.nrrd"
    model = ["--steps", "1", "--models", str(random_models)]
    assert main(["upsample", str(sparse), str(once), "--factor", "2", *model]) == 0
    assert main(["upsample", str(once), str(twice), "--factor", "2", "--method", "linear"]) == 0
    facts = read_stack(twice).provenance
    assert facts["method"] == "linear"
    assert facts["acquired_slices"] == 3
    assert "model" not in facts
    assert facts["input"]["model"] == "calid-2d"


def test_a_result_that_cannot_be_written_leaves_no_uncertainty_behind(sparse, tmp_path, random_models, monkeypatch):
    import calid.run.job
    from calid.errors import OutputError

    def full(stack, path, **options):
        if path.name == "dense.nrrd":
            raise OutputError("disk-full", "There is no room.", "Free some.")
        write_stack(stack, path, **options)

    monkeypatch.setattr(calid.run.job, "write_stack", full)
    options = ["--factor", "2", "--steps", "1", "--samples", "2", "--models", str(random_models)]
    spread = ["--uncertainty", str(tmp_path / "spread.nrrd")]
    assert main(["upsample", str(sparse), str(tmp_path / "dense.nrrd"), *options, *spread]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.nrrd"]


def test_a_disk_that_is_full_is_said_of_the_file_that_was_asked_for(
    sparse, tmp_path, random_models, monkeypatch, capsys
):
    import calid.images.volume_out

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(calid.images.volume_out, "_pieces", full)
    options = ["--factor", "2", "--steps", "1", "--samples", "2", "--models", str(random_models)]
    spread = tmp_path / "spread.nrrd"
    assert main(["upsample", str(sparse), str(tmp_path / "dense.nrrd"), *options, "--uncertainty", str(spread)]) == 2
    assert f"no room to write {spread}." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.nrrd"]


@pytest.fixture
def worked(random_models, monkeypatch) -> list:
    """The slices that were made, by a model that only takes note; it is the one that runs use."""
    made = []
    monkeypatch.setenv("CALID_MODELS", str(random_models))
    monkeypatch.setattr("calid.run.reconstruct.Generation", lambda *_: made.append(True))
    return made


@pytest.mark.parametrize("long", ["dense", "spread"])
def test_a_name_that_the_disk_cannot_hold_is_found_before_the_work(tmp_path, worked, capsys, long):
    write_stack(cine(), tmp_path / "sparse.nrrd")
    dense, spread = (tmp_path / f"{name * (62 if name == long else 1)}.nii.gz" for name in ("dense", "spread"))
    assert main(["upsample", str(tmp_path / "sparse.nrrd"), str(dense), "--uncertainty", str(spread)]) == 2
    assert "bytes; 255 are possible" in (said := capsys.readouterr().err)
    assert "Choose a shorter name" in said
    assert not worked


@pytest.mark.parametrize("long", ["dense", "spread"])
def test_a_history_that_metaimage_cannot_hold_is_found_before_the_work(tmp_path, worked, capsys, long):
    sparse = tmp_path / "sparse.mha"
    write_stack(cine().noted(log="x" * 19_900), sparse)  # what the run adds to it is too much
    dense, spread = (tmp_path / f"{name}.{'mha' if name == long else 'nrrd'}" for name in ("dense", "spread"))
    assert main(["upsample", str(sparse), str(dense), "--uncertainty", str(spread)]) == 2
    assert "calid_provenance has 2" in (said := capsys.readouterr().err)
    assert "Write .nrrd" in said
    assert not worked


def test_help_says_that_the_uncertainty_changes_fidelity(capsys):
    with pytest.raises(SystemExit):
        main(["upsample", "--help"])
    mode, uncertainty = (
        " ".join(text.split())
        for text in re.findall(r"(?s)\n  --(?:mode|uncertainty) (.*?)\n  --", capsys.readouterr().out)
    )
    assert "with --uncertainty it is the mean of --samples whole draws, another result" in mode
    assert "with --mode fidelity this changes OUTPUT" in uncertainty


@pytest.mark.parametrize("words", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory: 9 bytes"])
def test_a_run_that_does_not_fit_the_memory_says_what_to_do(sparse, tmp_path, monkeypatch, capsys, words):
    def starved(*_, **__):
        raise RuntimeError(words)

    monkeypatch.setattr("calid.run.job.upsample", starved)
    assert main(["upsample", str(sparse), str(tmp_path / "dense.nrrd"), "--method", "linear"]) == 2
    assert "not enough memory" in capsys.readouterr().err


def test_the_smallest_region_is_made(sparse, tmp_path, random_models):
    options = ["--factor", "2", "--steps", "1", "--roi", "10:26,10:26", "--models", str(random_models)]
    assert main(["upsample", str(sparse), str(tmp_path / "dense.nrrd"), *options]) == 0


def test_a_demo_replaces_nothing_unless_asked(tmp_path, capsys):
    (tmp_path / "lax.png").write_text("precious")
    assert main(["demo", str(tmp_path)]) == 2
    assert "lax.png" in capsys.readouterr().err
    assert main(["demo", str(tmp_path / "new"), "--every", "0"]) == 2
    assert main(["demo", str(tmp_path / "lax.png" / "below")]) == 2
    assert (tmp_path / "lax.png").read_text() == "precious"


def test_nothing_is_overwritten_unless_asked(sparse, tmp_path, capsys):
    out = tmp_path / "dense.nrrd"
    out.write_text("precious")
    assert main(["upsample", str(sparse), str(out), "--method", "linear"]) == 2
    assert out.read_text() == "precious"
    assert "overwrite" in capsys.readouterr().err
    assert main(["upsample", str(sparse), str(out), "--method", "linear", "--overwrite"]) == 0
    assert read_stack(out).num_slices > 3


def test_a_defect_of_ours_is_one_line_too(sparse, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("surprise")

    monkeypatch.delenv("CALID_DEBUG", raising=False)
    monkeypatch.setattr("calid.run.job.upsample", broken)
    assert main(["upsample", str(sparse), str(tmp_path / "dense.nrrd"), "--method", "linear"]) == 1
    shown = capsys.readouterr().err
    assert "KeyError" in shown
    assert "Traceback" not in shown


def test_the_command_runs_as_a_module_in_a_process_of_its_own(sparse, tmp_path):
    out = tmp_path / "dense.mha"
    command = [sys.executable, "-m", "calid", "upsample", str(sparse), str(out), "--method", "linear", "--factor", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_stack(out).num_slices == 5


def run_calid(*arguments: str, shell: str = "") -> subprocess.CompletedProcess:
    """A process of its own, from a shell where streams are closed or piped."""
    command = " ".join([f'"{sys.executable}" -m calid', *arguments, shell])
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", ["2>&-", ">&-", ">&- 2>&-", "| true"])
def test_a_run_whose_words_nobody_reads_is_done_all_the_same(sparse, tmp_path, shell):
    out = tmp_path / "dense.nrrd"
    done = run_calid("upsample", str(sparse), str(out), "--method", "linear", "--factor", "2", shell=shell)
    assert done.returncode == 0, done.stderr
    assert read_stack(out).num_slices == 5
    assert "Traceback" not in done.stderr


def test_info_names_device_and_models(random_models, monkeypatch, capsys):
    monkeypatch.setenv("CALID_MODELS", str(random_models))
    assert main(["info", "--device", "cpu"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == "CPU (as asked)"
    assert [model["name"] for model in shown["models"]] == ["calid-2d"]
    assert "problem" not in shown["models"][0]


def test_info_finds_damaged_weights(random_models, tmp_path, monkeypatch, capsys):
    shutil.copytree(random_models, tmp_path / "models")
    with (tmp_path / "models" / "calid-2d.safetensors").open("ab") as file:
        file.write(b"more")
    monkeypatch.setenv("CALID_MODELS", str(tmp_path / "models"))
    assert main(["info", "--device", "cpu"]) == 0
    assert "SHA-256" in json.loads(capsys.readouterr().out)["models"][0]["problem"]
