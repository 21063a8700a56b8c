"""How far the slices of different breath-holds, and the long-axis images, have to be moved to fit, and moving them.

Who finds the shifts: `alignment.py` from long-axis images, `neighbors.py` where there are none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from calid.stack import Stack

PRIOR_MM = np.array([4.0, 4.0, 3.0])
"""Standard deviation of shifts along rows, columns and the normal, before anything is seen."""

PROVENANCE_KEY = "alignment"
"""What a stack's provenance calls `Alignment.as_json`."""

NOTICEABLE_MM = 2.0
"""Shifts of this size are warned of: more than a pixel, half of what bends a wall visibly."""


@dataclass(frozen=True)
class Shift:
    """How far one image has to be moved to fit the others.

    Args:
        name: "slice 3", counted from 1, or the view's name.
        mm: along its rows (towards growing columns), along its columns, along its normal.
        uncertainty_mm: standard deviation of each; that of the prior where nothing is known.
    """

    name: str
    mm: tuple[float, float, float]
    uncertainty_mm: tuple[float, float, float]

    @property
    def in_plane_mm(self) -> float:
        """Length of the part within the image."""
        return float(np.hypot(*self.mm[:2]))

    @property
    def confidence(self) -> float:
        """1 where the in-plane shift is known exactly, 0 where nothing was learned of it."""
        learned = 1 - np.square(self.uncertainty_mm[:2]) / np.square(PRIOR_MM[:2])
        return float(np.clip(learned, 0, 1).min())


@dataclass(frozen=True)
class Alignment:
    """The shifts of one heart's images, and what they do for the agreement of the images.

    Args:
        basis: "long-axis images", or "neighboring slices" where there are none.
        slices: shifts of the short-axis slices, in their order.
        views: shifts of the long-axis images, in theirs.
        agreement_before, agreement_after: mean correlation of the images along their common lines (or of slices with
            the middle of their neighbors), as acquired and as moved.
        lines: number of lines on which images cross (or of slices with two neighbors).
        applied: whether the slices of the stack that this belongs to have been moved.
    """

    basis: str
    slices: tuple[Shift, ...]
    views: tuple[Shift, ...] = ()
    agreement_before: float = float("nan")
    agreement_after: float = float("nan")
    lines: int = 0
    applied: bool = False

    @property
    def slice_shifts_mm(self) -> np.ndarray:
        """(Z, 3) mm: the shift of each slice along its rows, columns and normal."""
        return np.array([shift.mm for shift in self.slices])

    @property
    def worst_mm(self) -> float:
        """The largest in-plane shift of a slice."""
        return max(shift.in_plane_mm for shift in self.slices)

    @property
    def is_noticeable(self) -> bool:
        """Whether a slice lies aside by more than `NOTICEABLE_MM`, and by more than it may seem to by chance."""
        return any(
            shift.in_plane_mm > max(NOTICEABLE_MM, 2 * float(np.hypot(*shift.uncertainty_mm[:2])))
            for shift in self.slices
        )

    @property
    def summary(self) -> str:
        """One sentence for the user."""
        worst = max(self.slices, key=lambda shift: shift.in_plane_mm)
        through = max(abs(shift.mm[2]) for shift in self.slices)
        also = f", and through the plane by up to {through:.1f} mm" if self.views else ""
        done, then = ("Slices were moved", "then") if self.applied else ("Slices are off", "if moved")
        return (
            f"{done} by up to {self.worst_mm:.1f} mm in plane ({worst.name}){also}, judged by the {self.basis}; "
            f"agreement {self.agreement_before:.3f}, {then} {self.agreement_after:.3f} (1: perfect)."
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values, rounded to a hundredth of a millimeter."""
        return {
            "basis": self.basis,
            "applied": self.applied,
            "lines": self.lines,
            "worst_mm": round(self.worst_mm, 2),
            "agreement": [
                round(value, 4) if math.isfinite(value) else None
                for value in (self.agreement_before, self.agreement_after)
            ],
            "slices": [_as_json(shift) for shift in self.slices],
            "views": [_as_json(shift) for shift in self.views],
        }


def _as_json(shift: Shift) -> dict[str, Any]:
    rounded = {name: [round(x, 2) for x in getattr(shift, name)] for name in ("mm", "uncertainty_mm")}
    return {"name": shift.name, **rounded, "confidence": round(shift.confidence, 2)}


def moved(sax: Stack, alignment: Alignment) -> tuple[Stack, Alignment]:
    """The stack with every slice moved within its plane, by cubic splines, and the alignment that says so.

    Intensities stay within each slice's own. Through-plane shifts are not applied: the slices keep their places along
    the stack's normal, and whoever cuts them with a long-axis image takes these into account. The stack's provenance
    tells that its acquired slices were resampled, and by how much.
    """
    voxels = np.empty_like(sax.voxels)
    for index, (x_mm, y_mm, _) in enumerate(alignment.slice_shifts_mm):
        pixels = np.array([y_mm, x_mm]) / sax.spacing_mm[1::-1]
        for frame in range(sax.num_frames):
            image = sax.voxels[frame, index]
            resampled = ndimage.shift(image.astype(np.float32), pixels, order=3, mode="nearest")
            resampled = resampled.clip(image.min(), image.max())
            voxels[frame, index] = np.rint(resampled) if np.issubdtype(voxels.dtype, np.integer) else resampled
    done = replace(alignment, applied=True)
    return sax.with_voxels(voxels).noted(**{PROVENANCE_KEY: done.as_json()}), done
