"""The networks of CaLID (paper, Section III-A and Fig. 1): E and D, eps_theta, tau1 and tau2, from MONAI's parts.

One code for both of the paper's models: `spatial_dims` 2 reads slices, 3 reads slices over time (2D+T). Pixels are in
[-1, 1]; latents are normalised per channel to zero mean and unit variance (`LatentSpace`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from torch import nn

Prediction = Literal["epsilon", "velocity"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """E and D: a KL autoencoder, f = 2^(levels - 1), convolutions only ("Implementation Details").

    Args:
        spatial_dims: 2 for slices, 3 for slices over time.
        channels: feature maps per level, finest first; the paper leaves them open.
        latent_channels: channels of z.
        num_res_blocks: residual blocks per level.
        norm_num_groups: groups of every group norm; divides all channels.
    """

    spatial_dims: int = 2
    channels: tuple[int, ...] = (32, 64, 128)
    latent_channels: int = 4
    num_res_blocks: int = 1
    norm_num_groups: int = 16

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class DenoiserConfig:
    """eps_theta, tau1 and tau2.

    Args:
        spatial_dims: 2 or 3, as the autoencoder's.
        latent_channels: as the autoencoder's.
        channels: feature maps per level of eps_theta and tau2, finest first.
        attention: levels of eps_theta with self-attention; the paper does not say.
        condition_attention: levels of tau2 with self-attention; all of them in the paper.
        tau1_channels: feature maps per level of tau1; as many levels as the autoencoder has.
        num_res_blocks: residual blocks per level.
        head_channels: channels of one attention head.
        norm_num_groups: groups of every group norm.
        prediction: "epsilon" is the paper's target (Eq. 5); "velocity" (Salimans and Ho 2022) stays well-conditioned
            at t = T, where it is used with a schedule of zero terminal signal.
    """

    spatial_dims: int = 2
    latent_channels: int = 4
    channels: tuple[int, ...] = (32, 64, 128)
    attention: tuple[bool, ...] = (False, True, True)
    condition_attention: tuple[bool, ...] = (False, True, True)
    tau1_channels: tuple[int, ...] = (16, 32, 64)
    num_res_blocks: int = 2
    head_channels: int = 32
    norm_num_groups: int = 32
    prediction: Prediction = "velocity"


class Autoencoder(AutoencoderKL):
    """E and D of the paper: images (N, 1, *size) in [-1, 1] <-> latents (N, C, *size / f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(
            spatial_dims=config.spatial_dims,
            in_channels=1,
            out_channels=1,
            num_res_blocks=config.num_res_blocks,
            channels=config.channels,
            attention_levels=(False,) * len(config.channels),
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.config = config


class LatentSpace(nn.Module):
    """Frozen E and D with the normalisation that gives each latent channel zero mean and unit variance.

    Args:
        autoencoder: trained E and D.
        mean, std: (C,) moments of E's posterior means over the training images.
    """

    def __init__(self, autoencoder: Autoencoder, *, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        shape = (1, -1) + (1,) * autoencoder.config.spatial_dims
        self.register_buffer("mean", mean.reshape(shape).clone())
        self.register_buffer("std", std.reshape(shape).clone())

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior mean of E, normalised: (N, 1, *size) -> (N, C, *size / f)."""
        posterior_mean, _ = self.autoencoder.encode(images)
        return (posterior_mean - self.mean) / self.std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """D of the denormalised latents: (N, C, *size / f) -> (N, 1, *size)."""
        return self.autoencoder.decode(latents * self.std + self.mean)


class ConditionEncoder(nn.Sequential):
    """tau1: the two neighbors (N, 2, *size) -> z_c (N, channels[0] of tau2, *size / f).

    A light hierarchy of convolutional ResBlocks that ends in a zero convolution, so that training starts from a
    denoiser without condition.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        dims, widths = config.spatial_dims, config.tau1_channels
        layers: list[nn.Module] = [Convolution(dims, 2, widths[0], kernel_size=3, conv_only=True)]
        for level, width in enumerate(widths):
            previous = widths[max(level - 1, 0)]
            if level > 0:
                layers.append(AEKLDownsample(dims, previous))
            layers.append(AEKLResBlock(dims, previous, norm_num_groups=16, norm_eps=1e-6, out_channels=width))
        out = Convolution(dims, widths[-1], config.channels[0], kernel_size=3, conv_only=True)
        for parameter in out.parameters():
            nn.init.zeros_(parameter)
        super().__init__(*layers, nn.SiLU(), out)


class Denoiser(nn.Module):
    """eps_theta with tau1 and tau2, trained jointly in one stage (Eq. 5).

    tau1 does not depend on z_t or t, so z_c is computed once per gap (`condition`) and reused at every step.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        shared = {
            "spatial_dims": config.spatial_dims,
            "in_channels": config.latent_channels,
            "num_res_blocks": config.num_res_blocks,
            "channels": config.channels,
            "num_head_channels": config.head_channels,
            "norm_num_groups": config.norm_num_groups,
            "use_flash_attention": True,
        }
        self.unet = DiffusionModelUNet(out_channels=config.latent_channels, attention_levels=config.attention, **shared)
        self.tau1 = ConditionEncoder(config)
        self.tau2 = ControlNet(attention_levels=config.condition_attention, **shared)
        self.tau2.controlnet_cond_embedding = nn.Identity()  # z_c comes in ready, see the class docstring

    def condition(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """z_c = tau1(s(n-1), s(n+1)) of images (N, 1, *size)."""
        return self.tau1(torch.cat([before, after], dim=1))

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, z_c: torch.Tensor) -> torch.Tensor:
        """Predict epsilon or the velocity of z_t (N, C, *size / f) at the times t (N,), given z_c."""
        skips, middle = self.tau2(z_t, t, z_c)
        return self.unet(z_t, t, down_block_additional_residuals=skips, mid_block_additional_residual=middle)
