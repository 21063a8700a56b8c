"""`Stack`, the one type that travels through the engine: parallel slices, one or many frames, in patient space.

Index order is always (frame, slice, row, column). The affine maps (column, row, slice, 1) at voxel centers to LPS
millimeters, the convention of DICOM and ITK. RAS is spoken outside only: the readers of NIfTI and NRRD and the Slicer
module change the signs where they take voxels in and give them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

ISOTROPIC_RATIO = 1.5
"""Slices nearer to each other than this many pixels leave nothing to fill in."""

WINDOW_PERCENTILES = (1.0, 99.5)
"""What lies between them is shown and made; few voxels of air and flow lie beyond."""

BEAT_KEY, TIMES_KEY = "beat_ms", "frame_times"
"""What a stack's history calls its beat, and the way in which its frame times were guessed."""

GUIDED_KEY = "guided_by"
"""What provenance calls the names of the long-axis images that guided a result: they are no independent proof of it."""


@dataclass(frozen=True, eq=False, repr=False)
class Stack:
    """Parallel slices of equal size and spacing, in one (T = 1) or several cardiac phases.

    Args:
        voxels: (T, Z, Y, X), any real dtype; labels are unsigned integers.
        affine: (4, 4) float64, (column, row, slice, 1) -> LPS mm.
        frame_times_ms: (T,) strictly increasing, milliseconds after the R wave; [0] for a static stack.
        generated: (Z,) bool, True where a slice was made by a model and not acquired.
        beat_ms: length of the heart beat that the scanner noted, milliseconds; None where none was.
        times_guess: how the frame times were guessed, in words; empty where the input says them.
        provenance: what made this stack, JSON values only; never patient identifiers. It is told, and never asked.

    Raises:
        ValueError: if the parts do not fit together. Unsuitable but well-formed input is `checks.py`'s business.
    """

    voxels: np.ndarray
    affine: np.ndarray
    frame_times_ms: np.ndarray = field(default_factory=lambda: np.zeros(1))
    generated: np.ndarray | None = None
    beat_ms: float | None = None
    times_guess: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        voxels = np.asarray(self.voxels)
        if voxels.ndim != 4:
            raise ValueError(f"voxels must be (T, Z, Y, X), got shape {voxels.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError("affine must be an invertible 4x4 matrix")
        times = np.asarray(self.frame_times_ms, dtype=np.float64)
        if times.shape != voxels.shape[:1]:
            raise ValueError(f"{voxels.shape[0]} frames but {times.size} frame times")
        if times.size > 1 and not (np.diff(times) > 0).all():
            raise ValueError("frame times must increase")
        generated = self.generated
        generated = np.zeros(voxels.shape[1], bool) if generated is None else np.asarray(generated, bool)
        if generated.shape != voxels.shape[1:2]:
            raise ValueError(f"{voxels.shape[1]} slices but {generated.size} generated marks")
        object.__setattr__(self, "voxels", voxels)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "frame_times_ms", times)
        object.__setattr__(self, "generated", generated)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __repr__(self) -> str:
        """What it is in one line, for those who work in a shell; none of its voxels."""
        acquired, (rows, columns) = int((~np.asarray(self.generated)).sum()), self.voxels.shape[2:]
        spacing = " x ".join(f"{mm:.2f}" for mm in self.spacing_mm)
        slices = f"{self.num_frames} frame(s) of {self.num_slices} slices ({acquired} acquired)"
        return f"<Stack of {slices}, {columns} x {rows} pixels, {self.voxels.dtype}, {spacing} mm>"

    @property
    def num_frames(self) -> int:
        """T."""
        return self.voxels.shape[0]

    @property
    def num_slices(self) -> int:
        """Z."""
        return self.voxels.shape[1]

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) distances between voxel centers along columns (x), rows (y) and slices (z)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def directions_lps(self) -> np.ndarray:
        """(3, 3) unit vectors as columns: along a row (x), along a column (y), from slice to slice (z)."""
        return self.affine[:3, :3] / self.spacing_mm

    @property
    def origin_lps(self) -> np.ndarray:
        """(3,) LPS mm of the center of voxel (0, 0, 0)."""
        return self.affine[:3, 3].copy()

    def slice_affine(self, index: int) -> np.ndarray:
        """The (4, 4) affine of slice `index` alone, as if it were the first."""
        affine = self.affine.copy()
        affine[:3, 3] = self.affine[:3, 3] + index * self.affine[:3, 2]
        return affine

    def to_lps(self, indices: np.ndarray) -> np.ndarray:
        """Map (..., 3) voxel indices (column, row, slice) to (..., 3) LPS mm."""
        return np.asarray(indices) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, points_lps: np.ndarray) -> np.ndarray:
        """Map (..., 3) LPS mm to (..., 3) fractional voxel indices (column, row, slice)."""
        return (np.asarray(points_lps) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def frame(self, index: int) -> Stack:
        """One frame as a static stack that keeps its time."""
        return self.frames(index, index + 1)

    def frames(self, start: int, stop: int) -> Stack:
        """Frames start..stop-1."""
        return replace(self, voxels=self.voxels[start:stop], frame_times_ms=self.frame_times_ms[start:stop])

    def with_voxels(self, voxels: np.ndarray, **changes: Any) -> Stack:
        """The same geometry with other voxels (labels, or another dtype)."""
        return replace(self, voxels=voxels, **changes)

    def noted(self, **provenance: Any) -> Stack:
        """The same stack with more said about where it comes from."""
        return replace(self, provenance={**self.provenance, **provenance})

    @property
    def history(self) -> dict[str, Any]:
        """All that files and reports tell of where a stack comes from: its provenance, its beat and guessed times."""
        beat = {} if self.beat_ms is None else {BEAT_KEY: self.beat_ms}
        guess = {TIMES_KEY: self.times_guess} if self.times_guess else {}
        return {**self.provenance, **beat, **guess}


@dataclass(frozen=True)
class LaxImage:
    """A long-axis view.

    Args:
        name: the series description or file name; several of one name are numbered.
        stack: one slice, whose thickness is the length of the affine's third column.
    """

    name: str
    stack: Stack


def is_dense(stack: Stack) -> bool:
    """Whether a stack has generated slices already, or slices about as near to each other as its pixels."""
    x, y, z = stack.spacing_mm
    return bool(np.asarray(stack.generated).any()) or z <= ISOTROPIC_RATIO * max(x, y)


def acquired_slices(dense: Stack) -> Stack | None:
    """The acquired slices of a dense stack; None where none is marked as generated or they are not evenly spaced."""
    acquired = np.flatnonzero(~np.asarray(dense.generated))
    gaps = np.unique(np.diff(acquired))
    if not np.asarray(dense.generated).any() or gaps.size != 1:
        return None
    affine = dense.slice_affine(int(acquired[0]))
    affine[:3, 2] *= gaps[0]
    return replace(dense, voxels=dense.voxels[:, acquired], affine=affine, generated=None)


# --- frames in the heart cycle ----------------------------------------------------------------------------------------

BEAT_LIMITS_MS = (250.0, 2000.0)
"""How long a heart beat lasts: 240 to 30 beats per minute."""

BEAT_RATIO = 4 / 3
"""A beat lasts at most so many times as long in one breath-hold as in another one of the same heart."""

MAX_FRAMES_OFF = 2.5
"""By so many frames a cine of a whole beat may miss the noted beat: one is left out at either end, and beats vary."""

NUMBERED_MS = 1.0
"""Frames that are one millisecond apart are numbered, not timed."""


def nearest_frames(
    times_ms: np.ndarray, at_ms: np.ndarray, *, beat_ms: float | None = None, at_beat_ms: float | None = None
) -> np.ndarray:
    """Index into `times_ms` of the frame in the same cardiac phase as each moment of `at_ms`.

    Two cines of one heart in two breath-holds rarely beat equally fast, and their times need not count from the same
    moment: a scanner's numbers, or times since the start of a series, begin anywhere. So of two whole beats, times
    since the first frame are divided by the length of the beat, and the end of the beat lies beside its beginning.
    An excerpt of a beat, or a still stack, cannot be stretched so: there the time after the R wave counts, in shares
    of the beat where both are known.

    Args:
        times_ms: (T,) increasing, milliseconds after the R wave, or frame numbers.
        at_ms: (N,) increasing, likewise.
        beat_ms: length of the beat that `times_ms` are of; None where nobody noted it.
        at_beat_ms: the same of `at_ms`.

    Returns:
        (N,) frame indices.

    Examples:
        >>> nearest_frames(np.array([0.0, 30.0, 60.0]), np.array([0.0, 40.0]))
        array([0, 1])

        Frames numbered from 101 on are the phases of the other cine all the same:

        >>> nearest_frames(np.arange(101.0, 126.0), 34.0 * np.arange(25))[[0, 12, 24]]
        array([ 0, 12, 24])
    """
    times, moments = np.asarray(times_ms, float), np.asarray(at_ms, float)
    beat, other = _beat(times, beat_ms), _beat(moments, at_beat_ms)
    if beat and other and (_is_one_heart(beat, other) or _is_numbered(times) or _is_numbered(moments)):
        distance = np.abs((moments - moments[0])[:, None] / other - (times - times[0])[None] / beat) % 1
        distance = np.minimum(distance, 1 - distance)
    else:
        times, moments = _after_r_wave(times), _after_r_wave(moments)
        shares = (beat_ms, at_beat_ms) if beat_ms and at_beat_ms else (1.0, 1.0)
        distance = np.abs(moments[:, None] / shares[1] - times[None] / shares[0])
    return distance.argmin(axis=1)


def frames_at_phases_of(stack: Stack, other: Stack) -> np.ndarray:
    """(T of `other`,) index of the frame of `stack` that shows the phase of each frame of `other`."""
    return nearest_frames(stack.frame_times_ms, other.frame_times_ms, beat_ms=stack.beat_ms, at_beat_ms=other.beat_ms)


def _beat(times_ms: np.ndarray, noted_ms: float | None) -> float:
    """Length of the beat that a cine spans, in the unit of its times; 0 below 3 frames and for an excerpt.

    Its last frame lasts as long as the others. Numbers are taken for the frames of one whole beat.
    """
    if times_ms.size < 3:
        return 0.0
    step = float(times_ms[-1] - times_ms[0]) / (times_ms.size - 1)
    span = step * times_ms.size
    if not noted_ms or _is_numbered(times_ms):
        return span
    return noted_ms if abs(span - noted_ms) <= MAX_FRAMES_OFF * step else 0.0


def _is_one_heart(beat_ms: float, other_ms: float) -> bool:
    return max(beat_ms, other_ms) <= BEAT_RATIO * min(beat_ms, other_ms)


def _is_numbered(times_ms: np.ndarray) -> bool:
    return times_ms.size > 2 and float(times_ms[-1] - times_ms[0]) <= NUMBERED_MS * (times_ms.size - 1)


def _after_r_wave(times_ms: np.ndarray) -> np.ndarray:
    """Times of which the first lies beyond any heart's beat count from elsewhere, and here from the first frame."""
    return times_ms - times_ms[0] if times_ms.size and times_ms[0] > BEAT_LIMITS_MS[1] else times_ms
