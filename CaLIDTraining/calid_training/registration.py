"""Registration of two slices by demons."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

SHRINK_FACTORS = (4, 2, 1)
"""Levels, coarse to fine."""


def demons_field(
    demons: Any, fixed: np.ndarray, moving: np.ndarray, *, iterations: int, sigma_pixels: float
) -> np.ndarray:
    """The field u with moving(x + u(x)) ~ fixed(x): (2, Y, X) pixels, columns first.

    Args:
        demons: one of SimpleITK's demons filters; its settings are replaced.
        fixed, moving: images (Y, X).
        iterations: iterations on each level.
        sigma_pixels: standard deviation of the Gaussian that smooths the displacements after every iteration.
    """
    images = [sitk.GetImageFromArray(np.asarray(x, np.float32)) for x in (fixed, moving)]
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(sigma_pixels)
    coarsest, *finer = ([_shrunk(image, factor) for image in images] for factor in SHRINK_FACTORS)
    field = demons.Execute(*coarsest)
    for pair in finer:
        field = demons.Execute(*pair, sitk.Resample(field, pair[0]))
    return np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    """The image smoothed and with every factor-th pixel; origin and spacing follow."""
    return image if factor == 1 else sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, factor / 2), [factor] * 2)
