"""Preparing sets: bad files, stops on the way, one's own data; and reading them without filling the memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import file_phantoms
import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

from calid.images.files import write_stack
from calid.stack import Stack
from calid_training import prepare as preparing
from calid_training.crops import SHIPPED, Triplets, draw_crop
from calid_training.data import TripletData
from calid_training.datasets import RawCase, read_cases
from calid_training.prepare import IndexEntry, StoredCase, load_cases, prepare, read_index, write_cases
from calid_training.train import main

FRAMES, SLICES = 6, 5


def cine(seed: int) -> Stack:
    voxels = np.random.default_rng(seed).integers(0, 500, (FRAMES, SLICES, 20, 24)).astype(np.int16)
    return Stack(voxels, np.diag([1.8, 1.8, 8.0, 1.0]), np.arange(FRAMES) * 30.0)


@pytest.fixture
def ukbb(tmp_path) -> Path:
    """Four subjects in UK Biobank's layout; the second one's file is cut off."""
    for number, subject in enumerate(("1000012", "1000023", "1000034", "1000041")):
        folder = tmp_path / "data" / "ukbb" / subject
        folder.mkdir(parents=True)
        write_stack(cine(number), folder / "sa.nii.gz")
    bad = tmp_path / "data" / "ukbb" / "1000023" / "sa.nii.gz"
    bad.write_bytes(bad.read_bytes()[:500])
    return tmp_path / "data"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bad_file_is_named_with_its_subject_and_the_others_are_prepared(ukbb, tmp_path, capsys, workers):
    out = tmp_path / "out"
    command = ["prepare", "--data", str(ukbb), "--out", str(out), "--datasets", "ukbb", "--workers", workers]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"left out: ukbb/1000023/cine ({Path('ukbb', '1000023', 'sa.nii.gz')}): " in said
    assert "3 stacks prepared, 0 were there, 1 left out" in said
    assert list(json.loads((out / "left-out.json").read_text())) == ["ukbb/1000023/cine"]
    assert [entry.patient for entry in read_index(out)] == ["1000012", "1000034", "1000041"]
    for stored, number in zip(load_cases(out, datasets=["ukbb"], split="train"), (0, 2), strict=True):
        expected = preparing.scaled_images(RawCase("ukbb", "", "cine", "train", cine(number)))
        np.testing.assert_array_equal(stored.images, expected)


def test_a_stopped_preparation_goes_on_and_what_changed_is_prepared_again(ukbb, tmp_path, monkeypatch):
    out, read = tmp_path / "out", []
    original = preparing._prepared

    def stopping(item, folder):
        read.append(item.patient)
        if len(read) == 3:
            raise KeyboardInterrupt
        return original(item, folder)

    monkeypatch.setattr(preparing, "_prepared", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(ukbb, out, datasets=["ukbb"], workers=0)
    assert not (out / "index.json").exists()
    with (out / preparing.JOURNAL_NAME).open("a") as journal:
        journal.write('{"dataset": "ukbb", "pat')  # the kill came in the middle of a line
    done = prepare(ukbb, out, datasets=["ukbb"], workers=0)
    assert (done.prepared, done.kept, len(done.left_out)) == (2, 1, 1)
    assert not (out / preparing.JOURNAL_NAME).exists()
    before = {entry.patient: entry.sha256 for entry in read_index(out)}
    read.clear()
    write_stack(cine(7), ukbb / "ukbb" / "1000034" / "sa.nii.gz", overwrite=True)
    assert prepare(ukbb, out, datasets=["ukbb"], workers=0).kept == 2
    assert read == ["1000023", "1000034"], "the damaged one is tried again, the changed one is read again"
    after = {entry.patient: entry.sha256 for entry in read_index(out)}
    assert {name for name in before if before[name] != after[name]} == {"1000034"}


def test_a_list_of_splits_wins_over_the_rule_and_leaves_out_who_is_not_named(ukbb, tmp_path):
    out, file = tmp_path / "out", tmp_path / "splits.csv"
    command = ["prepare", "--data", str(ukbb), "--out", str(out), "--datasets", "ukbb", "--workers", "0"]
    assert main(command) == 0
    assert {entry.patient: entry.split for entry in read_index(out)}["1000041"] == "validation"
    file.write_text("dataset,patient,split\nukbb,1000041,test\nukbb,1000012,validation\nukbb,9,train\n")
    assert main([*command, "--splits", str(file)]) == 0
    assert {entry.patient: entry.split for entry in read_index(out)} == {"1000012": "validation", "1000041": "test"}
    assert [case.entry.patient for case in load_cases(out, datasets=["ukbb"], split="test")] == ["1000041"]
    for line, message in (
        ("ukbb,1000041,later", "line 2: dataset, patient and split .* are needed"),
        ("ukbb,1000041,test\nukbb,1000041,train", "line 3: patient 1000041 is in two splits"),
    ):
        file.write_text(f"dataset,patient,split\n{line}\n")
        with pytest.raises(ValueError, match=message):
            main([*command, "--splits", str(file)])


def test_ones_own_data_are_read_by_a_file_that_says_their_split(tmp_path):
    folder = tmp_path / "clinic"
    folder.mkdir()
    for number in range(2):
        write_stack(cine(number), folder / f"{number}.nii.gz")
    split = folder / "split.csv"
    split.write_text("path,patient,split,series\n0.nii.gz,a,train,rest\n1.nii.gz,b,test,\n")
    assert [(case.name, case.split) for case in read_cases(tmp_path, "clinic")] == [
        ("clinic/a/rest", "train"),
        ("clinic/b/cine", "test"),
    ]
    for line, message in (
        ("1.nii.gz,a,test,x", "line 3: patient a is in train and in test: split by patient"),
        ("1.nii.gz,b,later,x", "line 3: the split is one of train, validation, test, not 'later'"),
        ("1.nii.gz,,test,x", "line 3: patient is missing"),
        ("1.nii.gz,../b,test,x", r"line 3: names are made of .* not '\.\./b'"),
    ):
        split.write_text(f"path,patient,split,series\n0.nii.gz,a,train,rest\n{line}\n")
        with pytest.raises(ValueError, match=message):
            list(read_cases(tmp_path, "clinic"))
    split.unlink()
    with pytest.raises(ValueError, match=r"'clinic' is none of acdc, .*split\.csv"):
        list(read_cases(tmp_path, "clinic"))


def test_ones_own_dicom_studies_are_prepared_like_files(tmp_path):
    stack = file_phantoms.noisy_stack((FRAMES, SLICES, 18, 24))
    file_phantoms.write_stack(tmp_path / "data" / "clinic" / "first", stack)
    write_stack(stack, tmp_path / "data" / "clinic" / "second.nii.gz")
    (tmp_path / "data" / "clinic" / "split.csv").write_text(
        "path,patient,split\nfirst,a,train\nsecond.nii.gz,b,train\n"
    )
    command = ["prepare", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--datasets", "clinic"]
    assert main([*command, "--workers", "0"]) == 0
    first, second = load_cases(tmp_path / "out", datasets=["clinic"], split="train")
    assert first.entry.shape == (FRAMES, SLICES, 18, 24)
    np.testing.assert_array_equal(first.images, second.images)


def test_acdcs_official_folders_and_all_150_patients_are_known(tmp_path):
    from calid_training.datasets import acdc_split, items_of

    for part, number in (("training", 100), ("testing", 101)):
        folder = tmp_path / "acdc" / part / f"patient{number}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 2\n")
    found = {(item.patient, item.split) for item in items_of(tmp_path, "acdc")}
    assert found == {("patient100", "train"), ("patient101", "test")}
    counts = [acdc_split(number) for number in range(1, 151)]
    assert {name: counts.count(name) for name in set(counts)} == {"train": 74, "validation": 6, "test": 70}


def test_triplets_are_counted_without_being_made_and_every_fifth_frame_takes_part(tmp_path):
    write_cases([RawCase("phantom", str(n), "cine", "train", cine(n)) for n in range(2)], tmp_path)
    cases = list(load_cases(tmp_path, datasets=["phantom"], split="train"))
    every = Triplets(cases, max_gap_mm=33.0)  # neighbors, and strides of two slices
    expected = [
        (case.entry.patient, stride, frame, middle)
        for case in cases
        for stride in (1, 2)
        for frame in range(FRAMES)
        for middle in range(stride, SLICES - stride)
    ]
    assert [(t.case.entry.patient, t.stride, t.frame, t.middle) for t in every] == expected
    fifth = Triplets(cases, frame_step=5)
    assert {triplet.frame for triplet in fifth} == {0, 5}
    assert len(fifth) == 2 * 2 * (SLICES - 2)


def test_several_loader_processes_give_the_batches_of_one(tmp_path):
    write_cases([RawCase("phantom", str(n), "cine", "train", cine(n)) for n in range(2)], tmp_path)
    settings = {"prepared": tmp_path, "datasets": ["phantom"], "sizes": (16,), "size_weights": (1.0,), "batches": 5}
    batches = []
    for workers in (0, 3):
        data = TripletData(**settings, workers=workers, batch_size=2)
        data.train_stream = data._stream("train", sizes=(16,), size_weights=(1.0,), batches=5, seed=1)
        data.trainer = type("Trainer", (), {"current_epoch": 0, "global_rank": 0})()
        batches.append([batch["target"].numpy() for batch in data.train_dataloader()])
    np.testing.assert_array_equal(*batches)


def test_the_papers_crops_are_flipped_and_nothing_else():
    rng = np.random.default_rng(0)
    paper = replace(SHIPPED, pixel_mm=(0.1, 10.0), zoom=(1.0, 1.0), tilt_degrees=0.0, turns=2, gamma=(1.0, 1.0))
    paper = replace(paper, jitter_pixels=0.0, anywhere=0.0)
    plans = [draw_crop(rng, center=np.array([40.0, 50.0]), native_mm=1.8, size=128, variety=paper) for _ in range(40)]
    assert {(plan.center, plan.pixel_mm, plan.gamma) for plan in plans} == {((40.0, 50.0), 1.8, 1.0)}
    assert len({(round(plan.angle, 6), plan.mirrored) for plan in plans}) == 4


def test_an_index_of_version_0_1_is_still_read(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 8, 10)).astype(np.float16)
    np.savez_compressed(tmp_path / "old.npz", images=images)
    entry = IndexEntry("phantom", "0", "cine", "train", "old.npz", (1, 1, 8), (2, 3, 8, 10), (), "")
    case = StoredCase(entry, tmp_path)
    np.testing.assert_array_equal(case.images, images)
    assert case.labels is None
    assert preparing.case_center(case).tolist() == [4.5, 3.5]
    assert isinstance(preparing.spans_cycle(case), bool)
