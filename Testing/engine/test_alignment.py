"""Shifts of breath-holds: what was put in is found, what was not is not, and what is written says so.

The pictures are computed from a formula at the displaced places; the code under test never moves them itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import phantoms
import pytest
from calid.__main__ import main
from calid.images.files import read_stack, write_stack
from calid.run.alignment import align
from calid.run.intersections import crossing, images_of, landscape
from calid.run.shifts import NOTICEABLE_MM, PRIOR_MM, moved
from calid.stack import Stack
from scipy import ndimage

CONTRACTIONS = (1.0, 0.75)
TIMES_MS = np.array([0.0, 300.0])
SLICES, GAP_MM = 7, 12.0
HEART = phantoms.rotation(4)
BASE_LPS = np.array([10.0, -20.0, 15.0])


def seen(points_lps: np.ndarray) -> np.ndarray:
    """(frames, ...) intensities of the computed heart, its edges a few millimeters soft, at LPS points."""
    local = (points_lps - BASE_LPS) @ HEART
    x, y, z = np.moveaxis(local, -1, 0)
    texture = 12 * np.sin(x / 9) * np.cos(y / 7) * np.sin(1 + z / 11)
    pictures = []
    for contraction in CONTRACTIONS:
        lv = _inside(local, np.zeros(3), contraction * np.array([22.0, 22.0, 70.0]))
        wall = _inside(local, np.zeros(3), np.array([32.0, 32.0, 80.0]))
        rv = _inside(local, np.array([26.0, -8.0, 0.0]), np.array([36.0, 40.0, 60.0]))
        value = 60 + 140 * rv
        value = value + (90 - value) * wall
        value = value + (220 - value) * lv
        below = 1 / (1 + np.exp(z / 1.5))
        pictures.append(60 + (value - 60) * below + texture)
    return np.stack(pictures)


def _inside(places_mm: np.ndarray, center_mm: np.ndarray, radii_mm: np.ndarray) -> np.ndarray:
    """(...) 1 within an ellipsoid, 0 outside, soft at its surface."""
    depth = 1 - np.linalg.norm((places_mm - center_mm) / radii_mm, axis=-1)
    return 1 / (1 + np.exp(-depth / 0.04))


def slab(points_lps: np.ndarray, normal: np.ndarray, thickness_mm: float) -> np.ndarray:
    """What an image of some thickness shows of the heart."""
    across = np.linspace(-0.5, 0.5, 5) * thickness_mm * 0.8
    return np.mean([seen(points_lps + offset * normal) for offset in across], axis=0)


def image(affine: np.ndarray, shape: tuple[int, int], shift_mm: np.ndarray, thickness_mm: float) -> np.ndarray:
    """(frames, Y, X) of an image that has to be moved by `shift_mm` along its own directions to lie where it says."""
    rows, columns = np.indices(shape)
    places = np.stack([columns, rows, 0 * rows, np.ones(shape)], axis=-1) @ affine[:3].T
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return slab(places + directions @ shift_mm, directions[:, 2], thickness_mm)


def short_axis(shifts_mm: np.ndarray) -> Stack:
    directions = HEART @ np.diag([1.0, -1.0, -1.0])
    center = BASE_LPS + HEART @ np.array([8.0, -3.0, -38.0])
    affine = phantoms.centered_affine((SLICES, 72, 80), (1.9, 1.8, GAP_MM), directions, center)
    empty = Stack(np.zeros((1, SLICES, 72, 80)), affine)
    slices = [image(empty.slice_affine(i), (72, 80), shift, 8.0) for i, shift in enumerate(shifts_mm)]
    return Stack(np.stack(slices, axis=1).astype(np.float32), affine, TIMES_MS)


def long_axis(degrees: float, shift_mm: np.ndarray, *, gain: float = 1.0, offset: float = 0.0) -> Stack:
    angle = np.deg2rad(degrees)
    side = HEART @ np.array([np.cos(angle), np.sin(angle), 0])
    down = -HEART[:, 2]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([side * 1.7, down * 1.7, np.cross(side, down) * 6.0], axis=1)
    affine[:3, 3] = BASE_LPS - 70 * side - 14 * down
    return Stack((gain * image(affine, (74, 84), shift_mm, 6.0) + offset)[:, None].astype(np.float32), affine, TIMES_MS)


def views(shifts_mm: np.ndarray) -> dict[str, Stack]:
    contrast = ((1.0, 0.0), (1.7, 30.0), (0.6, -12.0))
    return {
        f"{angle}": long_axis(angle, shift, gain=gain, offset=offset)
        for angle, shift, (gain, offset) in zip((5, 65, -50), shifts_mm, contrast, strict=True)
    }


def against_the_rest(shifts_mm: np.ndarray) -> np.ndarray:
    """Shifts of slices less their mean: all images moved together look the same."""
    return shifts_mm - shifts_mm.mean(axis=0)


@pytest.fixture(scope="module")
def straight() -> tuple[Stack, dict[str, Stack]]:
    return short_axis(np.zeros((SLICES, 3))), views(np.zeros((3, 3)))


@pytest.fixture(scope="module")
def displaced() -> tuple[np.ndarray, Stack, dict[str, Stack]]:
    rng = np.random.default_rng(1)
    length, angle = rng.uniform(0, 8, SLICES), rng.uniform(0, 2 * np.pi, SLICES)
    shifts = np.stack([length * np.cos(angle), length * np.sin(angle), rng.uniform(-4, 4, SLICES)], axis=1)
    return shifts, short_axis(shifts), views(rng.uniform(-2, 2, (3, 3)))


def test_shifts_of_slices_are_found_in_plane_and_through_it(displaced):
    shifts, sax, lax = displaced
    found = align(sax, lax)
    error = against_the_rest(found.slice_shifts_mm) - against_the_rest(shifts)
    in_plane, before = (np.hypot(*x.T[:2]) for x in (error, against_the_rest(shifts)))
    assert in_plane.mean() <= 1.0
    assert np.abs(error[:, 2]).mean() <= 2.0
    assert (in_plane <= before + 0.5).all()
    assert found.agreement_after > found.agreement_before + 0.05
    assert found.lines == 3 * SLICES


def test_no_shift_is_found_where_there_is_none(straight):
    found = align(*straight)
    assert found.worst_mm < 0.2
    assert np.abs(found.slice_shifts_mm[:, 2]).max() < 0.5
    assert np.abs(np.array([shift.mm for shift in found.views])).max() < 0.5


def test_one_slice_that_lies_aside_does_not_drag_the_others(straight):
    shifts = np.zeros((SLICES, 3))
    shifts[3] = 5, -4, 0
    found = align(short_axis(shifts), straight[1])
    assert found.slices[3].mm[:2] == pytest.approx((5, -4), abs=0.6)
    assert max(shift.in_plane_mm for i, shift in enumerate(found.slices) if i != 3) < 0.7


def test_a_shift_of_a_long_axis_image_is_not_blamed_on_the_slices(straight):
    aside = np.array([[0, 5.0, 0], [0, 0, 0], [0, 0, 0]])
    found = align(straight[0], views(aside))
    np.testing.assert_allclose(np.array([shift.mm for shift in found.views]), aside, atol=0.8)
    assert found.worst_mm < 0.6


def test_what_no_line_tells_stays_zero_and_says_that_nothing_is_known(displaced):
    shifts, sax, lax = displaced
    noise = np.random.default_rng(0).normal(size=sax.voxels[:, 1].shape).astype(np.float32)
    voxels = sax.voxels.copy()
    voxels[:, 1] = 100 + noise
    found = align(sax.with_voxels(voxels), lax)
    known = [shift.confidence for i, shift in enumerate(found.slices) if i != 1]
    assert found.slices[1].confidence < 0.5 < min(known)
    error = against_the_rest(np.delete(found.slice_shifts_mm, 1, 0)) - against_the_rest(np.delete(shifts, 1, 0))
    assert np.hypot(*error.T[:2]).mean() <= 1.0


def test_uncertainties_are_as_large_as_the_errors(displaced):
    shifts, sax, lax = displaced
    found = align(sax, lax)
    error = against_the_rest(found.slice_shifts_mm) - against_the_rest(shifts)
    spread = np.array([shift.uncertainty_mm for shift in found.slices])
    assert np.sqrt(np.square(error / spread).mean()) < 2
    assert (spread < PRIOR_MM).all()


def test_moving_the_slices_makes_them_fit(displaced):
    _, sax, lax = displaced
    stack, done = moved(sax, align(sax, lax))
    again = align(stack, lax)
    assert done.applied
    assert again.worst_mm < 0.7
    assert again.agreement_before > done.agreement_before
    assert stack.provenance["alignment"] == done.as_json()
    assert stack.voxels.dtype == sax.voxels.dtype
    for was, is_ in zip(sax.voxels.swapaxes(0, 1), stack.voxels.swapaxes(0, 1), strict=True):
        assert was.min() <= is_.min() <= is_.max() <= was.max()


def test_without_long_axis_images_the_neighbors_tell_of_a_slice_that_lies_far_off(straight):
    shifts = np.zeros((SLICES, 3))
    shifts[3] = 6, 0, 0
    found = align(short_axis(shifts), {})
    worst = max(found.slices, key=lambda shift: shift.in_plane_mm)
    assert found.basis == "neighboring slices"
    assert worst.name == "slice 4"
    assert worst.mm[0] == pytest.approx(6, abs=2.5)
    assert worst.in_plane_mm > NOTICEABLE_MM
    assert found.slices[0].mm[2] == 0
    assert align(straight[0], {}).worst_mm < 1.5


def test_slices_of_noise_are_not_said_to_be_off():
    rng = np.random.default_rng(0)
    for voxels in (rng.normal(100, 20, (1, 8, 72, 80)), rng.normal(100, 20, (5, 6, 72, 80))):
        stack = Stack(voxels.astype(np.float32), np.diag([1.8, 1.8, 10, 1]), 50.0 * np.arange(len(voxels)))
        found = align(stack, {})
        assert found.worst_mm < 0.5
        assert not found.is_noticeable


def test_a_stack_of_two_slices_says_nothing_of_itself(straight):
    whole = straight[0]
    two = Stack(whole.voxels[:, :2], whole.affine, whole.frame_times_ms)
    found = align(two, {})
    assert found.worst_mm == 0
    assert all(shift.confidence == 0 for shift in found.slices)


@pytest.mark.parametrize("side", [0, 1], ids=["slice", "view"])
def test_a_line_moves_as_its_effect_says(straight, side):
    """Against plane geometry: the shifted images' own line, found anew."""
    pair = [images_of(straight[0])[3], images_of(long_axis(40, np.zeros(3)))[0]]
    center = BASE_LPS + HEART @ np.array([0.0, 0, -40])
    line = crossing(*pair, center)
    shift_lps = np.array([1.5, -2.0, 0.7])
    both = [np.zeros(3), np.zeros(3)]
    both[side] = shift_lps
    of_sax, of_lax = line.effect()
    aside_sax, aside_lax, along = of_sax @ both[0] + of_lax @ both[1]
    shifted = [image.shifted(image.directions_lps.T @ s) for image, s in zip(pair, both, strict=True)]
    moved_line = crossing(*shifted, center)
    # A point of the new line, as the pixels of each image have it, lies beside the old line by what is told.
    for image_shift, across, told in zip(both, (line.across_sax, line.across_lax), (aside_sax, aside_lax), strict=True):
        assert across @ (moved_line.origin_lps - image_shift - line.origin_lps) == pytest.approx(told, abs=1e-9)
    assert along == pytest.approx(line.along @ (both[0] - both[1]))


def test_a_landscape_peaks_at_one_for_images_of_the_same_tissue(straight):
    pair = [images_of(straight[0])[3], images_of(long_axis(40, np.zeros(3)))[0]]
    found = landscape(*pair, BASE_LPS + HEART @ np.array([0.0, 0, -40]))
    peak = np.unravel_index(found.correlation.argmax(), found.correlation.shape)
    assert found.as_planned > 0.99
    assert np.abs(np.array(peak) - len(found.correlation) // 2).max() <= 1


def test_a_view_beside_the_stack_or_parallel_to_it_is_not_used(straight):
    sax = straight[0]
    far = long_axis(40, np.zeros(3))
    matrix = far.affine.copy()
    matrix[:3, 3] += 900
    parallel = Stack(sax.voxels[:, :1], sax.affine, sax.frame_times_ms)
    found = align(sax, {"far": Stack(far.voxels, matrix, far.frame_times_ms), "parallel": parallel})
    assert found.basis == "neighboring slices"
    assert found.views == ()


def test_the_command_writes_the_shifts_and_the_moved_stack(displaced, tmp_path: Path, capsys):
    _, sax, lax = displaced
    write_stack(sax, tmp_path / "sax.nrrd")
    (tmp_path / "lax").mkdir()
    for name, stack in lax.items():
        write_stack(stack, tmp_path / "lax" / f"v{name}.nrrd")
    out, facts = tmp_path / "moved.nrrd", tmp_path / "shifts.json"
    arguments = [str(tmp_path / "sax.nrrd"), str(out), "--lax", str(tmp_path / "lax"), "--json", str(facts)]
    assert main(["align", *arguments]) == 0
    told = json.loads(facts.read_text())
    assert [one["name"] for one in told["slices"]] == [f"slice {i + 1}" for i in range(SLICES)]
    assert {one["name"] for one in told["views"]} == {"v5", "v65", "v-50"}
    assert told["applied"] is True
    assert read_stack(out).provenance["alignment"] == told
    said = capsys.readouterr().out
    assert "slice 7" in said
    assert "moved by up to" in said
    assert main(["align", *arguments]) == 2  # nothing is overwritten unasked


def test_noise_and_flow_in_one_view_do_not_spoil_the_others(displaced):
    shifts, sax, lax = displaced
    rng = np.random.default_rng(3)
    name = "65"
    spoiled = lax[name].voxels.copy()
    spoiled[1] = ndimage.gaussian_filter(rng.normal(size=spoiled[1].shape), (0, 2, 2)) * 500
    found = align(sax, {**lax, name: lax[name].with_voxels(spoiled)})
    error = against_the_rest(found.slice_shifts_mm) - against_the_rest(shifts)
    assert np.hypot(*error.T[:2]).mean() <= 1.0
