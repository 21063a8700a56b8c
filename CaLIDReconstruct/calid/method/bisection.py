"""Which slice is made from which neighbors, level by level (paper, Section III-B, "Autoregressive Generation").

Slots number the slices of the dense stack: slot `factor * n` is acquired slice n. A plan is a value that can be
printed, counted and tested; the slices are made in `calid.run.generation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calid.errors import SettingsError
from calid.stack import Stack

Factor = int | Literal["isotropic"]
FACTORS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Gap:
    """One slice to make: `target`, half-way between two slots that are known by then."""

    before: int
    target: int
    after: int


@dataclass(frozen=True)
class Bisection:
    """The plan of a whole stack: which slices are made, in which order, from which neighbors.

    Args:
        num_acquired: number of slices of the sparse stack.
        factor: number of gaps that each gap becomes: 2, 4, 8 or 16.
        levels: gaps in the order in which they can be made; those of one level do not depend on each other.
    """

    num_acquired: int
    factor: int
    levels: tuple[tuple[Gap, ...], ...]

    @property
    def num_slots(self) -> int:
        """Number of slices of the dense stack."""
        return (self.num_acquired - 1) * self.factor + 1

    @property
    def num_generated(self) -> int:
        """Number of slices that are made."""
        return self.num_slots - self.num_acquired

    def distance_mm(self, gap: Gap, slice_mm: float) -> float:
        """How far apart both neighbors of a gap are, where acquired slices are `slice_mm` apart."""
        return (gap.after - gap.before) * slice_mm / self.factor


def plan_bisection(num_acquired: int, factor: int) -> Bisection:
    """Halve every gap until each holds `factor - 1` new slices.

    >>> [[gap.target for gap in level] for level in plan_bisection(3, 4).levels]
    [[2, 6], [1, 3, 5, 7]]
    """
    if factor not in FACTORS:
        raise SettingsError("factor", f"The factor {factor} is not possible.", "Choose 2, 4, 8, 16 or isotropic.")
    last = (num_acquired - 1) * factor
    levels = []
    step = factor
    while step > 1:
        half = step // 2
        levels.append(tuple(Gap(slot, slot + half, slot + step) for slot in range(0, last, step)))
        step = half
    return Bisection(num_acquired=num_acquired, factor=factor, levels=tuple(levels))


def resolve_factor(factor: Factor, stack: Stack) -> int:
    """The factor as a number; "isotropic" is the one whose slice spacing comes closest to the pixel size."""
    if factor != "isotropic":
        return factor
    x_mm, y_mm, z_mm = stack.spacing_mm
    halvings = round(math.log2(z_mm / math.sqrt(x_mm * y_mm)))
    return FACTORS[min(max(halvings, 1), len(FACTORS)) - 1]


def linear_slices(images: np.ndarray, plan: Bisection) -> np.ndarray:
    """Linear interpolation of acquired (Z, Y, X) images at every slot: (slots, Y, X) float32."""
    images = images.astype(np.float32)
    position = np.arange(plan.num_slots) / plan.factor
    below = np.minimum(position.astype(int), plan.num_acquired - 2)
    weight = (position - below).astype(np.float32)[:, None, None]
    return (1 - weight) * images[below] + weight * images[below + 1]
