"""A heart's figures as one JSON document, the same from every command; `docs/figures.md` describes it.

A section is an object, or `{"missing": reason}` where there is nothing to tell. Every number is finite; a figure that
could not be measured is null. Identifiers of the patient have no place in it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calid import __version__
from calid.errors import InputError, SettingsError
from calid.heart.ends import find_ends, where_the_slices_want_them
from calid.heart.volumes import Function, Ventricle, cardiac_function
from calid.heart.wall import SEGMENTS, wall_thickness
from calid.images import whole_file
from calid.images.body import Body, read_body
from calid.images.checks import Finding
from calid.run.shifts import PROVENANCE_KEY
from calid.stack import LaxImage, Stack

FIGURES_VERSION = 1
"""Rises when a field changes its meaning, its unit or its name, or goes away; new fields leave it as it is."""

SCHEMA_PATH = Path(__file__).with_name("figures.schema.json")
SUFFIXES = (".json",)

NOT_SEGMENTED = "The stack was not segmented."
NO_BODY = "Height and weight are not known; give them with --height and --weight."
NO_VIEWS = "There are no long-axis images."
PAPILLARY_MUSCLES = "as labeled; the bundled segmenter labels them cavity"
NO_ENDS = "No long-axis image shows where the ventricles end."
NOT_ALIGNED = "Nobody asked how far the slices are shifted."
NOT_TRIED = "The model was not tried on left-out slices."


def document(
    command: str,
    stack: Stack,
    *,
    function: Function | str = NOT_SEGMENTED,
    function_acquired: Function | str = NOT_SEGMENTED,
    function_long_axis: Function | str = NO_ENDS,
    wall_thickness: Mapping[str, Any] | str = NOT_SEGMENTED,
    long_axis: Mapping[str, Mapping[str, Any]] | str = NO_VIEWS,
    trust: Mapping[str, Any] | str = NOT_TRIED,
    body: Body | None = None,
    findings: Iterable[Finding] = (),
    seconds: Mapping[str, float] | None = None,
    labels: Stack | None = None,
) -> dict[str, Any]:
    """The figures of one heart; a text in place of a section is the reason why it is missing.

    Args:
        command: name of the command that makes the document.
        stack: the stack the figures are about.
        function: volumes over the cycle from the stack's labels.
        function_acquired: the same from the labels of the acquired slices alone.
        function_long_axis: as `function`, with the ventricles' ends as long-axis images show them.
        wall_thickness: mm in each AHA segment, at end-diastole (`ed_mm`) and end-systole (`es_mm`).
        long_axis: agreement with each acquired long-axis image, by view and by what is compared.
        trust: errors of the model on left-out slices.
        body: height and weight, by which volumes are indexed.
        findings: remarks of the checks on the input.
        seconds: duration of each step.
        labels: the labels, whose provenance names the segmenter.
    """
    acquired = int((~np.asarray(stack.generated)).sum())
    provenance = dict(stack.history)
    if labels is not None:
        provenance |= {name: value for name, value in labels.provenance.items() if name not in provenance}
    return as_json(
        {
            "figures_version": FIGURES_VERSION,
            "calid": __version__,
            "command": command,
            "stack": {
                "frames": stack.num_frames,
                "slices": stack.num_slices,
                "acquired_slices": acquired,
                "size_pixels": [stack.voxels.shape[3], stack.voxels.shape[2]],
                "spacing_mm": stack.spacing_mm,
                "frame_times_ms": stack.frame_times_ms,
            },
            "body": _body_section(body),
            "function": _function_section(function, body),
            "function_acquired": _function_section(function_acquired, body),
            "function_long_axis": _function_section(function_long_axis, body),
            "wall_thickness": _section(wall_thickness),
            "long_axis": _section(long_axis),
            "trust": _section(trust),
            "alignment": _section(provenance.pop(PROVENANCE_KEY, NOT_ALIGNED)),
            "findings": [asdict(finding) for finding in findings],
            "seconds": dict(seconds or {}),
            "provenance": provenance,
        }
    )


def function_to_the_ends(labels: Stack, stack: Stack, lax: Iterable[LaxImage]) -> Function | str:
    """Volumes of cleaned labels to the ventricles' ends as long-axis images show them, or why there are none.

    Args:
        labels: cleaned labels of the stack.
        stack: stack whose provenance tells how far the images are shifted, if that was asked.
        lax: long-axis images.
    """
    views = where_the_slices_want_them(stack, lax)
    if not views:
        return NO_VIEWS
    try:
        ends = find_ends(labels, views)
        return NO_ENDS if ends is None else cardiac_function(labels, ends)
    except InputError as error:
        return str(error)


def machine_document(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, device and models of this machine in the same form, command `info`."""
    return as_json({"figures_version": FIGURES_VERSION, "calid": __version__, "command": "info", "machine": machine})


def wall_section(labels: Stack) -> dict[str, dict[str, float]] | str:
    """Thickness of the LV wall in each AHA segment from cleaned labels, or why it could not be measured."""
    try:
        wall = wall_thickness(labels)
    except InputError as error:
        return str(error)
    moments = {"ed_mm": wall.ed_mm, "es_mm": wall.es_mm}
    numbers = [str(segment.number) for segment in SEGMENTS]
    return {
        name: dict(zip(numbers, values.tolist(), strict=True)) for name, values in moments.items() if values is not None
    }


def input_document(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an input is, in the same form, command `info`: the series of a DICOM folder, and the stack."""
    return as_json({"figures_version": FIGURES_VERSION, "calid": __version__, "command": "info", "input": facts})


def _section(value: Mapping[str, Any] | str) -> dict[str, Any]:
    return {"missing": value} if isinstance(value, str) else dict(value)


def _body_section(body: Body | None) -> dict[str, Any]:
    if body is None:
        return {"missing": NO_BODY}
    return {"height_cm": body.height_cm, "weight_kg": body.weight_kg, "bsa_m2": body.bsa_m2, "formula": "Mosteller"}


def _function_section(function: Function | str, body: Body | None) -> dict[str, Any]:
    if isinstance(function, str):
        return {"missing": function}
    return {
        "ed_frame": function.ed_frame,
        "es_frame": function.es_frame,
        "frame_times_ms": function.frame_times_ms,
        "lv": _ventricle(function.lv, body),
        "rv": _ventricle(function.rv, body),
        "myocardium_ml": function.myocardium_ml,
        "mass_g": function.mass_g,
        "mass_index_g_m2": _indexed(function.mass_g, body),
        "papillary_muscles": PAPILLARY_MUSCLES,
        **({} if function.ends is None else {"ends": function.ends.as_json()}),
    }


def _ventricle(ventricle: Ventricle, body: Body | None) -> dict[str, Any]:
    figures = {name: getattr(ventricle, f"{name}_ml") for name in ("edv", "esv", "sv")}
    return {
        "volumes_ml": ventricle.volumes_ml,
        **{f"{name}_ml": value for name, value in figures.items()},
        "ef_percent": ventricle.ef_percent,
        **{f"{name}_index_ml_m2": _indexed(value, body) for name, value in figures.items()},
    }


def _indexed(value: float | None, body: Body | None) -> float | None:
    return None if value is None or body is None else value / body.bsa_m2


def as_json(value: Any) -> Any:
    """The same value with lists for arrays and None for what is not finite, neither of which JSON has."""
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(part) for part in value]
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return str(value)


# --- on the command line ----------------------------------------------------------------------------------------------


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The argument of a command that can also write its figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as data, see docs/figures.md")


def add_body_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command whose volumes are indexed to body surface area."""
    parser.add_argument("--height", type=float, metavar="CM", help="of the patient; by default the DICOM header's")
    parser.add_argument("--weight", type=float, metavar="KG", help="of the patient; by default the DICOM header's")


def body_from(options: argparse.Namespace) -> Body | None:
    """Height and weight as given, or else as the input's DICOM headers have them; asked only where figures are wanted.

    Raises:
        SettingsError: "body" if only one is given, or one is impossible.
    """
    return body_of(options.height, options.weight, options.input)


def body_of(height_cm: float | None, weight_kg: float | None, path: Path) -> Body | None:
    """As `body_from`, from plain values."""
    if height_cm is None and weight_kg is None:
        return read_body(path)
    if height_cm is None or weight_kg is None:
        raise SettingsError("body", "Only one of height and weight is given.", "Give both, or neither.")
    try:
        return Body(height_cm, weight_kg)
    except ValueError as error:
        raise SettingsError("body", f"{error}".capitalize() + ".", "Give cm and kg.") from error


def check_json_output(options: argparse.Namespace) -> None:
    """Return if the figures can be written where they are asked for; to be asked before a long run.

    Raises:
        OutputError: as for `whole_file.check_new_file`.
    """
    if options.json is not None:
        sources = [getattr(options, name, None) for name in ("input", "views", "labels", "models")]
        overwrite = getattr(options, "overwrite", False)
        whole_file.check_new_file(options.json, SUFFIXES, overwrite=overwrite, sources=sources)


def write_figures(figures: Mapping[str, Any], path: Path, *, overwrite: bool = False) -> None:
    """Write the document, whole or not at all.

    Raises:
        OutputError: it cannot be written there.
    """
    with whole_file.whole_file(path, SUFFIXES, overwrite=overwrite) as draft:
        draft.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_figures(path: Path) -> dict[str, Any]:
    """A document that was written, if its version is one that this release knows.

    Raises:
        InputError: "bad-figures" if it is none.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        version = figures["figures_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("bad-figures", f"{path.name} holds no figures of CaLID.", "Make them again.") from error
    if version != FIGURES_VERSION:
        raise InputError(
            "bad-figures", f"{path.name} has figures of version {version}, not {FIGURES_VERSION}.", "Make them again."
        )
    return figures
