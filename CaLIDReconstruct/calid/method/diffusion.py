"""The noise schedule and deterministic DDIM (paper, Eq. 1, 3 and 6-8); knows nothing of slices or files.

| here        | paper            | meaning                                           |
|-------------|------------------|---------------------------------------------------|
| alpha_t     | alpha_t          | signal power at t (the cumulated product in DDPM) |
| t, t_next   | t, t-1           | consecutive times of the walk                     |
| epsilon     | eps_theta        | predicted noise                                   |
| z_t, z_0    | z_t, z_0         | noisy and clean latents                           |

All noise maths is float32, whatever the networks run in. Times are integers 0..T-1, and -1 stands for "no noise left"
(alpha = 1). The walk is an explicit list of (t, t_next) pairs that starts at T-1: a grid and a stride that disagree
leave noise in the result of few-step sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch

Prediction = Literal["epsilon", "velocity"]
EpsTheta = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The denoiser under its condition: (z_t (N, ...), t (N,)) -> prediction (N, ...)."""


@dataclass(frozen=True)
class Schedule:
    """Signal powers alpha_t of a linear-beta diffusion (Ho et al. 2020).

    Args:
        prediction: what the network predicts.
        num_times: T.
        beta_start, beta_end: ends of the linear beta schedule.
        zero_terminal_snr: rescale so that alpha_{T-1} = 0 (Lin et al. 2024, Algorithm 1): the walk then starts from
            noise exactly as in training. Needs the velocity target; with epsilon z_0 would be undefined at T-1.
        max_latent: bound on |z_0| estimated from epsilon, whose error at t = T-1 is amplified 157 times.
    """

    prediction: Prediction = "velocity"
    num_times: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    zero_terminal_snr: bool = True
    max_latent: float = 4.0
    alphas: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("epsilon prediction is undefined where the signal is zero: set zero_terminal_snr to False")
        betas = torch.linspace(self.beta_start, self.beta_end, self.num_times, dtype=torch.float64)
        root = torch.cumprod(1 - betas, 0).sqrt()
        if self.zero_terminal_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        object.__setattr__(self, "alphas", torch.cat([root.square(), torch.ones(1)]).float())  # alphas[-1] is 1

    def alpha(self, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """alpha_t of the times t (N,), shaped to multiply `like` (N, ...)."""
        return self.alphas.to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, z_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Eq. 1: z_t = sqrt(alpha_t) z_0 + sqrt(1 - alpha_t) noise."""
        alpha = self.alpha(t, z_0)
        return alpha.sqrt() * z_0 + (1 - alpha).sqrt() * noise

    def target(self, z_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to predict from z_t: the noise (Eq. 5), or sqrt(a) noise - sqrt(1-a) z_0."""
        if self.prediction == "epsilon":
            return noise
        alpha = self.alpha(t, z_0)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * z_0

    def split(self, z_t: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take z_t apart into (z_0, epsilon) with the network's prediction."""
        alpha = self.alpha(t, z_t)
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction == "velocity":
            return signal * z_t - noise * prediction, noise * z_t + signal * prediction
        z_0 = ((z_t - noise * prediction) / signal).clamp(-self.max_latent, self.max_latent)
        return z_0, (z_t - signal * z_0) / noise

    def walk(self, steps: int) -> list[tuple[int, int]]:
        """The (t, t_next) pairs of `steps` DDIM steps from T-1 to -1.

        >>> Schedule().walk(4)
        [(999, 749), (749, 499), (499, 249), (249, -1)]
        """
        if not 1 <= steps <= self.num_times:
            raise ValueError(f"steps must be 1 to {self.num_times}, got {steps}")
        times = [self.num_times - 1 - (i * self.num_times) // steps for i in range(steps)] + [-1]
        return list(pairwise(times))


def ddim_step(
    schedule: Schedule, model: EpsTheta, z_t: torch.Tensor, *, t: int, t_next: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One deterministic step from t to t_next, in either direction (Eq. 3 and 6); returns (z at t_next, z_0)."""
    times = torch.full((z_t.shape[0],), t, device=z_t.device)
    z_0, epsilon = schedule.split(z_t, model(z_t, times).float(), times)
    alpha_next = schedule.alpha(torch.full_like(times, t_next), z_t)
    return alpha_next.sqrt() * z_0 + (1 - alpha_next).sqrt() * epsilon, z_0


def sample(schedule: Schedule, model: EpsTheta, z_T: torch.Tensor, *, steps: int) -> Iterator[torch.Tensor]:
    """Walk from z_T (N, ...) to z_0; yields the estimate of z_0 after every step, so that callers can stop or look."""
    z = z_T
    for t, t_next in schedule.walk(steps):
        z, z_0 = ddim_step(schedule, model, z, t=t, t_next=t_next)
        yield z_0


def invert(schedule: Schedule, model: EpsTheta, z_0: torch.Tensor, *, steps: int) -> Iterator[torch.Tensor]:
    """DDIM inversion: walk from z_0 (N, ...) up to z_T; yields z after every step.

    The network is asked at the time where z is; a clean z counts as t = 0, the smallest time it was trained on.
    """
    z = z_0
    for t, t_next in reversed(schedule.walk(steps)):
        z, _ = ddim_step(schedule, model, z, t=max(t_next, 0), t_next=t)
        yield z


def slerp(a: torch.Tensor, b: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    """Spherical interpolation of each sample of two batches (N, ...) over its flattened values (Eq. 7 and 8)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    theta = torch.arccos(cosine).clamp(1e-4, torch.pi - 1e-4).reshape(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - weight) * theta) * a + torch.sin(weight * theta) * b) / torch.sin(theta)


def unit_radius(z_T: torch.Tensor) -> torch.Tensor:
    """*Departure: unit radius.* Latents (N, C, ..., h, w), those of every frame scaled to a mean square of 1.

    So sure a condition as a slice itself makes few-step inversion end too near zero (0.7 of a unit deviation), and a
    walk from there blurs.
    """
    radius = z_T.square().mean(dim=(1, -2, -1), keepdim=True).sqrt()
    return z_T / radius.clamp_min(1e-6)
