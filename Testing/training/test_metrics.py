"""Figures against numbers worked out by hand or by another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark import metrics
from calid_benchmark.tables import record


def test_psnr_of_a_constant_error_is_known():
    truth = np.zeros((1, 16, 16), np.float32)
    assert metrics.psnr(truth, truth + 0.1) == [pytest.approx(20.0, abs=1e-4)]


def test_ssim_agrees_with_monai():
    from monai.metrics import SSIMMetric

    rng = np.random.default_rng(0)
    truth = rng.random((2, 48, 48)).astype(np.float32)
    made = (truth + 0.2 * rng.random((2, 48, 48))).clip(0, 1).astype(np.float32)
    oracle = SSIMMetric(spatial_dims=2, data_range=1.0)(
        torch.from_numpy(made)[:, None], torch.from_numpy(truth)[:, None]
    )
    assert metrics.ssim(truth, made) == pytest.approx(oracle.flatten().tolist(), abs=0.02)  # borders differ


def test_gradient_magnitude_of_a_ramp_is_its_slope():
    ramp = np.tile(np.arange(10) * 0.05, (10, 1))[None]
    assert metrics.gradient_magnitude(ramp) == [pytest.approx(0.05)]


def test_identical_features_are_at_distance_zero_and_opposite_ones_at_four():
    features = [torch.ones(2, 3, 4, 4)]
    assert metrics.feature_distance(features, features) == [0, 0]
    assert metrics.feature_distance(features, [-features[0]]) == pytest.approx([4, 4])


def test_frechet_distance_of_shifted_and_stretched_gaussians_is_the_formula():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(20000, 3)) * [1.0, 2.0, 0.5]
    assert metrics.frechet_distance(base, base + np.array([3.0, 0, 0])) == pytest.approx(9.0, rel=0.01)
    assert metrics.frechet_distance(base, base * 2) == pytest.approx(1 + 4 + 0.25, rel=0.05)


def test_a_set_that_is_nearer_in_every_patient_is_nearer_beyond_chance_and_the_same_set_is_not():
    rng = np.random.default_rng(0)
    truth, patients = rng.normal(size=(60, 3)), [str(number) for number in np.repeat(np.arange(12), 5)]
    near, far = truth + 0.2, truth + 1.0
    assert metrics.frechet_p(truth, near, far, patients, draws=200) < 0.02
    assert metrics.frechet_p(truth, far, near, patients, draws=200) < 0.02
    mixed = np.where(np.repeat(np.arange(12) % 2, 5)[:, None] == 0, truth + 0.5, truth - 0.5)
    assert metrics.frechet_p(truth, mixed, -mixed, patients, draws=200) > 0.05


def test_one_patient_has_a_mean_and_no_interval():
    assert metrics.interval([20.05]) is None
    assert metrics.summary([20.05, np.nan]) == {"mean": 20.05, "sd": 0.0, "count": 1}
    assert record.cell(metrics.compared([20.05], [19.0]), 2) == "20.05"
    assert record.cell(metrics.compared([20.0, 20.0], [19.0, 18.0]), 2) == "20.00 [20.00, 20.00]"
    assert metrics.summary([np.nan]) is None


def test_two_stacks_of_a_patient_count_as_one_patient():
    found = metrics.per_patient(
        [
            ("a", {"lv": {"dice": 0.8, "hd": np.nan}}),
            ("b", {"lv": {"dice": 0.5, "hd": 3.0}}),
            ("a", {"lv": {"dice": 0.6, "hd": 2.0}, "rv": {"dice": 0.1}}),
        ]
    )
    assert found[0] == {"lv": {"dice": pytest.approx(0.7), "hd": 2.0}, "rv": {"dice": 0.1}}
    assert found[1]["lv"] == {"dice": 0.5, "hd": 3.0}
    assert np.isnan(found[1]["rv"]["dice"])


def test_masks_are_compared_in_every_unit_and_where_one_is_empty_distances_do_not_exist():
    made, truth = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    made[5:15, 5:15], truth[5:15, 8:18] = True, True  # 100 each, 70 shared
    found = metrics.compare_masks(made, truth, {"px": (1, 1), "mm": (2.0, 1.5)})
    assert found["dice"] == pytest.approx(0.7)
    assert (found["hd_px"], found["hd_mm"]) == (pytest.approx(3), pytest.approx(4.5))
    missed = metrics.compare_masks(np.zeros_like(made), truth, {"px": (1, 1)})
    assert (missed["dice"], missed["voe"]) == (0, 100)
    assert np.isnan(missed["assd_px"])
    assert np.isnan(metrics.compare_masks(np.zeros_like(made), np.zeros_like(made), {})["dice"])


def test_intervals_hold_the_mean_and_tests_see_a_difference():
    values = np.random.default_rng(0).normal(5, 1, 30)
    low, high = metrics.interval(values)
    assert low < values.mean() < high
    assert metrics.paired_p(values, values - 1) < 0.001
    assert metrics.paired_p(values, values) is None
    assert metrics.paired_p(values[:3], values[:3] - 1) is None
