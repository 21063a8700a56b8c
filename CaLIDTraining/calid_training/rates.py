"""The optimizers' learning rates over a run."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR


def adam(network: torch.nn.Module, rate: float, warmup_steps: int, *, total: float = math.inf) -> OptimizerLRScheduler:
    """Adam on all of a network with `warmup`, as a stage's `configure_optimizers` returns it."""
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
