"""Where codec and denoiser work: found by the beat, cut out, and faded into what surrounds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from calid.errors import SettingsError
from calid.method.bisection import plan_bisection
from calid.method.motion import MEAN_PASSES, REFINED_PASSES
from calid.run.batches import Interpolator
from calid.run.device import choose_device
from calid.run.generation import Generation, cost
from calid.run.preparation import plan_preparation
from calid.run.progress import Watch
from calid.run.reconstruct import upsample, warm_interpolator
from calid.run.region import Region, checked_box, heart_box, region_around
from calid.run.settings import Settings
from calid.stack import Stack

RADIUS_MM, STROKE_MM, FRAMES = 45.0, 12.0, 6


def beating(center: tuple[float, float], size: int = 256) -> Stack:
    """A bright disk (column, row) in mm that contracts, and a chest wall that breathes at the image's left edge."""
    rows, columns = np.mgrid[:size, :size].astype(float)
    distance = np.hypot(columns - center[0], rows - center[1])
    ripple = 60 * np.sin(columns / 5) * np.sin(rows / 7)
    frames = []
    for phase in 2 * np.pi * np.arange(FRAMES) / FRAMES:
        radius = RADIUS_MM - STROKE_MM / 2 * (1 - np.cos(phase))
        disk = 800 / (1 + np.exp((distance - radius) / 2))
        wall = 1000 / (1 + np.exp(columns - 12 - 3 * np.sin(phase)))
        frames.append([300 + ripple + disk * share + wall for share in (1.0, 0.9, 0.8)])
    return Stack(np.array(frames, np.float32), np.diag([1.0, 1.0, 9.0, 1.0]), np.arange(FRAMES) * 40.0)


def test_a_heart_off_the_middle_is_found_with_a_margin_and_a_breathing_chest_is_not():
    stack = beating(center=(100.0, 150.0))
    x0, x1, y0, y1 = heart_box(stack)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((100, 150), abs=5)
    assert 2 * (RADIUS_MM + 25) <= x1 - x0 <= 2 * (RADIUS_MM + 40)
    assert 2 * (RADIUS_MM + 25) <= y1 - y0 <= 2 * (RADIUS_MM + 40)


def test_what_does_not_move_has_no_heart_to_be_found():
    still = beating(center=(120.0, 120.0))
    assert heart_box(still.frames(0, 1)) is None
    assert heart_box(still.with_voxels(np.repeat(still.voxels[:1], 6, axis=0))) is None


def test_a_region_lies_on_the_grid_around_its_box_and_does_not_fade_in_it():
    region = region_around((50, 90, 0, 100), shape=(256, 192), scale=(1.0, 1.0))
    assert (region.rows, region.columns) == ((0, 112), (32, 96))
    pasted = region.paste(torch.zeros(256, 192), torch.ones(region.inner_shape))
    assert (pasted[0:100, 50:90] == 1).all()  # the top of the image does not fade
    assert (pasted[112:] == 0).all()
    assert (pasted[:, :32] == 0).all()
    assert (np.diff(pasted[50, 30:50].numpy()) >= 0).all()
    assert np.abs(np.diff(pasted[50].numpy())).max() < 0.2  # no seam


def test_nearly_all_of_the_image_is_the_whole():
    assert region_around((-10, 180, 4, 250), shape=(256, 192), scale=(1.0, 1.0)) is None


def test_a_mirrored_image_has_its_region_mirrored():
    region = Region((16, 48), (32, 96), (128, 160))
    images = torch.rand(3, 128, 160)
    for mirror in ((-1,), (-2,), (-2, -1)):
        np.testing.assert_array_equal(region.cut(images.flip(mirror), mirror), region.cut(images).flip(mirror))
        pasted = region.paste(images.flip(mirror), torch.zeros(3, 32, 64), mirror).flip(mirror)
        np.testing.assert_allclose(pasted, region.paste(images, torch.zeros(3, 32, 64)))


@pytest.mark.parametrize("roi", [(0, 200, 0, 10), (-1, 20, 0, 20), (30, 20, 0, 20), (0, 8, 0, 40)])
def test_impossible_boxes_are_refused_with_what_is_possible(roi):
    with pytest.raises(SettingsError, match="region"):
        checked_box(roi, rows=60, columns=80)


def test_a_box_is_told_in_the_pixels_of_the_stack():
    fine = Stack(np.random.default_rng(0).random((1, 2, 400, 320), np.float32), np.diag([0.5, 0.5, 8, 1.0]))
    plan = plan_preparation(fine, roi=(100, 160, 200, 240))
    assert plan.working_shape == (200, 160)
    assert plan.box == (64, 192, 160, 256)  # half of it: (32, 96), (80, 128)


def once_moved(model: Interpolator, slices: torch.Tensor) -> torch.Tensor:
    """The means of neighbors, moved by fields that are not refined."""
    pair = slices[:-1], slices[1:]
    return model.moved(*pair, model.fields(*pair, passes=1)).mean(dim=1, keepdim=True)


def test_around_the_heart_slices_are_the_mean_of_moved_neighbors_and_inside_they_are_as_ever():
    beat = beating(center=(112.0, 112.0), size=224)
    settings = Settings(factor=2, method="calid", steps=2, model="2d", device="cpu", frames=(0, 1), align="off")
    part, whole = (upsample(beat, replace(settings, roi=roi)).stack for roi in ("heart", "all"))
    plan, model = plan_preparation(beat), warm_interpolator(choose_device("cpu"), None)
    shown = plan.prepare(beat.voxels[0])
    moved = plan.restore(once_moved(model, shown))
    x0, x1, y0, y1 = part.provenance["roi"]
    outside = np.ones(moved.shape[1:], bool)
    outside[y0:y1, x0:x1] = False
    plain = np.abs(plan.excess(beat.voxels[0])).max(axis=0) == 0  # what is beyond the window is carried past
    made, everywhere = part.voxels[0, 1::2], whole.voxels[0, 1::2]
    np.testing.assert_allclose(made[:, outside & plain], moved[:, outside & plain], atol=1)
    assert np.abs(everywhere - moved)[:, outside & plain].max() > 5
    core = np.s_[:, y0 + 12 : y1 - 12, x0 + 12 : x1 - 12]
    assert np.abs(made - everywhere)[core].mean() < 0.75 * np.abs(made - moved)[core].mean()  # other noise, same D
    assert whole.provenance["roi"] is None


def test_where_nothing_is_drawn_there_is_no_part_of_it():
    beat = beating(center=(112.0, 112.0), size=224)
    settings = Settings(factor=2, mode="fidelity", samples=1, model="2d", device="cpu", frames=(0, 1), align="off")
    assert upsample(beat, settings).stack.provenance["roi"] is None


def test_the_work_in_a_region_is_counted_as_it_is_done():
    beat = beating(center=(112.0, 112.0), size=224).frames(0, 1)
    model, preparation = warm_interpolator(choose_device("cpu"), None), plan_preparation(beat, roi=(62, 162, 62, 162))
    settings, plan = Settings(factor=4, model="2d", device="cpu").resolved(uncertainty=False), plan_bisection(3, 4)
    watch, ticks = Watch(1), []
    watch.tick = ticks.append
    list(Generation(model, preparation, plan, settings, 1, watch).frames(beat.voxels))
    assert preparation.region is not None
    assert sum(ticks) == cost(model, plan, settings, frames=1, draws=1, in_region=True)


def test_the_motion_is_refined_where_both_neighbors_were_acquired():
    model = warm_interpolator(choose_device("cpu"), None)
    assert [model.passes(level) for level in (1, 2, 3)] == [REFINED_PASSES, MEAN_PASSES, MEAN_PASSES]
    plan = plan_bisection(3, 4)  # two gaps, then four
    assert model.moving_evaluations(plan, in_region=False) == 2 * REFINED_PASSES + 4 * MEAN_PASSES
    assert model.moving_evaluations(plan, in_region=True) == 2 * REFINED_PASSES + 4 * MEAN_PASSES + 6
