"""Still pictures of surfaces without a graphics card or a window: a small depth-buffer painter in numpy.

It serves the report, whose 3D view needs WebGL; the engine itself never opens a rendering window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SUPERSAMPLING = 2
_KEY_LIGHT = np.array([0.35, 0.6, 0.75]) / np.linalg.norm([0.35, 0.6, 0.75])


@dataclass(frozen=True)
class Body:
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


def paint(bodies: Sequence[Body], *, size: tuple[int, int], ground: tuple[int, int, int]) -> Image.Image:
    """Bodies seen along -z with y up, in parallel projection, filling the picture.

    Args:
        bodies: their points in the viewer's frame: x to the right, y up, z towards the viewer.
        size: (columns, rows).
        ground: colour behind them.
    """
    columns, rows = (extent * _SUPERSAMPLING for extent in size)
    canvas = np.tile(np.array(ground, np.float32), (rows * columns, 1))
    if bodies:
        low, high = _bounds(bodies)
        scale = 0.92 * min(columns / (high[0] - low[0]), rows / (high[1] - low[1]))
        middle = (low + high) / 2
        depth = np.full(rows * columns, -np.inf)
        for body in sorted(bodies, key=lambda body: -body.opacity):
            _paint_body(canvas, depth, body, (middle, scale, (columns, rows)))
    image = canvas.reshape(rows, columns, 3).clip(0, 255).astype(np.uint8)
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)


def _bounds(bodies: Sequence[Body]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([body.points_mm for body in bodies])
    return points.min(axis=0), points.max(axis=0)


def _paint_body(
    canvas: np.ndarray, depth: np.ndarray, body: Body, camera: tuple[np.ndarray, float, tuple[int, int]]
) -> None:
    """Paint one body onto the flat canvas; solid bodies also enter the depth buffer."""
    middle, scale, (columns, rows) = camera
    placed = (body.points_mm - middle) * scale * [1, -1, 1] + [columns / 2, rows / 2, 0]
    places, normals = _samples(placed, _normals(body), body.triangles)
    pixels = places[:, 1].astype(int) * columns + places[:, 0].astype(int)
    nearest = np.full(depth.shape, -np.inf)
    np.maximum.at(nearest, pixels, places[:, 2])
    front = (places[:, 2] >= nearest[pixels]) & (places[:, 2] > depth[pixels])
    pixels, normals = pixels[front], normals[front]
    alpha = np.full((len(pixels), 1), body.opacity)
    if body.opacity < 1:
        alpha = np.minimum(body.opacity + 0.55 * (1 - np.abs(normals[:, 2:])) ** 2, 1)
    else:
        depth[pixels] = nearest[pixels]
    canvas[pixels] = (1 - alpha) * canvas[pixels] + alpha * _lit(normals, np.array(body.rgb, float))


def _normals(body: Body) -> np.ndarray:
    """(P, 3) unit normals of the points: the sum of the area vectors of the triangles around each."""
    a, b, c = (body.points_mm[body.triangles[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    normals = np.zeros_like(body.points_mm, float)
    for corner in range(3):
        np.add.at(normals, body.triangles[:, corner], across)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _samples(placed: np.ndarray, normals: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points spread over all triangles closer than a pixel apart, with normals; triangles seen from behind left out."""
    triangles = triangles[normals[triangles][:, :, 2].max(axis=1) > 0]
    corners = placed[triangles]
    longest = np.linalg.norm(corners[:, :, :2] - np.roll(corners, 1, axis=1)[:, :, :2], axis=2).max(axis=1)
    steps = np.maximum(np.ceil(longest * 1.5), 1).astype(int)
    places, directions = [], []
    for step in np.unique(steps):
        i, j = (index.ravel() for index in np.meshgrid(np.arange(step + 1), np.arange(step + 1)))
        weights = np.stack([i, j, step - i - j], axis=1)[i + j <= step] / step
        chosen = triangles[steps == step]
        places.append(np.einsum("wc,tcx->twx", weights, placed[chosen]).reshape(-1, 3))
        directions.append(np.einsum("wc,tcx->twx", weights, normals[chosen]).reshape(-1, 3))
    stacked = np.concatenate(directions)
    return np.concatenate(places), stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12)


def _lit(normals: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """(N, 3) colours: ambient, a key light from the upper right, a light at the viewer, and a little shine."""
    key = np.maximum(normals @ _KEY_LIGHT, 0)
    facing = np.maximum(normals[:, 2], 0)
    reflected = 2 * key * normals[:, 2] - _KEY_LIGHT[2]
    shine = 0.16 * np.maximum(reflected, 0) ** 24
    return rgb * (0.34 + 0.5 * key + 0.22 * facing)[:, None] + 255 * shine[:, None]
