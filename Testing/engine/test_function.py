"""Volumes, ejection fraction and mass against the phantom's formulas, from sparse and from dense stacks."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from calid.errors import InputError
from calid.heart.volumes import cardiac_function, compare_function, slice_extents_mm
from calid.images.files import read_stack
from calid.stack import Stack

CONTRACTIONS = (0.97, 1.0, 0.85, 0.72, 0.9)


def thinned(labels: Stack, step: int) -> Stack:
    """Every `step`-th slice, as acquired before upsampling."""
    matrix = labels.affine.copy()
    matrix[:3, 2] *= step
    return Stack(labels.voxels[:, ::step], matrix, labels.frame_times_ms)


def marked(labels: Stack, step: int) -> Stack:
    """The same labels with all but every `step`-th slice marked as generated."""
    generated = np.arange(labels.num_slices) % step > 0
    return Stack(labels.voxels, labels.affine, labels.frame_times_ms, generated)


@pytest.fixture(scope="module")
def fine() -> Stack:
    return phantoms.heart_labels((1.3, 1.3, 1.0), contractions=CONTRACTIONS)


def test_volumes_follow_the_formula_frame_by_frame(fine):
    function = cardiac_function(fine)
    expected = [phantoms.lv_volume_ml(contraction) for contraction in CONTRACTIONS]
    np.testing.assert_allclose(function.lv.volumes_ml, expected, rtol=0.02)
    walls = [phantoms.myocardium_volume_ml(contraction) for contraction in CONTRACTIONS]
    np.testing.assert_allclose(function.myocardium_ml, walls, rtol=0.02)


def test_end_diastole_and_end_systole_are_the_largest_and_smallest_cavity(fine):
    function = cardiac_function(fine)
    assert (function.ed_frame, function.es_frame) == (1, 3)


def test_the_ejection_fraction_follows_from_the_contraction(fine):
    function = cardiac_function(fine)
    assert function.lv.ef_percent == pytest.approx(100 * (1 - 0.72**3), abs=0.7)
    assert function.lv.sv_ml == pytest.approx(phantoms.lv_volume_ml() - phantoms.lv_volume_ml(0.72), rel=0.02)


def test_mass_is_wall_volume_times_density_at_end_diastole(fine):
    assert cardiac_function(fine).mass_g == pytest.approx(1.05 * phantoms.myocardium_volume_ml(), rel=0.02)


def test_the_right_ventricle_is_read_in_the_same_two_frames(fine):
    function = cardiac_function(fine)
    assert function.rv.edv_ml == function.rv.volumes_ml[1]
    assert function.rv.esv_ml == function.rv.volumes_ml[3]


@pytest.mark.parametrize("step", [2, 8])
def test_sparse_and_dense_stacks_stand_for_the_same_extent(fine, step):
    slices = (fine.num_slices - 1) // step * step + 1
    dense = marked(Stack(fine.voxels[:, :slices], fine.affine, fine.frame_times_ms), step)
    assert slice_extents_mm(dense).sum() == pytest.approx(slice_extents_mm(thinned(dense, step)).sum())


def test_a_cylinder_that_leaves_the_stack_has_the_same_volume_sparse_and_dense():
    rows, columns = np.indices((60, 60))
    disk = (np.hypot(rows - 30, columns - 30) < 15).astype(np.uint8)
    dense = marked(Stack(np.repeat(disk[None, None], 17, axis=1), np.diag([1.0, 1, 2, 1])), 4)
    expected = disk.sum() * 5 * 8 / 1000
    for stack in (dense, thinned(dense, 4)):
        assert cardiac_function(stack).lv.edv_ml == pytest.approx(expected)


def test_turning_the_heart_does_not_change_its_volumes(fine):
    turned = phantoms.heart_labels((1.3, 1.3, 1.0), seed=3, contractions=CONTRACTIONS)
    np.testing.assert_allclose(cardiac_function(turned).lv.volumes_ml, cardiac_function(fine).lv.volumes_ml, rtol=0.01)


def test_one_phase_has_no_ejection_fraction():
    function = cardiac_function(phantoms.heart_labels((1.5, 1.4, 8.0)))
    assert function.es_frame is None
    assert function.lv.esv_ml is None
    assert function.lv.ef_percent is None
    assert function.lv.edv_ml > 0


def test_labels_without_a_left_ventricle_are_refused():
    labels = phantoms.heart_labels((1.5, 1.4, 8.0))
    with pytest.raises(InputError, match="no volume curve"):
        cardiac_function(labels.with_voxels(np.where(labels.voxels == 1, 0, labels.voxels)))


def test_sparse_and_dense_are_compared_figure_by_figure(fine):
    dense = marked(fine, 8)
    measures = {m.name: m for m in compare_function(cardiac_function(thinned(dense, 8)), cardiac_function(dense))}
    assert set(measures) == {f"{v} {n}" for v in ("LV", "RV") for n in ("EDV", "ESV", "SV", "EF")} | {"LV mass"}
    edv = measures["LV EDV"]
    assert edv.difference == pytest.approx(edv.dense - edv.sparse)
    assert 0 < abs(edv.difference) < 0.1 * edv.dense  # half of one 8 mm slice at the flat base is 6 ml
    assert measures["LV EF"].unit == "%"


def test_a_figure_missing_on_one_side_has_no_difference():
    still = cardiac_function(phantoms.heart_labels((1.5, 1.4, 8.0)))
    measures = {m.name: m for m in compare_function(still, still)}
    assert measures["LV EF"].difference is None
    assert measures["LV EDV"].difference == 0


@pytest.mark.data
def test_experts_labels_give_plausible_hearts(data_folder):
    fractions = {}
    for number in (61, 66, 71, 76):
        frames = sorted((data_folder / "acdc" / f"patient{number:03d}").glob("*_gt.nii.gz"))
        stacks = [read_stack(path) for path in frames]
        voxels = np.array([0, 3, 2, 1], np.uint8)[np.concatenate([stack.voxels for stack in stacks]).astype(int)]
        function = cardiac_function(Stack(voxels, stacks[0].affine, np.array([0.0, 300.0])))
        fractions[number] = function.lv.ef_percent
        assert 60 < function.lv.edv_ml < 400
        assert 50 < function.mass_g < 300
        assert function.ed_frame == 0
    assert len({round(value) for value in fractions.values()}) > 1
    assert all(5 < value < 85 for value in fractions.values())
