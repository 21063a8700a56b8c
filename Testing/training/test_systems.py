"""The systems behind their one door: bisection, whole stacks, shared answers and missing weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.errors import WeightsError
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import Settings
from calid_benchmark import rivals, systems, ways
from calid_benchmark.rivals import syn
from calid_benchmark.rivals.slices import as_images, as_slices, bisected
from calid_benchmark.systems import Named, Source


@pytest.fixture
def slices() -> np.ndarray:
    return np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)


def test_bisecting_with_the_mean_is_linear_interpolation(slices):
    dense = bisected(ways.linear, slices, 8)
    places = np.arange(25) / 8
    expected = np.stack([np.interp(places, range(4), column) for column in slices.reshape(4, -1).T], axis=1)
    np.testing.assert_allclose(dense.reshape(25, -1), expected, atol=1e-6)
    np.testing.assert_allclose(ways.linear_between(slices, 8), dense, atol=1e-6)


def test_the_staircase_takes_the_nearest_acquired_slice(slices):
    dense = ways.nearest_slices(slices, 4)
    np.testing.assert_array_equal(dense[[0, 1, 3, 4, 5]], slices[[0, 0, 1, 1, 1]])
    assert len(dense) == 13


def test_acquired_slices_come_back_as_they_were(slices):
    made = Named("blank", ways.linear, upsample=lambda stack, factor: np.zeros((len(stack) * factor, 8, 8))[:7])
    np.testing.assert_array_equal(made.whole_heart(slices, 2)[::2], slices)


def test_an_answer_is_clipped_and_says_how_long_it_took(slices):
    answer = Named("bright", lambda before, after: before + 2 * after - 0.5).answer(slices[:-1], slices[1:])
    assert answer.seconds > 0
    assert (answer.images.min(), answer.images.max()) == (0, 1)


def test_systems_come_in_the_order_of_the_papers_and_missing_ones_say_how_to_get_them(random_models, tmp_path):
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    names = [system.name for system in offer.systems]
    assert names.index("linear") < names.index("bilinear latent") < names.index("CaLID") < names.index("CaLID+")
    missing = len(rivals.NAMES) + 1 + (not syn.is_here())
    assert len(offer.notes) == missing, "the rivals, the paper's model at our size, and what is not installed"
    assert all("is left out" in note and ("README" in note or "pip install" in note) for note in offer.notes)


@pytest.mark.parametrize(("here", "told"), [(".", "rivals/weights"), ("elsewhere", "weights")])
def test_why_a_row_is_missing_names_no_folder_of_this_machine(random_models, tmp_path, monkeypatch, here, told):
    weights = tmp_path / "rivals" / "weights"
    for folder in (weights, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (weights / "models.json").write_text(json.dumps({"models": []}))
    monkeypatch.chdir(tmp_path / here)
    notes = systems.offered(Source(random_models, weights, steps=2, samples=2, device="cpu")).notes
    missing = [note for note in notes if "There is no model" in note]
    assert len(missing) == len(rivals.NAMES) + 1, "the rivals, and the paper's model at our size"
    assert all(f"in {told}. CaLIDTraining/README.md" in note for note in missing)
    assert not any(str(tmp_path) in note for note in notes)


def test_means_of_draws_are_made_only_where_they_are_named(random_models, tmp_path):
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    assert not {system.name for system in systems.chosen(offer.systems, None)} & set(systems.ON_REQUEST)
    named = systems.chosen(offer.systems, ["CaLID, mean of draws"])
    assert [system.name for system in named] == ["linear", "CaLID+", "CaLID, mean of draws"]


@pytest.mark.parametrize(
    ("row", "mode", "samples"),
    [("motion and texture", "detail", None), ("motion, 8 views", "fidelity", 8)],
)
def test_rows_of_the_motion_are_the_engine_without_its_diffusion(random_models, tmp_path, asked, row, mode, samples):
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    interpolator = warm_interpolator(choose_device("cpu"), random_models)
    motion_alone = {mode: replace(interpolator.departures[mode], strength=0.0) for mode in ("detail", "fidelity")}
    settings = Settings(factor=2, method="calid", mode=mode, samples=samples, steps=1, device="cpu")
    stack = asked[0].images[2:5]
    expected, _ = ways.generated(replace(interpolator, departures=motion_alone), stack[None], 2, settings)[0]
    made = offer[row].whole_heart(stack, 2)
    np.testing.assert_allclose(made, expected, atol=0.01)
    alone = offer[systems.MOTION_ALONE].whole_heart(stack, 2)
    assert np.abs(made - alone).max() > 0.02


def test_whole_stacks_are_moved_level_by_level(random_models, tmp_path, asked):
    row = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))[systems.MOTION_ALONE]
    stack = asked[0].images[2:4]
    halves = row.whole_heart(stack, 2)
    np.testing.assert_allclose(row.whole_heart(stack, 4), row.whole_heart(halves, 2), atol=0.01)  # bfloat16 batches


class Halfway:
    """A baseline whose slice between has 1 / steps added."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.whole_heart = ways.linear_between

    def between(self, before, after):
        return (before + after) / 2 + 1 / self.steps


def test_a_trained_baseline_becomes_a_row_with_its_weights_and_steps(random_models, tmp_path, monkeypatch, slices):
    entry = {"name": "diffae", "file": "x", "sha256": "ab" * 32, "bytes": 1, "license": "none", "config": {}}
    (tmp_path / "models.json").write_text(json.dumps({"models": [entry]}))

    def load(name, _, *, steps, **__):
        if name != "DiffAE":
            raise WeightsError("missing-weights", "No weights.", "")
        return Halfway(steps or 64)

    monkeypatch.setattr(rivals, "load", load)
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    row = offer["DiffAE"]
    np.testing.assert_allclose(row.make(slices[:1], slices[1:2]), (slices[:1] + slices[1:2]) / 2 + 1 / 64, atol=1e-6)
    assert row.weights == (("diffae", "ab" * 32),)
    made = row.at_steps(4).make(slices[:1], slices[1:2])
    np.testing.assert_allclose(made, (slices[:1] + slices[1:2]) / 2 + 0.25)
    assert len(offer.notes) == len(rivals.NAMES) + (not syn.is_here())


def test_the_ceiling_is_the_code_of_the_true_slice(random_models, asked):
    offer = systems.offered(Source(random_models, random_models, steps=2, samples=2, device="cpu"))
    assert offer["reconstruction"].sees_truth
    truth = asked[0].truth[:2]
    twice = ways.latent_linear_between(truth, 2, interpolator=warm_interpolator(choose_device("cpu"), random_models))
    np.testing.assert_allclose(twice[::2], offer["reconstruction"].make(truth, truth), atol=0.02)  # bfloat16 batches


@pytest.mark.parametrize("refined", [False, True])
def test_the_papers_form_is_eq_6_to_8_written_out(random_models, asked, refined):
    """On the networks themselves: walk under the gap's condition, CaLID+ from the slerp of two inversions under it."""
    import torch
    from calid.method import diffusion
    from calid_benchmark.paper_form import NOISE_SEED, PaperForm

    interpolator = warm_interpolator(choose_device("cpu"), random_models)
    before, after = asked[0].before[2:3], asked[0].after[2:3]
    made = PaperForm(interpolator, 3, refined).between(before, after)
    model, schedule = interpolator.model, replace(interpolator.model.schedule, max_latent=float("inf"))
    images = [as_images(side) for side in (before, after)]
    with torch.inference_mode(), interpolator.device.autocast():
        z_c = model.denoiser.condition(*images, tuple(model.latent_space.encode(x).float() for x in images))

        def epsilon(z, t):
            return model.denoiser(z, t, z_c)

        shape = (1, *interpolator.latent_shape(before.shape[1:]))
        z_T = torch.from_numpy(np.random.default_rng(NOISE_SEED).standard_normal(shape, dtype=np.float32))
        if refined:
            ends = [list(diffusion.invert(schedule, epsilon, model.encode(x), steps=3))[-1] for x in images]
            cosine = (ends[0] * ends[1]).sum() / ends[0].norm() / ends[1].norm()
            angle = torch.arccos(cosine)
            z_T = (torch.sin(angle / 2) / torch.sin(angle) * (ends[0] + ends[1])).float()
        z_0 = list(diffusion.sample(schedule, epsilon, z_T, steps=3))[-1]
        expected = as_slices(model.decode(z_0).clamp(-1, 1))
    np.testing.assert_allclose(made, expected, atol=0.02)


def test_the_papers_small_model_is_a_row_once_its_weights_are_there(random_models, tmp_path):
    """A model without motion and anchor, trained on epsilon; here with random weights."""
    import torch
    from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig, LatentSpace
    from calid_training.weight_files import write_model

    torch.manual_seed(0)
    coder = AutoencoderConfig(channels=(8, 8, 8), latent_channels=2, num_res_blocks=1, norm_num_groups=8)
    config = DenoiserConfig(
        latent_channels=2,
        channels=(16, 16, 32),
        tau1_channels=(16, 16, 16),
        attention=(False, False, True),
        condition_attention=(True, True, True),
        head_channels=16,
        norm_num_groups=16,
        anchored=False,
        prediction="epsilon",
    )
    space = LatentSpace(Autoencoder(coder), mean=torch.zeros(2), std=torch.ones(2))
    parts = {"latent_space": space.state_dict(), "denoiser": Denoiser(config).state_dict()}
    tensors = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    described = {"autoencoder": asdict(coder), "denoiser": asdict(config)}
    write_model(tmp_path, "calid-paper", tensors, described, license="none", budget="no time at all")
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    assert not any("paper's small" in note for note in offer.notes)
    pair = np.random.default_rng(0).random((2, 1, 32, 32)).astype(np.float32)
    assert offer[systems.PAPERS_SMALL[0]].budget == "no time at all"
    plain, refined = (offer[name].make(*pair) for name in systems.PAPERS_SMALL)
    assert plain.shape == refined.shape == (1, 32, 32)
    assert np.abs(plain - refined).max() > 1e-3
    assert offer[systems.PAPERS_SMALL[1]].whole_heart(pair[:, 0], 4).shape == (5, 32, 32)
