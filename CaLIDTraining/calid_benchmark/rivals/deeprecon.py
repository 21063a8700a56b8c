"""DeepRecon (Chang et al. 2022, as DMCVR's paper describes it).

Every slice is found in the W+ space of a StyleGAN2 that makes pictures together with their labels; the slices between
are interpolated there.

The code of a slice starts at the encoder's answer and takes 1000 Adam steps on its own loss: image (L2 and perceptual)
and segmentation. Slices between: codes interpolated linearly, then synthesized.

Differs from the paper:
- The authors published no code; networks and weights follow DMCVR's account, StyleGAN2 and semanticGAN.
- At test time nobody has drawn labels: the segmentation loss asks for what the bundled segmenter says of the slice.
- The perceptual loss compares features of that segmenter (in LPIPS's form) where the paper has a downloaded network; it
  looks at one window of a fixed mosaic per step. "Feature distance" in the tables uses the same features.
- Networks are small (0.7 M parameters; `paper=True` builds the full ones) and trained jointly, see `deeprecon_stage`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from calid.heart.medformer import MedFormer
from calid.heart.segmentation import Segmenter, load_segmenter, most_likely
from calid.method.weights import ModelEntry, config_from
from calid.run.device import Device
from monai.losses import DiceCELoss
from torch import Tensor

from calid_benchmark.rivals import filled
from calid_benchmark.rivals.deeprecon_network import (
    COMPACT_ENCODER,
    COMPACT_GENERATOR,
    DeepReconNetwork,
    EncoderConfig,
)
from calid_benchmark.rivals.slices import as_images, as_slices, distinct, interpolated
from calid_benchmark.rivals.stylegan import GeneratorConfig
from calid_benchmark.segmenters import network_of

WINDOW_PIXELS = 48
"""Edge of the window that the perceptual loss looks at."""
FEATURE_SCALES = 3
"""Full, 1/2 and 1/4 resolution; the coarser ones cost more than the whole generator."""


@dataclass(frozen=True)
class Optimization:
    """How the code of a slice is found.

    Args:
        steps: number of steps of Adam; 1000 in the paper.
        rate: rate of Adam; falls along a cosine over the last `ramp_down` of the steps, as in StyleGAN2's projector.
        ramp_down: share of the steps.
        perceptual_weight: weight of the feature distance, beside the mean squared error of images in [-1, 1].
        segmentation_weight: weight of cross-entropy and Dice.
    """

    steps: int = 1000
    rate: float = 0.02
    ramp_down: float = 0.25
    perceptual_weight: float = 0.1
    segmentation_weight: float = 0.02

    def rate_at(self, step: int) -> float:
        """Adam's rate at a step."""
        left = (self.steps - step) / (self.ramp_down * self.steps)
        return self.rate * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def label_loss() -> DiceCELoss:
    """Cross-entropy plus one minus Dice of label scores (N, labels, Y, X) against labels (N, 1, Y, X)."""
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0)


ImageWindow = tuple[slice, slice]
"""Rows and columns of a window of an image."""


class SegmenterDistance:
    """Distance of two batches in the features of a frozen segmenter, one window per step.

    Args:
        network: a trained MedFormer; its parameters are frozen here.
    """

    def __init__(self, network: MedFormer) -> None:
        self.network = network.eval().requires_grad_(False)

    def features(self, images: Tensor, place: ImageWindow) -> list[Tensor]:
        """Features of images (N, 1, Y, X) in [-1, 1] in a window, normalized over channels at every pixel."""
        x = self.network.stem((images[(..., *place)] + 1) / 2)
        found = [x]
        for down in self.network.down[: FEATURE_SCALES - 1]:
            x, _ = down(x)
            found.append(x)
        return [F.normalize(x.float(), dim=1) for x in found]

    def distance(self, made: Tensor, truth: list[Tensor], place: ImageWindow) -> Tensor:
        """Mean over images of the squared differences, summed over scales, to features in the same window."""
        pairs = zip(self.features(made, place), truth, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).sum()


def mosaic(rows: int, columns: int) -> list[ImageWindow]:
    """Windows that cover the image, which are looked at in turn; one per step keeps a step cheap."""
    return [(slice(y, y + WINDOW_PIXELS), slice(x, x + WINDOW_PIXELS)) for y in _starts(rows) for x in _starts(columns)]


def _starts(length: int) -> list[int]:
    """Evenly spread beginnings of as few windows as cover `length` pixels."""
    count = math.ceil(length / WINDOW_PIXELS)
    return [round(i * (length - WINDOW_PIXELS) / (count - 1)) for i in range(count)] if count > 1 else [0]


def embed(
    network: DeepReconNetwork,
    images: Tensor,
    labels: Tensor,
    perceptual: SegmenterDistance,
    *,
    settings: Optimization,
) -> Tensor:
    """Codes (N, S, W) of images, each found for itself: Adam works on every number alone and losses are summed.

    Args:
        network: trained network, which stays as it is.
        images: (N, 1, size, size) in [-1, 1].
        labels: (N, 1, size, size) what the images' segmentation should be.
        perceptual: the image loss beside L2.
        settings: settings of the optimization.
    """
    with torch.no_grad():
        codes = network.encode(images).float()
    codes = codes.clone().requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=settings.rate)
    segmentation, places = label_loss(), mosaic(*images.shape[2:])
    with torch.no_grad():
        targets = [perceptual.features(images, place) for place in places]
    for step in range(settings.steps):
        turn = step % len(places)
        made, scores = network.generator(codes)
        loss = F.mse_loss(made, images)
        loss = loss + settings.perceptual_weight * perceptual.distance(made, targets[turn], places[turn])
        loss = loss + settings.segmentation_weight * segmentation(scores, labels)
        optimizer.param_groups[0]["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        (len(images) * loss).backward()
        optimizer.step()
    return codes.detach()


@dataclass(frozen=True, eq=False)
class DeepRecon:
    """The system at work: a `Baseline`.

    StyleGAN2 makes pictures of one size only: slices of another are resampled to it and back.

    Args:
        network: frozen, in evaluation mode, on the device.
        segmenter: says what a slice's labels should be, and lends its features.
        device: where it runs.
        settings: settings of the optimization.
    """

    network: DeepReconNetwork
    segmenter: Segmenter
    device: Device
    settings: Optimization = Optimization()
    name: str = "DeepRecon"

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Baseline`."""
        return self.pictures_and_labels_between(before, after)[0]

    def pictures_and_labels_between(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slices half-way and their labels (uint8), both synthesized from the same codes: (N, Y, X) each."""
        slices, (first, second) = distinct(before, after)
        codes = self.codes(slices)
        return self.synthesized((codes[first] + codes[second]) / 2, before.shape[1:])

    def whole_heart(self, slices: np.ndarray, factor: int, *, naive: bool = False) -> np.ndarray:
        """See `Baseline`."""

        def between(first: Tensor, second: Tensor, weight: float) -> np.ndarray:
            return self.synthesized(torch.lerp(first, second, weight), slices.shape[1:])[0]

        return interpolated(self.codes, between, slices, factor, naive=naive)

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """See `Baseline`; each step goes through the generator forth and back, and counts once. E is not counted."""
        new = (acquired - 1) * (factor - 1)
        return self.settings.steps * (2 * new if naive else acquired) + new

    def codes(self, slices: np.ndarray) -> Tensor:
        """Codes (N, S, W) in W+ of slices (N, Y, X) in [0, 1]."""
        images = resized(as_images(slices), (self.network.size, self.network.size))
        return torch.cat([self._embedded(part) for part in images.split(self._batch_size)])

    def synthesized(self, codes: Tensor, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (N, Y, X) in [0, 1] and labels (uint8) of codes, resampled to (Y, X) = `shape`."""
        parts = [self._made(part) for part in codes.split(self._batch_size)]
        pictures, scores = (resized(torch.cat(kind), tuple(shape)) for kind in zip(*parts, strict=True))
        return as_slices(pictures), scores.argmax(dim=1).numpy().astype(np.uint8)

    @property
    def _batch_size(self) -> int:
        return self.device.batch_size(self.network.size**2)

    def _embedded(self, images: Tensor) -> Tensor:
        labels = torch.from_numpy(most_likely(self.segmenter.foreground((images + 1) / 2)))[:, None]
        images, labels = (x.to(self.device.torch_device) for x in (images, labels))
        perceptual = SegmenterDistance(network_of(self.segmenter))
        with self.device.autocast():
            return embed(self.network, images, labels, perceptual, settings=self.settings).cpu()

    @torch.inference_mode()
    def _made(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        with self.device.autocast():
            pictures, scores = self.network.generator(codes.to(self.device.torch_device))
        return pictures.cpu(), scores.cpu()


def resized(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (N, C, Y, X) on another number of pixels over the same field of view."""
    if images.shape[2:] == torch.Size(shape):
        return images
    return F.interpolate(images, size=shape, mode="bilinear", antialias=True)


def restore(state: Mapping[str, Tensor], entry: ModelEntry, *, steps: int | None, device: Device) -> DeepRecon:
    """See the contract in `calid_benchmark.rivals`; labels and features come from the bundled segmenter."""
    return _placed(filled(network_from(entry.config), state, entry), steps=steps, device=device)


def untrained(*, paper: bool, steps: int | None, device: Device) -> DeepRecon:
    """See the contract in `calid_benchmark.rivals`."""
    configs = (GeneratorConfig(), EncoderConfig()) if paper else (COMPACT_GENERATOR, COMPACT_ENCODER)
    return _placed(DeepReconNetwork(*configs), steps=steps, device=device)


def manifest_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """See the contract in `calid_benchmark.rivals`."""
    kinds = {"generator": GeneratorConfig, "encoder": EncoderConfig}
    return {name: asdict(config_from(kind, model[name])) for name, kind in kinds.items()}


def network_from(config: Mapping[str, Any]) -> DeepReconNetwork:
    """The networks that a manifest's configuration describes, with random weights."""
    return DeepReconNetwork(
        config_from(GeneratorConfig, config["generator"]), config_from(EncoderConfig, config["encoder"])
    )


def _placed(network: DeepReconNetwork, *, steps: int | None, device: Device) -> DeepRecon:
    settings = Optimization() if steps is None else Optimization(steps=steps)
    network = network.eval().requires_grad_(False).to(device.torch_device)
    return DeepRecon(network, load_segmenter(device), device, settings)
