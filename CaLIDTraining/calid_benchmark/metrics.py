"""One documented definition of every figure; images are float32 (N, Y, X) in [0, 1] unless said otherwise.

PSNR and SSIM are scikit-image's with data_range 1. SSIM is Wang et al.'s: Gaussian window, sigma 1.5, population
covariance. The feature distances use the frozen encoder of this project's own segmenter; they are not LPIPS or FID and
are never called so (LPIPS and rFID themselves: `perceptual.py`).

Masks A (made) and B (the expert's), with their boundary pixels, by MONAI:
- Dice = 2 |A & B| / (|A| + |B|); VOE = 100 (1 - |A & B| / |A | B|) %
- ASD: mean distance from A's boundary to B's; HD: the largest of both directions
- ASSD: mean over both boundaries' pixels together; "means" of it: the mean of both directions' means, as DMCVR's code
Where one of the two is empty, Dice is 0 and VOE 100, and distances do not exist: they are left out and counted. Where
both are empty there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou
from scipy import linalg, stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

DISTANCES = ("hd", "asd", "assd")

FeatureExtractor = Callable[[torch.Tensor], list[torch.Tensor]]
"""Images (N, 1, Y, X) in [0, 1] -> feature maps (N, C_i, Y_i, X_i), finest first."""


def psnr(truth: np.ndarray, made: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio of every image, dB."""
    return [float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in zip(truth, made, strict=True)]


def ssim(truth: np.ndarray, made: np.ndarray) -> list[float]:
    """Structural similarity of every image."""
    settings = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [float(structural_similarity(a, b, **settings)) for a, b in zip(truth, made, strict=True)]


def gradient_magnitude(images: np.ndarray) -> list[float]:
    """Mean length of the gradient (central differences) of every image: how sharp it is."""
    return [float(np.hypot(*np.gradient(x)).mean()) for x in images]


def feature_distance(truth: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> list[float]:
    """Distance of every image's features to the truth's: LPIPS's form (Zhang et al. 2018) without learned weights.

    Features are normalized over channels at every place; squared differences are averaged over places, summed over
    scales.
    """
    total = torch.zeros(len(truth[0]))
    for a, b in zip(truth, made, strict=True):
        difference = torch.nn.functional.normalize(a, dim=1) - torch.nn.functional.normalize(b, dim=1)
        total += difference.square().sum(dim=1).flatten(1).mean(dim=1)
    return total.tolist()


def pooled(features: Sequence[torch.Tensor]) -> np.ndarray:
    """(N, C) one vector per image: spatial means and deviations of its three coarsest feature maps."""
    parts = [part for x in features[-3:] for part in (x.mean(dim=(2, 3)), x.std(dim=(2, 3)))]
    return torch.cat(parts, dim=1).double().numpy()


def frechet_distance(truth: np.ndarray, made: np.ndarray, *, components: int = 32) -> float:
    """Frechet distance of two sets of vectors (N, C) in the truth's principal components (few, because N is small).

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)), the trace of the root by the eigenvalues of A B.
    """
    center = truth.mean(axis=0)
    _, scale, axes = np.linalg.svd(truth - center, full_matrices=False)
    count = min(components, int((scale > 1e-9 * scale[0]).sum()))
    a, b = ((x - center) @ axes[:count].T for x in (truth, made))
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root_trace = np.sqrt(np.clip(linalg.eigvals(covariance_a @ covariance_b).real, 0, None)).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * root_trace)


def frechet_p(
    truth: np.ndarray,
    made: np.ndarray,
    other: np.ndarray,
    patients: Sequence[str],
    *,
    draws: int = 500,
    seed: int = 0,
) -> float:
    """Two-sided p that `made` and `other` are equally far from the truth, by resampling patients for all three alike.

    Args:
        truth, made, other: vectors (N, C) of the same slices.
        patients: (N,) whose slices they are.
        draws: how often patients are drawn.
        seed: seed of the draws.
    """
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    slices_of = [np.flatnonzero(owner == number) for number in range(len(names))]
    rng, nearer = np.random.default_rng(seed), 0
    for _ in range(draws):
        chosen = np.concatenate([slices_of[number] for number in rng.integers(len(names), size=len(names))])
        nearer += frechet_distance(truth[chosen], made[chosen]) < frechet_distance(truth[chosen], other[chosen])
    return min(1.0, 2 * (min(nearer, draws - nearer) + 1) / (draws + 1))


def compare_masks(made: np.ndarray, truth: np.ndarray, spacings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """All figures of two boolean masks of any dimension, NaN where one does not exist.

    Args:
        made: the mask that is judged.
        truth: mask that the expert drew.
        spacings: {unit: size of a pixel along every axis}, such as {"px": (1, 1), "mm": (1.8, 1.8)}.

    Returns:
        "dice", "voe" in percent, and "hd_<unit>", "asd_<unit>" and "assd_<unit>" for every unit.
    """
    figures = overlap(made, truth) if made.any() or truth.any() else {"dice": np.nan, "voe": np.nan}
    both = made.any() and truth.any()
    for unit, spacing in spacings.items():
        lengths = distances(made, truth, spacing) if both else dict.fromkeys(DISTANCES, np.nan)
        figures |= {f"{name}_{unit}": value for name, value in lengths.items()}
    return figures


def overlap(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice and VOE in percent of two boolean masks, not both empty."""
    pair = _as_batch(made), _as_batch(truth)
    return {
        "dice": float(compute_dice(*pair, ignore_empty=False)),
        "voe": 100 * (1 - float(compute_iou(*pair, ignore_empty=False))),
    }


def distances(made: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """HD, ASD and ASSD of two boolean masks of any dimension, neither empty; units are those of `spacing`."""
    pair = _as_batch(made), _as_batch(truth)
    settings: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
    return {
        "hd": float(compute_hausdorff_distance(*pair, **settings)),
        "asd": float(compute_average_surface_distance(*pair, symmetric=False, **settings)),
        "assd": float(compute_average_surface_distance(*pair, symmetric=True, **settings)),
    }


def assd_of_means(made: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """ASSD as DMCVR's code and medpy up to 0.4 have it: the mean of both directions' mean distances."""
    return (distances(made, truth, spacing)["asd"] + distances(truth, made, spacing)["asd"]) / 2


def _as_batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


Figures = Mapping[str, Mapping[str, float]]
"""{structure: {figure: value}}"""


def per_patient(found: Iterable[tuple[str, Figures]]) -> list[dict[str, dict[str, float]]]:
    """Every patient's figures: the means over that patient's stacks, so that two phases do not count as two patients.

    Args:
        found: (patient, figures) of every stack; a stack may lack a structure.

    Returns:
        For each patient in order all structures that anyone has, NaN where that patient has no figure.
    """
    stacks: dict[str, list[Figures]] = {}
    for patient, figures in found:
        stacks.setdefault(patient, []).append(figures)
    names = {structure: list(one[structure]) for members in stacks.values() for one in members for structure in one}
    return [
        {
            structure: _means([one[structure] for one in members if structure in one], kinds)
            for structure, kinds in names.items()
        }
        for members in stacks.values()
    ]


def _means(stacks: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    return {name: known_mean([one[name] for one in stacks]) for name in names}


def known_mean(values: Sequence[float]) -> float:
    """The mean of the values that exist, NaN if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap 95 % interval of the mean of per-patient values; one patient has none."""
    if len(values) < 2:
        return None
    result = stats.bootstrap((np.asarray(values),), np.mean, rng=np.random.default_rng(seed), method="percentile")
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, standard deviation and number of the per-patient values that exist, and the mean's 95 % interval.

    None where no value exists; "low" and "high" are missing where there is no interval.
    """
    known = np.asarray(values, float)[np.isfinite(values)]
    if not known.size:
        return None
    cell = {"mean": float(known.mean()), "sd": float(known.std()), "count": known.size}
    limits = interval(known.tolist())
    return cell if limits is None else cell | {"low": limits[0], "high": limits[1]}


def compared(
    values: Sequence[float], linear: Sequence[float], calid_plus: Sequence[float] | None = None
) -> dict[str, float | None] | None:
    """One cell of a table: the `summary` of per-patient values, and p against other systems' values."""
    cell = summary(values)
    if cell is None:
        return None
    tests = {"p_against_linear": paired_p(values, linear)}
    if calid_plus is not None:
        tests["p_against_calid_plus"] = paired_p(values, calid_plus)
    return {**cell, **tests}


def paired_p(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided Wilcoxon signed-rank test of per-patient values; None where there are too few or no differences."""
    difference = np.asarray(values, float) - np.asarray(others, float)
    difference = difference[np.isfinite(difference)]
    if len(difference) < 6 or not difference.any():
        return None
    return float(stats.wilcoxon(difference).pvalue)
