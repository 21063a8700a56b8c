"""The networks of DiffAE (Preechakul et al. 2022): a diffusion U-Net in pixel space and the encoder of z_sem.

With `morphology_channels` they are DMCVR's (He et al. 2023): the deepest feature map l_mor of a segmenter joins the
U-Net's way down where both have the same resolution. Pixels are in [-1, 1].

| here     | papers                     | meaning                                                       |
|----------|----------------------------|---------------------------------------------------------------|
| z_sem    | z_sem, l_sem               | semantic code, one vector per image                           |
| l_mor    | l_mor                      | morphology map, (channels, rows / 16, columns / 16) per image |
| x_t, x_T | x_t, x_T                   | noisy pixels; x_T is the stochastic code                      |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from calid.heart.medformer import NUM_SCALES
from calid.method.networks import zeroed
from monai.networks.blocks import SpatialAttentionBlock
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn


@dataclass(frozen=True)
class DiffAEConfig:
    """Widths and depths; the defaults are small enough to train on a processor core.

    Args:
        channels: feature maps per level of the U-Net, finest first; every further level halves the image.
        patch: edge of the squares of pixels that both networks read (and the U-Net writes) as channels. The authors
            take 1; 2 is four times cheaper, and the noise is still predicted pixel by pixel.
        encoder_channels: feature maps per level of the semantic encoder.
        num_res_blocks: residual blocks per level, one more on the U-Net's way up.
        attention_levels: levels with self-attention after every residual block.
        embedding: length of z_sem and of the time embedding.
        dropout: share of the features that training drops, inside the residual blocks.
        norm_num_groups: groups of every group norm; divides all channels.
        morphology_channels: channels of l_mor; 0 builds DiffAE, which has none.
        morphology_width: channels in which l_mor joins the U-Net.
    """

    channels: tuple[int, ...] = (24, 32, 32, 40)
    patch: int = 2
    encoder_channels: tuple[int, ...] = (16, 24, 32, 32)
    num_res_blocks: int = 1
    attention_levels: tuple[int, ...] = (2,)
    embedding: int = 64
    dropout: float = 0.0
    norm_num_groups: int = 8
    morphology_channels: int = 0
    morphology_width: int = 0

    def __post_init__(self) -> None:
        if self.morphology_channels and not 0 <= self.morphology_level < len(self.channels):
            raise ValueError(f"l_mor joins level {self.morphology_level}, the U-Net has {len(self.channels)}")
        if bool(self.morphology_channels) != bool(self.morphology_width):
            raise ValueError("morphology_channels and morphology_width go together")

    @property
    def morphology_level(self) -> int:
        """The level whose features have the resolution of a MedFormer's deepest ones, 1/16 of the image."""
        return NUM_SCALES - int(math.log2(self.patch))

    @property
    def multiple(self) -> int:
        """Rows and columns are multiples of this."""
        return max(self.patch * 2 ** (len(self.channels) - 1), 2**NUM_SCALES)


PAPER_DIFFAE = DiffAEConfig(
    patch=1,
    channels=(128, 128, 256, 384, 512),
    encoder_channels=(128, 128, 256, 384, 512, 512),
    num_res_blocks=2,
    attention_levels=(3,),
    embedding=512,
    dropout=0.1,
    norm_num_groups=32,
)
"""The authors' FFHQ-128 model, which CaLID's paper takes: 103.9 M parameters in the U-Net, 47.8 M in the encoder."""

PAPER_DMCVR = DiffAEConfig(
    patch=1,
    channels=(128, 128, 256, 256, 512, 512),
    encoder_channels=(128, 128, 256, 256, 512, 512, 512),
    num_res_blocks=2,
    attention_levels=(4,),
    embedding=512,
    dropout=0.1,
    norm_num_groups=32,
    morphology_channels=512,
    morphology_width=512,
)
"""DMCVR's model for 256 x 256 images; it takes any multiple of 32."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """What a residual block is told: SiLU of the time embedding and of z_sem, (N, embedding) each."""

    time: Tensor
    z_sem: Tensor


class ResBlock(nn.Module):
    """h = conv(SiLU(norm(x))), then conv(SiLU((norm(h) (1 + scale_t) + shift_t) (1 + scale_z))), added to x.

    scale_t and shift_t come from the time, scale_z from z_sem (DiffAE, Eq. 7). Resampling happens before the first
    convolution. The last convolution starts at zero, so that a new block changes nothing.

    Args:
        inputs, outputs: numbers of channels.
        config: configuration of the network.
        conditioned: False in the semantic encoder, whose blocks are told nothing.
        resample: 0.5 halves rows and columns, 2 doubles them.
    """

    def __init__(
        self, inputs: int, outputs: int, config: DiffAEConfig, *, conditioned: bool, resample: float = 1
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_norm = nn.GroupNorm(config.norm_num_groups, inputs)
        self.in_conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(config.embedding, 2 * outputs) if conditioned else None
        self.z_sem = nn.Linear(config.embedding, outputs) if conditioned else None
        self.out_norm = nn.GroupNorm(config.norm_num_groups, outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.out_conv = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, conditions: Conditions | None) -> Tensor:
        """(N, C, Y, X) -> (N, C', rY, rX), r being `resample`."""
        h = self.in_conv(self._resampled(F.silu(self.in_norm(x))))
        h = self._modulated(self.out_norm(h), conditions)
        return self.skip(self._resampled(x)) + self.out_conv(self.dropout(F.silu(h)))

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == 1:
            return x
        return F.avg_pool2d(x, 2) if self.resample < 1 else F.interpolate(x, scale_factor=2.0, mode="nearest")

    def _modulated(self, h: Tensor, conditions: Conditions | None) -> Tensor:
        if conditions is None or self.time is None or self.z_sem is None:
            return h
        scale_t, shift_t = self.time(conditions.time).chunk(2, dim=1)
        by_semantics = 1 + self.z_sem(conditions.z_sem)
        scale, shift = (1 + scale_t) * by_semantics, shift_t * by_semantics
        return torch.addcmul(shift[..., None, None], h, scale[..., None, None])


class AttendedBlock(nn.Module):
    """A residual block and, where there is any, self-attention over its pixels (one head)."""

    def __init__(self, inputs: int, outputs: int, config: DiffAEConfig, *, conditioned: bool, attention: bool) -> None:
        super().__init__()
        self.block = ResBlock(inputs, outputs, config, conditioned=conditioned)
        self.attention = (
            SpatialAttentionBlock(2, outputs, norm_num_groups=config.norm_num_groups, use_flash_attention=True)
            if attention
            else nn.Identity()
        )

    def forward(self, x: Tensor, conditions: Conditions | None) -> Tensor:
        """(N, C, Y, X) -> (N, C', Y, X)."""
        return self.attention(self.block(x, conditions))


class WayDown(nn.Module):
    """The first half of a U-Net with its middle; the semantic encoder is nothing else.

    Args:
        channels: feature maps per level.
        config: configuration of the network.
        conditioned: whether its blocks are told time and z_sem.
        joins: level -> channels that are concatenated to the features which leave it.
    """

    def __init__(
        self, channels: Sequence[int], config: DiffAEConfig, *, conditioned: bool, joins: dict[int, int] | None = None
    ) -> None:
        super().__init__()
        step = partial(AttendedBlock, config=config, conditioned=conditioned)
        leaving = [width + (joins or {}).get(level, 0) for level, width in enumerate(channels)]
        self.conv_in = nn.Sequential(
            nn.PixelUnshuffle(config.patch), nn.Conv2d(config.patch**2, channels[0], 3, padding=1)
        )
        self.levels = nn.ModuleList()
        for level, width in enumerate(channels):
            widths = [channels[max(level - 1, 0)]] + [width] * config.num_res_blocks
            attention = level in config.attention_levels
            self.levels.append(nn.ModuleList(step(a, b, attention=attention) for a, b in pairwise(widths)))
        self.halve = nn.ModuleList(
            ResBlock(entering, width, config, conditioned=conditioned, resample=0.5)
            for entering, width in zip(leaving[:-1], channels[:-1], strict=True)
        )
        self.middle = step(leaving[-1], channels[-1], attention=True)
        self.last = ResBlock(channels[-1], channels[-1], config, conditioned=conditioned)

    def forward(
        self, x: Tensor, conditions: Conditions | None = None, joining: dict[int, Tensor] | None = None
    ) -> list[Tensor]:
        """What the way up picks up again, finest first, then what leaves the middle."""
        passed = [self.conv_in(x)]
        for level, steps in enumerate(self.levels):
            for step in cast(nn.ModuleList, steps):
                passed.append(step(passed[-1], conditions))
            x = passed[-1]
            if joining and level in joining:
                x = torch.cat([x, joining[level]], dim=1)
            if level < len(self.halve):
                passed.append(self.halve[level](x, conditions))
        return [*passed, self.last(self.middle(x, conditions), conditions)]


class SemanticEncoder(nn.Module):
    """E of DiffAE: images (N, 1, Y, X) -> z_sem (N, embedding), from the mean of its deepest features."""

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        width = config.encoder_channels[-1]
        self.down = WayDown(config.encoder_channels, config, conditioned=False)
        self.norm = nn.GroupNorm(config.norm_num_groups, width)
        self.out = nn.Linear(width, config.embedding)

    def forward(self, images: Tensor) -> Tensor:
        """z_sem (N, embedding) of images (N, 1, Y, X) in [-1, 1]."""
        features = self.down(images)[-1]
        return self.out(F.silu(self.norm(features)).mean(dim=(2, 3)))


class WayUp(nn.Module):
    """The second half of the U-Net: one residual block for everything the way down passed on."""

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        step = partial(AttendedBlock, config=config, conditioned=True)
        self.levels, self.expand = nn.ModuleList(), nn.ModuleList()
        width = config.channels[-1]
        for level in reversed(range(len(config.channels))):
            wide = config.channels[level]
            skips = [wide] * config.num_res_blocks + [config.channels[max(level - 1, 0)]]
            steps = nn.ModuleList()
            for skip in skips:
                steps.append(step(width + skip, wide, attention=level in config.attention_levels))
                width = wide
            self.levels.append(steps)
            if level > 0:
                self.expand.append(ResBlock(wide, wide, config, conditioned=True, resample=2))

    def forward(self, x: Tensor, passed: list[Tensor], conditions: Conditions) -> Tensor:
        """Features (N, C, Y, X) at the resolution of the finest level.

        Args:
            x: what leaves the middle.
            passed: what the way down passed on, finest first; the last is taken up first.
            conditions: time and z_sem.
        """
        remaining = list(passed)
        for level, steps in enumerate(self.levels):
            for step in cast(nn.ModuleList, steps):
                x = step(torch.cat([x, remaining.pop()], dim=1), conditions)
            if level < len(self.expand):
                x = self.expand[level](x, conditions)
        return x


class ConditionalUNet(nn.Module):
    """epsilon_theta(x_t, t, z_sem[, l_mor]); rows and columns are multiples of 2 ** (levels - 1)."""

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.width = width
        self.embed_time = nn.Sequential(
            nn.Linear(width, config.embedding), nn.SiLU(), nn.Linear(config.embedding, config.embedding)
        )
        self.morphology_level = config.morphology_level
        joins = {self.morphology_level: config.morphology_width}
        self.embed_morphology = (
            nn.Conv2d(config.morphology_channels, config.morphology_width, 3, padding=1)
            if config.morphology_channels
            else None
        )
        self.down = WayDown(config.channels, config, conditioned=True, joins=joins)
        self.up = WayUp(config)
        self.norm = nn.GroupNorm(config.norm_num_groups, width)
        self.out = nn.Sequential(zeroed(nn.Conv2d(width, config.patch**2, 3, padding=1)), nn.PixelShuffle(config.patch))

    def forward(self, x_t: Tensor, t: Tensor, z_sem: Tensor, l_mor: Tensor | None = None) -> Tensor:
        """The noise in x_t (N, 1, Y, X) at the times t (N,)."""
        time = self.embed_time(get_timestep_embedding(t, self.width))
        conditions = Conditions(F.silu(time), F.silu(z_sem))
        joining = {}
        if self.embed_morphology is not None:
            if l_mor is None:
                raise ValueError("a network with morphology channels needs l_mor")
            joining[self.morphology_level] = self.embed_morphology(l_mor)
        *passed, x = self.down(x_t, conditions, joining)
        return self.out(F.silu(self.norm(self.up(x, passed, conditions))))


class DiffAENetwork(nn.Module):
    """The semantic encoder and the U-Net, which are trained together."""

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SemanticEncoder(config)
        self.unet = ConditionalUNet(config)

    def encode(self, images: Tensor) -> Tensor:
        """z_sem (N, embedding) of images (N, 1, Y, X)."""
        return self.encoder(images)

    def forward(self, x_t: Tensor, t: Tensor, z_sem: Tensor, l_mor: Tensor | None = None) -> Tensor:
        """The noise in x_t."""
        return self.unet(x_t, t, z_sem, l_mor)
