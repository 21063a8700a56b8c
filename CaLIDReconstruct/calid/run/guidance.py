"""Long-axis images as guides: what they show where the slices that are to be made cross them.

Each slice of the dense stack crosses each long-axis (LAX) image in a line, along which its true intensities are known
once the breath-holds are aligned (`calid.run.alignment`) and the gain and offset of the view are fitted. What a view
shows otherwise than the acquired slices do, where it crosses them (inflow, coils, what is left of a shift), it shows
otherwise between them, too: that is taken off, smooth along the line and linear from slice to slice. The motion is
corrected so that it agrees with these lines (`calid.method.guidance`), level by level of the bisection and for all
frames together. What comes out is one correction per frame and slice, which any model applies to its motion.

A line counts by how well its view explains the acquired slices beside it, and not at all beyond the heart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import ndimage

from calid.geometry import heart_center
from calid.method.bisection import Bisection, Gap
from calid.method.guidance import CHANNELS, NEWTON_STEPS, Lines, corrected, grid_shape
from calid.method.motion import Fields, moved_by
from calid.method.paths import curved_level
from calid.run.batches import Interpolator
from calid.run.intersections import RADIUS_MM, TAPER_MM, Crossing, Image, crossing, images_of
from calid.run.preparation import Preparation
from calid.run.progress import Watch
from calid.run.region import Region
from calid.run.shifts import Alignment
from calid.stack import Stack

SAMPLES = 5  # across a slab
NOISE_FLOOR = 0.1  # of intensities in [-1, 1]: what a view misses at its best
INDEPENDENT_PIXELS = 1.7  # weighs a line against the prior: chosen by left-out views and triplets
OTHERWISE_MM = 6.0  # along a line, over which its difference from acquired slices is smoothed
STEP_EVALUATIONS = 2  # what one step of the correction of a slice costs in network evaluations
CORRECTING_EVALUATIONS = STEP_EVALUATIONS * NEWTON_STEPS
TOGETHER_BYTES = 512 * 2**20  # of what gaps that are corrected together take at most
_BYTES_PER_PIXEL = 96


@dataclass(frozen=True, eq=False)
class View:
    """A long-axis image whose intensities were brought to those of the short axis.

    Args:
        name: name of the view.
        image: the view, moved to where it fits the slices.
        gain, offset: intensities as the networks see them = gain * pixels + offset.
        noise: standard deviation of what is left, at least `NOISE_FLOOR`.
        confidence: (Z,) share of each acquired slice's line that the view explains, 0 where they do not cross.
        otherwise: (Z, points, frames) what it shows more than each acquired slice along their line.
    """

    name: str
    image: Image
    gain: float
    offset: float
    noise: float
    confidence: np.ndarray
    otherwise: np.ndarray


@dataclass(frozen=True, eq=False)
class Guide:
    """The long-axis images of one stack, ready to be asked about any slice of the dense one.

    Args:
        stack: acquired slices, as the networks are shown them.
        preparation: how they are shown.
        plan: which slices are made.
        shifts_mm: (Z, 3) by which each slice still has to be moved, along its directions, to lie where it belongs.
        views: the images.
        center_lps: (3,) mm, the middle of the heart.
    """

    stack: Stack
    preparation: Preparation
    plan: Bisection
    shifts_mm: np.ndarray
    views: tuple[View, ...]
    center_lps: np.ndarray

    @property
    def pixel_mm(self) -> float:
        """Size of a pixel as the networks see it."""
        scale = np.array(self.preparation.working_shape) / self.preparation.size
        return float(np.mean(self.stack.spacing_mm[1::-1] / scale))

    def lines(self, slots: Sequence[int]) -> Lines:
        """What is known of the slices at some slots of the dense stack."""
        found = [[self._line(slot, view) for view in self.views] for slot in slots]
        joined = [[np.concatenate(part) for part in zip(*of_slot, strict=True)] for of_slot in found]
        places, values, weights = zip(*joined, strict=True)
        return Lines(
            torch.from_numpy(np.stack(places)).float(),
            torch.from_numpy(np.stack(values)).float().movedim(2, 0),
            torch.from_numpy(np.stack(weights)).float(),
        )

    def _line(self, slot: int, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places (points, samples, 2), values (points, frames) and weights (points,) of one line."""
        return _line(self, self._image_at(slot), view)

    def _image_at(self, slot: int) -> Image:
        """The slice at a slot, without pixels, where it belongs."""
        place = slot / self.plan.factor
        shift = [np.interp(place, np.arange(len(self.shifts_mm)), column) for column in self.shifts_mm.T]
        affine = self.stack.affine.copy()
        affine[:3, 3] += place * affine[:3, 2]
        empty = np.zeros((0, *self.stack.voxels.shape[2:]), np.float32)
        thickness = images_of(self.stack.frames(0, 1))[0].thickness_mm
        return Image(empty, affine, thickness, self.stack.frame_times_ms).shifted(np.array(shift))


def guide_of(
    stack: Stack, views: Mapping[str, Stack], alignment: Alignment, preparation: Preparation, plan: Bisection
) -> Guide | None:
    """The guide of a stack; None where no view crosses it.

    Args:
        stack: acquired slices; moved within their planes if the alignment says so.
        views: the long-axis images by name, as acquired.
        alignment: shifts of both.
        preparation: how slices are shown to the networks.
        plan: which slices are made from which.
    """
    shifts = alignment.slice_shifts_mm.copy()
    if alignment.applied:
        shifts[:, :2] = 0
    center = heart_center(stack, list(views.values()))
    guide = Guide(stack, preparation, plan, shifts, (), center)
    found = []
    for shift in alignment.views:
        image = images_of(views[shift.name])[0].shifted(np.array(shift.mm))
        view = _matched(guide, shift.name, image)
        if view is not None:
            found.append(view)
    if not found:
        return None
    return Guide(stack, preparation, plan, shifts, tuple(found), center)


def _matched(guide: Guide, name: str, image: Image) -> View | None:
    """A view with gain and offset fitted on the lines of the acquired slices, robustly (flow, partial volumes)."""
    acquired = guide.preparation.prepare(guide.stack.voxels.reshape(-1, *guide.stack.voxels.shape[2:]))[:, 0].numpy()
    acquired = acquired.reshape(*guide.stack.voxels.shape[:2], *acquired.shape[1:])
    lines = []
    for index in range(guide.stack.num_slices):
        places, values, near = _along(guide, guide._image_at(index * guide.plan.factor), image)
        own = np.stack([_at_pixels(frame[index], places) for frame in acquired], axis=1)
        lines.append((values, own, near > 0))
    seen, own = (np.concatenate([line[part][line[2]].ravel() for line in lines]) for part in (0, 1))
    if seen.size < 2 or np.ptp(seen) == 0:
        return None
    weight, gain, offset, noise = np.ones_like(seen), 1.0, 0.0, 1.0
    for _ in range(5):
        mean, own_mean = np.average(seen, weights=weight), np.average(own, weights=weight)
        gain = float((weight * (seen - mean) * (own - own_mean)).sum() / (weight * (seen - mean) ** 2).sum())
        offset = float(own_mean - gain * mean)
        residual = own - gain * seen - offset
        noise = max(1.4826 * float(np.median(np.abs(residual))), NOISE_FLOOR)
        weight = 1 / (1 + (residual / (2 * noise)) ** 2)
    if gain <= 0:
        return None
    confidence = np.array([_explained(own[near], gain * values[near] + offset) for values, own, near in lines])
    smoothing = OTHERWISE_MM / guide.pixel_mm
    otherwise = [_smooth((gain * values + offset).clip(-1, 1) - own, near, smoothing) for values, own, near in lines]
    return View(name, image, gain, offset, noise, confidence, np.stack(otherwise))


def _smooth(values: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """(points, frames) smoothed along the points that are known (points,), 0 far from all of them."""
    weight = ndimage.gaussian_filter1d(known.astype(float), sigma, mode="constant")
    summed = ndimage.gaussian_filter1d(np.where(known[:, None], values, 0.0), sigma, axis=0, mode="constant")
    return summed / np.maximum(weight, 1e-3)[:, None]


def _explained(values: np.ndarray, told: np.ndarray) -> float:
    """The share of a line's variance that what is told of it explains, 0 to 1."""
    if values.size < 2 or values.var() == 0:
        return 0.0
    return float(np.clip(1 - np.square(values - told).mean() / values.var(), 0, 1))


def _line(guide: Guide, target: Image, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The line of a slice and a view: places (points, samples, 2), values (points, frames), weights (points,)."""
    places, seen, near = _along(guide, target, view.image)
    place = float(np.clip(guide.stack.to_index(target.affine[:3, 3])[2], 0, guide.stack.num_slices - 1))
    before = min(int(place), guide.stack.num_slices - 2)
    otherwise = (before + 1 - place) * view.otherwise[before] + (place - before) * view.otherwise[before + 1]
    trust = np.interp(place, np.arange(len(view.confidence)), view.confidence)
    weights = near * trust / view.noise**2 / INDEPENDENT_PIXELS
    return places, ((view.gain * seen + view.offset).clip(-1, 1) - otherwise).clip(-1, 1), weights


def _along(guide: Guide, target: Image, image: Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A slice's line: places (points, samples, 2), a view's pixels there (points, frames), and weights (points,).

    Weights are 1 near the heart, and 0 beyond it and where one of both has no pixels.
    """
    preparation = guide.preparation
    rows, columns = preparation.working_shape
    scale = np.array(preparation.working_shape) / preparation.size
    half = round((RADIUS_MM + TAPER_MM) / guide.pixel_mm)
    along = np.arange(-half, half + 1) * guide.pixel_mm
    line = crossing(target, image, guide.center_lps)
    frames = image.frames_at(guide.stack)
    if line is None:
        return np.zeros((len(along), SAMPLES, 2)), np.zeros((len(along), len(frames))), np.zeros(len(along))
    points = line.origin_lps + along[:, None] * line.along
    values, inside = _slab_means(image, line, points, frames, target.thickness_mm)
    across = (np.arange(SAMPLES) - (SAMPLES - 1) / 2) / SAMPLES * image.thickness_mm
    column, row = target.pixel_indices(points[:, None] + across[:, None] * line.across_sax)
    places = np.stack([(row + 0.5) * scale[0] - 0.5, (column + 0.5) * scale[1] - 0.5], axis=-1)
    inside &= ((places >= 0) & (places <= np.array([rows, columns]) - 1)).all(axis=(1, 2))
    near = np.clip((RADIUS_MM + TAPER_MM - np.abs(along)) / TAPER_MM, 0, 1)
    return places, values, inside * near


def _slab_means(
    image: Image, line: Crossing, points: np.ndarray, frames: np.ndarray, thickness_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """A view's pixels (points, frames) along a line, averaged over the slab of the slice; and which are inside."""
    offsets = (np.arange(SAMPLES) - (SAMPLES - 1) / 2) / SAMPLES * thickness_mm
    values, inside = image.at(points[:, None] + offsets[:, None] * line.sax_normal, frames)
    return values.mean(axis=2).T, np.asarray(inside.all(axis=1))


def _at_pixels(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(points,) means of an image (H, W) over samples at (points, samples, 2)."""
    rows, columns = np.moveaxis(places, -1, 0)
    return ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest").mean(axis=1)


def corrections_by(
    guide: Guide, interpolator: Interpolator, voxels: np.ndarray, watch: Watch, *, is_periodic: bool
) -> torch.Tensor:
    """Corrections (frames, slots, 6, h, w), half precision, of the motion of every slice that is to be made.

    The slices are made by the moved mean alone, level by level, each level from what the guide made of the one before.

    Args:
        guide: the long-axis images.
        interpolator: its motion is corrected.
        voxels: (frames, Z, Y, X) of the acquired slices.
        watch: what counts every evaluation of the motion and every step of a correction.
        is_periodic: whether the frames show one whole cardiac cycle.
    """
    plan, frames = guide.plan, len(voxels)
    acquired = guide.preparation.prepare(voxels.reshape(-1, *voxels.shape[2:]))[:, 0].unflatten(0, voxels.shape[:2])
    size = acquired.shape[2:]
    images = torch.zeros(frames, plan.num_slots, *size)
    images[:, :: plan.factor] = acquired
    found = torch.zeros(frames, plan.num_slots, CHANNELS, *grid_shape(*size), dtype=torch.float16)
    together = max(1, TOGETHER_BYTES // (frames * size[0] * size[1] * _BYTES_PER_PIXEL))
    for number, level in enumerate(plan.levels, start=1):
        watch.stage = f"guided by long-axis images, level {number} of {len(plan.levels)}"
        parts = [level[start : start + together] for start in range(0, len(level), together)]
        found_by = partial(interpolator.fields, tick=watch.tick)
        fields_of = partial(_fields_of, images, found_by, interpolator.passes(number), guide.preparation.region)
        gap_mm = plan.distance_mm(level[0], guide.preparation.slice_mm)
        for gaps, fields in curved_level(parts, fields_of, gap_mm):
            _correct(guide, gaps, fields, gap_mm, images, found, watch, is_periodic=is_periodic)
    return found


def _fields_of(
    images: torch.Tensor,
    found_by: Callable[..., torch.Tensor],
    passes: int,
    region: Region | None,
    gaps: Sequence[Gap],
) -> torch.Tensor:
    """(frames, gaps, 4, H, W) of images (frames, slots, H, W), around a region by a single pass."""
    pair = [images[:, [getattr(gap, side) for gap in gaps]].flatten(0, 1)[:, None] for side in ("before", "after")]
    fields = found_by(*(pair if region is None else map(region.cut, pair)), passes=passes)
    if region is not None:
        fields = region.paste(found_by(*pair, passes=1), fields)
    return fields.unflatten(0, (len(images), len(gaps)))


def _correct(
    guide: Guide,
    gaps: Sequence[Gap],
    fields: torch.Tensor,
    gap_mm: float,
    images: torch.Tensor,
    found: torch.Tensor,
    watch: Watch,
    *,
    is_periodic: bool,
) -> None:
    """Fill the targets of gaps of one level into `images` and `found`."""
    before, target, after = ([getattr(gap, side) for gap in gaps] for side in ("before", "target", "after"))
    pair = images[:, before], images[:, after]
    tick = partial(watch.tick, STEP_EVALUATIONS * len(images) * len(gaps))
    with torch.inference_mode():
        correction = corrected(*pair, fields, guide.lines(target), gap_mm=gap_mm, is_periodic=is_periodic, tick=tick)
        found[:, target] = correction.to(found.dtype)
        left, right = (side.flatten(0, 1)[:, None] for side in pair)
        first, last = moved_by(Fields(*fields.flatten(0, 1).split(2, dim=1)), left, right, correction.flatten(0, 1))
        images[:, target] = ((first + last) / 2)[:, 0].unflatten(0, pair[0].shape[:2])
