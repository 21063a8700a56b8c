"""CaLID on one page (paper, Section III): two neighboring slices in, the slice between them out.

| here              | paper                                                                        |
|-------------------|------------------------------------------------------------------------------|
| `CaLID.between`   | inference: z_T -> z_0 by DDIM under the condition z_c (Eq. 6), then D        |
| `CaLID.invert`    | "Initialization Refinement", CaLID+: slice -> z_T by DDIM inversion          |
| `diffusion.slerp` | z_T of a gap from those of both neighbors (Eq. 7 and 8)                      |
| `bisection`       | "Autoregressive Generation": which slice is made from which neighbors        |
| `Departures`      | what is done here and not in the paper; `PAPER` switches all of it off       |

Everything is a batch of tensors: images (N, 1, H, W) in [-1, 1], latents (N, C, H / f, W / f), N any number of gaps.
A 2D+T model reads sequences: images (N, 1, T, H, W), latents (N, C, T, H / f, W / f), or (N, C, T / f, H / f, W / f)
where its convolutions are 3D. Devices, batches and the user's options are the business of `calid.run`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from calid.method.diffusion import EpsTheta, Schedule, invert, sample, unit_radius
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser, LatentSpace, frame_by_frame
from calid.method.texture import with_brightness_of, with_texture_of


@dataclass(frozen=True)
class Departures:
    """What a model does at inference and the paper does not; every one can be switched off by itself.

    Three more are trained into a model and cannot be chosen afterwards: the anchor (`DenoiserConfig.anchored`), the
    velocity target (`DenoiserConfig.prediction`) and the bound on z_0 of an epsilon model (`Schedule.max_latent`).

    Args:
        motion: whether both neighbors are brought half-way first, by a model that has a motion, and on curved paths
            where there are gaps on both sides (`paths.py`).
        strength: how far a slice goes from the mean of its moved neighbors, 0, to what the diffusion makes of them, 1.
            None shows D(z_0) as it is, without a mean and without the two gains.
        brightness: whether a slice gets the smooth brightness of its moved neighbors' mean.
        texture: whether a slice gets texture as strong as its neighbors'.
        self_condition: whether a slice is inverted as lying between itself and itself; else between its neighbors.
        unit_radius: whether inverted latents are scaled to the radius that Gaussian noise has.
        estimate: whether a single step stands for the slice at the least error, and not for a draw; for a model with a
            codec, whose draws are no means (`coded.py`).
        temperature: how far a draw goes from the mean of all draws, which the walk's first step predicts, to where the
            walk ends; 1 is all of the way. For a model with a codec.
    """

    motion: bool = True
    strength: float | None = None
    brightness: bool = True
    texture: bool = True
    self_condition: bool = True
    unit_radius: bool = True
    estimate: bool = False
    temperature: float = 1.0


PAPER = Departures(
    motion=False, strength=None, brightness=False, texture=False, self_condition=False, unit_radius=False
)


class CaLID(nn.Module):
    """E, D, eps_theta, tau1 and tau2, with their noise schedule, and the motion that comes before them.

    Args:
        latent_space: E and D.
        denoiser: eps_theta with tau1 and tau2.
        schedule: the noise schedule that the denoiser was trained with; None builds the one of its prediction target.
        motion: what brings neighbors half-way, or None where the denoiser was trained on neighbors as they are.
    """

    def __init__(
        self,
        latent_space: LatentSpace,
        denoiser: Denoiser,
        schedule: Schedule | None = None,
        motion: Motion | None = None,
    ) -> None:
        super().__init__()
        self.latent_space, self.denoiser, self.motion = latent_space, denoiser, motion
        prediction = denoiser.config.prediction
        self.schedule = schedule or Schedule(prediction=prediction, zero_terminal_snr=prediction == "velocity")

    def between(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        gap_mm: torch.Tensor | None = None,  # noqa: ARG002 (the form of the model decides)
        moved: torch.Tensor | None = None,
        *,
        steps: int,
        is_periodic: bool = False,
        departures: Departures = Departures(),
    ) -> torch.Tensor:
        """Make the slices between (Eq. 6): DDIM from z_T under the condition of both neighbors, then D.

        Args:
            before, after: images of the neighbors.
            z_T: latents to start from, noise for CaLID, `invert`ed and `slerp`ed for CaLID+.
            gap_mm: not read; networks that know how far apart the neighbors are, are in `coded`.
            moved: both, brought half-way, side by side as channels; None brings them there as `halfway` does.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.
            departures: what is done beside the paper.

        Returns:
            Images of the shape of `before`, in [-1, 1].
        """
        seen = self.halfway(before, after, moved) if departures.motion else (before, after)
        *_, z_0 = self.walk(*seen, z_T, steps=steps, is_periodic=is_periodic)
        image = self.decode(z_0)
        if departures.strength is not None:
            image = self._refined(image, seen, (before, after), departures, departures.strength)
        return image.clamp(-1, 1)

    def walk(
        self, before: torch.Tensor, after: torch.Tensor, z_T: torch.Tensor, *, steps: int, is_periodic: bool = False
    ) -> Iterator[torch.Tensor]:
        """Estimates of z_0 (Eq. 3) after every DDIM step from z_T; the last is z_0.

        Args:
            before, after: images as the denoiser is shown them.
            z_T: latents to start from.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.
        """
        return sample(self.schedule, self._eps_theta(self.condition(before, after), is_periodic), z_T, steps=steps)

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.latent_space.autoencoder.config.latent_channels

    @property
    def downsampling(self) -> int:
        """f: how many times smaller latents are than images."""
        return self.latent_space.autoencoder.config.downsampling

    @property
    def codes_sequences(self) -> bool:
        """Whether E and D read frames together, as the paper's 2D+T networks do, or one by one."""
        return self.latent_space.autoencoder.config.spatial_dims == 3

    def estimates(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        gap_mm: torch.Tensor | None = None,  # noqa: ARG002 (the form of the model decides)
        *,
        steps: int,
    ) -> Iterator[torch.Tensor]:
        """D(z_0) after every step of `walk` from z_T (the paper's Fig. 4), neighbors moved if they can be."""
        return (self.decode(z_0) for z_0 in self.walk(*self.halfway(before, after), z_T, steps=steps))

    def invert(
        self,
        images: torch.Tensor,
        *,
        steps: int,
        neighbors: tuple[torch.Tensor, torch.Tensor] | None = None,
        is_periodic: bool = False,
        departures: Departures = Departures(),
    ) -> torch.Tensor:
        """Find z_T of slices by DDIM inversion ("Initialization Refinement"): the walk of Eq. 6 backwards.

        Args:
            images: slices, acquired or made before.
            steps: number of DDIM steps.
            neighbors: images that the slices lie between; needed without `departures.self_condition`.
            is_periodic: whether a sequence's last frame is followed by its first.
            departures: what is done beside the paper.

        Returns:
            Latents z_T.
        """
        z_0 = self.encode(images)
        z_c = self._own_condition(images, z_0) if departures.self_condition else self._condition_of(neighbors)
        *_, z_T = invert(self.schedule, self._eps_theta(z_c, is_periodic), z_0, steps=steps)
        return unit_radius(z_T) if departures.unit_radius else z_T

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """E: images -> latents."""
        return self.latent_space.encode(images).float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """D: latents -> images."""
        return self.latent_space.decode(latents).float()

    def condition(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """z_c of images as the denoiser is shown them.

        *Departure: anchor.* An anchored denoiser also reads the latents of both. E makes them anew for every gap,
        although every slice is a neighbor of two: brought half-way, it is another image in each.
        """
        latents = (self.encode(before), self.encode(after)) if self.denoiser.config.anchored else None
        return self.denoiser.condition(before, after, latents)

    def halfway(
        self, before: torch.Tensor, after: torch.Tensor, moved: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """*Departure: motion.* Both neighbors at the place half-way between them, if the model has a motion.

        As they were moved before, or by the motion alone.
        """
        if self.motion is None:
            return before, after
        return halfway(self.motion, before, after, refined=False) if moved is None else moved.split(1, dim=1)

    def _refined(
        self,
        image: torch.Tensor,
        seen: tuple[torch.Tensor, torch.Tensor],
        neighbors: tuple[torch.Tensor, torch.Tensor],
        departures: Departures,
        strength: float,
    ) -> torch.Tensor:
        """*Departures: strength, brightness gain, texture gain*.

        What is taken from the diffusion is how D(z_0) differs from what coding makes of the neighbors' mean. So the
        texture that the autoencoder cannot hold stays, and a model whose draws err more than they add can be taken at
        less than its full strength.

        Args:
            image: D(z_0).
            seen: both neighbors as the denoiser was shown them.
            neighbors: both as they are.
            departures: which gains are applied.
            strength: share of the change that is taken.
        """
        mean = (seen[0] + seen[1]) / 2
        image = mean + strength * (image - self.decode(self.encode(mean)))
        if departures.brightness:
            image = frame_by_frame(with_brightness_of, mean, image, dims=2)
        if departures.texture:
            image = frame_by_frame(with_texture_of, *neighbors, image, dims=2)
        return image

    def _own_condition(self, images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """*Departure: self-condition of the inversion.* z_c of slices as lying between themselves and themselves.

        The paper leaves the condition of the inversion open. This one needs a slice to be inverted only once and
        serves the gaps on both its sides.
        """
        return self.denoiser.condition(images, images, (latents, latents))

    def _condition_of(self, neighbors: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        if neighbors is None:
            raise ValueError("without the self-condition, an inversion needs the neighbors of its slices")
        return self.condition(*neighbors)

    def _eps_theta(self, z_c: torch.Tensor, is_periodic: bool) -> EpsTheta:
        """The denoiser under the condition z_c."""
        return partial(self.denoiser, z_c=z_c, is_periodic=is_periodic)
