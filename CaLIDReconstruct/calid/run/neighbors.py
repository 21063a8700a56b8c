"""Breath-holds without long-axis images: each slice is compared with what its neighbors predict.

That is coarser than lines of long-axis images (a bend of the heart looks like a shift), so it is reported, and applied
only when asked.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from calid.run.intersections import REACH_MM
from calid.run.shifts import PRIOR_MM, Alignment, Shift
from calid.stack import Stack

_NOISE_MM = 1.5  # by how much the middle of two neighbors 10 mm away misses a slice that does not lie aside
_SAMPLES = 40.0  # independent ones of a slice around the heart, all frames together
_EVIDENCE = 4.4  # log of how many places apart are tried: what the best of them reaches by chance
_EXPLAINED = 0.98  # of a slice's variance at most: there is noise
_FRAMES = 4  # of a cine


def by_neighbors(sax: Stack) -> Alignment:
    """In-plane shifts of slices against the middle of their neighbors.

    Each inner slice is compared with the mean of its two neighbors at all offsets; what is measured is how far its
    shift differs from the mean of theirs, if the best of the offsets fits better than chance makes the best of so many.
    Of a slice that resembles its neighbors nowhere nothing is known. The shifts follow by least squares with the prior,
    so that of all explanations the smallest is told.
    """
    count = sax.num_slices
    names = [f"slice {index + 1}" for index in range(count)]
    if count < 3:
        x_mm, y_mm, z_mm = PRIOR_MM.tolist()
        return Alignment("neighboring slices", tuple(Shift(name, (0, 0, 0), (x_mm, y_mm, z_mm)) for name in names))
    weight = _moving_region(sax)
    few = sax.voxels[np.unique(np.linspace(0, sax.num_frames - 1, _FRAMES).astype(int))].astype(np.float32)
    noise_mm = _NOISE_MM * max((sax.spacing_mm[2] / 10) ** 2, 0.5)  # a bend's height grows with its square
    measured, known = np.zeros((count - 2, 2)), np.zeros(count - 2)
    correlations = []
    for index in range(1, count - 1):
        middle = (few[:, index - 1] + few[:, index + 1]) / 2
        offset, before, after = _offset(few[:, index], middle, weight, sax.spacing_mm[:2])
        told = _evidence(after)
        known[index - 1] = told > _EVIDENCE
        measured[index - 1] = offset * (told - _evidence(before) > _EVIDENCE)
        correlations.append((before, after))
    differences = np.zeros((count - 2, count))
    for row in range(count - 2):
        differences[row, row : row + 3] = -0.5, 1, -0.5
    weighed = differences.T * known / noise_mm**2
    covariance = np.linalg.inv(weighed @ differences + np.eye(count) / PRIOR_MM[0] ** 2)
    shifts = -covariance @ weighed @ measured
    deviation = np.sqrt(np.diag(covariance))
    moved = [
        Shift(name, (float(x), float(y), 0.0), (float(sd), float(sd), float(PRIOR_MM[2])))
        for name, (x, y), sd in zip(names, shifts, deviation, strict=True)
    ]
    before, after = np.mean(correlations, axis=0)
    return Alignment("neighboring slices", tuple(moved), (), float(before), float(after), count - 2)


def _evidence(correlation: float) -> float:
    """The log likelihood of a slice and its neighbors at a correlation, over that of having nothing in common."""
    return -_SAMPLES / 2 * math.log1p(-(min(max(correlation, 0.0), _EXPLAINED) ** 2))


def _moving_region(sax: Stack) -> np.ndarray:
    """(Y, X) weights: the middle of the image, and of a cine what moves most, which is the heart."""
    rows, columns = np.indices(sax.voxels.shape[2:])
    away = [(rows - rows.max() / 2) * sax.spacing_mm[1], (columns - columns.max() / 2) * sax.spacing_mm[0]]
    if sax.num_frames > 2:
        moving = ndimage.gaussian_filter(sax.voxels.std(axis=0).mean(axis=0), 10 / sax.spacing_mm[1::-1])
        near = moving * np.exp(-np.square(away).sum(axis=0) / (2 * 80.0**2))
        middle = np.array(ndimage.center_of_mass(near**4))
        away = [(rows - middle[0]) * sax.spacing_mm[1], (columns - middle[1]) * sax.spacing_mm[0]]
    return np.exp(-np.square(away).sum(axis=0) / (2 * 35.0**2))


def _offset(
    images: np.ndarray, reference: np.ndarray, weight: np.ndarray, spacing_mm: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """By how much (T, Y, X) images lie aside of a reference, (2,) mm along rows and columns, over all frames.

    Returns:
        The offset, the correlation as they lie, and the correlation with the images moved back by whole pixels.
    """
    reach = [max(1, round(REACH_MM / 2 / spacing)) for spacing in spacing_mm[::-1]]
    wanted = reference - np.average(reference, axis=(1, 2), weights=weight)[:, None, None]
    table = np.zeros((2 * reach[0] + 1, 2 * reach[1] + 1))
    for row in range(-reach[0], reach[0] + 1):
        for column in range(-reach[1], reach[1] + 1):
            moved = np.roll(images, (-row, -column), axis=(1, 2))
            moved = moved - np.average(moved, axis=(1, 2), weights=weight)[:, None, None]
            spread = np.sqrt((weight * moved**2).sum() * (weight * wanted**2).sum())
            table[row + reach[0], column + reach[1]] = (weight * moved * wanted).sum() / max(spread, 1e-9)
    best = np.unravel_index(table.argmax(), table.shape)
    exact = np.array(best, float)
    for axis, place in enumerate(best):
        if 0 < place < table.shape[axis] - 1:
            low, middle, high = np.take(table, best[1 - axis], axis=1 - axis)[place - 1 : place + 2]
            exact[axis] += (low - high) / (2 * (low - 2 * middle + high) or 1)
    offset = (exact - reach)[::-1] * spacing_mm
    return offset, float(table[reach[0], reach[1]]), float(table.max())
