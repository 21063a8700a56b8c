"""CaLID in the space of what is new: two neighboring slices in, the slice between them out.

The scheme is the paper's (Section III): E and D, a denoiser of E's latents under the condition z_c = tau1(s(n-1), s(n+1))
and tau2, DDIM from z_T, and for CaLID+ from the neighbors' own inverted latents. What is not in the paper: both
neighbors are brought half-way first (`motion.py`), and E and D know them (`codec.py`), so that a latent says only what
they do not. Then a slice between is what D makes of z_0, and nothing needs to be mended afterwards.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from calid.method.codec import Codec, Sight
from calid.method.diffusion import Model, Schedule, invert, sample
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser


class CodedCaLID(nn.Module):
    """Motion, E, D, eps_theta, tau1 and tau2 with their noise schedule.

    Shapes as in `codec.py`; a model over time takes images (N, 1, T, H, W) and codes (N, C, T, H / 8, W / 8).

    Args:
        codec: E and D.
        denoiser: eps_theta with tau1 and tau2, over codes.
        motion: what brings neighbors half-way.
        temperature: how far a draw goes from the mean of all draws, which the walk's first step predicts, towards where
            the walk ends; 1 is all of it.
    """

    def __init__(self, codec: Codec, denoiser: Denoiser, motion: Motion, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.codec, self.denoiser, self.motion, self.temperature = codec, denoiser, motion, temperature
        prediction = denoiser.config.prediction
        self.schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction == "velocity")

    def between(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        z_T: torch.Tensor,
        gap_mm: torch.Tensor,
        *,
        steps: int,
        is_periodic: bool = False,
    ) -> torch.Tensor:
        """Draw the slices between (Eq. 6).

        Args:
            before, after: images of the neighbors.
            z_T: codes to start from, noise for CaLID, `invert`ed for CaLID+.
            gap_mm: (N,) distances between both neighbors.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.

        Returns:
            Images of the shape of `before`, in [-1, 1].
        """
        sight = self.see(before, after, gap_mm)
        return self.codec.decode(self.drawn(sight, z_T, steps=steps, is_periodic=is_periodic), sight).clamp(-1, 1)

    def estimate(self, before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor) -> torch.Tensor:
        """The slices between at the least expected error: what D makes of both neighbors when asked for fidelity."""
        return self.codec.estimate(self.see(before, after, gap_mm)).clamp(-1, 1)

    def see(self, before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor) -> Sight:
        """What D and tau1 see of both neighbors, brought half-way."""
        return self.codec.see(*halfway(self.motion, before, after), gap_mm)

    def drawn(self, sight: Sight, z_T: torch.Tensor, *, steps: int, is_periodic: bool = False) -> torch.Tensor:
        """z_0 by DDIM from z_T, cooled to the temperature."""
        first, *rest = sample(self.schedule, self._asked(sight, is_periodic), z_T, steps=steps)
        return first + self.temperature * (rest[-1] - first) if rest else first

    def invert(
        self,
        images: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        gap_mm: torch.Tensor,
        *,
        steps: int,
        is_periodic: bool = False,
    ) -> torch.Tensor:
        """Find z_T of slices that lie between two others by DDIM inversion ("Initialization Refinement").

        Args:
            images: the slices.
            before, after: the slices on both sides.
            gap_mm: (N,) distances between these two.
            steps: number of DDIM steps.
            is_periodic: whether a sequence's last frame is followed by its first.
        """
        sight = self.see(before, after, gap_mm)
        *_, z_T = invert(self.schedule, self._asked(sight, is_periodic), self.codec.encode(images, sight), steps=steps)
        return z_T

    def _asked(self, sight: Sight, is_periodic: bool) -> Model:
        """The denoiser under the condition of what is seen."""
        return partial(self.denoiser, z_c=self.denoiser.tau1(sight.features[-1]), is_periodic=is_periodic)
