"""StyleGAN2 with labels: the generator and the discriminator that DeepRecon is built on (Karras et al. 2020).

z -> mapping network -> w; one w per style input makes a code in W+. The synthesis network modulates its convolutions
by them, and at every resolution a toImage and a toLabel branch add to the picture and to the label scores ("skip"
architecture; the label branch is that of semanticGAN, Li et al. 2021).

Shapes in the comments: N images, W width of a style, S style inputs, C channels, H rows, V columns (of feature maps).

Differs from StyleGAN2: the discriminator reads 2 x 2 pixels as channels and halves by average pooling; noise inputs,
once training is over, are the same for every image, so that slices differ by their codes alone. Convolutions with
shared weights between scaled inputs and outputs stand for StyleGAN2's grouped ones; a transposed convolution and the
filter after it are one: both are the same operators, and several times faster on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_SIZE = 4
"""Rows and columns of the learned constant that synthesis starts from."""
SLOPE, GAIN = 0.2, math.sqrt(2)
"""Of the leaky ReLU, and what restores unit variance after it."""
SMOOTH = (0.25, 0.75, 0.75, 0.25)
"""The filter [1 3 3 1] with the gain that a doubled picture needs."""
MAPPING_RATE = 0.01
"""Learning rate of the mapping network relative to the rest."""
PATCH = 2
"""Rows and columns of pixels that the discriminator reads as channels of one."""
NOISE_SEED = 0


@dataclass(frozen=True)
class GeneratorConfig:
    """Mapping and synthesis network; the defaults are StyleGAN2's (configuration F) for 128 x 128 pixels.

    Args:
        channels: feature maps per resolution, from 4 x 4 upwards; their number gives the size of the image.
        style_width: width of z, w and every hidden layer of the mapping network.
        mapping_layers: fully connected layers of the mapping network.
        label_count: label scores per pixel, background included.
    """

    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256)
    style_width: int = 512
    mapping_layers: int = 8
    label_count: int = 4

    @property
    def size(self) -> int:
        """Rows and columns of the image."""
        return FIRST_SIZE * 2 ** (len(self.channels) - 1)

    @property
    def style_count(self) -> int:
        """Codes in W+: one per convolution, and one that the outputs of the last resolution have for themselves."""
        return 2 * len(self.channels)


class EqualLinear(nn.Module):
    """A fully connected layer whose weights are scaled at run time, so that all layers learn at one pace.

    Args:
        inputs, outputs: numbers of features.
        bias: bias that training begins with.
        rate: learning rate relative to that of other layers.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.weight_gain, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs) in float32, because styles scale everything."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight * self.weight_gain, self.bias * self.rate)


class Mapping(nn.Sequential):
    """z -> w: normalized z through fully connected layers."""

    def __init__(self, config: GeneratorConfig) -> None:
        width = config.style_width
        layers: list[nn.Module] = []
        for _ in range(config.mapping_layers):
            layers += [EqualLinear(width, width, rate=MAPPING_RATE), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """z -> w, (N, W) both."""
        w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self:
            w = layer(w) * (GAIN if isinstance(layer, nn.LeakyReLU) else 1)
        return w


class ModulatedConv(nn.Module):
    """A convolution whose weights are scaled per image and input channel by a style (Eq. 1), then normalized (Eq. 3).

    w'_oik = s_i w_oik;  w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + 1e-8)

    Written as one convolution with shared weights: inputs are multiplied by s_i before it, outputs divided by the root
    after it. That is the same, and needs no grouped convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, style_width: int, size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.gain = 1 / math.sqrt(inputs * size * size)
        self.affine = EqualLinear(style_width, inputs, bias=1.0)

    def styled(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs scaled by the style, (N, C, H, V), and what the outputs must be multiplied by, (N, C', 1, 1)."""
        style = self.affine(w)
        power = style.square() @ (self.weight * self.gain).square().sum(dim=(2, 3)).T  # (N, C')
        demodulation = (power + 1e-8).rsqrt()
        return x * style[:, :, None, None].to(x.dtype), demodulation[:, :, None, None]

    def convolved(self, x: Tensor, *, doubles: bool = False) -> Tensor:
        """The convolution with shared weights; where it doubles, transposed and followed by the filter [1 3 3 1]."""
        weight = self.weight * self.gain
        if not doubles:
            return F.conv2d(x, weight, padding=self.weight.shape[-1] // 2)
        smooth = torch.tensor(SMOOTH, device=x.device)
        both = F.conv2d(weight.flatten(0, 1)[:, None], (smooth[:, None] * smooth)[None, None], padding=3)  # 6 x 6
        return F.conv_transpose2d(x, both.view(*weight.shape[:2], 6, 6).transpose(0, 1), stride=2, padding=2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, C, H, V) under styles (N, W) -> (N, C', H, V)."""
        x, demodulation = self.styled(x, w)
        x = self.convolved(x)
        return x * demodulation.to(x.dtype)


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU; optionally at twice the resolution of what comes in.

    Args:
        inputs, outputs: numbers of channels.
        style_width: width of w.
        size: rows and columns of what goes out.
        doubles: whether what comes in is half as large.
    """

    def __init__(self, inputs: int, outputs: int, *, style_width: int, size: int, doubles: bool) -> None:
        super().__init__()
        self.convolution = ModulatedConv(inputs, outputs, style_width=style_width)
        self.fixed_noise: Tensor
        self.doubles = doubles
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        fixed = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(NOISE_SEED + size))
        self.register_buffer("fixed_noise", fixed, persistent=False)

    def forward(self, x: Tensor, w: Tensor, *, random_noise: bool) -> Tensor:
        """(N, C, H, V) under styles (N, W) -> (N, C', size, size).

        Args:
            x: features, half as large where the layer doubles.
            w: styles of the images.
            random_noise: whether noise is drawn, as in training; otherwise it is the same for every image.
        """
        x, demodulation = self.convolution.styled(x, w)
        x = self.convolution.convolved(x, doubles=self.doubles)
        noise = torch.randn(len(x), *self.fixed_noise.shape[1:], device=x.device) if random_noise else self.fixed_noise
        shift = GAIN * (noise * self.noise_strength + self.bias[:, None, None])
        shift = shift.to(x.dtype).contiguous(memory_format=torch.channels_last)
        x = x * (GAIN * demodulation).to(x.dtype) + shift
        return F.leaky_relu(x, SLOPE)  # the gain could go through it: both its pieces are linear


class Outputs(nn.Module):
    """The toImage and toLabel branches of one resolution: 1 x 1 modulated convolutions without normalization."""

    def __init__(self, inputs: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.to_image = ModulatedConv(inputs, 1, style_width=config.style_width, size=1)
        self.to_label = ModulatedConv(inputs, config.label_count, style_width=config.style_width, size=1)
        self.bias = nn.Parameter(torch.zeros(1 + config.label_count))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, C, H, V) under styles (N, W) -> (N, 1 + labels, H, V), the image first."""
        weights = [b.weight[:, :, 0, 0] * b.gain * b.affine(w)[:, None] for b in (self.to_image, self.to_label)]
        weight = torch.cat(weights, dim=1).to(x.dtype).transpose(1, 2)  # (N, C, 1 + labels)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H * V, C), no copy where channels come last
        made = (pixels @ weight + self.bias).unflatten(1, x.shape[2:])
        return made.permute(0, 3, 1, 2).float()


def doubled(x: Tensor) -> Tensor:
    """Twice the rows and columns; the same as zeros between the pixels and the filter [1 3 3 1], but at the borders."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """Codes in W+ -> images in [-1, 1] (not clipped) and label scores."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.constant = nn.Parameter(torch.randn(1, config.channels[0], FIRST_SIZE, FIRST_SIZE))
        self.layers, self.outputs = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(config.channels):
            shared = {"style_width": config.style_width, "size": FIRST_SIZE * 2**level}
            if level:
                self.layers.append(StyledLayer(config.channels[level - 1], channels, doubles=True, **shared))
            self.layers.append(StyledLayer(channels, channels, doubles=False, **shared))
            self.outputs.append(Outputs(channels, config))

    def forward(self, codes: Tensor, *, random_noise: bool = False) -> tuple[Tensor, Tensor]:
        """Images (N, 1, size, size) and label scores (N, labels, size, size) of codes (N, S, W).

        Args:
            codes: codes in W+.
            random_noise: draw the noise inputs, as in training; otherwise they are the same for every image.
        """
        x = self.constant.expand(len(codes), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        made = torch.zeros(())
        for index, layer in enumerate(self.layers):
            x = layer(x, codes[:, index], random_noise=random_noise)
            if index % 2 == 0:  # the last convolution of its resolution; its outputs share the next code
                out = self.outputs[index // 2](x, codes[:, index + 1])
                made = doubled(made) + out if index else out
        return made[:, :1], made[:, 1:]


class Discriminator(nn.Module):
    """Real or made: residual blocks, the deviation over the batch as one more channel, two last layers.

    Args:
        channels: feature maps per resolution, from 4 x 4 upwards, as the generator's.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.from_image = PlainConv(PATCH * PATCH, channels[-2], size=1)
        pairs = zip(channels[-2:0:-1], channels[-3::-1], strict=True)
        self.blocks = nn.ModuleList(DiscriminatorBlock(inputs, outputs) for inputs, outputs in pairs)
        self.last = PlainConv(channels[0] + 1, channels[0])
        self.dense = EqualLinear(channels[0] * FIRST_SIZE**2, channels[0])
        self.score = EqualLinear(channels[0], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N,) of images (N, 1, size, size): the higher, the more real."""
        x = self.from_image(F.pixel_unshuffle(images, PATCH)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        x = self.last(torch.cat([x, batch_deviation(x)], dim=1))
        return self.score(F.leaky_relu(self.dense(x.flatten(1)), SLOPE) * GAIN)[:, 0]


class PlainConv(nn.Module):
    """Convolution with weights scaled at run time, bias and leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, size: int = 3, activates: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activates else None
        self.gain = 1 / math.sqrt(inputs * size * size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, V) -> (N, C', H, V)."""
        padding = self.weight.shape[-1] // 2
        if self.bias is None:
            return F.conv2d(x, self.weight * self.gain, padding=padding)
        return F.leaky_relu(F.conv2d(x, self.weight * (self.gain * GAIN), self.bias * GAIN, padding=padding), SLOPE)


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a halving, beside a halving and a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(PlainConv(inputs, inputs), PlainConv(inputs, outputs), nn.AvgPool2d(2))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), PlainConv(inputs, outputs, size=1, activates=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, V) -> (N, C', H / 2, V / 2)."""
        return (self.body(x) + self.shortcut(x)) / GAIN


def batch_deviation(x: Tensor, *, group: int = 4) -> Tensor:
    """Mean standard deviation over groups of at most `group` images as one channel: (N, C, H, V) -> (N, 1, H, V)."""
    count = math.gcd(len(x), group)
    groups = x.float().unflatten(0, (count, -1))  # (count, N / count, C, H, V)
    deviation = (groups.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (N / count,)
    return deviation.repeat(count)[:, None, None, None].expand(-1, 1, *x.shape[2:]).to(x.dtype)
