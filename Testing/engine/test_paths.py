"""Curved paths: tissue whose way bends passes beside the straight line between two slices, as the gaps beside say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from calid.method import paths
from calid.method.bisection import plan_bisection
from calid.method.guidance import CHANNELS, grid_shape
from calid.method.motion import Fields, moved_by
from calid.method.paths import curved, curved_level
from calid.run.device import choose_device
from calid.run.generation import Generation
from calid.run.preparation import Preparation
from calid.run.progress import Watch
from calid.run.reconstruct import upsample, warm_interpolator
from calid.run.settings import Settings
from calid.run.windows import Window
from calid.stack import Stack

SIZE = 64
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE) - (SIZE - 1) / 2, torch.arange(SIZE) - (SIZE - 1) / 2, indexing="ij")


def radius(place: float) -> float:
    """Of a ventricle, over the slices: widest in the middle."""
    return 22 - 1.5 * (place - 2) ** 2


def ring(place: float) -> torch.Tensor:
    """The blood of a slice, (H, W) in [-1, 1]."""
    return torch.tanh(radius(place) - torch.hypot(ROWS, COLUMNS))


def fields_of_rings(slices: int) -> torch.Tensor:
    """What leads half-way between neighboring rings, if paths are straight: (1, gaps, 4, H, W)."""
    found = []
    for gap in range(slices - 1):
        sides = radius(gap), radius(gap + 1)
        found += [torch.stack([ROWS, COLUMNS]) * (side / (sum(sides) / 2) - 1) for side in sides]
    return torch.stack(found).reshape(1, slices - 1, 4, SIZE, SIZE)


def shifts(places: list[float]) -> torch.Tensor:
    """Fields of slices that lie at other columns: (1, gaps, 4, H, W)."""
    steps = torch.tensor(places).diff()
    fields = torch.zeros(1, len(steps), 4, SIZE, SIZE)
    fields[:, :, 1], fields[:, :, 3] = -steps[:, None, None] / 2, steps[:, None, None] / 2
    return fields


def mean_between(fields: torch.Tensor, gap: int) -> torch.Tensor:
    sides = (ring(place)[None, None] for place in (gap, gap + 1))
    return sum(moved_by(Fields(*fields[:, gap].split(2, dim=1)), *sides))[0, 0] / 2


def test_a_wall_that_bulges_is_found_where_it_bulges_to():
    straight = fields_of_rings(5)
    found = curved(straight, gap_mm=0.0)
    for gap in (1, 2):
        truth = ring(gap + 0.5)
        errors = [(mean_between(fields, gap) - truth).square().mean() for fields in (found, straight)]
        assert errors[0] < 0.2 * errors[1]


def test_the_four_point_rule_is_exact_for_a_cubic():
    def place(z: float) -> float:
        return 0.2 * z**3 - 1.1 * z**2 + 3 * z

    found = curved(shifts([place(z) for z in range(4)]), gap_mm=0.0)
    middle = found[0, 1, :, 32, 32]
    torch.testing.assert_close(middle[1], torch.tensor(place(1) - place(1.5)))
    torch.testing.assert_close(middle[3], torch.tensor(place(2) - place(1.5)))
    assert not middle[[0, 2]].any()


def test_what_goes_straight_stays_as_it_is_and_so_does_what_has_nothing_beside_it():
    straight = shifts([0.0, 3.0, 6.0, 9.0])
    torch.testing.assert_close(curved(straight, gap_mm=5.0), straight)
    bent = shifts([0.0, 3.0, 4.0, 9.0])
    found = curved(bent, gap_mm=5.0)
    torch.testing.assert_close(found[:, [0, 2]], bent[:, [0, 2]])
    assert (found[:, 1] - bent[:, 1]).abs().max() > 0.05
    for few in (bent[:, :1], bent[:, :2]):
        torch.testing.assert_close(curved(few, gap_mm=5.0), few)


def test_the_wider_gaps_are_the_straighter_are_paths():
    bent = shifts([0.0, 3.0, 4.0, 9.0])
    near, middle, far = ((curved(bent, gap_mm) - bent).abs().max() for gap_mm in (0.0, paths.STRAIGHT_MM, 1e6))
    assert middle == pytest.approx(float(near) / 2, rel=1e-4)
    assert far < 1e-6


@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_does_not_matter_which_gaps_are_asked_about_together(size):
    fields, asked = fields_of_rings(8), []
    level = plan_bisection(8, 2).levels[0]

    def fields_of(gaps):
        asked.extend(gaps)
        return fields[:, [level.index(gap) for gap in gaps]]

    parts = [level[start : start + size] for start in range(0, len(level), size)]
    told = list(curved_level(parts, fields_of, 4.0))
    assert [gap for gaps, _ in told for gap in gaps] == asked == list(level)
    torch.testing.assert_close(torch.cat([part for _, part in told], dim=1), curved(fields, 4.0))


def test_a_stack_is_nearer_to_the_truth_than_with_straight_paths(monkeypatch):
    places = np.arange(5)
    voxels = np.stack([500 + 400 * ring(place).numpy() for place in places])[None]
    sparse = Stack(voxels.astype(np.float32), np.diag([1.5, 1.5, 8.0, 1.0]))
    settings = Settings(factor=4, mode="fidelity", samples=1, model="2d", device="cpu", align="off")
    dense = upsample(sparse, settings).stack.voxels[0]
    monkeypatch.setattr(paths, "STRAIGHT_MM", 1e-6)
    straight = upsample(sparse, settings).stack.voxels[0]
    np.testing.assert_array_equal(dense[::4], voxels[0])
    within = np.s_[5:12]  # gaps that have others on both sides
    truth = np.stack([500 + 400 * ring(place).numpy() for place in np.arange(17) / 4])[within]
    errors = [np.abs(made[within] - truth).mean() for made in (dense, straight)]
    assert errors[0] < 0.95 * errors[1]


def test_a_draw_that_sees_the_mirror_and_the_other_order_has_the_mirrored_neighbors_in_the_other_order():
    interpolator, plan = warm_interpolator(choose_device("cpu"), None), plan_bisection(4, 2)
    whole = Preparation(0.0, 1.0, (SIZE, SIZE), (SIZE, SIZE), (SIZE, SIZE), 8.0)
    corrections = torch.zeros(1, plan.num_slots, CHANNELS, *grid_shape(SIZE, SIZE))
    corrections[:, :, 1] = 1.5  # columns of the slice before
    generation = Generation(interpolator, whole, plan, Settings(), 8, Watch(1), corrections=corrections)
    images = torch.zeros(1, 2, plan.num_slots, 1, SIZE, SIZE)
    images[:, 0, ::2, 0] = torch.stack([ring(place).roll(3 * place, -1) for place in range(4)])
    images[:, 1] = images[:, 0].flip(-1)
    window = Window((0,), slice(0, 1), is_periodic=False)
    (_, both), *_ = generation._moved(1, images, window, draws=[0, 5])
    plain, mirrored = both.unbind(dim=1)
    torch.testing.assert_close(mirrored.flip(-1).flip(2), plain, atol=1e-3, rtol=1e-3)
    untold = replace(generation, corrections=None)
    (_, alone), *_ = untold._moved(1, images, window, draws=[0, 5])
    assert (plain - alone[:, 0])[:, :, 0].abs().max() > 0.1  # before is moved on
    torch.testing.assert_close(plain[:, :, 1], alone[:, 0, :, 1])


def test_paths_without_a_limit_are_as_curved_as_their_neighbors_say(monkeypatch):
    monkeypatch.setattr(paths, "STRAIGHT_MM", math.inf)
    bent = shifts([0.0, 3.0, 4.0, 9.0])
    torch.testing.assert_close(curved(bent, 20.0), curved(bent, 0.0))
