"""Cines for training and the stage that learns from them: computed hearts, true courses from formulas."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
import yaml
from calid.images.files import write_stack
from calid.stack import Stack
from calid_training.cine import Beat, aligned, contraction, displacement, on_the_way, with_noise
from calid_training.cine_data import Movements, Moving, clip_batch, draw_frames
from calid_training.cine_denoiser import CineDenoiserStage, joint_noise
from calid_training.crops import Triplet
from calid_training.datasets import RawCase
from calid_training.prepare import load_cases, read_index, write_cases
from calid_training.stages import CONFIGS
from calid_training.train import main
from phantoms import heart_labels, pictured
from training_runs import SMALL_DENOISER, averaging, scalars, train

FRAMES = 8


def disc(radius: float, *, size: int = 64, center: tuple[float, float] = (30.0, 33.0)) -> np.ndarray:
    """A bright disc with a soft edge, in [0, 1]."""
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - center[0], columns - center[1])
    return (0.1 + 0.8 / (1 + np.exp(1.5 * (distance - radius)))).astype(np.float32)


def radius_of(image: np.ndarray) -> float:
    return float(np.sqrt((image > 0.5).sum() / np.pi))


def beating_stack(seed: int, contractions: tuple[float, ...]) -> tuple[Stack, Stack]:
    labels = heart_labels((3.0, 3.0, 12.0), seed=seed, contractions=contractions)
    return pictured(labels), labels


@pytest.fixture(scope="module")
def cines(tmp_path_factory) -> Path:
    """Beating hearts of four patients as a prepared set: the LV contracts and fills once."""
    folder = tmp_path_factory.mktemp("cines")
    course = tuple(1 - 0.3 * contraction(Beat(), np.arange(FRAMES) / FRAMES))
    cases = [
        RawCase(
            "phantom",
            f"{seed}",
            "cine",
            "validation" if seed == 3 else "train",
            *beating_stack(seed, course),
            (1, 2, 3),
        )
        for seed in range(4)
    ]
    write_cases(cases, folder)
    return folder


# --- semi-synthetic cines ---


def test_a_beat_ejects_then_fills_in_two_phases():
    beat = Beat(systole=0.35, early=0.7)
    phases = np.linspace(0, 1, 200, endpoint=False)
    course = contraction(beat, phases)
    assert contraction(beat, np.array([0.0, 1.0])).tolist() == [0, 0]
    assert course.max() == pytest.approx(1.0, abs=1e-3)
    assert phases[course.argmax()] == pytest.approx(0.35, abs=0.01)
    assert (np.diff(course[phases <= 0.35]) >= 0).all()
    assert (np.diff(course[phases >= 0.35]) <= 1e-9).all()
    filling = -np.diff(course)
    early, between, late = (
        filling[(phases[1:] > a) & (phases[1:] < b)].mean() for a, b in ((0.42, 0.5), (0.65, 0.8), (0.84, 0.92))
    )
    assert early > 5 * between
    assert late > 5 * between


def test_slices_are_put_beside_those_of_the_same_place():
    rng = np.random.default_rng(0)
    heart = np.cumsum(rng.standard_normal((14, 24, 24)), axis=0)  # neighbors are alike
    ed = heart[2:12] + 0.1 * rng.standard_normal((10, 24, 24))
    offset, alike = aligned(ed, heart[5:11])
    assert offset == 3
    assert alike > 0.95
    assert aligned(heart[4:9], heart[2:12])[0] == -2


def test_tissue_goes_half_its_way_at_half_the_contraction():
    ed, es = disc(18.0), disc(12.0)
    field = displacement(ed, es)
    radii = [radius_of(frame) for frame in on_the_way(ed, es, field, np.array([0.0, 0.5, 1.0]))]
    assert radii == pytest.approx([18, 15, 12], abs=0.6)


def test_both_ends_of_the_way_are_the_acquired_images():
    ed, es = disc(17.0), disc(13.0, center=(31.0, 32.0))
    first, last = on_the_way(ed, es, displacement(ed, es), np.array([0.0, 1.0]))
    np.testing.assert_allclose(first, ed, atol=1e-3)
    assert np.abs(last - es).mean() < 0.01


def test_a_blend_alone_would_not_move():
    """The oracle of the test above can fail: without displacement the half-way edge is two edges."""
    ed, es = disc(18.0), disc(12.0)
    still = on_the_way(ed, es, np.zeros((2, 64, 64), np.float32), np.array([0.5]))[0]
    np.testing.assert_allclose(still, (ed + es) / 2, atol=1e-3)


def test_every_frame_has_noise_of_its_own():
    images = np.full((6, 2, 40, 40), 0.5, np.float32)
    noise = with_noise(np.random.default_rng(0), images, 0.02) - 0.5
    assert noise.std() == pytest.approx(0.02, rel=0.02)
    between_frames = np.corrcoef(noise.reshape(6, -1))[np.triu_indices(6, 1)]
    assert np.abs(between_frames).max() < 0.06


def test_the_command_makes_cines_of_pairs_and_keeps_the_split(tmp_path):
    cases = []
    for seed, split in ((0, "train"), (1, "validation")):
        for series, contraction_ in (("LV_ED", 1.0), ("LV_ES", 0.7)):
            cases.append(RawCase("chla", f"{seed}", series, split, *beating_stack(seed, (contraction_,)), (1, 2, 3)))
    cases.append(RawCase("chla", "2", "LV_ED", "train", *beating_stack(2, (1.0,)), (1, 2, 3)))  # has no ES
    write_cases(cases, tmp_path / "prepared")
    out = tmp_path / "cine"
    command = ["cine", "--prepared", str(tmp_path / "prepared"), "--out", str(out), "--datasets", "chla"]
    assert main(command) == 0
    entries = {entry.patient: entry for entry in read_index(out)}
    assert {patient: entry.split for patient, entry in entries.items()} == {"0": "train", "1": "validation"}
    assert entries["0"].shape[0] == 20
    (case,) = load_cases(out, datasets=["chla"], split="train")
    middle = case.images[:, case.images.shape[1] // 2].astype(np.float32)
    change = np.abs(middle - middle[0]).mean(axis=(1, 2))
    assert 4 <= change.argmax() <= 10  # it is furthest from end-diastole in systole, and comes back
    assert change[-1] < 0.6 * change.max()


# --- clips ---


def test_clips_go_around_a_cycle_and_not_over_the_end_of_a_part(cines):
    rng = np.random.default_rng(0)
    (case, *_) = load_cases(cines, datasets=["phantom"], split="train")
    triplet = Triplet(case, np.zeros(2), 0, 1, 1)
    drawn = [draw_frames(rng, Moving(triplet, True), count=4, pace=pace) for pace in (0.0, 0.99) for _ in range(20)]
    steps = [set(np.diff(frames) % FRAMES) for frames, _ in drawn]
    assert steps[0] == {1}
    assert steps[-1] == {2}
    assert [closed for _, closed in drawn] == [False] * 20 + [True] * 20
    assert any((np.diff(frames) < 0).any() for frames, _ in drawn)
    parts = [draw_frames(rng, Moving(triplet, False), count=4, pace=pace) for pace in (0.0, 0.5) for _ in range(20)]
    assert all((np.diff(frames) > 0).all() and not closed for frames, closed in parts)


def test_a_clip_is_one_crop_of_all_its_frames(tmp_path):
    """A picture that does not move must not move in the clip, whatever crop was drawn."""
    picture = np.random.default_rng(0).random((5, 40, 40))
    stack = Stack(np.repeat(picture[None], 6, axis=0), np.diag([1.5, 1.5, 8, 1]), np.arange(6) * 50.0)
    write_cases([RawCase("phantom", "0", "cine", "train", stack)], tmp_path)
    sources = Movements(list(load_cases(tmp_path, datasets=["phantom"], split="train")), frames=4, max_gap_mm=22.0)
    batch = clip_batch(np.random.default_rng(1), sources, 3, 32, frames=4, identity=0.0)
    assert batch["target"].shape == (3, 1, 4, 32, 32)
    for name in ("before", "target", "after"):
        torch.testing.assert_close(batch[name][:, :, 1:], batch[name][:, :, :-1])
    assert (batch["target"] - batch["before"]).abs().mean() > 0.1


def test_cines_with_too_few_frames_are_left_out(cines):
    cases = list(load_cases(cines, datasets=["phantom"], split="train"))
    assert len(Movements(cases, frames=FRAMES, max_gap_mm=22.0)) > 0
    assert list(Movements(cases, frames=FRAMES + 1, max_gap_mm=22.0)) == []


@pytest.mark.parametrize("spans", [True, False])
def test_the_papers_clips_cover_the_whole_cycle(cines, spans):
    """32 of 50 frames there, 5 of 8 here: no two neighbors of a clip are further apart than they must be."""
    (case, *_) = load_cases(cines, datasets=["phantom"], split="train")
    rng, source, count = np.random.default_rng(0), Moving(Triplet(case, np.zeros(2), 0, 1, 1), spans), FRAMES - 3
    for _ in range(10):
        frames, closed = draw_frames(rng, source, count=count, pace=0.0, whole_cycle=True)
        assert closed == spans
        assert len(set(frames)) == count
        steps = np.diff(frames, append=frames[:1]) % FRAMES if spans else np.diff(frames)
        assert steps.sum() == (FRAMES if spans else FRAMES - 1)
        assert set(steps) <= {1, 2}


@pytest.mark.parametrize("spans", [True, False])
def test_32_of_50_frames_are_spread_from_the_first_to_the_last(spans):
    source = SimpleNamespace(num_frames=50, spans_cycle=spans)
    frames, _ = draw_frames(np.random.default_rng(0), source, count=32, pace=0.0, whole_cycle=True)
    places = np.sort((frames - frames[0]) % 50)
    np.testing.assert_allclose(places, np.arange(32) * (50 / 32 if spans else 49 / 31), atol=0.5)


@pytest.fixture(scope="module")
def real_cines(tmp_path_factory) -> Path:
    """Cines of 16 frames in UK Biobank's layout as converted, one 4D file for each subject, prepared."""
    folder = tmp_path_factory.mktemp("real")
    course = tuple(1 - 0.3 * contraction(Beat(), np.arange(16) / 16))
    for subject in ("1000001", "1000002"):
        (folder / "data" / "ukbb" / subject).mkdir(parents=True)
        write_stack(beating_stack(1, course)[0], folder / "data" / "ukbb" / subject / "sa.nii.gz")
    out = folder / "prepared"
    assert main(["prepare", "--data", str(folder / "data"), "--out", str(out), "--datasets", "ukbb"]) == 0
    return out


def test_real_cines_give_clips_with_the_shipped_config(real_cines):
    from calid_training.cine_data import ClipData

    shipped = yaml.safe_load((CONFIGS / "cine-denoiser.yaml").read_text())["data"]
    data = ClipData(**{**shipped, "prepared": real_cines, "datasets": ["ukbb"], "sizes": [32], "size_weights": [1]})
    sources = data.sources("train")
    batch = data.batch_maker("train")(np.random.default_rng(0), sources, 2, 32)
    assert batch["target"].shape == (2, 1, shipped["frames"], 32, 32)
    assert all(source.spans_cycle for source in sources)


def test_the_2dt_model_trains_on_real_cines_with_one_command(real_cines, random_models, tmp_path):
    options = [*SMALL, "--data.datasets", "[ukbb]", "--model.base", str(random_models / "calid-2d.safetensors")]
    train("cine-denoiser", real_cines, tmp_path / "run", options, epochs=1)
    assert scalars(tmp_path / "run", "val/psnr_detail")


def test_a_set_that_is_prepared_later_joins_those_that_are_there(tmp_path):
    def prepared(dataset: str, *patients: str) -> list[tuple[str, str]]:
        write_cases(
            [RawCase(dataset, patient, "ED", "train", beating_stack(0, (1.0,))[0]) for patient in patients], tmp_path
        )
        return [(entry.dataset, entry.patient) for entry in read_index(tmp_path)]

    assert prepared("ukbb", "1", "2") == [("ukbb", "1"), ("ukbb", "2")]
    assert prepared("acdc", "7") == [("acdc", "7"), ("ukbb", "1"), ("ukbb", "2")]
    assert prepared("ukbb", "3") == [("acdc", "7"), ("ukbb", "3")]


# --- the stage ---


def test_frames_share_the_asked_part_of_their_noise():
    torch.manual_seed(0)
    shares = torch.tensor([0.0, 0.5, 1.0])
    noise = joint_noise(shares, common=torch.randn(3, 4, 1, 32, 32), own=torch.randn(3, 4, 6, 32, 32))
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    for share, sample in zip(shares, noise, strict=True):
        correlation = np.corrcoef(sample.transpose(0, 1).flatten(1).numpy())
        assert correlation[np.triu_indices(6, 1)].mean() == pytest.approx(float(share), abs=0.03)


SMALL = ["--data.frames", "4", "--data.batches", "10", "--data.batch_size", "2", "--data.validation_batches", "1"]


def test_temporal_layers_learn_on_a_2d_model_that_stays_and_ship_with_its_name(cines, random_models, tmp_path):
    from calid.method.weights import find_model, load_model, read_tensors
    from calid.run.batches import load_interpolator
    from calid.run.device import choose_device

    base = random_models / "calid-2d.safetensors"
    run, models = tmp_path / "run", tmp_path / "models"
    models.mkdir()
    for name in ("calid-2d.safetensors", "models.json"):
        (models / name).write_bytes((random_models / name).read_bytes())
    options = [*SMALL, "--model.base", str(base)]
    train("cine-denoiser", cines, run, options, epochs=1)
    half = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    train("cine-denoiser", cines, run, options, epochs=2)  # the same command with a later end
    whole = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (half["global_step"], whole["global_step"]) == (10, 20)
    export = ["export", "cine", "--run", str(run), "--models", str(models), "--license", "CC0-1.0"]
    assert main([*export, "--noise-share", "0.8", "--strength", "0.5"]) == 0

    entry = find_model("calid-2dt", models)
    assert (entry.base, entry.base_sha256) == ("calid-2d", find_model("calid-2d", models).sha256)
    tensors, _ = read_tensors(models / entry.file)
    assert all(key.startswith("denoiser.temporal.") for key in tensors)
    assert any(value.abs().max() > 1e-4 for key, value in tensors.items() if key.endswith("mix.weight"))
    for key, value in tensors.items():
        learned = whole["state_dict"][key.replace("denoiser.", "network.")]
        torch.testing.assert_close(value, 0.5 * learned, rtol=1e-3, atol=1e-6)
    trained, _ = load_model("calid-2dt", models)
    for key, value in read_tensors(base)[0].items():
        torch.testing.assert_close(trained[key], value, rtol=0, atol=0)
    assert load_interpolator(choose_device("cpu"), name="calid-2dt", models_folder=models).noise_share == 0.8


def test_a_run_does_not_go_on_with_another_2d_model(random_models):
    stage = CineDenoiserStage(base=str(random_models / "calid-2d.safetensors"))
    with pytest.raises(ValueError, match="another 2D model"):
        stage.on_load_checkpoint({"base_sha256": "0" * 64})


@pytest.mark.parametrize(("base_sha256", "said"), [("0" * 64, "extends is not in"), ("", "calid-train export model")])
def test_layers_are_exported_beside_the_2d_model_they_belong_to_only(random_models, tmp_path, base_sha256, said):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint = {"state_dict": {}, "base_sha256": base_sha256, "global_step": 1}
    torch.save(checkpoint, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=said):
        main(["export", "cine", "--run", str(tmp_path / "run"), "--models", str(random_models)])


def test_only_temporal_layers_are_trained_and_flicker_costs(cines, random_models):
    stage = CineDenoiserStage(base=str(random_models / "calid-2d.safetensors"), difference_weight=3.0)
    learning = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.startswith("network.temporal.") for name in learning)
    stage.log_dict = lambda figures, **_: logged.update(figures)
    logged: dict[str, torch.Tensor] = {}
    sources = Movements(list(load_cases(cines, datasets=["phantom"], split="train")), frames=4, max_gap_mm=30.0)
    batch = clip_batch(np.random.default_rng(0), sources, 2, 32, frames=4, identity=0.0)
    loss = stage.training_step(batch, 0)
    assert loss.item() == pytest.approx((logged["train/loss"] + 3 * logged["train/difference"]).item(), rel=1e-5)
    loss.backward()
    assert all(stage.get_parameter(name).grad is not None for name in learning)


def test_the_papers_2dt_networks_are_3d_throughout():
    """Every convolution 3D and all axes strided: 32 frames of 128 x 128 become 8 x 32 x 32 latents."""
    from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig
    from calid.method.weights import config_from

    coding = yaml.safe_load((CONFIGS / "cine-autoencoder.yaml").read_text())["model"]["network"]
    network = yaml.safe_load((CONFIGS / "cine-paper.yaml").read_text())["model"]["network"]
    with torch.device("meta"):
        images = torch.empty(1, 1, 32, 128, 128)
        latents = Autoencoder(config_from(AutoencoderConfig, coding)).encode(images)[0]
        assert latents.shape == (1, 3, 8, 32, 32)
        denoiser = Denoiser(config_from(DenoiserConfig, network))
        z_c = denoiser.condition(images, images)
        assert denoiser(latents, torch.zeros(1, dtype=torch.long), z_c).shape == latents.shape
    flat = [name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert flat == []


@pytest.fixture(scope="module")
def papers_2dt_model(real_cines, tmp_path_factory) -> Path:
    """A models folder with a tiny model of the paper's 2D+T form, made by the commands that make the real one."""
    folder = tmp_path_factory.mktemp("paper")
    coding, run, models = folder / "coding", folder / "run", folder / "models"
    models.mkdir()
    tiny = ["--trainer.devices", "1", "--data.datasets", "[ukbb]", "--data.frames", "16", "--data.batch_size", "1"]
    tiny += ["--data.batches", "4", "--data.validation_batches", "1", "--model.network.latent_channels", "2"]
    widths = ["--model.network.channels", "[8,8,8]", "--model.network.norm_num_groups", "8"]
    widths += ["--model.perceptual", "discriminator"]  # AlexNet's weights are not at hand
    train("cine-autoencoder", real_cines, coding, [*tiny, *widths, "--model.network.num_res_blocks", "1"], epochs=1)
    space = str(coding / "autoencoder.safetensors")
    assert main(["export", "autoencoder", "--run", str(coding), "--prepared", str(real_cines), "--out", space]) == 0
    options = ["--model.autoencoder", space, *averaging(folder, 0.5), *tiny, *SMALL_DENOISER]
    train("cine-denoiser", real_cines, run, options, epochs=1, config=CONFIGS / "cine-paper.yaml")
    export = ["export", "model", "--run", str(run), "--models", str(models)]
    with pytest.raises(ValueError, match="the terms of ukbb do not say"):
        main(export)
    assert main([*export, "--license", "LicenseRef-UK-Biobank-MTA"]) == 0
    return models


def test_the_papers_2dt_form_is_trained_and_exported_as_the_cine_model(papers_2dt_model):
    from calid.method.weights import find_model

    config = find_model("calid-2dt", papers_2dt_model).config
    assert (config["autoencoder"]["spatial_dims"], config["denoiser"]["spatial_dims"]) == (3, 3)
    assert config["denoiser"]["prediction"] == "epsilon"
    assert config["noise_share"] == 0.0
    assert "strength" not in config


@pytest.mark.parametrize("method", ["calid", "calid+"])
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_the_papers_2dt_form_upsamples_any_number_of_frames(papers_2dt_model, method, frames):
    from calid.run.reconstruct import upsample
    from calid.run.settings import Settings

    course = tuple(1 - 0.3 * contraction(Beat(), np.arange(frames) / frames))
    sparse, _ = beating_stack(5, course)
    settings = Settings(factor=2, method=method, steps=2, model="2d+t", device="cpu", roi=(8, 40, 8, 40))
    dense = upsample(sparse, settings, models_folder=papers_2dt_model).stack
    assert dense.num_frames == frames
    assert dense.provenance["model"] == "calid-2dt"
    np.testing.assert_array_equal(dense.voxels[:, ::2], sparse.voxels)
    assert dense.voxels[:, 1::2, 8:40, 8:40].std() > 0


def test_layers_on_a_2d_model_are_not_exported_as_a_whole_model(tmp_path):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"base": "calid-2d.safetensors"}}))
    with pytest.raises(ValueError, match="calid-train export cine"):
        main(["export", "model", "--run", str(tmp_path), "--models", str(tmp_path)])


def test_a_whole_model_keeps_the_card_but_not_the_base_of_the_extension_it_replaces(tmp_path):
    from calid.method.weights import find_model
    from calid_training.weight_files import write_model

    extension = {"license": "a", "card": "calid-2dt.md", "base": "calid-2d", "base_sha256": "0" * 64}
    write_model(tmp_path, "calid-2dt", {"x": torch.zeros(1)}, {}, **extension)
    write_model(tmp_path, "calid-2dt", {"x": torch.ones(1)}, {}, license="b")
    entry = find_model("calid-2dt", tmp_path)
    assert (entry.base, entry.base_sha256, entry.license, entry.card) == ("", "", "b", "calid-2dt.md")


def test_both_2dt_models_are_one_code():
    from calid.method.networks import DenoiserConfig

    with pytest.raises(ValueError, match="spatial_dims to 2"):
        DenoiserConfig(spatial_dims=3, temporal=True)


def test_the_manifest_of_shipped_models_joins_2dt_to_its_2d_model():
    from calid.method.weights import models_folder

    records = {model["name"]: model for model in json.loads((models_folder() / "models.json").read_text())["models"]}
    extended = [model for model in records.values() if model.get("base")]
    for model in extended:
        assert records[model["base"]]["sha256"] == model["base_sha256"], (
            f"train {model['name']} on the new {model['base']}"
        )
        assert model["bytes"] <= 4.5e6
