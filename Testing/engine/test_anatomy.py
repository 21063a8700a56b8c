"""Cleaning removes what cannot be in a heart, and leaves experts' labels alone."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.heart.anatomy import clean_labels, signed_distance
from calid.images.files import read_stack
from calid.labels import LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.stack import Stack

LV, WALL, RV = LV_CAVITY.value, MYOCARDIUM.value, RV_CAVITY.value


@pytest.fixture(scope="module", params=[8.0, 1.6], ids=["sparse", "dense"])
def heart(request) -> Stack:
    return phantoms.heart_labels((1.5, 1.4, request.param))


def spoiled(heart: Stack, change) -> Stack:
    """The heart with `change` applied in place to a copy of its one frame."""
    voxels = heart.voxels.copy()
    change(voxels[0])
    return heart.with_voxels(voxels)


def middle_slice(heart: Stack) -> int:
    return int(np.median(np.flatnonzero((heart.voxels[0] == LV).any(axis=(1, 2)))))


def assert_restored(heart: Stack, dirty: Stack, *, tolerance: float = 0.0) -> None:
    assert (dirty.voxels != heart.voxels).any(), "the test spoiled nothing"
    wrong = (clean_labels(dirty).voxels != heart.voxels).sum()
    assert wrong <= tolerance * (dirty.voxels != heart.voxels).sum()


def test_a_clean_heart_is_left_as_it_is(heart):
    np.testing.assert_array_equal(clean_labels(heart).voxels, heart.voxels)


@pytest.mark.parametrize("label", [LV, WALL, RV])
def test_specks_far_from_the_heart_are_removed(heart, label):
    def speck(frame):
        frame[1:3, 2:6, 3:8] = label

    assert_restored(heart, spoiled(heart, speck))


@pytest.mark.parametrize("label", [LV, WALL, 0])
def test_holes_in_the_cavity_are_filled(heart, label):
    z = middle_slice(heart)
    y, x = np.argwhere(heart.voxels[0, z] == LV).mean(axis=0).astype(int)

    def hole(frame):
        frame[z, y - 2 : y + 2, x - 2 : x + 3] = label
        frame[z, y, x - 6] = WALL

    assert_restored(heart, spoiled(heart, hole))


def test_a_hole_in_the_right_ventricle_is_filled(heart):
    z = middle_slice(heart)
    y, x = np.argwhere(heart.voxels[0, z] == RV).mean(axis=0).astype(int)

    def hole(frame):
        frame[z, y - 1 : y + 2, x - 1 : x + 2] = 0

    assert_restored(heart, spoiled(heart, hole))


def test_a_gap_in_the_ring_is_closed_about_as_thick_as_the_ring_is(heart):
    z = middle_slice(heart)
    y, x = np.argwhere(heart.voxels[0, z] == LV).mean(axis=0).astype(int)

    def breach(frame):
        away_from_rv = frame[z, y - 4 : y + 4, :x]  # the phantom's RV lies towards larger columns
        away_from_rv[away_from_rv == WALL] = 0

    dirty = spoiled(heart, breach)
    assert_restored(heart, dirty, tolerance=0.25)
    image = clean_labels(dirty).voxels[0, z]
    for axis in (0, 1):
        for step in (1, -1):
            assert not ((np.roll(image, step, axis) == LV) & (image == 0)).any()


def test_a_right_ventricle_that_touches_the_cavity_gives_up_only_what_touches_it(heart):
    z = middle_slice(heart)
    y, x = np.argwhere(heart.voxels[0, z] == LV).mean(axis=0).astype(int)

    def breach(frame):
        septum = frame[z, y - 2 : y + 2, x:]
        septum[septum == WALL] = RV

    dirty = spoiled(heart, breach)
    changed = clean_labels(dirty).voxels != dirty.voxels
    assert 0 < changed.sum() <= 8
    assert (clean_labels(dirty).voxels[changed] == WALL).all()


def test_the_ventricle_survives_a_slice_in_which_it_was_lost(heart):
    z = middle_slice(heart)

    def lose(frame):
        frame[z] = 0

    dirty = spoiled(heart, lose)
    cleaned = clean_labels(dirty).voxels[0, z]
    for label in (LV, WALL, RV):
        truth = heart.voxels[0, z] == label
        overlap = 2 * (truth & (cleaned == label)).sum() / (truth.sum() + (cleaned == label).sum())
        assert overlap > 0.93


def test_myocardium_above_the_base_is_removed(heart):
    first = np.flatnonzero((heart.voxels[0] == LV).any(axis=(1, 2)))[0]

    def roof(frame):
        frame[first - 1][frame[first] == WALL] = WALL

    assert_restored(heart, spoiled(heart, roof))


def test_the_apex_of_a_dense_stack_is_closed_below_the_cavity():
    heart = phantoms.heart_labels((1.5, 1.4, 1.6))
    last = np.flatnonzero((heart.voxels[0] == LV).any(axis=(1, 2)))[-1] - 2

    def amputate(frame):
        frame[last + 1 :][frame[last + 1 :] < RV] = 0

    dirty = spoiled(heart, amputate)
    below = clean_labels(dirty).voxels[0, last + 1]
    assert (below[heart.voxels[0, last] == LV] == WALL).all()


def test_an_outflow_tract_open_for_most_of_its_ring_is_left_open(heart):
    z = middle_slice(heart)

    def outflow(frame):
        frame[z][frame[z] == WALL] = 0

    dirty = spoiled(heart, outflow)
    assert not (clean_labels(dirty).voxels[0, z] == WALL).any()


def test_cleaning_twice_changes_nothing_more():
    rng = np.random.default_rng(4)
    heart = phantoms.heart_labels((1.5, 1.4, 8.0))
    noisy = np.where(rng.random(heart.voxels.shape) < 0.03, rng.integers(0, 4, heart.voxels.shape), heart.voxels)
    once = clean_labels(heart.with_voxels(noisy.astype(np.uint8)))
    np.testing.assert_array_equal(clean_labels(once).voxels, once.voxels)
    assert (once.voxels != heart.voxels).mean() < 0.3 * (noisy != heart.voxels).mean()


def test_an_empty_frame_stays_empty():
    heart = phantoms.heart_labels((1.5, 1.4, 8.0), contractions=(1.0, 0.8))
    voxels = heart.voxels.copy()
    voxels[1] = 0
    cleaned = clean_labels(heart.with_voxels(voxels))
    assert not cleaned.voxels[1].any()
    np.testing.assert_array_equal(cleaned.voxels[0], heart.voxels[0])


def test_turning_the_slice_order_turns_the_result():
    rng = np.random.default_rng(5)
    heart = phantoms.heart_labels((1.5, 1.4, 1.6))
    noisy = np.where(rng.random(heart.voxels.shape) < 0.02, 0, heart.voxels).astype(np.uint8)
    forward = clean_labels(heart.with_voxels(noisy)).voxels
    backward = clean_labels(heart.with_voxels(noisy[:, ::-1])).voxels[:, ::-1]
    np.testing.assert_array_equal(forward, backward)


def test_the_signed_distance_of_a_disk_is_its_radius_less_the_distance_to_its_center():
    rows, columns = np.indices((81, 101))
    distance = np.hypot((columns - 50) * 1.2, (rows - 40) * 0.8)
    depth = signed_distance(distance <= 20, np.array([1.2, 0.8]))
    near = np.abs(distance - 20) < 15
    np.testing.assert_allclose(depth[near], 20 - distance[near], atol=0.9)


@pytest.mark.data
def test_experts_labels_are_left_almost_as_they_are(data_folder):
    changed = []
    for number in (61, 64, 67, 70, 73, 76, 79):
        for path in sorted((data_folder / "acdc" / f"patient{number:03d}").glob("*_gt.nii.gz")):
            raw = read_stack(path)
            labels = raw.with_voxels(np.array([0, RV, WALL, LV], np.uint8)[raw.voxels.astype(int)])
            changed.append((clean_labels(labels).voxels != labels.voxels).sum() / (labels.voxels > 0).sum())
    assert len(changed) == 14
    assert np.mean(changed) < 0.001
    assert np.max(changed) < 0.01
