"""One line of `cohort.csv` from a case's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calid.stack import GUIDED_KEY

_VENTRICLE = ("edv_ml", "esv_ml", "sv_ml", "ef_percent", "edv_index_ml_m2", "esv_index_ml_m2", "sv_index_ml_m2")

FUNCTION_COLUMNS = (
    "ed_frame",
    "es_frame",
    *(f"{side}_{figure}" for side in ("lv", "rv") for figure in _VENTRICLE),
    "mass_g",
    "mass_index_g_m2",
)
LONG_AXIS_COLUMNS = (*(f"lv_{figure}" for figure in _VENTRICLE), "mass_g", "mass_index_g_m2")
"""Figures that long-axis images change by showing where the left ventricle ends; nothing is known of the RV's ends."""

COLUMNS = (
    "case",
    "frames",
    "slices",
    "acquired_slices",
    "pixel_mm",
    "spacing_mm",
    "acquired_spacing_mm",
    *FUNCTION_COLUMNS,
    *(f"acquired_{name}" for name in FUNCTION_COLUMNS),
    *(f"long_axis_{name}" for name in LONG_AXIS_COLUMNS),
    "valve_plane_excursion_mm",
    "wall_ed_mm",
    "wall_es_mm",
    "trust",
    "long_axis_views",
    "long_axis_agreement",
    "guides",
    "shift_mm",
    "findings",
    "missing",
    "method",
    "model",
    "model_sha256",
    "segmenter_sha256",
    "device",
    "calid",
    "seconds",
)
"""Columns of the table, in their order."""


def row_of(name: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the columns; empty where there is nothing to tell.

    Args:
        name: name of the case.
        figures: the case's document, `docs/figures.md`.
    """
    stack, provenance = figures["stack"], figures["provenance"]
    wall, views = figures["wall_thickness"], figures["long_axis"]
    ended = figures.get("function_long_axis", {})
    sections = ("function", "function_acquired", "wall_thickness", "trust")
    row = {
        "case": name,
        "frames": stack["frames"],
        "slices": stack["slices"],
        "acquired_slices": stack["acquired_slices"],
        "pixel_mm": stack["spacing_mm"][0],
        "spacing_mm": stack["spacing_mm"][2],
        "acquired_spacing_mm": provenance.get("acquired_spacing_mm", stack["spacing_mm"][2]),
        **_function(figures["function"], ""),
        **_function(figures["function_acquired"], "acquired_"),
        **_function(ended, "long_axis_"),
        "valve_plane_excursion_mm": (ended.get("ends", {}).get("valve_plane") or {}).get("excursion_mm"),
        "wall_ed_mm": _mean(wall.get("ed_mm", {}).values()),
        "wall_es_mm": _mean(wall.get("es_mm", {}).values()),
        "trust": figures["trust"].get("score"),
        "long_axis_views": 0 if "missing" in views else len(views),
        "long_axis_agreement": _agreement(views),
        "guides": len(provenance.get(GUIDED_KEY, ())),
        "shift_mm": figures["alignment"].get("worst_mm"),
        "findings": " ".join(finding["code"] for finding in figures["findings"]),
        "missing": " ".join(section for section in sections if "missing" in figures[section]),
        "method": provenance.get("method"),
        "model": provenance.get("model"),
        "model_sha256": provenance.get("model_sha256"),
        "segmenter_sha256": provenance.get("segmenter", {}).get("sha256"),
        "device": provenance.get("device"),
        "calid": figures["calid"],
        "seconds": figures["seconds"].get("total"),
    }
    return {column: _short(row[column]) for column in COLUMNS}


def _function(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    sides = {side: section.get(side, {}) for side in ("lv", "rv")}
    values = {f"{side}_{figure}": found.get(figure) for side, found in sides.items() for figure in _VENTRICLE}
    values |= {name: section.get(name) for name in ("ed_frame", "es_frame", "mass_g", "mass_index_g_m2")}
    return {f"{prefix}{name}": value for name, value in values.items()}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _agreement(views: Mapping[str, Any]) -> float | None:
    """Mean edge agreement of the stack itself (the last column) with the views that did not guide it."""
    if "missing" in views:
        return None
    return _mean(list(columns.values())[-1]["gradient_correlation"] for columns in views.values())


def _short(value: Any) -> Any:
    """Six digits are more than any of these figures is worth."""
    return float(f"{value:.6g}") if isinstance(value, float) else "" if value is None else value
