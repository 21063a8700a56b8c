"""MedFormer 2D, the segmenter of short-axis slices.

Gao et al. 2022, "A data-scalable Transformer for medical image segmentation", arXiv 2203.00131.

A U-shaped network whose middle scales exchange information through a small *semantic map* (3 x 3 tokens): every pixel
attends to the tokens and every token to the pixels with one score matrix (bidirectional attention), which is linear in
the number of pixels. The maps of the three deepest scales are fused by a small transformer.

Shapes in the comments: B images, C channels, H rows, W columns, h heads, d channels per head, M tokens of a map (9).
`PAPER` has the authors' widths; `COMPACT` is what ships, trained on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_SCALES = 4
"""Times the network halves the image; rows and columns must be multiples of 2 ** NUM_SCALES."""

LAST_MAP = 5
"""Index of the last block (up2) that a semantic map reaches."""


@dataclass(frozen=True)
class MedFormerConfig:
    """Widths and depths of a MedFormer; the defaults are the authors' for ACDC.

    The tuples of eight run down1..down4, up1..up4.

    Args:
        in_channels: image channels.
        num_classes: classes including the background.
        stem_width: channels at full resolution on the way down.
        widths: channels after each of the eight blocks.
        conv_blocks: residual convolution blocks in each.
        attention_blocks: bidirectional attention blocks in each; the last two must be 0, where no map arrives.
        heads: attention heads in each.
        map_size: edge of the semantic map in tokens.
        expansion: hidden channels of a feed-forward block per channel.
        fusion_width: channels in which the three maps meet.
        fusion_heads: attention heads of the map fusion.
        fusion_depth: transformer layers of the map fusion.
    """

    in_channels: int = 1
    num_classes: int = 4
    stem_width: int = 32
    widths: tuple[int, ...] = (64, 128, 256, 512, 256, 128, 64, 32)
    conv_blocks: tuple[int, ...] = (2, 0, 0, 0, 0, 0, 2, 2)
    attention_blocks: tuple[int, ...] = (0, 2, 2, 2, 2, 2, 0, 0)
    heads: tuple[int, ...] = (1, 4, 8, 16, 8, 4, 1, 1)
    map_size: int = 3
    expansion: int = 2
    fusion_width: int = 512
    fusion_heads: int = 16
    fusion_depth: int = 2

    def __post_init__(self) -> None:
        for name in ("widths", "conv_blocks", "attention_blocks", "heads"):
            value = tuple(int(v) for v in getattr(self, name))
            if len(value) != 2 * NUM_SCALES:
                raise ValueError(f"{name} needs {2 * NUM_SCALES} entries, got {len(value)}")
            object.__setattr__(self, name, value)
        for index, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True)):
            if self.attention_blocks[index] and width % heads:
                raise ValueError(f"widths[{index}] = {width} is no multiple of its {heads} heads")
        if self.fusion_width % self.fusion_heads:
            raise ValueError(f"fusion_width {self.fusion_width} is no multiple of {self.fusion_heads} heads")
        if any(self.attention_blocks[LAST_MAP + 1 :]) or self.attention_blocks[0]:
            raise ValueError("down1, up3 and up4 receive no semantic map: their attention_blocks must be 0")


PAPER = MedFormerConfig()
"""The widths of the authors' 2D model; 22 M parameters in this build."""

COMPACT = MedFormerConfig(
    stem_width=16,
    widths=(32, 64, 96, 160, 96, 64, 32, 16),
    conv_blocks=(1, 0, 0, 0, 0, 0, 1, 1),
    attention_blocks=(0, 1, 1, 2, 1, 1, 0, 0),
    heads=(1, 4, 6, 10, 6, 4, 1, 1),
    fusion_width=160,
    fusion_heads=10,
)
"""The shipped model: the same blocks, narrower and fewer, so that a CPU trains it in an hour and runs it in seconds."""


def _conv(inputs: int, outputs: int, size: int = 3, *, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps H and W; biases are left to the norms around it."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


def _separable_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3 x 3, then pointwise."""
    return nn.Sequential(_conv(inputs, inputs, groups=inputs), _conv(inputs, outputs, 1))


class BasicBlock(nn.Module):
    """Pre-activation residual block: twice (norm, ReLU, 3 x 3), with a 1 x 1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, outputs),
            nn.BatchNorm2d(outputs), nn.ReLU(), _conv(outputs, outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return self.shortcut(x) + self.body(x)


class SqueezeExcite(nn.Module):
    """Scale every channel by what the image's mean says about it."""

    def __init__(self, width: int, *, ratio: int = 4) -> None:
        super().__init__()
        hidden = max(width // ratio, 4)
        self.gate = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape; the gate is (B, C, 1, 1)."""
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True))


class FeedForward(nn.Module):
    """Residual MBConv: norm, expand, depthwise 3 x 3, squeeze-excite, project."""

    def __init__(self, width: int, *, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.body = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), _conv(width, hidden, 1),
            nn.BatchNorm2d(hidden), nn.ReLU(), _conv(hidden, hidden, groups=hidden),
            nn.BatchNorm2d(hidden), nn.ReLU(), SqueezeExcite(hidden), _conv(hidden, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.body(x)


class BidirectionalAttention(nn.Module):
    """Pixels attend to the map's tokens and the tokens to the pixels, with one score matrix for both directions.

    S = Q_x Q_m^T / sqrt(d);  x' = softmax_tokens(S) V_m;  m' = softmax_pixels(S)^T V_x.

    Args:
        width: channels of pixels and tokens.
        heads: attention heads.
        updates_tokens: False where nobody reads the tokens afterwards; they are then returned as zeros.
    """

    def __init__(self, width: int, *, heads: int, updates_tokens: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.of_pixels = _separable_conv(width, 2 * width)
        self.of_tokens = _conv(width, 2 * width, 1)
        self.out_pixels = _separable_conv(width, width)
        self.out_tokens = _conv(width, width, 1) if updates_tokens else None

    def _split(self, x: Tensor) -> Tensor:  # (B, 2 C, H, W) -> (2, B, h, d, H * W): queries and values
        batch, channels = x.shape[:2]
        return x.reshape(batch, 2, self.heads, channels // (2 * self.heads), -1).transpose(0, 1)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) and tokens (B, C, m, m) -> what is added to both, in the same shapes."""
        query_x, value_x = self._split(self.of_pixels(pixels))  # (B, h, d, H * W)
        query_m, value_m = self._split(self.of_tokens(tokens))  # (B, h, d, M)
        scores = query_m.transpose(-1, -2) @ query_x * query_x.shape[2] ** -0.5  # (B, h, M, H * W)
        from_tokens = value_m @ scores.softmax(dim=2)  # (B, h, d, H * W)
        new_pixels = self.out_pixels(from_tokens.reshape(pixels.shape))
        if self.out_tokens is None:
            return new_pixels, torch.zeros_like(tokens)
        from_pixels = value_x @ scores.softmax(dim=3).transpose(-1, -2)  # (B, h, d, M)
        return new_pixels, self.out_tokens(from_pixels.reshape(tokens.shape))


class AttentionBlock(nn.Module):
    """Bidirectional attention with residuals to both sides, then a feed-forward for the pixels."""

    def __init__(self, width: int, *, heads: int, expansion: int, updates_tokens: bool = True) -> None:
        super().__init__()
        self.norm_pixels = nn.BatchNorm2d(width)
        self.norm_tokens = nn.BatchNorm2d(width)
        self.attention = BidirectionalAttention(width, heads=heads, updates_tokens=updates_tokens)
        self.feed_forward = FeedForward(width, expansion=expansion)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, C, H, W) and tokens (B, C, m, m) -> both, in the same shapes."""
        pixel_change, token_change = self.attention(self.norm_pixels(pixels), self.norm_tokens(tokens))
        return self.feed_forward(pixels + pixel_change), tokens + token_change


class PatchMerging(nn.Module):
    """Halve H and W: 2 x 2 pixels become channels, then norm and a depthwise-separable convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4 * inputs)
        self.reduce = _separable_conv(4 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / 2, W / 2)."""
        return self.reduce(self.norm(F.pixel_unshuffle(x, 2)))


class MapGeneration(nn.Module):
    """The semantic map of a scale: each token is a mean of the pixels' features under its own learned weights."""

    def __init__(self, width: int, *, map_size: int) -> None:
        super().__init__()
        self.map_size = map_size
        self.features = _conv(width, width)
        self.weights = _conv(width, map_size * map_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> tokens (B, C, m, m)."""
        features = self.features(x).flatten(2)  # (B, C, H * W)
        weights = self.weights(x).flatten(2).softmax(dim=2)  # (B, M, H * W), each token's weights sum to 1
        tokens = features @ weights.transpose(1, 2)  # (B, C, M)
        return tokens.reshape(*tokens.shape[:2], self.map_size, self.map_size)


class MapFusion(nn.Module):
    """Let the maps of several scales see each other in a small transformer over all their tokens."""

    def __init__(self, widths: Sequence[int], *, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.into = nn.ModuleList(_conv(w, width, 1) for w in widths)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.back = nn.ModuleList(_conv(width, w, 1) for w in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, m, m), one of each scale -> the same shapes."""
        shape = maps[0].shape[2:]
        tokens = [project(m).flatten(2).transpose(1, 2) for project, m in zip(self.into, maps, strict=True)]
        fused = self.layers(torch.cat(tokens, dim=1))  # (B, 3 M, width)
        parts = fused.chunk(len(maps), dim=1)
        return [
            project(part.transpose(1, 2).reshape(part.shape[0], -1, *shape))
            for project, part in zip(self.back, parts, strict=True)
        ]


class _Scale(nn.Module):
    """What one scale does after its entry: convolution blocks, then attention blocks."""

    def __init__(self, config: MedFormerConfig, index: int) -> None:
        super().__init__()
        width, depth = config.widths[index], config.attention_blocks[index]
        self.convolutions = nn.Sequential(*(BasicBlock(width, width) for _ in range(config.conv_blocks[index])))
        self.attentions = nn.ModuleList(
            AttentionBlock(
                width,
                heads=config.heads[index],
                expansion=config.expansion,
                updates_tokens=(index, block) != (LAST_MAP, depth - 1),
            )
            for block in range(depth)
        )


class Down(_Scale):
    """Patch merging, convolutions, and (where there is attention) a semantic map and its exchange with the pixels."""

    def __init__(self, config: MedFormerConfig, index: int) -> None:
        super().__init__(config, index)
        inputs = config.widths[index - 1] if index else config.stem_width
        self.merge = PatchMerging(inputs, config.widths[index])
        self.generate = MapGeneration(config.widths[index], map_size=config.map_size) if index else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C', H / 2, W / 2), and the map (B, C', m, m) of a scale that has one."""
        x = self.convolutions(self.merge(x))
        if self.generate is None:
            return x, None
        tokens = self.generate(x)
        for block in self.attentions:
            x, tokens = block(x, tokens)
        return x, tokens


class Up(_Scale):
    """Double H and W, join the skip connection (and the two maps), then attention or convolutions."""

    def __init__(self, config: MedFormerConfig, index: int) -> None:
        super().__init__(config, index)
        skips = (config.stem_width, *config.widths)
        inputs, skip, width = config.widths[index - 1], skips[2 * NUM_SCALES - 1 - index], config.widths[index]
        self.join = nn.Sequential(nn.BatchNorm2d(inputs + skip), _conv(inputs + skip, width, 1))
        self.join_maps = _conv(inputs + skip, width, 1) if config.attention_blocks[index] else None

    def forward(
        self, x: Tensor, skip: Tensor, tokens: Tensor | None = None, skip_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W), the skip connection at twice the size, and both maps -> (B, C', 2 H, 2 W) and the joint map."""
        x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
        x = self.join(torch.cat((x, skip), dim=1))
        if self.join_maps is None or tokens is None or skip_tokens is None:
            return self.convolutions(x), None
        tokens = self.join_maps(torch.cat((tokens, skip_tokens), dim=1))
        for block in self.attentions:
            x, tokens = block(x, tokens)
        return self.convolutions(x), tokens


class MedFormer(nn.Module):
    """Class scores of every pixel of 2D images.

    Input (B, in_channels, H, W) with H and W multiples of 16, output logits (B, num_classes, H, W).
    """

    def __init__(self, config: MedFormerConfig = COMPACT) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = nn.Sequential(
            _conv(config.in_channels, config.stem_width), BasicBlock(config.stem_width, config.stem_width)
        )
        self.down = nn.ModuleList(Down(config, i) for i in range(NUM_SCALES))
        self.fusion = MapFusion(
            widths[1:NUM_SCALES], width=config.fusion_width, heads=config.fusion_heads, depth=config.fusion_depth
        )
        self.up = nn.ModuleList(Up(config, i) for i in range(NUM_SCALES, 2 * NUM_SCALES))
        self.head = nn.Conv2d(widths[-1], config.num_classes, 1)
        self.auxiliary_head = nn.Conv2d(widths[LAST_MAP], config.num_classes, 1)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features at full, 1/2, 1/4, 1/8 and 1/16 resolution, and the semantic maps of the last three."""
        rows, columns = images.shape[2:]
        if rows % 2**NUM_SCALES or columns % 2**NUM_SCALES:
            raise ValueError(f"rows and columns must be multiples of {2**NUM_SCALES}, got {rows} x {columns}")
        features, maps = [self.stem(images)], []
        for down in self.down:
            x, tokens = down(features[-1])
            features.append(x)
            if tokens is not None:
                maps.append(tokens)
        return features, maps

    def forward_with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at full resolution, and the deep-supervision logits at 1/4 of it."""
        (x0, x1, x2, x3, x4), maps = self.encode(images)
        map2, map3, map4 = self.fusion(maps)
        x, tokens = self.up[0](x4, x3, map4, map3)  # 1/8
        x, tokens = self.up[1](x, x2, tokens, map2)  # 1/4
        auxiliary = self.auxiliary_head(x)
        x, _ = self.up[2](x, x1)  # 1/2
        x, _ = self.up[3](x, x0)  # 1
        return self.head(x), auxiliary

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W) -> logits (B, 4, H, W)."""
        return self.forward_with_auxiliary(images)[0]


@torch.no_grad()
def features(model: MedFormer, images: Tensor) -> list[Tensor]:
    """Frozen encoder features at five scales, for distances between images.

    Args:
        model: a trained MedFormer in evaluation mode.
        images: (B, 1, H, W) float32 in [0, 1], H and W multiples of 16.

    Returns:
        Five tensors (B, C_i, H / 2**i, W / 2**i), i = 0..4, finest first.

    Example:
        >>> model = MedFormer(COMPACT).eval()
        >>> [tuple(f.shape[1:]) for f in features(model, torch.zeros(1, 1, 32, 32))][::4]
        [(16, 32, 32), (160, 2, 2)]
    """
    return model.encode(images)[0]
