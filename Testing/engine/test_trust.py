"""The trust score leaves out what it says, compares with linear interpolation, and tells good models from bad."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.report.trust import predicted_slices, trust
from calid.stack import Stack


def sparse_stack(slices: int = 7, frames: int = 2) -> Stack:
    rng = np.random.default_rng(3)
    matrix = phantoms.centered_affine(
        (slices, 20, 24), (1.5, 1.2, 8.0), phantoms.rotation(1), np.array([5.0, 9.0, -3.0])
    )
    return Stack(rng.normal(100, 20, (frames, slices, 20, 24)), matrix, np.arange(frames) * 30.0)


def linear(stack: Stack) -> Stack:
    """n slices -> 2n - 1 by the mean of neighbors: the yardstick itself."""
    dense = np.repeat(stack.voxels, 2, axis=1)[:, :-1].astype(np.float32)
    dense[:, 1::2] = (stack.voxels[:, :-1] + stack.voxels[:, 1:]) / 2
    matrix = stack.affine.copy()
    matrix[:3, 2] /= 2
    return Stack(dense, matrix, stack.frame_times_ms)


class Oracle:
    """Knows the true stack and looks slices up by their place in the patient."""

    def __init__(self, truth: Stack, error: float = 0.0) -> None:
        self.truth, self.error = truth, error
        self.calls: list[Stack] = []

    def __call__(self, stack: Stack) -> Stack:
        self.calls.append(stack)
        made = linear(stack)
        for index in range(1, made.num_slices, 2):
            place = self.truth.to_index(made.to_lps(np.array([0.0, 0.0, index])))
            np.testing.assert_allclose(place[:2], 0, atol=1e-6)
            made.voxels[:, index] = self.truth.voxels[:, round(place[2])] + self.error
        return made


@pytest.mark.parametrize("slices", [3, 4, 7, 8])
def test_every_inner_slice_is_predicted_in_its_place_from_its_neighbors(slices):
    truth = sparse_stack(slices)
    oracle = Oracle(truth)
    predicted = predicted_slices(truth, oracle)
    np.testing.assert_allclose(predicted.voxels, truth.voxels[:, 1:-1], rtol=1e-5)
    np.testing.assert_allclose(predicted.origin_lps, truth.to_lps(np.array([0.0, 0.0, 1.0])))


def test_the_predictor_never_sees_the_slice_it_predicts():
    truth = sparse_stack(6)
    oracle = Oracle(truth)
    predicted_slices(truth, oracle)
    for call, start in zip(oracle.calls, (0, 1), strict=True):
        np.testing.assert_array_equal(call.voxels, truth.voxels[:, start::2])
        assert call.spacing_mm[2] == pytest.approx(16.0)


def test_a_perfect_model_has_no_error_and_full_edge_agreement():
    truth = sparse_stack()
    found = trust(truth, Oracle(truth))
    assert found.score < 1e-6
    assert found.mean("model_edges") == pytest.approx(1)
    assert found.mean("linear_edges") < 0.5


def test_linear_interpolation_scores_exactly_one():
    found = trust(sparse_stack(), linear)
    assert found.score == pytest.approx(1)
    assert found.mean("model_edges") == pytest.approx(found.mean("linear_edges"))


def test_errors_are_root_mean_squares_in_per_cent_of_the_contrast():
    truth = sparse_stack()
    contrast = np.subtract(*np.percentile(truth.voxels, [99.5, 1]))
    found = trust(truth, Oracle(truth, error=5.0))
    assert found.mean("model_rmse") == pytest.approx(500 / contrast, rel=1e-4)


def test_only_errors_in_the_region_count():
    truth = sparse_stack()
    region = np.zeros(truth.voxels.shape[1:], bool)
    region[:, :10] = True

    def wrong_outside(stack: Stack) -> Stack:
        made = Oracle(truth)(stack)
        made.voxels[:, 1::2, 10:] += 500
        return made

    assert trust(truth, wrong_outside, region=region).mean("model_rmse") == pytest.approx(0, abs=1e-4)
    assert trust(truth, wrong_outside).mean("model_rmse") > 100


@pytest.mark.parametrize("base_first", [True, False])
def test_slices_are_told_by_level_from_base_to_apex(base_first):
    found = trust(sparse_stack(9), linear, base_first=base_first)
    levels = [one.level for one in sorted(found.slices, key=lambda one: one.index, reverse=not base_first)]
    assert levels == ["basal"] * 2 + ["middle"] * 3 + ["apical"] * 2
    assert found.levels == ["basal", "middle", "apical"]


def test_without_knowing_the_base_slices_have_no_level():
    assert trust(sparse_stack(), linear).levels == ["slice"]


def test_two_slices_leave_nothing_to_leave_out():
    assert trust(sparse_stack(2), linear) is None
