"""Everything a report tells of one heart, gathered from a stack, its long-axis images and the tools at hand.

The tools (upsampling, segmentation) are callables, so that a case can be gathered with ground-truth labels, with a
different model, or with neither: what is missing is said, with its reason, and the rest is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from calid.errors import CalidError, InputError, ResourceError, WeightsError
from calid.geometry import heart_center
from calid.heart.anatomy import clean_labels, heart_axes
from calid.heart.figures import NO_VIEWS, function_to_the_ends
from calid.heart.volumes import Function, cardiac_function
from calid.images.checks import check_stack
from calid.report.comparison import HEART_RADIUS_MM, guides_of
from calid.report.trust import LeftOutView, Trust, left_out_views, trust
from calid.stack import LaxImage, Stack, acquired_slices, is_dense

METHOD_NAMES = {"calid": "CaLID", "calid+": "CaLID+", "linear": "linear interpolation"}
"""What people read for the method in a stack's provenance."""

_TRUST_MARGIN_MM = 15.0


@dataclass(frozen=True)
class Tools:
    """What a case is gathered with.

    Args:
        upsample: sparse stack -> dense stack with marks and provenance.
        predict: n slices -> 2n - 1 by the same model; None leaves the trust score out.
        segment: stack -> labels on its grid; None leaves out all that follows from labels.
        method: name of the model, for a dense stack that does not say how it was made.
        guided: (sparse stack, long-axis images) -> dense stack that they guide; None where nothing is guided.
    """

    upsample: Callable[[Stack], Stack]
    predict: Callable[[Stack], Stack] | None = None
    segment: Callable[[Stack], Stack] | None = None
    method: str = "CaLID+"
    guided: Callable[[Stack, Sequence[LaxImage]], Stack] | None = None


@dataclass(frozen=True)
class Missing:
    """Something the report does not have, and why."""

    reason: str


@dataclass(frozen=True)
class Case:
    """One heart.

    Args:
        dense: the stack the report is about.
        sparse: its acquired slices; None where the stack came without any generated ones.
        lax: acquired long-axis images.
        labels: cleaned labels on the dense stack's grid.
        function: volumes by the dense labels.
        sparse_function: volumes by the acquired slices' labels alone.
        trust: how well acquired slices were predicted from their neighbors.
        left_out_views: what guidance does for a long-axis image that takes no part in it; empty without guidance.
        long_axis_function: as `function`, with the LV's ends as long-axis images show them.
        method: name of the model.
        seconds: time that the upsampling took; None where the stack came dense.
    """

    dense: Stack
    sparse: Stack | None
    lax: tuple[LaxImage, ...]
    labels: Stack | Missing
    function: Function | Missing
    sparse_function: Function | Missing
    trust: Trust | Missing
    method: str
    seconds: float | None
    left_out_views: tuple[LeftOutView, ...] = ()
    long_axis_function: Function | Missing = Missing(NO_VIEWS)


def gather(stack: Stack, lax: tuple[LaxImage, ...], tools: Tools, *, source: str = "") -> Case:
    """Upsample a sparse stack (take a dense one as it is), segment it, measure it and try the model on it.

    Of `lax`, images of more than one slice are left out: a folder may hold the short-axis stack as well. Errors name
    the stack by its `source`.

    Raises:
        CalidError: if the stack or a setting cannot be used. A stack that cannot be segmented, for lack of weights or
            for what it shows, only loses the parts that follow from labels.
    """
    lax = tuple(image for image in lax if image.stack.num_slices == 1)
    started = time.monotonic()
    if is_dense(stack):
        check_stack(stack, source=source, harmless=("already-isotropic",))
    dense = stack if is_dense(stack) else tools.upsample(stack)
    seconds = None if dense is stack else time.monotonic() - started
    sparse = acquired_slices(dense)
    raw = _attempt(tools.segment, dense, "No segmentation model was given.")
    labels: Stack | Missing = raw if isinstance(raw, Missing) else clean_labels(raw)
    function = _function(labels)
    return Case(
        dense=dense,
        sparse=sparse,
        lax=lax,
        labels=labels,
        function=function,
        sparse_function=_sparse_function(raw),
        trust=_trust(sparse, lax, labels, tools.predict),
        method=METHOD_NAMES.get(str(dense.provenance.get("method")), tools.method),
        seconds=seconds,
        left_out_views=_left_out_views(dense, sparse, lax, tools),
        long_axis_function=_long_axis_function(labels, dense, lax),
    )


def around_heart(sparse: Stack, lax: tuple[LaxImage, ...], labels: Stack | Missing) -> np.ndarray:
    """(Z, Y, X) bool on the acquired slices: near the labels, else near where the long-axis images meet, else all."""
    if isinstance(labels, Stack) and labels.voxels.any():
        inside = (labels.voxels > 0).any(axis=(0, 1))
        distance = ndimage.distance_transform_edt(~inside, sampling=sparse.spacing_mm[1::-1])
        return np.broadcast_to(distance <= _TRUST_MARGIN_MM, sparse.voxels.shape[1:])
    if not lax:
        return np.ones(sparse.voxels.shape[1:], bool)
    center = sparse.to_index(heart_center(sparse, [image.stack for image in lax]))
    rows, columns = np.indices(sparse.voxels.shape[2:])
    away = np.hypot((columns - center[0]) * sparse.spacing_mm[0], (rows - center[1]) * sparse.spacing_mm[1])
    return np.broadcast_to(away <= HEART_RADIUS_MM, sparse.voxels.shape[1:])


def _attempt(tool: Callable[[Stack], Stack] | None, stack: Stack, otherwise: str) -> Stack | Missing:
    if tool is None:
        return Missing(otherwise)
    try:
        return tool(stack)
    except (InputError, WeightsError, ResourceError) as error:
        return Missing(str(error))


def _function(labels: Stack | Missing) -> Function | Missing:
    if isinstance(labels, Missing):
        return labels
    try:
        return cardiac_function(labels)
    except CalidError as error:
        return Missing(str(error))


def _long_axis_function(labels: Stack | Missing, dense: Stack, lax: tuple[LaxImage, ...]) -> Function | Missing:
    if isinstance(labels, Missing):
        return labels
    found = function_to_the_ends(labels, dense, lax)
    return Missing(found) if isinstance(found, str) else found


def _sparse_function(raw: Stack | Missing) -> Function | Missing:
    """From the labels of the acquired slices alone, cleaned without knowledge of the generated ones."""
    if isinstance(raw, Missing):
        return raw
    sparse = acquired_slices(raw)
    if sparse is None:
        return Missing("The stack has no generated slices, so there is only one way to measure it.")
    return _function(clean_labels(sparse))


def _trust(
    sparse: Stack | None, lax: tuple[LaxImage, ...], labels: Stack | Missing, predict: Callable[[Stack], Stack] | None
) -> Trust | Missing:
    if sparse is None:
        return Missing("The acquired slices are not marked in this stack, so none can be left out.")
    if predict is None:
        return Missing("No model was given to predict left-out slices.")
    moments = sorted({0, sparse.num_frames // 3})
    few = Stack(sparse.voxels[moments], sparse.affine, sparse.frame_times_ms[moments])
    try:
        found = trust(few, predict, region=around_heart(sparse, lax, labels), base_first=_base_first(labels))
    except CalidError as error:
        return Missing(str(error))
    return found or Missing("Fewer than three acquired slices: none has two neighbors.")


def _left_out_views(
    dense: Stack, sparse: Stack | None, lax: tuple[LaxImage, ...], tools: Tools
) -> tuple[LeftOutView, ...]:
    """Judged in two phases, where long-axis images have guided the dense stack."""
    if sparse is None or tools.guided is None or not guides_of(dense):
        return ()
    moments = sorted({0, sparse.num_frames // 3})
    few = replace(sparse, voxels=sparse.voxels[moments], frame_times_ms=sparse.frame_times_ms[moments])
    return left_out_views(few, lax, tools.guided)


def _base_first(labels: Stack | Missing) -> bool | None:
    if isinstance(labels, Missing):
        return None
    try:
        return bool(heart_axes(labels).apexward @ labels.directions_lps[:, 2] > 0)
    except CalidError:
        return None
