"""Labels between labeled slices by their signed distances (Raya and Udupa 1990; Herman et al. 1992).

What a user of 3D Slicer does with contours on every other slice: "Fill between slices" in the Segment Editor has the
same purpose; it interpolates contours morphologically, which for convex shapes gives nearly the same.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.ndimage import distance_transform_edt


def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Labels (N, Y, X) half-way between the labels (N, Y, X) of two slices each."""
    return np.stack([_blended(a, b, (0.5,))[0] for a, b in zip(before, after, strict=True)])


def upsample(labels: np.ndarray, factor: int) -> np.ndarray:
    """A whole stack of labels: (Z, Y, X) -> ((Z - 1) * factor + 1, Y, X), the given ones kept."""
    shares = tuple(index / factor for index in range(1, factor))
    dense = np.repeat(labels, factor, axis=0)[: (len(labels) - 1) * factor + 1]
    for gap, (a, b) in enumerate(pairwise(labels)):
        dense[gap * factor + 1 : (gap + 1) * factor] = _blended(a, b, shares)
    return dense


def _blended(before: np.ndarray, after: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """Labels (len(shares), Y, X) at shares of the way: the label whose blended distance is largest, background too."""
    labels = np.unique([before, after])
    ends = [_depths(before == label, after == label) for label in labels]
    made = [labels[np.argmax([(1 - s) * a + s * b for a, b in ends], axis=0)] for s in shares]
    return np.asarray(made, before.dtype).reshape(len(shares), *before.shape)


def _depths(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`depth` of both masks; where one is empty, it is as far outside as the other reaches inside: it ends half-way."""
    if not before.any():
        b = depth(after)
        return np.full(before.shape, -b.max()), b
    a = depth(before)
    return a, depth(after) if after.any() else np.full(after.shape, -a.max())


def depth(mask: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to the mask's outline, positive inside; the outline runs between pixels."""
    if mask.all():  # no outline: as if it were just outside the image
        mask = np.pad(mask, 1)
        return depth(mask)[1:-1, 1:-1]
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    return np.where(mask, inside - 0.5, 0.5 - outside)
