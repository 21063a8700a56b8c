"""How far the slices of different breath-holds are off, in the user's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from calid.run.shifts import NOTICEABLE_MM, PROVENANCE_KEY
from slicer.i18n import tr as _

SMALLEST_MM = 0.05  # less would be told as 0.0


@dataclass(frozen=True)
class Shifts:
    """The alignment that a run has found.

    Args:
        worst_mm: largest shift of a slice within its plane.
        where: the slice's number, counted from 1.
        isNoticeable: a slice lies aside by more than `NOTICEABLE_MM` and by more than it may seem to by chance.
        areApplied: the slices have been moved.
        views: number of long-axis images that they were judged by; 0 where a slice is judged by its neighbors.
    """

    worst_mm: float
    where: int
    isNoticeable: bool
    areApplied: bool
    views: int

    def text(self) -> str:
        """One sentence."""
        judges = _("{count} long-axis images").format(count=self.views) if self.views else _("the slices beside it")
        if self.worst_mm < SMALLEST_MM:
            return _("No slice is off (judged by {judges}).").format(judges=judges)
        words = (
            _("Slices were moved by up to {mm} mm within their planes (slice {number}; judged by {judges}).")
            if self.areApplied
            else _("Slices are off by up to {mm} mm (slice {number}; judged by {judges}).")
        )
        return words.format(mm=f"{self.worst_mm:.1f}", number=self.where, judges=judges)


def shiftsOf(provenance: Mapping[str, Any]) -> Shifts | None:
    """What a result's provenance tells of shifts; None where they were not looked for."""
    found = provenance.get(PROVENANCE_KEY)
    if not found or not found.get("slices"):
        return None
    lengths = np.hypot(*np.array([each["mm"][:2] for each in found["slices"]]).T)
    chances = 2 * np.hypot(*np.array([each["uncertainty_mm"][:2] for each in found["slices"]]).T)
    worst = int(np.argmax(lengths))
    return Shifts(
        worst_mm=float(lengths[worst]),
        where=worst + 1,
        isNoticeable=bool((lengths > np.maximum(NOTICEABLE_MM, chances)).any()),
        areApplied=bool(found.get("applied")),
        views=len(found.get("views", [])),
    )
