"""Volumes, ejection fractions and mass of the ventricles, from labels by disk summation.

Each slice stands for the tissue halfway to its neighbours; the first and the last stand for half an acquired gap beyond
them as well, in a sparse stack (as in clinical practice) and in the dense stack made of it, so that the two can be
compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calid.errors import InputError
from calid.labels import LABELS
from calid.stack import Stack

MYOCARDIAL_DENSITY_G_PER_ML = 1.05


@dataclass(frozen=True)
class Ventricle:
    """One ventricle over the cycle.

    Args:
        volumes_ml: (T,) cavity volume per frame.
        edv_ml: end-diastolic volume.
        esv_ml: end-systolic volume, None where only one phase was labelled.
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
        es_frame: frame with the smallest, None where only one phase was labelled.
        frame_times_ms: (T,) of the frames.
    """

    lv: Ventricle
    rv: Ventricle
    myocardium_ml: np.ndarray
    mass_g: float
    ed_frame: int
    es_frame: int | None
    frame_times_ms: np.ndarray


def cardiac_function(labels: Stack) -> Function:
    """Volumes of every frame, and what follows from them at end-diastole and end-systole.

    Args:
        labels: (T, Z, Y, X), 1 LV cavity, 2 LV myocardium, 3 RV cavity; cleaned, sparse or dense.

    Raises:
        InputError: "no-left-ventricle" if no frame has an LV cavity.
    """
    lv, myocardium, rv = (label_volumes_ml(labels, label.value) for label in LABELS)
    if not lv.any():
        raise InputError(
            "no-left-ventricle",
            "No frame has a voxel labelled as LV cavity, so there is no volume curve.",
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
    acquired = np.flatnonzero(~np.asarray(labels.generated))
    gap = spacing * float(np.diff(acquired).min()) if acquired.size > 1 else spacing
    extents = np.full(labels.num_slices, spacing)
    if labels.num_slices > 1:
        extents[[0, -1]] = (spacing + gap) / 2
    return extents


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
