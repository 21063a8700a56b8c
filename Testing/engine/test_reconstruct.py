"""The main job with an untrained model: everything but the look of the slices must hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calid.errors import Cancelled, InputError, SettingsError
from calid.images.files import read_stack
from calid.run.device import Device
from calid.run.reconstruct import kept_interpolator, upsample
from calid.run.settings import MODES, Settings
from calid.stack import Stack
from phantoms import affine, rotation
from scipy.ndimage import gaussian_filter

DEMO = Path(__file__).resolve().parents[2] / "CaLIDReconstruct" / "Resources" / "Demo" / "sax.seq.nrrd"


def cine(frames: int = 2, slices: int = 3, size: tuple[int, int] = (40, 56), dtype: type = np.int16) -> Stack:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 900, (frames, slices, *size)).astype(dtype)
    matrix = affine((1.4, 1.4, 9.0), rotation(3), np.array([-20.0, 35.0, 7.0]))
    return Stack(voxels, matrix, np.arange(frames) * 40.0, provenance={"source": "phantom"})


def quick(**changes) -> Settings:
    return Settings(**({"factor": 2, "steps": 2, "device": "cpu"} | changes))


@pytest.mark.parametrize("method", ["calid", "calid+", "linear"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_acquired_slices_are_bit_exact_and_marked(random_models, method, dtype):
    sparse = cine(dtype=dtype)
    dense = upsample(sparse, quick(method=method, factor=4), models_folder=random_models).stack
    assert dense.voxels.dtype == sparse.voxels.dtype
    assert dense.num_slices == 9
    np.testing.assert_array_equal(dense.voxels[:, ::4], sparse.voxels)
    np.testing.assert_array_equal(np.flatnonzero(~dense.generated), [0, 4, 8])


def test_acquired_slices_stay_where_they_were(random_models):
    sparse = cine()
    dense = upsample(sparse, quick(factor=4), models_folder=random_models).stack
    corners = np.array([[0, 0, 0], [55, 39, 0], [10, 20, 2]])
    np.testing.assert_allclose(dense.to_lps(corners * [1, 1, 4]), sparse.to_lps(corners), atol=1e-9)
    assert dense.spacing_mm[2] == pytest.approx(9 / 4)
    np.testing.assert_array_equal(dense.frame_times_ms, sparse.frame_times_ms)


@pytest.mark.parametrize("method", ["calid", "calid+"])
def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(random_models, method):
    first, again, other = (
        upsample(cine(), quick(method=method, seed=seed), models_folder=random_models).stack.voxels
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    if method == "calid":
        assert (first != other).any()


def test_a_region_changes_only_itself_and_a_mirrored_draw_lies_where_the_first_does(random_models):
    sparse = cine(size=(96, 96), dtype=np.float32)
    wanted = quick(roi=(40, 64, 40, 56), method="calid", align="off")
    first, other = (
        upsample(sparse, replace(wanted, seed=seed, samples=4), models_folder=random_models, uncertainty=True)
        for seed in (0, 1)
    )
    x0, x1, y0, y1 = first.stack.provenance["roi"]
    outside = np.ones((96, 96), bool)
    outside[y0:y1, x0:x1] = False
    np.testing.assert_array_equal(first.stack.voxels[..., outside], other.stack.voxels[..., outside])
    assert np.abs(first.stack.voxels - other.stack.voxels)[..., 40:56, 40:64].mean() > 1
    spread = first.uncertainty.voxels[:, 1::2]
    assert (spread[..., 40:56, 40:64] > 0).mean() > 0.9
    assert spread[..., outside].mean() < 0.3 * spread[..., 40:56, 40:64].mean()  # mirrored motion differs a little


def test_linear_slices_agree_with_a_ramp():
    ramp = np.array([0.0, 8.0, 12.0])[:, None, None] * np.ones((3, 4, 5))
    from calid.method.bisection import linear_slices, plan_bisection

    values = linear_slices(ramp, plan_bisection(3, 4))[:, 2, 3]
    np.testing.assert_allclose(values, [0, 2, 4, 6, 8, 9, 10, 11, 12])


@pytest.mark.parametrize("method", ["calid", "calid+"])
def test_a_frame_does_not_depend_on_the_frames_beside_it(random_models, method):
    whole = upsample(cine(frames=4), quick(method=method, frames=(0, 3)), models_folder=random_models).stack
    alone = upsample(cine(frames=4), quick(method=method, frames=(1, 2)), models_folder=random_models).stack
    assert whole.num_frames == 3
    assert alone.frame_times_ms.tolist() == [40.0]
    spread = float(whole.voxels.std())  # batches of other sizes round differently, no more
    assert np.abs(whole.voxels[1].astype(float) - alone.voxels[0]).mean() < 0.05 * spread


def test_uncertainty_is_zero_where_data_were_acquired_and_positive_elsewhere(random_models):
    made = upsample(cine(), quick(samples=3), models_folder=random_models, uncertainty=True)
    assert made.uncertainty.voxels.dtype == np.float32
    assert (made.uncertainty.voxels[:, ::2] == 0).all()
    assert (made.uncertainty.voxels[:, 1::2] > 0).mean() > 0.9


def test_fidelity_is_the_mean_of_the_draws(random_models, monkeypatch):
    from calid.method import model

    monkeypatch.setattr(model, "with_texture_of", lambda *seen: seen[-1])  # the same texture in both modes
    monkeypatch.setattr("calid.run.draws.SMOOTHING_PIXELS", 0.0)
    sparse = cine(frames=1, slices=2, dtype=np.float64)
    settings = {"method": "calid", "samples": 4, "steps": 1}
    mean = upsample(sparse, quick(mode="fidelity", **settings), models_folder=random_models)
    made = upsample(sparse, quick(mode="detail", **settings), models_folder=random_models, uncertainty=True)
    error = np.abs(made.stack.voxels[0, 1] - mean.stack.voxels[0, 1])
    assert (error <= made.uncertainty.voxels[0, 1] * 1.5 + 1e-3).all()  # no draw is further from the mean of 4
    assert error.max() > 1


def test_progress_rises_to_one_and_frames_appear_in_order(random_models):
    seen, shown = [], []
    upsample(
        cine(frames=3),
        quick(factor=4),
        models_folder=random_models,
        progress=lambda progress: seen.append(progress.fraction),
        on_frame=lambda index, frame: shown.append((index, frame.voxels.shape, frame.frame_times_ms[0])),
    )
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert shown == [(index, (1, 9, 40, 56), 40.0 * index) for index in range(3)]


@pytest.mark.parametrize("method", ["calid", "calid+"])
@pytest.mark.parametrize("moved_and_mixed", [True, False])
def test_the_work_that_is_planned_is_the_work_that_is_done(random_models, method, moved_and_mixed):
    from calid.method.bisection import plan_bisection
    from calid.method.model import PAPER
    from calid.run.batches import load_interpolator
    from calid.run.device import choose_device
    from calid.run.generation import Generation, cost
    from calid.run.preparation import plan_preparation
    from calid.run.progress import Watch

    interpolator = load_interpolator(choose_device("cpu"), models_folder=random_models)
    if not moved_and_mixed:
        interpolator = replace(interpolator, departures=dict.fromkeys(MODES, PAPER))
    stack, plan, settings = cine(frames=3), plan_bisection(3, 4), quick(method=method)
    watch, ticks = Watch(1), []
    watch.tick = ticks.append
    list(Generation(interpolator, plan_preparation(stack), plan, settings, 2, watch).frames(stack.voxels))
    assert sum(ticks) == cost(interpolator, plan, settings, frames=3, draws=2)


def test_the_bar_moves_after_every_batch(random_models, monkeypatch):
    """And so cancel is answered after it."""
    from calid.method.motion import Motion
    from calid.method.networks import LatentSpace

    events = []
    for network, name in ((LatentSpace, "encode"), (LatentSpace, "decode"), (Motion, "forward")):
        whole = getattr(network, name)

        def noted(self, *tensors, whole=whole):
            events.append("batch")
            return whole(self, *tensors)

        monkeypatch.setattr(network, name, noted)
    monkeypatch.setattr(Device, "batch_size", lambda *_: 2)
    upsample(cine(), quick(factor=4), models_folder=random_models, progress=lambda _: events.append("told"))
    batches = [place for place, event in enumerate(events) if event == "batch"]
    assert len(batches) > 20
    assert all(events[place + 1] == "told" for place in batches)


def test_no_more_than_a_batch_is_in_work_at_once_and_its_size_changes_nothing(random_models, monkeypatch):
    from calid.method.model import CaLID

    between, sizes = CaLID.between, []

    def noted(self, before, *others, **options):
        sizes.append(len(before))
        return between(self, before, *others, **options)

    monkeypatch.setattr(CaLID, "between", noted)
    made, sparse = [], cine(frames=1, dtype=np.float32)
    settings = quick(factor=4, mode="fidelity", samples=10)
    for batch in (1000, 4, 1):
        sizes.clear()
        monkeypatch.setattr(Device, "batch_size", lambda *_, batch=batch: batch)
        made.append(upsample(sparse, settings, models_folder=random_models, uncertainty=True))
        assert max(sizes) == min(batch, 36)  # 9 draws of 4 gaps; the one that is shown goes before
    for other in made[1:]:
        np.testing.assert_allclose(other.stack.voxels, made[0].stack.voxels, atol=0.5)
        np.testing.assert_allclose(other.uncertainty.voxels, made[0].uncertainty.voxels, atol=0.5)
    assert made[0].uncertainty.voxels.max() > 10


@pytest.mark.parametrize("changes", [{"model": "2d"}, {"model": "2d", "method": "calid"}, {"model": "2d+t"}])
def test_threads_and_batches_change_a_voxel_by_one_level_at_most(changes, monkeypatch):
    """With the models that are bundled; the bound that the README states."""
    whole = read_stack(DEMO).frames(0, 2)
    three = Stack(whole.voxels[:, 1:4, 32:96, 32:96], whole.affine, whole.frame_times_ms)
    known, made = torch.get_num_threads(), []
    try:
        for threads, batch in ((1, 8), (1, 1), (2, 3)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(Device, "batch_size", lambda *_, batch=batch: batch)
            made.append(upsample(three, quick(steps=1, align="off", **changes)).stack.voxels.astype(int))
    finally:
        torch.set_num_threads(known)
    for other in made[1:]:
        differing = np.abs(other - made[0])
        assert differing.max() <= 1
        assert (differing > 0).mean() < 1e-3


def test_draws_summed_up_one_by_one_have_their_mean_and_deviation():
    from calid.run.draws import Draws

    draws = np.random.default_rng(0).normal(3000, 2, (64, 2, 5, 7)).astype(np.float32)
    summed = Draws()
    for draw in draws:
        summed.add(draw)
    exact = draws.astype(np.float64)
    np.testing.assert_array_equal(summed.first, draws[0])
    np.testing.assert_allclose(summed.mean, exact.mean(axis=0), rtol=1e-6)
    variance = exact.var(axis=0, ddof=1)
    smooth = [gaussian_filter(one, 1.0) for one in variance]
    np.testing.assert_allclose(summed.deviation, np.sqrt(smooth), rtol=1e-3)
    assert summed.mean.dtype == summed.deviation.dtype == np.float32


def test_cancel_takes_effect_at_the_next_network_evaluation(random_models):
    asked = []

    def is_cancelled() -> bool:
        asked.append(True)
        return len(asked) >= 3

    with pytest.raises(Cancelled):
        upsample(cine(frames=20), quick(steps=8), models_folder=random_models, is_cancelled=is_cancelled)
    assert len(asked) == 3


def test_a_batch_that_does_not_fit_is_halved_and_the_result_stays(random_models, monkeypatch):
    reference = upsample(cine(), quick(), models_folder=random_models).stack.voxels
    kept_interpolator.cache_clear()
    from calid.method.networks import Denoiser

    whole, sizes = Denoiser.forward, []

    def forward(self, z_t, t, z_c, **options):
        sizes.append(len(z_t))
        if len(z_t) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, z_t, t, z_c, **options)

    monkeypatch.setattr(Denoiser, "forward", forward)
    made = upsample(cine(), quick(), models_folder=random_models).stack.voxels
    assert max(sizes) > 1
    assert np.abs(made.astype(float) - reference).mean() < 0.05 * reference.std()


def test_other_failures_are_not_taken_for_lack_of_memory(random_models, monkeypatch):
    from calid.method.networks import Denoiser

    def forward(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Denoiser, "forward", forward)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        upsample(cine(), quick(), models_folder=random_models)


def test_provenance_says_what_made_the_slices(random_models):
    facts = upsample(cine(), quick(seed=9), models_folder=random_models).stack.provenance
    assert facts["source"] == "phantom"
    assert (facts["seed"], facts["steps"], facts["factor"], facts["method"]) == (9, 2, 2, "calid+")
    assert len(facts["model_sha256"]) == 64
    assert "not for diagnosis" in facts["note"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 3},
        {"steps": 0},
        {"samples": 0},
        {"method": "cubic"},
        {"mode": "sharp"},
        {"device": "tpu"},
        {"seed": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(SettingsError) as caught:
        quick(**wrong)
    assert caught.value.code == next(iter(wrong))
    assert caught.value.remedy


def test_settings_that_do_not_fit_the_stack_are_refused(random_models):
    with pytest.raises(SettingsError, match="2 frames"):
        upsample(cine(), quick(frames=(1, 5)), models_folder=random_models)
    with pytest.raises(SettingsError, match="uncertainty"):
        upsample(cine(), quick(method="linear"), uncertainty=True)
    with pytest.raises(InputError):
        upsample(cine(slices=1), quick(method="linear"))


def test_batches_fit_the_device():
    cpu = Device(torch.device("cpu"), "test", None)
    assert cpu.batch_size(128 * 128) == 12
    assert cpu.batch_size(4000 * 4000) == 1


def test_smooth_brightness_comes_from_the_neighbors_and_detail_stays():
    from calid.method.texture import with_brightness_of

    rng = torch.Generator().manual_seed(0)
    detail = torch.rand(1, 1, 64, 64, generator=rng)
    brighter = with_brightness_of(detail * 1.2 - 1, detail - 1)
    inside = brighter[..., 8:-8, 8:-8]
    torch.testing.assert_close(inside + 1, (detail * 1.2)[..., 8:-8, 8:-8], atol=0.04, rtol=0)
    air = -torch.ones(1, 1, 64, 64)
    torch.testing.assert_close(with_brightness_of(air, air), air)


def test_fine_texture_is_as_strong_as_the_neighbors_and_the_rest_stays():
    from calid.method.texture import with_texture_of

    rng = torch.Generator().manual_seed(0)
    slope = torch.linspace(-0.5, 0.5, 64).expand(1, 1, 64, 64)
    before, after = (slope + 0.1 * torch.randn(1, 1, 64, 64, generator=rng) for _ in range(2))
    mean = (before + after) / 2  # which has averaged noise away
    joined = with_texture_of(before, after, mean)
    noise = [(x - slope)[..., 8:-8, 8:-8].std() for x in (before, mean, joined)]
    assert noise[1] < 0.75 * noise[0]
    assert noise[2] == pytest.approx(float(noise[0]), rel=0.1)
    torch.testing.assert_close(joined.mean(dim=-2), mean.mean(dim=-2), atol=0.02, rtol=0)
    torch.testing.assert_close(with_texture_of(before, before, before), before)
    flat = torch.zeros(1, 1, 32, 32)
    torch.testing.assert_close(with_texture_of(flat, flat, flat), flat)


@pytest.mark.parametrize("strength", [0.25, 1.0])
@torch.inference_mode()
def test_what_the_diffusion_changes_is_taken_at_the_strength_of_its_weights(random_models, strength):
    """From the mean of the moved neighbors, in a straight line to the whole change."""
    from calid.method.loading import load_calid
    from calid.method.model import Departures

    model, _ = load_calid("calid-2d", random_models)
    before, after = torch.rand(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = Departures(strength=1.0, brightness=False, texture=False)
    whole, weak = (
        model.between(before, after, z_T, steps=2, departures=replace(plain, strength=x)) for x in (1.0, strength)
    )
    mean = sum(model.halfway(before, after)) / 2
    unclamped = (weak.abs() < 1) & (whole.abs() < 1)
    torch.testing.assert_close((weak - mean)[unclamped], strength * (whole - mean)[unclamped], atol=1e-5, rtol=1e-4)
    assert (whole - mean).abs().mean() > 0.01


def test_the_estimate_counts_what_fidelity_really_runs(random_models):
    from calid.run.job import estimate

    sparse = cine(frames=1, slices=4)
    quickest = estimate(sparse, quick(mode="fidelity", steps=500), models_folder=random_models)
    whole = estimate(sparse, quick(mode="fidelity", steps=500), models_folder=random_models, uncertainty=True)
    assert whole["seconds"] > 10 * quickest["seconds"]  # 500 steps for each draw against one


def test_a_model_that_is_kept_does_not_stand_for_those_of_another_folder(random_models, monkeypatch):
    from calid.run.device import choose_device
    from calid.run.reconstruct import warm_interpolator

    device = choose_device("cpu")
    monkeypatch.setenv("CALID_MODELS", str(random_models))
    other = warm_interpolator(device, None)
    monkeypatch.delenv("CALID_MODELS")
    assert warm_interpolator(device, None).entry.sha256 != other.entry.sha256
