"""The codec and the denoiser of codes on phantoms, by the commands a user types: they learn, resume and ship."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import numpy as np
import torch
from calid.method.coded import CodedCaLID
from calid.method.loading import load_calid
from calid.method.motion import halfway
from calid.method.networks import DenoiserConfig
from calid.method.weights import below, read_codec, read_motion
from calid.run.batches import departures_of
from calid_benchmark.evaluate import main as evaluate
from calid_training.code_denoiser import CodeDenoiserStage
from calid_training.codec import Judge, code_divergence, strengths
from calid_training.errors import UsageError
from calid_training.lpips import lpips_network
from calid_training.train import main
from calid_training.weight_files import prefixed, write_tensors
from networks_at_hand import random_alexnet, saved_alexnet
from training_runs import averaging, scalars, train, upsample_with

DENOISER = [
    *("--model.network.channels", "[16,16]", "--model.network.tau1_channels", "[16]"),
    *("--model.network.attention", "[false,true]", "--model.network.condition_attention", "[false,true]"),
    *("--model.network.norm_num_groups", "16", "--model.network.head_channels", "16"),
    *("--model.network.latent_channels", "3", "--model.network.seen_channels", "32"),
]
FEW_STEPS = ["--data.batches", "3", "--data.batch_size", "2", "--data.validation_batches", "1", "--data.sizes", "[64]"]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    return saved_alexnet(tmp_path_factory.mktemp("alexnet"), random_alexnet())


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    return phantom_set(6)


@pytest.fixture(scope="module")
def codec_run(hearts, alexnet, random_models, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("codec")
    options = [
        *averaging(run, 0.9),
        *("--model.motion", str(random_models / "calid-2d.safetensors"), "--model.alexnet", str(alexnet)),
        *("--model.network.channels", "[16,16,16]", "--model.network.code_channels", "3"),
        *("--model.network.num_res_blocks", "[1,1,1]", "--model.learning_rate", "3e-3", "--model.warmup_steps", "10"),
        *("--model.kl_weight", "0.01", "--model.kl_rise", "[100,200]", "--model.perceptual_weight", "0.1"),
        *("--data.sizes", "[64]", "--data.batches", "60", "--data.batch_size", "4", "--data.validation_batches", "2"),
    ]
    train("codec", hearts, run, options, epochs=3)
    return run


def test_the_gate_curve_asks_the_codec_of_a_run_again(codec_run, hearts, all_random_models, tmp_path):
    places = ["--prepared", str(hearts), "--datasets", "phantom", "--models", str(all_random_models)]
    asked = ["gate-curve", str(codec_run), *places, "--split", "validation", "--quick", "1", "--out", str(tmp_path)]
    assert evaluate(asked) == 0
    record = json.loads((tmp_path / "gate-curve.json").read_text())
    (line,) = record["gates"]
    assert line[:2] == [codec_run.name, "180"]
    assert line[3] == "code 0"
    assert 5 < float(line[4]) < 50
    assert [row["step"] for row in record["epochs"][codec_run.name]] == [59, 119, 179]


@pytest.fixture(scope="module")
def codec_file(codec_run, hearts, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("codec-file") / "codec.safetensors"
    command = ["export", "codec", "--run", str(codec_run), "--prepared", str(hearts), "--out", str(out)]
    assert main(command) == 0
    return out


def test_a_code_learns_to_tell_what_the_neighbors_do_not(codec_run):
    of_truth, of_zero, moved = (scalars(codec_run, f"val/psnr_{name}") for name in ("truth", "zero", "moved"))
    assert of_truth[-1] > of_truth[0]
    assert of_truth[-1] > of_zero[-1] + 0.5
    assert of_truth[-1] > moved[-1] + 0.3


def test_the_exported_codec_is_the_trained_one_and_measures_its_codes(codec_run, codec_file):
    checkpoint = torch.load(codec_run / "checkpoints" / "last.ckpt", weights_only=True)
    codec = read_codec(codec_file)
    assert (codec.scale != 1).all()
    for key, value in below(checkpoint["state_dict"], "network.").items():
        if key != "scale":
            torch.testing.assert_close(codec.state_dict()[key], value, rtol=0, atol=0)


def test_the_gates_judge_the_ways_of_a_run(codec_run, prepared, asked, random_models, all_random_models, tmp_path):
    command = ["gates", "--codec", str(codec_run), "--prepared", str(prepared), "--datasets", "phantom"]
    command += [
        "--split",
        "test",
        "--models",
        str(all_random_models),
        "--rows",
        "moved mean",
        "code 0",
        "code of the truth",
    ]
    assert evaluate([*command, "--out", str(tmp_path)]) == 0
    lines = {name: cells for name, *cells in json.loads((tmp_path / "gates.json").read_text())["lines"]}
    assert list(lines) == ["moved mean", "code 0", "code of the truth"]
    assert "| way | psnr | ssim |" in (tmp_path / "gates.md").read_text()
    assert "(" not in "".join(lines["code 0"])  # nothing is tested against itself
    assert lines["code of the truth"][-2].endswith(")")
    motion = read_motion(random_models / "calid-2d.safetensors")
    found = []
    for question in asked:
        images = (torch.from_numpy(x)[:, None] * 2 - 1 for x in (question.before, question.after))
        with torch.inference_mode():
            mean = (torch.stack(halfway(motion, *images)).mean(dim=0)[:, 0].numpy() + 1) / 2
        found += (-10 * np.log10(np.square(mean.clip(0, 1) - question.truth).mean(axis=(1, 2)))).tolist()
    assert float(lines["moved mean"][0]) == pytest.approx(np.mean(found), abs=0.05)  # bfloat16 where there is any


@pytest.mark.parametrize(
    ("image_weight", "learned"),
    [(0.0, ["denoiser"]), (1.0, ["denoiser", "decoder", "look"]), (1.0, ["tau1", "decoder"])],
)
def test_a_denoiser_of_codes_ships_with_its_codec_in_8_bits(
    hearts, alexnet, codec_file, tmp_path, image_weight, learned, capsys
):
    run, models = tmp_path / "denoiser", tmp_path / "models"
    models.mkdir()
    parts = ["--model.codec", str(codec_file), "--model.alexnet", str(alexnet)]
    options = [*DENOISER, *FEW_STEPS, *parts, "--model.image_weight", str(image_weight)]
    options += ["--model.learned", str(learned), "--model.temperature", "0.5"]
    options += ["--model.learning_rate", "1e-2", "--model.warmup_steps", "0"]
    train("code-denoiser", hearts, run, options, epochs=1)
    command = ["export", "coded", "--run", str(run), "--models", str(models), "--license", "CC0-1.0"]
    assert main([*command, "--temperature", "0.5"]) == 0
    assert "8 bits change the weights by 0." in capsys.readouterr().out
    model, entry = load_calid("calid-2d", models)
    assert isinstance(model, CodedCaLID)
    assert entry.config["temperature"] == 0.5
    told = departures_of(entry.config)
    assert (told["detail"].temperature, told["fidelity"].temperature) == (0.5, 1.0)
    before, after = read_codec(codec_file).state_dict(), model.codec.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.allclose(before[key], after[key], atol=2e-3)}
    assert changed == {"look", "decoder"} & set(learned)
    upsample_with(models, tmp_path)


def test_nothing_of_the_codec_learns_where_no_draws_are_judged():
    with pytest.raises(UsageError, match="image_weight"):
        CodeDenoiserStage(Path("codec"), Path("alexnet"), DenoiserConfig(), learned=("decoder",))


def test_a_finished_model_with_a_codec_ships_with_another_motion(hearts, alexnet, codec_file, tmp_path):
    run, models, others = tmp_path / "denoiser", tmp_path / "models", tmp_path / "others"
    parts = ["--model.codec", str(codec_file), "--model.alexnet", str(alexnet)]
    train("code-denoiser", hearts, run, [*DENOISER, *FEW_STEPS, *parts], epochs=1)
    released = ["--license", "CC0-1.0"]
    assert main(["export", "coded", "--run", str(run), "--models", str(models), "--temperature", "0.5", *released]) == 0
    still = read_motion(codec_file)
    for parameter in still.parameters():
        torch.nn.init.zeros_(parameter)
    motion_file = tmp_path / "motion.safetensors"
    write_tensors(motion_file, prefixed("motion", still.state_dict()), {"motion": asdict(still.config)})

    finished = models / "calid-2d.safetensors"
    command = ["export", "model", "--model", str(finished), "--motion", str(motion_file), "--models", str(others)]
    assert main([*command, *released]) == 0
    (model, entry), (other, other_entry) = (load_calid("calid-2d", folder) for folder in (models, others))
    assert {**other_entry.config, "motion": None} == {**entry.config, "motion": None}
    assert any(value.any() for value in model.motion.state_dict().values())
    assert not any(value.any() for value in other.motion.state_dict().values())
    for part in ("codec", "denoiser"):
        own = getattr(other, part).state_dict()
        torch.testing.assert_close(own, getattr(model, part).state_dict(), rtol=0, atol=0)


def test_the_energy_of_two_draws_is_their_error_less_a_share_of_their_distance(alexnet):
    judge = Judge(lpips_network(alexnet), 1.0, 0.5, 0.0)
    first, second, truth = torch.rand(3, 2, 1, 64, 64) * 2 - 1
    apart = (first - second).abs().mean() + 0.5 * judge.distances(first, second).mean()
    errors = [(x - truth).abs().mean() + 0.5 * judge.distances(x, truth).mean() for x in (first, second)]
    found = judge.energy(first, second, truth, spread_share=0.6)["total"]
    torch.testing.assert_close(found, sum(errors) / 2 - 0.3 * apart)


def test_texture_has_a_strength_and_no_place():
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for own, moved, doubled in zip(*(strengths(x) for x in (noise, noise.roll(8, -1), 2 * noise)), strict=True):
        assert float(moved.mean()) == pytest.approx(float(own.mean()), rel=0.05)
        assert float(doubled.mean()) == pytest.approx(2 * float(own.mean()), rel=0.01)


def test_the_divergence_of_the_prior_from_itself_is_zero():
    assert code_divergence(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).tolist() == [0, 0]
    normal = torch.distributions.Normal(torch.tensor(0.3), torch.tensor(0.5))
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    found = code_divergence(torch.full((1, 1, 1, 2), 0.3), torch.full((1, 1, 1, 2), 0.5))
    torch.testing.assert_close(found, 2 * expected[None])
