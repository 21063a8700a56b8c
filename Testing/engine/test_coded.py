"""A model with a codec, run as any other: what it keeps, and what its seed, the gap and the mode change."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calid.method.codec import Codec, CodecConfig
from calid.method.coded import CodedCaLID, cooled
from calid.method.motion import Motion, MotionConfig
from calid.method.networks import Denoiser, DenoiserConfig
from calid.run.batches import load_interpolator
from calid.run.device import choose_device
from calid.run.reconstruct import plan_run, upsample
from calid.run.settings import Settings
from calid.stack import Stack
from phantoms import affine

CODEC = CodecConfig(channels=(16, 16, 16), code_channels=3, num_res_blocks=(1, 1, 1), norm_num_groups=8)
DENOISER = DenoiserConfig(
    latent_channels=3,
    channels=(16, 16),
    attention=(False, True),
    condition_attention=(False, True),
    tau1_channels=(16,),
    seen_channels=32,
    num_res_blocks=1,
    head_channels=16,
    norm_num_groups=16,
    temporal=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with an untrained model of this form."""
    from calid_training.weight_files import write_model

    torch.manual_seed(0)
    parts = {
        "codec": Codec(CODEC),
        "denoiser": Denoiser(replace(DENOISER, temporal=False)),
        "motion": Motion(MotionConfig(features=(8,) * 6)),
    }
    for network in parts.values():
        for parameter in network.parameters():  # zero convolutions would hide what reaches the slice
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = {f"{part}.{key}": value for part, network in parts.items() for key, value in network.state_dict().items()}
    config = {
        "temperature": 0.5,
        "codec": asdict(CODEC),
        "denoiser": asdict(replace(DENOISER, temporal=False)),
        "motion": asdict(MotionConfig(features=(8,) * 6)),
        "spread": 2.0,
    }
    made = tmp_path_factory.mktemp("coded")
    write_model(made, "calid-2d", tensors, config, in_8_bits=True, license="none", trained_on="nothing")
    return made


def stack(frames: int = 1, slices: int = 3, spacing_mm: float = 10.0) -> Stack:
    voxels = np.random.default_rng(0).integers(0, 900, (frames, slices, 40, 56)).astype(np.int16)
    matrix = affine((1.5, 1.5, spacing_mm), np.eye(3), np.zeros(3))
    return Stack(voxels, matrix, np.arange(frames) * 40.0)


def made(folder: Path, of: Stack, *, uncertainty: bool = False, **settings) -> np.ndarray:
    chosen = Settings(**{"factor": 2, "method": "calid", "steps": 2, "device": "cpu", **settings})
    result = upsample(of, chosen, models_folder=folder, uncertainty=uncertainty)
    return result.uncertainty.voxels if uncertainty else result.stack.voxels


@pytest.mark.parametrize("method", ["calid", "calid+"])
def test_acquired_slices_stay_and_every_seed_draws_others(folder, method):
    first = made(folder, stack(), method=method, seed=1)
    assert (first[:, ::2] == stack().voxels).all()
    assert (first == made(folder, stack(), method=method, seed=1)).all()
    assert (first[:, 1::2] != made(folder, stack(), method=method, seed=2)[:, 1::2]).any()


def test_fidelity_asks_for_the_least_error_and_draws_nothing(folder):
    first = made(folder, stack(), mode="fidelity", seed=1)
    assert (first == made(folder, stack(), mode="fidelity", seed=2)).all()
    assert (first[:, 1::2] != made(folder, stack(), seed=1)[:, 1::2]).any()


def test_fidelity_looks_at_each_distinct_view_once(folder, monkeypatch):
    """The mirror image of a view, left and right, in the other order is the same view; four of eight are left."""
    once = made(folder, stack(), mode="fidelity", factor=4).astype(float)
    fewer = made(folder, stack(), mode="fidelity", factor=4, samples=3)
    monkeypatch.setattr("calid.run.generation.DISTINCT_VIEWS", 8)
    twice = made(folder, stack(), mode="fidelity", factor=4)
    assert 20 * np.abs(once - twice).mean() < np.abs(once - fewer).mean()  # rounding, of half precision perhaps


def test_fidelity_is_softer_the_farther_apart_its_neighbors_are(folder):
    model = load_interpolator(choose_device("cpu"), models_folder=folder).model
    pair = [torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1)]
    with torch.inference_mode():
        (alone,) = model.mean_of_moved(*pair, torch.tensor([20.0]))
        thrice = (image.expand(3, -1, -1, -1) for image in pair)
        touching, near, far = model.mean_of_moved(*thrice, torch.tensor([0.0, 5.0, 20.0]))
    torch.testing.assert_close(far, alone)
    assert far.std() < near.std() < touching.std()


def test_slices_that_lie_farther_apart_are_filled_in_otherwise(folder):
    near, far = (made(folder, stack(spacing_mm=mm)) for mm in (5.0, 10.0))
    assert (near[:, 1::2] != far[:, 1::2]).any()


def test_the_spread_of_draws_is_widened_by_what_was_measured(folder):
    interpolator = load_interpolator(choose_device("cpu"), models_folder=folder)
    assert interpolator.spread == 2.0
    assert isinstance(interpolator.model, CodedCaLID)
    widened = made(folder, stack(), uncertainty=True, samples=3)
    assert (widened[:, ::2] == 0).all()
    assert (widened[:, 1::2] > 0).mean() > 0.9


@pytest.mark.parametrize("settings", [{"steps": 3}, {"mode": "fidelity"}, {"method": "calid+", "steps": 2}])
def test_the_work_that_is_planned_is_the_work_that_is_done(folder, settings, monkeypatch):
    chosen = Settings(**{"factor": 4, "method": "calid", "device": "cpu", **settings})
    ticks = []
    monkeypatch.setattr("calid.run.progress.Watch.tick", lambda _, count: ticks.append(count))
    upsample(stack(), chosen, models_folder=folder)
    assert sum(ticks) == plan_run(stack(), chosen, models_folder=folder).work


def test_a_temperature_shortens_the_way_from_the_mean_of_all_draws():
    torch.manual_seed(0)
    networks = Codec(CODEC), Denoiser(replace(DENOISER, temporal=False)), Motion(MotionConfig(features=(8,) * 6))
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    before, after, z_T = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32), torch.randn(2, 3, 4, 4)
    found = {}
    model = CodedCaLID(*networks).eval()
    with torch.inference_mode():
        walk = [*model.walk(model.see(before, after, torch.full((2,), 20.0)), z_T, steps=3)]
    for temperature in (0.0, 0.5, 1.0):
        found[temperature] = cooled(*walk, temperature=temperature)
    torch.testing.assert_close(found[0.5], (found[0.0] + found[1.0]) / 2, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0.0], found[1.0])


@pytest.mark.parametrize(("mode", "shown"), [("detail", 0.5), ("fidelity", 1.0)])
def test_the_draw_that_is_shown_is_cooled_and_those_that_tell_the_spread_are_whole(folder, mode, shown, monkeypatch):
    alone = made(folder, stack(), mode=mode, samples=1)
    temperatures = []

    def noted(*walk, temperature):
        temperatures.append(temperature)
        return cooled(*walk, temperature=temperature)

    monkeypatch.setattr("calid.method.coded.cooled", noted)
    chosen = Settings(factor=2, method="calid", steps=2, device="cpu", mode=mode, samples=3)
    result = upsample(stack(), chosen, models_folder=folder, uncertainty=True).stack.voxels
    assert temperatures[0] == shown
    assert set(temperatures[1:]) == {1.0}
    assert (result == alone).all() == (mode == "detail"), "asking for the spread changes nothing that is shown"


def test_a_model_over_time_reads_frames_together_and_decodes_each():
    torch.manual_seed(0)
    denoiser = Denoiser(DENOISER)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = CodedCaLID(Codec(CODEC), denoiser, Motion(MotionConfig(features=(8,) * 6))).eval()
    before, after = torch.rand(2, 1, 5, 32, 48), torch.rand(2, 1, 5, 32, 48)
    z_T, gap_mm = torch.randn(2, 3, 5, 4, 6), torch.tensor([20.0, 10.0])
    with torch.inference_mode():
        assert model.between(before, after, z_T, gap_mm, steps=2).shape == before.shape
        sight = model.see(before, after, gap_mm)
        codes = cooled(*model.walk(sight, z_T, steps=1), temperature=1.0)
        other = z_T.clone()
        other[:, :, 0] += 1
        others = cooled(*model.walk(sight, other, steps=1), temperature=1.0)
        changed = others.unflatten(0, (2, 5)) != codes.unflatten(0, (2, 5))
    assert changed[:, 1].any()  # the neighbor in time
