"""A code of what is new: E and D that know the neighbors, so that a latent says only what these do not.

In the paper a latent stands for a whole slice, and an interpolated slice pays for being coded: what the neighbors show
plainly has to pass through the latent too. Here D sees both neighbors, brought half-way (`motion.py`), at every scale
and in pixels. The code is what it cannot know from them. Differs from the paper, whose E and D see one slice at a
time; the diffusion then works on a few hundred numbers a slice instead of four thousand.

E(s_n, s_(n-1), s_(n+1)) -> code, trained towards N(0, 1) by its KL divergence; D(code, s_(n-1), s_(n+1)) -> s_n.
A code of zeros asks for what the neighbors alone suggest.

Shapes: images are (N, 1, H, W) in [-1, 1], codes (N, C, H / 8, W / 8), gaps (N,) in mm between both neighbors. Codes
are in units of the deviation that each channel has over the training slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from calid.method.networks import zeroed
from calid.method.texture import blurred

CELL = 2  # pixels of a cell that the finest level reads as one place
CELL_SIGMA_PIXELS = 2.0  # over which an alternation counts as a pattern of cells
GAP_UNIT_MM = 20.0  # two gaps of a common short-axis stack


@dataclass(frozen=True)
class CodecConfig:
    """E and D.

    Args:
        channels: feature maps per level, finest (half of the image's size) first.
        code_channels: channels of the code.
        num_res_blocks: residual blocks on each level, finest first.
        norm_num_groups: groups of every group norm; divides all channels.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    code_channels: int = 4
    num_res_blocks: tuple[int, ...] = (1, 2, 2)
    norm_num_groups: int = 8

    @property
    def downsampling(self) -> int:
        """f: pixels of an image for one of its code, along each axis."""
        return CELL * 2 ** (len(self.channels) - 1)


class Sight(NamedTuple):
    """What D sees of both neighbors.

    Args:
        images: (N, 2, H, W), before and after, brought half-way.
        features: mean and absolute difference of both neighbors' features at every level, finest first.
    """

    images: torch.Tensor
    features: tuple[torch.Tensor, ...]


class Residual(nn.Module):
    """Two convolutions whose result is added to their input; untrained, they add nothing.

    Only what is added was normed, so that the brightness of what is to be an image again passes by. Between blocks
    nothing but linear layers: what a level adds can always reach the image, and a code its place.
    """

    def __init__(self, channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zeroed(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Pyramid(nn.Module):
    """Features of images (N, C, H, W) at H / 2, H / 4, ...: one tensor per level."""

    def __init__(self, in_channels: int, config: CodecConfig) -> None:
        super().__init__()
        widths = config.channels
        self.enter = nn.Conv2d(in_channels * CELL**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.levels = _levels(config)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, C, H, W) -> features (N, C_i, H / 2^(i + 1), W / 2^(i + 1)) of each level i, finest first."""
        found = [self.levels[0](self.enter(F.pixel_unshuffle(images, CELL)))]
        for down, level in zip(self.down, self.levels[1:], strict=True):
            found.append(level(down(found[-1])))
        return found


class Decoder(nn.Module):
    """D: from the code and what is seen of the neighbors to the slice between.

    Its answer is the mean of the neighbors, plus a share of their difference (so that a place can take after one of
    them, with its texture, and not after the blur of both), plus what is in neither. Untrained it is their mean.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        widths = config.channels
        self.code = nn.Conv2d(config.code_channels, widths[-1], 3, padding=1)
        self.seen = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths)
        self.levels = _levels(config)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.pixels = nn.Conv2d(widths[0] // CELL**2 + 2, 16, 3, padding=1)
        self.out = zeroed(nn.Conv2d(16, 2, 3, padding=1))

    def forward(self, code: torch.Tensor, sight: Sight) -> torch.Tensor:
        """A code (N, code_channels, H / f, W / f) and both neighbors -> the slice between (N, 1, H, W)."""
        x = self.levels[-1](self.seen[-1](sight.features[-1]) + self.code(code))
        for up, seen, level, features in reversed(
            list(zip(self.up, self.seen[:-1], self.levels[:-1], sight.features[:-1], strict=True))
        ):
            x = level(F.interpolate(up(x), scale_factor=2, mode="nearest") + seen(features))
        fine = torch.cat([F.pixel_shuffle(x, CELL), sight.images], dim=1)
        share, new = self.out(F.silu(self.pixels(fine))).float().split(1, dim=1)
        before, after = sight.images.float().split(1, dim=1)
        return (before + after) / 2 + without_cells(share * (before - after) / 2 + new)


class Codec(nn.Module):
    """E and D, with the part that looks at the neighbors.

    `scale` is the deviation of E's means per channel, one until it has been measured.
    """

    scale: torch.Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("scale", torch.ones(1, config.code_channels, 1, 1))
        self.look = Pyramid(2, config)  # of a slice and the gap
        self.encoder = Pyramid(3, config)  # of how the slice between differs from their mean, and of both
        self.posterior = nn.Conv2d(config.channels[-1], 2 * config.code_channels, 3, padding=1)
        self.decoder = Decoder(config)

    def code_shape(self, images: torch.Tensor) -> torch.Size:
        """Of the codes of images (N, 1, H, W)."""
        rows, columns = (size // self.config.downsampling for size in images.shape[-2:])
        return torch.Size((len(images), self.config.code_channels, rows, columns))

    def see(self, before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor) -> Sight:
        """What there is to see of both neighbors, brought half-way; their order changes only `images`."""
        gap = (gap_mm / GAP_UNIT_MM).reshape(-1, 1, 1, 1).expand_as(before)
        pairs = self.look(torch.cat([torch.cat([before, gap], dim=1), torch.cat([after, gap], dim=1)]))
        return Sight(torch.cat([before, after], dim=1), tuple(_of_both(x) for x in pairs))

    def encode(self, images: torch.Tensor, sight: Sight) -> torch.Tensor:
        """The code of the slices between: E's mean."""
        return self.posterior_of(images, sight)[0] / self.scale

    def posterior_of(self, images: torch.Tensor, sight: Sight) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of E's answer, not divided by `scale`; trained towards N(0, 1)."""
        new = images - sight.images.mean(dim=1, keepdim=True)
        last = self.encoder(torch.cat([new, sight.images], dim=1))[-1]
        mean, log_sigma = self.posterior(last).float().chunk(2, dim=1)
        return mean, (log_sigma - 3).clamp(-6, 2).exp()

    def decode(self, code: torch.Tensor, sight: Sight) -> torch.Tensor:
        """The slices between; values a little beyond [-1, 1] are possible."""
        return self.decoder(code * self.scale, sight)


def without_cells(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, H, W) without what alternates from pixel to pixel, along rows or columns, over a wider area.

    D works on cells of two pixels, and its cheapest texture is a pattern of that period: along rows it has six times
    the power that neighboring frequencies have. Slices have no more there than elsewhere.
    """
    for axis in (-2, -1):
        signs = 1 - 2 * (torch.arange(images.shape[axis], device=images.device) % 2)
        signs = signs.reshape((-1, 1) if axis == -2 else (1, -1)).to(images.dtype)
        images = images - signs * blurred(signs * images, CELL_SIGMA_PIXELS)
    return images


def _levels(config: CodecConfig) -> nn.ModuleList:
    """The residual blocks of every level."""
    return nn.ModuleList(
        nn.Sequential(*(Residual(width, config.norm_num_groups) for _ in range(count)))
        for width, count in zip(config.channels, config.num_res_blocks, strict=True)
    )


def _of_both(features: torch.Tensor) -> torch.Tensor:
    """(2 N, C, ...) features of all before, then all after -> (N, 2 C, ...), the same for either order."""
    before, after = features.chunk(2)
    return torch.cat([(before + after) / 2, (before - after).abs()], dim=1)
