"""Fields of the motion, corrected so that the slice between agrees with lines on which its intensities are known.

*Departure: guidance.* A long-axis image that was acquired of the same heart crosses every slice that is to be made, and
says what is there along a line. The motion's fields are the prior; a smooth correction of them (cubic between the nodes
of a coarse grid) makes the moved mean of both neighbors agree with the lines. It is small where no line is near, and
where the lines say what the motion says.

The correction is a maximum of the posterior, by Gauss-Newton steps whose normal equations are solved by conjugate
gradients: residuals on the lines against noise, with less weight the larger they are; corrections against their size,
and against their differences from node to node, frame to frame and slice to slice.

Shapes: images are (frames, gaps, H, W) in [-1, 1], corrections (frames, gaps, 4, h, w) in pixels: rows and columns of
the field of the slice before, then of the one after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

NODE_PIXELS = 8
SIZE_PRECISION = 0.03  # per node and square pixel
SMOOTHNESS_PRECISION = 0.5  # of differences between neighboring nodes
FRAME_PRECISION = 0.5  # of differences between neighboring frames of a cine
SLICE_PRECISION = 0.25  # of differences between neighboring gaps
NEWTON_STEPS, GRADIENT_STEPS = 6, 16
OUTLIER = 3.0  # deviations from which a residual counts for half


@dataclass(frozen=True)
class Lines:
    """Where the intensities of the slices between are known.

    Args:
        places: (gaps, points, samples, 2) row and column of every point, as samples across the slab that its intensity
            is the mean of.
        values: (frames, gaps, points) its intensity.
        weights: (gaps, points) how much it counts: 1 / noise^2, for each independent pixel; 0 for no point.
    """

    places: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor


def grid_shape(rows: int, columns: int) -> tuple[int, int]:
    """Nodes (h, w) of a correction of images of so many rows and columns."""
    return math.ceil(rows / NODE_PIXELS) + 1, math.ceil(columns / NODE_PIXELS) + 1


def with_correction(fields: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Fields (N, 4, H, W) with corrections (N, 4, h, w) added."""
    return fields + F.interpolate(correction, fields.shape[-2:], mode="bicubic", align_corners=True)


def reflected(correction: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Corrections (..., 4, h, w) of images that are mirrored along some of the axes -2 (rows) and -1 (columns)."""
    signs = torch.ones(4)
    for axis in axes:
        signs[axis % 2 :: 2] *= -1
    return correction.flip(tuple(axes)) * signs[:, None, None] if axes else correction


def corrected(
    before: torch.Tensor, after: torch.Tensor, fields: torch.Tensor, lines: Lines, *, is_periodic: bool
) -> torch.Tensor:
    """The correction of fields under which the moved mean agrees with the lines.

    Args:
        before, after: images (frames, gaps, H, W).
        fields: (frames, gaps, 4, H, W) of the motion.
        lines: what is known.
        is_periodic: whether the last frame is followed by the first.

    Returns:
        (frames, gaps, 4, h, w), zero without lines.
    """
    frames, gaps, rows, columns = before.shape
    shape = grid_shape(rows, columns)
    correction = torch.zeros(frames, gaps, 4, *shape)
    if not (lines.weights > 0).any():
        return correction
    basis = _basis(lines.places.mean(dim=2), shape, (rows, columns))
    places = _places(lines, fields)
    slopes = [_with_slopes(images) for images in (before, after)]
    for _ in range(NEWTON_STEPS):
        moves = _at_points(correction, basis)  # (frames, gaps, 4, points)
        seen = [
            _sampled(images, place + moves[:, :, part, :, None].movedim(2, -1))
            for images, place, part in zip(slopes, places, (slice(0, 2), slice(2, 4)), strict=True)
        ]  # (frames, gaps, 3, points): value, slope along rows, slope along columns
        residual = lines.values - (seen[0][:, :, 0] + seen[1][:, :, 0]) / 2
        slope = torch.cat([seen[0][:, :, 1:], seen[1][:, :, 1:]], dim=2) / 2  # (frames, gaps, 4, points)
        weights = lines.weights / (1 + lines.weights * residual.square() / OUTLIER**2)
        wanted = _from_points((weights * (residual + (slope * moves).sum(dim=2)))[:, :, None] * slope, basis, shape)
        correction = _solved(correction, wanted, slope, weights, basis, is_periodic)
    return correction


def _solved(
    start: torch.Tensor,
    wanted: torch.Tensor,
    slope: torch.Tensor,
    weights: torch.Tensor,
    basis: torch.Tensor,
    is_periodic: bool,
) -> torch.Tensor:
    """Conjugate gradients for the normal equations of one Gauss-Newton step; the prior couples gaps and frames."""

    def applied(correction: torch.Tensor) -> torch.Tensor:
        along = (slope * _at_points(correction, basis)).sum(dim=2, keepdim=True) * weights[:, :, None]
        return _from_points(along * slope, basis, correction.shape[-2:]) + _prior(correction, is_periodic)

    found = start
    rest = wanted - applied(found)
    direction, energy = rest, rest.square().sum()
    for _ in range(GRADIENT_STEPS):
        if energy <= 1e-10:
            break
        pushed = applied(direction)
        step = energy / (direction * pushed).sum()
        found, rest = found + step * direction, rest - step * pushed
        before, energy = energy, rest.square().sum()
        direction = rest + energy / before * direction
    return found


def _prior(correction: torch.Tensor, is_periodic: bool) -> torch.Tensor:
    """The gradient of the prior's energy."""
    result = SIZE_PRECISION * correction
    for axis, precision in ((-1, SMOOTHNESS_PRECISION), (-2, SMOOTHNESS_PRECISION), (1, SLICE_PRECISION)):
        result = result + precision * _laplacian(correction, axis)
    return result + FRAME_PRECISION * _laplacian(correction, 0, is_periodic)


def _laplacian(values: torch.Tensor, axis: int, is_periodic: bool = False) -> torch.Tensor:
    """The gradient of half the summed squared differences of neighbors along an axis."""
    size = values.shape[axis]
    if size == 1:
        return torch.zeros_like(values)
    if is_periodic and size > 2:
        return 2 * values - values.roll(1, axis) - values.roll(-1, axis)
    steps = values.diff(dim=axis)
    edge = torch.zeros_like(values.narrow(axis, 0, 1))
    return torch.cat([edge, steps], dim=axis) - torch.cat([steps, edge], dim=axis)


def _basis(points: torch.Tensor, shape: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """(gaps, h * w, points): how much every node moves each point (gaps, points, 2)."""
    nodes = torch.eye(shape[0] * shape[1]).reshape(1, -1, *shape)
    weights = F.grid_sample(
        nodes.expand(len(points), *nodes.shape[1:]),
        _normalized(points, size)[:, None],
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    )
    return weights[:, :, 0]


def _at_points(correction: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """(frames, gaps, 4, h, w) -> (frames, gaps, 4, points)."""
    frames = len(correction)
    moves = correction.flatten(-2).transpose(0, 1).flatten(1, 2) @ basis
    return moves.unflatten(1, (frames, 4)).transpose(0, 1)


def _from_points(values: torch.Tensor, basis: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The transpose of `_at_points`."""
    frames = len(values)
    summed = values.transpose(0, 1).flatten(1, 2) @ basis.transpose(1, 2)
    return summed.unflatten(1, (frames, 4)).transpose(0, 1).unflatten(-1, shape)


def _places(lines: Lines, fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the motion finds each sample in the slice before and after: (frames, gaps, points, samples, 2)."""
    frames, gaps, _, rows, columns = fields.shape
    points = lines.places.flatten(1, 2)
    grid = _normalized(points, (rows, columns)).expand(frames, -1, -1, -1).flatten(0, 1)[:, None]
    moves = F.grid_sample(fields.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=True)
    moves = moves[:, :, 0].unflatten(-1, lines.places.shape[1:3]).unflatten(0, (frames, gaps)).movedim(2, -1)
    return lines.places + moves[..., :2], lines.places + moves[..., 2:]


def _with_slopes(images: torch.Tensor) -> torch.Tensor:
    """(frames, gaps, 3, H, W): images and their slopes along rows and columns."""
    slopes = torch.gradient(images, dim=(-2, -1))
    return torch.stack([images, *slopes], dim=2)


def _sampled(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Channels (frames, gaps, 3, H, W) at places (frames, gaps, points, samples, 2), mean over the samples."""
    grid = _normalized(places, images.shape[-2:]).flatten(0, 1)
    found = F.grid_sample(images.flatten(0, 1), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return found.mean(dim=-1).unflatten(0, images.shape[:2])


def _normalized(places: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(row, column) in pixels as (x, y) from -1 to 1."""
    scale = torch.tensor([size[0] - 1, size[1] - 1], dtype=places.dtype)
    return (2 * places / scale - 1).flip(-1)
