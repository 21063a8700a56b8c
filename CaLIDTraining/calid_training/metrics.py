"""One documented definition of every figure; images are float32 (N, Y, X) in [0, 1] unless said otherwise.

PSNR and SSIM are scikit-image's with data_range 1. SSIM is Wang et al.'s: Gaussian window, sigma 1.5, population
covariance. The feature distances use the frozen encoder of this project's own segmenter; they are not LPIPS or FID and
are never called so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import linalg, stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

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

    Features are normalised over channels at every place; squared differences are averaged over places, summed over
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


def interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean of per-patient values."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(np.mean(values)), float(np.mean(values))
    result = stats.bootstrap((np.asarray(values),), np.mean, rng=np.random.default_rng(seed), method="percentile")
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_p(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided Wilcoxon signed-rank test of per-patient values; None where there are too few or no differences."""
    difference = np.asarray(values) - np.asarray(others)
    if len(difference) < 6 or not difference.any():
        return None
    return float(stats.wilcoxon(difference).pvalue)
