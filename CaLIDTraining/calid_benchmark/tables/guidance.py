"""`calid-evaluate guidance`: what long-axis images add as guides, judged where they did not guide.

- The study: each long-axis image is left out in turn, the others align the slices and guide them. Edge agreement with
  the image left out, as planned and moved to where its own lines on the acquired slices want it ("placed"; the same for
  all rows): of linear interpolation, of the engine unguided, and guided.
- Open stacks: slice n from n-1 and n+1, with 2, 3 or 5 lines of its true intensities through the middle, 6 mm thick,
  noise 5 %. PSNR and the distance of the segmenter's features, of the motion's moved mean guided and not; PSNR also off
  the lines alone (farther than 2 pixels from their middle). p by Wilcoxon's signed ranks over patients.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.geometry import heart_center
from calid.heart.longaxis import agreement, around, at_phases_of, cut
from calid.images.study import read_study
from calid.method.guidance import Lines, corrected
from calid.method.motion import Fields, moved_by
from calid.report.comparison import HEART_RADIUS_MM
from calid.run.alignment import align
from calid.run.batches import Interpolator
from calid.run.device import choose_device
from calid.run.guidance import INDEPENDENT_PIXELS
from calid.run.intersections import images_of
from calid.run.reconstruct import upsample, warm_interpolator
from calid.run.settings import Settings
from calid.stack import LaxImage, Stack
from calid_training.prepare import load_cases
from scipy import ndimage
from tqdm import tqdm

from calid_benchmark import metrics
from calid_benchmark.tables.interpolation import segmenter_features
from calid_benchmark.tables.long_axis import cropped
from calid_benchmark.tables.questions import (
    PIXEL_MM,
    SIZE,
    StackQuestion,
    add_place_arguments,
    add_set_arguments,
    by_group,
    questions,
)
from calid_benchmark.tables.record import Place, markdown_table, place_of, probability, write_table

COUNTS = (2, 3, 5)
SLAB_MM, NOISE, OFF_PIXELS = 6.0, 0.05, 2
REACH_PIXELS = 45


# --- views left out ---------------------------------------------------------------------------------------------------


def views_left_out(
    sax: Stack, lax: Sequence[LaxImage], settings: Settings, *, models: Path | None
) -> dict[str, dict[str, tuple[float, float]]]:
    """{view: {row: edge agreement as planned and placed}} of every view, left out while the others guide."""
    placed = {shift.name: shift.mm for shift in align(sax, {view.name: view.stack for view in lax}).views}
    linear = upsample(sax, replace(settings, method="linear", align="off")).stack
    unguided = upsample(sax, replace(settings, align="off"), models_folder=models).stack
    found = {}
    for view in tqdm([view for view in lax if view.name in placed], desc="views left out"):
        others = [other for other in lax if other is not view]
        guided = upsample(sax, settings, lax=others, models_folder=models).stack
        rows = {"linear": linear, "unguided": unguided, "guided": guided}
        at = displaced(view.stack, np.array(placed[view.name]))
        center = heart_center(sax, [other.stack for other in lax])
        found[view.name] = {
            name: (edges(dense, view.stack, center), edges(dense, at, center)) for name, dense in rows.items()
        }
    return found


def displaced(view: Stack, shift_mm: np.ndarray) -> Stack:
    """A long-axis image moved along its own directions."""
    return replace(view, affine=images_of(view)[0].shifted(shift_mm).affine)


def edges(dense: Stack, view: Stack, center_lps: np.ndarray) -> float:
    """Edge agreement of a dense stack with a long-axis image, around the heart."""
    plane, normal = at_phases_of(view, dense), dense.directions_lps[:, 2]
    region = around(plane, center_lps, normal, HEART_RADIUS_MM)
    return agreement(plane, cut(dense, plane), normal, region=region).gradient_correlation


# --- lines of true intensities ----------------------------------------------------------------------------------------


def true_lines(truth: np.ndarray, count: int, rng: np.random.Generator) -> Lines:
    """Lines through the middle of true slices (N, H, W) in [0, 1], each a gap of its own."""
    along = np.arange(-REACH_PIXELS, REACH_PIXELS + 1)
    across = (np.arange(5) - 2) / 5 * SLAB_MM / PIXEL_MM
    places = []
    for angle in np.pi * np.arange(count) / count + 0.3:
        direction, aside = np.array([np.sin(angle), np.cos(angle)]), np.array([-np.cos(angle), np.sin(angle)])
        off = rng.uniform(-3, 3) + across
        places.append((SIZE - 1) / 2 + along[:, None, None] * direction + off[:, None] * aside)
    points = np.concatenate(places)
    seen = [
        ndimage.map_coordinates(image, points.reshape(-1, 2).T, order=1).reshape(points.shape[:2]).mean(axis=1)
        for image in truth
    ]
    values = np.stack(seen) + rng.normal(0, NOISE, (len(truth), len(points)))
    weights = torch.full((len(truth), len(points)), 1 / (2 * NOISE) ** 2 / INDEPENDENT_PIXELS)
    everywhere = torch.from_numpy(points).float().expand(len(truth), -1, -1, -1)
    return Lines(everywhere, torch.from_numpy(values * 2 - 1).float()[None], weights)


def moved_means(interpolator: Interpolator, question: StackQuestion, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """{"unguided" or number of lines: slices (N, H, W) in [0, 1]}, and of each number which pixels lie on lines."""
    before, after = (torch.from_numpy(x * 2 - 1)[:, None].float() for x in (question.before, question.after))
    fields = interpolator.fields(before, after)
    made = {"unguided": _mean(before, after, fields)}
    for count in COUNTS:
        lines = true_lines(question.truth, count, rng)
        # Every slice by itself: the slices of a question are no neighboring gaps of one level.
        each = [
            corrected(
                before[None, n : n + 1, 0],
                after[None, n : n + 1, 0],
                fields[None, n : n + 1],
                Lines(lines.places[n : n + 1], lines.values[:, n : n + 1], lines.weights[n : n + 1]),
                gap_mm=2 * question.spacing_mm,
                is_periodic=False,
            )[0]
            for n in range(len(before))
        ]
        made[f"{count} lines"] = _mean(before, after, fields, torch.cat(each))
        made[f"on {count} lines"] = _on_lines(lines)
    return made


def _mean(
    before: torch.Tensor, after: torch.Tensor, fields: torch.Tensor, correction: torch.Tensor | None = None
) -> np.ndarray:
    first, last = moved_by(Fields(*fields.split(2, dim=1)), before, after, correction)
    return ((first + last)[:, 0] / 4 + 0.5).numpy()


def _on_lines(lines: Lines) -> np.ndarray:
    """(H, W) bool."""
    rows, columns = np.rint(lines.places[0].mean(dim=1).numpy()).astype(int).clip(0, SIZE - 1).T
    on = np.zeros((SIZE, SIZE), bool)
    on[rows, columns] = True
    return ndimage.distance_transform_edt(~on) <= OFF_PIXELS


def with_lines(
    asked: Sequence[StackQuestion], interpolator: Interpolator, extract: metrics.FeatureExtractor | None
) -> dict[str, dict[str, Any]]:
    """{group: {row: figures}}: means over patients of the differences from unguided, and p."""
    rng = np.random.default_rng(0)
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group(asked).items():
        patients: dict[str, list[dict[str, dict[str, float]]]] = {}
        for question in tqdm(members, desc=group):
            made = moved_means(interpolator, question, rng)
            patients.setdefault(question.patient, []).append(_figures(question.truth, made, extract))
        tables[group] = {"patients": len(patients), "slices": sum(len(q.truth) for q in members)}
        for row in ("unguided", *(f"{count} lines" for count in COUNTS)):
            tables[group][row] = _row([_means([one[row] for one in every]) for every in patients.values()])
    return tables


def _figures(
    truth: np.ndarray, made: Mapping[str, np.ndarray], extract: metrics.FeatureExtractor | None
) -> dict[str, dict[str, float]]:
    """{row: {figure: mean over slices}}; what differs from unguided ends in "gain"."""
    plain = made["unguided"]
    known = None if extract is None else extract(torch.from_numpy(truth).float()[:, None])
    found = {}
    for row in ("unguided", *(f"{count} lines" for count in COUNTS)):
        figures = {"psnr": float(np.mean(metrics.psnr(truth, made[row])))}
        if row != "unguided":
            figures["psnr_gain"] = figures["psnr"] - float(np.mean(metrics.psnr(truth, plain)))
            off = ~made[f"on {row}"]
            errors = [np.square(images - truth)[:, off].mean(axis=1) for images in (plain, made[row])]
            figures["off_gain"] = float(np.mean(10 * np.log10(errors[0] / errors[1])))
        if known is not None and extract is not None:
            distances = [
                float(np.mean(metrics.feature_distance(known, extract(torch.from_numpy(images).float()[:, None]))))
                for images in (made[row], plain)
            ]
            figures |= {"fd": distances[0], "fd_gain": distances[0] - distances[1]}
        found[row] = figures
    return found


def _means(stacks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in stacks])) for name in stacks[0]}


def _row(patients: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    values = {name: [one[name] for one in patients] for name in patients[0]}
    means = {name: float(np.mean(every)) for name, every in values.items()}
    tests = {f"{n}_p": metrics.paired_p(every, [0.0] * len(every)) for n, every in values.items() if "gain" in n}
    return means | tests


# --- the table --------------------------------------------------------------------------------------------------------


def markdown(seen: Mapping[str, Mapping[str, tuple[float, float]]], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Both halves of the table as Markdown, as far as they were made."""
    lines = []
    if seen:
        rows = list(next(iter(seen.values())))
        lines += [
            "Edge agreement with each long-axis image, left out while the others guide (planned / placed):",
            "",
        ]
        body = []
        for row in rows:
            pairs = [seen[view][row] for view in seen]
            mean = np.mean(pairs, axis=0)
            body.append([row, *(f"{a:.3f} / {b:.3f}" for a, b in (*pairs, mean))])
        lines += markdown_table(["", *seen, "mean"], body)
    for group, found in tables.items():
        lines += [f"**{group}**: {found['patients']} patients, {found['slices']} slices, the motion's moved mean", ""]
        heads = ["", "PSNR dB", "gain, dB (p)", "gain off the lines, dB (p)", "feature distance", "gain (p)"]
        lines += markdown_table(heads, [[row, *_cells(figures)] for row, figures in _rows(found)])
    return "\n".join([*lines, ""])


def _rows(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(row, figures) for row, figures in found.items() if isinstance(figures, Mapping)]


def _cells(figures: Mapping[str, Any]) -> list[str]:
    def gain(name: str) -> str:
        return f"{figures[name]:+.3f} ({probability(figures[f'{name}_p'])})" if name in figures else "-"

    distance = f"{figures['fd']:.3f}" if "fd" in figures else "-"
    is_guided = "psnr_gain" in figures
    return [
        f"{figures['psnr']:.2f}", gain("psnr_gain"), gain("off_gain"), distance, gain("fd_gain") if is_guided else "-"
    ]  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--study", type=Path, help="DICOM folder with short-axis and long-axis cines")
    add_set_arguments(parser, required=False)
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    parser.add_argument("--phases", type=int, default=5, help="cardiac phases of the study")
    parser.add_argument("--factor", type=int, default=8, help="how many gaps each gap of the study becomes")
    add_place_arguments(parser, table="guidance")


def make(
    place: Place,
    *,
    study: Path | None = None,
    asked: Sequence[StackQuestion] = (),
    phases: int = 5,
    factor: int = 8,
) -> None:
    """Make the tables.

    Args:
        place: folder and files for them.
        study: DICOM folder with short-axis and long-axis cines, or None.
        asked: stacks of open data, whose own slices stand for long-axis images.
        phases: number of phases of the study's cine.
        factor: number of gaps that each acquired one becomes.
    """
    seen: dict[str, dict[str, tuple[float, float]]] = {}
    if study is not None:
        read = read_study(study)
        frames = np.unique(np.linspace(0, read.sax.num_frames - 1, phases + 1).astype(int))[:-1]
        few = replace(read.sax, voxels=read.sax.voxels[frames], frame_times_ms=read.sax.frame_times_ms[frames])
        crop = cropped(few, heart_center(few, [view.stack for view in read.lax]))
        settings = Settings(factor=factor, mode="fidelity", samples=1, model="2d", device=place.device)
        seen = views_left_out(crop, read.lax, settings, models=place.models)
    tables = {}
    if asked:
        interpolator = warm_interpolator(choose_device(place.device), place.models)
        tables = with_lines(asked, interpolator, segmenter_features(place.models))
    write_table(place, "guidance", markdown(seen, tables), {"left_out": seen, "lines": tables})


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    asked: list[StackQuestion] = []
    if options.prepared is not None:
        cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
        asked = [one for members in by_group(questions(cases)).values() for one in members[: options.quick]]
    make(place_of(options), study=options.study, asked=asked, phases=options.phases, factor=options.factor)
    return 0
