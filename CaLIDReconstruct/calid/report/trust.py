"""How far to trust the model on this very case: acquired slices predicted from their neighbors and compared.

Every inner acquired slice is left out in turn and predicted from the two beside it, over a gap twice as wide as the
model has to bridge in earnest, so the error is an upper bound of a kind. Linear interpolation of the same two slices is
the yardstick. Both are reported per level of the heart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from calid.report.comparison import Column, compare_views
from calid.stack import WINDOW_PERCENTILES, LaxImage, Stack

Predictor = Callable[[Stack], Stack]
"""Turns a stack of n slices into one of 2n - 1 on half the spacing, as `upsample` with factor 2 does."""

LEVELS = ("basal", "middle", "apical")


@dataclass(frozen=True)
class SliceTrust:
    """One left-out slice.

    Args:
        index: number of the slice among the acquired ones.
        level: one of LEVELS, or "slice" where base and apex are not known.
        model_rmse: root mean square error of the prediction, in per cent of the stack's contrast.
        linear_rmse: the same for linear interpolation.
        model_edges: correlation of the in-plane gradients of prediction and truth, 1 is perfect.
        linear_edges: the same for linear interpolation.
    """

    index: int
    level: str
    model_rmse: float
    linear_rmse: float
    model_edges: float
    linear_edges: float


@dataclass(frozen=True)
class Trust:
    """The left-out slices of a case, and what they say together."""

    slices: tuple[SliceTrust, ...]

    def mean(self, figure: str, level: str | None = None) -> float:
        """Mean of one figure over all left-out slices, or those of one level; NaN where there are none."""
        values = [getattr(one, figure) for one in self.slices if level in (None, one.level)]
        return float(np.mean(values)) if values else float("nan")

    @property
    def levels(self) -> list[str]:
        """Levels with a left-out slice, base first."""
        return [level for level in (*LEVELS, "slice") if any(one.level == level for one in self.slices)]

    @property
    def score(self) -> float:
        """Error of the model over linear interpolation's: below 1 the model predicts this heart better."""
        return self.mean("model_rmse") / self.mean("linear_rmse")

    def as_json(self) -> dict[str, Any]:
        """Plain values for the report's data."""
        return {"score": self.score, "slices": [vars(one) for one in self.slices]}


@dataclass(frozen=True)
class LeftOutView:
    """Edge agreement with one long-axis image that took no part.

    Args:
        view: name of the image.
        guided: edge agreement of the stack that the other images guided.
        alone: edge agreement of the stack that none guided.
    """

    view: str
    guided: float
    alone: float


def left_out_views(
    sparse: Stack, lax: Sequence[LaxImage], guided: Callable[[Stack, Sequence[LaxImage]], Stack]
) -> tuple[LeftOutView, ...]:
    """Leave every long-axis image out in turn, let the others guide, and compare with it.

    Args:
        sparse: acquired slices.
        lax: long-axis images; two or more.
        guided: function that makes the dense stack which some of them guide.
    """
    if len(lax) < 2:
        return ()
    alone = {one.view: one for one in compare_views(lax, [Column("made", guided(sparse, ()))])}
    found = []
    for image in lax:
        dense = guided(sparse, [other for other in lax if other is not image])
        judged = {one.view: one for one in compare_views(lax, [Column("made", dense)])}
        if image.name in judged and image.name in alone:
            pair = (one[image.name].columns["made"].gradient_correlation for one in (judged, alone))
            found.append(LeftOutView(image.name, *pair))
    return tuple(found)


def predicted_slices(sparse: Stack, predict: Predictor) -> Stack | None:
    """Every inner acquired slice as predicted from its two neighbors; None with fewer than three slices.

    Two runs suffice: the even slices predict the odd ones and the odd the even.

    Args:
        sparse: acquired slices.
        predict: the model under test.

    Returns:
        A stack of the inner slices 1 ... Z-2, in place.
    """
    if sparse.num_slices < 3:
        return None
    predicted = np.zeros(sparse.voxels[:, 1:-1].shape, np.float32)
    for start in (0, 1):
        half = _every_second(sparse, start)
        if half.num_slices > 1:
            made = predict(half).voxels[:, 1::2]
            predicted[:, start::2][:, : made.shape[1]] = made
    return Stack(predicted, sparse.slice_affine(1), sparse.frame_times_ms)


def _every_second(stack: Stack, start: int) -> Stack:
    affine = stack.slice_affine(start)
    affine[:3, 2] *= 2
    return Stack(stack.voxels[:, start::2], affine, stack.frame_times_ms)


def trust(
    sparse: Stack, predict: Predictor, *, region: np.ndarray | None = None, base_first: bool | None = None
) -> Trust | None:
    """Leave every inner acquired slice out, predict it, and compare with linear interpolation.

    Args:
        sparse: acquired slices, one or several frames (figures are averaged over the frames).
        predict: the model under test.
        region: (Z, Y, X) bool, where errors count, such as around the heart; everywhere by default.
        base_first: whether the first slice is the basal one; None where it is not known.

    Returns:
        None with fewer than three slices.
    """
    predicted = predicted_slices(sparse, predict)
    if predicted is None:
        return None
    truth = sparse.voxels.astype(np.float32)
    linear = (truth[:, :-2] + truth[:, 2:]) / 2
    contrast = float(np.ptp(np.percentile(truth, WINDOW_PERCENTILES))) or 1.0
    slices = []
    for index in range(1, sparse.num_slices - 1):
        inside = np.ones(truth.shape[2:], bool) if region is None else region[index]
        if not inside.any():
            continue
        pairs = [(made[:, index - 1], truth[:, index]) for made in (predicted.voxels, linear)]
        errors = [_rmse(*pair, inside) / contrast * 100 for pair in pairs]
        edges = [_edge_agreement(*pair, inside) for pair in pairs]
        slices.append(SliceTrust(index, _level(index, sparse.num_slices, base_first), *errors, *edges))
    return Trust(tuple(slices))


def _level(index: int, count: int, base_first: bool | None) -> str:
    if base_first is None:
        return "slice"
    from_base = index if base_first else count - 1 - index
    return LEVELS[min(2, 3 * from_base // count)]


def _rmse(made: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    return float(np.sqrt(((made - truth)[:, inside] ** 2).mean()))


def _edge_agreement(made: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Correlation of the in-plane derivatives of (T, Y, X) pictures in the region, lightly smoothed against noise."""
    slopes = []
    for one in (made, truth):
        smooth = ndimage.gaussian_filter(one, (0, 1, 1))
        slopes.append(np.concatenate([part[:, inside].ravel() for part in np.gradient(smooth, axis=(1, 2))]))
    first, second = (slope - slope.mean() for slope in slopes)
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else 0.0
