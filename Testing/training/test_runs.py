"""Run folders: what a kill, a copy, a move, another logger or less precise hardware does to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
from calid.method.weights import read_tensors
from calid_training import precision, runs
from calid_training.licenses import license_of_weights
from calid_training.runs import DamagedRunError, WholeFiles, newest_checkpoint, run_config
from calid_training.train import main
from training_runs import train

MOTION = ["--data.batches", "3", "--data.validation_batches", "1", "--data.batch_size", "2"]
MOTION += ["--model.network.features", "[8,8,8,8,8,8]", "--model.network.norm_num_groups", "8"]


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    return phantom_set(2, still=True)


def checkpoint(folder: Path, name: str, step: int) -> Path:
    path = folder / runs.CHECKPOINTS / name
    WholeFiles().save_checkpoint({"global_step": step, "state_dict": {"x": torch.zeros(1000)}}, path)
    return path


def test_a_copied_run_goes_on_under_the_same_names_and_is_exported_with_its_newest_weights(hearts, tmp_path, capsys):
    """With a logger that keeps no configuration; the copy's checkpoints still name the folder that they came from."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = [*MOTION, "--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    options += ["--trainer.logger.save_dir", str(tmp_path / "elsewhere")]
    train("motion", hearts, first, options, epochs=1)
    assert f"starts in {first}" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in (first / runs.CHECKPOINTS).iterdir()}
    shutil.copytree(first, second)
    for _ in range(2):  # going on with an ended run changes nothing
        train("motion", hearts, second, options, epochs=2)
    assert f"goes on from {second / runs.CHECKPOINTS / 'last.ckpt'}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (first / runs.CHECKPOINTS).iterdir()} == before
    assert not list(second.rglob("last-v*.ckpt"))
    newest = torch.load(newest_checkpoint(second), weights_only=True)
    assert newest["global_step"] == 6
    assert [start["config"]["trainer"]["max_epochs"] for start in newest[runs.RECORD_KEY]["starts"]] == [1, 2]
    out = tmp_path / "motion.safetensors"
    assert main(["export", "motion", "--run", str(second), "--out", str(out)]) == 0
    name = "network.unet.final_conv.weight"
    exported = next(value for key, value in read_tensors(out)[0].items() if key.endswith("final_conv.weight"))
    torch.testing.assert_close(exported, newest["state_dict"][name])


def test_the_checkpoint_with_the_most_steps_is_the_newest_whatever_its_name_and_time(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    checkpoint(tmp_path, "last-v1.ckpt", 20)
    checkpoint(tmp_path, "last.ckpt", 10)  # stale, though it was written last
    assert newest_checkpoint(tmp_path).name == "last-v1.ckpt"
    checkpoint(tmp_path, "epoch=3-step=30.ckpt", 30)  # a kill came before the last one was written
    assert newest_checkpoint(tmp_path).name == "epoch=3-step=30.ckpt"


def test_a_damaged_checkpoint_is_passed_over_and_only_damaged_ones_are_an_error(tmp_path):
    whole = checkpoint(tmp_path, "epoch=0-step=10.ckpt", 10)
    half = checkpoint(tmp_path, "last.ckpt", 20)
    half.write_bytes(half.read_bytes()[:2000])
    assert newest_checkpoint(tmp_path) == whole
    whole.write_bytes(b"")
    with pytest.raises(DamagedRunError, match=r"None of the 2 checkpoint.* remove them to start anew"):
        newest_checkpoint(tmp_path)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = checkpoint(tmp_path, "last.ckpt", 10)

    def killed(_, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        WholeFiles().save_checkpoint({"global_step": 20}, path)
    assert newest_checkpoint(tmp_path) == path
    assert torch.load(path, weights_only=True)["global_step"] == 10


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml: give the folder of a run"):
        run_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no newest checkpoint"):
        runs.read_checkpoint(tmp_path)


def test_bfloat16_is_for_hardware_that_has_it_and_what_is_used_instead_is_said(monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision.torch.backends.mps, "is_available", lambda: False)
    for has_it, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(precision.torch.cpu, "_is_avx512_bf16_supported", lambda has_it=has_it: has_it)
        found, reason = precision.suited("bf16-mixed")
        assert found == expected
        assert bool(reason) == (not has_it)
    assert "this processor has no bfloat16" in reason
    assert precision.suited("16-mixed") == ("16-mixed", "")


def test_weights_get_the_license_that_their_data_ask_for():
    assert license_of_weights(["chla", "sunnybrook", "autofd"]) == "CC-BY-4.0"
    assert license_of_weights(["chla"], asked="CC0-1.0") == "CC0-1.0"
    assert license_of_weights(["chla", "acdc"]) == "CC-BY-NC-SA-4.0"
    assert license_of_weights(["chla"], ["CC-BY-NC-SA-4.0"]) == "CC-BY-NC-SA-4.0"
    with pytest.raises(ValueError, match=r"carry CC-BY-NC-SA-4\.0, which does not allow MIT"):
        license_of_weights(["acdc"], asked="MIT")
    with pytest.raises(ValueError, match="the terms of ukbb do not say"):
        license_of_weights(["chla", "ukbb"])
    assert license_of_weights(["ukbb"], asked="LicenseRef-UK-Biobank-MTA") == "LicenseRef-UK-Biobank-MTA"
