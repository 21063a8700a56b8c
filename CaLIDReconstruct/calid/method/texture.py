"""Two gains that a finished slice gets from its neighbors: smooth brightness and fine texture.

Neither is in the paper, which decodes z_0 and is done. All images are (N, 1, H, W) in [-1, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter

BRIGHTNESS_SIGMA_PIXELS = 10.0  # coarser than the ventricles' walls, finer than the coils' shading
BRIGHTNESS_FLOOR = 0.02  # of the intensity window: air has no brightness to compare
GAIN_LIMITS = (0.7, 1.4)

TEXTURE_SIGMA_PIXELS = 3.0  # texture is what is finer
TEXTURE_LIMITS = (1.0, 2.0)


def with_brightness_of(reference: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Give images the smooth brightness of a reference; their detail stays.

    Draws differ in overall brightness more than neighboring slices do, which shows as stripes in long-axis cuts. A
    smooth gain removes that.
    """
    shades = (blurred((x.clamp(-1, 1) + 1) / 2, BRIGHTNESS_SIGMA_PIXELS) for x in (reference, images))
    wanted, had = (shade + BRIGHTNESS_FLOOR for shade in shades)
    return (images + 1) * (wanted / had).clamp(*GAIN_LIMITS) - 1


def with_texture_of(before: torch.Tensor, after: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Make the fine texture of images as strong as that of their neighbors; a mean of both has less."""
    fine = [x - blurred(x, TEXTURE_SIGMA_PIXELS) for x in (before, after, images)]
    strengths = [x.abs().mean(dim=(1, 2, 3), keepdim=True) for x in fine]
    gain = (strengths[0] + strengths[1]) / 2 / strengths[2].clamp_min(1e-6)
    return images + (gain.clamp(*TEXTURE_LIMITS) - 1) * fine[2]


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Images under a Gaussian; beyond its edge an image goes on as its nearest pixel."""
    margin = max(round(3 * sigma), 1)
    padded = F.pad(images, [margin] * 4, mode="replicate")
    with torch.autocast(images.device.type, enabled=False):  # half precision would round what is fine
        return GaussianFilter(2, sigma).to(images.device)(padded)[..., margin:-margin, margin:-margin]
