"""The report's 3D view: the scene it shows, and the script that shows it.

The scene lives in the heart's own frame (x towards the lateral wall, y from apex to base, z anterior; mm), so that the
view opens with the base on top and the right ventricle on the left. Points are stored as 16-bit steps from a common
corner.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vtkmodules.vtkCommonDataModel import vtkPolyData
from vtkmodules.vtkFiltersCore import vtkQuadricDecimation

from calid.errors import InputError
from calid.heart.anatomy import heart_axes
from calid.heart.surfaces import arrays
from calid.labels import LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.report.stills import Solid
from calid.stack import Stack

GROUND_RGB = (13, 17, 23)
TRIANGLES_PER_SURFACE = 4000
_OPACITIES = {LV_CAVITY: 1.0, MYOCARDIUM: 0.28, RV_CAVITY: 1.0}
_LOOKS = {label.value: (label.rgb, opacity) for label, opacity in _OPACITIES.items()}
_NAMES = {label.value: label.name for label in (LV_CAVITY, MYOCARDIUM, RV_CAVITY)}
_LARGEST = 65535


@dataclass(frozen=True)
class ViewingFrame:
    """The heart's frame in patient space: columns of `axes_lps` are x, y and z."""

    axes_lps: np.ndarray
    origin_lps: np.ndarray

    def from_lps(self, points_lps: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> this frame."""
        return (points_lps - self.origin_lps) @ self.axes_lps


def viewing_frame(labels: Stack) -> ViewingFrame:
    """Base up, anterior wall towards the viewer; along the slices where the labels do not say."""
    try:
        axes = heart_axes(labels)
    except InputError:
        x, _, z = labels.directions_lps.T
        middle = labels.to_lps((np.array(labels.voxels.shape[:0:-1]) - 1) / 2)
        return ViewingFrame(np.stack([x, -z, np.cross(x, -z)], axis=1), middle)
    return ViewingFrame(np.stack([-axes.septal, -axes.apexward, axes.anterior], axis=1), axes.center_lps)


def decimated(mesh: vtkPolyData, triangles: int = TRIANGLES_PER_SURFACE) -> vtkPolyData:
    """About as many triangles as asked for, or as the mesh has."""
    count = mesh.GetNumberOfPolys()
    if count <= triangles:
        return mesh
    fewer = vtkQuadricDecimation()
    fewer.SetInputData(mesh)
    fewer.SetTargetReduction(1 - triangles / count)
    fewer.VolumePreservationOn()
    fewer.Update()
    return fewer.GetOutput()


Meshes = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""label -> ((P, 3) points in the viewing frame in mm, (N, 3) triangles)."""


def viewed(meshes: Mapping[int, vtkPolyData], frame: ViewingFrame) -> Meshes:
    """Decimated surfaces in the viewing frame."""
    found = arrays({label: decimated(mesh) for label, mesh in meshes.items()})
    return {label: (frame.from_lps(points), triangles) for label, (points, triangles) in found.items()}


def bodies(meshes: Meshes) -> list[Solid]:
    """The same surfaces for `stills.paint`."""
    return [Solid(points, triangles, *_LOOKS[label]) for label, (points, triangles) in meshes.items()]


def turned(meshes: Meshes, degrees: float) -> Meshes:
    """The surfaces turned about the heart's long axis."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return {label: (points @ turn.T, triangles) for label, (points, triangles) in meshes.items()}


@dataclass(frozen=True)
class Picture:
    """A long-axis picture that stands in the scene.

    Args:
        name: label of its check box.
        plane: one-slice stack, whose grid is the picture's.
        values: (T, Y, X) as from `cut`, NaN where transparent.
        window: intensities shown as black and as white.
    """

    name: str
    plane: Stack
    values: np.ndarray
    window: tuple[float, float]


def scene(
    frames: list[Meshes], times_ms: Iterable[float], frame: ViewingFrame, pictures: Iterable[Picture] = ()
) -> str:
    """JSON for `viewer.js`: surfaces per frame, pictures per frame, colors and where to look."""
    points = np.concatenate([part for meshes in frames for part, _ in meshes.values()])
    low, high = points.min(axis=0), points.max(axis=0)
    step = float((high - low).max()) / _LARGEST
    labels = sorted({label for meshes in frames for label in meshes}, key=lambda label: -_LOOKS[label][1])
    value: dict[str, Any] = {
        "ground": GROUND_RGB,
        "times": [round(float(time), 2) for time in times_ms],
        "low": low.tolist(),
        "step": step,
        "center": ((low + high) / 2).tolist(),
        "radius": float(np.linalg.norm(high - low) / 2),
        "structures": [
            {
                "name": _NAMES[label],
                "rgb": _LOOKS[label][0],
                "opacity": _LOOKS[label][1],
                "frames": [_packed(meshes.get(label), low, step) for meshes in frames],
            }
            for label in labels
        ],
        "planes": [_standing(picture, frame) for picture in pictures],
    }
    return json.dumps(value, separators=(",", ":"))


def _packed(mesh: tuple[np.ndarray, np.ndarray] | None, low: np.ndarray, step: float) -> dict[str, str] | None:
    if mesh is None:
        return None
    points, triangles = mesh
    if len(points) > _LARGEST + 1:
        raise ValueError(f"{len(points)} points do not fit into 16-bit indices")
    return {"points": _base64(np.rint((points - low) / step)), "triangles": _base64(triangles)}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<u2").tobytes()).decode("ascii")


def _standing(picture: Picture, frame: ViewingFrame) -> dict[str, Any]:
    rows, columns = picture.values.shape[1:]
    edges = np.array([[x, y, 0] for y in (-0.5, rows - 0.5) for x in (-0.5, columns - 0.5)])
    corners = frame.from_lps(picture.plane.to_lps(edges))
    return {
        "name": picture.name,
        "corners": corners.round(3).tolist(),
        "frames": [_webp(values, picture.window) for values in picture.values],
    }


def _webp(values: np.ndarray, window: tuple[float, float]) -> str:
    low, high = window
    gray = (np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    alpha = np.isfinite(values).astype(np.uint8) * 255
    stream = io.BytesIO()
    Image.fromarray(np.stack([gray, gray, gray, alpha], axis=-1)).save(stream, "WEBP", quality=75, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def script() -> str:
    """The viewer, one file without dependencies."""
    return (Path(__file__).parent / "web" / "viewer.min.js").read_text(encoding="utf-8")


def element(scene_json: str) -> str:
    """HTML: the place where the view appears, and its scene."""
    safe = scene_json.replace("<", "\\u003c")  # in texts, the only places where JSON has one
    return f'<div id="calid-view"></div>\n<script type="application/json" id="calid-scene">{safe}</script>\n'
