"""Still pictures of surfaces without a graphics card or a window: a small depth-buffer painter in numpy.

It serves the report, whose 3D view needs WebGL; the engine itself never opens a rendering window.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SUPERSAMPLING = 2
# The light of the pictures and of the viewer, whose shader (web/viewer.js) a test holds against these.
KEY_DIRECTION = (0.35, 0.6, 0.75)
AMBIENT, KEY, FACING = 0.34, 0.5, 0.22
SHINE, SHINE_POWER = 0.16, 24
RIM, RIM_POWER = 0.55, 2
_KEY_LIGHT = np.array(KEY_DIRECTION) / np.linalg.norm(KEY_DIRECTION)


@dataclass(frozen=True)
class Solid:
    """One surface to paint.

    Args:
        points_mm: (P, 3) in any right-handed frame.
        triangles: (N, 3) point indices, facing outwards.
        rgb: 0 to 255.
        opacity: 1 is solid; less lets what lies behind shine through, most where the surface faces the viewer.
    """

    points_mm: np.ndarray
    triangles: np.ndarray
    rgb: tuple[int, int, int]
    opacity: float = 1.0


def paint(bodies: Sequence[Solid], *, size: tuple[int, int], ground: tuple[int, int, int]) -> Image.Image:
    """Bodies seen along -z with y up, in parallel projection, filling the picture.

    Args:
        bodies: surfaces with points in the viewer's frame: x to the right, y up, z towards the viewer.
        size: (columns, rows).
        ground: color behind them.
    """
    columns, rows = (extent * _SUPERSAMPLING for extent in size)
    canvas = np.tile(np.array(ground, np.float32), (rows * columns, 1))
    if bodies:
        low, high = _bounds(bodies)
        scale = 0.92 * min(columns / (high[0] - low[0]), rows / (high[1] - low[1]))
        middle = (low + high) / 2
        depth = np.full(rows * columns, -np.inf, np.float32)
        for body in sorted(bodies, key=lambda body: -body.opacity):
            _paint_body(canvas, depth, body, (middle, scale, (columns, rows)))
    image = canvas.reshape(rows, columns, 3).clip(0, 255).astype(np.uint8)
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)


def _bounds(bodies: Sequence[Solid]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([body.points_mm for body in bodies])
    return points.min(axis=0), points.max(axis=0)


def _paint_body(
    canvas: np.ndarray, depth: np.ndarray, body: Solid, camera: tuple[np.ndarray, float, tuple[int, int]]
) -> None:
    """Paint one body onto the flat canvas; solid bodies also enter the depth buffer."""
    middle, scale, (columns, rows) = camera
    placed = (body.points_mm - middle) * scale * [1, -1, 1] + [columns / 2, rows / 2, 0]
    normals = _normals(body)
    triangles = body.triangles[normals[body.triangles][:, :, 2].max(axis=1) > 0]  # the others face away
    fragments = list(_fragments(placed, triangles, columns))
    nearest = np.full(depth.shape, -np.inf)
    for _, _, pixels, heights in fragments:
        np.maximum.at(nearest, pixels, heights)
    visible = nearest > depth
    for corners, weights, pixels, heights in fragments:
        front = visible[pixels] & (heights >= nearest[pixels])
        directions = (weights[front][:, :, None] * normals[corners[front]]).sum(axis=1)
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
        _blend(canvas, pixels[front], directions, body)
    if body.opacity == 1:
        depth[visible] = nearest[visible]


def _blend(canvas: np.ndarray, pixels: np.ndarray, normals: np.ndarray, body: Solid) -> None:
    alpha = np.full((len(pixels), 1), body.opacity)
    if body.opacity < 1:
        alpha = np.minimum(body.opacity + RIM * (1 - np.abs(normals[:, 2:])) ** RIM_POWER, 1)
    canvas[pixels] = (1 - alpha) * canvas[pixels] + alpha * _lit(normals, np.array(body.rgb, float))


def _normals(body: Solid) -> np.ndarray:
    """(P, 3) unit normals of the points: the sum of the area vectors of the triangles around each."""
    a, b, c = (body.points_mm[body.triangles[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    normals = np.zeros_like(body.points_mm, float)
    for corner in range(3):
        np.add.at(normals, body.triangles[:, corner], across)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _fragments(
    placed: np.ndarray, triangles: np.ndarray, columns: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The pixels whose centers lie in a triangle, for triangles of one size at a time.

    Args:
        placed: (P, 3) points; x and y in pixels, within the picture.
        triangles: (N, 3) point indices.
        columns: number of columns of the picture.

    Yields:
        For each pixel of each triangle: the triangle's corners (K, 3), the barycentric weights (K, 3), the index into
        the flat picture (K,) and the height (K,).
    """
    corners = placed[triangles]
    low = np.floor(corners[:, :, :2].min(axis=1) - 0.5).astype(int)
    sizes = (np.ceil(corners[:, :, :2].max(axis=1) - 0.5).astype(int) - low).max(axis=1) + 1
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        y, x = (index.ravel() for index in np.indices((size, size)))
        pixels = low[chosen][:, None] + np.stack([x, y], axis=-1)
        weights = _barycentric(pixels + 0.5, corners[chosen][:, :, :2])
        triangle, where = np.nonzero((weights >= -1e-9).all(axis=2))
        inside = weights[triangle, where]
        places = pixels[triangle, where]
        heights = (inside * corners[chosen[triangle], :, 2]).sum(axis=1)
        yield triangles[chosen[triangle]], inside, places[:, 1] * columns + places[:, 0], heights


def _barycentric(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(N, M, 3) weights of points (N, M, 2) with respect to the corners (N, 3, 2); negative outside the triangle."""
    a, b, c = (corners[:, index, None] for index in range(3))
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-9, np.nan, area)  # seen from the side: no pixel is inside
    u, v = _cross(b - points, c - points) / area, _cross(c - points, a - points) / area
    return np.nan_to_num(np.stack([u, v, 1 - u - v], axis=-1), nan=-1.0)


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _lit(normals: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """(N, 3) colors: ambient, a key light from the upper right, a light at the viewer, and a little shine."""
    key = np.maximum(normals @ _KEY_LIGHT, 0)
    facing = np.maximum(normals[:, 2], 0)
    reflected = 2 * key * normals[:, 2] - _KEY_LIGHT[2]
    shine = SHINE * np.maximum(reflected, 0) ** SHINE_POWER
    return rgb * (AMBIENT + KEY * key + FACING * facing)[:, None] + 255 * shine[:, None]


def beside(pictures: Sequence[Image.Image]) -> bytes:
    """PNG of equally large pictures, side by side."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (index * width, 0))
    stream = io.BytesIO()
    strip.save(stream, "PNG")
    return stream.getvalue()
