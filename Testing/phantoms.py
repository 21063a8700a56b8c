"""Computed hearts and geometries for the tests: true values come from formulas, not from the code under test."""

from __future__ import annotations

import numpy as np
from calid.stack import Stack
from scipy import ndimage
from vtkmodules.vtkCommonDataModel import vtkPolyData
from vtkmodules.vtkFiltersCore import vtkMassProperties

LV_RADIUS_MM = 22.0
LV_LENGTH_MM = 70.0
WALL_MM = 10.0
RV_CENTER_MM = np.array([26.0, -8.0, 0.0])
RV_RADII_MM = np.array([36.0, 40.0, 60.0])


def rotation(seed: int) -> np.ndarray:
    """A (3, 3) proper rotation, oblique to every axis."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else q[:, ::-1]


def affine(spacing_mm: tuple[float, float, float], directions: np.ndarray, origin_lps: np.ndarray) -> np.ndarray:
    """(4, 4) voxel (column, row, slice) -> LPS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = directions * np.asarray(spacing_mm)
    matrix[:3, 3] = origin_lps
    return matrix


def centered_affine(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    directions: np.ndarray,
    center_lps: np.ndarray,
) -> np.ndarray:
    """(4, 4) affine of a grid of `shape` (slices, rows, columns) whose middle lies at `center_lps`."""
    middle = directions @ (np.asarray(spacing_mm) * (np.array(shape[::-1]) - 1) / 2)
    return affine(spacing_mm, directions, center_lps - middle)


def heart_at(points_mm: np.ndarray, contraction: float = 1.0) -> np.ndarray:
    """Labels of a heart in its own right-handed frame: x towards the septum, y anterior, z from the apex to the base.

    The LV cavity is half an ellipsoid, closed at the base plane z = 0; the myocardium is the shell to a larger
    half-ellipsoid; the RV is a half-ellipsoid beside it, less the LV.

    Args:
        points_mm: (..., 3).
        contraction: scales the LV cavity's radius and length; the epicardium stays.

    Returns:
        (...,) uint8: 0 background, 1 LV cavity, 2 LV myocardium, 3 RV cavity.
    """
    below_base = points_mm[..., 2] <= 0
    lv = contraction * np.array([LV_RADIUS_MM, LV_RADIUS_MM, LV_LENGTH_MM])
    epicardium = np.array([LV_RADIUS_MM, LV_RADIUS_MM, LV_LENGTH_MM]) + WALL_MM
    labels = np.zeros(points_mm.shape[:-1], np.uint8)
    labels[(((points_mm - RV_CENTER_MM) / RV_RADII_MM) ** 2).sum(-1) <= 1] = 3
    labels[((points_mm / epicardium) ** 2).sum(-1) <= 1] = 2
    labels[((points_mm / lv) ** 2).sum(-1) <= 1] = 1
    return labels * below_base


def lv_volume_ml(contraction: float = 1.0) -> float:
    """Volume of the LV cavity: half an ellipsoid."""
    return 2 / 3 * np.pi * contraction**3 * LV_RADIUS_MM**2 * LV_LENGTH_MM / 1000


def myocardium_volume_ml(contraction: float = 1.0) -> float:
    """Volume of the LV myocardium: half a shell."""
    outer = 2 / 3 * np.pi * (LV_RADIUS_MM + WALL_MM) ** 2 * (LV_LENGTH_MM + WALL_MM) / 1000
    return outer - lv_volume_ml(contraction)


def heart_labels(
    spacing_mm: tuple[float, float, float] = (1.5, 1.4, 8.0),
    *,
    seed: int = 0,
    contractions: tuple[float, ...] = (1.0,),
    apex_first: bool = False,
) -> Stack:
    """The heart in an oblique, non-square, even-sized, off-center stack of short-axis slices.

    Args:
        spacing_mm: (column, row, slice) distances.
        seed: of the patient's turn in the scanner.
        contractions: one frame each.
        apex_first: slices run from apex to base.
    """
    heart = rotation(seed)
    order = np.eye(3) if apex_first else np.diag([1.0, -1.0, -1.0])
    directions = heart @ order
    slices = int(110 // spacing_mm[2])
    shape = slices, int(150 // spacing_mm[1] // 2 * 2), int(170 // spacing_mm[0] // 2 * 2)
    base_lps = np.array([12.0, -31.0, 7.0])
    center = base_lps + heart @ np.array([14.0, -4.0, -38.0])
    matrix = centered_affine(shape, spacing_mm, directions, center)
    grid = Stack(np.zeros((1, *shape), np.uint8), matrix)
    z, y, x = np.indices(shape)
    local = (grid.to_lps(np.stack([x, y, z], axis=-1)) - base_lps) @ heart
    voxels = np.stack([heart_at(local, contraction) for contraction in contractions])
    times = np.linspace(0, 800, len(contractions), endpoint=False)
    return Stack(voxels, matrix, times)


def heart_frame(seed: int = 0) -> np.ndarray:
    """(3, 3) columns in LPS of `heart_labels(seed=seed)`: towards the RV (x), anterior (y), towards the base (z)."""
    return rotation(seed)


def pictured(labels: Stack) -> Stack:
    """A cine-like picture of a label stack: bright blood, dark muscle, a still and smooth texture; float32."""
    levels = np.array([60.0, 220.0, 90.0, 200.0], np.float32)
    z, y, x = np.indices(labels.voxels.shape[1:])
    places = labels.to_lps(np.stack([x, y, z], axis=-1))
    texture = 15 * np.sin(places[..., 0] / 9) * np.cos(places[..., 1] / 7) * np.sin(1 + places[..., 2] / 11)
    return labels.with_voxels(levels[labels.voxels] + texture.astype(np.float32))


def beating_case(seed: int) -> tuple[Stack, Stack]:
    """A patient to train on: three phases of a textured heart and their labels, different for every seed."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.8, 1.05)
    labels = heart_labels((1.6, 1.6, 8.0), seed=seed, contractions=(size, 0.9 * size, 0.75 * size))
    texture = ndimage.gaussian_filter(rng.normal(size=labels.voxels.shape), (0, 0.5, 1, 1))
    picture = pictured(labels)
    return picture.with_voxels((picture.voxels + 40 * texture).astype(np.float32)), labels


def mesh_volume_ml(mesh: vtkPolyData) -> float:
    """Volume enclosed by a closed surface, by VTK."""
    properties = vtkMassProperties()
    properties.SetInputData(mesh)
    return properties.GetVolume() / 1000
