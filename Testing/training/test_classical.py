"""Resampling, registration and contour interpolation on shapes whose half-way form is known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark.rivals import classical, shape_based, syn
from scipy import ndimage

SIZE = 64


def disc(radius: float, *, row: float = 31.5, column: float = 31.5) -> np.ndarray:
    """(64, 64) a disc with an edge one pixel wide, in [0, 1]."""
    y, x = np.indices((SIZE, SIZE))
    return np.clip(radius + 0.5 - np.hypot(y - row, x - column), 0, 1).astype(np.float32)


def middle_of(image: np.ndarray) -> tuple[float, float]:
    return ndimage.center_of_mass(image)


def stack_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 12, 10)).astype(np.float32)


def test_bspline_of_a_ramp_gives_the_middle():
    ramp = np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None, None] * np.ones((5, 8, 6), np.float32)
    made = classical.bspline(ramp[:1], ramp[1:2])
    np.testing.assert_allclose(made[0], 0.2, atol=1e-6)


def test_bspline_uses_the_stack_that_the_pairs_make_together():
    """Slices n-3, n-1, n+1, n+3, ... through scipy's spline, which is another implementation."""
    stack = stack_of(9)
    made = classical.bspline(stack[:-2], stack[2:])
    even, odd = ndimage.spline_filter1d(stack[::2], axis=0), ndimage.spline_filter1d(stack[1::2], axis=0)
    positions = np.arange(4) + 0.5
    for row, column in ((0, 0), (5, 7), (11, 9)):
        expected = ndimage.map_coordinates(even[:, row, column], [positions], prefilter=False, mode="mirror")
        np.testing.assert_allclose(made[::2, row, column], expected, atol=1e-5)
        expected = ndimage.map_coordinates(odd[:, row, column], [positions[:3]], prefilter=False, mode="mirror")
        np.testing.assert_allclose(made[1::2, row, column], expected, atol=1e-5)
    assert np.abs(made - (stack[:-2] + stack[2:]) / 2).max() > 0.05


def test_bspline_never_sees_the_slice_it_makes():
    stack = stack_of(7)
    changed = stack.copy()
    changed[3] = 1 - changed[3]
    made, other = (classical.bspline(x[:-2], x[2:]) for x in (stack, changed))
    np.testing.assert_array_equal(made[2], other[2])


@pytest.mark.skipif(not syn.is_here(), reason="antspyx is not installed (pip install calid[rivals])")
def test_syn_finds_the_way_of_a_disc_in_both_directions():
    before, after = (disc(10, row=row, column=column) for row, column in ((28, 33), (33, 29)))
    u, v = syn.syn(before, after)
    places = (disc(9, row=28, column=33) == 1), (disc(9, row=33, column=29) == 1)
    np.testing.assert_allclose(u[:, places[0]].mean(axis=1), (5, -4), atol=1.0)
    np.testing.assert_allclose(v[:, places[1]].mean(axis=1), (-5, 4), atol=1.0)
    made = classical.registration(before[None], after[None], register=syn.syn)[0]
    assert middle_of(made) == pytest.approx((30.5, 31), abs=0.5)
    assert np.abs(made - disc(10, row=30.5, column=31)).mean() < 0.5 * np.abs((before + after) / 2 - made).mean()


@pytest.mark.parametrize("upsampling", [classical.bspline_between, classical.registration_between])
def test_dense_stacks_keep_the_acquired_slices(upsampling):
    stack = np.stack([disc(10, column=28 + 3 * n) for n in range(3)])
    dense = upsampling(stack, 4)
    assert dense.shape == (9, SIZE, SIZE)
    np.testing.assert_allclose(dense[::4], stack, atol=1e-5)
    assert dense.dtype == np.float32


def test_registration_of_a_shifted_disc_gives_the_disc_half_way():
    before, after = disc(11, column=28), disc(11, column=36)
    made = classical.registration(before[None], after[None])[0]
    expected = disc(11, column=32)
    assert middle_of(made) == pytest.approx((31.5, 32), abs=0.3)
    assert np.abs(made - expected).mean() < 0.3 * np.abs((before + after) / 2 - expected).mean()


def test_registration_moves_evenly_through_a_gap():
    dense = classical.registration_between(np.stack([disc(11, column=28), disc(11, column=36)]), 4)
    columns = [middle_of(image)[1] for image in dense]
    np.testing.assert_allclose(columns, [28, 30, 32, 34, 36], atol=0.5)


def test_registration_of_equal_slices_changes_nothing():
    image = disc(11)
    np.testing.assert_allclose(classical.registration(image[None], image[None])[0], image, atol=1e-4)


def test_labels_between_two_circles_are_the_circle_of_mean_radius():
    small, large = ((disc(radius) > 0.5).astype(np.uint8) for radius in (8, 18))
    made = shape_based.between(small[None], large[None])[0]
    assert made.dtype == np.uint8
    assert np.sqrt(made.sum() / np.pi) == pytest.approx(13, abs=0.3)


def test_nested_structures_stay_nested():
    def heart(radius: float) -> np.ndarray:
        return np.where(disc(radius) > 0.5, 1, np.where(disc(radius + 6) > 0.5, 2, 0)).astype(np.uint8)

    made = shape_based.between(heart(6)[None], heart(12)[None])[0]
    np.testing.assert_array_equal(np.unique(made), [0, 1, 2])
    assert (made != heart(9)).mean() < 0.01


def test_a_structure_that_ends_reaches_half_of_the_gap():
    labels = np.stack([(disc(10) > 0.5), np.zeros((SIZE, SIZE), bool)]).astype(np.uint8) * 3
    dense = shape_based.upsample(labels, 4)
    areas = (dense == 3).sum(axis=(1, 2))
    assert areas[0] > areas[1] > 0
    assert areas[2:].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(dense[::4], labels)


def test_labels_that_fill_the_image_stay():
    full = np.full((1, 8, 8), 2, np.uint8)
    np.testing.assert_array_equal(shape_based.between(full, full), full)
