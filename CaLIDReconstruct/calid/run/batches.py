"""The trained model at work: from two neighboring slices to the slice between them, in batches of any size.

Shapes: images are (N, 1, H, W) in [-1, 1], latents (N, C, H / f, W / f), N any number of gaps, frames and samples. A
2D+T model interpolates sequences: images (N, 1, T, H, W), latents (N, C, T, H / f, W / f), or (N, C, T / f, H / f,
W / f) where its convolutions are 3D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calid.errors import is_out_of_memory
from calid.method.diffusion import Schedule, invert, sample
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser, DenoiserConfig, LatentSpace
from calid.method.weights import (
    Entry,
    below,
    build_latent_space,
    build_motion,
    built_for,
    config_from,
    load_model,
    read_manifest,
)
from calid.run.device import Device
from calid.run.settings import Mode, Model
from calid.run.windows import is_cine

DEFAULT_MODEL, CINE_MODEL = "calid-2d", "calid-2dt"
Tick = Callable[[int], None]
"""Called with the number of images whose network evaluation has just ended; may raise to stop the work."""


def _untold(_: int) -> None:
    """The tick of work that nobody watches."""


@dataclass(frozen=True)
class Interpolator:
    """E, D, eps_theta, tau1 and tau2 on a device, and the motion that comes before them.

    Args:
        latent_space: E and D.
        denoiser: eps_theta with tau1 and tau2.
        schedule: the noise schedule the denoiser was trained with.
        device: where they run.
        entry: what the manifest says of the weights.
        motion: what brings neighbors half-way, or None where the denoiser was trained on neighbors as they are.
        noise_share: share of the noise's power that the frames of a slice have in common.
    """

    latent_space: LatentSpace
    denoiser: Denoiser
    schedule: Schedule
    device: Device
    entry: Entry
    motion: Motion | None = None
    noise_share: float = 1.0

    def strength(self, mode: Mode) -> float | None:
        """How far a slice goes from the mean of its moved neighbors, 0, to what the diffusion makes of them, 1.

        None where a slice is what D makes of z_0 and nothing else, as in the paper.
        """
        strengths = self.entry.config.get("strength")
        return None if strengths is None else strengths[mode]

    @property
    def is_over_time(self) -> bool:
        """Whether it interpolates sequences of frames."""
        return self.denoiser.config.is_over_time

    @property
    def codes_sequences(self) -> bool:
        """Whether E and D read frames together, as the paper's 2D+T networks do, or one by one."""
        return self.latent_space.autoencoder.config.spatial_dims == 3

    @property
    def frames_per_latent(self) -> int:
        """How many frames of a sequence one frame of its latents stands for."""
        return self._downsampling if self.codes_sequences else 1

    @property
    def frame_multiple(self) -> int:
        """What the number of frames that are made together has to be a multiple of: 3D networks halve time as well."""
        return self._downsampling * self.denoiser.config.downsampling if self.codes_sequences else 1

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H / f, W / f) of images with the shape `image_shape` (H, W)."""
        channels = self.latent_space.autoencoder.config.latent_channels
        return (channels, *(size // self._downsampling for size in image_shape))

    @property
    def _downsampling(self) -> int:
        return self.latent_space.autoencoder.config.downsampling

    def encode(self, images: torch.Tensor, *, tick: Tick = _untold) -> torch.Tensor:
        """E: images -> latents, on the CPU; `tick` is told of every batch."""

        def run(images: torch.Tensor) -> torch.Tensor:
            latents = self.latent_space.encode(images).float()
            tick(self._num_images(latents))
            return latents

        return self._batched(run, images)

    def decode(self, latents: torch.Tensor, *, tick: Tick = _untold) -> torch.Tensor:
        """D: latents -> images, on the CPU; `tick` is told of every batch."""

        def run(latents: torch.Tensor) -> torch.Tensor:
            images = self.latent_space.decode(latents).float()
            tick(self._num_images(latents))
            return images

        return self._batched(run, latents, magnification=self._downsampling)

    def halfway(self, before: torch.Tensor, after: torch.Tensor, *, tick: Tick = _untold) -> torch.Tensor:
        """Images at the place half-way between them: (N, 2 for before and after, 1, H, W), on the CPU.

        Args:
            before, after: images.
            tick: told of every batch.
        """

        def run(*images: torch.Tensor) -> torch.Tensor:
            moved = images if self.motion is None else halfway(self.motion, *images)
            tick(len(images[0]))
            return torch.stack(moved, dim=1)

        return self._batched(run, before, after)

    def interpolate(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        *,
        steps: int,
        tick: Tick,
        is_periodic: bool = False,
    ) -> torch.Tensor:
        """Latents of the slices between (paper, Eq. 6): DDIM from z_T under the condition of both neighbors.

        Args:
            before, after: images, as `halfway` makes them.
            z_T: latents to start from.
            steps: of DDIM.
            tick: told of every evaluation.
            is_periodic: whether a sequence's last frame is followed by its first.
        """

        def run(before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
            z_c = self.condition(before, after)
            return self._walk(sample(self.schedule, self._model(z_c, is_periodic), z_T, steps=steps), tick)

        return self._batched(run, before, after, z_T)

    def condition(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """z_c of images on the device, see `Denoiser.condition`.

        E reads them anew for every gap, although every slice is a neighbor of two: brought half-way, it is another
        image in each.
        """
        if not self.denoiser.config.anchored:
            return self.denoiser.condition(before, after)
        latents = self.latent_space.encode(before).float(), self.latent_space.encode(after).float()
        return self.denoiser.condition(before, after, latents)

    def invert(
        self, images: torch.Tensor, latents: torch.Tensor, *, steps: int, tick: Tick, is_periodic: bool = False
    ) -> torch.Tensor:
        """z_T of acquired slices, for CaLID+ (paper, "Initialization Refinement").

        Differs from the paper, which leaves the condition of the inversion open: a slice is inverted as lying between
        itself and itself, so that it is inverted once and serves the gaps on both its sides. So sure a condition makes
        few-step inversion end too near zero (0.7 of a unit deviation), and a walk from there blurs; z_T is therefore
        scaled to the radius that Gaussian noise has.
        """

        def run(images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            z_c = self.denoiser.condition(images, images, (latents, latents))
            z_T = self._walk(invert(self.schedule, self._model(z_c, is_periodic), latents, steps=steps), tick)
            radius = z_T.square().mean(dim=(1, -2, -1), keepdim=True).sqrt()  # of every frame
            return z_T / radius.clamp_min(1e-6)

        return self._batched(run, images, latents)

    def _model(self, z_c: torch.Tensor, is_periodic: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda z, t: self.denoiser(z, t, z_c, is_periodic=is_periodic)

    def _walk(self, states: Iterable[torch.Tensor], tick: Tick) -> torch.Tensor:
        for state in states:
            tick(self._num_images(state))
        return state

    def _num_images(self, latents: torch.Tensor) -> int:
        """How many images latents stand for, those of all frames counted."""
        return len(latents) * (latents.shape[2] * self.frames_per_latent if latents.ndim == 5 else 1)

    def _batched(
        self, run: Callable[..., torch.Tensor], *tensors: torch.Tensor, magnification: int = 1
    ) -> torch.Tensor:
        """Run over batches that fit the device; one that does not fit is halved and tried again.

        A sequence counts as many images as it has frames, and is never cut: its frames belong together.

        The images of a batch are `magnification` times as wide as the first of the tensors.
        """
        pixels = tensors[0][0, 0].numel() * magnification ** (tensors[0].ndim - 2)
        size, start, done = self.device.batch_size(pixels), 0, []
        while start < len(tensors[0]):
            batch = [tensor[start : start + size].to(self.device.torch_device) for tensor in tensors]
            try:
                with torch.inference_mode(), self.device.autocast():
                    done.append(run(*batch).cpu())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(batch[0]) == 1:
                    raise
                size = len(batch[0]) // 2
                continue
            start += size
        return torch.cat(done)


def load_interpolator(device: Device, *, name: str = DEFAULT_MODEL, models_folder: Path | None = None) -> Interpolator:
    """The model `name` of the manifest, checked, on a device.

    Raises:
        WeightsError: if it is missing, damaged or does not fit.
    """
    state, entry = load_model(name, models_folder)
    with built_for(name):
        config = config_from(DenoiserConfig, entry.config["denoiser"])
        denoiser = Denoiser(config)
        denoiser.load_state_dict(below(state, "denoiser."))
        space = build_latent_space(entry.config["autoencoder"], below(state, "latent_space."))
        motion = _motion_of(entry, state, device)
    schedule = Schedule(prediction=config.prediction, zero_terminal_snr=config.prediction == "velocity")
    return Interpolator(
        latent_space=space.to(device.torch_device).eval(),
        denoiser=denoiser.to(device.torch_device).eval(),
        schedule=schedule,
        device=device,
        entry=entry,
        motion=motion,
        noise_share=entry.config.get("noise_share", 1.0),
    )


def _motion_of(entry: Entry, state: Mapping[str, torch.Tensor], device: Device) -> Motion | None:
    if "motion" not in entry.config:
        return None
    return build_motion(entry.config["motion"], below(state, "motion.")).to(device.torch_device)


def choose_model(choice: Model, *, frames: int, models_folder: Path | None = None) -> tuple[str, str]:
    """The name of the model for a stack of so many frames, and why it is that one.

    Args:
        choice: "2d", "2d+t", or "auto": 2D+T for a cine where it is installed.
        frames: of the stack.
        models_folder: where the manifest lies; None takes the bundled models.
    """
    if choice != "auto":
        return (DEFAULT_MODEL if choice == "2d" else CINE_MODEL), "as asked"
    if not is_cine(frames):
        return DEFAULT_MODEL, f"{frames} frame(s) are no cine"
    if CINE_MODEL not in read_manifest(models_folder):
        return DEFAULT_MODEL, f"{CINE_MODEL} is not installed, every frame by itself"
    return CINE_MODEL, f"a cine of {frames} frames"
