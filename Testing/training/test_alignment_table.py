"""The table of breath-holds: what counts as a slice that was made worse."""

from __future__ import annotations

import numpy as np
from calid_benchmark.tables.alignment import Trial, summary_of

ASIDE = [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def made_worse(errors, known) -> int:
    trial = Trial(np.array(ASIDE), np.array(errors), np.array(known), (0.5, 0.9))
    return summary_of([trial])["made_worse"]


def test_a_slice_that_ends_up_farther_off_in_plane_than_it_was_is_made_worse():
    assert made_worse([[0.4, 0.0, 0.0], [0.0, 2.4, 0.0], [0.1, 0.0, 3.0]], [True, True, True]) == 0
    assert made_worse([[0.4, 0.4, 0.0], [0.0, 2.6, 0.0], [0.1, 0.0, 3.0]], [True, True, True]) == 2


def test_a_slice_that_no_view_crosses_stays_where_it_is_and_is_not():
    assert made_worse([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.8, 0.0, 0.0]], [True, True, False]) == 0
