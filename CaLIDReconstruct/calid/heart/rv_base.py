"""Where the right ventricle ends: the tricuspid valve plane, as four-chamber images show it.

Of the annulus only the septal side can be told from the pixels: the thick septum between the ventricles ends there, and
the tricuspid valve is hinged a little nearer to the apex. The free wall on the other side is as thin as a pixel, ends
beside fat, and the outline of the blood runs on straight into the atrium. The plane is therefore laid through the
septal hinge across the LV axis, and moves with the hinge over the beat.

It cuts the inflow alone: what lies no farther anterior than an annulus of usual size beside the hinge. The outflow
tract reaches higher in front of it, and ends where its labels do. Where no image shows the end of the septum, nothing
is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calid.heart.anatomy import HeartAxes

BELOW_SEPTUM_MM = 5.0
"""The tricuspid valve is hinged this much nearer to the apex than the septum ends; usual are 3 to 8 mm."""

RADIUS_MM = 20.0  # of an annulus of usual size
MARGIN_MM = 5.0  # in front of it, that still belongs to the inflow
MAX_ANTERIOR = 0.2
"""Of the direction in which an image passes the septum: further anterior lies the outflow tract, and no atrium."""

MAX_MISFIT_MM = 6.0  # root mean square of single frames' hinges: beyond, they are none


@dataclass(frozen=True, eq=False)
class RVBase:
    """The tricuspid valve plane over the beat.

    Args:
        points_lps: (T, 3) mm, the septal hinge.
        normal: (3,) unit vector, towards the atrium.
        misfit_mm: root mean square of the hinges of single frames and images beside the planes.
        front_lps: (T, 3) mm, the foremost point of the inflow.
        anterior: (3,) unit vector across the LV axis, towards the outflow tract.
        views: names of the images that show it.
    """

    points_lps: np.ndarray
    normal: np.ndarray
    misfit_mm: float
    front_lps: np.ndarray
    anterior: np.ndarray
    views: tuple[str, ...]

    @property
    def excursion_mm(self) -> float | None:
        """How far it moves along its normal over the beat."""
        return None if len(self.points_lps) < 2 else float(np.ptp(self.points_lps @ self.normal))

    def as_json(self) -> dict[str, Any]:
        """JSON values: which images show it."""
        return {"views": list(self.views), "misfit_mm": self.misfit_mm, "excursion_mm": self.excursion_mm}


def find_rv_base(
    hinges_lps: Mapping[str, np.ndarray], smooth_lps: Mapping[str, np.ndarray], axes: HeartAxes
) -> RVBase | None:
    """The tricuspid plane from where images show the septum's end on the side of the RV; None where none does.

    Args:
        hinges_lps: {view: (T, 3) mm} as found in single frames, NaN where they were not.
        smooth_lps: the same, smooth over the beat.
        axes: the heart's axes.
    """
    if not smooth_lps:
        return None
    ends = np.mean(list(smooth_lps.values()), axis=0)
    beside = np.concatenate([(found - ends) @ axes.apexward for found in hinges_lps.values()])
    misfit = float(np.sqrt(np.nanmean(beside**2)))
    if misfit > MAX_MISFIT_MM:
        return None
    points = ends + BELOW_SEPTUM_MM * axes.apexward
    front = points + RADIUS_MM * axes.septal + (RADIUS_MM + MARGIN_MM) * axes.anterior
    return RVBase(points, -axes.apexward, misfit, front, axes.anterior, tuple(smooth_lps))
