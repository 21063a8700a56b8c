"""Both stages on phantoms, end to end through the commands a user types: they learn, resume and export what runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
import yaml
from calid.files import write_stack
from calid.stack import Stack
from calid_training.datasets import Case
from calid_training.prepare import write_cases
from calid_training.train import CONFIGS, main
from phantoms import beating_case
from training_runs import SMALL_DENOISER, averaging, scalars, train

VALIDATION = ["--data.validation_batches", "4"]
AUTOENCODER = [*VALIDATION, "--model.network.channels", "[8,16,16]", "--model.network.norm_num_groups", "8"]
# An anchored denoiser starts where there is little left to learn.
DENOISER = [*VALIDATION, *SMALL_DENOISER, "--model.network.anchored", "false"]


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    """Computed hearts of six patients as a prepared set."""
    return phantom_set(6)


@pytest.fixture(scope="module")
def autoencoder_run(hearts, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("autoencoder")
    train("autoencoder", hearts, run, [*AUTOENCODER, "--data.batches", "60", *rates(2e-3, 20)], epochs=3)
    return run


@pytest.fixture(scope="module")
def autoencoder_file(autoencoder_run, hearts) -> Path:
    out = autoencoder_run / "autoencoder.safetensors"
    assert (
        main(["export", "autoencoder", "--run", str(autoencoder_run), "--prepared", str(hearts), "--out", str(out)])
        == 0
    )
    return out


def rates(rate: float, warmup: int) -> list[str]:
    return ["--model.learning_rate", str(rate), "--model.warmup_steps", str(warmup)]


def test_the_autoencoder_learns(autoencoder_run):
    curve = scalars(autoencoder_run, "val/psnr")
    assert len(curve) == 3
    assert curve[-1] > curve[0] + 1.0
    assert curve[-1] > 15


def test_the_discriminator_takes_part_once_it_starts(hearts, tmp_path):
    options = [
        *AUTOENCODER,
        "--data.batches",
        "8",
        "--model.adversarial_start",
        "4",
        "--trainer.log_every_n_steps",
        "1",
    ]
    train("autoencoder", hearts, tmp_path, options, epochs=1)
    assert len(scalars(tmp_path, "train/l1")) == 8
    assert len(scalars(tmp_path, "train/discriminator")) == 4


def test_latents_are_normalised_over_the_training_crops(autoencoder_file):
    from calid.weights import read_latent_space

    space = read_latent_space(autoencoder_file)
    assert space.mean.shape == (1, 4, 1, 1)
    assert (space.std > 0).all()


def test_the_denoiser_learns_resumes_and_ships(hearts, autoencoder_file, tmp_path):
    run, models = tmp_path / "denoiser", tmp_path / "models"
    models.mkdir()
    options = [*DENOISER, *averaging(tmp_path, 0.9), "--model.autoencoder", str(autoencoder_file)]
    options += ["--model.motion", "null", "--data.batches", "60", *rates(2e-3, 20)]
    train("denoiser", hearts, run, options, epochs=1)
    half = scalars(run, "val/psnr_one_step")
    train("denoiser", hearts, run, options, epochs=3)  # the same command with a later end: it goes on, not anew
    curve = scalars(run, "val/psnr_one_step")
    assert curve[: len(half)] == half
    assert len(curve) == 3
    assert curve[-1] > curve[0] + 1.0
    assert scalars(run, "train/loss")[-1] < scalars(run, "train/loss")[0]

    assert main(["export", "model", "--run", str(run), "--models", str(models), "--trained-on", "phantoms"]) == 0
    entry = json.loads((models / "models.json").read_text())["models"][0]
    assert entry["trained_on"] == "phantoms"
    stack, _ = beating_case(seed=9)
    sparse, dense = tmp_path / "sparse.nrrd", tmp_path / "dense.nrrd"
    write_stack(stack, sparse)
    from calid.__main__ import main as calid

    assert (
        calid(["upsample", str(sparse), str(dense), "--factor", "2", "--models", str(models), "--device", "cpu"]) == 0
    )


def test_training_never_sees_a_validation_patient(hearts):
    from calid_training.data import TripletData

    data = TripletData(prepared=hearts, datasets=("phantom",), sizes=(32,), size_weights=(1.0,))
    data.setup("fit")
    drawn = {triplet.case.entry.patient for triplet in data.train_stream.sources}
    checked = {triplet.case.entry.patient for triplet in data.validation_stream.sources}
    assert drawn == {"0", "1", "2", "3", "4"}
    assert checked == {"5"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds_its_networks(path):
    """Widths, groups, heads and levels of the shipped settings fit together, on tensors without storage."""
    from calid.motion import Motion, MotionConfig
    from calid.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig
    from calid.weights import config_from

    settings = yaml.safe_load(path.read_text())
    network = settings.get("model", {}).get("network")
    kind = next((name for name in ("autoencoder", "denoiser", "motion") if name in path.stem), None)
    if network is None or kind is None:
        return
    with torch.device("meta"):
        if kind == "autoencoder":
            built = Autoencoder(config_from(AutoencoderConfig, network))
            images = torch.empty(1, 1, *[64] * built.config.spatial_dims)
            assert built.encode(images)[0].shape[-1] == 16
        elif kind == "motion":
            images = torch.empty(1, 1, 64, 64)
            fields = Motion(config_from(MotionConfig, network))(images, images)
            assert fields.before.shape == fields.after.shape == (1, 2, 64, 64)
        else:
            config = config_from(DenoiserConfig, network | {"prediction": settings["model"]["prediction"]})
            built = Denoiser(config)
            z = torch.empty(1, config.latent_channels, 16, 16)
            z_c = built.condition(torch.empty(1, 1, 64, 64), torch.empty(1, 1, 64, 64), (z, z))
            assert built(z, torch.zeros(1, dtype=torch.long), z_c).shape == z.shape


def test_a_stack_of_two_slices_has_no_triplets(tmp_path):
    from calid_training.crops import triplets
    from calid_training.prepare import load_cases

    thin = Stack(np.random.default_rng(0).random((1, 2, 32, 32)), np.diag([1.5, 1.5, 9, 1]))
    write_cases([Case("phantom", "0", "ED", "train", thin)], tmp_path)
    assert triplets(list(load_cases(tmp_path, datasets=["phantom"], split="train"))) == []
