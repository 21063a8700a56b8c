"""The readers on sets written here in the layouts in which the real ones are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calid.images.files import write_stack
from calid.stack import Stack
from calid_training.datasets import read_cases
from PIL import Image


def stack(voxels: np.ndarray, origin_mm: float = 0.0) -> Stack:
    affine = np.diag([1.5, 1.5, 10.0, 1.0])
    affine[2, 3] = origin_mm
    return Stack(voxels, affine, np.arange(len(voxels)) * 30.0)


def images(frames: int = 1, slices: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 500, (frames, slices, 20, 24)).astype(np.int16)


def labels(*values: int, slices: int = 4) -> np.ndarray:
    """One square of each value in every slice."""
    drawn = np.zeros((1, slices, 20, 24), np.uint8)
    for index, value in enumerate(values):
        drawn[:, :, 4:8, 5 * index : 5 * index + 4] = value
    return drawn


def test_acdc_labels_become_ours_and_patients_choose_from_55_and_test_from_61_on(tmp_path):
    for number in (7, 55, 61):
        folder = tmp_path / "acdc" / f"patient{number:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: NOR\n")
        for frame in (1, 12):
            name = f"{folder.name}_frame{frame:02d}"
            write_stack(stack(images()), folder / f"{name}.nii.gz")
            write_stack(stack(labels(1, 2, 3)), folder / f"{name}_gt.nii.gz")
    write_stack(stack(images(frames=5)), tmp_path / "acdc" / "patient007" / "patient007_4d.nii.gz")
    cases = list(read_cases(tmp_path, "acdc"))
    assert [(case.name, case.split) for case in cases] == [
        ("acdc/patient007/ED", "train"),
        ("acdc/patient007/ES", "train"),
        ("acdc/patient007/cine", "train"),
        ("acdc/patient055/ED", "validation"),
        ("acdc/patient055/ES", "validation"),
        ("acdc/patient061/ED", "test"),
        ("acdc/patient061/ES", "test"),
    ]
    assert cases[0].labels.voxels[0, 0, 5, [1, 6, 11]].tolist() == [3, 2, 1]  # theirs: 1 RV, 2 myocardium, 3 LV
    assert cases[2].stack.num_frames == 5


def test_mnms_cines_keep_the_split_of_their_folder(tmp_path):
    for part, split in (("Training/Labeled", "train"), ("Validation", "validation"), ("Testing", "test")):
        folder = tmp_path / "mnms" / part / f"A{split}"
        folder.mkdir(parents=True)
        write_stack(stack(images(frames=3)), folder / f"A{split}_sa.nii.gz")
        write_stack(stack(np.repeat(labels(1, 2, 3), 3, axis=0)), folder / f"A{split}_sa_gt.nii.gz")
    cases = {case.split: case for case in read_cases(tmp_path, "mnms")}
    assert set(cases) == {"train", "validation", "test"}
    assert cases["test"].labels.voxels.shape == cases["test"].stack.voxels.shape == (3, 4, 20, 24)


def test_ukbb_cines_are_read_and_of_ten_subjects_one_validates_and_one_tests(tmp_path):
    for subject in ("1000123", "1000130", "1000131"):
        (tmp_path / "ukbb" / subject).mkdir(parents=True)
        write_stack(stack(images(frames=4)), tmp_path / "ukbb" / subject / "sa.nii.gz")
    assert [(case.patient, case.split, case.stack.num_frames) for case in read_cases(tmp_path, "ukbb")] == [
        ("1000123", "train", 4),
        ("1000130", "test", 4),
        ("1000131", "validation", 4),
    ]


def test_chla_masks_say_which_cavity_was_drawn(tmp_path):
    folder = tmp_path / "chla" / "subject05"
    folder.mkdir(parents=True)
    for name in ("LV_ED", "RV_ES"):
        write_stack(stack(images()), folder / f"{name}.nii.gz")
        write_stack(stack(labels(255)), folder / f"{name}_mask.nii.gz")
    left, right = read_cases(tmp_path, "chla")
    assert (left.annotated, right.annotated) == ((1,), (3,))
    assert set(np.unique(right.labels.voxels)) == {0, 3}
    assert left.split == "validation"


def test_autofd_labels_on_a_longer_grid_are_put_onto_the_images(tmp_path):
    folder = tmp_path / "autofd" / "A"
    folder.mkdir(parents=True)
    long = labels(1, 2, 4, slices=7)
    long[:, :3] = 0  # the label grid starts three slices lower
    write_stack(stack(images()), folder / "sa_ED.nii.gz")
    write_stack(stack(long, origin_mm=-30.0), folder / "seg_sa_ED.nii.gz")
    (case,) = read_cases(tmp_path, "autofd")
    assert case.labels.voxels.shape == case.stack.voxels.shape
    assert case.labels.voxels[0, 0, 5, [1, 6, 11]].tolist() == [1, 2, 3]


def test_sunnybrook_slices_are_sorted_into_runs_without_gaps(tmp_path):
    for part in ("Images", "Labels"):
        (tmp_path / "sunnybrook" / "Train" / part / "P").mkdir(parents=True)
    for file_number in (7, 27, 47, 87, 40):  # phase 7 of positions 0, 1, 2, 4; phase 20 of position 1
        name = f"SC-HF-I-21-IM-0001-{file_number:04d}.dcm.png"
        for part in ("Images", "Labels"):
            picture = Image.fromarray(np.full((16, 16), file_number, np.uint8))
            picture.save(tmp_path / "sunnybrook" / "Train" / part / "P" / name)
    cases = {case.series: case for case in read_cases(tmp_path, "sunnybrook")}
    assert {series: case.stack.num_slices for series, case in cases.items()} == {
        "phase07-from00": 3,
        "phase07-from04": 1,
        "phase20-from01": 1,
    }
    assert cases["phase07-from00"].stack.voxels[0, :, 0, 0].tolist() == [7, 27, 47]
    assert {case.split for case in cases.values()} == {"validation"}


def test_a_missing_set_is_named_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="chla"):
        list(read_cases(tmp_path, "chla"))


@pytest.mark.data
def test_the_real_sets_are_complete(data_folder: Path):
    patients = {name: {case.patient for case in read_cases(data_folder, name)} for name in ("chla", "autofd")}
    assert {name: len(found) for name, found in patients.items()} == {"chla": 58, "autofd": 7}
