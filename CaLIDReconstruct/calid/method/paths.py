"""Paths through more than two slices: a wall that bends does not run straight from one slice to the next.

*Departure: curved paths.* The fields of a gap put tissue half-way between its places in both slices. Where it moves
otherwise through the gap before than through the gap after, a smooth path passes beside that place: by a sixteenth of
the difference between both displacements (the four-point rule of interpolatory subdivision; Dyn, Levin and Gregory
1987). Level by level, halves of halves make up a smooth curve, without a bend at an acquired slice.

The wider gaps are, the less they tell of each other: displacements then differ by another breath-hold, or for an error
of the motion (CaLIDTraining/GATES.md).

Shapes: fields are (frames, gaps, 4, H, W) in pixels, of all gaps of a level or some of them in their order: rows and
columns of the field of the slice before, then of the one after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from calid.method.bisection import Gap
from calid.method.motion import warped

STRAIGHT_MM = 20.0  # gaps at which a path is half as curved as its neighbors say
CELL = 4  # pixels of the grid on which paths are followed; fields are smoother than that
_ROUNDS = 3  # until a place in one gap's half-way slice is found in the other's


def curved_level(
    parts: Sequence[Sequence[Gap]], fields_of: Callable[[Sequence[Gap]], torch.Tensor], gap_mm: float
) -> Iterator[tuple[Sequence[Gap], torch.Tensor]]:
    """The gaps of a level, part by part, with their curved fields.

    Args:
        parts: gaps that are asked about together.
        fields_of: the motion's fields of a part's gaps; asked once for each, one part ahead of what is returned.
        gap_mm: distance of both slices.
    """
    previous, ahead = None, fields_of(parts[0])
    for number, gaps in enumerate(parts, start=1):
        fields, following = ahead, None
        if number < len(parts):
            ahead = fields_of(parts[number])
            following = ahead[:, :1]
        yield gaps, curved(fields, gap_mm, previous=previous, following=following)
        previous = fields[:, -1:]


def curved(
    fields: torch.Tensor,
    gap_mm: float,
    *,
    previous: torch.Tensor | None = None,
    following: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fields that lead to places on smooth paths; a gap without a neighbor on both sides keeps its own.

    Args:
        fields: fields of gaps.
        gap_mm: distance of both slices.
        previous, following: (frames, 1, 4, H, W) of the gaps beside them, or None.
    """
    beside = [part for part in (previous, fields, following) if part is not None]
    coarse = torch.cat([_pooled(part) for part in beside], dim=1)
    change = torch.zeros_like(coarse)
    if coarse.shape[1] > 2:
        before, own, after = (part.flatten(0, 1) for part in (coarse[:, :-2], coarse[:, 1:-1], coarse[:, 2:]))
        strength = 1 / (1 + (gap_mm / STRAIGHT_MM) ** 2)
        change[:, 1:-1] = _bend(before, own, after, strength).unflatten(0, (len(coarse), -1))
    change = change[:, int(previous is not None) :][:, : fields.shape[1]]
    fine = CELL * F.interpolate(change.flatten(0, 1), scale_factor=CELL, mode="bilinear", align_corners=False)
    return fields + fine.unflatten(0, fields.shape[:2])


def _pooled(fields: torch.Tensor) -> torch.Tensor:
    """Fields on the grid, in its cells."""
    return (F.avg_pool2d(fields.flatten(0, 1).float(), CELL) / CELL).unflatten(0, fields.shape[:2])


def _bend(previous: torch.Tensor, own: torch.Tensor, following: torch.Tensor, strength: float) -> torch.Tensor:
    """What bending adds to fields (N, 4, h, w), given those of the gaps beside them."""
    before, after = own.split(2, dim=1)
    arriving = _followed(before, previous[:, 2:], previous[:, 2:] - previous[:, :2])
    leaving = _followed(after, following[:, :2], following[:, 2:] - following[:, :2])
    aside = strength / 16 * (arriving - leaving)
    return torch.cat([warped(side, -aside) - aside - side for side in (before, after)], dim=1)


def _followed(way: torch.Tensor, back: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Another gap's values at the places that this gap's field leads to in the slice that both share.

    Args:
        way: this gap's field of the shared slice.
        back: the other gap's field of it.
        values: what is asked about, where the other gap's half-way slice lies.
    """
    move = way
    for _ in range(_ROUNDS):
        move = way - warped(back, move)
    return warped(values, move)
