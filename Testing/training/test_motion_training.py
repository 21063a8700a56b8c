"""The motion between slices on phantoms, by the commands a user types: it learns, and the denoiser builds on it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
from calid.method.weights import below, find_model, read_motion, read_tensors
from calid_training.lpips import ALEXNET_VARIABLE, UnavailableError
from calid_training.train import main
from networks_at_hand import random_alexnet, saved_alexnet
from training_runs import SMALL_DENOISER, averaging, scalars, train, upsample_with, whole_and_resumed

FEW_STEPS = ["--data.batches", "4", "--data.batch_size", "2", "--data.validation_batches", "1"]
PLAIN_CROPS = ["--data.variety.gamma", "[0.8,1.25]", "--data.variety.white", "[1,1]", "--data.variety.shading", "0"]
PLAIN_CROPS += ["--data.variety.bend_mm", "0", "--data.variety.zoom", "[0.7,1.4]"]  # others take long to learn from


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    return phantom_set(6)


@pytest.fixture(scope="module")
def motion_run(hearts, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("motion")
    options = [
        *averaging(run, 0.9),
        *("--model.network.features", "[8,8,8,16,16,8]", "--model.learning_rate", "3e-3", "--model.warmup_steps", "10"),
        *("--model.anneals", "true", "--data.sizes", "[64]", "--data.batches", "60", "--data.validation_batches", "4"),
        *PLAIN_CROPS,
    ]
    train("motion", hearts, run, options, epochs=4)
    return run


@pytest.fixture(scope="module")
def motion_file(motion_run) -> Path:
    out = motion_run / "motion.safetensors"
    assert main(["export", "motion", "--run", str(motion_run), "--out", str(out)]) == 0
    return out


def test_neighbors_learn_to_arrive_on_the_slice_between(motion_run):
    linear, moved = (scalars(motion_run, f"val/psnr_{name}") for name in ("linear", "moved"))
    assert len(moved) == 4
    assert len(set(linear)) == 1
    assert moved[-1] > moved[0]
    assert moved[-1] > linear[-1] + 1.0


def test_the_exported_motion_is_the_trained_one(motion_run, motion_file):
    checkpoint = torch.load(motion_run / "checkpoints" / "last.ckpt", weights_only=True)
    motion = read_motion(motion_file)
    assert motion.config.features == (8, 8, 8, 16, 16, 8)
    for key, value in below(checkpoint["state_dict"], "network.").items():
        torch.testing.assert_close(motion.state_dict()[key], value, rtol=0, atol=0)


def test_a_resumed_run_with_muon_ends_where_an_uninterrupted_one_does(hearts, tmp_path):
    options = ["--model.network.features", "[8,16,16,16,16,8]", "--model.muon_rate", "2e-2", *FEW_STEPS]
    options += ["--data.sizes", "[64]", "--model.anneals", "false", *averaging(tmp_path, 0.5)]
    whole, resumed = whole_and_resumed("motion", hearts, tmp_path, options)
    assert len(resumed["optimizer_states"][0]["parts"]) == 2
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value)


def test_the_motion_learns_from_lpips_with_weights_at_hand(hearts, tmp_path, monkeypatch):
    monkeypatch.delenv(ALEXNET_VARIABLE, raising=False)
    options = ["--model.network.features", "[8,8,8,8,8,8]", *FEW_STEPS, "--model.perceptual_weight", "1"]
    options += ["--data.sizes", "[64]", "--trainer.log_every_n_steps", "1"]
    with pytest.raises(UnavailableError, match="no path to AlexNet's weights"):
        train("motion", hearts, tmp_path / "run", options, epochs=1)
    alexnet = saved_alexnet(tmp_path, random_alexnet())
    train("motion", hearts, tmp_path / "run", [*options, "--model.alexnet", str(alexnet)], epochs=1)
    assert len(scalars(tmp_path / "run", "train/lpips")) == 4
    out = tmp_path / "motion.safetensors"
    assert main(["export", "motion", "--run", str(tmp_path / "run"), "--out", str(out)]) == 0
    assert not any("lpips" in key for key in read_tensors(out)[0])


def test_a_denoiser_of_moved_neighbors_ships_with_their_motion(hearts, motion_file, random_models, tmp_path):
    run, models = tmp_path / "denoiser", tmp_path / "models"
    models.mkdir()
    parts = ["--model.autoencoder", str(random_models / "calid-2d.safetensors"), "--model.motion", str(motion_file)]
    options = [*SMALL_DENOISER, *FEW_STEPS, *parts, "--model.network.anchored", "true"]
    train("denoiser", hearts, run, options, epochs=1)
    assert main(["export", "model", "--run", str(run), "--models", str(models), "--license", "CC0-1.0"]) == 0
    config = find_model("calid-2d", models).config
    assert config["motion"]["features"] == [8, 8, 8, 16, 16, 8]
    assert config["denoiser"]["anchored"]
    assert config["strength"] == {"detail": 0.3, "fidelity": 0.6}
    shipped = below(read_tensors(models / "calid-2d.safetensors")[0], "motion.")
    for key, value in read_motion(motion_file).state_dict().items():
        torch.testing.assert_close(shipped[key], value, rtol=1e-3, atol=1e-6)
    upsample_with(models, tmp_path)


def test_a_finished_model_ships_with_another_motion(motion_file, random_models, tmp_path):
    finished = random_models / "calid-2d.safetensors"
    command = ["export", "model", "--model", str(finished), "--motion", str(motion_file), "--models", str(tmp_path)]
    command += ["--license", "CC0-1.0"]
    assert main(command) == 0
    entry, old = find_model("calid-2d", tmp_path), find_model("calid-2d", random_models)
    assert entry.config["motion"]["features"] == [8, 8, 8, 16, 16, 8]
    assert entry.config == {**old.config, "motion": entry.config["motion"]}  # its strength among the rest
    before, after = (read_tensors(folder / "calid-2d.safetensors")[0] for folder in (random_models, tmp_path))
    moving = below(after, "motion.")
    assert len(before) - len(below(before, "motion.")) == len(after) - len(moving)
    for key, value in read_motion(motion_file).state_dict().items():
        torch.testing.assert_close(moving[key], value, rtol=1e-3, atol=1e-6)
    for part in ("denoiser.", "latent_space."):
        for key, value in below(before, part).items():
            torch.testing.assert_close(below(after, part)[key], value, rtol=1e-3, atol=1e-6)


def test_the_motion_that_ships_learns_from_one_crop_of_32_pixels():
    """The smallest that the engine shows it: its deepest level is then a single place."""
    from calid.method.motion import Motion, MotionConfig
    from calid.run.region import MIN_PADDED_PIXELS

    assert MIN_PADDED_PIXELS == 32
    motion, images = Motion(MotionConfig()).train(), torch.rand(2, 1, 1, 32, 32)
    fields = motion(*images)
    assert fields.before.shape == (1, 2, 32, 32)
    fields.before.square().mean().add(fields.after.sum()).backward()
    learned = motion.unet.final_conv.weight.grad
    assert learned is not None
    assert learned.isfinite().all()
    assert learned.any()


def test_a_part_is_no_finished_model(motion_file, tmp_path):
    with pytest.raises(ValueError, match=r"motion\.safetensors is no whole model"):
        main(["export", "model", "--model", str(motion_file), "--models", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_finished_models_denoiser_is_trained_on(hearts, random_models, tmp_path):
    finished = random_models / "calid-2d.safetensors"
    options = [*SMALL_DENOISER, *FEW_STEPS, "--model.network.anchored", "false", "--model.network.num_res_blocks", "1"]
    options += [part for name in ("autoencoder", "motion", "start") for part in (f"--model.{name}", str(finished))]
    train("denoiser", hearts, tmp_path, [*options, "--model.learning_rate", "0"], epochs=1)
    learned = below(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"], "network.")
    for key, value in below(read_tensors(finished)[0], "denoiser.").items():
        torch.testing.assert_close(learned[key], value, rtol=0, atol=1e-6)
