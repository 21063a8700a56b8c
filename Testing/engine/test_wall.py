"""Wall thickness against hearts whose wall is known by formula."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.errors import InputError
from calid.heart.wall import SEGMENTS, WallThickness, wall_thickness
from calid.stack import Stack

INNER_MM, WALL_MM, LENGTH_MM = 22.0, 9.0, 70.0
NAMES = [segment.name for segment in SEGMENTS]


def heart(wall_mm, *, spacing_mm=(1.4, 1.4, 1.25), seed: int | None = 3, tilt_deg: float = 0.0) -> Stack:
    """A bullet: a tube, then a half ball, with a wall whose thickness is a function of the angle.

    Args:
        wall_mm: wall_mm(angle) for an angle in radians from the septum towards the anterior wall; thickness at the apex
            is `WALL_MM`.
        spacing_mm: of the voxels.
        seed: of the heart's place and direction; None leaves it along the patient's axes.
        tilt_deg: between the slices and the heart's short axis.
    """
    rotation = phantoms.rotation(seed) if seed is not None else np.eye(3)
    septal, anterior, apexward = rotation.T  # a right-handed frame needs septal x apexward = anterior
    septal = -septal
    assert np.allclose(np.cross(septal, apexward), anterior)
    angle = np.deg2rad(tilt_deg)
    normal = np.cos(angle) * apexward + np.sin(angle) * septal
    column = np.cos(angle) * septal - np.sin(angle) * apexward
    affine = np.eye(4)
    affine[:3, :3] = np.stack([column, anterior, normal], axis=1) * spacing_mm
    shape = tuple(int(np.ceil(size / step)) for size, step in zip((110, 150, 150), spacing_mm[::-1], strict=True))
    middle = (np.array(shape[::-1]) - 1) / 2
    affine[:3, 3] = [15, -40, 20] - affine[:3, :3] @ middle
    z, y, x = np.indices(shape)
    points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3] - [15, -40, 20]
    along, right, front = points @ apexward + 35, points @ septal, points @ anterior
    radius, around = np.hypot(right, front), np.arctan2(front, right)
    beyond = np.maximum(along - (LENGTH_MM - INNER_MM), 0)
    outer = wall_mm(around)
    inside = (along > 0) & (np.hypot(radius, beyond) < INNER_MM)
    thickness = np.where(beyond > 0, WALL_MM, outer)
    whole = (along > 0) & (np.hypot(radius, beyond) < INNER_MM + thickness)
    rv = (along > 0) & (along < 45) & (np.hypot(right - 38, front) < 27) & ~whole
    return Stack(np.select([inside, whole, rv], [1, 2, 3], 0).astype(np.uint8)[None], affine)


def even(around: np.ndarray) -> np.ndarray:
    return np.full(around.shape, WALL_MM)


def of(found: WallThickness, name: str) -> float:
    return float(found.ed_mm[NAMES.index(name)])


def test_an_even_wall_has_its_thickness_in_every_segment_of_the_tube():
    found = wall_thickness(heart(even))
    # The tube is longer than two thirds of the cavity; in the round end a plane cuts the wall obliquely.
    assert np.allclose(found.ed_mm[:12], WALL_MM, atol=0.35)
    assert of(found, "apex") == pytest.approx(WALL_MM, abs=1.3)  # a slice


def test_slices_that_are_tilted_against_the_heart_do_not_make_its_wall_thicker():
    found = wall_thickness(heart(even, tilt_deg=20.0))
    assert np.allclose(found.ed_mm[6:12], WALL_MM, atol=0.4)  # at the base they cut part of the wall off


def test_a_coarse_stack_has_the_same_wall_but_no_apex():
    found = wall_thickness(heart(even, spacing_mm=(1.8, 1.4, 9.0)))
    assert np.allclose(found.ed_mm[:12], WALL_MM, atol=0.6)
    assert np.isnan(of(found, "apex"))


@pytest.mark.parametrize("seed", [None, 3, 8])
@pytest.mark.parametrize(("wall", "degrees"), [("anterior", 90), ("inferoseptal", -30), ("anterolateral", 150)])
def test_a_thick_wall_is_found_in_its_own_segment(wall, degrees, seed):
    def bulge(around: np.ndarray) -> np.ndarray:
        away = (np.degrees(around) - degrees + 180) % 360 - 180
        return np.where(np.abs(away) < 30, WALL_MM + 6, WALL_MM)

    found = wall_thickness(heart(bulge, seed=seed))
    for ring in ("basal", "mid"):
        for segment in SEGMENTS:
            if segment.ring == ring:
                expected = WALL_MM + 6 * (segment.name == f"{ring} {wall}")
                assert found.ed_mm[segment.number - 1] == pytest.approx(expected, abs=0.9)


def test_thickening_is_told_from_the_frames_of_end_diastole_and_end_systole():
    relaxed = heart(even)
    voxels = np.concatenate([relaxed.voxels, relaxed.voxels])
    shrunk = np.array(relaxed.voxels[0])
    contracted = heart(lambda around: np.full(around.shape, WALL_MM + 3)).voxels[0]
    shrunk[contracted == 2] = 2
    voxels[1] = shrunk
    last = np.flatnonzero((shrunk == 1).any(axis=(1, 2)))[-1]
    voxels[1][last][voxels[1][last] == 1] = 2  # a smaller cavity: this is end-systole
    found = wall_thickness(Stack(voxels, relaxed.affine, np.array([0.0, 300.0])))
    assert (found.ed_frame, found.es_frame) == (0, 1)
    assert np.allclose(found.thickening_percent[:12], 100 * 3 / WALL_MM, atol=5)


def test_where_the_wall_is_open_there_is_no_thickness():
    stack = heart(even)
    septal = stack.voxels.copy()
    slices = np.flatnonzero((septal[0] == 1).any(axis=(1, 2)))
    rv_side = (septal[0] == 3).any(axis=0)
    column = np.flatnonzero(rv_side.any(axis=0)).min() - 20
    for index in slices[:20]:  # an outflow tract through the septum at the base
        image = septal[0][index]
        image[:, column:][image[:, column:] == 2] = 0
    found = wall_thickness(Stack(septal, stack.affine))
    assert np.isnan(of(found, "basal anteroseptal")) or np.isnan(of(found, "basal inferoseptal"))
    assert of(found, "basal inferolateral") == pytest.approx(WALL_MM, abs=0.5)


def test_a_stack_that_ends_within_the_wall_has_no_apex():
    stack = heart(even)
    slices = np.flatnonzero((stack.voxels[0] == 1).any(axis=(1, 2)))
    cut = Stack(stack.voxels[:, : slices[-1] + 3], stack.affine)
    assert np.isnan(of(wall_thickness(cut), "apex"))


def test_the_order_of_the_slices_does_not_matter():
    stack = heart(even, seed=8)
    affine = stack.slice_affine(stack.num_slices - 1)
    affine[:3, 2] *= -1
    turned = Stack(stack.voxels[:, ::-1], affine)
    # Voxels on the border of two sectors may fall into either.
    assert np.allclose(wall_thickness(turned).ed_mm, wall_thickness(stack).ed_mm, atol=0.05, equal_nan=True)


def test_without_a_right_ventricle_the_segments_cannot_be_told():
    stack = heart(even)
    with pytest.raises(InputError) as caught:
        wall_thickness(stack.with_voxels(np.where(stack.voxels == 3, 0, stack.voxels)))
    assert caught.value.code == "no-right-ventricle"


def test_the_segments_cover_every_ring_once():
    for ring in ("basal", "mid", "apical"):
        covered = sum(segment.sectors.astype(int) for segment in SEGMENTS if segment.ring == ring)
        assert (covered == 1).all()
    assert [segment.number for segment in SEGMENTS] == list(range(1, 18))
