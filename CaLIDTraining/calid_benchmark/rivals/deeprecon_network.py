"""The networks of DeepRecon: StyleGAN2 with labels, and the encoder that finds codes of real slices in its W+ space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.blocks import ResidualUnit
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn

from calid_benchmark.rivals.stylegan import FIRST_SIZE, EqualLinear, Generator, GeneratorConfig

COMPACT_GENERATOR = GeneratorConfig(channels=(64, 64, 64, 48, 24, 8), style_width=64)
"""Small enough to take 1000 steps for every slice of a study on a CPU."""
PYRAMID_LEVELS = 3
FIRST_RATE = 0.1
"""Scale of the encoder's first answers: training starts close to the average code."""


@dataclass(frozen=True)
class EncoderConfig:
    """A residual encoder with a feature pyramid (pSp; Richardson et al. 2021); the defaults are the paper size's.

    Args:
        channels: after each halving of the image, finest first; the last is 4 x 4.
        pyramid_channels: channels of the three coarsest levels, from which the codes are read.
        groups: number of groups of every group norm.
    """

    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    pyramid_channels: int = 256
    groups: int = 8


COMPACT_ENCODER = EncoderConfig(channels=(16, 32, 48, 64, 64), pyramid_channels=16)


class Encoder(nn.Module):
    """Images -> codes in W+, relative to the average code.

    Coarse styles are read from the 4 x 4 level of the pyramid, the middle ones from 8 x 8, the fine ones from 16 x 16.
    """

    def __init__(self, config: EncoderConfig, generator: GeneratorConfig) -> None:
        super().__init__()
        if len(config.channels) != len(generator.channels) - 1:
            raise ValueError(
                f"the encoder halves {len(config.channels)} times, but from {generator.size} to {FIRST_SIZE} pixels "
                f"it takes {len(generator.channels) - 1}: give as many channels"
            )
        norm = ("group", {"num_groups": config.groups})
        widths = (1, *config.channels)
        self.stages = nn.ModuleList(
            ResidualUnit(2, inputs, outputs, strides=2, subunits=1, act="leakyrelu", norm=norm)
            for inputs, outputs in zip(widths, config.channels, strict=False)
        )
        self.pyramid = FeaturePyramidNetwork(2, list(config.channels[-PYRAMID_LEVELS:]), config.pyramid_channels)
        self.pool = nn.AdaptiveAvgPool2d(FIRST_SIZE)
        self.shares = _shares(generator.style_count)
        self.style_width = generator.style_width
        read = config.pyramid_channels * FIRST_SIZE**2
        self.heads = nn.ModuleList(EqualLinear(read, share * generator.style_width) for share in self.shares)

    def forward(self, images: Tensor) -> Tensor:
        """Codes (N, S, W), relative to the average, of images (N, 1, size, size) in [-1, 1]."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        levels = self.pyramid({str(i): x for i, x in enumerate(features[-PYRAMID_LEVELS:])})
        coarse_first = list(levels.values())[::-1]
        read = [head(self.pool(x).flatten(1)) for head, x in zip(self.heads, coarse_first, strict=True)]
        return FIRST_RATE * torch.cat([x.unflatten(1, (-1, self.style_width)) for x in read], dim=1)


def _shares(count: int) -> list[int]:
    """How many styles each level of the pyramid gives, coarse ones first."""
    return [count // PYRAMID_LEVELS + (level < count % PYRAMID_LEVELS) for level in range(PYRAMID_LEVELS)]


class DeepReconNetwork(nn.Module):
    """Generator, encoder and the average of w, which the encoder's answers are relative to."""

    def __init__(self, generator: GeneratorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.generator = Generator(generator)
        self.encoder = Encoder(encoder, generator)
        self.average: Tensor
        self.register_buffer("average", torch.zeros(generator.style_width))

    @property
    def size(self) -> int:
        """Rows and columns of the images it takes and makes."""
        return self.generator.config.size

    def encode(self, images: Tensor) -> Tensor:
        """Codes (N, S, W) of images (N, 1, size, size) in [-1, 1]."""
        return self.average + self.encoder(images)
