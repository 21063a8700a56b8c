"""The anchored denoiser: what it predicts before it has learned anything, and what it is told of its neighbors."""

from __future__ import annotations

import pytest
import torch
from calid.method.diffusion import Schedule, sample
from calid.method.networks import Denoiser, DenoiserConfig

SMALL = {
    "channels": (16, 16, 32),
    "attention": (False, False, True),
    "condition_attention": (False, False, True),
    "tau1_channels": (16, 16, 16),
    "norm_num_groups": 16,
    "head_channels": 16,
}


def neighbors() -> tuple[torch.Tensor, ...]:
    """Images (3, 1, 32, 32) and latents (3, 4, 8, 8) of the slices before and after."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 1, 32, 32)] * 2 + [(3, 4, 8, 8)] * 2
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("steps", [1, 4])
def test_before_training_the_first_step_predicts_the_mean_of_the_neighbors_latents(steps):
    denoiser = Denoiser(DenoiserConfig(**SMALL, anchored=True))  # its last convolution is zero, as MONAI starts it
    before, after, z_before, z_after = neighbors()
    with torch.no_grad():
        z_c = denoiser.condition(before, after, (z_before, z_after))
        first, *_ = sample(Schedule(), lambda z, t: denoiser(z, t, z_c), torch.randn(3, 4, 8, 8), steps=steps)
    torch.testing.assert_close(first, (z_before + z_after) / 2)


def test_every_later_step_is_pulled_to_the_mean_by_the_power_of_the_noise():
    """x_0 = sqrt(a) z_t - sqrt(1 - a) v with v = -sqrt(1 - a) m gives sqrt(a) z_t + (1 - a) m."""
    denoiser = Denoiser(DenoiserConfig(**SMALL, anchored=True))
    before, after, z_before, z_after = neighbors()
    schedule, z_t, t = Schedule(), torch.randn(3, 4, 8, 8), torch.tensor([10, 400, 900])
    with torch.no_grad():
        z_0, _ = schedule.split(z_t, denoiser(z_t, t, denoiser.condition(before, after, (z_before, z_after))), t)
    alpha = schedule.alphas[t].float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(z_0, alpha.sqrt() * z_t + (1 - alpha) * (z_before + z_after) / 2)


def test_the_networks_see_which_neighbor_is_which():
    torch.manual_seed(0)
    denoiser = Denoiser(DenoiserConfig(**SMALL, anchored=True))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before, after, z_before, z_after = neighbors()
    z, t = torch.randn(3, 4, 8, 8), torch.tensor([500] * 3)
    with torch.no_grad():
        one = denoiser(z, t, denoiser.condition(before, after, (z_before, z_after)))
        other = denoiser(z, t, denoiser.condition(before, after, (z_after, z_before)))
    assert not torch.allclose(one, other, atol=1e-3)


def test_an_anchor_needs_the_velocity_target():
    with pytest.raises(ValueError, match="velocity"):
        DenoiserConfig(anchored=True, prediction="epsilon")
