"""The segmenter's figures against arithmetic by hand and a second implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calid.heart.segmentation import segment
from calid.stack import Stack
from calid_benchmark.metrics import distances, overlap
from calid_benchmark.tables.segmenter import comparisons_of, markdown, table_rows
from calid_training.datasets import RawCase, read_cases
from phantoms import heart_labels
from scipy import ndimage


def boundary_distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distances from every boundary pixel of a to b's boundary and back, by distance transforms."""
    edges = [mask ^ ndimage.binary_erosion(mask) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    return to_b[edges[0]], to_a[edges[1]]


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    mask = np.zeros(shape, bool)
    inner = tuple(slice(3, -3) for _ in shape)
    mask[inner] = noise[inner] > np.quantile(noise, 0.7)
    return mask


def test_overlap_of_shifted_squares_by_hand() -> None:
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[5:15, 5:15], b[5:15, 8:18] = True, True  # 100 each, 70 shared, 130 together
    figures = overlap(a, b)
    assert figures["dice"] == pytest.approx(0.7)
    assert figures["voe"] == pytest.approx(100 * 60 / 130, abs=1e-4)
    assert distances(a, b, (1.0, 1.0))["hd"] == pytest.approx(3)
    assert distances(a, b, (1.0, 1.5))["hd"] == pytest.approx(4.5), "the shift is along the columns"


@pytest.mark.parametrize(("shape", "spacing"), [((40, 50), (1.4, 1.9)), ((10, 40, 30), (10.0, 1.5, 1.2))])
def test_distances_agree_with_distance_transforms(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    a, b = blobs(shape, 1), blobs(shape, 2)
    there, back = boundary_distances(a, b, spacing)
    found = distances(a, b, spacing)
    assert found["hd"] == pytest.approx(max(there.max(), back.max()), rel=1e-5)
    assert found["asd"] == pytest.approx(there.mean(), rel=1e-5)
    assert found["assd"] == pytest.approx((there.sum() + back.sum()) / (there.size + back.size), rel=1e-5)


def shifted_case() -> tuple[Stack, RawCase]:
    truth = heart_labels(spacing_mm=(1.6, 2.4, 10.0))
    made = truth.with_voxels(np.roll(truth.voxels, 2, axis=3))
    return made, RawCase("acdc", "patient061", "ED", "test", truth, truth, (1, 2, 3))


def test_a_shift_of_two_columns_is_measured_with_the_columns_spacing_in_every_structure() -> None:
    rows = table_rows(comparisons_of(*shifted_case()))
    for structure in ("lv", "myocardium", "rv"):
        row = next(r for r in rows if (r["level"], r["phase"], r["structure"]) == ("slice", "ED", structure))
        assert row["hd_px"]["mean"] == pytest.approx(2, abs=0.1)
        assert row["hd_mm"]["mean"] == pytest.approx(3.2, abs=0.25)
        assert row["one_empty"] == 0
        assert row["stacks"] == 1


def test_a_missed_slice_counts_against_the_overlap_and_is_left_out_of_distances() -> None:
    made, case = shifted_case()
    voxels = made.voxels.copy()
    first = int(np.flatnonzero((voxels[0] == 1).any(axis=(1, 2)))[0])
    voxels[0, first] = 0
    comparisons = [c for c in comparisons_of(made.with_voxels(voxels), case) if c.structure == "lv"]
    missed = [c for c in comparisons if c.level == "slice" and "hd_mm" not in c.figures]
    assert len(missed) == 1
    assert missed[0].figures == {"dice": 0.0, "voe": 100.0}
    row = next(r for r in table_rows(comparisons) if r["level"] == "slice" and r["structure"] == "lv")
    assert row["one_empty"] == 1


def test_a_structure_that_nobody_drew_is_not_judged() -> None:
    made, case = shifted_case()
    lv_only = RawCase("chla", "05", "LV_ED", "validation", case.stack, case.labels, (1,))
    assert {c.structure for c in comparisons_of(made, lv_only)} == {"lv"}


def test_every_stack_weighs_the_same_however_many_slices_it_has() -> None:
    made, case = shifted_case()
    perfect = RawCase("acdc", "patient062", "ES", "test", case.stack, case.labels, (1, 2, 3))
    few = [c for c in comparisons_of(made, case) if c.level == "slice" and c.structure == "lv"][:2]
    many = [c for c in comparisons_of(case.labels, perfect) if c.level == "slice" and c.structure == "lv"]
    row = next(r for r in table_rows(few + many) if r["phase"] == "ED+ES" and r["structure"] == "lv")
    assert row["dice"]["mean"] == pytest.approx((1 + np.mean([c.figures["dice"] for c in few])) / 2)
    assert row["dice"]["worst"] < 1


def test_the_table_has_a_line_for_every_row_and_says_how_many() -> None:
    rows = table_rows(comparisons_of(*shifted_case()))
    text = markdown(rows)
    assert sum(line.startswith("| ED | lv |") for line in text.splitlines()) == 2
    assert text.count("**Per ") == 2


@pytest.mark.data
def test_an_unseen_patient_of_acdc_is_labeled_as_an_expert_would(data_folder: Path) -> None:
    case = next(case for case in read_cases(data_folder, "acdc") if case.name == "acdc/patient061/ED")
    rows = table_rows(comparisons_of(segment(case.stack, device="cpu"), case))
    scores = {r["structure"]: r["dice"]["mean"] for r in rows if (r["level"], r["phase"]) == ("stack", "ED")}
    assert scores["lv"] > 0.92
    assert scores["mean"] > 0.88
