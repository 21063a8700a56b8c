"""The report's chapters as HTML: long axis, 3D, function and trust; each says why where it has nothing to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calid.errors import InputError
from calid.geometry import heart_center
from calid.heart.longaxis import crossing_views, cut, derive_planes
from calid.heart.surfaces import SHOWN_GRID_MM, surfaces, without_surface
from calid.heart.volumes import Function, compare_function
from calid.report import page, stills, viewer
from calid.report.case import METHOD_NAMES, Case, Missing
from calid.report.chart import Curve, volume_curves
from calid.report.comparison import (
    Column,
    ViewAgreement,
    agreement_table,
    compare_views,
    guides_of,
    standard_columns,
)
from calid.report.sheet import derived_movie, derived_sheet, lax_movie, lax_sheet, upright_plane
from calid.report.trust import Trust
from calid.run.shifts import PROVENANCE_KEY
from calid.stack import WINDOW_PERCENTILES, Stack

_MIN_MOVIE_FRAMES = 5
_MOVIE_VIEW = "4ch"  # the most familiar one
_STILL_SIZE = (360, 360)
_STILL_TURNS = ((0, "anterior"), (90, "septal"), (180, "inferior"), (270, "lateral"))
_LV_COLOR, _RV_COLOR, _LV_ENDED_COLOR = "#e0645c", "#6f9cf0", "#e0b45c"


# --- long axis --------------------------------------------------------------------------------------------------------


def long_axis(case: Case, folder: Path) -> tuple[list[str], list[ViewAgreement]]:
    """The long-axis chapter, and its figures.

    Args:
        case: heart with or without acquired long-axis images.
        folder: folder for pictures on their way into the page.
    """
    columns, figures = _columns(case), view_agreements(case)
    if figures:
        return _acquired_views(case, columns, figures, folder), figures
    try:
        planes = _derived(case)
    except InputError as error:
        return [page.paragraph(f"No long-axis image crosses the stack, and no planes could be derived: {error}")], []
    parts = []
    if case.dense.num_frames >= _MIN_MOVIE_FRAMES:
        shown = columns[-2:]
        movie = derived_movie(_MOVIE_VIEW, planes[_MOVIE_VIEW], shown, folder / "beat.gif")
        parts.append(_beating(_MOVIE_VIEW, movie, shown))
    derived_sheet(planes, columns, folder / "sheet.png")
    caption = (
        "No long-axis image crosses the stack; these planes follow from its labels: LV axis, septum, anterior wall."
    )
    parts.append(page.picture(folder / "sheet.png", caption, alternative="Long-axis planes derived from the labels"))
    return parts, []


def _beating(view: str, movie: Path, columns: tuple[Column, ...]) -> str:
    names = " and ".join(column.name for column in columns)
    return page.picture(movie, f"{view}, beating.", alternative=f"The {view} plane through one heartbeat: {names}")


def view_agreements(case: Case) -> list[ViewAgreement]:
    """Agreement of the case's stack, and of its acquired slices filled in simply, with the long-axis images."""
    return compare_views(case.lax, _columns(case))


def _columns(case: Case) -> tuple[Column, ...]:
    if case.sparse is None:
        return (Column(case.method, case.dense),)
    columns = standard_columns(case.sparse, case.dense, case.method)
    return columns[:2] if case.method == METHOD_NAMES["linear"] else columns


def _derived(case: Case) -> dict[str, Stack]:
    if isinstance(case.labels, Missing):
        raise InputError("no-labels", case.labels.reason, "Give long-axis images with --lax.")
    return derive_planes(case.labels)


def _acquired_views(case: Case, columns: tuple[Column, ...], figures: list[ViewAgreement], folder: Path) -> list[str]:
    lax_sheet(case.lax, columns, folder / "sheet.png", figures=figures)
    parts = []
    if case.dense.num_frames >= _MIN_MOVIE_FRAMES:
        shown = [image for image in case.lax if any(image.name == one.view for one in figures)]
        view = min(shown, key=lambda image: _MOVIE_VIEW not in image.name.lower())
        parts.append(_beating(view.name, lax_movie(view, case.lax, columns[-2:], folder / "beat.gif"), columns[-2:]))
    caption = (
        "Each row is one acquired long-axis plane; the columns beside it are cut from the short-axis stack in exactly "
        "that plane and phase. One scale, one window per row. Marks at the sides: acquired slices."
    )
    parts.append(page.picture(folder / "sheet.png", caption, alternative="Long-axis views, acquired and cut"))
    told = case.dense.provenance.get(PROVENANCE_KEY) or {}
    if told.get("applied") and told.get("views"):
        parts.append(
            page.paragraph(
                f"The acquired slices were moved to fit {', '.join(one['name'] for one in told['views'])}: agreement "
                "with these images is no independent proof of any column, nearest and linear included."
            )
        )
    return [*parts, agreement_table(figures)]


# --- 3D ---------------------------------------------------------------------------------------------------------------


def in_3d(case: Case) -> tuple[list[str], list[str]]:
    """The 3D chapter (view and stills), and the scripts it needs."""
    if isinstance(case.labels, Missing):
        return [page.paragraph(f"There are no surfaces to show. {case.labels.reason}")], []
    labels = case.labels
    frame = viewer.viewing_frame(labels)
    found = [surfaces(labels, index, grid_mm=SHOWN_GRID_MM) for index in range(labels.num_frames)]
    missing = [page.paragraph(sentence) for sentence in without_surface(labels, found)]
    meshes = [viewer.viewed(one, frame) for one in found]
    if not any(meshes):
        return missing or [page.paragraph("There are no surfaces to show: no voxel is labeled.")], []
    scene = viewer.scene(meshes, labels.frame_times_ms, frame, _standing_pictures(case))
    moments: dict[str, int | None] = {"the first phase": 0}
    if isinstance(case.function, Function):
        moments = {"end-diastole": case.function.ed_frame, "end-systole": case.function.es_frame}
    pictures = [_still(meshes[index], name) for name, index in moments.items() if index is not None and meshes[index]]
    return [viewer.element(scene), *missing, *pictures], [viewer.script()]


def _standing_pictures(case: Case) -> list[viewer.Picture]:
    """The acquired long-axis planes, filled from the dense stack, as they stand in the heart."""
    if not case.lax:
        return []
    center = heart_center(case.dense, [image.stack for image in case.lax])
    low, high = np.percentile(case.dense.voxels[0], WINDOW_PERCENTILES)
    pictures = []
    for image in crossing_views(case.lax, case.dense):
        upright = upright_plane(image.stack.frame(0), case.dense, center)
        shape = (case.dense.num_frames, *upright.voxels.shape[1:])
        plane = Stack(np.zeros(shape, np.uint8), upright.affine, case.dense.frame_times_ms)
        pictures.append(viewer.Picture(f"{image.name} plane", plane, cut(case.dense, plane), (low, max(high, low + 1))))
    return pictures


def _still(meshes: viewer.Meshes, moment: str) -> str:
    """The ventricles from four sides, in one picture."""
    views = [
        stills.paint(viewer.bodies(viewer.turned(meshes, degrees)), size=_STILL_SIZE, ground=viewer.GROUND_RGB)
        for degrees, _ in _STILL_TURNS
    ]
    caption = f"At {moment}, from four sides: {', '.join(side for _, side in _STILL_TURNS)}."
    return page.picture_bytes(stills.beside(views), "image/png", caption, alternative=f"Ventricles at {moment}")


# --- function ---------------------------------------------------------------------------------------------------------


def function(case: Case) -> list[str]:
    """Volume curve and table: from the acquired slices, from the dense stack, and to the ends the long axis shows."""
    if isinstance(case.function, Missing):
        return [page.paragraph(f"There are no volumes. {case.function.reason}")]
    dense, sparse, ended = case.function, case.sparse_function, case.long_axis_function
    parts = [_curves(dense, sparse, ended)] if dense.frame_times_ms.size > 2 else []
    columns = [("this stack" if isinstance(sparse, Missing) else "upsampled stack", dense)]
    if isinstance(sparse, Function):
        columns.insert(0, ("acquired slices", sparse))
    if isinstance(ended, Function):
        columns.append((f"{columns[-1][0]}, ends from the long axis", ended))
    rows = []
    for measures in zip(*(compare_function(dense, one) for _, one in columns), strict=True):
        row = [measures[0].name, *(with_unit(one.dense, one.unit) for one in measures)]
        if isinstance(sparse, Function):
            between = measures[0].dense, measures[1].dense
            difference = None if None in between else between[1] - between[0]
            row.append(with_unit(difference, measures[0].unit, signed=True))
        rows.append(row)
    heads = ["", *(name for name, _ in columns)]
    if isinstance(sparse, Function):
        heads.append("upsampled less acquired")
    return [
        *parts,
        page.table(heads, rows),
        *([page.paragraph(sparse.reason)] if isinstance(sparse, Missing) else []),
        page.paragraph(_how_measured(ended)),
    ]


def _how_measured(ended: Function | Missing) -> str:
    sentences = (
        "Volumes are areas times the thickness each slice stands for; end-diastole and end-systole are the largest and "
        "smallest LV cavity; mass is wall volume times 1.05 g/ml. Papillary muscles and trabeculae count as cavity in "
        "labels by the bundled segmenter. The difference between the two stacks is the plainest uncertainty there is; "
        "errors that both share, such as a misplaced base, do not show in it. "
    )
    if isinstance(ended, Missing) or ended.ends is None:
        reason = ended.reason if isinstance(ended, Missing) else ""
        return f"{sentences}The base is where the labels end; no valve plane cuts it. {reason}"
    ends = ended.ends
    if ends.base_points_lps is not None:
        moves = "" if ends.excursion_mm is None else f"; it moves by {ends.excursion_mm:.0f} mm over the beat"
        sentences += (
            f"Ends from the long axis: the mitral valve plane ({', '.join(ends.base_views)}) cuts the LV's cavity and "
            f"wall, whatever is labeled beyond it. The ends of the walls lie {ends.misfit_mm:.1f} mm beside it (root "
            f"mean square){moves}. "
        )
    if ends.apex_lps is not None:
        sentences += f"Below its last labeled slice the cavity narrows to its tip ({', '.join(ends.apex_views)}). "
    if ends.rv_base is None:
        return f"{sentences}No image shows the tricuspid valve plane: the RV's base is where its labels end."
    return (
        f"{sentences}The tricuspid valve plane ({', '.join(ends.rv_base.views)}) cuts the RV's inflow; the "
        "outflow tract, in front of its annulus, ends where its labels do."
    )


def _curves(dense: Function, sparse: Function | Missing, ended: Function | Missing) -> str:
    times = dense.frame_times_ms
    curves = [
        Curve("LV", times, dense.lv.volumes_ml, _LV_COLOR),
        Curve("RV", times, dense.rv.volumes_ml, _RV_COLOR),
    ]
    if isinstance(sparse, Function):
        curves.append(Curve("LV, acquired", times, sparse.lv.volumes_ml, _LV_COLOR, dashed=True))
        curves.append(Curve("RV, acquired", times, sparse.rv.volumes_ml, _RV_COLOR, dashed=True))
    if isinstance(ended, Function):
        curves.append(Curve("LV, to its ends", times, ended.lv.volumes_ml, _LV_ENDED_COLOR))
    marks = [(float(times[dense.ed_frame]), "ED")]
    if dense.es_frame is not None:
        marks.append((float(times[dense.es_frame]), "ES"))
    return volume_curves(curves, marks)


# --- trust ------------------------------------------------------------------------------------------------------------


def trust(found: Trust | Missing, method: str) -> list[str]:
    """The trust score per level of the heart, and how to read it."""
    if isinstance(found, Missing):
        return [page.paragraph(f"There is no trust score. {found.reason}")]
    head = ["level", "slices", f"error, {method}", "error, linear", "ratio", f"edges, {method}", "edges, linear"]
    rows = [_trust_row(found, level, level) for level in found.levels if level != "slice"]
    rows.append(_trust_row(found, None, "all"))
    comparison = "smaller" if found.score < 1 else "larger"
    return [
        page.paragraph(
            f"Every inner acquired slice was left out and predicted from its two neighbors, across twice the gap that "
            f"was filled in. {method}'s error is {abs(1 - found.score):.0%} {comparison} than linear interpolation's."
        ),
        page.table(head, rows),
        page.paragraph(
            "Errors are root mean squares around the heart in per cent of the image's contrast; edges are the "
            "correlation of in-plane gradients with the true slice, 1 is perfect. A sharp guess can have a larger "
            "error than a blurred one and still look more like the truth, so both are shown."
        ),
    ]


def guidance(case: Case) -> list[str]:
    """How far slices and views are off, which views guided the result, and what that does for one left out."""
    parts = []
    told = case.dense.provenance.get(PROVENANCE_KEY)
    if told:
        rows = [
            [one["name"], *(f"{x:+.1f} +- {sd:.1f} mm" for x, sd in zip(one["mm"], one["uncertainty_mm"], strict=True))]
            for one in (*told["slices"], *told["views"])
        ]
        done = "were moved within their planes" if told["applied"] else "are off"
        parts.append(page.table(["", "along rows", "along columns", "through the plane"], rows))
        parts.append(
            page.paragraph(
                f"By so much the images {done}, judged by the {told['basis']}: the shift that makes them fit, and its "
                "standard deviation. All images moved together look the same, so shifts are told against the place on "
                "which most slices agree. Through-plane shifts are told, and never applied."
            )
        )
    if guides_of(case.dense):
        parts.append(page.paragraph(f"Guided by: {', '.join(guides_of(case.dense))}."))
    if case.left_out_views:
        rows = [[one.view, f"{one.alone:.3f}", f"{one.guided:.3f}"] for one in case.left_out_views]
        parts.append(page.table(["left out", "edge agreement, unguided", "guided by the others"], rows))
        parts.append(
            page.paragraph(
                "Each long-axis image was left out in turn while the others guided a quick run of the same model in "
                "two phases: this agreement is independent."
            )
        )
    return parts


def _trust_row(found: Trust, level: str | None, name: str) -> list[str]:
    count = sum(level in (None, one.level) for one in found.slices)
    model, linear = found.mean("model_rmse", level), found.mean("linear_rmse", level)
    edges = [f"{found.mean(figure, level):.2f}" for figure in ("model_edges", "linear_edges")]
    return [name, f"{count}", f"{model:.1f} %", f"{linear:.1f} %", f"{model / linear:.2f}", *edges]


def with_unit(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A figure as people read it, or that there is none."""
    if value is None:
        return "not measured"
    return f"{value:{'+' if signed else ''}.1f} {unit}"
