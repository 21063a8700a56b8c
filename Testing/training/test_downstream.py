"""The segmenter's tables (CaLID, Table II; DMCVR, Table 1): figures by hand, empty masks, rows and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark import ways
from calid_benchmark.rivals import shape_based
from calid_benchmark.systems import Named
from calid_benchmark.tables import downstream, reconstruction
from calid_benchmark.tables.answers import ask, of_themselves
from scipy import ndimage

LINEAR = Named("linear", ways.linear)


def square(column: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[10:20, column : column + 10] = True
    return mask


def disc(radius: float) -> np.ndarray:
    rows, columns = np.indices((64, 64)) - 31.5
    return rows**2 + columns**2 <= radius**2


def boundary(mask: np.ndarray) -> np.ndarray:
    return mask ^ ndimage.binary_erosion(mask)


@pytest.fixture
def evaluate(tmp_path):
    """Asks systems and labels what they answered."""

    def evaluated(asked, systems_asked, segmenter, **options):
        answers = ask(systems_asked, asked, tmp_path, **options)
        return downstream.evaluate(asked, downstream.labelings_of(answers, segmenter))

    return evaluated


class Expert:
    """Knows the labels of the true slices by heart; sees background in all others."""

    def __init__(self, asked) -> None:
        self.known = {
            image.tobytes(): labels for one in asked for image, labels in zip(one.images, one.stack_labels, strict=True)
        }

    def foreground(self, images):
        shape = images.shape[2:]
        found = [self.known.get(image[0].numpy().tobytes(), np.zeros(shape)) for image in images]
        return torch.stack([torch.stack([torch.from_numpy(x == label) for label in (1, 2, 3)]) for x in found]).float()


def test_figures_of_a_shifted_square_are_as_worked_out_by_hand():
    figures = downstream.compare_slices(np.stack([square(13)]), np.stack([square(10)]))
    assert figures["dice"] == figures["dice_per_slice"] == pytest.approx(0.7)
    assert figures["hd_px"] == pytest.approx(3)
    assert figures["hd_mm"] == pytest.approx(3 * 1.8)
    to_truth = ndimage.distance_transform_edt(~boundary(square(10)))[boundary(square(13))]
    assert figures["asd_px"] == pytest.approx(to_truth.mean(), rel=1e-5)
    assert figures["one_empty"] == 0


def test_the_hausdorff_distance_of_two_discs_is_the_difference_of_their_radii():
    figures = downstream.compare_slices(np.stack([disc(25)]), np.stack([disc(18)]))
    assert figures["hd_px"] == pytest.approx(7, abs=0.8)
    assert figures["assd_px"] == pytest.approx(7, abs=0.5)


def test_a_slice_that_only_one_of_them_has_counts_as_no_overlap_and_has_no_distance():
    nothing = np.zeros_like(square(10))
    made, truth = np.stack([square(10), nothing, nothing]), np.stack([square(10), square(10), nothing])
    figures = downstream.compare_slices(made, truth)
    assert figures["dice_per_slice"] == pytest.approx(0.5)
    assert figures["dice"] == pytest.approx(2 * 100 / 300)
    assert figures["hd_px"] == 0
    assert figures["one_empty"] == 1
    nowhere = downstream.compare_slices(made[2:], truth[2:])
    assert np.isnan(nowhere["dice"])
    assert np.isnan(nowhere["asd_mm"])


def test_dice_of_the_true_slices_labels_is_one_and_of_what_is_not_recognized_nought(asked, evaluate):
    tables = evaluate(asked, [LINEAR], Expert(asked))
    rows = tables["phantom ED 16 mm"]
    assert rows["original"]["mean"]["dice"]["mean"] == 1
    assert rows["original"]["mean"]["hd_mm"]["mean"] == 0
    assert rows["linear"]["mean"]["dice"]["mean"] == 0
    assert rows["linear"]["mean"]["hd_mm"] is None
    assert rows["linear"]["lv"]["one_empty"] == sum((q.labels == 1).any(axis=(1, 2)).sum() for q in asked)
    assert 0.4 < rows[downstream.SHAPE_BASED]["mean"]["dice"]["mean"] < 1
    assert "shape-based (labels given)" in downstream.markdown(tables)


def test_a_patients_phases_are_one_patient_and_frames_without_labels_are_not_asked_for(asked, evaluate):
    again = replace(asked[0], images=asked[0].images[:-1], stack_labels=asked[0].stack_labels[:-1])
    unlabeled = replace(asked[1], stack_labels=None)
    rows = evaluate([asked[0], again, unlabeled], [LINEAR], Expert(asked))
    row = rows["phantom ED 16 mm"][downstream.SHAPE_BASED]
    both = [
        downstream.compare_labels(shape_based.between(q.stack_labels[:-2], q.stack_labels[2:]), q)["lv"]["dice"]
        for q in (asked[0], again)
    ]
    assert row["patients"] == row["lv"]["dice"]["count"] == 1
    assert row["lv"]["dice"]["mean"] == pytest.approx(np.mean(both))
    assert "low" not in row["lv"]["dice"]


def test_slow_baselines_can_be_asked_about_fewer_patients(asked, evaluate):
    slow = Named("DMCVR", ways.linear)
    rows = evaluate(asked, [LINEAR, slow], Expert(asked), slow_patients=1)["phantom ED 16 mm"]
    assert (rows["linear"]["patients"], rows["DMCVR"]["patients"]) == (2, 1)
    assert "| DMCVR | 1 |" in downstream.markdown({"phantom ED 16 mm": rows})


def test_only_what_the_expert_drew_is_judged(asked, evaluate):
    partial = [replace(question, annotated=(1,)) for question in asked]
    rows = evaluate(partial, [LINEAR], Expert(asked))["phantom ED 16 mm"]
    assert set(rows["original"]) == {"patients", "lv", "mean"}


def test_distances_in_3d_are_in_voxels_as_in_dmcvrs_code_and_in_millimeters():
    truth = np.zeros((12, 40, 40), bool)
    truth[3:7, 10:20, 10:20] = True
    made = np.roll(truth, 1, axis=0)
    figures = reconstruction.compare_volumes(made, truth, spacing_mm=10.0)
    assert figures["dice"] == pytest.approx(0.75)
    assert figures["voe"] == pytest.approx(100 * (1 - 300 / 500), abs=1e-4)
    assert figures["hd_px"] == pytest.approx(1)
    assert figures["hd_mm"] == pytest.approx(10)
    there, back = (ndimage.distance_transform_edt(~boundary(b))[boundary(a)] for a, b in ((made, truth), (truth, made)))
    assert figures["assd_means_px"] == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-5)
    assert figures["assd_px"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)


def test_an_empty_volume_has_no_distance():
    mask, nothing = np.ones((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    missed = reconstruction.compare_volumes(nothing, mask, spacing_mm=8.0)
    assert (missed["dice"], missed["voe"]) == (0, 100)
    assert np.isnan(missed["hd_mm"])
    assert np.isnan(reconstruction.compare_volumes(nothing, nothing, spacing_mm=8.0)["dice"])


def test_a_slice_is_reconstructed_from_itself_alone(asked, tmp_path):
    seen = []

    def exact(before, after):
        seen.append((before, after))
        return before

    answers = ask([Named("DiffAE", exact)], asked, tmp_path, sides=of_themselves)
    tables = reconstruction.evaluate(answers, Expert(asked))
    np.testing.assert_array_equal(*seen[0])
    rows = tables["phantom ED 16 mm"]
    assert rows["DiffAE"]["all labels"]["dice"]["mean"] == 1
    assert rows["DiffAE"]["images"]["ssim_3d"]["mean"] == pytest.approx(1)
    assert rows["original"]["rv"]["hd_px"]["mean"] == 0
    assert "images" not in rows["original"]


def test_psnr_of_a_stack_is_that_of_all_its_voxels():
    truth = np.zeros((8, 16, 16), np.float32)
    made = truth.copy()
    made[:4] += 0.1
    figures = reconstruction.compare_images(truth, made)
    assert figures["psnr_3d"] == pytest.approx(-10 * np.log10(0.01 / 2), abs=1e-3)
