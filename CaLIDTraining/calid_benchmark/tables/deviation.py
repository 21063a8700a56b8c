"""Does the standard deviation over draws say where the error is? A note below the interpolation table.

Its control is the difference between both moved neighbors, smoothed alike: where they disagree, the slice between them
is uncertain, and no diffusion is needed to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calid.run.device import choose_device
from calid.run.draws import smoothed_root
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import DeviceName, Settings
from scipy.stats import norm, spearmanr
from tqdm import tqdm

from calid_benchmark.rivals.slices import as_images, as_slices
from calid_benchmark.tables.questions import PIXEL_MM, SIZE, StackQuestion
from calid_benchmark.ways import draws_between

PIXELS_PER_SLICE, HEART_PIXELS = 2000, 40
INTERVALS = (0.5, 0.8, 0.95)
"""Shares of the errors that should lie within an interval."""


def uncertainty_figures(
    asked: Sequence[StackQuestion], *, models_folder: Path | None, samples: int, device: DeviceName
) -> dict[str, Any]:
    """Does the standard deviation say where the error is? Figures of some pixels of every slice.

    Returns:
        "everywhere" and "heart" (within 40 pixels, 72 mm, of the crop's center): each with the Spearman correlation of
        error and deviation, that of the control under "control", root mean squares of deviation over error, the share
        of errors within a Gaussian's `INTERVALS`, and both means by the deviation's decile. The error is that of the
        draws' mean.
    """
    settings = Settings(factor=2, method="calid+", mode="fidelity", samples=samples, device=device)
    rng = np.random.default_rng(0)
    places = {"everywhere": np.arange(SIZE**2), "heart": np.flatnonzero(_near_center())}
    found: dict[str, list[np.ndarray]] = {name: [] for name in places}
    for question in tqdm(asked, desc="uncertainty", unit=" stacks"):
        drawn = draws_between(
            question.before,
            question.after,
            settings=settings,
            models_folder=models_folder,
            spacing_mm=question.spacing_mm,
        )
        controls = disagreement(question, models_folder=models_folder, device=device)
        for truth, (value, deviation), control in zip(question.truth, drawn, controls, strict=True):
            assert deviation is not None  # several draws have one
            told = np.stack([np.abs(truth - value).ravel(), deviation.ravel(), control.ravel()])
            for name, pixels in places.items():
                found[name].append(told[:, rng.choice(pixels, PIXELS_PER_SLICE, replace=False)])
    trust: dict[str, Any] = {"slices": len(found["heart"])}
    for name, of_slices in found.items():
        error, deviation, control = np.concatenate(of_slices, axis=1)
        trust[name] = trust_of(error, deviation) | {"control": float(spearmanr(error, control).statistic)}
    return trust


def disagreement(question: StackQuestion, *, models_folder: Path | None, device: DeviceName) -> np.ndarray:
    """(N, Y, X) root mean square difference between both moved neighbors around every pixel: the control."""
    interpolator = warm_interpolator(choose_device(device), models_folder)
    before, after = interpolator.halfway(as_images(question.before), as_images(question.after)).unbind(dim=1)
    return smoothed_root(np.square(as_slices(before) - as_slices(after)))


def _near_center() -> np.ndarray:
    """(128, 128) whether a pixel is where the heart is: crops are centered on it."""
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    return np.hypot(rows, columns) <= HEART_PIXELS


def trust_of(error: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
    """The figures of `uncertainty_figures` from errors and deviations of pixels (N,)."""
    edges = np.quantile(deviation, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, deviation, side="right") - 1, 0, 9)
    return {
        "spearman": float(spearmanr(error, deviation).statistic),
        "spread_over_error": float(np.sqrt(np.square(deviation).mean() / np.square(error).mean())),
        "coverage": {
            f"{share:g}": float((error <= norm.ppf((1 + share) / 2) * deviation).mean()) for share in INTERVALS
        },
        "deciles": [
            {"deviation": float(deviation[bins == i].mean()), "error": float(error[bins == i].mean())}
            for i in range(10)
            if (bins == i).any()
        ],
    }


def trust_note(trust: Mapping[str, Any]) -> str:
    """What `uncertainty_figures` found, as a sentence."""
    everywhere, heart = (trust[name]["spearman"] for name in ("everywhere", "heart"))
    plain, plain_heart = (trust[name]["control"] for name in ("everywhere", "heart"))
    ratio, coverage = trust["heart"]["spread_over_error"], trust["heart"]["coverage"]
    return (
        f"Uncertainty: over {trust['slices']} slices, the Spearman correlation of the standard deviation over the "
        f"draws with the error is {everywhere:.2f} over all pixels, and {heart:.2f} within {HEART_PIXELS} pixels "
        f"({HEART_PIXELS * PIXEL_MM:.0f} mm) of the crop's center, where the heart is; that of the difference between "
        f"both moved neighbors, which needs no draws, is {plain:.2f} and {plain_heart:.2f}. In the heart "
        f"the deviation is {ratio:.2f} of the error (root mean squares), and intervals of "
        f"{', '.join(f'{share:.0%}' for share in INTERVALS)} hold "
        f"{', '.join(f'{share:.0%}' for share in coverage.values())} of the errors."
    )
