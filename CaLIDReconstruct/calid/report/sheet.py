"""Picture sheets and films: long-axis planes as acquired, and as cut from the short-axis stack.

Every picture of a sheet shows the same piece of the same physical plane, turned so that the short-axis slices lie flat
with the base at the top, at one scale and one window. Only pillow is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from calid.geometry import affine_from, heart_center
from calid.heart.longaxis import at_phases_of, crossing_views, cut, intersection_lines
from calid.report import page
from calid.report.comparison import (
    HEART_RADIUS_MM,
    Column,
    ViewAgreement,
    compare_views,
)
from calid.stack import WINDOW_PERCENTILES, LaxImage, Stack, frames_at_phases_of

MARGIN_MM = 14.0
"""How much of the acquired image is shown above and below the short-axis slab."""

ACQUIRED = "acquired"
"""Heading of the column with the acquired image."""

_PIXELS_PER_MM = 2.6
_GRID_MM = 0.7
_BASEWARD_LPS = np.array([-0.5, 0.6, 0.6])  # where the base of the heart lies seen from its apex, in nearly everyone

_GROUND = (13, 17, 23)
_EMPTY = (24, 31, 41)
_TEXT = (232, 237, 243)
_QUIET = (154, 167, 181)
_ACCENT = (76, 194, 180)


# --- the piece of the plane that is shown -----------------------------------------------------------------------------


def upright_plane(plane: Stack, stack: Stack, center_lps: np.ndarray) -> Stack:
    """A piece of a LAX image's plane around the heart, turned so that short-axis slices lie flat with the base on top.

    It is turned only, never mirrored, within the plane.

    Args:
        plane: the acquired LAX image.
        stack: gives the slice normal and the slab, to which MARGIN_MM is added.
        center_lps: (3,) about this point, moved into the plane.

    Returns:
        A one-slice stack of the acquired image sampled there (float32, zero beyond the image), with its frames.
    """
    image_normal = plane.directions_lps[:, 2]
    normal = stack.directions_lps[:, 2]
    up = normal if normal @ _BASEWARD_LPS > 0 else -normal
    up = up - image_normal * (up @ image_normal)
    crossing = np.linalg.norm(up)
    down = -up / crossing
    right = np.cross(down, np.cross(plane.directions_lps[:, 0], plane.directions_lps[:, 1]))
    height = (stack.num_slices - 1) * stack.spacing_mm[2] / crossing + 2 * MARGIN_MM
    shape = round(height / _GRID_MM), round(2 * HEART_RADIUS_MM / _GRID_MM)
    axes = np.stack([right, down, np.cross(right, down)], axis=1) * _GRID_MM
    middle = _middle_of_slab(plane, stack, center_lps, down)
    affine = affine_from(axes, middle - axes[:, :2] @ ((np.array(shape[::-1]) - 1) / 2))
    empty = Stack(np.zeros((plane.num_frames, 1, *shape), np.uint8), affine, plane.frame_times_ms)
    shown = cut(_thick(plane), empty)
    return empty.with_voxels(np.nan_to_num(shown)[:, None])


def _middle_of_slab(plane: Stack, stack: Stack, center_lps: np.ndarray, down: np.ndarray) -> np.ndarray:
    """(3,) LPS mm: the heart's center moved into the plane, then along `down` to the middle of the slab."""
    image_normal, normal = plane.directions_lps[:, 2], stack.directions_lps[:, 2]
    point = center_lps + image_normal * ((plane.origin_lps - center_lps) @ image_normal)
    slab_middle = stack.origin_lps + stack.affine[:3, 2] * (stack.num_slices - 1) / 2
    return point + down * ((slab_middle - point) @ normal) / (down @ normal)


def _thick(plane: Stack) -> Stack:
    """The one-slice image twice, half a millimeter to either side, so that rounding does not lose its own plane."""
    affine = plane.affine.copy()
    affine[:3, 2] = plane.directions_lps[:, 2]
    affine[:3, 3] -= affine[:3, 2] / 2
    return replace(plane, voxels=np.repeat(plane.voxels, 2, axis=1), affine=affine, generated=None)


@dataclass(frozen=True)
class _Row:
    """The pictures of one view at one scale: (T, Y, X) each, NaN where there is no data."""

    name: str
    plane: Stack
    pictures: Mapping[str, np.ndarray]
    window: tuple[float, float]


def _row(name: str, columns: Sequence[Column], plane: Stack, acquired: np.ndarray | None) -> _Row:
    """The pictures of one view; `acquired` (T, Y, X) leads where there is one."""
    pictures = {} if acquired is None else {ACQUIRED: acquired.astype(np.float32)}
    for column in columns:
        pictures[column.name] = cut(column.stack, plane, order=column.order)
    inside = np.isfinite(pictures[columns[-1].name])
    seen = np.concatenate([picture[inside & np.isfinite(picture)] for picture in pictures.values()])
    low, high = np.percentile(seen, WINDOW_PERCENTILES) if seen.size else (0.0, 1.0)
    return _Row(name, plane, pictures, (float(low), float(max(high, low + 1e-6))))


def _gray(values: np.ndarray, window: tuple[float, float], *, pixels_per_mm: float = _PIXELS_PER_MM) -> Image.Image:
    """One picture at the sheet's or another scale, empty ground where there is no data."""
    known = np.isfinite(values)
    scaled = np.clip((np.nan_to_num(values) - window[0]) / (window[1] - window[0]), 0, 1)
    size = tuple(round(extent * _GRID_MM * pixels_per_mm) for extent in values.shape[::-1])
    picture = Image.fromarray((scaled * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    mask = Image.fromarray(known.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", size, _EMPTY), mask)


# --- the sheet --------------------------------------------------------------------------------------------------------


def lax_sheet(
    acquired: Sequence[LaxImage],
    columns: Sequence[Column],
    path: Path,
    *,
    moment_ms: float | None = None,
    title: str = "Long-axis planes of one short-axis stack",
    figures: Sequence[ViewAgreement] | None = None,
) -> list[ViewAgreement]:
    """Write the picture sheet (PNG): a row per LAX image; acquired, then one picture per column.

    Args:
        acquired: long-axis images of the same heart.
        columns: ways to fill their planes, sparse stack first (see `standard_columns`).
        path: where the PNG goes.
        moment_ms: cardiac phase shown, the last column's first frame by default.
        title: heading.
        figures: figures by `compare_views`, where they are known already.

    Returns:
        The figures written under the pictures, over all phases (see `compare_views`).
    """
    sparse, shown = columns[0].stack, columns[-1].stack
    moment = float(shown.frame_times_ms[0]) if moment_ms is None else moment_ms
    center = heart_center(sparse, [image.stack for image in acquired])
    results = list(compare_views(acquired, columns) if figures is None else figures)
    by_view = {result.view: result for result in results}
    rows = []
    for image in crossing_views(acquired, sparse):
        if image.name in by_view:
            plane = upright_plane(_at_moment(image.stack, shown, moment), sparse, center)
            rows.append(_row(image.name, columns, plane, plane.voxels[:, 0]))
    _draw_sheet(rows, by_view, sparse, title, moment).save(path)
    return results


def derived_sheet(
    planes: Mapping[str, Stack],
    columns: Sequence[Column],
    path: Path,
    *,
    moment_ms: float | None = None,
    title: str = "Long-axis planes derived from the anatomy",
) -> None:
    """Write the picture sheet (PNG) of a stack without acquired long-axis images.

    Args:
        planes: view -> empty plane, as from `longaxis.derive_planes`.
        columns: as for `lax_sheet`.
        path: where the PNG goes.
        moment_ms: cardiac phase shown, the last column's first frame by default.
        title: heading.
    """
    sparse, shown = columns[0].stack, columns[-1].stack
    moment = float(shown.frame_times_ms[0]) if moment_ms is None else moment_ms
    rows = [_row(view, columns, _fine(_at_moment(plane, shown, moment)), None) for view, plane in planes.items()]
    _draw_sheet(rows, {}, sparse, title, moment).save(path)


def _fine(plane: Stack) -> Stack:
    """The same empty plane on the sheet's own grid."""
    extents = np.array(plane.voxels.shape[2:]) * plane.spacing_mm[1::-1]
    affine = plane.affine.copy()
    affine[:3, :3] = plane.directions_lps * _GRID_MM
    shape = (plane.num_frames, 1, *np.rint(extents / _GRID_MM).astype(int))
    return replace(plane, voxels=np.zeros(shape, np.uint8), affine=affine)


def _at_moment(plane: Stack, shown: Stack, moment_ms: float) -> Stack:
    """The LAX image's frame in the phase of the frame of `shown` nearest to `moment_ms`."""
    frame = int(np.abs(shown.frame_times_ms - moment_ms).argmin())
    matched = frames_at_phases_of(plane, shown)[frame]
    return replace(plane.frame(int(matched)), frame_times_ms=shown.frame_times_ms[frame : frame + 1])


_GAP = 16
_EDGE = 36
_HEAD = 118
_CAPTION = 62
_NAME = 44
_FOOT = 74


def _draw_sheet(
    rows: Sequence[_Row], figures: Mapping[str, ViewAgreement], sparse: Stack, title: str, moment_ms: float
) -> Image.Image:
    names = list(rows[0].pictures) if rows else [ACQUIRED]
    tile_width = round(2 * HEART_RADIUS_MM / _GRID_MM) * _GRID_MM * _PIXELS_PER_MM
    width = round(2 * _EDGE + _NAME + len(names) * tile_width + (len(names) - 1) * _GAP)
    grays = [{name: _gray(picture[0], row.window) for name, picture in row.pictures.items()} for row in rows]
    caption = _CAPTION if figures else _GAP
    heights = [next(iter(gray.values())).height + caption for gray in grays]
    sheet = Image.new("RGB", (width, _HEAD + sum(heights) + _FOOT), _GROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_EDGE, 24), title, 26, _TEXT)
    lefts = [round(_EDGE + _NAME + index * (tile_width + _GAP)) for index in range(len(names))]
    for name, left in zip(names, lefts, strict=True):
        _write(draw, (left, _HEAD - 36), name, 21, _ACCENT if name == names[-1] else _TEXT)
    top = _HEAD
    for row, gray, height in zip(rows, grays, heights, strict=True):
        _draw_row(sheet, row, gray, (lefts, top), figures.get(row.name), sparse)
        top += height
    legend = f"{moment_ms:.0f} ms after the R wave.  Marks beside the pictures: acquired slices."
    _draw_foot(draw, (lefts[0], top + 8), legend + ("  1.00: full agreement." if figures else ""))
    return sheet


def _draw_row(
    sheet: Image.Image,
    row: _Row,
    grays: Mapping[str, Image.Image],
    place: tuple[Sequence[int], int],
    figures: ViewAgreement | None,
    sparse: Stack,
) -> None:
    draw = ImageDraw.Draw(sheet)
    lefts, top = place
    _write_upright(sheet, (_EDGE - 6, top), row.name, next(iter(grays.values())).height)
    marks = _slice_marks(row.plane, sparse)
    for (name, gray), left in zip(grays.items(), lefts, strict=True):
        sheet.paste(gray, (left, top))
        for first, last in marks:
            for x, y in ((left, top + first), (left + gray.width - 7, top + last)):
                draw.line([(x, y), (x + 6, y)], fill=_ACCENT, width=2)
        below = (left, top + gray.height + 8)
        if name == ACQUIRED:
            _write(draw, below, "what the scanner saw", 15, _QUIET)
        if figures is None or name not in figures.columns:
            continue
        figure = figures.columns[name]
        if not figure.num_pixels:
            _write(draw, below, "guided by this image", 15, _QUIET)
            continue
        color = _ACCENT if name == figures.best else _TEXT
        _write(draw, below, f"edge agreement {figure.gradient_correlation:.2f}", 16, color)
        rest = f"correlation {figure.correlation:.2f}   sharpness {figure.sharpness:.2f}"
        _write(draw, (below[0], below[1] + 21), rest, 14, _QUIET)


def _slice_marks(plane: Stack, sparse: Stack) -> list[tuple[float, float]]:
    """Picture rows at which the acquired slices meet its left and its right side."""
    width = plane.voxels.shape[3] - 1
    marks = []
    for (first_x, first_y), (last_x, last_y) in intersection_lines(sparse, plane):
        if np.isfinite(first_y) and abs(last_x - first_x) > 1e-6:
            slope = (last_y - first_y) / (last_x - first_x)
            scale = _GRID_MM * _PIXELS_PER_MM
            marks.append((scale * (first_y - slope * first_x), scale * (first_y + slope * (width - first_x))))
    return marks


def _draw_foot(draw: ImageDraw.ImageDraw, place: tuple[int, int], legend: str) -> None:
    left, top = place
    length = 50 * _PIXELS_PER_MM
    draw.line([(left, top + 9), (left + length, top + 9)], fill=_TEXT, width=3)
    _write(draw, (left + length + 12, top), "50 mm", 15, _TEXT)
    _write(draw, (left + length + 90, top), legend, 15, _QUIET)
    _write(draw, (left, top + 30), page.STANDING_NOTE, 15, (242, 182, 90))


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, size: int, color: tuple[int, int, int]
) -> None:
    draw.text(place, words, fill=color, font=ImageFont.load_default(size))


def _write_upright(sheet: Image.Image, place: tuple[int, int], words: str, height: int) -> None:
    """Words from bottom to top, centered along `height`."""
    strip = Image.new("RGB", (height, 30), _GROUND)
    draw = ImageDraw.Draw(strip)
    draw.text((height / 2, 15), words, fill=_TEXT, font=ImageFont.load_default(19), anchor="mm")
    sheet.paste(strip.rotate(90, expand=True), place)


# --- the beating heart ------------------------------------------------------------------------------------------------

_FILM_PIXELS_PER_MM = 1.6
_FILM_GRAYS = 44  # 25 phases then take about a megabyte
_FILM_GAP, _FILM_HEAD = 10, 28


def lax_movie(image: LaxImage, acquired: Sequence[LaxImage], columns: Sequence[Column], path: Path) -> Path:
    """Write one LAX view beating through the cycle, acquired and then every column, as an animated GIF.

    Args:
        image: the view that is shown.
        acquired: all long-axis images of the study, which say where the heart is.
        columns: ways to fill the plane, sparse stack first.
        path: ends in .gif, which opens everywhere, slides included.
    """
    shortest = min([image.stack, *(column.stack for column in columns)], key=lambda stack: stack.num_frames)
    center = heart_center(columns[0].stack, [view.stack for view in acquired])
    plane = upright_plane(at_phases_of(image.stack, shortest), columns[0].stack, center)
    return _film(_row(image.name, columns, plane, plane.voxels[:, 0]), path)


def derived_movie(view: str, plane: Stack, columns: Sequence[Column], path: Path) -> Path:
    """The same for an empty plane of `longaxis.derive_planes`, where no image was acquired."""
    return _film(_row(view, columns, _fine(plane), None), path)


def _film(row: _Row, path: Path) -> Path:
    colors = _film_colors()
    frames = [
        _film_frame(row, index).quantize(palette=colors, dither=Image.Dither.NONE)
        for index in range(row.plane.num_frames)
    ]
    times = row.plane.frame_times_ms
    duration = float(np.diff(times).mean()) if times.size > 1 else 1000.0
    tens = max(2, round(duration / 10))  # a GIF counts in 10 ms, and browsers slow down what is faster than 20
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=10 * tens, loop=0, optimize=True)
    return path


def _film_colors() -> Image.Image:
    """The colors of every frame: grays for the heart, and the few of ground and headings."""
    grays = [(gray, gray, gray) for gray in np.linspace(0, 255, _FILM_GRAYS).round().astype(int).tolist()]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for color in (*grays, _GROUND, _EMPTY, _TEXT, _ACCENT) for part in color])
    return palette


def _film_frame(row: _Row, index: int) -> Image.Image:
    scale = {"pixels_per_mm": _FILM_PIXELS_PER_MM}
    grays = {name: _gray(picture[index], row.window, **scale) for name, picture in row.pictures.items()}
    width, height = next(iter(grays.values())).size
    film = Image.new("RGB", (len(grays) * (width + _FILM_GAP) - _FILM_GAP, height + _FILM_HEAD), _GROUND)
    draw = ImageDraw.Draw(film)
    for place, (name, gray) in enumerate(grays.items()):
        left = place * (width + _FILM_GAP)
        _write(draw, (left, 4), name, 15, _ACCENT if place == len(grays) - 1 else _TEXT)
        film.paste(gray, (left, _FILM_HEAD))
    return film
