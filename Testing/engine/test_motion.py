"""The motion between slices: what it moves, where to, and what the shipped one has learned."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from calid.method.motion import (
    SECOND_SHARE,
    Fields,
    Motion,
    MotionConfig,
    halfway,
    mean_fields,
    moved_by,
    refined_fields,
    warped,
)
from calid.run.batches import load_interpolator
from calid.run.device import choose_device

SMALL = MotionConfig(features=(8,) * 6)


@pytest.fixture
def images():
    return torch.rand(2, 1, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_nothing_moves_before_training(images):
    before, after = halfway(Motion(SMALL).eval(), images, images.flip(0))
    assert torch.allclose(before, images, atol=1e-4)
    assert torch.allclose(after, images.flip(0), atol=1e-4)


@pytest.mark.parametrize(("axis", "dims"), [(0, -2), (1, -1)], ids=["rows", "columns"])
def test_a_field_says_where_a_pixel_comes_from(images, axis, dims):
    field = torch.zeros(2, 2, 32, 48)
    field[:, axis] = 3.0
    moved = warped(images, field)
    size = images.shape[dims]
    assert torch.allclose(moved.narrow(dims, 0, size - 3), images.narrow(dims, 3, size - 3), atol=1e-4)
    last = images.narrow(dims, size - 1, 1)  # beyond its edge an image goes on as its nearest pixel
    assert torch.allclose(moved.narrow(dims, size - 1, 1), last, atol=1e-4)


def test_half_precision_misplaces_nothing(images):
    field = torch.full((2, 2, 32, 48), 1.3)
    with torch.autocast("cpu", torch.bfloat16):
        moved = warped(images, field)
    torch.testing.assert_close(moved, warped(images, field))


def test_the_frames_of_a_cine_move_one_by_one(images):
    torch.manual_seed(0)
    motion = Motion(SMALL).eval()
    torch.nn.init.normal_(motion.unet.final_conv.weight)
    frames = torch.stack([images, images.flip(-1)], dim=2)
    with torch.inference_mode():
        whole = halfway(motion, frames, frames.flip(0))
        alone = halfway(motion, frames[:, :, 1], frames.flip(0)[:, :, 1])
    assert torch.allclose(whole[0][:, :, 1], alone[0], atol=1e-4)
    assert not torch.allclose(alone[0], frames[:, :, 1], atol=1e-2)


def ring(radius: float) -> np.ndarray:
    """A myocardium: a gray ring around a bright pool, in [0, 1]."""
    rows, columns = np.mgrid[:128, :128] - 63.5
    distance = np.hypot(rows, columns)
    inside = 1 / (1 + np.exp(distance - radius))
    outside = 1 / (1 + np.exp(distance - radius - 8))
    return (0.15 + 0.25 * outside + 0.5 * inside).astype(np.float32)


def test_the_shipped_motion_brings_walls_half_way():
    """The mean of two rings is a double ring; of the moved ones, nearly the ring between."""
    interpolator = load_interpolator(choose_device("cpu"))
    wide, middle, narrow = (torch.from_numpy(ring(radius))[None, None] * 2 - 1 for radius in (28, 24, 20))
    moved = interpolator.halfway(wide, narrow)
    error, linear_error = ((x - middle).abs().mean() for x in (moved.mean(dim=1), (wide + narrow) / 2))
    assert error < 0.5 * linear_error


def test_refined_fields_move_at_once_as_two_passes_do_one_after_the_other():
    torch.manual_seed(0)
    motion = Motion(MotionConfig(features=(8,) * 6))
    torch.nn.init.normal_(motion.unet.final_conv.weight, std=0.1)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    before, after = (torch.sin(rows / 9 + shift) * torch.cos(columns / 11 - shift) for shift in (0.0, 0.4))
    before, after = before[None, None], after[None, None]
    with torch.inference_mode():
        fields = refined_fields(motion, before, after)
        passed = moved_by(mean_fields(motion, before, after), before, after)
        rest = mean_fields(motion, *passed)
        twice = moved_by(Fields(*(SECOND_SHARE * field for field in rest)), *passed)
        once = halfway(motion, before, after)
    assert not torch.allclose(fields.before, mean_fields(motion, before, after).before, atol=0.1)
    for seen, wanted in zip(once, twice, strict=True):
        inner = (seen - wanted)[..., 8:-8, 8:-8].abs()  # images that are sampled twice are a little smoother
        assert inner.max() < 0.02


def test_fields_found_both_ways_do_not_depend_on_the_mirror_and_the_order():
    torch.manual_seed(0)
    motion = Motion(MotionConfig(features=(8,) * 6))
    torch.nn.init.normal_(motion.unet.final_conv.weight, std=0.5)
    before, after = torch.rand(2, 1, 1, 64, 96)
    with torch.inference_mode():
        seen = mean_fields(motion, before, after)
        mirrored = mean_fields(motion, after.flip(-1), before.flip(-1))
    sign = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    assert seen.before.abs().max() > 0.1
    torch.testing.assert_close(seen.before, mirrored.after.flip(-1) * sign, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.after, mirrored.before.flip(-1) * sign, atol=1e-5, rtol=1e-4)
