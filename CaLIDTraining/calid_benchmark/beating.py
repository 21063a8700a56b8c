"""How frames of a slice change in time: figures of the cine table."""

from __future__ import annotations

import numpy as np
from calid.heart.segmentation import Segmenter
from calid.labels import LV_CAVITY

from calid_benchmark.segmenters import segmented

LOW_HARMONICS = 4


def differences(frames: np.ndarray, order: int, *, ring: bool) -> np.ndarray:
    """Differences of the first or second order of frames (T, Y, X) in time, around the ring or not."""
    if ring:
        frames = np.concatenate([frames, frames[:order]])
    return np.diff(frames, order, axis=0)


def above_low_harmonics(frames: np.ndarray) -> float:
    """Energy of the temporal spectrum of frames (T, Y, X) above the 4th harmonic of their length."""
    return float(np.square(np.abs(np.fft.rfft(frames, axis=0, norm="ortho")[LOW_HARMONICS + 1 :])).sum())


def temporal_figures(frames: np.ndarray, truth: np.ndarray, *, ring: bool) -> dict[str, float]:
    """How frames (T, Y, X) change in time, relative to true ones of the same size."""
    orders = {"change": 1, "flicker": 2}
    ratios = {
        name: float(
            np.abs(differences(frames, order, ring=ring)).mean() / np.abs(differences(truth, order, ring=ring)).mean()
        )
        for name, order in orders.items()
    }
    return ratios | {"above_4th": above_low_harmonics(frames) / above_low_harmonics(truth)}


def motion_error(frames: np.ndarray, truth: np.ndarray, *, ring: bool) -> float:
    """Root mean square of the error of the change from frame to frame, relative to the true change."""
    made, true = (differences(x, 1, ring=ring) for x in (frames, truth))
    return float(np.sqrt(np.square(made - true).mean() / np.square(true).mean()))


def roughness(segmenter: Segmenter, frames: np.ndarray, *, ring: bool) -> float:
    """Root mean square second difference of the LV area over frames (T, Y, X), in percent of the mean area."""
    areas = (segmented(segmenter, frames) == LV_CAVITY.value).sum(axis=(1, 2)).astype(float)
    if not areas.any():
        return float("nan")
    return float(100 * np.sqrt(np.square(differences(areas, 2, ring=ring)).mean()) / areas.mean())
