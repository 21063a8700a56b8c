"""Controls at equal sharpness: what a learned part must beat before it may claim anything.

A blur alone gains PSNR, and a gain of fine detail alone gains LPIPS and feature distances. So a learned row is held
beside the row without the learned part after this one has been made exactly as sharp: blurred where it is sharper,
its fine detail made stronger where it is not. One number is fitted for a whole set of slices, from the sharpness of the
made slices alone; the truth is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import brentq

from calid_benchmark.metrics import gradient_magnitude

DETAIL_SIGMA_PIXELS = 3.0
"""Fine detail is what a Gaussian of this standard deviation takes away, as in the engine's texture gain."""
MAX_BLUR_PIXELS, MAX_GAIN = 8.0, 16.0


@dataclass(frozen=True)
class Filter:
    """What makes images as sharp as others.

    Args:
        blur_pixels: standard deviation of a Gaussian; 0 leaves them.
        gain: factor of the fine detail; 1 leaves them.
    """

    blur_pixels: float = 0.0
    gain: float = 1.0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (N, Y, X) in [0, 1], filtered and clipped to [0, 1]."""
        if self.blur_pixels:
            return _smoothed(images, self.blur_pixels)
        detail = images - _smoothed(images, DETAIL_SIGMA_PIXELS)
        return (images + (self.gain - 1) * detail).clip(0, 1).astype(np.float32)

    def __str__(self) -> str:
        """In words, such as "blurred by 0.45 px"."""
        if self.blur_pixels:
            return f"blurred by {self.blur_pixels:.2f} px"
        return f"fine detail x {self.gain:.2f}"


def _smoothed(images: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(np.asarray(images, np.float32), (0, sigma, sigma), mode="nearest")


def as_sharp_as(images: np.ndarray, others: np.ndarray) -> Filter:
    """The filter after which images have the mean gradient magnitude of others.

    Args:
        images: (N, Y, X) in [0, 1], the control's.
        others: (M, Y, X) in [0, 1], the learned row's.

    Raises:
        ValueError: if no blur or gain reaches it, because the images have no detail or the others have none.
    """
    target = _sharpness(others)

    def excess(filter_: Filter) -> float:
        return _sharpness(filter_(images)) - target

    if abs(excess(Filter())) < 1e-6:
        return Filter()
    try:
        if excess(Filter()) > 0:
            blur = brentq(lambda sigma: excess(Filter(blur_pixels=sigma)), 1e-3, MAX_BLUR_PIXELS, xtol=1e-3)
            return Filter(blur_pixels=float(blur))
        return Filter(gain=float(brentq(lambda gain: excess(Filter(gain=gain)), 1.0, MAX_GAIN, xtol=1e-3)))
    except ValueError as error:
        raise ValueError(
            f"no blur up to {MAX_BLUR_PIXELS:.0f} px and no gain up to {MAX_GAIN:.0f} gives these images the others' "
            f"sharpness ({_sharpness(images):.4f} against {target:.4f})"
        ) from error


def _sharpness(images: np.ndarray) -> float:
    return float(np.mean(gradient_magnitude(images)))
