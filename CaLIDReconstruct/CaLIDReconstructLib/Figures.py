"""Figures of a segmented heart as nodes: volumes over time with their plot, and the wall in the 17 AHA segments."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from calid.errors import CalidError
from calid.heart.volumes import Function, cardiac_function
from calid.heart.wall import SEGMENTS, WallThickness, wall_thickness
from calid.labels import LV_CAVITY, RV_CAVITY
from calid.stack import Stack
from slicer.i18n import tr as _

from .Results import noteProvenance, placeInStudy
from .Segmentations import color
from .Transaction import Transaction

ED, ES, THICKENING = "ED (mm)", "ES (mm)", "thickening (%)"
"""Columns of the table of segments: in English, because the panel finds them by name in a loaded scene."""


@dataclass(frozen=True)
class Subject:
    """The result that figures are of.

    Args:
        name: name of the result.
        volume: node of the result that views show, beside which new nodes are put in the study.
        hasTimes: whether the frames have times, and not only numbers.
    """

    name: str
    volume: object
    hasTimes: bool


@dataclass
class FigureNodes:
    """The nodes of a result's figures; None where there are none.

    Args:
        functionTable: volumes over time.
        functionChart: plot of these volumes.
        segmentTable: the wall in the 17 segments.
    """

    functionTable: object = None
    functionChart: object = None
    segmentTable: object = None


def updateFigures(nodes: FigureNodes, subject: Subject, labels: Stack, transaction: Transaction) -> list[str]:
    """Measure labels, and write the figures into their nodes, which are made where they are missing.

    Args:
        nodes: nodes of the figures; those that are missing are made and noted here.
        subject: the result that is measured.
        labels: (T, Z, Y, X).
        transaction: told about new nodes.

    Returns:
        what could not be measured and why.
    """
    missing = []
    with transaction.recording():
        try:
            function = cardiac_function(labels)
            if labels.num_frames > 1:
                _updateFunction(nodes, subject, labels, function)
        except CalidError as error:
            missing.append(str(error))
        try:
            wall = wall_thickness(labels)
            if nodes.segmentTable is None:
                nodes.segmentTable = _addTable(f"{subject.name} wall thickness", subject)
            fillSegmentTable(nodes.segmentTable, wall)
        except CalidError as error:
            missing.append(_("No wall thickness: {reason}").format(reason=error))
    for table in (nodes.functionTable, nodes.segmentTable):
        if table is not None:
            noteProvenance(table, labels.provenance)
    return list(dict.fromkeys(missing))


def _addTable(name: str, subject: Subject):
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    placeInStudy(table, subject.volume)
    return table


# --- volumes over time ---


def _updateFunction(nodes: FigureNodes, subject: Subject, labels: Stack, function: Function) -> None:
    names = _columnNames(subject)
    if nodes.functionTable is None:
        nodes.functionTable = _addTable(f"{subject.name} volumes", subject)
    values = [np.asarray(labels.frame_times_ms), np.asarray(function.lv.volumes_ml), np.asarray(function.rv.volumes_ml)]
    slicer.util.updateTableFromArray(nodes.functionTable, values, names)
    nodes.functionTable.SetDescription(functionText(function))
    if nodes.functionChart is None:
        nodes.functionChart = _chart(subject, nodes.functionTable)


def functionText(function: Function) -> str:
    """The figures, one line per ventricle and one for the mass; what cannot be measured is a dash."""
    pattern = _("{ventricle}: EDV {edv} ml, ESV {esv} ml, SV {sv} ml, EF {ef} %")
    lines = [
        pattern.format(
            ventricle=title,
            edv=_figure(ventricle.edv_ml),
            esv=_figure(ventricle.esv_ml),
            sv=_figure(ventricle.sv_ml),
            ef=_figure(ventricle.ef_percent),
        )
        for title, ventricle in ((_("LV"), function.lv), (_("RV"), function.rv))
    ]
    return "\n".join([*lines, _("LV mass {mass} g").format(mass=_figure(function.mass_g))])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _columnNames(subject: Subject) -> list[str]:
    return [_("time (ms)") if subject.hasTimes else _("frame"), _("LV (ml)"), _("RV (ml)")]


def _chart(subject: Subject, table):
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", f"{subject.name} volume curves")
    names = _columnNames(subject)
    for name, label in ((names[1], LV_CAVITY), (names[2], RV_CAVITY)):
        series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", f"{subject.name} {name}")
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(names[0])
        series.SetYColumnName(name)
        series.SetPlotType(series.PlotTypeScatter)
        series.SetMarkerStyle(series.MarkerStyleNone)
        series.SetLineWidth(2)
        series.SetColor(*color(label))
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(subject.name)
    chart.SetXAxisTitle(names[0])
    chart.SetYAxisTitle(_("volume (ml)"))
    return chart


# --- the 17 segments ---


def fillSegmentTable(table, wall: WallThickness) -> None:
    """One row per segment: its number and name, and its thickness and thickening; NaN where it cannot be measured."""
    names = vtk.vtkStringArray()
    names.SetName("segment")
    for segment in SEGMENTS:
        names.InsertNextValue(f"{segment.number} {segment.name}")
    table.RemoveAllColumns()
    table.AddColumn(names)
    columns = {ED: wall.ed_mm, ES: wall.es_mm, THICKENING: wall.thickening_percent}
    for name, values in columns.items():
        if values is not None:
            array = vtk.vtkDoubleArray()
            array.SetName(name)
            for value in values:
                array.InsertNextValue(float(value))
            table.AddColumn(array)
    table.SetAttribute("CaLID.WallFrames", json.dumps([wall.ed_frame, wall.es_frame]))


def segmentValues(table) -> dict[str, np.ndarray]:
    """Column -> (17,) values of a table of segments, those that it has."""
    found = {}
    for name in (ED, ES, THICKENING):
        column = table.GetTable().GetColumnByName(name)
        if column is not None and column.GetNumberOfValues() == len(SEGMENTS):
            found[name] = np.array([column.GetVariantValue(index).ToDouble() for index in range(len(SEGMENTS))])
    return found
