"""Long-axis images as guides: their lines lie where geometry says, and correct the motion there and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import phantoms
import pytest
import torch
from calid.errors import Cancelled
from calid.method.bisection import plan_bisection
from calid.method.guidance import CHANNELS, GAP_MM, Lines, corrected, grid_shape, reflected
from calid.method.motion import Fields, moved_by
from calid.run.guidance import guide_of
from calid.run.preparation import plan_preparation
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.run.shifts import Alignment, Shift
from calid.stack import LaxImage, Stack

SIZE = 128
CENTER = (SIZE - 1) / 2


def ring(radius: float, center: tuple[float, float] = (CENTER, CENTER)) -> torch.Tensor:
    """A myocardium, (H, W) in [-1, 1]."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows - center[0], columns - center[1])
    inside, outside = (1 / (1 + np.exp(distance - edge)) for edge in (radius, radius + 8))
    return torch.from_numpy(2 * (0.15 + 0.25 * outside + 0.5 * inside) - 1).float()


def spokes(truth: torch.Tensor, count: int, *, noise: float = 0.1, rows: tuple[int, int] = (0, SIZE)) -> Lines:
    """Lines through the middle of the true slice, four pixels wide, some rows of them."""
    along, across = np.arange(-55, 56), np.linspace(-1.6, 1.6, 5)
    places = []
    for angle in np.pi * np.arange(count) / count:
        direction, aside = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        places.append(CENTER + along[:, None, None] * direction + across[:, None] * aside)
    points = torch.from_numpy(np.concatenate(places)).float()
    seen = warped_at(truth, points).mean(dim=1)
    middle = points.mean(dim=1)[:, 0]
    known = (middle >= rows[0]) & (middle < rows[1])
    return Lines(points[None], seen[None, None], known[None] / noise**2)


def warped_at(image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    grid = (2 * points / (SIZE - 1) - 1).flip(-1)[None]
    return torch.nn.functional.grid_sample(image[None, None], grid, align_corners=True)[0, 0]


def moved_mean(before: torch.Tensor, after: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    still = torch.zeros(1, 2, SIZE, SIZE)
    first, last = moved_by(Fields(still, still), before[None, None], after[None, None], correction[0])
    return ((first + last) / 2)[0, 0]


def guided(before: torch.Tensor, after: torch.Tensor, lines: Lines, gap_mm: float = GAP_MM) -> torch.Tensor:
    fields = torch.zeros(1, 1, 4, SIZE, SIZE)
    return corrected(before[None, None], after[None, None], fields, lines, gap_mm=gap_mm, is_periodic=False)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_lines_bring_walls_to_where_they_are_between_the_lines_too(count):
    truth, before, after = ring(24, (66, 62)), ring(27, (67, 62)), ring(22, (65, 62))
    found = guided(before, after, spokes(truth, count))
    blind, seen = moved_mean(before, after, torch.zeros_like(found)), moved_mean(before, after, found)
    assert (seen - truth).square().mean() < 0.6 * (blind - truth).square().mean()
    between = torch.ones(SIZE, SIZE, dtype=torch.bool)
    points = spokes(truth, count).places[0].round().long().flatten(0, 1)
    between[points[:, 0].clamp(0, SIZE - 1), points[:, 1].clamp(0, SIZE - 1)] = False
    assert (seen - truth)[between].square().mean() < 0.8 * (blind - truth)[between].square().mean()


def test_more_lines_help_more():
    truth, before, after = ring(24, (66, 62)), ring(28, (68, 62)), ring(21, (65, 62))
    errors = [
        (moved_mean(before, after, guided(before, after, spokes(truth, count))) - truth).square().mean()
        for count in (1, 3, 6)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_without_lines_nothing_is_corrected():
    none = spokes(ring(24), 3)
    none = replace(none, weights=torch.zeros_like(none.weights))
    assert not guided(ring(26), ring(22), none).any()


def test_a_slice_between_near_neighbors_follows_those_more_than_the_lines():
    lines = spokes(ring(24), 3)
    wide, near = (guided(ring(27), ring(23), lines, gap_mm) for gap_mm in (18.0, 3.0))
    assert near.abs().max() < 0.6 * wide.abs().max()
    assert near[0, :, 5].abs().max() < 0.6 * wide[0, :, 5].abs().max()


def test_far_from_every_line_next_to_nothing_changes():
    truth, before, after = ring(24, (66, 62)), ring(27, (67, 62)), ring(22, (65, 62))
    found = guided(before, after, spokes(truth, 3, rows=(0, 40)))
    moved = found[0, 0, :4].abs().amax(dim=(0, 2))  # by row of nodes
    assert moved[:24].max() > 0.3
    assert moved[-16:].max() < 0.1 * moved[:24].max()
    assert found[0, 0, 5, 30:].abs().max() < 0.01


def test_what_the_motion_says_already_is_left_as_it_is():
    image = ring(24)
    assert guided(image, image, spokes(image, 3)).abs().max() < 0.02


def test_one_flawed_line_does_not_tear_the_slice():
    truth, before, after = ring(24), ring(26), ring(22)
    lines = spokes(truth, 3)
    flawed = lines.values.clone()
    flawed[..., :20] = 5.0
    found = guided(before, after, replace(lines, values=flawed))
    assert found[:, :, :4].abs().max() < 4
    blind, seen = moved_mean(before, after, torch.zeros_like(found)), moved_mean(before, after, found)
    assert (seen - truth).square().mean() < (blind - truth).square().mean()


def test_a_course_of_time_is_corrected_evenly():
    """A frame whose line is lost is corrected by the frames beside it."""
    truth, before, after = ring(24, (66, 62)), ring(27, (67, 62)), ring(22, (65, 62))
    lines = spokes(truth, 3)
    values = lines.values.repeat(5, 1, 1)
    values[2] = warped_at((before + after) / 2, lines.places[0]).mean(dim=1)
    stacked = [image[None, None].repeat(5, 1, 1, 1) for image in (before, after)]
    fields = torch.zeros(5, 1, 4, SIZE, SIZE)
    found = corrected(*stacked, fields, replace(lines, values=values), gap_mm=GAP_MM, is_periodic=True)
    assert found[2].abs().mean() > 0.2 * found[0].abs().mean()


def random_gap() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both slices, and a correction of everything."""
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 1, 1, 1, 0.2, 0.1])[:, None, None]
    return torch.rand(1, 1, 48, 64), torch.rand(1, 1, 48, 64), torch.randn(1, CHANNELS, *grid_shape(48, 64)) * scale


@pytest.mark.parametrize("axes", [(), (-1,), (-2,), (-2, -1)])
def test_a_correction_in_the_mirror_moves_the_mirrored_images_alike(axes):
    before, after, correction = random_gap()
    still = Fields(*torch.zeros(2, 1, 2, 48, 64))
    plain = moved_by(still, before, after, correction)
    seen = moved_by(still, before.flip(axes), after.flip(axes), reflected(correction, axes))
    for mirrored, image in zip(seen, plain, strict=True):
        torch.testing.assert_close(mirrored.flip(axes), image, atol=1e-4, rtol=1e-4)


def test_a_place_that_takes_after_one_neighbor_becomes_like_it():
    """A valve plane passes between the slices, nearer to the first than half-way: all the gap looks like the second."""
    before, after = torch.full((SIZE, SIZE), -0.6), ring(24)
    found = guided(before, after, spokes(after, 3))
    blind, seen = moved_mean(before, after, torch.zeros_like(found)), moved_mean(before, after, found)
    inside = ring(24) > -0.3
    assert (seen - after)[inside].square().mean() < 0.5 * (blind - after)[inside].square().mean()
    assert found[:, :, 4].max() > 0.2


def test_what_no_neighbor_has_appears_beside_the_line_and_not_far_from_it():
    plain = ring(24)
    truth = plain.clone()
    truth[60:68, 60:68] = 0.0  # a valve in the middle of the blood
    lines = spokes(truth, 2)
    found = guided(plain, plain, lines)
    seen = moved_mean(plain, plain, found)
    on = lines.places[0].round().long().flatten(0, 1)
    on = on[((on >= 62) & (on < 66)).all(dim=1)]
    assert (seen - plain)[on[:, 0], on[:, 1]].mean() < -0.3
    assert (seen - plain)[:40].abs().max() < 0.05


# --- long-axis images of a stack --------------------------------------------------------------------------------------


SLOPES = np.array([0.7, -1.3, 2.1])


def field_of(points_lps: np.ndarray) -> np.ndarray:
    """Intensities that are linear in space, so that slabs and interpolation reproduce them exactly."""
    return 400 + points_lps @ SLOPES


def linear_stack() -> Stack:
    matrix = phantoms.centered_affine((5, 80, 90), (1.7, 1.6, 10.0), phantoms.rotation(2), np.array([9.0, -5.0, 20.0]))
    return pictured_field(Stack(np.zeros((1, 5, 80, 90)), matrix))


def pictured_field(stack: Stack) -> Stack:
    z, y, x = np.indices(stack.voxels.shape[1:])
    voxels = field_of(stack.to_lps(np.stack([x, y, z], axis=-1)))[None]
    return stack.with_voxels(voxels.astype(np.float32))


def crossing_view(stack: Stack, *, gain: float = 1.0, offset: float = 0.0) -> Stack:
    """An oblique plane that holds the slices' normal, nearly."""
    x, y, z = stack.directions_lps.T
    side, down = (x + 0.4 * y) / np.linalg.norm(x + 0.4 * y), z + 0.1 * x
    down = down / np.linalg.norm(down)
    side = side - (side @ down) * down
    side /= np.linalg.norm(side)
    normal = np.cross(side, down)
    matrix = phantoms.centered_affine(
        (1, 60, 100), (1.5, 1.4, 6.0), np.stack([side, down, normal], axis=1), np.array([11.0, -4.0, 20.0])
    )
    shown = pictured_field(Stack(np.zeros((1, 1, 60, 100)), matrix))
    return shown.with_voxels(gain * shown.voxels + offset)


def no_shifts(stack: Stack, *views: str) -> Alignment:
    zero, known = (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)
    slices = tuple(Shift(f"slice {index + 1}", zero, known) for index in range(stack.num_slices))
    return Alignment("long-axis images", slices, tuple(Shift(name, zero, known) for name in views))


def test_a_line_has_the_intensities_of_its_places_whatever_the_views_gain_and_offset():
    stack = linear_stack()
    view = crossing_view(stack, gain=0.4, offset=90.0)
    preparation, plan = plan_preparation(stack), plan_bisection(5, 4)
    guide = guide_of(stack, {"view": view}, no_shifts(stack, "view"), preparation, plan)
    lines = guide.lines([2, 6, 9])
    assert (lines.weights > 0).float().mean() > 0.3
    for index, slot in enumerate((2, 6, 9)):
        inside = lines.weights[index] > 0
        rows, columns = lines.places[index][inside].mean(dim=1).T.numpy()
        points = stack.to_lps(np.stack([columns, rows, np.full(len(rows), slot / 4)], axis=-1))
        wanted = (field_of(points) - preparation.low) / (preparation.high - preparation.low) * 2 - 1
        seen = lines.values[0, index][inside].numpy()
        within = np.abs(wanted) < 0.95
        np.testing.assert_allclose(seen[within], wanted[within], atol=0.03)


def test_a_shift_of_the_view_is_undone_before_it_guides():
    stack = linear_stack()
    view = crossing_view(stack)
    shift = np.array([4.0, -3.0, 2.0])
    displaced = view.affine.copy()
    displaced[:3, 3] -= view.directions_lps @ shift
    alignment = no_shifts(stack, "view")
    told = replace(alignment, views=(replace(alignment.views[0], mm=tuple(shift)),))
    preparation, plan = plan_preparation(stack), plan_bisection(5, 4)
    plain = guide_of(stack, {"view": view}, alignment, preparation, plan).lines([6])
    undone = guide_of(stack, {"view": Stack(view.voxels, displaced)}, told, preparation, plan).lines([6])
    torch.testing.assert_close(undone.places, plain.places, atol=1e-3, rtol=0)
    torch.testing.assert_close(undone.values, plain.values, atol=1e-3, rtol=0)


def test_a_view_that_says_nothing_of_the_slices_guides_nothing():
    stack = linear_stack()
    view = crossing_view(stack)
    noise = np.random.default_rng(0).normal(size=view.voxels.shape)
    against = guide_of(
        stack,
        {"view": view.with_voxels(-view.voxels)},
        no_shifts(stack, "view"),
        plan_preparation(stack),
        plan_bisection(5, 2),
    )
    assert against is None  # an inverted contrast is another kind of image
    noisy = {"view": view.with_voxels(noise)}
    idle = guide_of(stack, noisy, no_shifts(stack, "view"), plan_preparation(stack), plan_bisection(5, 2))
    assert idle is None or max(idle.views[0].confidence) < 0.2


# --- in a run ---------------------------------------------------------------------------------------------------------


def heart() -> tuple[Stack, list[LaxImage]]:
    labels = phantoms.heart_labels((2.0, 2.0, 14.0))
    fine = phantoms.pictured(phantoms.heart_labels((2.0, 2.0, 2.0)))
    from calid.heart.longaxis import cut, derive_planes

    planes = derive_planes(phantoms.heart_labels((2.0, 2.0, 2.0)))
    views = [
        LaxImage(name, plane.with_voxels(np.nan_to_num(cut(fine, plane), nan=60.0)[:, None]))
        for name, plane in planes.items()
    ]
    return phantoms.pictured(labels), views


def settings(**changes) -> Settings:
    return Settings(**({"factor": 2, "steps": 1, "method": "calid", "device": "cpu"} | changes))


def test_a_run_is_guided_and_says_by_whom_and_stays_as_it_was_without(random_models):
    stack, views = heart()
    plain = upsample(stack, settings(align="off", lax="off"), models_folder=random_models).stack
    off = upsample(stack, settings(align="off"), lax=views, models_folder=random_models).stack
    told = upsample(stack, settings(lax="off"), lax=views, models_folder=random_models).stack
    led = upsample(stack, settings(), lax=views, models_folder=random_models).stack
    np.testing.assert_array_equal(off.voxels, plain.voxels)
    np.testing.assert_array_equal(told.voxels, plain.voxels)
    np.testing.assert_array_equal(led.voxels[:, ::2], stack.voxels)
    assert (led.voxels != plain.voxels).any()
    assert led.provenance["guided_by"] == [view.name for view in views]
    assert "guided_by" not in told.provenance
    assert [one["name"] for one in told.provenance["alignment"]["views"]] == [view.name for view in views]
    assert "alignment" not in off.provenance


def test_the_bundled_motion_is_corrected_towards_what_the_views_show():
    stack, views = heart()
    fine = phantoms.pictured(phantoms.heart_labels((2.0, 2.0, 2.0)))
    slots = [np.rint(fine.to_index(stack.to_lps(np.array([0.0, 0, index + 0.5])))[2]).astype(int) for index in range(5)]
    truth = fine.voxels[0, slots]
    errors = []
    for lax in ((), views):
        made = upsample(stack, settings(mode="fidelity", samples=1), lax=lax).stack.voxels[0, 1:10:2]
        errors.append(np.square(made - truth).mean())
    assert errors[1] < 0.97 * errors[0]


def test_alignment_and_guidance_are_counted_and_told_step_by_step(random_models):
    stack, views = heart()
    told = []
    upsample(stack, settings(), lax=views, models_folder=random_models, progress=told.append)
    stages = list(dict.fromkeys(one.stage for one in told))
    assert stages == ["comparing breath-holds", "guided by long-axis images, level 1 of 1", "level 1 of 1"]
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    assert fractions[-2] < fractions[-1] == pytest.approx(1)


@pytest.mark.parametrize("stage", ["comparing", "guided"])
def test_a_run_can_be_cancelled_while_it_aligns_and_while_it_guides(random_models, stage):
    stack, views = heart()
    told = []

    def is_cancelled() -> bool:
        return bool(told) and told[-1].stage.startswith(stage)

    with pytest.raises(Cancelled):
        upsample(
            stack, settings(), lax=views, models_folder=random_models, progress=told.append, is_cancelled=is_cancelled
        )
    assert told[-1].stage.startswith(stage)
    assert sum(one.stage.startswith(stage) for one in told) == 1
