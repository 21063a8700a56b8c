"""The sampler against distributions whose scores are known exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from calid.method.diffusion import Schedule, ddim_step, invert, sample, slerp

EPSILON = Schedule(prediction="epsilon", zero_terminal_snr=False)
VELOCITY = Schedule()


def exact_model(schedule: Schedule, mean: float, deviation: float):
    """The perfect prediction for z_0 ~ N(mean, deviation^2): E[z_0 | z_t] is linear in z_t."""

    def model(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha = schedule.alpha(t, z_t).double()
        variance = alpha * deviation**2 + 1 - alpha
        z_0 = mean + alpha.sqrt() * deviation**2 / variance * (z_t - alpha.sqrt() * mean)
        epsilon = (z_t - alpha.sqrt() * z_0) / (1 - alpha).sqrt().clamp_min(1e-8)
        return epsilon if schedule.prediction == "epsilon" else alpha.sqrt() * epsilon - (1 - alpha).sqrt() * z_0

    return model


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize("steps", [4, 8, 50])
def test_few_steps_leave_no_noise_in_a_narrow_gaussian(schedule, steps):
    start = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    *_, z_0 = sample(schedule, exact_model(schedule, 0.7, 0.05), start, steps=steps)
    assert abs(z_0.mean() - 0.7) < 0.01
    assert z_0.std() < 0.06


@pytest.mark.parametrize("steps", [50, 250])
def test_many_steps_reproduce_a_wide_gaussian(steps):
    start = torch.randn(8000, 1, generator=torch.Generator().manual_seed(1))
    *_, z_0 = sample(VELOCITY, exact_model(VELOCITY, -0.4, 0.8), start, steps=steps)
    assert z_0.mean() == pytest.approx(-0.4, abs=0.03)
    assert z_0.std() == pytest.approx(0.8, abs=0.04)


def test_one_velocity_step_is_the_posterior_mean_whatever_the_noise():
    *_, z_0 = sample(VELOCITY, exact_model(VELOCITY, 0.3, 0.5), torch.randn(16, 4), steps=1)
    torch.testing.assert_close(z_0, torch.full((16, 4), 0.3, dtype=z_0.dtype), atol=1e-3, rtol=0)


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
def test_sampling_undoes_inversion(schedule):
    z_0 = -0.2 + 0.6 * torch.randn(500, 1, generator=torch.Generator().manual_seed(2))
    model = exact_model(schedule, -0.2, 0.6)
    *_, z_T = invert(schedule, model, z_0, steps=200)
    *_, back = sample(schedule, model, z_T, steps=200)
    assert (back - z_0).abs().mean() < 0.03
    assert z_T.std() == pytest.approx(1.0, abs=0.08)


def test_walk_starts_at_the_last_time_and_ends_without_noise():
    for steps in range(1, 130):
        walk = VELOCITY.walk(steps)
        assert walk[0][0] == 999
        assert walk[-1][1] == -1
        assert len(walk) == steps
        assert all(t > t_next for t, t_next in walk)
        assert all(first[1] == second[0] for first, second in pairwise(walk))


def test_the_walk_refuses_impossible_numbers_of_steps():
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            VELOCITY.walk(steps)


def test_terminal_signal_is_zero_only_where_it_was_asked_for():
    assert VELOCITY.alphas[999] == 0
    assert float(EPSILON.alphas[999]) == pytest.approx(4.0e-5, rel=0.05)  # the value of the linear schedule
    assert VELOCITY.alphas[-1] == EPSILON.alphas[-1] == 1
    with pytest.raises(ValueError, match="zero"):
        Schedule(prediction="epsilon", zero_terminal_snr=True)


@pytest.mark.parametrize("schedule", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
def test_target_and_split_are_inverse(schedule):
    z_0, noise = torch.randn(64, 3, 2, 2).clamp(-3, 3), torch.randn(64, 3, 2, 2)
    t = torch.arange(0, 960, 15)
    z_t = schedule.add_noise(z_0, noise, t)
    again, same_noise = schedule.split(z_t, schedule.target(z_0, noise, t), t)
    torch.testing.assert_close(again, z_0, atol=2e-3, rtol=0)
    torch.testing.assert_close(same_noise, noise, atol=2e-3, rtol=0)


def test_clean_latents_of_epsilon_are_bounded():
    z_T = torch.ones(1, 1)
    _, z_0 = ddim_step(EPSILON, lambda z, _: torch.zeros_like(z), z_T, t=999, t_next=500)
    assert z_0.item() == EPSILON.max_latent  # unbounded it would be 157


def test_slerp_keeps_the_norm_and_the_angles():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(slerp(a, b), torch.tensor([[3.0, 3.0]]) / 2**0.5)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a), a)


def test_slerp_treats_every_sample_for_itself():
    a, b = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
    alone = torch.cat([slerp(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(slerp(a, b), alone)
