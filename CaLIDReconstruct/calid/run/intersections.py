"""The line on which a short-axis slice and a long-axis image cross, where both show the same tissue.

A short-axis (SAX) slice averages over its slab along its normal, a long-axis (LAX) image over its own. Averaged across
each other's slab as well, both show the same beam of tissue along their common line, up to gain and offset, whichever
way their contrasts differ between breath-holds.

A rigid shift of either image moves the line in the other, too. All that a pair of images can say about two shifts is
therefore in three numbers (`Crossing.effect`): how far the line lies aside in the SAX slice, how far in the LAX image,
and how far the two profiles are moved along it. `landscape` tabulates the correlation over these three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from calid.geometry import LONG_AXIS_DEGREES
from calid.stack import Stack, nearest_frames

TYPICAL_SLAB_MM = 8.0
"""A short-axis slice is as thick as the slices are apart, but hardly thicker than this: gaps are not imaged."""

REACH_MM = 14.0
"""A landscape reaches this far from the planned places, in each of its three directions: beyond any breath-hold."""

STEP_MM = 1.0
RADIUS_MM = 55.0
"""Lines are compared this far to both sides of the heart's middle: whole hearts, little of the chest wall, which does
not move with them."""

TAPER_MM = 10.0
_MIN_OVERLAP = 0.5


@dataclass(frozen=True, eq=False)
class Image:
    """One acquired image and its place.

    Args:
        pixels: (T, Y, X) float32.
        affine: (4, 4), (column, row, 0, 1) -> LPS mm.
        thickness_mm: thickness of the slab that it averages over.
        frame_times_ms: (T,) milliseconds after the R wave.
        beat_ms: length of the heart beat that the scanner noted, or None.
    """

    pixels: np.ndarray
    affine: np.ndarray
    thickness_mm: float
    frame_times_ms: np.ndarray
    beat_ms: float | None = None

    def frames_at(self, other: Image | Stack) -> np.ndarray:
        """(T of `other`,) index of the frame that shows the phase of each frame of `other`."""
        times = self.frame_times_ms, other.frame_times_ms
        return nearest_frames(*times, beat_ms=self.beat_ms, at_beat_ms=other.beat_ms)

    @property
    def directions_lps(self) -> np.ndarray:
        """(3, 3) unit vectors as columns: along a row, along a column, and the right-handed normal."""
        row, column = (self.affine[:3, axis] / np.linalg.norm(self.affine[:3, axis]) for axis in (0, 1))
        normal = np.cross(row, column)
        return np.stack([row, column, normal / np.linalg.norm(normal)], axis=1)

    def shifted(self, shift_mm: np.ndarray) -> Image:
        """The same image moved by (3,) mm along its own `directions_lps`."""
        affine = self.affine.copy()
        affine[:3, 3] += self.directions_lps @ np.asarray(shift_mm, float)
        return replace(self, affine=affine)

    def at(self, points_lps: np.ndarray, frames: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (T, ...) float32 at (..., 3) LPS points in some frames, and whether each point (...) is in the image.

        Points are projected onto the image along its normal; beyond its edge it goes on as its nearest pixel.
        """
        columns, rows = self.pixel_indices(points_lps)
        last = np.array(self.pixels.shape[1:]) - 1
        inside = (rows >= 0) & (rows <= last[0]) & (columns >= 0) & (columns <= last[1])
        values = [
            ndimage.map_coordinates(self.pixels[frame], [rows, columns], np.float32, order=1, mode="nearest")
            for frame in frames
        ]
        return np.stack(values), inside

    def pixel_indices(self, points_lps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional columns (...) and rows (...) of (..., 3) LPS points."""
        along = np.linalg.inv(self.affine[:3, :3])
        indices = (np.asarray(points_lps) - self.affine[:3, 3]) @ along.T
        return indices[..., 0], indices[..., 1]


def images_of(stack: Stack, thickness_mm: float | None = None) -> list[Image]:
    """The slices of a stack, or the one of a long-axis view, as images with a place.

    Args:
        stack: short-axis stack or long-axis view.
        thickness_mm: thickness of a slice; by default the distance of slices, at most `TYPICAL_SLAB_MM`.
    """
    if thickness_mm is None:
        thickness_mm = min(float(stack.spacing_mm[2]), TYPICAL_SLAB_MM)
    times, beat_ms = stack.frame_times_ms, stack.beat_ms
    return [
        Image(stack.voxels[:, index].astype(np.float32), stack.slice_affine(index), thickness_mm, times, beat_ms)
        for index in range(stack.num_slices)
    ]


@dataclass(frozen=True, eq=False)
class Crossing:
    """The line in which the planes of a SAX slice and a LAX image meet.

    Args:
        origin_lps: (3,) mm, the line's point nearest to the heart's middle.
        along: (3,) unit vector along the line.
        sax_normal, lax_normal: (3,) unit vectors.
    """

    origin_lps: np.ndarray
    along: np.ndarray
    sax_normal: np.ndarray
    lax_normal: np.ndarray

    @property
    def across_sax(self) -> np.ndarray:
        """(3,) unit vector in the SAX slice, across the line."""
        return np.cross(self.sax_normal, self.along)

    @property
    def across_lax(self) -> np.ndarray:
        """(3,) unit vector in the LAX image, across the line."""
        return np.cross(self.lax_normal, self.along)

    def effect(self) -> tuple[np.ndarray, np.ndarray]:
        """What shifts of the images do to the line: two (3, 3) matrices.

        The line of a SAX slice shifted by s and a LAX image shifted by l (LPS mm) lies at sax @ s + lax @ l: aside in
        the SAX slice, aside in the LAX image (both in the images' own pixels), and the offset along the line of the LAX
        profile against the SAX one.
        """
        cosine = float(self.sax_normal @ self.lax_normal)
        # The line's new place n_sax x + n_lax y satisfies both plane equations: x + cosine y = n_sax s, and likewise.
        square = 1 - cosine**2
        to_place = np.stack([self.sax_normal, self.lax_normal], axis=1) @ (
            np.array([[1.0, -cosine], [-cosine, 1.0]]) / square
        )
        of_sax, of_lax = np.outer(to_place[:, 0], self.sax_normal), np.outer(to_place[:, 1], self.lax_normal)
        sax = np.stack([self.across_sax @ of_sax - self.across_sax, self.across_lax @ of_sax, self.along])
        lax = np.stack([self.across_sax @ of_lax, self.across_lax @ of_lax - self.across_lax, -self.along])
        return sax, lax


def crossing(sax: Image, lax: Image, center_lps: np.ndarray) -> Crossing | None:
    """The line of two images; None where their planes are so nearly parallel that it says nothing."""
    normals = sax.directions_lps[:, 2], lax.directions_lps[:, 2]
    along = np.cross(*normals)
    sine = float(np.linalg.norm(along))
    if sine < np.sin(np.deg2rad(LONG_AXIS_DEGREES)):
        return None
    along = along / sine
    offsets = [normals[0] @ sax.affine[:3, 3], normals[1] @ lax.affine[:3, 3], along @ center_lps]
    return Crossing(np.linalg.solve(np.stack([*normals, along]), offsets), along, *normals)


@dataclass(frozen=True, eq=False)
class Landscape:
    """How well a SAX slice and a LAX image agree, over all places of their line.

    Args:
        crossing: the line.
        correlation: (2 n + 1, 2 n + 1, 2 n + 1) over the three numbers of `Crossing.effect`, -n to n times `STEP_MM`;
            0 where the images do not overlap enough to tell.
        length_mm: length of the line as far as both images show it, weighed.
    """

    crossing: Crossing
    correlation: np.ndarray
    length_mm: float

    @property
    def as_planned(self) -> float:
        """The correlation at the places that the headers say."""
        middle = len(self.correlation) // 2
        return float(self.correlation[middle, middle, middle])


def landscape(sax: Image, lax: Image, center_lps: np.ndarray) -> Landscape | None:
    """Correlation of both images along their line, over all frames of the SAX slice at once, for all places of it.

    Gain and offset of the two images do not matter to it. Returns None where the two do not cross within both.
    """
    line = crossing(sax, lax, center_lps)
    if line is None:
        return None
    steps = round(REACH_MM / STEP_MM)
    half = round((RADIUS_MM + TAPER_MM) / STEP_MM)
    places = np.arange(-half, half + 1) * STEP_MM
    reach = np.arange(-half - steps, half + steps + 1) * STEP_MM
    weight = np.clip((RADIUS_MM + TAPER_MM - np.abs(places)) / TAPER_MM, 0, 1)
    frames = np.arange(len(sax.pixels))
    own, own_inside = _profiles(sax, line, line.across_sax, places, frames, slab_mm=lax.thickness_mm)
    matching = lax.frames_at(sax)
    other, other_inside = _profiles(lax, line, line.across_lax, reach, matching, slab_mm=sax.thickness_mm)
    correlation, overlap = _correlations(own, own_inside * weight, other, other_inside)
    middle = overlap[steps, steps, steps]
    if middle <= _MIN_OVERLAP * TAPER_MM / STEP_MM:
        return None
    correlation[overlap < _MIN_OVERLAP * middle] = 0
    return Landscape(line, correlation, float(middle) * STEP_MM)


def _profiles(
    image: Image, line: Crossing, across: np.ndarray, places_mm: np.ndarray, frames: np.ndarray, *, slab_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values (2 n + 1, T, K) along lines beside each other, averaged over the other image's slab; which are inside."""
    steps, margin = round(REACH_MM / STEP_MM), round(slab_mm / 2 / STEP_MM)
    aside = np.arange(-steps - margin, steps + margin + 1) * STEP_MM
    points = line.origin_lps + aside[:, None, None] * across + places_mm[:, None] * line.along
    values, inside = image.at(points, frames)
    averaged = ndimage.uniform_filter1d(values, 2 * margin + 1, axis=1)
    kept = slice(margin, len(aside) - margin)
    return averaged[:, kept].swapaxes(0, 1) - averaged.mean(), inside[kept].astype(np.float32)


def _correlations(
    own: np.ndarray, weight: np.ndarray, other: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted correlation of every line of one image with every line of the other at every offset; and their overlap.

    Args:
        own: (B, T, K) profiles.
        weight: (B, K).
        other: (E, T, K + B - 1) profiles, longer by the offsets.
        inside: (E, K + B - 1) 0 or 1.

    Returns:
        Both (B, E, B): line of the one, line of the other, offset.
    """
    count, frames, length = own.shape
    sums, squares = own.sum(axis=1) * weight, (own**2).sum(axis=1) * weight
    weighted = (own * weight[:, None]).reshape(count, -1)
    found = np.empty((count, len(other), count), np.float32)
    overlap = np.empty_like(found)
    for offset in range(count):
        part = slice(offset, offset + length)
        seen, known = other[:, :, part], inside[:, part]
        overlap[:, :, offset] = weight @ known.T
        total = np.maximum(overlap[:, :, offset] * frames, 1e-6)
        mean, other_mean = sums @ known.T / total, weight @ (seen.sum(axis=1) * known).T / total
        product = weighted @ (seen * known[:, None]).reshape(len(other), -1).T / total
        variance = squares @ known.T / total - mean**2
        other_variance = weight @ ((seen**2).sum(axis=1) * known).T / total - other_mean**2
        spread = np.sqrt(np.maximum(variance, 0) * np.maximum(other_variance, 0))
        found[:, :, offset] = (product - mean * other_mean) / np.maximum(spread, 1e-6)
    return found, overlap
