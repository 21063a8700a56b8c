"""Both stages on phantoms, end to end through the commands a user types: they learn, resume and export what runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
import yaml
from calid.method.weights import read_tensors
from calid.stack import Stack
from calid_training.datasets import RawCase
from calid_training.lpips import UnavailableError
from calid_training.prepare import write_cases
from calid_training.stages import CONFIGS, all_stages
from calid_training.train import main
from networks_at_hand import random_alexnet, saved_alexnet
from training_runs import (
    ON_CPU,
    SMALL_CROPS,
    SMALL_DENOISER,
    averaging,
    scalars,
    train,
    upsample_with,
    whole_and_resumed,
)

VALIDATION = ["--data.validation_batches", "4"]
AUTOENCODER = [*VALIDATION, "--model.network.channels", "[8,16,16]", "--model.network.norm_num_groups", "8"]
DEEPRECON = [
    *("--model.generator.channels", "[16,16,16,8]", "--model.generator.style_width", "16"),
    *("--model.encoder.channels", "[8,16,16]", "--model.encoder.pyramid_channels", "8", "--model.encoder.groups", "4"),
    *("--data.predictions", "null"),
]
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


def test_the_autoencoder_is_trained_with_lpips_from_weights_at_hand_and_over_several_batches(hearts, tmp_path):
    options = [*AUTOENCODER, "--data.batches", "5", "--trainer.log_every_n_steps", "1", "--model.accumulate", "2"]
    options += ["--model.perceptual", "alex", "--model.adversarial_start", "1"]
    with pytest.raises(UnavailableError, match="no path to AlexNet's weights"):
        train("autoencoder", hearts, tmp_path, options, epochs=1)
    alexnet = saved_alexnet(tmp_path, random_alexnet())
    train("autoencoder", hearts, tmp_path, [*options, "--model.alexnet", str(alexnet)], epochs=1)
    assert len(scalars(tmp_path, "train/perceptual")) == 5
    assert len(scalars(tmp_path, "train/discriminator")) == 3, "it comes after the first step, of two batches"
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["steps_done"] == 3, "the last step has a single batch"
    assert not any("lpips" in key for key in checkpoint["state_dict"])


def test_latents_are_normalized_over_the_training_crops(autoencoder_file):
    from calid.method.weights import read_latent_space

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

    export = ["export", "model", "--run", str(run), "--models", str(models), "--trained-on", "phantoms"]
    with pytest.raises(ValueError, match=r"the terms of phantom do not say .* --license"):
        main(export)
    assert main([*export, "--license", "CC0-1.0"]) == 0
    entry = json.loads((models / "models.json").read_text())["models"][0]
    assert entry["trained_on"] == "phantoms"
    assert entry["data_sha256"].keys() == {"phantom"}
    metadata = read_tensors(models / "calid-2d.safetensors")[1]
    origin = json.loads(metadata["training"])
    assert origin["data"]["phantom"] == {"cases": 5, "patients": 5, "sha256": entry["data_sha256"]["phantom"]}
    assert origin["config"]["model"]["learning_rate"] == 2e-3
    assert origin["config"]["data"]["prepared"] == hearts.name, "no place of this machine is told"
    assert origin["revision"] == entry["revision"] != ""
    assert "strength" not in entry["config"]  # without a motion it runs as the paper says
    upsample_with(models, tmp_path)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(hearts, autoencoder_file, tmp_path):
    options = [*DENOISER, *averaging(tmp_path, 0.5), "--model.autoencoder", str(autoencoder_file)]
    options += ["--model.motion", "null", "--model.anneals", "false", "--data.batches", "4", *rates(2e-3, 4)]
    whole, resumed = whole_and_resumed("denoiser", hearts, tmp_path, options)
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value)


def test_every_process_epoch_and_batch_draws_noise_of_its_own_and_draws_it_again():
    from calid_training.data import Reseeding

    def drawn(seed: int, epoch: int, rank: int, batch: int) -> float:
        trainer = SimpleNamespace(datamodule=SimpleNamespace(seed=seed), current_epoch=epoch, global_rank=rank)
        Reseeding().on_train_batch_start(trainer, None, {}, batch)
        return torch.rand(()).item()

    assert drawn(1, 3, 1, 5) == drawn(1, 3, 1, 5)
    assert len({drawn(*key) for key in ((1, 0, 0, 0), (2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1))}) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "start"),
    [
        ("autoencoder", [sys.executable, "-m", "calid_training.recipe_child", "calid-train"]),  # as a recipe starts it
        ("deeprecon", [Path(sys.executable).with_name("calid-train")]),
    ],
)
def test_two_processes_train_the_stages_with_a_discriminator(stage, start, hearts, tmp_path):
    """As its own program: each process starts the command again."""
    small = {"autoencoder": AUTOENCODER, "deeprecon": [*VALIDATION, *DEEPRECON]}[stage]
    options = [*ON_CPU, *SMALL_CROPS, *small, "--model.adversarial_start", "1", "--data.batches", "4"]
    options += [
        "--data.prepared",
        str(hearts),
        "--trainer.default_root_dir",
        str(tmp_path),
        "--trainer.max_epochs",
        "1",
    ]
    subprocess.run([*start, stage, *options, "--trainer.devices", "2"], check=True, timeout=600)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_training_never_sees_a_validation_patient(hearts):
    from calid_training.data import TripletData

    data = TripletData(prepared=hearts, datasets=("phantom",), sizes=(32,), size_weights=(1.0,))
    data.setup("fit")
    drawn = {triplet.case.entry.patient for triplet in data.train_stream.sources}
    checked = {triplet.case.entry.patient for triplet in data.validation_stream.sources}
    assert drawn == {"0", "1", "2", "3", "4"}
    assert checked == {"5"}


def test_nothing_to_draw_from_is_said_with_the_split_and_the_set(prepared):
    from calid_training.data import ImageData

    with pytest.raises(ValueError, match="for the train of phantom"):
        ImageData(prepared=prepared, datasets=("phantom",)).setup("fit")  # its patients are all for testing


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_builds_its_networks(path):
    """Widths, groups, heads and levels of the shipped settings fit together, on tensors without storage."""
    from calid.method.codec import Codec, CodecConfig
    from calid.method.motion import Motion, MotionConfig
    from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig
    from calid.method.weights import config_from

    settings = yaml.safe_load(path.read_text())
    network = settings.get("model", {}).get("network")
    kinds = ("codec", "code-denoiser", "autoencoder", "denoiser", "motion")
    kind = next((name for name in kinds if name in path.stem), None)
    if network is None or kind is None:
        return
    with torch.device("cpu" if kind == "codec" else "meta"):  # the codec's filter needs numbers
        if kind == "autoencoder":
            built = Autoencoder(config_from(AutoencoderConfig, network))
            images = torch.empty(1, 1, *[64] * built.config.spatial_dims)
            assert built.encode(images)[0].shape[-1] == 16
        elif kind == "codec":
            built = Codec(config_from(CodecConfig, network))
            images = torch.empty(1, 1, 64, 64)
            sight = built.see(images, images, torch.empty(1))
            assert built.decode(built.encode(images, sight), sight).shape == images.shape
        elif kind == "code-denoiser":
            built = Denoiser(config_from(DenoiserConfig, network))
            z = torch.empty(1, network["latent_channels"], 16, 16)
            z_c = built.tau1(torch.empty(1, network["seen_channels"], 16, 16))
            assert built(z, torch.zeros(1, dtype=torch.long), z_c).shape == z.shape
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


def merged(command: str, config: str, capsys) -> dict:
    """A config on top of its command's default as `calid-train` reads it, with every default of the signatures."""
    with pytest.raises(SystemExit):
        main([command, "--config", str(all_stages()[command].configs / f"{config}.yaml"), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def averages(settings: dict) -> list[float]:
    found = settings["trainer"]["callbacks"] or []
    return [callback["init_args"]["decay"] for callback in found if "EMA" in callback["class_path"]]


FLIPS_ONLY = {
    "pixel_mm": [0.1, 10.0],
    "zoom": [1.0, 1.0],
    "tilt_degrees": 0.0,
    "turns": 2,
    "white": [1.0, 1.0],
    "shading": 0.0,
    "bend_mm": 0.0,
    "mirrors": True,
    "gamma": [1.0, 1.0],
    "jitter_pixels": 0.0,
    "anywhere": 0.0,
}
""" "Random flips as data augmentation" of crops around the heart ("Dataset")."""


@pytest.mark.parametrize(
    ("command", "config", "batch"),
    [
        ("autoencoder", "paper-autoencoder", 64),
        ("denoiser", "paper-denoiser", 64),
        ("cine-autoencoder", "cine-autoencoder", 16),
        ("cine-denoiser", "cine-paper", 16),
        ("diffae", "paper-diffae", 64),
        ("dmcvr", "paper-dmcvr", 64),
    ],
)
def test_what_the_papers_configs_come_to_is_trained_as_the_paper_says(command, config, batch, capsys):
    """ "Training Details": Adam, warm-up over 50 epochs to a fixed 1e-4, batch 64 and 16 on 2 GPUs, EMA 0.999."""
    settings = merged(command, config, capsys)
    trainer, model, data = (settings[part] for part in ("trainer", "model", "data"))
    slices = 3 if command in ("diffae", "dmcvr") else 1  # of a triplet, each for itself
    assert trainer["devices"] == 2
    assert 2 * slices * data["batch_size"] == pytest.approx(batch, abs=2)
    assert data["batches"] * batch == pytest.approx(11_360, rel=0.005)  # an epoch is one pass over the subjects
    assert model["warmup_steps"] == 50 * data["batches"]
    assert trainer["max_epochs"] >= 1000
    assert model["learning_rate"] == 1e-4
    assert not model.get("anneals", False)
    assert (data["sizes"], data["size_weights"]) == ([128], [1.0])
    assert data["datasets"] == ["ukbb"]
    assert (trainer["precision"], trainer["gradient_clip_val"], model.get("gradient_clip")) == ("32-true", None, None)
    assert data["variety"] == FLIPS_ONLY
    if command.startswith("cine"):
        assert (data["frames"], data["whole_cycle"]) == (32, True)
    else:
        assert data["frame_step"] == 5
    if "autoencoder" in command:
        assert model["perceptual"] == "alex"
        assert model["adversarial_start"] < 0.02 * trainer["max_epochs"] * data["batches"]
    else:
        assert averages(settings) == [0.999]


def test_the_papers_denoisers_are_the_papers_form(capsys):
    flat, over_time = merged("denoiser", "paper-denoiser", capsys), merged("cine-denoiser", "cine-paper", capsys)
    for settings, prediction in (
        (flat, flat["model"]["prediction"]),
        (over_time, over_time["model"]["network"]["prediction"]),
    ):
        assert prediction == "epsilon"
        assert not settings["model"]["network"]["anchored"]
        assert all(settings["model"]["network"]["condition_attention"])
        assert (settings["model"]["terminal_share"], settings["data"]["identity"]) == (0.0, 0.0)
    assert flat["model"]["motion"] is None
    assert (over_time["model"]["base"], over_time["model"]["noise_shares"]) == (None, [0.0, 0.0])
    assert (over_time["model"]["network"]["spatial_dims"], over_time["data"]["frames"]) == (3, 32)


def test_a_stack_of_two_slices_has_no_triplets(tmp_path):
    from calid_training.crops import Triplets
    from calid_training.prepare import load_cases

    thin = Stack(np.random.default_rng(0).random((1, 2, 32, 32)), np.diag([1.5, 1.5, 9, 1]))
    write_cases([RawCase("phantom", "0", "ED", "train", thin)], tmp_path)
    assert list(Triplets(list(load_cases(tmp_path, datasets=["phantom"], split="train")))) == []
