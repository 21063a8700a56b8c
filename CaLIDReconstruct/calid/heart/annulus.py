"""The plane of a heart valve through the points at which it is hinged to the walls."""

from __future__ import annotations

import numpy as np

from calid.heart.anatomy import HeartAxes

HINGE_NOISE_MM = 3.0  # of a hinge point, beside its plane
MAX_TILT = 0.35  # standard deviation of the plane's slope against the LV axis
MAX_MISFIT_MM = 8.0  # root mean square of the hinge points beside their plane: beyond, they are no annulus


def plane_through(hinges_lps: np.ndarray, axes: HeartAxes) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Planes through hinge points (T, N, 3), NaN where unknown: points on the axis, normals, misfit; None without.

    Heights along the axis are a constant and a slope each frame; the slope is that of all frames, for an annulus
    tilts little while it descends by a centimeter.
    """
    across = np.stack([axes.septal, axes.anterior], axis=1)
    places = (hinges_lps - axes.center_lps) @ across  # (T, N, 2)
    heights = -(hinges_lps - axes.center_lps) @ axes.apexward
    known = np.isfinite(heights)
    if not known.any(axis=1).all() or known.any(axis=0).sum() < 2:
        return None
    frames = len(heights)
    frame, _ = np.nonzero(known)
    design = np.concatenate([np.eye(frames)[frame], places[known]], axis=1)
    prior = np.diag([0.0] * frames + [(HINGE_NOISE_MM / MAX_TILT) ** 2] * 2)
    weight = np.ones(len(frame))
    for _ in range(10):
        weighed = design * weight[:, None]
        found = np.linalg.solve(weighed.T @ design + prior, weighed.T @ heights[known])
        rest = heights[known] - design @ found
        weight = 1 / (1 + (rest / (2 * HINGE_NOISE_MM)) ** 2)
    misfit = float(np.sqrt(np.average(rest**2, weights=weight)))
    if misfit > MAX_MISFIT_MM:
        return None
    points = axes.center_lps - found[:frames, None] * axes.apexward
    normal = -axes.apexward - across @ found[frames:]
    return points, np.tile(normal / np.linalg.norm(normal), (frames, 1)), misfit
