"""The networks of CaLID (paper, Section III-A and Fig. 1): E and D, eps_theta, tau1 and tau2, from MONAI's parts.

One code for both of the paper's models. 2D reads slices (N, 1, rows, columns), 2D+T slices over time (N, 1, frames,
rows, columns), and there are two ways to it: `spatial_dims` 3 makes every convolution 3D, as the paper says; `temporal`
keeps the 2D networks, which read frame by frame, and joins the frames by convolutions over time between their blocks.
Pixels are in [-1, 1]; latents are normalized per channel to zero mean and unit variance (`LatentSpace`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import AutoencoderKL, BasicUNet, ControlNet, DiffusionModelUNet
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import nn

from calid.method.diffusion import Prediction, Schedule

FRAMES_AT_ONCE = 16  # of a sequence, by networks that read frame by frame: less memory, and the same result

Layer = TypeVar("Layer", bound=nn.Module)


def frame_by_frame(run: Callable[..., torch.Tensor], *tensors: torch.Tensor, dims: int) -> torch.Tensor:
    """Apply what reads batches (N, C, *size) with `dims` axes in `size`, to each frame of (N, C, frames, *size) too."""
    if tensors[0].ndim == dims + 2:
        return run(*tensors)
    parts = zip(*(folded(tensor).split(FRAMES_AT_ONCE) for tensor in tensors), strict=True)
    return unfolded(torch.cat([run(*part) for part in parts]), frames=tensors[0].shape[2])


def folded(tensor: torch.Tensor) -> torch.Tensor:
    """(N, C, frames, *size) -> (N * frames, C, *size)."""
    return tensor.transpose(1, 2).flatten(0, 1)


def unfolded(tensor: torch.Tensor, *, frames: int) -> torch.Tensor:
    """(N * frames, C, *size) -> (N, C, frames, *size)."""
    return tensor.unflatten(0, (-1, frames)).transpose(1, 2)


def zeroed(layer: Layer) -> Layer:
    """The layer with all its parameters zero, so that what it adds is nothing before training."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def zero_unet(in_channels: int, out_channels: int, *, features: Sequence[int], norm_num_groups: int) -> BasicUNet:
    """MONAI's 2D BasicUNet with group norms whose answer is zero before training."""
    norm = ("group", {"num_groups": norm_num_groups})
    unet = BasicUNet(2, in_channels, out_channels, features=features, norm=norm)
    zeroed(unet.final_conv)
    return unet


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
        """f: pixels of an image for one of its latents, along each axis."""
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
        seen_channels: channels of the features that tau1 reads in place of both images, where a codec has looked at
            these already (`codec.py`); 0 reads the images, as in the paper.
        num_res_blocks: residual blocks per level.
        head_channels: channels of one attention head.
        norm_num_groups: groups of every group norm.
        anchored: whether the networks are also given the neighbors' latents, and predict what differs from their mean.
            Not in the paper, where z_0 is learned from nothing; needs the velocity target.
        temporal: whether the frames of a cine are joined by convolutions over time; needs `spatial_dims` 2.
        prediction: "epsilon" is the paper's target (Eq. 5); "velocity" (Salimans and Ho 2022) stays well-conditioned
            at t = T, where it is used with a schedule of zero terminal signal.
    """

    spatial_dims: int = 2
    latent_channels: int = 4
    channels: tuple[int, ...] = (32, 64, 128)
    attention: tuple[bool, ...] = (False, True, True)
    condition_attention: tuple[bool, ...] = (False, True, True)
    tau1_channels: tuple[int, ...] = (16, 32, 64)
    seen_channels: int = 0
    num_res_blocks: int = 2
    head_channels: int = 32
    norm_num_groups: int = 32
    anchored: bool = False
    temporal: bool = False
    prediction: Prediction = "velocity"

    @property
    def downsampling(self) -> int:
        """What sides of latents are multiples of: each level but the first halves them."""
        return 2 ** (len(self.channels) - 1)

    @property
    def is_over_time(self) -> bool:
        """Whether frames of a cine are interpolated together."""
        return self.temporal or self.spatial_dims == 3

    def __post_init__(self) -> None:
        if self.temporal and self.spatial_dims != 2:
            raise ValueError("temporal layers join the frames of 2D networks: set spatial_dims to 2")
        if self.anchored and self.prediction != "velocity":
            raise ValueError("an anchored denoiser needs the velocity: set prediction to velocity or anchored to False")


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
    """Frozen E and D with the normalization that gives each latent channel zero mean and unit variance.

    2D networks code the frames of a cine one by one.

    Args:
        autoencoder: trained E and D.
        mean, std: (C,) moments of E's posterior means over the training images.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, autoencoder: Autoencoder, *, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        shape = (1, -1) + (1,) * autoencoder.config.spatial_dims
        self.register_buffer("mean", mean.reshape(shape).clone())
        self.register_buffer("std", std.reshape(shape).clone())

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The posterior mean of E, normalized: (N, 1, *size) -> (N, C, *size / f)."""
        return frame_by_frame(self._encode, images, dims=self.autoencoder.config.spatial_dims)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """D of the denormalized latents: (N, C, *size / f) -> (N, 1, *size)."""
        return frame_by_frame(self._decode, latents, dims=self.autoencoder.config.spatial_dims)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        posterior_mean, _ = self.autoencoder.encode(images)
        return (posterior_mean - self.mean) / self.std

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
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
        out = zeroed(Convolution(dims, widths[-1], config.channels[0], kernel_size=3, conv_only=True))
        super().__init__(*layers, nn.SiLU(), out)


class SightEncoder(nn.Sequential):
    """tau1 where a codec has looked at the neighbors: its features (N, seen_channels, *size) -> z_c, zero at first."""

    def __init__(self, config: DenoiserConfig) -> None:
        dims, width = config.spatial_dims, config.tau1_channels[-1]
        out = zeroed(Convolution(dims, width, config.channels[0], kernel_size=3, conv_only=True))
        super().__init__(
            Convolution(dims, config.seen_channels, width, kernel_size=1, conv_only=True),
            AEKLResBlock(dims, width, norm_num_groups=16, norm_eps=1e-6, out_channels=width),
            nn.SiLU(),
            out,
        )


@dataclass(frozen=True)
class Timeline:
    """The frames that are folded into a batch (N * frames, ...).

    Args:
        frames: how many belong together.
        is_periodic: whether the last is followed by the first; else it is followed by itself.
    """

    frames: int
    is_periodic: bool


ONE_FRAME = Timeline(frames=1, is_periodic=False)


class TemporalConvolution(nn.Module):
    """A convolution over three frames that mixes all channels, added to its input; zero at first.

    Args:
        channels: feature maps of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = zeroed(nn.Conv2d(3 * channels, channels, kernel_size=1))  # of (before, now, after)

    def forward(self, x: torch.Tensor, timeline: Timeline) -> torch.Tensor:
        """(N * frames, C, h, w) -> the same shape."""
        now = x.unflatten(0, (-1, timeline.frames))
        before, after = now.roll(1, dims=1), now.roll(-1, dims=1)
        if not timeline.is_periodic:
            before[:, 0], after[:, -1] = now[:, 0], now[:, -1]
        return x + self.mix(torch.cat([before, now, after], dim=2).flatten(0, 1))


def _neighbors_of(config: DenoiserConfig) -> Convolution:
    """The layer by which an anchored denoiser reads the neighbors' latents; zero at first."""
    both = 2 * config.latent_channels
    return zeroed(Convolution(config.spatial_dims, both, config.channels[0], kernel_size=3, conv_only=True))


class Denoiser(nn.Module):
    """eps_theta with tau1 and tau2, trained jointly in one stage (Eq. 5).

    tau1 does not depend on z_t or t, so z_c is computed once per gap (`condition`) and reused at every step.

    With `config.anchored`, the velocity of a z_0 that is the mean m of the neighbors' latents is added to the networks'
    prediction, and they see these latents beside z_c. What both neighbors have in common, down to the finest detail, is
    then there from the first step on, and the networks learn the rest.

    With `config.temporal`, a `TemporalConvolution` follows each ResBlock of eps_theta and tau2. As long as these are
    untrained, and for all that is 2D, frames are read one by one. Differs from the paper, whose 2D+T model is trained
    anew with 3D convolutions: here the 2D weights stay, and need neither a certain number of frames nor real cines to
    be learned again from.
    """

    noise_levels: torch.Tensor | None

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self._timeline = ONE_FRAME
        shared: dict[str, Any] = {
            "spatial_dims": config.spatial_dims,
            "in_channels": config.latent_channels,
            "num_res_blocks": config.num_res_blocks,
            "channels": config.channels,
            "num_head_channels": config.head_channels,
            "norm_num_groups": config.norm_num_groups,
            "use_flash_attention": True,
        }
        self.unet = DiffusionModelUNet(out_channels=config.latent_channels, attention_levels=config.attention, **shared)
        self.tau1 = SightEncoder(config) if config.seen_channels else ConditionEncoder(config)
        self.tau2 = ControlNet(attention_levels=config.condition_attention, **shared)
        self.tau2.controlnet_cond_embedding = nn.Identity()  # type: ignore[assignment]  # z_c comes in ready, see the class docstring
        self.neighbors = _neighbors_of(config) if config.anchored else None
        noise_levels = (1 - Schedule(prediction=config.prediction).alphas).sqrt() if config.anchored else None
        self.register_buffer("noise_levels", noise_levels, persistent=False)
        self.temporal = self._with_temporal_layers() if config.temporal else nn.ModuleList()

    def _with_temporal_layers(self) -> nn.ModuleList:
        """Hooks, because MONAI's networks call their blocks with what is theirs; so the 2D weights keep their names."""
        blocks = [module for module in self.modules() if isinstance(module, DiffusionUNetResnetBlock)]
        layers = [TemporalConvolution(block.out_channels) for block in blocks]
        for block, layer in zip(blocks, layers, strict=True):
            block.register_forward_hook(partial(self._over_time, layer))
        return nn.ModuleList(layers)

    def _over_time(self, layer: TemporalConvolution, block: nn.Module, _: tuple, out: torch.Tensor) -> torch.Tensor:
        del block
        return layer(out, self._timeline)

    @contextmanager
    def _joined(self, timeline: Timeline) -> Iterator[None]:
        """While this lasts, the batch of the networks holds frames that belong together."""
        self._timeline = timeline
        try:
            yield
        finally:
            self._timeline = ONE_FRAME

    def condition(
        self, before: torch.Tensor, after: torch.Tensor, latents: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """z_c = tau1(s(n-1), s(n+1)): all that the networks are told of the neighbors.

        Args:
            before, after: images (N, 1, *size) or (N, 1, frames, *size).
            latents: latents of both, (N, C, *size / f) or (N, C, frames, *size / f); an anchored model needs them.
        """
        dims = self.config.spatial_dims
        z_c = frame_by_frame(self.tau1, torch.cat([before, after], dim=1), dims=dims)
        if self.neighbors is None:
            return z_c
        if latents is None:
            raise ValueError("an anchored denoiser needs the latents of both neighbors")
        z_before, z_after = latents
        z_c = z_c + frame_by_frame(self.neighbors, torch.cat([z_before, z_after], dim=1), dims=dims)
        return torch.cat([z_c.float(), (z_before + z_after) / 2], dim=1)

    def forward(
        self, z_t: torch.Tensor, t: torch.Tensor, z_c: torch.Tensor, *, is_periodic: bool = False
    ) -> torch.Tensor:
        """Predict epsilon or the velocity of z_t at the times t (N,), given z_c.

        Args:
            z_t, z_c: (N, C, *size / f), or (N, C, frames, *size / f) for a temporal model.
            t: (N,) times, the same for all frames.
            is_periodic: whether the frames span the cardiac cycle, so that the last is followed by the first. 3D
                convolutions see zeros beyond the ends in any case: give them a cycle with more around it.
        """
        if z_t.ndim == self.config.spatial_dims + 2:
            return self._predict(z_t, t, z_c)
        frames = z_t.shape[2]
        with self._joined(Timeline(frames, is_periodic)):
            return unfolded(self._predict(folded(z_t), t.repeat_interleave(frames), folded(z_c)), frames=frames)

    def _predict(self, z_t: torch.Tensor, t: torch.Tensor, z_c: torch.Tensor) -> torch.Tensor:
        if self.noise_levels is None:
            return self._networks(z_t, t, z_c)
        z_c, anchor = z_c.split([self.config.channels[0], self.config.latent_channels], dim=1)
        noise_level = self.noise_levels[t].reshape(-1, *[1] * (z_t.ndim - 1))
        return self._networks(z_t, t, z_c).float() - noise_level * anchor

    def _networks(self, z_t: torch.Tensor, t: torch.Tensor, z_c: torch.Tensor) -> torch.Tensor:
        skips, middle = self.tau2(z_t, t, z_c)
        return self.unet(z_t, t, down_block_additional_residuals=skips, mid_block_additional_residual=middle)
