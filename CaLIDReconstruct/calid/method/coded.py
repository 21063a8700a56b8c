"""CaLID in the space of what is new: two neighboring slices in, the slice between them out.

The scheme is the paper's (Section III): E and D, a denoiser of E's latents under tau2 and the condition
z_c = tau1(s(n-1), s(n+1)), DDIM from z_T, and for CaLID+ from the neighbors' own inverted latents. What is not in the
paper: both neighbors are brought half-way first (`motion.py`), and E and D know them (`codec.py`), so that a latent
says only what they do not. A slice between is then D(z_0), as in the paper, and nothing has to be mended afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from calid.method.codec import Codec, Sight
from calid.method.diffusion import EpsTheta, Schedule, invert, sample, unit_radius
from calid.method.model import Departures
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser, folded, frame_by_frame, unfolded
from calid.method.texture import blurred

FULL = Departures()
FIDELITY_BLUR_PIXELS_PER_MM = 1 / 30  # of the gap: the least error on held-out sunnybrook patients, 18 mm apart


class CodedCaLID(nn.Module):
    """Motion, E, D, eps_theta, tau1 and tau2 with their noise schedule.

    Shapes as in `codec.py`; of a cine, images (N, 1, T, H, W) and codes (N, C, T, H / 8, W / 8).

    Args:
        codec: E and D.
        denoiser: eps_theta with tau1 and tau2, over codes.
        motion: what brings neighbors half-way.
    """

    codes_sequences = False

    def __init__(self, codec: Codec, denoiser: Denoiser, motion: Motion) -> None:
        super().__init__()
        self.codec, self.denoiser, self.motion = codec, denoiser, motion
        prediction = denoiser.config.prediction
        self.schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "velocity")

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.codec.config.code_channels

    @property
    def downsampling(self) -> int:
        """f: how many times smaller codes are than images."""
        return self.codec.config.downsampling

    def between(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        gap_mm: torch.Tensor,
        moved: torch.Tensor | None = None,
        *,
        steps: int,
        is_periodic: bool = False,
        departures: Departures = FULL,
    ) -> torch.Tensor:
        """Make the slices between (Eq. 6): DDIM from z_T under the condition of both neighbors, then D.

        Args:
            before, after: images of the neighbors.
            z_T: codes to start from, noise for CaLID, `invert`ed and `slerp`ed for CaLID+.
            gap_mm: (N,) distances between both neighbors.
            moved: both, brought half-way, side by side as channels; None brings them there as `halfway` does.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.
            departures: whether a single step stands for `mean_of_moved`, and how far draws go from their mean.

        Returns:
            Images of the shape of `before`, in [-1, 1].
        """
        if departures.estimate and steps == 1:
            return self.mean_of_moved(before, after, gap_mm, moved)
        sight = self.see(before, after, gap_mm, moved)
        walk = self.walk(sight, z_T, steps=steps, is_periodic=is_periodic)
        made = self.codec.decode(cooled(*walk, temperature=departures.temperature), sight)
        made = made.float().clamp(-1, 1)
        return made if before.ndim == 4 else unfolded(made, frames=before.shape[2])

    def mean_of_moved(
        self, before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, moved: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The slices between at the least expected error: the mean of both neighbors, brought half-way, and a blur.

        The farther apart both are, the less is known of what is fine, and the wider is the blur. D, asked for the least
        error, had the same PSNR and SSIM as this at the same sharpness, and was farther from the truth in features
        (CaLIDTraining/GATES.md).
        """
        first, last = self.halfway(before, after, moved)
        mean = (first + last) / 2
        for gap in gap_mm.unique():
            alike = gap_mm == gap
            soften = partial(blurred, sigma=FIDELITY_BLUR_PIXELS_PER_MM * float(gap))
            mean[alike] = frame_by_frame(soften, mean[alike], dims=2)
        return mean

    def see(
        self, before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, moved: torch.Tensor | None = None
    ) -> Sight:
        """What D and tau1 see of both neighbors, brought half-way; frames are seen one by one."""
        first, last = self.halfway(before, after, moved)
        if before.ndim == 5:
            gap_mm = gap_mm.repeat_interleave(before.shape[2])
            first, last = folded(first), folded(last)
        return self.codec.see(first, last, gap_mm)

    def halfway(
        self, before: torch.Tensor, after: torch.Tensor, moved: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both neighbors at the place half-way between them: as they were moved before, or by the motion alone."""
        return halfway(self.motion, before, after) if moved is None else moved.split(1, dim=1)

    def walk(self, sight: Sight, z_T: torch.Tensor, *, steps: int, is_periodic: bool = False) -> Iterator[torch.Tensor]:
        """Estimates of z_0 (Eq. 3) after every DDIM step from z_T."""
        return sample(self.schedule, self._eps_theta(sight, z_T, is_periodic), z_T, steps=steps)

    def estimates(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        gap_mm: torch.Tensor,
        *,
        steps: int,
    ) -> Iterator[torch.Tensor]:
        """D(z_0) after every step of `walk` from z_T (the paper's Fig. 4)."""
        sight = self.see(before, after, gap_mm)
        return (self.codec.decode(z_0, sight).float() for z_0 in self.walk(sight, z_T, steps=steps))

    def invert(
        self,
        images: torch.Tensor,
        *,
        steps: int,
        is_periodic: bool = False,
        departures: Departures = FULL,
    ) -> torch.Tensor:
        """Find z_T of slices by DDIM inversion ("Initialization Refinement"), each as lying between itself and itself.

        Args:
            images: slices, acquired or made before.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.
            departures: whether z_T is scaled to the radius of Gaussian noise.

        Returns:
            Codes z_T.
        """
        slices = images if images.ndim == 4 else folded(images)
        sight = self.codec.see(slices, slices, torch.zeros(len(slices), device=images.device))  # nothing has to move
        z_0 = self.codec.encode(slices, sight)
        if images.ndim == 5:
            z_0 = unfolded(z_0, frames=images.shape[2])
        *_, z_T = invert(self.schedule, self._eps_theta(sight, z_0, is_periodic), z_0, steps=steps)
        return unit_radius(z_T) if departures.unit_radius else z_T

    def _eps_theta(self, sight: Sight, codes: torch.Tensor, is_periodic: bool) -> EpsTheta:
        """The denoiser of codes like `codes` under the condition of what is seen."""
        z_c = self.denoiser.tau1(sight.features[-1])
        if codes.ndim == 5:
            z_c = unfolded(z_c, frames=codes.shape[2])
        return partial(self.denoiser, z_c=z_c, is_periodic=is_periodic)


def cooled(first: torch.Tensor, *rest: torch.Tensor, temperature: float) -> torch.Tensor:
    """z_0 of a walk's estimates, cooled to a temperature: (N, C, h, w), of sequences (N * T, C, h, w)."""
    z_0 = first + temperature * (rest[-1] - first) if rest else first
    return z_0 if z_0.ndim == 4 else folded(z_0)
