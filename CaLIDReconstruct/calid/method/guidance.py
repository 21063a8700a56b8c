"""The motion, corrected so that the slice between agrees with lines on which its intensities are known.

*Departure: guidance.* A long-axis image that was acquired of the same heart crosses every slice that is to be made, and
says what is there along a line. Three corrections make the moved mean of both neighbors agree with the lines, each for
what the one before cannot explain:

- of the motion's fields: where walls lie. Smooth, cubic between the nodes of a coarse grid; the fields are the prior.
- of the share of both neighbors: whether a place takes after the one before or the one after, as where a valve plane
  passes between them. As smooth, and estimated together with the fields.
- of intensities: what is in neither neighbor, such as a valve or a tip. It reaches a few pixels from the line (the
  residuals' Gaussian process regression) and is added to both.

Fields and shares are a maximum of the posterior, by Gauss-Newton steps whose normal equations are solved by conjugate
gradients: residuals on the lines against noise, with less weight the larger they are; corrections against their size,
and against their differences from node to node, frame to frame and slice to slice, the more the nearer both neighbors
are. Where no line is near, and where the
lines say what the motion says, nothing changes.

Shapes: images are (frames, gaps, H, W) in [-1, 1]; corrections (frames, gaps, 6, h, w): rows and columns of the field
of the slice before, then of the one after, in pixels; the share that moves from before (-0.5) to after (0.5); the
intensity that is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

NODE_PIXELS = 8  # between nodes of fields and shares
TOLD_PIXELS = 2  # between nodes of what is handed out
CHANNELS = 6
GAP_MM = 18.0
"""Of both neighbors, for which the precisions and deviations below hold. The motion errs in proportion to the gap, and
so the prior is as wide as it: slices made late, between near ones, follow those and leave no rungs in the blood."""

SIZE_PRECISION = 0.03  # per node and square pixel
SMOOTHNESS_PRECISION = 0.5  # of differences between neighboring nodes
FRAME_PRECISION = 0.5  # of differences between neighboring frames of a cine
SLICE_PRECISION = 0.25  # of differences between neighboring gaps
NEWTON_STEPS, GRADIENT_STEPS = 6, 16
OUTLIER = 0.55  # deviations from which a residual counts for half
SHARE = 0.1  # per pixel of the prior, that of fields
ADDED_PIXELS = 3.0  # from a line, within which intensities are added
ADDED_DEVIATION = 0.3  # of intensities that neither neighbor has
ADDED_LIMIT = 2.0  # from here on a residual is a flaw of the line
ADDED_NOISE = 2.4  # of residuals in 1 / weight: cautious, for nothing smooths what is added over the beat


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


def grid_shape(rows: int, columns: int, node_pixels: int = TOLD_PIXELS) -> tuple[int, int]:
    """Nodes (h, w) of a correction of images of so many rows and columns."""
    return math.ceil(rows / node_pixels) + 1, math.ceil(columns / node_pixels) + 1


def at_pixels(correction: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Corrections (N, 6, h, w) at every pixel of images of a size (H, W)."""
    return F.interpolate(correction.float(), tuple(size), mode="bicubic", align_corners=True)


def blended(before: torch.Tensor, after: torch.Tensor, correction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both moved neighbors (N, 1, H, W) with the shares and intensities of corrections (N, 6, H, W).

    Where the slice between takes after one neighbor, the other becomes more like that one: their mean is what the
    shares say, and no double contour is left.
    """
    share, added = correction[:, 4:5].clamp(-0.5, 0.5), correction[:, 5:6]
    difference = after - before
    towards_after, towards_before = (2 * share).clamp(min=0), (-2 * share).clamp(min=0)
    return before + towards_after * difference + added, after - towards_before * difference + added


def reflected(correction: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """Corrections (..., 6, h, w) of images that are mirrored along some of the axes -2 (rows) and -1 (columns)."""
    signs = torch.ones(CHANNELS, dtype=correction.dtype)
    for axis in axes:
        signs[axis % 2 : 4 : 2] *= -1
    return correction.flip(tuple(axes)) * signs[:, None, None] if axes else correction


def _untold() -> None:
    """The tick of work that nobody watches."""


def corrected(
    before: torch.Tensor,
    after: torch.Tensor,
    fields: torch.Tensor,
    lines: Lines,
    *,
    gap_mm: float,
    is_periodic: bool,
    tick: Callable[[], None] = _untold,
) -> torch.Tensor:
    """The correction of fields under which the moved mean agrees with the lines.

    Args:
        before, after: images (frames, gaps, H, W).
        fields: (frames, gaps, 4, H, W) of the motion.
        lines: what is known.
        gap_mm: distance of both images.
        is_periodic: whether the last frame is followed by the first.
        tick: called at each of the `NEWTON_STEPS`, if there are lines; may raise to stop the work.

    Returns:
        (frames, gaps, 6, h, w), zero without lines.
    """
    frames, gaps, rows, columns = before.shape
    told = grid_shape(rows, columns)
    if not (lines.weights > 0).any():
        return torch.zeros(frames, gaps, CHANNELS, *told)
    shape = grid_shape(rows, columns, NODE_PIXELS)
    correction = torch.zeros(frames, gaps, CHANNELS - 1, *shape)
    basis = _basis(lines.places.mean(dim=2), shape, (rows, columns))
    places = _places(lines, fields)
    slopes = [_with_slopes(images) for images in (before, after)]
    for _ in range(NEWTON_STEPS):
        tick()
        moves, residual, slope = _residual(correction, basis, slopes, places, lines)
        weights = lines.weights / (1 + lines.weights * residual.square() / OUTLIER**2)
        wanted = _from_points((weights * (residual + (slope * moves).sum(dim=2)))[:, :, None] * slope, basis, shape)
        correction = _solved(correction, wanted, slope, weights, basis, gap_mm, is_periodic)
    _, residual, _ = _residual(correction, basis, slopes, places, lines)
    smooth = at_pixels(correction.flatten(0, 1), told).unflatten(0, (frames, gaps))
    smooth[:, :, 4] = (SHARE * smooth[:, :, 4]).clamp(-0.5, 0.5)
    added = _added(residual, lines, told, (rows, columns), ADDED_DEVIATION * gap_mm / GAP_MM)
    return torch.cat([smooth, added[:, :, None]], dim=2)


def _residual(
    correction: torch.Tensor,
    basis: torch.Tensor,
    slopes: Sequence[torch.Tensor],
    places: Sequence[torch.Tensor],
    lines: Lines,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a correction (frames, gaps, 5, h, w) does on the lines.

    Returns:
        The correction there (frames, gaps, 5, points), what it leaves (frames, gaps, points), and the slope of the
        moved mean in it (frames, gaps, 5, points).
    """
    moves = _at_points(correction, basis)
    first, last = (
        _sampled(images, place + moves[:, :, part, :, None].movedim(2, -1))
        for images, place, part in zip(slopes, places, (slice(0, 2), slice(2, 4)), strict=True)
    )  # (frames, gaps, 3, points): value, slope along rows, slope along columns
    wanted = SHARE * moves[:, :, 4]
    share, free = wanted.clamp(-0.5, 0.5)[:, :, None], (wanted.abs() < 0.5)[:, :, None]
    difference = last[:, :, :1] - first[:, :, :1]
    residual = lines.values - ((first + last)[:, :, 0] / 2 + (share * difference)[:, :, 0])
    slope = [(0.5 - share) * first[:, :, 1:], (0.5 + share) * last[:, :, 1:], SHARE * free * difference]
    return moves, residual, torch.cat(slope, dim=2)


def _added(
    residual: torch.Tensor, lines: Lines, shape: tuple[int, int], size: tuple[int, int], deviation: float
) -> torch.Tensor:
    """(frames, gaps, h, w) intensities: the mean of a Gaussian process, given residuals (frames, gaps, points)."""
    axes = [torch.linspace(0, pixels - 1, nodes) for pixels, nodes in zip(size, shape, strict=True)]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    residual = residual * (1 - (residual / ADDED_LIMIT).square()).clamp(min=0).square()
    found = torch.zeros(*residual.shape[:2], *shape)
    for gap, weights in enumerate(lines.weights):
        known = (weights > 0).nonzero()[:, 0][::2]  # points are a pixel apart
        if not len(known):
            continue
        places = lines.places[gap, known].mean(dim=1)
        noise = torch.diag(ADDED_NOISE / weights[known])
        shares = torch.linalg.solve(_alike(places, places, deviation) + noise, residual[:, gap, known].T)
        found[:, gap] = (_alike(nodes, places, deviation) @ shares).T.unflatten(1, shape)
    return found


def _alike(first: torch.Tensor, second: torch.Tensor, deviation: float) -> torch.Tensor:
    """(A, B) covariance of intensities at places (A, 2) and (B, 2)."""
    return deviation**2 * torch.exp(-torch.cdist(first, second).square() / (2 * ADDED_PIXELS**2))


def _solved(
    start: torch.Tensor,
    wanted: torch.Tensor,
    slope: torch.Tensor,
    weights: torch.Tensor,
    basis: torch.Tensor,
    gap_mm: float,
    is_periodic: bool,
) -> torch.Tensor:
    """Conjugate gradients for the normal equations of one Gauss-Newton step; the prior couples gaps and frames."""

    def applied(correction: torch.Tensor) -> torch.Tensor:
        along = (slope * _at_points(correction, basis)).sum(dim=2, keepdim=True) * weights[:, :, None]
        pulled = _from_points(along * slope, basis, correction.shape[-2:])
        return pulled + (GAP_MM / gap_mm) ** 2 * _prior(correction, is_periodic)

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
    """(frames, gaps, 5, h, w) -> (frames, gaps, 5, points)."""
    frames = len(correction)
    moves = correction.flatten(-2).transpose(0, 1).flatten(1, 2) @ basis
    return moves.unflatten(1, (frames, -1)).transpose(0, 1)


def _from_points(values: torch.Tensor, basis: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The transpose of `_at_points`."""
    frames = len(values)
    summed = values.transpose(0, 1).flatten(1, 2) @ basis.transpose(1, 2)
    return summed.unflatten(1, (frames, -1)).transpose(0, 1).unflatten(-1, shape)


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
