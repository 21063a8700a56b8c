"""Upsampled stacks seen from the side: geometry by formulas, Dice of identical planes, means by hand."""

from __future__ import annotations

from argparse import ArgumentParser

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.heart.longaxis import derive_planes
from calid.heart.surfaces import surfaces
from calid.stack import LaxImage, Stack
from calid_benchmark.systems import Source, offered
from calid_benchmark.tables import long_axis, meshes
from calid_benchmark.tables.long_axis import Heart
from phantoms import affine, heart_labels, mesh_volume_ml, pictured, rotation
from vtkmodules.vtkFiltersSources import vtkSphereSource
from vtkmodules.vtkIOLegacy import vtkPolyDataWriter


@pytest.fixture(scope="module")
def labels() -> Stack:
    return heart_labels((1.6, 1.6, 4.0), contractions=(1.0, 0.8))


@pytest.fixture(scope="module")
def lax(labels) -> tuple[LaxImage, ...]:
    return tuple(LaxImage(view, plane) for view, plane in derive_planes(labels).items())


def test_by_default_what_matters_most_is_seen_from_the_side(tmp_path):
    parser = ArgumentParser()
    long_axis.add_arguments(parser)
    assert parser.parse_args(["study"]).systems is None
    shown = [one.name for one in long_axis.upsampling(offered(Source(weights=tmp_path, device="cpu")).systems, None)]
    assert shown == ["nearest", "linear", "registration", "CaLID's motion alone", "CaLID+"]


def test_dice_of_identical_planes_is_one_and_of_empty_ones_nought(labels, lax):
    same = long_axis.dice_in_planes(labels, labels, lax)
    assert same == {"2ch": {"LV": [1, 1]}, "3ch": {"LV": [1, 1], "RV": [1, 1]}, "4ch": {"LV": [1, 1], "RV": [1, 1]}}
    none = long_axis.dice_in_planes(labels.with_voxels(np.zeros_like(labels.voxels)), labels, lax)
    assert none["4ch"]["LV"] == [0, 0]


def test_a_ventricle_that_a_plane_only_grazes_is_not_judged(labels, lax):
    few = np.where(labels.voxels == 3, 0, labels.voxels)
    middle = np.argwhere(labels.voxels[0] == 3).mean(axis=0).astype(int)
    few[:, middle[0], middle[1] - 2 : middle[1] + 2, middle[2] - 2 : middle[2] + 2] = 3
    assert set(long_axis.dice_in_planes(labels, labels.with_voxels(few), lax)["4ch"]) == {"LV"}


def test_means_and_deviations_are_over_all_cuts():
    found = long_axis.dice_summary({"4ch": {"LV": [0.8, 0.9], "RV": [0.6, 0.7]}, "2ch": {"LV": [1.0, 0.9]}})
    assert found["sides"]["LV"] == {"mean": pytest.approx(0.9), "sd": pytest.approx(np.sqrt(0.005)), "cuts": 4}
    assert found["views"]["4ch"]["mean"] == pytest.approx(0.75)
    assert found["views"]["2ch"] == {"mean": pytest.approx(0.95), "sd": pytest.approx(0.05), "cuts": 2}
    assert found["views"]["average"]["mean"] == pytest.approx((0.8 + 0.9 + 0.6 + 0.7 + 1.0 + 0.9) / 6)


def test_the_crop_stays_where_it_was_in_the_patient():
    """A picture that is a linear function of the place stays that function of the place."""
    matrix = affine((1.4, 1.4, 12.0), rotation(3), np.array([10.0, -40.0, 25.0]))
    stack = Stack(np.zeros((1, 3, 192, 224)), matrix)
    z, y, x = np.indices((3, 192, 224))
    slope = np.array([0.3, -0.5, 0.2])
    ramp = stack.to_lps(np.stack([x, y, z], axis=-1)) @ slope
    stack = stack.with_voxels(ramp[None])
    center = stack.to_lps(np.array([110.0, 95.0, 1.0]))
    crop = long_axis.cropped(stack, center)
    assert crop.voxels.shape == (1, 3, 128, 128)
    assert crop.spacing_mm == pytest.approx([1.8, 1.8, 12.0])
    low, high = np.percentile(ramp, [1, 99.5])
    z, y, x = np.indices((3, 128, 128))
    expected = (crop.to_lps(np.stack([x, y, z], axis=-1)) @ slope - low) / (high - low)
    seen = (expected > 0.05) & (expected < 0.95)
    assert seen.mean() > 0.5
    np.testing.assert_allclose(crop.voxels[0][seen], expected[seen], atol=0.01)


def test_the_dense_stack_lies_between_the_acquired_slices(labels):
    sparse = Stack(labels.voxels[:, ::4], labels.affine @ np.diag([1, 1, 4, 1]), labels.frame_times_ms)
    heart = Heart(sparse, (), (0, 1), 4)
    dense = heart.dense(np.zeros((2, (sparse.num_slices - 1) * 4 + 1, *sparse.voxels.shape[2:])))
    np.testing.assert_allclose(dense.affine, labels.affine)
    np.testing.assert_array_equal(np.flatnonzero(~dense.generated), np.arange(sparse.num_slices) * 4)


def test_a_mesh_fills_its_volume_on_an_oblique_grid():
    matrix = affine((1.5, 1.2, 3.0), rotation(5), np.array([-70.0, 20.0, 15.0]))
    grid = Stack(np.zeros((1, 30, 80, 64), np.uint8), matrix)
    sphere = vtkSphereSource()
    sphere.SetCenter(*grid.to_lps(np.array([32.0, 40.0, 15.0])))
    sphere.SetRadius(25)
    sphere.SetThetaResolution(60)
    sphere.SetPhiResolution(60)
    sphere.Update()
    inside = meshes.inside_of(sphere.GetOutput(), grid)
    assert inside.sum() * 1.5 * 1.2 * 3.0 == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.03)
    middle = np.argwhere(inside).mean(axis=0)
    assert middle == pytest.approx([15, 40, 32], abs=0.5)


@pytest.fixture(scope="module")
def fitted(labels, tmp_path_factory):
    """The labels' own surfaces as mesh files, numbered 4 and 9."""
    folder = tmp_path_factory.mktemp("meshes")
    for frame, number in enumerate((4, 9)):
        for label, kind in meshes.SIDES.values():
            writer = vtkPolyDataWriter()
            writer.SetFileName(str(folder / f"one_{kind}_{number:03d}.vtk"))
            writer.SetInputData(surfaces(labels, frame)[label])
            writer.Write()
    return folder


def test_labels_agree_with_meshes_made_of_them(labels, lax, fitted):
    sparse = Stack(labels.voxels[:, ::4], labels.affine @ np.diag([1, 1, 4, 1]), labels.frame_times_ms)
    heart = Heart(pictured(sparse), lax, (4, 9), 4)
    kept = labels.with_voxels(labels.voxels[:, : (sparse.num_slices - 1) * 4 + 1], generated=None)
    shifted = kept.with_voxels(np.roll(kept.voxels, 5, axis=3))
    rows = long_axis.compare_anatomy(heart, {"own": kept, "shifted": shifted}, fitted)
    assert rows["own"]["dice"]["views"]["average"]["mean"] > 0.93
    assert rows["own"]["distance_mm"]["LV"] < 0.5
    assert rows["shifted"]["distance_mm"]["LV"] > 2
    assert rows["shifted"]["dice"]["views"]["average"]["mean"] < rows["own"]["dice"]["views"]["average"]["mean"] - 0.05


def test_a_missing_mesh_is_named(labels, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\*_LV_ENDOCARDIAL_007\.vtk"):
        meshes.mesh_labels(labels, (7, 8), tmp_path)


def test_filling_labels_uses_the_volume_of_the_surfaces(labels, fitted):
    truth = meshes.mesh_labels(labels, (4, 9), fitted)
    ml = np.prod(labels.spacing_mm) / 1000
    expected = mesh_volume_ml(surfaces(labels, 1)[1])
    assert (truth.voxels[1] == 1).sum() * ml == pytest.approx(expected, rel=0.04)


def test_pictures_show_the_cuts_where_the_slices_reach(labels, lax, tmp_path):
    sparse = Stack(labels.voxels[:, ::4], labels.affine @ np.diag([1, 1, 4, 1]), labels.frame_times_ms)
    heart = Heart(pictured(sparse), tuple(LaxImage(one.name, pictured(one.stack)) for one in lax), (0, 1), 4)
    stacks = {"linear": pictured(labels)}
    rows = long_axis.cuts_of(heart, stacks, 1)
    assert set(rows["4ch"]) == {"acquired", "linear"}
    assert rows["4ch"]["linear"].shape == rows["4ch"]["acquired"].shape
    long_axis.draw(tmp_path, heart, stacks, dict.fromkeys(stacks, labels))
    assert {path.name for path in tmp_path.glob("*.png")} == {"long-axis-ED.png", "long-axis-ES.png", "surfaces.png"}
