"""Long-axis looks at a short-axis stack: exact cuts in a long-axis image's plane, and how well they agree with it.

A long-axis (LAX) image is a `Stack` of one slice, acquired in its own plane and often in its own breath-hold. Nothing
here moves either of them: a cut samples the short-axis stack at the LAX image's very pixel centers, in patient space.

How far the two agree is judged on edges across slices. Plain correlation hardly tells a fine stack from a coarse one,
because flow, fat and lung dominate it; the correlation of the derivatives along the slice normal does tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from calid.geometry import LONG_AXIS_DEGREES, affine_from
from calid.heart.anatomy import HeartAxes, heart_axes
from calid.stack import LaxImage, Stack, frames_at_phases_of

SMOOTHING_MM = 2.0
"""Standard deviation of the Gaussian under which gradients are taken: above the noise, below the width of a wall."""

_INDEX_TOLERANCE = 1e-4


# --- cardiac phase ----------------------------------------------------------------------------------------------------


def at_phases_of(plane: Stack, stack: Stack) -> Stack:
    """The LAX image with only the frames that `stack` shows, where the stack has fewer frames than the image."""
    if plane.num_frames <= stack.num_frames:
        return plane
    chosen = np.unique(frames_at_phases_of(plane, stack))
    return replace(plane, voxels=plane.voxels[chosen], frame_times_ms=plane.frame_times_ms[chosen])


# --- cuts -------------------------------------------------------------------------------------------------------------


def cut(stack: Stack, plane: Stack, *, order: int = 1) -> np.ndarray:
    """The stack as seen in a LAX image's plane, at that image's pixel centers and cardiac phases.

    Args:
        stack: short-axis stack, sparse or dense, or labels on its grid.
        plane: the LAX image, one slice.
        order: 0 takes the nearest voxel (labels; the staircase of a sparse stack), 1 interpolates linearly.

    Returns:
        (T, Y, X) float32 with the plane's frames, rows and columns; NaN outside the box of the stack's voxel centers,
        so that a sparse stack and the dense one made of it cover the same pixels.
    """
    if order not in (0, 1):
        raise ValueError(f"order is 0 (nearest) or 1 (linear), not {order}")
    indices = pixel_indices(stack, plane)
    inside = _inside(stack, indices)
    coordinates = _clipped(stack, indices[inside])
    frames = frames_at_phases_of(stack, plane)
    result = np.full((plane.num_frames, *plane.voxels.shape[2:]), np.nan, np.float32)
    for shown in np.unique(frames):
        values = ndimage.map_coordinates(stack.voxels[shown], coordinates, np.float32, order, mode="nearest")
        for target in np.flatnonzero(frames == shown):
            result[target][inside] = values
    return result


def pixel_indices(stack: Stack, plane: Stack) -> np.ndarray:
    """(Y, X, 3) fractional (column, row, slice) indices in `stack` of every pixel center of `plane`."""
    _require_one_slice(plane)
    rows, columns = np.indices(plane.voxels.shape[2:])
    return stack.to_index(plane.to_lps(np.stack([columns, rows, np.zeros_like(rows)], axis=-1)))


def intersection_lines(stack: Stack, plane: Stack) -> np.ndarray:
    """Where each short-axis slice crosses the LAX image.

    Returns:
        (Z, 2, 2) both ends of each line as (column, row) of the LAX image, cut to where slice and image both have
        pixels; NaN for a slice that does not cross the image.
    """
    _require_one_slice(plane)
    columns, rows = plane.voxels.shape[3], plane.voxels.shape[2]
    to_stack = np.linalg.inv(stack.affine) @ plane.affine
    limits = np.array([stack.voxels.shape[3] - 1, stack.voxels.shape[2] - 1])
    lines = np.full((stack.num_slices, 2, 2), np.nan)
    across = to_stack[2, :2]
    if np.linalg.norm(across) < 1e-9:
        return lines
    along = np.array([-across[1], across[0]]) / np.linalg.norm(across)
    for index in range(stack.num_slices):
        point = across * (index - to_stack[2, 3]) / (across @ across)
        start, stop = _clip_line(point, along, np.zeros(2), np.array([columns - 1.0, rows - 1.0]), (-np.inf, np.inf))
        in_stack = to_stack[:2, :2] @ point + to_stack[:2, 3], to_stack[:2, :2] @ along
        start, stop = _clip_line(*in_stack, np.zeros(2), limits, (start, stop))
        if start < stop:
            lines[index] = point + np.outer([start, stop], along)
    return lines


def _clip_line(
    point: np.ndarray, along: np.ndarray, low: np.ndarray, high: np.ndarray, span: tuple[float, float]
) -> tuple[float, float]:
    """The part of `span` for which point + s * along lies in the box [low, high]; start > stop if there is none."""
    start, stop = span
    for value, slope, minimum, maximum in zip(point, along, low, high, strict=True):
        if abs(slope) < 1e-12:
            if not minimum <= value <= maximum:
                return np.inf, -np.inf
            continue
        ends = sorted([(minimum - value) / slope, (maximum - value) / slope])
        start, stop = max(start, ends[0]), min(stop, ends[1])
    return start, stop


def _require_one_slice(plane: Stack) -> None:
    if plane.num_slices != 1:
        raise ValueError(f"a long-axis image has one slice, this has {plane.num_slices}")


def _inside(stack: Stack, indices: np.ndarray) -> np.ndarray:
    """(Y, X) bool: within the box of voxel centers."""
    last = np.array(stack.voxels.shape[:0:-1]) - 1
    return np.asarray(((indices >= -_INDEX_TOLERANCE) & (indices <= last + _INDEX_TOLERANCE)).all(axis=-1))


def _clipped(stack: Stack, indices: np.ndarray) -> np.ndarray:
    """(3, N) coordinates in the order of the voxels (slice, row, column), rounding errors at the border removed."""
    last = np.array(stack.voxels.shape[:0:-1]) - 1
    return np.clip(indices, 0, last).T[::-1]


def around(plane: Stack, center_lps: np.ndarray, axis_lps: np.ndarray, radius_mm: float) -> np.ndarray:
    """(Y, X) bool: pixels of a LAX image within `radius_mm` of the line through `center_lps` along `axis_lps`."""
    _require_one_slice(plane)
    rows, columns = np.indices(plane.voxels.shape[2:])
    away = plane.to_lps(np.stack([columns, rows, np.zeros_like(rows)], axis=-1)) - center_lps
    axis = axis_lps / np.linalg.norm(axis_lps)
    return np.linalg.norm(away - (away @ axis)[..., None] * axis, axis=-1) <= radius_mm


# --- agreement with what the scanner saw ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How well a cut agrees with the acquired LAX image, over the pixels and frames both have.

    Args:
        gradient_correlation: the headline: correlation of the derivatives along the slice normal; 1 is perfect.
        correlation: normalized cross-correlation of the intensities.
        sharpness: root mean square derivative along the slice normal over the acquired image's, after both were brought
            to the same contrast; 1 is as sharp, less is blurred, more is stepped or noisy.
        num_pixels: pixels compared, per frame: away from the borders by twice the smoothing.
    """

    gradient_correlation: float
    correlation: float
    sharpness: float
    num_pixels: int


def agreement(
    acquired: Stack,
    shown: np.ndarray,
    slice_normal_lps: np.ndarray,
    *,
    region: np.ndarray | None = None,
    smoothing_mm: float = SMOOTHING_MM,
) -> Agreement:
    """Compare a cut with the acquired LAX image it was made for.

    Correlations ignore brightness and contrast, which differ between breath-holds and sequences. Each frame is compared
    by itself and the frames are averaged.

    Args:
        acquired: the LAX image, (T, 1, Y, X).
        shown: (T, Y, X) the cut in its plane, NaN where the stack has no data.
        slice_normal_lps: (3,) direction from short-axis slice to slice.
        region: (Y, X) bool, pixels that count, such as those around the heart; all by default.
        smoothing_mm: standard deviation of the Gaussian under which the derivatives are taken.

    Returns:
        The figures; NaN and no pixels where the two do not overlap.
    """
    if shown.shape != (acquired.num_frames, *acquired.voxels.shape[2:]):
        raise ValueError(f"the cut has shape {shown.shape}, the image {acquired.voxels.shape}")
    direction = acquired.directions_lps[:, :2].T @ np.asarray(slice_normal_lps, float)
    scene = _Scene(acquired.spacing_mm[:2], direction / np.linalg.norm(direction), smoothing_mm)
    known = np.isfinite(shown).all(axis=0)
    compared = known if region is None else known & region
    core = compared & _eroded(known, 2 * smoothing_mm, scene.spacing_mm)
    if core.sum() < 2:
        return Agreement(np.nan, np.nan, np.nan, 0)
    box = tuple(slice(*_reach(np.flatnonzero(core.any(axis=axis)), scene, axis)) for axis in (1, 0))
    figures = [
        _frame_agreement(image[0][box].astype(float), picture[box].astype(float), core[box], scene)
        for image, picture in zip(acquired.voxels, shown, strict=True)
    ]
    gradient, plain, sharpness = (float(figure) for figure in np.mean(figures, axis=0))
    return Agreement(gradient, plain, sharpness, int(core.sum()))


def dice(shown: np.ndarray, reference: np.ndarray, label: int) -> float:
    """Overlap of one label in two cuts, over the pixels both know.

    Args:
        shown: (T, Y, X) labels as from `cut` with order 0, NaN where unknown.
        reference: (T, Y, X) the same from labels or meshes drawn on the long-axis image.
        label: the structure.

    Returns:
        2 |A and B| / (|A| + |B|); NaN where neither has the label.
    """
    known = np.isfinite(shown) & np.isfinite(reference)
    first, second = (shown == label) & known, (reference == label) & known
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")


@dataclass(frozen=True)
class _Scene:
    """Pixel size (x, y) in mm, direction of the slice normal in the picture (x, y), smoothing in mm."""

    spacing_mm: np.ndarray
    direction: np.ndarray
    smoothing_mm: float


def _reach(indices: np.ndarray, scene: _Scene, axis: int) -> tuple[int, int]:
    """First and last + 1 index of the pixels that matter to the smoothed ones at `indices`."""
    margin = int(np.ceil(5 * scene.smoothing_mm / scene.spacing_mm[axis - 1]))
    return max(0, int(indices[0]) - margin), int(indices[-1]) + 1 + margin


def _frame_agreement(
    image: np.ndarray, picture: np.ndarray, core: np.ndarray, scene: _Scene
) -> tuple[float, float, float]:
    """Gradient correlation, correlation and sharpness over the pixels of `core`."""
    slopes = [_slope(values, scene)[core] for values in (image, picture)]
    contrasts = [np.subtract(*np.percentile(values[core], [95, 5])) for values in (image, picture)]
    with np.errstate(divide="ignore", invalid="ignore"):
        steepness = [np.sqrt((slope**2).mean()) / contrast for slope, contrast in zip(slopes, contrasts, strict=True)]
        sharpness = steepness[1] / steepness[0]
    return _correlation(*slopes), _correlation(image[core], picture[core]), float(sharpness)


def _slope(values: np.ndarray, scene: _Scene) -> np.ndarray:
    """(Y, X) derivative per mm along the slice normal under a Gaussian; unknown pixels repeat the nearest known."""
    unknown = ~np.isfinite(values)
    if unknown.any():
        values = values[tuple(ndimage.distance_transform_edt(unknown, return_distances=False, return_indices=True))]
    sigma = scene.smoothing_mm / scene.spacing_mm[::-1]
    along_x = ndimage.gaussian_filter(values, sigma, order=(0, 1)) / scene.spacing_mm[0]
    along_y = ndimage.gaussian_filter(values, sigma, order=(1, 0)) / scene.spacing_mm[1]
    return scene.direction[0] * along_x + scene.direction[1] * along_y


def _eroded(known: np.ndarray, distance_mm: float, spacing_mm: np.ndarray) -> np.ndarray:
    """The known pixels farther than `distance_mm` from any unknown one and from the border."""
    padded = np.pad(known, 1)
    return ndimage.distance_transform_edt(padded, sampling=spacing_mm[::-1])[1:-1, 1:-1] > distance_mm


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r, 0 where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


# --- planes from the anatomy, where no long-axis image was acquired ---------------------------------------------------

VIEW_ANGLES_DEG = {"2ch": 90.0, "3ch": 30.0, "4ch": -30.0}
"""Angle of each standard view about the LV axis, from the middle of the septum, positive towards the anterior wall.

These are the planes through the walls of the 17-segment model: anterior and inferior (2ch), anteroseptal and
inferolateral (3ch), inferoseptal and anterolateral (4ch). On the demonstration study the acquired views lie within 6
degrees of them.
"""

_VIEW_WIDTH_MM = 150.0
_VIEW_MARGIN_MM = 12.0


def derive_planes(labels: Stack) -> dict[str, Stack]:
    """The 2-, 3- and 4-chamber planes of a heart without long-axis images, from its labels.

    Every plane contains the LV long axis. The base is at the top, the septal (3ch, 4ch) or anterior (2ch) wall on the
    left.

    Args:
        labels: 1 LV cavity, 2 LV myocardium, 3 RV cavity; sparse or dense.

    Returns:
        view -> empty one-slice stack with the labels' frame times, to be given to `cut`.

    Raises:
        InputError: if the ventricles are not there, or base and apex cannot be told apart.
    """
    axes = heart_axes(labels)
    return {view: _view_plane(labels, axes, np.deg2rad(angle)) for view, angle in VIEW_ANGLES_DEG.items()}


def _view_plane(labels: Stack, axes: HeartAxes, angle: float) -> Stack:
    """The plane through the LV axis at `angle` (radians) from the septum, as high as the stack is thick."""
    left = np.cos(angle) * axes.septal + np.sin(angle) * axes.anterior
    normal = np.cross(-left, axes.apexward)
    pixel = float(labels.spacing_mm[:2].min())
    ends = np.array([labels.affine[:3, 2] * index for index in (0, labels.num_slices - 1)]) + _slab_origin(labels, axes)
    heights = (ends - axes.center_lps) @ axes.apexward
    top, bottom = heights.min() - _VIEW_MARGIN_MM, heights.max() + _VIEW_MARGIN_MM
    corner = axes.center_lps + top * axes.apexward + _VIEW_WIDTH_MM / 2 * left
    affine = affine_from(np.stack([-left, axes.apexward, normal], axis=1) * pixel, corner)
    shape = (labels.num_frames, 1, round((bottom - top) / pixel) + 1, round(_VIEW_WIDTH_MM / pixel) + 1)
    return Stack(np.zeros(shape, np.uint8), affine, labels.frame_times_ms, provenance={"plane": "derived from labels"})


def _slab_origin(labels: Stack, axes: HeartAxes) -> np.ndarray:
    """(3,) LPS mm: where the line through the heart's center along the slice direction meets the first slice."""
    return axes.center_lps - labels.to_index(axes.center_lps)[2] * labels.affine[:3, 2]


def crossing_views(acquired: Iterable[LaxImage], stack: Stack) -> list[LaxImage]:
    """The images whose planes cross the short-axis slices steeply enough to show something along the slice axis."""
    normal = stack.directions_lps[:, 2]
    return [
        image
        for image in acquired
        if abs(image.stack.directions_lps[:, 2] @ normal) <= np.cos(np.radians(LONG_AXIS_DEGREES))
    ]
