"""Volumes, ejection fractions and mass of the ventricles, from labels by disk summation.

Each slice stands for the tissue halfway to its neighbors; the first and the last stand for half an acquired gap beyond
them as well, in a sparse stack (as in clinical practice) and in the dense stack made of it, so that the two can be
compared.

Where long-axis images show the ends of the left ventricle (`ends.py`), the mitral valve plane cuts its cavity and its
wall, whatever is labeled beyond it, and the cavity reaches to its tip. The tricuspid valve plane (`rv_base.py`) cuts
the inflow of the RV, and not its outflow tract beside it. Papillary muscles and trabeculae count as what they are
labeled as; the bundled segmenter labels them cavity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calid.errors import InputError
from calid.heart.ends import Ends
from calid.labels import LABELS, LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.stack import Stack

MYOCARDIAL_DENSITY_G_PER_ML = 1.05


@dataclass(frozen=True)
class Ventricle:
    """One ventricle over the cycle.

    Args:
        volumes_ml: (T,) cavity volume per frame.
        edv_ml: end-diastolic volume.
        esv_ml: end-systolic volume, None where only one phase was labeled.
    """

    volumes_ml: np.ndarray
    edv_ml: float
    esv_ml: float | None

    @property
    def sv_ml(self) -> float | None:
        """Stroke volume."""
        return None if self.esv_ml is None else self.edv_ml - self.esv_ml

    @property
    def ef_percent(self) -> float | None:
        """Ejection fraction; None without a second phase or without a cavity."""
        return None if self.sv_ml is None or not self.edv_ml else 100 * self.sv_ml / self.edv_ml


@dataclass(frozen=True)
class Function:
    """What the labels say about the heart's function.

    Args:
        lv, rv: the ventricles; both are read at the LV's end-diastole and end-systole.
        myocardium_ml: (T,) LV wall volume per frame.
        mass_g: LV mass at end-diastole.
        ed_frame: frame with the largest LV cavity.
        es_frame: frame with the smallest, None where only one phase was labeled.
        frame_times_ms: (T,) of the frames.
        ends: what long-axis images show of the LV's ends, if the volumes follow it; None where they follow the labels.
    """

    lv: Ventricle
    rv: Ventricle
    myocardium_ml: np.ndarray
    mass_g: float
    ed_frame: int
    es_frame: int | None
    frame_times_ms: np.ndarray
    ends: Ends | None = None


def cardiac_function(labels: Stack, ends: Ends | None = None) -> Function:
    """Volumes of every frame, and what follows from them at end-diastole and end-systole.

    Args:
        labels: (T, Z, Y, X), 1 LV cavity, 2 LV myocardium, 3 RV cavity; cleaned, sparse or dense.
        ends: the LV's valve plane and tip in the labels' frames; None ends it where the labels do.

    Raises:
        InputError: "no-left-ventricle" if no frame has an LV cavity.
    """
    lv, myocardium, rv = (label_volumes_ml(labels, label.value) for label in LABELS)
    if ends is not None and lv.any():
        lv, myocardium, rv = ended_volumes_ml(labels, ends)
    if not lv.any():
        raise InputError(
            "no-left-ventricle",
            "No frame has a voxel labeled as LV cavity, so there is no volume curve.",
            "Segment the stack first, or check that its labels are 1 LV cavity, 2 myocardium, 3 RV cavity.",
        )
    ed = int(lv.argmax())
    es = int(lv.argmin()) if labels.num_frames > 1 else None
    return Function(
        lv=_ventricle(lv, ed, es),
        rv=_ventricle(rv, ed, es),
        myocardium_ml=myocardium,
        mass_g=MYOCARDIAL_DENSITY_G_PER_ML * float(myocardium[ed]),
        ed_frame=ed,
        es_frame=es,
        frame_times_ms=labels.frame_times_ms,
        ends=ends,
    )


def label_volumes_ml(labels: Stack, label: int) -> np.ndarray:
    """(T,) volume of one label per frame: areas times the thickness each slice stands for."""
    x_mm, y_mm, _ = labels.spacing_mm
    areas_mm2 = (labels.voxels == label).sum(axis=(2, 3)) * x_mm * y_mm
    return areas_mm2 @ slice_extents_mm(labels) / 1000


def slice_extents_mm(labels: Stack) -> np.ndarray:
    """(Z,) mm along the normal that each slice stands for.

    Examples:
        Three acquired slices 8 mm apart stand for 24 mm, and so do the five that CaLID makes of them:

        >>> sparse = Stack(np.zeros((1, 3, 2, 2)), np.diag([1.0, 1, 8, 1]))
        >>> marks = np.array([False, True, False, True, False])
        >>> dense = Stack(np.zeros((1, 5, 2, 2)), np.diag([1.0, 1, 4, 1]), generated=marks)
        >>> slice_extents_mm(sparse), slice_extents_mm(dense)
        (array([8., 8., 8.]), array([6., 4., 4., 4., 6.]))
    """
    spacing = float(labels.spacing_mm[2])
    extents = np.full(labels.num_slices, spacing)
    if labels.num_slices > 1:
        extents[[0, -1]] = (spacing + _acquired_gap_mm(labels)) / 2
    return extents


def _acquired_gap_mm(labels: Stack) -> float:
    spacing = float(labels.spacing_mm[2])
    acquired = np.flatnonzero(~np.asarray(labels.generated))
    return spacing * float(np.diff(acquired).min()) if acquired.size > 1 else spacing


def ended_volumes_ml(labels: Stack, ends: Ends) -> np.ndarray:
    """(3, T) volumes of LV cavity, LV wall and RV cavity that end where long-axis images show it, as far as they do.

    Every labeled pixel is a column along the slices' normal. At the base, columns end at the valve plane: those
    labeled beyond it are cut, and those of the last labeled slice go on to it, by an acquired gap at most. The
    tricuspid plane ends the columns of the RV's inflow; its outflow tract, in front of the annulus, ends where its
    labels do. At the apex, the LV's cavity narrows from its last labeled slice to its tip like a paraboloid, likewise.
    Where an end was not seen, slices stand for the tissue halfway to their neighbors, as in `label_volumes_ml`.
    """
    slabs = _slabs(labels, ends.apexward)
    pixel_mm2 = float(np.prod(labels.spacing_mm[:2]))
    columns_mm = [
        (*_lv_columns_mm(labels, frame, ends, slabs), _rv_columns_mm(labels, frame, ends, slabs))
        for frame in range(labels.num_frames)
    ]
    return pixel_mm2 / 1000 * np.array(columns_mm).T


@dataclass(frozen=True, eq=False)
class _Slabs:
    """Heights in mm along the slices' normal, turned so that they grow from apex to base.

    Args:
        upwards: the normal's direction, 1 if it points to the base, else -1.
        heights: (Z,) of the slices.
        lower, upper: (Z,) between which each stands for the tissue.
        gap: distance of the acquired slices.
    """

    upwards: float
    heights: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    gap: float


def _slabs(labels: Stack, apexward: np.ndarray) -> _Slabs:
    upwards, spacing = -float(np.sign(labels.directions_lps[:, 2] @ apexward)), float(labels.spacing_mm[2])
    heights = upwards * spacing * np.arange(labels.num_slices)
    lower, upper = heights - spacing / 2, heights + spacing / 2
    beyond = slice_extents_mm(labels) - spacing  # of the stack's first and last slice
    lower[heights.argmin()] -= beyond[heights.argmin()]
    upper[heights.argmax()] += beyond[heights.argmax()]
    return _Slabs(upwards, heights, lower, upper, _acquired_gap_mm(labels))


def _lv_columns_mm(labels: Stack, frame: int, ends: Ends, slabs: _Slabs) -> tuple[float, float]:
    """Summed lengths of the columns of the LV's cavity and wall."""
    image, heights = labels.voxels[frame], slabs.heights
    slices = np.flatnonzero((image == LV_CAVITY.value).any(axis=(1, 2)))
    if not slices.size:
        return 0.0, 0.0
    basal, apical = slices[heights[slices].argmax()], slices[heights[slices].argmin()]
    top, plane = slabs.upper.copy(), None
    if ends.base_points_lps is not None and ends.base_normals is not None:
        plane = _plane_heights(labels, ends.base_points_lps[frame], ends.base_normals[frame], slabs.upwards)
        top[basal] = max(top[basal], heights[basal] + slabs.gap)
    sums = [0.0, 0.0]
    for row, label in enumerate((LV_CAVITY.value, MYOCARDIUM.value)):
        for index in np.flatnonzero((image == label).any(axis=(1, 2))):
            inside = image[index] == label
            reach = top[index] if plane is None else np.minimum(top[index], plane[inside])
            start, taper = slabs.lower[index], 0.0
            if label == LV_CAVITY.value and index == apical and ends.apex_lps is not None:
                start = heights[index]
                normal = labels.directions_lps[:, 2]
                tip = slabs.upwards * float((ends.apex_lps[frame] - labels.origin_lps) @ normal)
                taper = float(np.clip(start - tip, 0, slabs.gap)) / 2
            columns = np.broadcast_to(np.maximum(reach - start, 0), inside.sum())
            sums[row] += float((columns + taper * (columns > 0)).sum())
    return sums[0], sums[1]


def _rv_columns_mm(labels: Stack, frame: int, ends: Ends, slabs: _Slabs) -> float:
    """Summed lengths of the columns of the RV's cavity."""
    cavity = labels.voxels[frame] == RV_CAVITY.value
    tops = np.broadcast_to(slabs.upper[:, None, None], cavity.shape).copy()
    if ends.rv_base is not None:
        base = ends.rv_base
        plane = _plane_heights(labels, base.points_lps[frame], base.normal, slabs.upwards)
        inflow = (_columns_at(labels, plane, slabs.upwards) - base.front_lps[frame]) @ base.anterior <= 0
        slices = np.flatnonzero((cavity & inflow).any(axis=(1, 2)))
        if slices.size:
            basal = slices[slabs.heights[slices].argmax()]
            tops[basal, inflow] = max(slabs.upper[basal], slabs.heights[basal] + slabs.gap)
        tops[:, inflow] = np.minimum(tops[:, inflow], plane[inflow])
    return float(np.maximum(tops - slabs.lower[:, None, None], 0)[cavity].sum())


def _columns_at(labels: Stack, heights_mm: np.ndarray, upwards: float) -> np.ndarray:
    """(Y, X, 3) LPS mm: the points at a height (Y, X) of the line through each pixel along the slices' normal."""
    rows, columns = np.indices(labels.voxels.shape[2:])
    first = labels.to_lps(np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    return first + upwards * heights_mm[..., None] * labels.directions_lps[:, 2]


def _plane_heights(labels: Stack, point_lps: np.ndarray, normal_lps: np.ndarray, sign: float) -> np.ndarray:
    """(Y, X) where the line through each pixel along the slices' normal meets a plane: mm, times `sign`."""
    first = _columns_at(labels, np.zeros(labels.voxels.shape[2:]), sign)
    return sign * ((point_lps - first) @ normal_lps) / float(labels.directions_lps[:, 2] @ normal_lps)


def _ventricle(volumes_ml: np.ndarray, ed: int, es: int | None) -> Ventricle:
    return Ventricle(volumes_ml, float(volumes_ml[ed]), None if es is None else float(volumes_ml[es]))


# --- sparse beside dense ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """One quantity from the sparse and from the dense stack; None where it cannot be measured."""

    name: str
    unit: str
    sparse: float | None
    dense: float | None

    @property
    def difference(self) -> float | None:
        """Dense less sparse: how far the figure depends on how the gaps are filled."""
        return None if self.sparse is None or self.dense is None else self.dense - self.sparse


def compare_function(sparse: Function, dense: Function) -> list[Measure]:
    """Every figure from both stacks.

    Their difference is the plainest uncertainty there is: it says nothing of errors that both share, such as a
    misplaced base.
    """
    measures = []
    for name in ("lv", "rv"):
        ventricles = getattr(sparse, name), getattr(dense, name)
        for figure, words, unit in (
            ("edv_ml", "EDV", "ml"),
            ("esv_ml", "ESV", "ml"),
            ("sv_ml", "SV", "ml"),
            ("ef_percent", "EF", "%"),
        ):
            values = (getattr(ventricle, figure) for ventricle in ventricles)
            measures.append(Measure(f"{name.upper()} {words}", unit, *values))
    measures.append(Measure("LV mass", "g", sparse.mass_g, dense.mass_g))
    return measures
