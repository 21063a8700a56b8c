"""The trained model at work: from two neighboring slices to the slice between them, in batches of any size.

Shapes: images are (N, 1, *size) in [-1, 1], latents (N, C, *size / f), N any number of gaps, frames and samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calid.device import Device, is_out_of_memory
from calid.diffusion import Schedule, invert, sample
from calid.networks import Denoiser, DenoiserConfig, LatentSpace
from calid.weights import Entry, build_latent_space, config_from, load_model

DEFAULT_MODEL = "calid-2d"
Tick = Callable[[int], None]
"""Called with the number of images whose network evaluation has just ended; may raise to stop the work."""


@dataclass(frozen=True)
class Interpolator:
    """E, D, eps_theta, tau1 and tau2 on a device.

    Args:
        latent_space: E and D.
        denoiser: eps_theta with tau1 and tau2.
        schedule: the noise schedule the denoiser was trained with.
        device: where they run.
        entry: what the manifest says of the weights.
    """

    latent_space: LatentSpace
    denoiser: Denoiser
    schedule: Schedule
    device: Device
    entry: Entry

    @property
    def size_multiple(self) -> int:
        """Image sizes must be multiples of this."""
        return self.latent_space.autoencoder.config.downsampling * 2 ** (len(self.denoiser.config.channels) - 1)

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, *size / f) of images with the spatial shape `image_shape`."""
        config = self.latent_space.autoencoder.config
        return (config.latent_channels, *(size // config.downsampling for size in image_shape))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """E: images -> latents, on the CPU."""
        return self._batched(lambda x: self.latent_space.encode(x).float(), images)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """D: latents -> images, on the CPU."""
        return self._batched(lambda z: self.latent_space.decode(z).float(), latents, pixels_from=latents)

    def interpolate(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        *,
        steps: int,
        tick: Tick,
    ) -> torch.Tensor:
        """Latents of the slices between (paper, Eq. 6): DDIM from z_T under the condition of both neighbors."""

        def run(before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor) -> torch.Tensor:
            z_c = self.denoiser.condition(before, after)
            return self._walk(sample(self.schedule, self._model(z_c), z_T, steps=steps), tick)

        return self._batched(run, before, after, z_T)

    def invert(self, images: torch.Tensor, latents: torch.Tensor, *, steps: int, tick: Tick) -> torch.Tensor:
        """z_T of acquired slices, for CaLID+ (paper, "Initialization Refinement").

        Differs from the paper, which leaves the condition of the inversion open: a slice is inverted as lying between
        itself and itself, so that it is inverted once and serves the gaps on both its sides. So sure a condition makes
        few-step inversion end too near zero (0.7 of a unit deviation), and a walk from there blurs; z_T is therefore
        scaled to the radius that Gaussian noise has.
        """

        def run(images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            z_c = self.denoiser.condition(images, images)
            z_T = self._walk(invert(self.schedule, self._model(z_c), latents, steps=steps), tick)
            radius = z_T.square().mean(dim=tuple(range(1, z_T.ndim)), keepdim=True).sqrt()
            return z_T / radius.clamp_min(1e-6)

        return self._batched(run, images, latents)

    def _model(self, z_c: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda z, t: self.denoiser(z, t, z_c)

    @staticmethod
    def _walk(states: Iterable[torch.Tensor], tick: Tick) -> torch.Tensor:
        for state in states:
            tick(len(state))
        return state

    def _batched(
        self, run: Callable[..., torch.Tensor], *tensors: torch.Tensor, pixels_from: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run over batches that fit the device; one that does not fit is halved and tried again."""
        pixels = tensors[0][0, 0].numel()
        if pixels_from is not None:
            pixels = pixels_from[0, 0].numel() * self.latent_space.autoencoder.config.downsampling ** (
                pixels_from.ndim - 2
            )
        size, start, done = self.device.batch_size(pixels), 0, []
        while start < len(tensors[0]):
            batch = [tensor[start : start + size].to(self.device.torch_device) for tensor in tensors]
            try:
                with torch.inference_mode(), self.device.autocast():
                    done.append(run(*batch).cpu())
            except RuntimeError as error:
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
    config = config_from(DenoiserConfig, entry.config["denoiser"])
    denoiser = Denoiser(config)
    denoiser.load_state_dict(_below(state, "denoiser."))
    space = build_latent_space(entry.config["autoencoder"], _below(state, "latent_space."))
    schedule = Schedule(prediction=config.prediction, zero_terminal_snr=config.prediction == "velocity")
    return Interpolator(
        latent_space=space.to(device.torch_device).eval(),
        denoiser=denoiser.to(device.torch_device).eval(),
        schedule=schedule,
        device=device,
        entry=entry,
    )


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
