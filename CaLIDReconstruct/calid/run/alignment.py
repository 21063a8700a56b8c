"""Breath-hold alignment: every acquired slice and every long-axis image is moved rigidly until all of them fit.

Each slice, and each long-axis (LAX) image, is taken in its own breath-hold, and the heart lies some millimeters
elsewhere in each. What they show along their common lines (`intersections.py`) tells where: one shift of three numbers
per image (along its rows, along its columns, along its normal), estimated jointly over all lines and all phases of the
beat.

The estimate is a posterior mode. A line of two images with correlation r says -n/2 log(1 - r^2), the likelihood of a
line of n independent samples with gain and offset fitted; shifts are normally distributed about zero (`PRIOR_MM`), so
that what no line tells stays zero; the curvature at the mode gives every shift its uncertainty. A search over the whole
landscape comes first, then a descent: there is no starting place to be wrong about.

Nothing can see all images moved together. Shifts are therefore told against the place on which most slices agree.

Without LAX images a slice is compared with its neighbors (`neighbors.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import ndimage, optimize

from calid.geometry import heart_center
from calid.run.intersections import STEP_MM, Image, Landscape, images_of, landscape
from calid.run.neighbors import by_neighbors
from calid.run.shifts import PRIOR_MM, Alignment, Shift
from calid.stack import Stack

_INDEPENDENT_MM = 10.0
"""Length of line that counts as one sample, all frames of it together: what misleads one phase (flow, a partial volume,
a breath) misleads the next as well. So uncertainties are as large as the differences of estimates from different
views."""

_EXPLAINED = 0.98  # of a line's variance at most: noise, and no pair of images outweighs all others
_SEARCH_MM = (np.arange(-12, 12.1, 1.5), np.arange(-7.5, 7.6, 1.5))  # in plane, through plane
_SWEEPS = 4
_SURE = 1.5  # deviations of an uncertainty that a shift has to exceed before it is told at all
_FLATTEST = 0.02  # curvature, per square mm, that an uncertainty is read from at least


def _untold() -> None:
    """The tick of work that nobody watches."""


def align(sax: Stack, views: Mapping[str, Stack], *, tick: Callable[[], None] = _untold) -> Alignment:
    """The shifts of a stack's slices, from its long-axis images, or from the slices alone where none crosses them.

    Args:
        sax: acquired short-axis slices.
        views: {name: long-axis image}; those that do not cross the slices are not used, and not named in the result.
        tick: called after every slice that was compared with a view; may raise to stop the work.
    """
    found = align_images(
        images_of(sax),
        {name: images_of(view)[0] for name, view in views.items()},
        heart_center(sax, list(views.values())),
        tick=tick,
    )
    return by_neighbors(sax) if found is None else found


def align_images(
    slices: Sequence[Image],
    views: Mapping[str, Image],
    center_lps: np.ndarray,
    *,
    tick: Callable[[], None] = _untold,
) -> Alignment | None:
    """As `align`, of images wherever they lie; None where no view crosses a slice.

    Args:
        slices: short-axis slices.
        views: {name: long-axis image}.
        center_lps: (3,) mm, the middle of the heart.
        tick: as there.
    """
    lines: dict[tuple[int, int], Landscape] = {}
    used: dict[str, Image] = {}
    for name, image in views.items():
        found = []
        for one in slices:
            found.append(landscape(one, image, center_lps))
            tick()
        lines |= {(index, len(used)): line for index, line in enumerate(found) if line is not None}
        if any(line is not None for line in found):
            used[name] = image
    return fitted(slices, used, lines) if used else None


def fitted(
    slices: Sequence[Image], views: Mapping[str, Image], lines: Mapping[tuple[int, int], Landscape]
) -> Alignment:
    """The alignment that the landscapes of lines {(slice, view): ...} want."""
    energy = _Energy([*slices, *views.values()], {(i, len(slices) + j): line for (i, j), line in lines.items()})
    shifts = energy.searched()
    shifts, covariance = energy.descended(shifts)
    shifts, spread = _on_common_ground(energy, shifts, covariance, count=len(slices))
    shifts = _held_at_zero(shifts, spread)
    named = [f"slice {index + 1}" for index in range(len(slices))] + list(views)
    moved = [
        Shift(name, _triple(shift), _triple(deviation))
        for name, shift, deviation in zip(named, shifts, spread, strict=True)
    ]
    return Alignment(
        "long-axis images",
        tuple(moved[: len(slices)]),
        tuple(moved[len(slices) :]),
        float(np.mean([line.as_planned for line in lines.values()])),
        energy.agreement(shifts),
        len(lines),
    )


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


class _Energy:
    """Minus the log posterior of the shifts (n, 3) of n images, each along its own directions.

    Args:
        images: all of them.
        lines: {(one, other): landscape}, the SAX slice first.
    """

    def __init__(self, images: Sequence[Image], lines: Mapping[tuple[int, int], Landscape]) -> None:
        self.directions = np.stack([image.directions_lps for image in images])
        self.lines = dict(lines)
        self._tables: dict[tuple[int, int], np.ndarray] = {}
        self._smooth: dict[tuple[int, int], np.ndarray] = {}
        self._effects: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for pair, line in lines.items():
            samples = line.length_mm / _INDEPENDENT_MM
            explained = _EXPLAINED * np.clip(line.correlation, 0, 1) ** 2
            self._tables[pair] = (samples / 2 * np.log1p(-explained)).astype(np.float32)
            self._smooth[pair] = ndimage.spline_filter(self._tables[pair], 3, np.float32, mode="nearest")
            of_sax, of_lax = line.crossing.effect()
            self._effects[pair] = of_sax @ self.directions[pair[0]], of_lax @ self.directions[pair[1]]

    @property
    def informed(self) -> np.ndarray:
        """(n,) bool: images that cross another."""
        return np.isin(np.arange(len(self.directions)), [image for pair in self.lines for image in pair])

    def places(self, pair: tuple[int, int], shifts: np.ndarray) -> np.ndarray:
        """(3,) where a line lies in its landscape, mm."""
        first, second = self._effects[pair]
        return first @ shifts[pair[0]] + second @ shifts[pair[1]]

    def agreement(self, shifts: np.ndarray) -> float:
        """Mean correlation over the lines."""
        found = [
            float(_read(line.correlation, self.places(pair, shifts)[None], order=1)[0])
            for pair, line in self.lines.items()
        ]
        return float(np.mean(found))

    def searched(self) -> np.ndarray:
        """(n, 3) shifts: each image in turn takes its best place on a grid, the others held; then on finer ones."""
        in_plane, through = _SEARCH_MM
        grid = np.stack(np.meshgrid(in_plane, in_plane, through, indexing="ij"), axis=-1).reshape(-1, 3)
        shifts = np.zeros((len(self.directions), 3))
        for sweep in range(_SWEEPS):
            for image in np.flatnonzero(self.informed):
                tried = shifts[image] * (sweep > 0) + grid / 2**sweep
                cost = (np.square(tried / PRIOR_MM) / 2).sum(axis=1)
                for pair in self.lines:
                    if image not in pair:
                        continue
                    side = pair.index(image)
                    held = self._effects[pair][1 - side] @ shifts[pair[1 - side]]
                    cost += _read(self._tables[pair], tried @ self._effects[pair][side].T + held, order=1)
                shifts[image] = tried[cost.argmin()]
        return shifts

    def descended(self, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The minimum next to (n, 3) shifts, and their covariance there (3 n, 3 n)."""
        found = optimize.minimize(self._value_and_slope, shifts.ravel(), jac=True, method="L-BFGS-B")
        step = STEP_MM / 4
        unit = step * np.eye(found.x.size)
        curvature = np.stack(
            [self._value_and_slope(found.x + x)[1] - self._value_and_slope(found.x - x)[1] for x in unit]
        ) / (2 * step)
        values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
        return found.x.reshape(-1, 3), vectors / np.maximum(values, _FLATTEST) @ vectors.T

    def _value_and_slope(self, flat: np.ndarray) -> tuple[float, np.ndarray]:
        shifts = flat.reshape(-1, 3)
        value, slope = float((np.square(shifts / PRIOR_MM) / 2).sum()), shifts / PRIOR_MM**2
        around = 0.05 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
        for pair in self.lines:
            read = _read(self._smooth[pair], self.places(pair, shifts) + around, order=3)
            value += float(read[0])
            gradient = (read[1:4] - read[4:]) / 0.1
            for side, image in enumerate(pair):
                slope[image] += gradient @ self._effects[pair][side]
        return value, slope.ravel()


def _read(table: np.ndarray, places_mm: np.ndarray, *, order: int) -> np.ndarray:
    """(N,) values of a landscape's table at (N, 3) mm, of order 3 where the table holds spline coefficients."""
    steps = len(table) // 2
    return ndimage.map_coordinates(table, (places_mm / STEP_MM + steps).T, order=order, mode="nearest", prefilter=False)


def _on_common_ground(
    energy: _Energy, shifts: np.ndarray, covariance: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts against the place on which most of the first `count` images agree, and their standard deviations.

    All images moved together look the same, and the prior alone holds them; the place of most slices (the geometric
    median) does not follow one that lies far off. The uncertainty is that against the slices' mean.
    """
    directions, informed = energy.directions, energy.informed
    moved = np.einsum("nij,nj->ni", directions, shifts)
    slices = np.flatnonzero(informed[:count])
    moved[informed] -= _geometric_median(moved[slices])
    to_lps = np.zeros((directions.shape[0] * 3,) * 2)
    for index, matrix in enumerate(directions):
        to_lps[3 * index : 3 * index + 3, 3 * index : 3 * index + 3] = matrix
    mean = np.zeros((len(directions), len(directions)))
    mean[np.ix_(np.flatnonzero(informed), slices)] = 1 / len(slices)
    against_mean = to_lps.T @ (np.eye(len(to_lps)) - np.kron(mean, np.eye(3))) @ to_lps
    spread = np.sqrt(np.diag(against_mean @ covariance @ against_mean.T)).reshape(-1, 3)
    spread[~informed] = PRIOR_MM
    return np.einsum("nji,nj->ni", directions, moved), np.minimum(spread, PRIOR_MM)


def _held_at_zero(shifts: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(n, 3) shifts without what may be chance: zero up to `_SURE` deviations, and nearly whole beyond.

    In plane and through it by itself (the positive part of James and Stein's shrinkage): a slice that lies where it
    should is left there, and one that does not is moved by next to all of its shift.
    """
    held = shifts.copy()
    for part in ([0, 1], [2]):
        length = np.linalg.norm(shifts[:, part], axis=1, keepdims=True)
        sure = _SURE * np.linalg.norm(spread[:, part], axis=1, keepdims=True) / np.maximum(length, 1e-9)
        held[:, part] *= np.maximum(1 - sure**2, 0)
    return held


def _geometric_median(points: np.ndarray) -> np.ndarray:
    """(3,) the point with the least summed distance to (N, 3) points (Weiszfeld), which outliers do not drag."""
    middle = points.mean(axis=0)
    for _ in range(50):
        weights = 1 / np.maximum(np.linalg.norm(points - middle, axis=1), 0.1)
        middle = weights @ points / weights.sum()
    return middle
