"""What the networks see, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calid.run.preparation import plan_preparation
from calid.stack import Stack


def stack_of(shape: tuple[int, ...], pixel_mm: float = 1.5, dtype: type = np.int16, seed: int = 0) -> Stack:
    voxels = np.random.default_rng(seed).integers(0, 2000, shape).astype(dtype)
    return Stack(voxels, np.diag([pixel_mm, pixel_mm, 9.0, 1.0]), np.arange(shape[0]) * 40.0)


@pytest.mark.parametrize("size", [(17, 33), (64, 64), (96, 130), (51, 50)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_restore_undoes_prepare_inside_the_window(size, seed):
    stack = stack_of((2, 3, *size), seed=seed)
    plan = plan_preparation(stack)
    images = stack.voxels[0]
    shown = plan.prepare(images)
    assert shown.shape[-2] % 16 == shown.shape[-1] % 16 == 0
    assert shown.min() >= -1
    assert shown.max() <= 1
    np.testing.assert_allclose(plan.restore(shown) + plan.excess(images), images, atol=0.01)


def test_nothing_beyond_the_window_is_lost():
    stack = stack_of((1, 2, 32, 32))
    stack.voxels[0, 0, 3, 4] = 30000
    plan = plan_preparation(stack)
    excess = plan.excess(stack.voxels[0])
    assert excess[0, 3, 4] == 30000 - np.float32(plan.high)
    assert (excess != 0).mean() < 0.05


def test_fine_pixels_are_shown_at_the_size_the_networks_know_and_come_back_in_place():
    rows, columns = np.mgrid[0:200, 0:160]
    blob = 1000 * np.exp(-(((rows - 120) / 20) ** 2) - ((columns - 60) / 30) ** 2)
    stack = Stack(np.stack([blob, blob])[None].astype(np.float32), np.diag([0.5, 0.5, 8, 1.0]))
    plan = plan_preparation(stack)
    assert plan.working_shape == (100, 80)
    back = plan.restore(plan.prepare(stack.voxels[0])) + plan.excess(stack.voxels[0])
    np.testing.assert_allclose(back, stack.voxels[0], atol=15)


def test_one_outlier_does_not_darken_everything():
    stack = stack_of((1, 2, 64, 64))
    plain = plan_preparation(stack)
    stack.voxels[0, 0, 0, 0] = 32000
    assert plan_preparation(stack).high == pytest.approx(plain.high, rel=0.01)
    assert isinstance(plain.prepare(stack.voxels[0]), torch.Tensor)
