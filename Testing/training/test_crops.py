"""Crops are geometry: they must be where the plan says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calid_training.crops import CropPlan, CropStream, Variety, apply_crop, draw_crop


def plan(**changes) -> CropPlan:
    defaults = {"center": (20.0, 12.0), "pixel_mm": 1.5, "angle": 0.0, "mirrored": False, "gamma": 1.0, "size": 16}
    return CropPlan(**(defaults | changes))


def ramps(height: int = 40, width: int = 50) -> np.ndarray:
    """Two images whose values are their own column and row numbers, scaled to [0, 1]."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns / 100, rows / 100]).astype(np.float32)


def coordinates(crop: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = (crop[:, 0].numpy() + 1) / 2 * 100
    return values[0], values[1]


def test_the_center_of_the_crop_is_where_it_was_asked_for():
    columns, rows = coordinates(apply_crop(ramps(), plan(), native_mm=1.5))
    assert columns[8, 7:9].mean() == pytest.approx(20, abs=0.05)
    assert rows[7:9, 8].mean() == pytest.approx(12, abs=0.05)
    assert np.diff(columns, axis=1) == pytest.approx(np.ones((16, 15)), abs=0.05)


def test_pixels_twice_as_large_show_twice_as_much():
    columns, _ = coordinates(apply_crop(ramps(), plan(pixel_mm=3.0, size=8), native_mm=1.5))
    assert np.diff(columns, axis=1) == pytest.approx(np.full((8, 7), 2.0), abs=0.05)


def test_a_quarter_turn_turns_columns_into_rows():
    columns, rows = coordinates(apply_crop(ramps(), plan(angle=np.pi / 2, size=8), native_mm=1.5))
    assert np.diff(columns, axis=0) == pytest.approx(np.full((7, 8), -1.0), abs=0.05)
    assert np.diff(rows, axis=1) == pytest.approx(np.full((8, 7), 1.0), abs=0.05)


def test_mirrored_columns_run_backwards():
    columns, _ = coordinates(apply_crop(ramps(), plan(mirrored=True), native_mm=1.5))
    assert (np.diff(columns, axis=1) < 0).all()


def test_outside_the_image_there_is_air():
    crop = apply_crop(np.ones((1, 20, 20), np.float32), plan(center=(0.0, 0.0)), native_mm=1.5)
    assert crop[0, 0, 0, 0] == -1
    assert crop[0, 0, -3, -3] == pytest.approx(1, abs=1e-5)


def test_a_lower_white_brightens_and_shading_runs_from_edge_to_edge():
    even = np.full((1, 40, 40), 0.25, np.float32)
    brighter = apply_crop(even, plan(white=0.5), native_mm=1.5)[0, 0, 8, 8]
    assert brighter == pytest.approx(2 * 0.5 - 1, abs=1e-4)
    shaded = (apply_crop(even, plan(shading=(np.log(2), 0.0)), native_mm=1.5)[0, 0] + 1) / 2
    assert shaded[:, -1] / shaded[:, 0] == pytest.approx(np.full(16, 2.0), rel=1e-3)
    assert shaded[0] == pytest.approx(shaded[-1])


def test_a_bend_moves_places_smoothly_and_all_slices_alike():
    bend = np.zeros((2, 5, 5), np.float32)
    bend[0] = 2.0  # the same everywhere is a shift along the columns
    columns, rows = coordinates(apply_crop(ramps(), plan(bend=bend), native_mm=1.5))
    straight = coordinates(apply_crop(ramps(), plan(), native_mm=1.5))
    assert columns == pytest.approx(straight[0] + 2, abs=0.05)
    assert rows == pytest.approx(straight[1], abs=0.05)
    drawn = draw_crop(
        np.random.default_rng(0), center=np.array([20.0, 12.0]), native_mm=1.5, size=16, variety=Variety(bend_mm=3.0)
    )
    assert drawn.bend.shape == (2, 5, 5)
    assert 0 < np.abs(drawn.bend).max() < 3 / 1.5 * 4


def test_all_slices_of_a_triplet_are_cut_alike():
    image = np.random.default_rng(0).random((30, 30)).astype(np.float32)
    crop = apply_crop(np.stack([image] * 3), plan(angle=0.3), native_mm=1.2)
    assert (crop[0] == crop[1]).all()
    assert (crop[0] == crop[2]).all()


def test_the_same_epoch_gives_the_same_batches_and_the_next_one_others():
    def make(rng, _, count, size):
        return {"drawn": torch.tensor(rng.integers(0, 1_000_000, count)), "size": torch.tensor(size)}

    stream = CropStream([0], make, batch_size=4, sizes=(32, 64), size_weights=(1, 1), batches=5, seed=3)
    first, again = (list(stream) for _ in range(2))
    assert all((a["drawn"] == b["drawn"]).all() for a, b in zip(first, again, strict=True))
    assert {len(batch["drawn"]) for batch in first} <= {4, 1}  # a crop twice as wide has four times the pixels
    stream.epoch = 1
    assert any(
        len(a["drawn"]) != len(b["drawn"]) or (a["drawn"] != b["drawn"]).any()
        for a, b in zip(first, stream, strict=True)
    )
    stream.epoch, stream.rank = 0, 1
    assert any(
        len(a["drawn"]) != len(b["drawn"]) or (a["drawn"] != b["drawn"]).any()
        for a, b in zip(first, stream, strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
def test_drawn_pixel_sizes_stay_within_what_the_networks_are_trained_for(seed):
    rng = np.random.default_rng(seed)
    for native_mm in (0.7, 1.4, 2.8):
        assert 1.15 <= draw_crop(rng, center=np.zeros(2), native_mm=native_mm, size=32).pixel_mm <= 2.05
