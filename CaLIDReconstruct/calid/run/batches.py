"""The model on this machine: its device, batches of a size that fits, and a count of the work.

What is done with two slices is `calid.method.model`'s business; shapes are as there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calid.errors import is_out_of_memory
from calid.method.bisection import Bisection
from calid.method.coded import CodedCaLID
from calid.method.loading import load_calid
from calid.method.model import CaLID, Departures
from calid.method.motion import MEAN_PASSES, REFINED_PASSES, Fields, mean_fields, moved_by, refined_fields
from calid.method.weights import ModelEntry, read_manifest
from calid.run.device import Device
from calid.run.settings import MODES, Mode, Model
from calid.run.windows import is_cine

LOG = logging.getLogger("calid")

DEFAULT_MODEL, CINE_MODEL = "calid-2d", "calid-2dt"
MOTION_EVALUATIONS, CODING_EVALUATIONS = 1, 3  # what moving a pair, and coding an image, cost in network evaluations
Tick = Callable[[int], None]
"""Called with the number of network evaluations that have just ended; may raise to stop the work."""


def _untold(_: int) -> None:
    """The tick of work that nobody watches."""


@dataclass(frozen=True)
class Interpolator:
    """A model on a device, asked in batches that fit it (`batched`). Tensors come in and go out on the CPU.

    Args:
        model: the networks, on the device.
        device: where they run.
        entry: what the manifest says of the weights.
        departures: what is done beside the paper, for each mode.
        noise_share: share of the noise's power that the frames of a slice have in common.
        spread: what the deviation over the draws is multiplied with, so that it is as large as their mean's error was
            on the validation set; 1 where that was not measured.
    """

    model: CaLID | CodedCaLID
    device: Device
    entry: ModelEntry
    departures: Mapping[Mode, Departures]
    noise_share: float = 1.0
    spread: float = 1.0

    @property
    def is_over_time(self) -> bool:
        """Whether it interpolates sequences of frames."""
        return self.model.denoiser.config.is_over_time

    @property
    def knows_neighbors(self) -> bool:
        """Whether E and D see the neighbors: a slice's own latents then say next to nothing of it."""
        return isinstance(self.model, CodedCaLID)

    @property
    def frames_per_latent(self) -> int:
        """How many frames of a sequence one frame of its latents stands for."""
        return self.model.downsampling if self.model.codes_sequences else 1

    @property
    def frame_multiple(self) -> int:
        """What the number of frames that are made together has to be a multiple of: 3D networks halve time as well."""
        return self.frames_per_latent * self.model.denoiser.config.downsampling if self.model.codes_sequences else 1

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H / f, W / f) of images with the shape `image_shape` (H, W)."""
        return (self.model.latent_channels, *(size // self.model.downsampling for size in image_shape))

    @property
    def moves(self) -> bool:
        """Whether neighbors are brought half-way by a motion, which can be corrected."""
        return self.model.motion is not None and self.departures["detail"].motion

    def fields(
        self, before: torch.Tensor, after: torch.Tensor, *, passes: int = REFINED_PASSES, tick: Tick = _untold
    ) -> torch.Tensor:
        """The motion's fields (N, 4, H, W) in pixels: of the slice before, then after.

        Args:
            before, after: images.
            passes: evaluations of the motion for a pair, `REFINED_PASSES`, `MEAN_PASSES` or 1; of a model that does
                not know the neighbors always 1.
            tick: function told of every evaluation of the motion.
        """
        motion = self.model.motion
        if motion is None:
            raise ValueError("this model has no motion")
        ways: dict[int, Callable[..., Fields]] = {
            1: motion,
            MEAN_PASSES: partial(mean_fields, motion),
            REFINED_PASSES: partial(refined_fields, motion),
        }
        found = ways[passes if self.knows_neighbors else 1]
        return self.batched(lambda *images: torch.cat(found(*images), dim=1), before, after, tick=tick)

    def moved(
        self, before: torch.Tensor, after: torch.Tensor, fields: torch.Tensor, *correction: torch.Tensor
    ) -> torch.Tensor:
        """Both neighbors (N, 1, H, W), moved by fields and their correction, if there is one: (N, 2, H, W)."""

        def run(before: torch.Tensor, after: torch.Tensor, fields: torch.Tensor, *correction: torch.Tensor):
            return torch.cat(moved_by(Fields(*fields.split(2, dim=1)), before, after, *correction), dim=1)

        return self.batched(run, before, after, fields, *correction)

    def halfway(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Both neighbors at the place half-way between them, as the motion alone brings them there: (N, 2, 1, H, W)."""
        return self.batched(lambda *images: torch.stack(self.model.halfway(*images), dim=1), before, after)

    def estimates(self, mode: Mode, steps: int) -> bool:
        """Whether slices are the mean of their moved neighbors: codec and denoiser then have nothing to do."""
        return self.knows_neighbors and self.departures[mode].estimate and steps == 1

    def batched(
        self,
        run: Callable[..., torch.Tensor],
        *tensors: torch.Tensor,
        magnification: int = 1,
        tick: Tick = _untold,
    ) -> torch.Tensor:
        """Run over batches that fit the device; one that does not fit is halved and tried again.

        A sequence counts as many images as it has frames, and is never cut: its frames belong together.

        Args:
            run: function of batches.
            *tensors: tensors that are cut into batches along the first axis.
            magnification: how many times as wide as the first of the tensors the images of a batch are.
            tick: function told of every evaluation of a network.
        """
        pixels = tensors[0][0, 0].numel() * magnification ** (tensors[0].ndim - 2)
        size, start, done = self.device.batch_size(pixels), 0, []
        while start < len(tensors[0]):
            batch = [tensor[start : start + size].to(self.device.torch_device) for tensor in tensors]
            try:
                with torch.inference_mode(), self.device.autocast(), self._counted(tick):
                    done.append(run(*batch).cpu())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(batch[0]) == 1:
                    raise
                size = len(batch[0]) // 2
                continue
            start += size
        return torch.cat(done)

    def evaluations(self, steps: int, mode: Mode) -> int:
        """The cost of `CaLID.between` for one slice whose neighbors were moved, in evaluations of the denoiser."""
        departures, config = self.departures[mode], self.model.denoiser.config
        if isinstance(self.model, CodedCaLID):
            return 0 if self.estimates(mode, steps) else steps + CODING_EVALUATIONS
        codings = 1 + 2 * (departures.strength is not None) + 2 * config.anchored  # z_0, the mean to and fro, neighbors
        return steps + CODING_EVALUATIONS * codings

    def passes(self, level: int) -> int:
        """How often the motion looks at a pair of neighbors, at level 1, 2, ... of the bisection.

        From the second level on, one of both was made by moving the other: there is little to be refined.
        """
        if not (self.moves and self.knows_neighbors):
            return int(self.moves)
        return REFINED_PASSES if level == 1 else MEAN_PASSES

    def moving_evaluations(self, plan: Bisection, *, in_region: bool) -> int:
        """The cost of moving the neighbors of all gaps, in evaluations of the denoiser.

        Args:
            plan: which slices are made.
            in_region: whether what lies around a region is moved by a single pass of its own.
        """
        passes = sum(len(gaps) * self.passes(level) for level, gaps in enumerate(plan.levels, start=1))
        around = plan.num_generated * (in_region and self.moves)
        return MOTION_EVALUATIONS * (passes + around)

    def inversion_evaluations(self, steps: int, mode: Mode) -> int:
        """The cost of `CaLID.invert` for one slice, in evaluations of the denoiser."""
        neighbors = 2 * (self.model.denoiser.config.anchored and not self.departures[mode].self_condition)
        return steps + CODING_EVALUATIONS * (1 + neighbors)

    @contextmanager
    def _counted(self, tick: Tick) -> Iterator[None]:
        """While this lasts, `tick` is told of every evaluation of a network, in evaluations of the denoiser."""
        frames = self.frames_per_latent
        costs: list[tuple[nn.Module, int]] = [(self.model.denoiser, frames)]
        if isinstance(self.model, CodedCaLID):
            codec = self.model.codec
            costs += [(codec.encoder, CODING_EVALUATIONS), (codec.decoder, CODING_EVALUATIONS)]
        else:
            coder = self.model.latent_space.autoencoder
            costs += [(coder.encoder, CODING_EVALUATIONS), (coder.decoder, CODING_EVALUATIONS * frames)]
        if self.model.motion is not None:
            costs.append((self.model.motion, MOTION_EVALUATIONS))
        hooks = [network.register_forward_hook(partial(_tell, tick, cost)) for network, cost in costs]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _tell(tick: Tick, cost: int, network: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
    """A network has read a batch (N, C, H, W), or one of sequences (N, C, T, H, W)."""
    del network, output
    batch = inputs[0]
    tick(cost * len(batch) * (batch.shape[2] if batch.ndim == 5 else 1))


def load_interpolator(device: Device, *, name: str = DEFAULT_MODEL, models_folder: Path | None = None) -> Interpolator:
    """The model `name` of the manifest, checked, on a device.

    Raises:
        WeightsError: if it is missing, damaged or does not fit.
    """
    LOG.info("loading %s", name)
    model, entry = load_calid(name, models_folder)
    shares = (entry.config.get(name, 1.0) for name in ("noise_share", "spread"))
    return Interpolator(model.to(device.torch_device), device, entry, departures_of(entry.config), *shares)


def departures_of(config: Mapping[str, Any]) -> dict[Mode, Departures]:
    """What a model's configuration in the manifest says of the departures in each mode.

    Fidelity is a mean, which has no texture to be restored; of whole draws, which their own mean cools.
    """
    if "codec" in config:
        shown = Departures(temperature=config.get("temperature", 1.0))
        return {mode: Departures(estimate=True) if mode == "fidelity" else shown for mode in MODES}
    strengths = config.get("strength", dict.fromkeys(MODES))
    return {mode: Departures(strength=strengths[mode], texture=mode == "detail") for mode in MODES}


def choose_model(choice: Model, *, frames: int, models_folder: Path | None = None) -> tuple[str, str]:
    """The name of the model for a stack of so many frames, and why it is that one.

    Args:
        choice: "2d", "2d+t", or "auto": 2D+T for a cine where it is installed.
        frames: number of frames of the stack.
        models_folder: where the manifest lies; None takes the bundled models.
    """
    if choice != "auto":
        return (DEFAULT_MODEL if choice == "2d" else CINE_MODEL), "as asked"
    if not is_cine(frames):
        return DEFAULT_MODEL, f"{frames} frame(s) are no cine"
    if CINE_MODEL not in read_manifest(models_folder):
        return DEFAULT_MODEL, f"{CINE_MODEL} is not installed, every frame by itself"
    return CINE_MODEL, f"a cine of {frames} frames"
