"""The systems behind their one door: bisection, whole stacks, shared answers and missing weights."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark import rivals, systems
from calid_benchmark.systems import Named, Source


@pytest.fixture
def slices() -> np.ndarray:
    return np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)


def test_bisecting_with_the_mean_is_linear_interpolation(slices):
    dense = systems.bisected(systems.linear, slices, 8)
    places = np.arange(25) / 8
    expected = np.stack([np.interp(places, range(4), column) for column in slices.reshape(4, -1).T], axis=1)
    np.testing.assert_allclose(dense.reshape(25, -1), expected, atol=1e-6)
    np.testing.assert_allclose(systems.linear_between(slices, 8), dense, atol=1e-6)


def test_the_staircase_takes_the_nearest_acquired_slice(slices):
    dense = systems.nearest_slices(slices, 4)
    np.testing.assert_array_equal(dense[[0, 1, 3, 4, 5]], slices[[0, 0, 1, 1, 1]])
    assert len(dense) == 13


def test_acquired_slices_come_back_as_they_were(slices):
    made = Named("blank", systems.linear, upsample=lambda stack, factor: np.zeros((len(stack) * factor, 8, 8))[:7])
    np.testing.assert_array_equal(made.whole_heart(slices, 2)[::2], slices)


def test_an_answer_is_clipped_and_says_how_long_it_took(slices):
    answer = Named("bright", lambda before, after: before + 2 * after - 0.5).answer(slices[:-1], slices[1:])
    assert answer.seconds > 0
    assert (answer.images.min(), answer.images.max()) == (0, 1)


def test_systems_come_in_the_order_of_the_papers_and_missing_ones_say_how_to_get_them(random_models, tmp_path):
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    names = [system.name for system in offer.systems]
    assert names.index("linear") < names.index("bilinear latent") < names.index("CaLID") < names.index("CaLID+")
    assert len(offer.notes) == len(rivals.NAMES)
    assert all("is left out" in note and "README" in note for note in offer.notes)


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
    interpolator = systems.warm_interpolator(systems.choose_device("cpu"), random_models)
    motion_alone = {mode: replace(interpolator.departures[mode], strength=0.0) for mode in ("detail", "fidelity")}
    settings = systems.Settings(factor=2, method="calid", mode=mode, samples=samples, steps=1, device="cpu")
    stack = asked[0].images[2:5]
    expected, _ = systems.generated(replace(interpolator, departures=motion_alone), stack[None], 2, settings)[0]
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
        self.whole_heart = systems.linear_between

    def between(self, before, after):
        return (before + after) / 2 + 1 / self.steps


def test_a_trained_baseline_becomes_a_row_with_its_weights_and_steps(random_models, tmp_path, monkeypatch, slices):
    entry = {"name": "diffae", "file": "x", "sha256": "ab" * 32, "bytes": 1, "license": "none", "config": {}}
    (tmp_path / "models.json").write_text(json.dumps({"models": [entry]}))

    def load(name, _, *, steps, **__):
        if name != "DiffAE":
            raise systems.WeightsError("missing-weights", "No weights.", "")
        return Halfway(steps or 64)

    monkeypatch.setattr(rivals, "load", load)
    offer = systems.offered(Source(random_models, tmp_path, steps=2, samples=2, device="cpu"))
    row = offer["DiffAE"]
    np.testing.assert_allclose(row.make(slices[:1], slices[1:2]), (slices[:1] + slices[1:2]) / 2 + 1 / 64, atol=1e-6)
    assert row.weights == (("diffae", "ab" * 32),)
    made = row.at_steps(4).make(slices[:1], slices[1:2])
    np.testing.assert_allclose(made, (slices[:1] + slices[1:2]) / 2 + 0.25)
    assert len(offer.notes) == len(rivals.NAMES) - 1


def test_the_ceiling_is_the_code_of_the_true_slice(random_models, asked):
    offer = systems.offered(Source(random_models, random_models, steps=2, samples=2, device="cpu"))
    assert offer["reconstruction"].sees_truth
    truth = asked[0].truth[:2]
    twice = systems.latent_linear_between(
        truth, 2, interpolator=systems.warm_interpolator(systems.choose_device("cpu"), random_models)
    )
    np.testing.assert_allclose(twice[::2], offer["reconstruction"].make(truth, truth), atol=0.02)  # bfloat16 batches
