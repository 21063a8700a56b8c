"""What is asked of whom: groups that hold together, and frames that an expert drew."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark.tables.questions import answerable, by_group, phase_of, questions
from calid_training.datasets import RawCase
from calid_training.prepare import load_cases, write_cases
from phantoms import beating_case


@pytest.mark.parametrize(
    ("series", "phase"),
    [
        ("ED", "ED"),
        ("RV_ES", "ES"),
        ("cine", "cine"),
        ("phase01-from00", "ED"),
        ("phase18-from03", "ED"),
        ("phase20-from02", "ED"),
        ("phase06-from01", "ES"),
        ("phase10-from00", "ES"),
    ],
)
def test_a_series_belongs_to_a_phase_of_the_heart(series, phase):
    assert phase_of(series) == phase


@pytest.fixture
def cases(tmp_path) -> list:
    """Two patients of sunnybrook's kind with two phases each, and a cine of which one frame is labeled."""
    stack, labels = (one.frame(0) for one in beating_case(seed=0))
    series = [("a", "phase20-from00"), ("a", "phase07-from01"), ("b", "phase19-from02"), ("b", "phase08-from00")]
    made = [RawCase("sunnybrook", who, name, "test", stack, labels, (1,)) for who, name in series]
    cine, drawn = beating_case(seed=0)
    voxels = drawn.voxels.copy()
    voxels[1:] = 0
    made.append(RawCase("mnms", "c", "cine", "test", cine, drawn.with_voxels(voxels), (1, 2, 3)))
    write_cases(made, tmp_path)
    return list(load_cases(tmp_path, datasets=["sunnybrook", "mnms"], split="test"))


def test_numbered_phases_of_one_kind_are_one_group(cases):
    groups = by_group(questions(cases))
    counts = {name: [question.patient for question in members] for name, members in groups.items()}
    assert {name.split()[1]: who for name, who in counts.items() if "sunnybrook" in name} == {
        "ED": ["a", "b"],
        "ES": ["a", "b"],
    }


def test_a_frame_that_nobody_drew_in_has_no_labels(cases):
    frames = [question for question in questions(cases) if question.patient == "c"]
    assert len(frames) > 1
    assert [question.labels is not None for question in frames] == [True] + [False] * (len(frames) - 1)
    assert np.unique(frames[0].labels).tolist() == [0, 1, 2, 3]


def test_only_slow_baselines_are_asked_less_and_then_all_stacks_of_a_patient(cases):
    members = [question for question in questions(cases) if question.patient in "ab"]
    asked = answerable("DMCVR", members, slow_patients=1)
    assert [question.patient for question in asked] == ["a", "a"]
    assert answerable("CaLID", members, slow_patients=1) == answerable("DMCVR", members, slow_patients=None) == members
