"""Plans of bisection against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from calid.errors import SettingsError
from calid.method.bisection import plan_bisection, resolve_factor
from calid.stack import Stack


def test_eleven_slices_become_eighty_one_in_three_levels():
    plan = plan_bisection(11, 8)
    assert plan.num_slots == 81
    assert [len(level) for level in plan.levels] == [10, 20, 40]
    assert plan.num_generated == 70


@pytest.mark.parametrize("slices", [2, 3, 7, 12])
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_every_slot_is_made_once_from_slots_known_before(slices, factor):
    plan = plan_bisection(slices, factor)
    known = set(range(0, plan.num_slots, factor))
    assert len(known) == slices
    for level in plan.levels:
        made = {gap.target for gap in level}
        for gap in level:
            assert {gap.before, gap.after} <= known
            assert gap.target - gap.before == gap.after - gap.target > 0
        assert not made & known
        known |= made
    assert known == set(range((slices - 1) * factor + 1))


@pytest.mark.parametrize("factor", [0, 1, 3, 32, -2])
def test_other_factors_are_refused_with_those_there_are(factor):
    with pytest.raises(SettingsError, match="2, 4, 8, 16"):
        plan_bisection(5, factor)


@pytest.mark.parametrize(
    ("spacing_mm", "pixel_mm", "factor"),
    [(10.0, 1.25, 8), (8.0, 1.8, 4), (17.7, 1.4, 16), (5.0, 1.4, 4), (2.5, 1.5, 2), (30.0, 1.0, 16)],
)
def test_isotropic_brings_slices_about_as_close_as_pixels(spacing_mm, pixel_mm, factor):
    stack = Stack(np.zeros((1, 3, 20, 20), np.int16), np.diag([pixel_mm, pixel_mm, spacing_mm, 1.0]))
    assert resolve_factor("isotropic", stack) == factor
    assert resolve_factor(4, stack) == 4
