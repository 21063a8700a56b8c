"""Cuts are exact in patient space, phases match, agreement ranks stacks by their fineness, planes follow anatomy."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.errors import InputError
from calid.geometry import heart_center
from calid.heart import longaxis
from calid.images.files import read_study
from calid.report import comparison
from calid.stack import Stack, nearest_frames
from scipy import ndimage

SLOPES = np.array([0.7, -1.3, 2.1])


def linear_field(points_lps: np.ndarray) -> np.ndarray:
    """A field that trilinear interpolation reproduces without error."""
    return points_lps @ SLOPES + 5.0


def field_stack(seed: int, *, frames: int = 1, shape: tuple[int, int, int] = (7, 26, 34)) -> Stack:
    matrix = phantoms.centered_affine(shape, (1.7, 1.2, 9.0), phantoms.rotation(seed), np.array([20.0, -15.0, 40.0]))
    empty = Stack(np.zeros((1, *shape)), matrix)
    z, y, x = np.indices(shape)
    field = linear_field(empty.to_lps(np.stack([x, y, z], axis=-1)))
    return Stack(np.stack([field + 1000 * t for t in range(frames)]), matrix, np.arange(frames) * 30.0)


def crossing_plane(seed: int, *, frames: int = 1, step_ms: float = 30.0) -> Stack:
    """An oblique picture through the middle of `field_stack`, larger than it."""
    shape = 1, 90, 64
    matrix = phantoms.centered_affine(shape, (1.1, 1.3, 6.0), phantoms.rotation(seed), np.array([22.0, -14.0, 39.0]))
    return Stack(np.zeros((frames, *shape)), matrix, np.arange(frames) * step_ms)


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_has_the_value_of_the_field_at_each_pixel_center_in_patient_space(seed):
    stack, plane = field_stack(seed), crossing_plane(seed + 50)
    shown = longaxis.cut(stack, plane)[0]
    rows, columns = np.nonzero(np.isfinite(shown))
    assert rows.size > 100
    points = plane.to_lps(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    np.testing.assert_allclose(shown[rows, columns], linear_field(points), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_is_empty_exactly_where_the_stack_has_no_voxel_centers_around(seed):
    stack, plane = field_stack(seed), crossing_plane(seed + 50)
    known = np.isfinite(longaxis.cut(stack, plane)[0])
    rows, columns = np.indices(known.shape)
    index = stack.to_index(plane.to_lps(np.stack([columns, rows, 0 * rows], axis=-1)))
    np.testing.assert_array_equal(known, ((index >= 0) & (index <= [33, 25, 6])).all(axis=-1))


def test_a_nearest_cut_takes_only_values_that_are_in_the_stack():
    stack, plane = field_stack(1), crossing_plane(51)
    shown = longaxis.cut(stack, plane, order=0)
    values = shown[np.isfinite(shown)]
    assert np.isin(values, stack.voxels.astype(np.float32)).all()
    assert not np.isin(longaxis.cut(stack, plane)[np.isfinite(shown)], stack.voxels.astype(np.float32)).all()


def test_a_cut_in_a_slice_gives_the_slice_itself():
    stack = field_stack(3)
    plane = Stack(stack.voxels[:, 2:3], stack.slice_affine(2))
    np.testing.assert_allclose(longaxis.cut(stack, plane)[0], stack.voxels[0, 2], rtol=1e-5)


def test_a_cine_cut_shows_the_phase_of_each_frame_of_the_image():
    stack, plane = field_stack(2, frames=5), crossing_plane(52, frames=5, step_ms=36.0)
    shown = longaxis.cut(stack, plane)
    still = longaxis.cut(field_stack(2), plane.frame(0))[0]
    for frame in range(5):
        np.testing.assert_allclose(np.nanmean(shown[frame] - still), 1000 * frame, atol=0.1)


def test_phases_of_two_heart_rates_are_matched_by_their_share_of_the_cycle():
    slow, fast = np.arange(25) * 40.0, np.arange(25) * 33.0
    np.testing.assert_array_equal(nearest_frames(fast, slow), np.arange(25))


def test_the_end_of_the_cycle_is_near_its_beginning():
    assert nearest_frames(np.arange(10) * 80.0, np.arange(100) * 8.0)[-1] == 0


def test_an_excerpt_of_a_cycle_is_matched_by_time_and_not_stretched():
    cycle, excerpt = np.arange(25) * 33.0, np.arange(5) * 33.0
    np.testing.assert_array_equal(nearest_frames(cycle, excerpt), np.arange(5))


@pytest.mark.parametrize("start", [0.0, 1.0, 101.0, 451.0, 12_000.0])
def test_numbers_or_times_that_begin_elsewhere_are_the_same_phases(start):
    short_axis = np.arange(25) * 34.0
    for step in (1.0, 36.0):  # frame numbers, and milliseconds
        long_axis = start + step * np.arange(25)
        np.testing.assert_array_equal(nearest_frames(long_axis, short_axis), np.arange(25))
        np.testing.assert_array_equal(nearest_frames(short_axis, long_axis), np.arange(25))


def test_a_cut_of_a_long_axis_image_with_offset_numbers_shows_its_own_phases():
    times = np.arange(10) * 80.0
    frames = np.arange(10, dtype=np.float32)
    stack = Stack(np.broadcast_to(frames[:, None, None, None], (10, 4, 30, 30)).copy(), np.diag([1.0, 1, 8, 1]), times)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]).T
    affine[:3, 3] = [0, 10, 0]
    plane = Stack(np.zeros((10, 1, 20, 20)), affine, 201.0 + np.arange(10))
    shown = longaxis.cut(stack, plane)
    np.testing.assert_allclose(np.nanmean(shown, axis=(1, 2)), frames)


def test_an_excerpt_of_a_noted_beat_is_not_taken_for_a_whole_one():
    whole, excerpt = np.arange(25) * 36.0, 72.0 + np.arange(20) * 36.0
    found = nearest_frames(whole, excerpt, beat_ms=900.0, at_beat_ms=900.0)
    np.testing.assert_array_equal(found, 2 + np.arange(20))


def test_an_excerpt_at_another_heart_rate_is_matched_by_its_share_of_the_noted_beat():
    whole, excerpt = np.arange(25) * 36.0, np.arange(5, 10) * 40.0
    found = nearest_frames(whole, excerpt, beat_ms=900.0, at_beat_ms=1000.0)
    np.testing.assert_array_equal(found, np.arange(5, 10))


def test_a_cine_that_ends_before_the_beat_is_not_stretched_where_the_beat_is_noted():
    triggered, whole = np.arange(23) * 40.0, np.arange(25) * 40.0
    found = nearest_frames(triggered, whole, beat_ms=1000.0, at_beat_ms=1000.0)
    np.testing.assert_array_equal(found[:23], np.arange(23))


def test_a_long_axis_cine_is_reduced_to_the_phases_of_a_shorter_stack():
    plane = crossing_plane(51, frames=25, step_ms=33.0)
    stack = Stack(np.zeros((2, 3, 4, 4)), np.eye(4), np.array([0.0, 300.0]))
    np.testing.assert_allclose(longaxis.at_phases_of(plane, stack).frame_times_ms, [0.0, 297.0])


@pytest.mark.parametrize("seed", range(3))
def test_intersection_lines_lie_on_their_slice_and_within_both_images(seed):
    stack, plane = field_stack(seed), crossing_plane(seed + 50)
    lines = longaxis.intersection_lines(stack, plane)
    assert np.isfinite(lines).all()
    for number, line in enumerate(lines):
        index = stack.to_index(plane.to_lps(np.column_stack([line, np.zeros(2)])))
        np.testing.assert_allclose(index[:, 2], number, atol=1e-6)
        assert (index[:, :2] >= -1e-6).all()
        assert (index[:, :2] <= np.array([33, 25]) + 1e-6).all()
        assert (line >= -1e-6).all()
        assert (line <= np.array([63, 89]) + 1e-6).all()


def test_a_slice_that_misses_the_image_has_no_line():
    stack = field_stack(0)
    away = crossing_plane(50)
    matrix = away.affine.copy()
    matrix[:3, 3] += 500.0
    assert np.isnan(longaxis.intersection_lines(stack, Stack(away.voxels, matrix))).all()


def test_parallel_planes_have_no_intersection_lines():
    stack = field_stack(0)
    assert np.isnan(longaxis.intersection_lines(stack, Stack(stack.voxels[:, :1], stack.affine))).all()


def heart_planes() -> tuple[Stack, Stack, Stack, Stack]:
    """A fine heart, the same one coarse, and a long-axis picture of the fine one."""
    fine = phantoms.pictured(phantoms.heart_labels((1.5, 1.4, 1.0)))
    every = 12
    matrix = fine.affine.copy()
    matrix[:3, 2] *= every
    coarse = Stack(fine.voxels[:, ::every], matrix)
    plane = longaxis.derive_planes(phantoms.heart_labels((1.5, 1.4, 1.0)))["4ch"]
    picture = np.nan_to_num(longaxis.cut(fine, plane), nan=40.0)
    return fine, coarse, plane, plane.with_voxels(picture[:, None])


def test_a_perfect_cut_agrees_fully_whatever_its_brightness_and_contrast():
    fine, _, plane, picture = heart_planes()
    figures = longaxis.agreement(picture, 0.3 * longaxis.cut(fine, plane) + 70, fine.directions_lps[:, 2])
    assert figures.gradient_correlation == pytest.approx(1, abs=1e-3)
    assert figures.correlation == pytest.approx(1, abs=1e-3)
    assert figures.sharpness == pytest.approx(1, abs=1e-3)


def test_gradient_correlation_ranks_stacks_by_fineness_and_falls_faster_than_correlation():
    fine, coarse, plane, picture = heart_planes()
    normal = fine.directions_lps[:, 2]
    nearest, linear = (
        longaxis.agreement(picture, longaxis.cut(coarse, plane, order=order), normal) for order in (0, 1)
    )
    assert nearest.gradient_correlation < linear.gradient_correlation - 0.03 < 0.9
    assert 1 - linear.gradient_correlation > 4 * (1 - linear.correlation)


def test_a_blurred_cut_is_less_sharp_than_the_image_and_a_stepped_one_sharper_than_the_blurred():
    fine, coarse, plane, picture = heart_planes()
    normal = fine.directions_lps[:, 2]
    shown = longaxis.cut(fine, plane)
    blurred = np.stack([ndimage.gaussian_filter(np.nan_to_num(frame, nan=40.0), 4) for frame in shown])
    stepped = longaxis.cut(coarse, plane, order=0)
    sharpness = [longaxis.agreement(picture, other, normal).sharpness for other in (blurred, stepped)]
    assert sharpness[0] < 0.9 < sharpness[1]


def test_agreement_ignores_what_lies_outside_the_region():
    fine, _, plane, picture = heart_planes()
    shown = longaxis.cut(fine, plane)
    region = np.zeros(shown.shape[1:], bool)
    region[:, : region.shape[1] // 2] = True
    spoiled = shown.copy()
    spoiled[:, :, region.shape[1] // 2 + 10 :] = 0
    whole, half = (longaxis.agreement(picture, spoiled, fine.directions_lps[:, 2], region=r) for r in (None, region))
    assert half.gradient_correlation > 0.99 > whole.gradient_correlation


def test_agreement_of_images_that_do_not_overlap_is_not_a_number():
    _, coarse, plane, picture = heart_planes()
    nothing = np.full_like(longaxis.cut(coarse, plane), np.nan)
    figures = longaxis.agreement(picture, nothing, coarse.directions_lps[:, 2])
    assert np.isnan(figures.gradient_correlation)
    assert figures.num_pixels == 0


def test_dice_of_a_cut_counts_only_what_both_know():
    shown = np.array([[[1.0, 1.0, 0.0, np.nan, 2.0]]])
    reference = np.array([[[1.0, 0.0, 1.0, 1.0, np.nan]]])
    assert longaxis.dice(shown, reference, 1) == pytest.approx(2 * 1 / (2 + 2))
    assert np.isnan(longaxis.dice(shown, reference, 2))


def test_a_finer_label_stack_overlaps_better_with_the_true_long_axis_labels():
    fine = phantoms.heart_labels((1.5, 1.4, 1.0))
    matrix = fine.affine.copy()
    matrix[:3, 2] *= 12
    coarse = Stack(fine.voxels[:, ::12], matrix)
    plane = longaxis.derive_planes(fine)["2ch"]
    cuts = [longaxis.cut(stack, plane, order=0) for stack in (fine, coarse)]
    assert longaxis.dice(cuts[0], cuts[0], 1) == 1
    assert 0.85 < longaxis.dice(cuts[1], cuts[0], 1) < 0.99


def test_the_heart_lies_where_the_long_axis_planes_meet():
    stack = field_stack(4)
    target = stack.to_lps(np.array([10.0, 20.0, 3.0]))
    along = stack.directions_lps[:, 2]
    planes = []
    for angle in (0.3, 1.4):
        across = np.cos(angle) * stack.directions_lps[:, 0] + np.sin(angle) * stack.directions_lps[:, 1]
        directions = np.stack([across, along, np.cross(across, along)], axis=1)
        planes.append(Stack(np.zeros((1, 1, 8, 8)), phantoms.affine((1, 1, 6), directions, target - 3 * along)))
    np.testing.assert_allclose(heart_center(stack, planes), target, atol=0.5)


def view_angle_deg(plane: Stack, seed: int) -> float:
    """Angle of a plane's left side about the apexward axis, from the septum (x) towards the anterior wall (y)."""
    left = -plane.directions_lps[:, 0] @ phantoms.heart_frame(seed)
    return float(np.degrees(np.arctan2(left[1], left[0])))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apex_first", [False, True])
def test_derived_planes_contain_the_axis_with_the_base_on_top_and_turn_by_sixty_degrees(seed, apex_first):
    planes = longaxis.derive_planes(phantoms.heart_labels((1.5, 1.4, 8.0), seed=seed, apex_first=apex_first))
    heart = phantoms.heart_frame(seed)
    for plane in planes.values():
        assert -plane.directions_lps[:, 1] @ heart[:, 2] > np.cos(np.radians(3))
        assert np.linalg.det(plane.directions_lps) == pytest.approx(1)
    angles = {name: view_angle_deg(plane, seed) for name, plane in planes.items()}
    assert angles["3ch"] - angles["4ch"] == pytest.approx(60, abs=1)
    assert angles["2ch"] - angles["3ch"] == pytest.approx(60, abs=1)
    towards_rv = np.degrees(np.arctan2(phantoms.RV_CENTER_MM[1], phantoms.RV_CENTER_MM[0]))
    assert (angles["4ch"] + angles["3ch"]) / 2 == pytest.approx(towards_rv, abs=8)


def test_turning_the_patient_turns_the_derived_planes():
    labels = phantoms.heart_labels(seed=1)
    turn = np.eye(4)
    turn[:3, :3] = phantoms.rotation(9)
    turn[:3, 3] = [30.0, -20.0, 10.0]
    turned = Stack(labels.voxels, turn @ labels.affine)
    before, after = longaxis.derive_planes(labels), longaxis.derive_planes(turned)
    for name in before:
        np.testing.assert_allclose(after[name].affine, turn @ before[name].affine, atol=1e-6)


def test_derived_planes_carry_the_frames_of_the_labels():
    labels = phantoms.heart_labels(contractions=(1.0, 0.8, 0.7))
    plane = longaxis.derive_planes(labels)["2ch"]
    np.testing.assert_allclose(plane.frame_times_ms, labels.frame_times_ms)
    areas = (longaxis.cut(labels, plane, order=0) == 1).sum(axis=(1, 2))
    assert areas[0] > areas[1] > areas[2]


def without(labels: Stack, *numbers: int) -> Stack:
    return labels.with_voxels(np.where(np.isin(labels.voxels, numbers), 0, labels.voxels).astype(np.uint8))


def test_planes_cannot_be_derived_without_a_left_ventricle():
    with pytest.raises(InputError, match="labeled in 0") as caught:
        longaxis.derive_planes(without(phantoms.heart_labels(), 1))
    assert caught.value.code == "no-left-ventricle"


def test_planes_cannot_be_derived_without_a_right_ventricle():
    with pytest.raises(InputError, match="0 voxels of it") as caught:
        longaxis.derive_planes(without(phantoms.heart_labels(), 3))
    assert caught.value.code == "no-right-ventricle"


def test_planes_cannot_be_derived_where_base_and_apex_look_alike():
    labels = phantoms.heart_labels()
    basal = np.flatnonzero((labels.voxels[0] == 1).any(axis=(1, 2)))[0]
    cylinder = np.repeat(labels.voxels[:, basal : basal + 1], 6, axis=1)
    with pytest.raises(InputError, match="cannot be told apart") as caught:
        longaxis.derive_planes(Stack(cylinder, labels.affine))
    assert caught.value.code == "unclear-apex"


@pytest.mark.data
def test_a_real_stack_lines_up_with_the_long_axis_images_of_its_study(data_folder):
    study = read_study(data_folder / "bivme" / "dicoms")
    frames = [0, 9]
    sax = Stack(study.sax.voxels[frames], study.sax.affine, study.sax.frame_times_ms[frames])
    columns = [comparison.Column("nearest", sax, order=0), comparison.Column("linear", sax)]
    figures = comparison.compare_views(study.lax, columns)
    assert len(figures) == 5
    for one in figures:
        nearest, linear = one.columns["nearest"], one.columns["linear"]
        assert linear.correlation > 0.65
        assert linear.gradient_correlation > nearest.gradient_correlation + 0.08
    shifted = sax.affine.copy()
    shifted[:3, 3] += 12 * sax.directions_lps[:, 0]
    beside = [comparison.Column("beside", Stack(sax.voxels, shifted, sax.frame_times_ms))]
    lost = [
        one.columns["linear"].gradient_correlation - other.columns["beside"].gradient_correlation
        for one, other in zip(figures, comparison.compare_views(study.lax, beside), strict=True)
    ]
    assert min(lost) > 0.02
    assert np.mean(lost) > 0.1
