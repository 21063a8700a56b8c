"""What a user of 3D Slicer would otherwise use: B-spline resampling, and registration of both neighbors.

Images are float32 (slices, rows, columns) in [0, 1], as for every system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import SimpleITK as sitk
from calid_training.registration import demons_field
from scipy import ndimage

DEMONS_STEPS = 40
"""Iterations per level of the registration."""
SMOOTHING_PIXELS = 2.0
"""Standard deviation of the Gaussian that smooths the displacements after every iteration."""


def bspline(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The slices half-way by cubic B-spline resampling through the plane, as Slicer's resampling modules do it.

    A spline needs a stack: pairs that share a slice (one's `after` is another's `before`) are put together, which gives
    slice n the slices n-3, n-1, n+1, n+3, ... of a stack that lacks every other slice. Of two slices alone, SimpleITK
    (which mirrors the stack at its ends) makes their mean at half-way: there B-spline and linear are the same.
    """
    made = np.empty_like(before)
    for chain in chains(before, after):
        stack = np.stack([before[chain[0]], *(after[index] for index in chain)])
        made[chain] = bspline_between(stack, 2)[1::2]
    return made


def bspline_between(slices: np.ndarray, factor: int) -> np.ndarray:
    """A whole stack, (Z, Y, X) -> ((Z - 1) * factor + 1, Y, X), by cubic B-spline resampling through the plane."""
    stack = sitk.GetImageFromArray(np.asarray(slices, np.float32))
    rows, columns = slices.shape[1:]
    grid = sitk.Image(columns, rows, (len(slices) - 1) * factor + 1, sitk.sitkFloat32)
    grid.SetSpacing((1.0, 1.0, 1.0 / factor))
    return sitk.GetArrayFromImage(sitk.Resample(stack, grid, sitk.Transform(), sitk.sitkBSpline))


def chains(before: np.ndarray, after: np.ndarray) -> list[list[int]]:
    """The pairs' indices in lists: in each, the `after` of a pair is the `before` of the next one (pairs in order)."""
    found: list[list[int]] = []
    for index, image in enumerate(before):
        chain = next((chain for chain in found if np.array_equal(after[chain[-1]], image)), None)
        if chain is None:
            found.append([index])
        else:
            chain.append(index)
    return found


def demons(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields u, v of the registration of two slices: after(x + u(x)) ~ before(x) and before(x + v(x)) ~ after(x)."""
    return registered(before, after), registered(after, before)


Register = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A registration of two slices (Y, X): its fields (2, Y, X), rows and columns, as those of `demons`."""


def registration(before: np.ndarray, after: np.ndarray, *, register: Register = demons) -> np.ndarray:
    """The slices half-way: each neighbor is registered to the other, warped half of the way, and both are averaged."""
    pairs = zip(before, after, strict=True)
    return np.stack([warped_between(a, b, register(a, b), (0.5,))[0] for a, b in pairs])


def registration_between(slices: np.ndarray, factor: int, *, register: Register = demons) -> np.ndarray:
    """A whole stack, (Z, Y, X) -> ((Z - 1) * factor + 1, Y, X): every gap is registered once."""
    shares = [index / factor for index in range(1, factor)]
    dense = np.repeat(np.asarray(slices, np.float32), factor, axis=0)[: (len(slices) - 1) * factor + 1]
    for gap, (a, b) in enumerate(pairwise(slices)):
        dense[gap * factor + 1 : (gap + 1) * factor] = warped_between(a, b, register(a, b), shares)
    return dense


def registered(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The field u with moving(x + u(x)) ~ fixed(x) by diffeomorphic demons: (2, Y, X) rows, columns."""
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    return demons_field(method, fixed, moving, iterations=DEMONS_STEPS, sigma_pixels=SMOOTHING_PIXELS)[::-1]


def warped_between(
    before: np.ndarray, after: np.ndarray, fields: tuple[np.ndarray, np.ndarray], shares: Sequence[float]
) -> np.ndarray:
    """Slices (len(shares), Y, X) at shares of the way from `before` (0) to `after` (1).

    At share s: (1 - s) * before(y + s v(y)) + s * after(y + (1 - s) u(y)), see `demons`.
    """
    u, v = fields
    made = [(1 - s) * _warped(before, s * v) + s * _warped(after, (1 - s) * u) for s in shares]
    return np.asarray(made, np.float32)


def _warped(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """image(y + field(y)), bilinear; beyond its edge the image goes on as its nearest pixel."""
    return ndimage.map_coordinates(image, np.indices(image.shape) + field, order=1, mode="nearest")
