"""Planes, gaps and affines, against numbers worked out by hand or by SimpleITK."""

from __future__ import annotations

import file_phantoms
import numpy as np
import pytest
import SimpleITK as sitk
from calid import geometry
from calid.geometry import Plane
from calid.stack import Stack
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 10_000)


def planes_of(stack: Stack) -> list[Plane]:
    return [geometry.plane_of(stack, index) for index in range(stack.num_slices)]


def turned(plane: Plane, degrees: float, axis: np.ndarray) -> Plane:
    """The plane turned about its center, by Rodrigues' formula."""
    angle, x, y, z = np.deg2rad(degrees), *axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return Plane(
        origin_lps=plane.center_lps + rotation @ (plane.origin_lps - plane.center_lps),
        row_lps=rotation @ plane.row_lps,
        column_lps=rotation @ plane.column_lps,
        spacing_mm=plane.spacing_mm,
        size=plane.size,
    )


@given(seed=seeds)
def test_a_plane_puts_pixels_where_simpleitk_does(seed):
    stack = file_phantoms.noisy_stack((1, 4, 6, 10), seed=seed)
    image = sitk.GetImageFromArray(stack.voxels[0])
    image.SetSpacing(stack.spacing_mm.tolist())
    image.SetDirection(stack.directions_lps.ravel().tolist())
    image.SetOrigin(stack.origin_lps.tolist())
    expected = image.TransformIndexToPhysicalPoint((7, 2, 3))
    found = geometry.plane_of(stack, 3).to_lps(np.array([7, 2]))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(seed=seeds, spacing=st.floats(0.1, 50), count=st.integers(2, 20))
def test_sorting_and_rebuilding_a_shuffled_stack_gives_its_affine(seed, spacing, count):
    stack = file_phantoms.noisy_stack((1, count, 6, 10), spacing_mm=(1.5, 1.4, spacing), seed=seed)
    planes = planes_of(stack)
    np.random.default_rng(seed).shuffle(planes)
    order = geometry.order_along_normal(planes)
    affine = geometry.affine_of([planes[index] for index in order], thickness_mm=123.0)
    np.testing.assert_allclose(affine, stack.affine, atol=1e-8)


def test_a_stack_stored_against_its_normal_is_sorted_right_handed():
    stack = file_phantoms.noisy_stack((1, 5, 6, 10))
    backwards = planes_of(stack)[::-1]
    assert geometry.order_along_normal(backwards).tolist() == [4, 3, 2, 1, 0]
    affine = geometry.affine_of([backwards[i] for i in geometry.order_along_normal(backwards)], thickness_mm=1.0)
    assert np.linalg.det(affine[:3, :3]) > 0


def test_a_single_slice_takes_its_thickness_as_third_column():
    plane = Plane(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([1.5, 1.4]), (10, 6))
    assert geometry.affine_of([plane], thickness_mm=6.0)[:3, 2].tolist() == [0.0, 0.0, 6.0]


@given(seed=seeds)
def test_lps_and_ras_differ_in_the_sign_of_the_first_two_coordinates_only(seed):
    matrix = file_phantoms.noisy_stack(seed=seed).affine
    point = np.array([3.0, 5.0, 2.0, 1.0])
    left, posterior, superior, _ = matrix @ point
    assert (geometry.lps_to_ras(matrix) @ point)[:3].tolist() == [-left, -posterior, superior]
    np.testing.assert_array_equal(geometry.ras_to_lps(geometry.lps_to_ras(matrix)), matrix)


@given(seed=seeds, degrees=st.floats(1e-3, 89))
def test_tilt_is_the_angle_by_which_a_plane_was_tilted_and_turn_sees_a_turn_in_the_plane(seed, degrees):
    plane = geometry.plane_of(file_phantoms.noisy_stack(seed=seed))
    assert geometry.tilt_degrees(plane, turned(plane, degrees, plane.row_lps)) == pytest.approx(degrees, abs=1e-6)
    spun = turned(plane, degrees, plane.normal)
    assert geometry.tilt_degrees(plane, spun) == pytest.approx(0, abs=1e-6)
    assert geometry.turn_degrees(plane, spun) == pytest.approx(degrees, abs=1e-6)


def test_planes_that_face_opposite_ways_are_parallel():
    plane = geometry.plane_of(file_phantoms.noisy_stack())
    assert geometry.tilt_degrees(plane, turned(plane, 180, plane.row_lps)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("gaps", "uneven"),
    [
        ([10, 10, 10], []),
        ([10, 10.4, 9.6], []),
        ([10, 10, 21], [2]),
        ([10, 20], [1]),
        ([20, 10], [0]),
        ([8, 0.0, 8, 8], [1]),
        ([8, 8, 16, 8, 9], [2, 4]),
    ],
)
def test_uneven_gaps_are_those_unlike_the_median(gaps, uneven):
    assert geometry.uneven_gaps(np.array(gaps, float)).tolist() == uneven


@given(seed=seeds, corner=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3)))
def test_a_voxel_stays_put_when_the_image_is_cropped(seed, corner):
    affine = file_phantoms.noisy_stack(seed=seed).affine
    cropped = geometry.cropped_affine(affine, corner)
    np.testing.assert_allclose(cropped @ [2, 3, 1, 1], affine @ [2 + corner[0], 3 + corner[1], 1 + corner[2], 1])


def test_the_typical_plane_is_not_the_odd_one():
    planes = planes_of(file_phantoms.noisy_stack((1, 5, 6, 10)))
    planes[0] = turned(planes[0], 7, planes[0].row_lps)
    assert geometry.typical_plane(planes) != 0


@pytest.mark.parametrize("millimeters", [0.0, 3.0, -7.5])
def test_distance_from_a_plane_is_signed_along_its_normal(millimeters):
    plane = geometry.plane_of(file_phantoms.noisy_stack(seed=3), 2)
    beside = plane.to_lps(np.array([4.5, -2.0])) + millimeters * plane.normal
    assert plane.distance_mm(beside) == pytest.approx(millimeters, abs=1e-9)


def test_a_perpendicular_affine_has_no_shear_and_a_slanted_one_has_its_slant():
    affine = file_phantoms.noisy_stack(seed=5).affine
    assert geometry.shear_degrees(affine) == pytest.approx(0, abs=1e-6)
    x, _, z = affine[:3, :3].T
    slanted = affine.copy()
    slanted[:3, 2] = z + np.tan(np.deg2rad(4)) * np.linalg.norm(z) * x / np.linalg.norm(x)
    assert geometry.shear_degrees(slanted) == pytest.approx(4, abs=1e-6)
