"""Muon and Adam as one optimizer: which takes what, where they go, and that a run goes on where it stood."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
from calid_training.rates import MATRIX_ROWS, MuonAndAdam, learning
from torch import nn

RATES = {"muon_rate": 0.05, "rate": 1e-2}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, MATRIX_ROWS, 3), nn.Conv2d(MATRIX_ROWS, MATRIX_ROWS, 3)
    return nn.Sequential(first, nn.GroupNorm(4, MATRIX_ROWS), second, nn.SiLU(), nn.Conv2d(MATRIX_ROWS, 1, 3))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    images = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = net(images).sub(1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_weights_of_layers_move_by_nearly_orthogonal_matrices_and_the_rest_as_adam_moves_it():
    ours, adams = network(), network()
    before = ours[2].weight.detach().clone()
    step(ours, MuonAndAdam(ours, **RATES), 0)
    step(adams, torch.optim.Adam(adams.parameters(), lr=RATES["rate"]), 0)

    moved = torch.linalg.svdvals((ours[2].weight.detach() - before).flatten(1)) / RATES["muon_rate"]
    assert moved.min() > 0.4, "all directions of a weight take part"
    assert moved.max() < 1.4
    of_adam = torch.linalg.svdvals((adams[2].weight.detach() - before).flatten(1))
    assert of_adam.max() > 3 * of_adam.min(), "which Adam's do not, so the test could fail"
    for (name, value), wanted in zip(ours.named_parameters(), adams.parameters(), strict=True):
        if name not in ("0.weight", "2.weight"):
            torch.testing.assert_close(value, wanted, msg=name)


def test_what_needs_no_gradient_stays():
    net = network()
    net[0].requires_grad_(False)
    frozen = copy.deepcopy(net[0].state_dict())
    optimizer = MuonAndAdam(net, **RATES)
    step(net, optimizer, 0)
    torch.testing.assert_close(net[0].state_dict(), frozen, rtol=0, atol=0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 5]


def test_rates_of_the_groups_are_followed():
    net = network()
    optimizer = MuonAndAdam(net, **RATES)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(net.state_dict())
    step(net, optimizer, 0)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_a_network_too_narrow_for_muon_is_left_to_adam():
    optimizers = [
        learning(net, 1e-3, 10, muon_rate=0.05)["optimizer"] for net in (network(), nn.Conv2d(2, MATRIX_ROWS - 1, 3))
    ]
    assert [type(optimizer) for optimizer in optimizers] == [MuonAndAdam, torch.optim.Adam]


def test_the_loss_falls():
    net = network()
    optimizer = MuonAndAdam(net, **RATES)
    losses = [float(step(net, optimizer, seed)) for seed in range(20)]
    assert losses[-1] < losses[0] / 4


def test_a_run_goes_on_where_it_stood():
    whole = network()
    optimizer = MuonAndAdam(whole, **RATES)
    for seed in range(6):
        step(whole, optimizer, seed)
        if seed == 2:
            weights, state = copy.deepcopy(whole.state_dict()), copy.deepcopy(optimizer.state_dict())

    resumed = network()
    resumed.load_state_dict(weights)
    optimizer = MuonAndAdam(resumed, muon_rate=1.0, rate=1.0)  # the rates are those of the state
    optimizer.load_state_dict(state)
    for seed in range(3, 6):
        step(resumed, optimizer, seed)
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
