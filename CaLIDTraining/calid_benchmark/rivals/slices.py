"""Slices on their way into and out of a system: which of them are the same, and how new ones join a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from calid.method.bisection import plan_bisection

System = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(before, after): (N, Y, X) float32 in [0, 1] -> the slices between, the same shape."""


def distinct(*stacks: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Every slice that occurs in stacks (N, Y, X), once, and for each stack which of them its slices are.

    >>> before, after = np.zeros((2, 1, 1)), np.array([[[0.0]], [[1.0]]])
    >>> slices, (first, second) = distinct(before, after)
    >>> len(slices), first.tolist(), second.tolist()
    (2, [0, 0], [0, 1])
    """
    found: dict[bytes, int] = {}
    indices = [np.array([found.setdefault(x.tobytes(), len(found)) for x in stack], dtype=int) for stack in stacks]
    _, firsts = np.unique(np.concatenate(indices), return_index=True)
    return np.concatenate(stacks)[firsts], indices


def woven(slices: np.ndarray, made: Sequence[np.ndarray]) -> np.ndarray:
    """A stack (Z, Y, X) with the slices of `made` in its gaps, each (Z - 1, Y, X), in their order."""
    factor = len(made) + 1
    dense = np.empty(((len(slices) - 1) * factor + 1, *slices.shape[1:]), slices.dtype)
    dense[::factor] = slices
    for k, between in enumerate(made, start=1):
        dense[k::factor] = between
    return dense


def bisected(make: System, slices: np.ndarray, factor: int) -> np.ndarray:
    """A dense stack by bisection with a system that only knows the slice half-way."""
    plan = plan_bisection(len(slices), factor)
    dense = np.zeros((plan.num_slots, *slices.shape[1:]), np.float32)
    dense[::factor] = slices
    for level in plan.levels:
        before, target, after = ([getattr(gap, side) for gap in level] for side in ("before", "target", "after"))
        dense[target] = np.asarray(make(dense[before], dense[after])).clip(0, 1)
    return dense


def interpolated(
    encode: Callable[[np.ndarray], Any],
    decode_between: Callable[[Any, Any, float], np.ndarray],
    slices: np.ndarray,
    factor: int,
    *,
    naive: bool,
) -> np.ndarray:
    """A dense stack by mixing the codes of the slices on both sides of every gap.

    Args:
        encode: slices -> their codes, which can be sliced like an array.
        decode_between: codes of the slices before and after every gap, and how far between them -> the slices there.
        slices: the stack (Z, Y, X).
        factor: number of gaps that each acquired one becomes.
        naive: encode both sides anew for every new slice.
    """
    codes = None if naive else encode(slices)
    made = []
    for k in range(1, factor):
        if codes is None:
            both = encode(np.concatenate([slices[:-1], slices[1:]]))
            first, second = both[: len(slices) - 1], both[len(slices) - 1 :]
        else:
            first, second = codes[:-1], codes[1:]
        made.append(decode_between(first, second, k / factor))
    return woven(slices, made)


def as_images(slices: np.ndarray) -> torch.Tensor:
    """(N, Y, X) in [0, 1] -> float32 (N, 1, Y, X) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(slices, np.float32))[:, None] * 2 - 1


def as_slices(images: torch.Tensor) -> np.ndarray:
    """(N, 1, Y, X) in [-1, 1] -> float32 (N, Y, X) in [0, 1]."""
    return ((images[:, 0].float().clamp(-1, 1) + 1) / 2).numpy()
