"""The optimizers and their learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

MATRIX_ROWS = 16  # output channels from which on a weight is a matrix to Muon; fewer are those that make the answer


class MuonAndAdam(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the weights of layers, Adam for their biases, norms and last layers.

    PyTorch's Muon takes matrices alone: a convolution's weight is one of (output channels, all it reads).

    Args:
        network: what learns; parameters that need no gradient stay.
        muon_rate: Muon's learning rate.
        rate: Adam's.
    """

    def __init__(self, network: torch.nn.Module, *, muon_rate: float, rate: float) -> None:
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        weights = [parameter for parameter in learned if _is_matrix(parameter)]
        others = [parameter for parameter in learned if not _is_matrix(parameter)]
        super().__init__([{"params": weights, "lr": muon_rate}, {"params": others, "lr": rate}], {})
        self._matrices = [torch.nn.Parameter(weight.detach().flatten(1)) for weight in weights]  # the same memory
        self._parts = (
            torch.optim.Muon(self._matrices, lr=muon_rate, weight_decay=0.0),
            torch.optim.Adam(others, lr=rate),
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # torch's has overloads
        """One step of both, at the rates that the groups have by now."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = self.param_groups[0]["params"]
        for matrix, weight in zip(self._matrices, weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The groups, and what both parts remember."""
        return super().state_dict() | {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "parts"})
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


def _is_matrix(parameter: torch.nn.Parameter) -> bool:
    return parameter.ndim >= 2 and len(parameter) >= MATRIX_ROWS


def learning(
    network: torch.nn.Module, rate: float, warmup_steps: int, *, total: float = math.inf, muon_rate: float = 0.0
) -> OptimizerLRScheduler:
    """Adam on all of a network with `warmup`, as a stage's `configure_optimizers` returns it.

    With `muon_rate`, Muon takes the weights of its layers, where any is wide enough: on the motion, 1,500 steps of it
    are worth many thousand of Adam's (CaLIDTraining/GATES.md).
    """
    optimizer: torch.optim.Optimizer
    if muon_rate and any(parameter.requires_grad and _is_matrix(parameter) for parameter in network.parameters()):
        optimizer = MuonAndAdam(network, muon_rate=muon_rate, rate=rate)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    scheduler = warmup(optimizer, warmup_steps, total=total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup(optimizer: torch.optim.Optimizer, steps: int, *, total: float = math.inf) -> LambdaLR:
    """A learning rate that rises linearly over `steps` and then stays ("Training Details"), or falls to 0 at `total`.

    The fall is not in the paper, which trains for days; a short run ends better for it.
    """

    def share(step: int) -> float:
        return min((step + 1) / max(steps, 1), 1.0, 1 - step / (total + 1))

    return LambdaLR(optimizer, share)
