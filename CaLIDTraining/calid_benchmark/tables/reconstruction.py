"""`calid-evaluate reconstruction`: slices encoded and made again, not interpolated (DMCVR, Table 1).

A system that interpolates codes reconstructs a slice as the slice between it and itself. The bundled MedFormer labels
the reconstructed slices; figures are of whole 3D stacks against the expert's labels, as in DMCVR's published code: HD,
ASD and ASSD in voxels of unit spacing (one slice step counts as one) and, beside it, in millimeters; ASSD both pooled
and, for DMCVR's, as the mean of both directions. "all labels" is the union of the structures. PSNR and SSIM are per
slice as everywhere here, and "3D" as in DMCVR's code (whole stacks, SSIM's window uniform 7 x 7 x 7). Means are per
stack, then over a patient's stacks, then over patients; stacks that nobody labeled are not asked for.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from calid.heart.segmentation import Segmenter
from calid.run.device import choose_device
from calid_training.segmenter import STRUCTURE_NAMES
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from calid_benchmark import metrics
from calid_benchmark.segmenters import judging_segmenter, segmented
from calid_benchmark.systems import Named
from calid_benchmark.tables.answers import Answers, ask, of_themselves
from calid_benchmark.tables.downstream import ORIGINAL
from calid_benchmark.tables.drawings import dots, error_bars, sheet
from calid_benchmark.tables.questions import (
    PIXEL_MM,
    StackQuestion,
    add_question_arguments,
    asked_of,
    by_group,
    offer_of,
)
from calid_benchmark.tables.record import Place, cell, markdown_table, paragraphs, place_of, write_table

RECONSTRUCTING = {
    "DeepRecon": "DeepRecon",
    "DiffAE": "DiffAE",
    "DMCVR": "DMCVR",
    "reconstruction": "CaLID's autoencoder",
}
"""Systems that can reconstruct, and their rows; the others only interpolate."""
ALL_LABELS = "all labels"
LABEL_FIGURES = ("dice", "voe", "asd_px", "hd_px", "assd_px", "assd_means_px", "asd_mm", "hd_mm", "assd_mm")
IMAGE_FIGURES = ("psnr", "ssim", "psnr_3d", "ssim_3d")
WINDOW_3D = 7


def evaluate(answers: Answers, segmenter: Segmenter) -> dict[str, dict[str, Any]]:
    """{group: {row: {"images": {figure: cell}, structure: {figure: cell}}}} of slices made of themselves."""
    tables: dict[str, dict[str, Any]] = {}
    asked = [question for question in answers.asked if question.stack_labels is not None]
    for group, members in by_group(asked).items():
        found: dict[str, list[tuple[str, metrics.Figures]]]
        found = {ORIGINAL: [(one.patient, _labels_of(one, one.images, segmenter)) for one in members]}
        for system in tqdm(answers.rows, desc=group, unit=" systems"):
            found[RECONSTRUCTING[system]] = [
                (question.patient, _figures(question, kept.images(), segmenter))
                for question, kept in answers.of(system, members)
            ]
        tables[group] = {name: _row(stacks) for name, stacks in found.items() if stacks}
    return tables


def _figures(question: StackQuestion, images: np.ndarray, segmenter: Segmenter) -> metrics.Figures:
    return {"images": compare_images(question.images, images)} | _labels_of(question, images, segmenter)


def compare_images(truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """PSNR and SSIM of a stack (Z, Y, X), per slice and in 3D; no SSIM in 3D of less than seven slices."""
    deep = len(truth) >= WINDOW_3D
    return {
        "psnr": float(np.mean(metrics.psnr(truth, made))),
        "ssim": float(np.mean(metrics.ssim(truth, made))),
        "psnr_3d": float(peak_signal_noise_ratio(truth, made, data_range=1.0)),
        "ssim_3d": float(structural_similarity(truth, made, data_range=1.0, win_size=WINDOW_3D)) if deep else np.nan,
    }


def _labels_of(question: StackQuestion, images: np.ndarray, segmenter: Segmenter) -> dict[str, dict[str, float]]:
    """{structure: {figure: value}} of the segmenter on a stack of images."""
    made, truth = segmented(segmenter, images), question.drawn
    drawn = [label for label in STRUCTURE_NAMES if label in question.annotated]
    masks = {ALL_LABELS: (np.isin(made, drawn), np.isin(truth, drawn))}
    masks |= {STRUCTURE_NAMES[label]: (made == label, truth == label) for label in drawn}
    return {name: compare_volumes(*pair, spacing_mm=question.spacing_mm) for name, pair in masks.items()}


def compare_volumes(made: np.ndarray, truth: np.ndarray, *, spacing_mm: float) -> dict[str, float]:
    """Figures of one structure in 3D, masks (Z, Y, X) whose slices are `spacing_mm` apart; NaN where one is empty."""
    voxels, millimeters = (1.0, 1.0, 1.0), (spacing_mm, PIXEL_MM, PIXEL_MM)
    both = made.any() and truth.any()
    means = metrics.assd_of_means(made, truth, voxels) if both else np.nan
    return metrics.compare_masks(made, truth, {"px": voxels, "mm": millimeters}) | {"assd_means_px": means}


def _row(stacks: Iterable[tuple[str, metrics.Figures]]) -> dict[str, Any]:
    patients = metrics.per_patient(stacks)
    row: dict[str, Any] = {"patients": len(patients)}
    for part, names in patients[0].items():
        row[part] = {name: metrics.summary([patient[part][name] for patient in patients]) for name in names}
    return row


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown: images, then a block per structure; brackets are 95 % intervals over patients."""
    lines = []
    for group, rows in tables.items():
        lines += [f"**{group}, images**: {rows[ORIGINAL]['patients']} patients", ""]
        heads = ["slices", "PSNR dB", "SSIM", "PSNR 3D dB", "SSIM 3D"]
        digits = dict(zip(IMAGE_FIGURES, (2, 3, 2, 3), strict=True))
        made = {name: row["images"] for name, row in rows.items() if "images" in row}
        lines += markdown_table(heads, [[name, *_cells(row, digits)] for name, row in made.items()])
        heads = [
            "slices",
            "Dice",
            "VOE %",
            "ASD px",
            "HD px",
            "ASSD px",
            "ASSD px (means)",
            "ASD mm",
            "HD mm",
            "ASSD mm",
        ]
        digits = {name: 3 if name == "dice" else 2 for name in LABEL_FIGURES}
        for structure in [name for name in rows[ORIGINAL] if name != "patients"]:
            lines += [f"**{group}, {structure}**", ""]
            lines += markdown_table(heads, [[name, *_cells(row[structure], digits)] for name, row in rows.items()])
    return "\n".join([*lines, *notes, ""])


def _cells(row: Mapping[str, Any], digits: Mapping[str, int]) -> list[str]:
    return [cell(row[name], count) for name, count in digits.items()]


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_question_arguments(parser, table="reconstruction")


def make(
    place: Place,
    answers: Answers,
    segmenter: Segmenter,
    *,
    systems: Sequence[Named],
    notes: Sequence[str] = (),
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        answers: slices made of themselves.
        segmenter: labels them.
        systems: systems that answered, whose weights the table names.
        notes: remarks below the table.
    """
    tables = evaluate(answers, segmenter)
    text = markdown(tables, paragraphs(notes))
    write_table(place, "reconstruction", text, {"tables": tables, "notes": list(notes)}, systems=systems)
    for group, rows in tables.items():
        means = {name: row[ALL_LABELS] for name, row in rows.items()}
        path = place.out / f"{group.replace(' ', '-')}.png"
        dots(path, f"{group}: reconstructed slices, all labels", error_bars(means, ("dice", "voe", "hd_px", "assd_px")))
    sheet(place.out / "slices.png", "Slices encoded and made again", sample_slices(answers))


def reconstructing(systems: Sequence[Named]) -> list[Named]:
    """The systems that make a slice of itself."""
    return [system for system in systems if system.name in RECONSTRUCTING]


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    offer = offer_of(options)
    systems = reconstructing(offer.systems)
    segmenter = judging_segmenter(choose_device(options.device), options.models)
    with TemporaryDirectory() as folder:
        answers = ask(systems, asked_of(options), Path(folder), sides=of_themselves)
        make(place_of(options), answers, segmenter, systems=systems, notes=offer.notes)
    return 0


def sample_slices(answers: Answers) -> dict[str, dict[str, np.ndarray]]:
    """{group: {heading: picture}}: the middle slice of the first stack of every group."""
    rows = {}
    for group, (question, *_) in by_group(answers.asked).items():
        middle = len(question.images) // 2
        made = {RECONSTRUCTING[name]: kept[question] for name, kept in answers.rows.items() if question in kept}
        rows[group] = {"acquired": question.images[middle]}
        rows[group] |= {name: kept.images()[middle] for name, kept in made.items()}
    return rows
