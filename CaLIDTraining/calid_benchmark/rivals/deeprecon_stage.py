"""`calid-train deeprecon`: generator, encoder and discriminator of DeepRecon on slices with labels.

Labels are the experts' where a set has them; what its experts did not draw is what the bundled segmenter says.

Differs from the papers:
- One stage, not two: encoder and generator learn together, first without the discriminator (`adversarial_start`), so
  that the W+ space of a small generator holds real slices. Then half as many pictures as real ones are sampled from z,
  as in StyleGAN2, and the discriminator sees both kinds.
- Labels are asked for by cross-entropy and Dice of the encoded slices, where semanticGAN has a second discriminator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from calid.heart.segmentation import Segmenter, load_segmenter, segment_with
from calid.method.weights import ModelEntry
from calid.run.device import choose_device
from calid.stack import Stack
from calid_training.crops import SHIPPED, Batch, BatchMaker, Variety, apply_crop, draw_crop
from calid_training.data import CropData
from calid_training.datasets import ALL_STRUCTURES
from calid_training.prepare import AnyCase, case_center
from calid_training.validation import image_figures, log_pictures
from torch import Tensor

from calid_benchmark.rivals.deeprecon import SegmenterDistance, label_loss, mosaic
from calid_benchmark.rivals.deeprecon_network import (
    COMPACT_ENCODER,
    COMPACT_GENERATOR,
    DeepReconNetwork,
    EncoderConfig,
)
from calid_benchmark.rivals.stylegan import Discriminator, GeneratorConfig
from calid_benchmark.segmenters import network_of

AVERAGE_RATE = 0.005
"""Share of a batch in the running average of w."""
PATH_RATE = 0.01
"""Share of a batch in the running mean of the path length."""
BETAS = (0.5, 0.99)
"""Of Adam; StyleGAN2's first is 0, but here a part of the losses is no game."""
ENCODER_RATE = 0.25
"""Learning rate of the encoder relative to the rest, whose weights are scaled at run time."""
MIXING = 0.9
"""Share of the sampled codes whose fine styles come from another z (style mixing)."""


@dataclass(frozen=True, eq=False)
class LabeledCase:
    """A prepared case with labels of every structure in every slice.

    Args:
        case: prepared case with the images.
        labels: (T, Z, Y, X) uint8.
        center: (column, row) of the heart.
    """

    case: AnyCase
    labels: np.ndarray
    center: np.ndarray


def completed_labels(case: AnyCase, predicted: np.ndarray) -> np.ndarray:
    """The experts' labels, and the predicted ones of structures that they did not draw.

    Where they drew some structures only, a slice without any contour may have been left out: it is predicted whole.

    Args:
        case: a case with labels or without.
        predicted: (T, Z, Y, X) uint8.
    """
    if case.labels is None:
        return predicted
    drawn = np.isin(predicted, case.entry.annotated)
    completed = np.where(case.labels > 0, case.labels, np.where(drawn, 0, predicted)).astype(np.uint8)
    complete = set(ALL_STRUCTURES) <= set(case.entry.annotated)
    by_experts = complete | case.labels.any(axis=(2, 3), keepdims=True)
    return np.where(by_experts, completed, predicted)


def labeled_cases(cases: Iterable[AnyCase], segmenter: Segmenter, kept: Path | None) -> list[LabeledCase]:
    """Cases with complete labels; predictions are kept in a folder, so that a resumed run does not make them again."""
    found = []
    for case in cases:
        path = None if kept is None else (kept / case.entry.file).with_suffix(".npz")
        labels = completed_labels(case, _predicted(case, segmenter, path))
        found.append(LabeledCase(case, labels, case_center(case)))
    return found


def _predicted(case: AnyCase, segmenter: Segmenter, path: Path | None) -> np.ndarray:
    if path is not None and path.is_file():
        with np.load(path) as arrays:
            return arrays["labels"]
    times = np.arange(len(case.images), dtype=float)  # nobody asks when
    stack = Stack(case.images.astype(np.float32), np.diag([*case.entry.spacing_mm, 1.0]), times)
    labels = segment_with(segmenter, stack).voxels
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, labels=labels)
    return labels


def labeled_batch(
    rng: np.random.Generator, sources: Sequence[LabeledCase], count: int, size: int, *, variety: Variety = SHIPPED
) -> Batch:
    """Heart-centered slices and their labels: {"images": (N, 1, size, size), "labels": the same in int64}."""
    drawn = [_random_slice(rng, sources, size, variety) for _ in range(count)]
    images, labels = (torch.stack(kind) for kind in zip(*drawn, strict=True))
    return {"images": images, "labels": labels}


def _random_slice(
    rng: np.random.Generator, sources: Sequence[LabeledCase], size: int, variety: Variety
) -> tuple[Tensor, Tensor]:
    source = sources[int(rng.integers(len(sources)))]
    frames, slices = source.labels.shape[:2]
    where = rng.integers(frames), rng.integers(slices)
    native_mm = source.case.entry.spacing_mm[0]
    plan = draw_crop(rng, center=source.center, native_mm=native_mm, size=size, variety=variety)
    masks = [source.labels[where] == structure for structure in ALL_STRUCTURES]
    image, *shares = apply_crop(np.stack([source.case.images[where], *masks]), plan, native_mm=native_mm)
    scores = torch.stack([torch.zeros_like(image), *shares])  # in [-1, 1]: background where none has half of a pixel
    return image, scores.argmax(dim=0)


class DeepReconData(CropData):
    """Single slices with labels of every structure.

    Args:
        predictions: folder for the segmenter's labels of the sets; None makes them anew at every start.
    """

    def __init__(self, predictions: Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predictions = predictions

    def sources(self, split: str) -> list[LabeledCase]:
        """The split's cases, with labels of every structure."""
        segmenter = replace(load_segmenter(choose_device("auto")), mirrored=False)  # half the time, nearly the same
        kept = None if self.predictions is None else Path(self.predictions) / _entry_of(segmenter).sha256[:12]
        return labeled_cases(super().sources(split), segmenter, kept)

    def batch_maker(self, split: str) -> BatchMaker:  # noqa: ARG002 (the same for both)
        """`labeled_batch`, in both splits."""
        return partial(labeled_batch, variety=self.variety)


def _entry_of(segmenter: Segmenter) -> ModelEntry:
    """What the manifest says of a segmenter that was loaded from it."""
    assert segmenter.entry is not None
    return segmenter.entry


class DeepReconStage(L.LightningModule):
    """Trains generator and encoder against a StyleGAN2 discriminator.

    Args:
        generator, encoder: sizes of the networks.
        learning_rate: learning rate of both Adam optimizers.
        adversarial_start: step from which the discriminator takes part; before, the encoded slices alone teach.
        image_weight, perceptual_weight, segmentation_weight: weights of the encoded slices' losses; the
            discriminator's has 1.
        r1_weight, r1_interval: gradient penalty on real slices (lazy: multiplied by the interval, every so many steps).
        path_weight, path_interval: path length regularization of the sampled pictures, lazy too.
    """

    path_length: Tensor
    steps_done: Tensor

    def __init__(
        self,
        generator: GeneratorConfig = COMPACT_GENERATOR,
        encoder: EncoderConfig = COMPACT_ENCODER,
        learning_rate: float = 2e-3,
        adversarial_start: int = 0,
        image_weight: float = 20.0,
        perceptual_weight: float = 0.5,
        segmentation_weight: float = 1.0,
        r1_weight: float = 1.0,
        r1_interval: int = 16,
        path_weight: float = 2.0,
        path_interval: int = 8,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = DeepReconNetwork(generator, encoder)
        self.discriminator = Discriminator(generator.channels)
        self.register_buffer("path_length", torch.zeros(()))
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))
        segmenter = load_segmenter(choose_device("cpu"))
        entry = _entry_of(segmenter)
        self.foundations = ({"name": "segmenter", "sha256": entry.sha256, "license": entry.license},)
        self.perceptual = SegmenterDistance(network_of(segmenter))  # frozen: not part of this module
        self.segmentation = label_loss()
        self.learning_rate, self.adversarial_start = learning_rate, adversarial_start
        self.weights = {"l2": image_weight, "perceptual": perceptual_weight, "segmentation": segmentation_weight}
        self.r1_weight, self.r1_interval = r1_weight, r1_interval
        self.path_weight, self.path_interval = path_weight, path_interval

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam of generator and encoder, and Adam of the discriminator."""
        makers: list[dict[str, Any]] = [
            {"params": self.network.generator.parameters()},
            {"params": self.network.encoder.parameters(), "lr": ENCODER_RATE * self.learning_rate},
        ]
        return [
            torch.optim.Adam(makers, lr=self.learning_rate, betas=BETAS),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.learning_rate, betas=BETAS),
        ]

    def on_fit_start(self) -> None:
        """Bring the perceptual network, which is no part of this module, to its device."""
        self.perceptual.network.to(self.device)

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        """One step of generator and encoder, and one of the discriminator once it takes part."""
        images, labels = batch["images"], batch["labels"]
        optimizer, discriminator_optimizer = cast(list[torch.optim.Optimizer], self.optimizers())
        plays = bool(self.steps_done >= self.adversarial_start)
        codes = self.network.encode(images)
        if plays:
            sampled = self.sampled_codes(max(1, len(images) // 2))
            self.network.average.lerp_(sampled.detach().mean(dim=(0, 1)), AVERAGE_RATE)
            codes = torch.cat([codes, sampled])
        made, scores = self.network.generator(codes, random_noise=True)
        losses = self._encoded_losses(made[: len(images)], scores[: len(images)], images, labels, index)
        total = torch.stack([weight * losses[name] for name, weight in self.weights.items()]).sum()
        if plays:
            total = total + self._adversarial_terms(made, losses, index)
        self._step(optimizer, total)
        if plays:
            self._step(discriminator_optimizer, self._discriminator_terms(images, made.detach(), losses, index))
        self.steps_done += 1
        self.log_dict({f"train/{name}": value for name, value in losses.items()})

    def _adversarial_terms(self, made: Tensor, losses: dict[str, Tensor], index: int) -> Tensor:
        self.discriminator.requires_grad_(False)
        losses["generator"] = F.softplus(-self.discriminator(made)).mean()  # non-saturating
        self.discriminator.requires_grad_(True)
        if index % self.path_interval:
            return losses["generator"]
        losses["path"] = self.path_penalty(self.sampled_codes(max(1, len(made) // 3)))
        return losses["generator"] + self.path_weight * self.path_interval * losses["path"]

    def _discriminator_terms(self, images: Tensor, made: Tensor, losses: dict[str, Tensor], index: int) -> Tensor:
        real, fake = self.discriminator(images), self.discriminator(made)
        losses["discriminator"] = F.softplus(-real).mean() + F.softplus(fake).mean()
        if index % self.r1_interval:
            return losses["discriminator"]
        losses["r1"] = self.gradient_penalty(images)
        return losses["discriminator"] + self.r1_weight / 2 * self.r1_interval * losses["r1"]

    def _encoded_losses(
        self, made: Tensor, scores: Tensor, images: Tensor, labels: Tensor, index: int
    ) -> dict[str, Tensor]:
        places = mosaic(*images.shape[2:])
        place = places[index % len(places)]
        with torch.no_grad():
            truth = self.perceptual.features(images, place)
        return {
            "l2": F.mse_loss(made, images),
            "perceptual": self.perceptual.distance(made, truth, place),
            "segmentation": self.segmentation(scores, labels),
        }

    def sampled_codes(self, count: int) -> Tensor:
        """Codes (count, S, W) of random z, most with a second z from a random style on (style mixing)."""
        config = self.network.generator.config
        z = torch.randn(2 * count, config.style_width, device=self.device)
        first, second = self.network.generator.mapping(z)[:, None].chunk(2)
        crossover = torch.randint(1, config.style_count, (count, 1, 1), device=self.device)
        crossover[torch.rand(count, device=self.device) > MIXING] = config.style_count
        place = torch.arange(config.style_count, device=self.device)[None, :, None]
        return torch.where(place < crossover, first, second)

    def path_penalty(self, codes: Tensor) -> Tensor:
        """How far a code's step of unit length changes the picture, against its running mean (StyleGAN2, Eq. 4)."""
        with torch.autocast(self.device.type, enabled=False):
            made, _ = self.network.generator(codes, random_noise=True)
            direction = torch.randn_like(made) / made[0, 0].numel() ** 0.5
            (slope,) = torch.autograd.grad((made * direction).sum(), codes, create_graph=True)
        lengths = slope.square().sum(dim=2).mean(dim=1).sqrt()
        self.path_length.lerp_(lengths.mean().detach(), PATH_RATE)
        return (lengths - self.path_length).square().mean()

    def gradient_penalty(self, images: Tensor) -> Tensor:
        """R1 (Mescheder et al. 2018): the mean squared gradient of the score with respect to real images."""
        images = images.detach().requires_grad_()
        with torch.autocast(self.device.type, enabled=False):
            score = self.discriminator(images).sum()
            (slope,) = torch.autograd.grad(score, images, create_graph=True)
        return slope.square().sum(dim=(1, 2, 3)).mean()

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Log the figures of encoded slices and, of the first batch, pictures of them and of sampled ones."""
        images, labels = batch["images"], batch["labels"]
        codes = self.network.encode(images)
        made, scores = self.network.generator(codes)
        made = made.clamp(-1, 1)
        figures = image_figures(made, images) | {"segmentation": self.segmentation(scores, labels)}
        self.log_dict({f"val/{name}": x for name, x in figures.items()}, batch_size=len(images), sync_dist=True)
        if index == 0:
            sampled, _ = self.network.generator(self.sampled_codes(len(images)))
            log_pictures(self, [images, made, sampled, scores.argmax(dim=1, keepdim=True) / 1.5 - 1])
