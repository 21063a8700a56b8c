"""The short form of `python Testing/fuzz.py`: some inputs of each kind that needs no process of its own."""

from __future__ import annotations

import pytest

pytest.importorskip("resource")  # Windows has none
import fuzz
import fuzz_volumes

COUNTS = {"nii": 25, "nii.gz": 25, "nrrd": 25, "seq.nrrd": 25, "mha": 25, "endless": 4, "dicom": 6}


@pytest.mark.filterwarnings("ignore")  # of pydicom and nibabel, which the inputs deserve
@pytest.mark.parametrize("kind", COUNTS)
def test_odd_inputs_are_refused_in_one_line_or_read_right(kind):
    found = [fuzz.judged(kind, number) for number in range(COUNTS[kind])]
    assert [(number, words) for number, (outcome, words) in enumerate(found) if outcome == "fault"] == []
    assert {outcome for outcome, _ in found} <= {fuzz.REFUSED, fuzz.RIGHT, fuzz.IN_PART}
    assert any(outcome == fuzz.REFUSED for outcome, _ in found)


def test_a_wrong_reading_would_be_seen(tmp_path, monkeypatch):
    """The judge itself: voxels of another place, another value or another frame are faults."""
    path = fuzz_volumes.written(tmp_path, ".seq.nrrd")
    stack = fuzz_volumes.original(".seq.nrrd")
    assert fuzz_volumes.judged_volume(path, stack) == fuzz.RIGHT
    moved = stack.affine.copy()
    moved[0, 3] += 3
    swapped = stack.with_voxels(stack.voxels[::-1])
    for wrong in (type(stack)(stack.voxels, moved, stack.frame_times_ms), swapped, stack.with_voxels(stack.voxels + 1)):
        monkeypatch.setattr(fuzz_volumes, "read_stack", lambda _, wrong=wrong: wrong)
        with pytest.raises(fuzz.WrongError):
            fuzz_volumes.judged_volume(path, stack)


def test_the_table_counts_what_was_found(capsys):
    assert fuzz.main(["--kinds", "nii", "--share", "0.01"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("nii"))
    assert row.split()[1] == "7"
    assert row.split()[5] == "0"
