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

Without LAX images a slice can only be compared with what its neighbors predict. That is coarser (a bend of the heart
looks like a shift), so it is reported, and applied only when asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from calid.geometry import heart_center
from calid.run.intersections import REACH_MM, STEP_MM, Image, Landscape, images_of, landscape
from calid.stack import Stack

PRIOR_MM = np.array([4.0, 4.0, 3.0])
"""Standard deviation of shifts along rows, columns and the normal, before anything is seen."""

PROVENANCE_KEY = "alignment"
"""What a stack's provenance calls `Alignment.as_json`."""

NOTICEABLE_MM = 2.0
"""Shifts of this size are warned of: more than a pixel, half of what bends a wall visibly."""

_INDEPENDENT_MM = 10.0
"""Length of line that counts as one sample, all frames of it together: what misleads one phase (flow, a partial volume,
a breath) misleads the next as well. So uncertainties are as large as the differences of estimates from different
views."""

_EXPLAINED = 0.98  # of a line's variance at most: noise, and no pair of images outweighs all others
_SEARCH_MM = (np.arange(-12, 12.1, 1.5), np.arange(-7.5, 7.6, 1.5))  # in plane, through plane
_SWEEPS = 4
_SURE = 1.5  # deviations of an uncertainty that a shift has to exceed before it is told at all
_FLATTEST = 0.02  # curvature, per square mm, that an uncertainty is read from at least
_NEIGHBOR_NOISE_MM = 1.5  # by how much the middle of two neighbors 10 mm away misses a slice that does not lie aside
_NEIGHBOR_SAMPLES = 40.0  # independent ones of a slice around the heart, all frames together
_NEIGHBOR_EVIDENCE = 4.4  # log of how many places apart are tried: what the best of them reaches by chance
_NEIGHBOR_FRAMES = 4  # of a cine, for the comparison of neighbors


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
        done = "Slices were moved" if self.applied else "Slices are off"
        return (
            f"{done} by up to {self.worst_mm:.1f} mm in plane ({worst.name}){also}, judged by the {self.basis}; "
            f"agreement {self.agreement_before:.3f}, moved {self.agreement_after:.3f}."
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


def align(sax: Stack, views: Mapping[str, Stack]) -> Alignment:
    """The shifts of a stack's slices, from its long-axis images, or from the slices alone where none crosses them.

    Args:
        sax: acquired short-axis slices.
        views: {name: long-axis image}; those that do not cross the slices are not used, and not named in the result.
    """
    found = align_images(
        images_of(sax),
        {name: images_of(view)[0] for name, view in views.items()},
        heart_center(sax, list(views.values())),
    )
    return _by_neighbors(sax) if found is None else found


def align_images(slices: Sequence[Image], views: Mapping[str, Image], center_lps: np.ndarray) -> Alignment | None:
    """As `align`, of images wherever they lie; None where no view crosses a slice.

    Args:
        slices: short-axis slices.
        views: {name: long-axis image}.
        center_lps: (3,) mm, the middle of the heart.
    """
    lines: dict[tuple[int, int], Landscape] = {}
    used: dict[str, Image] = {}
    for name, image in views.items():
        found = [landscape(one, image, center_lps) for one in slices]
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


# --- without long-axis images -----------------------------------------------------------------------------------------


def _by_neighbors(sax: Stack) -> Alignment:
    """In-plane shifts of slices against the middle of their neighbors.

    Each inner slice is compared with the mean of its two neighbors at all offsets; what is measured is how far its
    shift differs from the mean of theirs, if the best of the offsets fits better than chance makes the best of so many.
    Of a slice that resembles its neighbors nowhere nothing is known. The shifts follow by least squares with the prior,
    so that of all explanations the smallest is told.
    """
    count = sax.num_slices
    names = [f"slice {index + 1}" for index in range(count)]
    if count < 3:
        return Alignment("neighboring slices", tuple(Shift(name, (0, 0, 0), _triple(PRIOR_MM)) for name in names))
    weight = _moving_region(sax)
    few = sax.voxels[np.unique(np.linspace(0, sax.num_frames - 1, _NEIGHBOR_FRAMES).astype(int))].astype(np.float32)
    noise_mm = _NEIGHBOR_NOISE_MM * max((sax.spacing_mm[2] / 10) ** 2, 0.5)  # a bend's height grows with its square
    measured, known = np.zeros((count - 2, 2)), np.zeros(count - 2)
    correlations = []
    for index in range(1, count - 1):
        middle = (few[:, index - 1] + few[:, index + 1]) / 2
        offset, before, after = _offset(few[:, index], middle, weight, sax.spacing_mm[:2])
        told = _evidence(after)
        known[index - 1] = told > _NEIGHBOR_EVIDENCE
        measured[index - 1] = offset * (told - _evidence(before) > _NEIGHBOR_EVIDENCE)
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
    return -_NEIGHBOR_SAMPLES / 2 * math.log1p(-(min(max(correlation, 0.0), _EXPLAINED) ** 2))


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


# --- applied ----------------------------------------------------------------------------------------------------------


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
