"""How well two ways of measuring the same patients agree: Bland and Altman's limits, and the intraclass correlation.

- Bias: mean of the differences d = a - b. Its 95 % interval is a bootstrap over patients, as everywhere in the tables.
- Limits of agreement: bias -/+ 1.96 standard deviations of d (n - 1), between which 95 % of the differences should lie
  (Bland and Altman 1986).
- ICC(A,1): two-way random effects, absolute agreement, single measurement (McGraw and Wong 1996; Shrout and Fleiss's
  ICC(2,1)). It falls where the two differ by a constant, which a correlation does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from calid_benchmark.metrics import interval

LIMITS = 1.96
RESAMPLES = 2000


def icc(ratings: np.ndarray) -> float:
    """ICC(A,1) of ratings (patients, raters); NaN where nothing varies.

    >>> round(icc(np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])), 2)
    0.29
    """
    patients, raters = ratings.shape
    mean = ratings.mean()
    between = raters * np.square(ratings.mean(axis=1) - mean).sum() / (patients - 1)
    of_raters = patients * np.square(ratings.mean(axis=0) - mean).sum() / (raters - 1)
    left = ratings - ratings.mean(axis=1, keepdims=True) - ratings.mean(axis=0) + mean
    error = np.square(left).sum() / ((patients - 1) * (raters - 1))
    total = between + (raters - 1) * error + raters / patients * (of_raters - error)
    return float((between - error) / total) if total > 0 else float("nan")


def agreement_of(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> dict[str, Any] | None:
    """Agreement of two measurements of every patient.

    Args:
        values, others: measurements of every patient; one that is NaN leaves the patient out.
        seed: seed of the bootstrap.

    Returns:
        "patients", both means, "bias" {mean, low, high}, "sd", "limits" (lower, upper) and "icc" {mean, low, high};
        None with fewer than three patients.
    """
    pairs = np.column_stack([values, others]).astype(float)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 3:
        return None
    differences = pairs[:, 0] - pairs[:, 1]
    bias, deviation = float(differences.mean()), float(differences.std(ddof=1))
    limits = interval(differences.tolist(), seed=seed)
    spread = stats.bootstrap(
        (pairs[:, 0], pairs[:, 1]),
        lambda a, b: icc(np.column_stack([a, b])),
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        "patients": len(pairs),
        "mean": float(pairs[:, 0].mean()),
        "other_mean": float(pairs[:, 1].mean()),
        "bias": {"mean": bias} | ({} if limits is None else {"low": limits[0], "high": limits[1]}),
        "sd": deviation,
        "limits": (bias - LIMITS * deviation, bias + LIMITS * deviation),
        "icc": {"mean": icc(pairs), "low": float(spread.low), "high": float(spread.high)},
    }
