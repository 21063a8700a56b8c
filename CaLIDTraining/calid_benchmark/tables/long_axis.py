"""`calid-evaluate long-axis`: upsampled stacks seen from the side (DMCVR, Table 2; CaLID, Fig. 5 and 6).

STUDY is a DICOM folder with short-axis and long-axis cines. Every system upsamples the same heart-centered crop
(128 x 128 at 1.8 mm) of its short-axis stack, and the bundled MedFormer labels the dense stack.

- Edge agreement with each acquired long-axis image (`calid.heart.longaxis.agreement`): needs no labels.
- With `--meshes`: Dice of the labels' cuts through every long-axis plane against the cuts of fitted ventricles, mean
  and standard deviation over the phases, and the mean distance of the surfaces. DMCVR's ground truth was experts'
  labels of 50 subjects' long-axis images: these figures are of one human's fitted meshes, cavities only.

A ventricle that a plane only grazes (less than 2 cm2 of it, mean over the phases) is not judged in that plane.
"shape-based" is no image: the labels of the acquired slices, interpolated by their signed distances.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from calid.geometry import heart_center
from calid.heart.anatomy import clean_labels
from calid.heart.longaxis import at_phases_of, crossing_views, cut, dice
from calid.heart.segmentation import segment_with
from calid.heart.surfaces import surfaces
from calid.images.study import read_study
from calid.labels import LV_CAVITY
from calid.report import stills, viewer
from calid.report.comparison import Column, compare_views
from calid.run.device import choose_device
from calid.run.preparation import intensity_window
from calid.stack import LaxImage, Stack
from tqdm import tqdm

from calid_benchmark.rivals import shape_based
from calid_benchmark.segmenters import judging_segmenter
from calid_benchmark.systems import MOTION_ALONE, Named, chosen
from calid_benchmark.tables.drawings import sheet
from calid_benchmark.tables.meshes import SIDES, distances_to_meshes, mesh_labels
from calid_benchmark.tables.questions import PIXEL_MM, SIZE, add_source_arguments, cut_around, offer_of
from calid_benchmark.tables.record import Place, markdown_table, paragraphs, place_of, write_table

SHAPE_BASED = "shape-based (acquired slices' labels)"
SHOWN = ("nearest", "linear", "registration", MOTION_ALONE, "CaLID+")
GRAZED_MM2 = 200.0
STILL_SIZE, STILL_DEGREES = (300, 300), -35


@dataclass(frozen=True, eq=False)
class Heart:
    """The study as every system sees it.

    Args:
        sparse: the acquired short-axis slices of some phases, cropped, float32 in [0, 1].
        lax: the long-axis images that cross them.
        frames: the phases' numbers in the study.
        factor: number of gaps that each acquired one becomes.
    """

    sparse: Stack
    lax: tuple[LaxImage, ...]
    frames: tuple[int, ...]
    factor: int

    def dense(self, voxels: np.ndarray) -> Stack:
        """Dense voxels (T, slots, Y, X) in patient space, the new slices marked."""
        affine = self.sparse.affine.copy()
        affine[:3, 2] /= self.factor
        generated = np.ones(voxels.shape[1], bool)
        generated[:: self.factor] = False
        return Stack(voxels, affine, self.sparse.frame_times_ms, generated)


def heart_of_study(folder: Path, *, phases: int, factor: int) -> Heart:
    """The study in `folder`, with `phases` phases spread over the cycle."""
    study = read_study(folder)
    sax = study.sax
    frames = np.unique(np.linspace(0, sax.num_frames - 1, min(phases, sax.num_frames)).astype(int))
    few = replace(sax, voxels=sax.voxels[frames], frame_times_ms=sax.frame_times_ms[frames])
    center = heart_center(sax, [image.stack for image in study.lax])
    lax = tuple(crossing_views(study.lax, sax))
    return Heart(cropped(few, center), lax, tuple(int(frame) for frame in frames), factor)


def cropped(stack: Stack, center_lps: np.ndarray) -> Stack:
    """The 128 x 128 crop at 1.8 mm around a point, intensities scaled to [0, 1], in patient space."""
    native_mm = float(stack.spacing_mm[0])
    column, row, _ = stack.to_index(center_lps)
    low, high = intensity_window(stack.voxels)
    frames = ((stack.voxels.astype(np.float32) - low) / (high - low)).clip(0, 1)
    images = np.stack([cut_around(np.array([column, row]), frame, native_mm=native_mm) for frame in frames])
    step = PIXEL_MM / native_mm
    affine = stack.affine.copy()
    affine[:3, :2] *= step
    corner = np.array([column, row, 0.0]) - step * (SIZE - 1) / 2 * np.array([1.0, 1.0, 0.0])
    affine[:3, 3] = stack.to_lps(corner)
    return Stack(images, affine, stack.frame_times_ms)


def upsampled(heart: Heart, systems: Sequence[Named]) -> dict[str, Stack]:
    """{system: dense stack}."""
    made = {}
    for system in tqdm(systems, desc="upsampling", unit=" systems"):
        told = system.told(float(heart.sparse.spacing_mm[2]))
        frames = [told.whole_heart(frame, heart.factor) for frame in heart.sparse.voxels]
        made[system.name] = heart.dense(np.stack(frames).astype(np.float32))
    return made


def labels_of_stacks(
    heart: Heart, stacks: Mapping[str, Stack], *, models: Path | None, device: str
) -> dict[str, Stack]:
    """{row: cleaned labels on the dense grid}."""
    segmenter = judging_segmenter(choose_device(device), models)
    rows = {name: clean_labels(segment_with(segmenter, stack)) for name, stack in tqdm(stacks.items(), "segmenting")}
    sparse = segment_with(segmenter, heart.sparse)
    voxels = np.stack([shape_based.upsample(frame, heart.factor) for frame in sparse.voxels])
    return rows | {SHAPE_BASED: clean_labels(heart.dense(voxels.astype(np.uint8)))}


def agreements(heart: Heart, stacks: Mapping[str, Stack]) -> dict[str, dict[str, Any]]:
    """{view: {system: agreement with the acquired long-axis image}}."""
    columns = [Column(name, stack, order=0 if name == "nearest" else 1) for name, stack in stacks.items()]
    return {
        one.view: {name: asdict(figure) for name, figure in one.columns.items()}
        for one in compare_views(heart.lax, columns)
    }


def dice_in_planes(labels: Stack, truth: Stack, lax: Sequence[LaxImage]) -> dict[str, dict[str, list[float]]]:
    """{view: {"LV" or "RV": Dice of every phase}}, labels cut through the plane against the truth cut through it.

    A ventricle that the plane only grazes is left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for image in lax:
        plane = at_phases_of(image.stack, labels)
        cuts = cut(labels, plane, order=0), cut(truth, plane, order=0)
        pixel_mm2 = float(np.prod(plane.spacing_mm[:2]))
        found[image.name] = {
            side: [dice(a[None], b[None], label) for a, b in zip(*cuts, strict=True)]
            for side, (label, _) in SIDES.items()
            if (cuts[1] == label).sum() * pixel_mm2 / len(cuts[1]) >= GRAZED_MM2
        }
    return {view: sides for view, sides in found.items() if sides}


def dice_summary(planes: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """{"views": {view: cell}, "sides": {side: cell}}, cells {mean, sd, cuts}; "average" is a view over all cuts."""
    views = {view: [value for values in sides.values() for value in values] for view, sides in planes.items()}
    views["average"] = [value for values in views.values() for value in values]
    sides: dict[str, list[float]] = {}
    for found in planes.values():
        for side, values in found.items():
            sides.setdefault(side, []).extend(values)
    return {
        kind: {name: _spread(values) for name, values in lists.items()}
        for kind, lists in (("views", views), ("sides", sides))
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    known = [value for value in values if np.isfinite(value)]
    return {"mean": float(np.mean(known)), "sd": float(np.std(known)), "cuts": len(known)}


def compare_anatomy(heart: Heart, labels: Mapping[str, Stack], folder: Path) -> dict[str, dict[str, Any]]:
    """{row: {"dice": as by `dice_summary`, "distance_mm": {side: mean}}} of labels against fitted meshes."""
    truth = mesh_labels(next(iter(labels.values())), heart.frames, folder)
    rows = {}
    for name, stack in tqdm(labels.items(), "meshes"):
        distances = distances_to_meshes(stack, heart.frames, folder)
        rows[name] = {
            "dice": dice_summary(dice_in_planes(stack, truth, heart.lax)),
            "distance_mm": {side: float(np.mean(values)) if values else None for side, values in distances.items()},
        }
    return rows


def markdown(
    heart: Heart, seen: Mapping[str, Mapping[str, Any]], anatomy: Mapping[str, Mapping[str, Any]], notes: Sequence[str]
) -> str:
    """Both tables as Markdown."""
    spacing, phases = heart.sparse.spacing_mm[2], len(heart.frames)
    lines = [
        f"One human, {phases} phases, {heart.sparse.num_slices} slices {spacing:.1f} mm apart, x{heart.factor}",
        "",
    ]
    views = list(seen)
    systems = list(next(iter(seen.values())))
    rows = [[*(seen[view][name]["gradient_correlation"] for view in views)] for name in systems]
    lines += ["Edge agreement with the acquired long-axis images (1 is perfect):", ""]
    body = [[name, *(f"{x:.3f}" for x in (*row, np.mean(row)))] for name, row in zip(systems, rows, strict=True)]
    lines += markdown_table(["system", *views, "mean"], body)
    if anatomy:
        first = next(iter(anatomy.values()))["dice"]
        views = ["average", *(view for view in first["views"] if view != "average")]
        lines += ["Labels against the fitted meshes: Dice in the planes, mean (SD); mean distance of the surfaces:", ""]
        heads = ["system", *views, *first["sides"], *(f"{side} mm" for side in SIDES)]
        lines += markdown_table(heads, [[name, *_anatomy_cells(row, views)] for name, row in anatomy.items()])
    return "\n".join([*lines, *notes, ""])


def _anatomy_cells(row: Mapping[str, Any], views: Sequence[str]) -> list[str]:
    overlaps = [*(row["dice"]["views"][view] for view in views), *row["dice"]["sides"].values()]
    distances = row["distance_mm"].values()
    return [
        *(f"{one['mean']:.3f} ({one['sd']:.3f})" for one in overlaps),
        *("-" if value is None else f"{value:.2f}" for value in distances),
    ]


def draw(folder: Path, heart: Heart, stacks: Mapping[str, Stack], labels: Mapping[str, Stack]) -> None:
    """Fig. 5, the long-axis cuts beside the acquired image, and Fig. 6, the surfaces; at end diastole and systole."""
    volumes = (labels["linear"].voxels == LV_CAVITY.value).sum(axis=(1, 2, 3))
    moments = {"ED": int(volumes.argmax()), "ES": int(volumes.argmin())}
    for name, frame in moments.items():
        title = f"{name}: the acquired long-axis image, and each system's stack cut in its plane"
        sheet(folder / f"long-axis-{name}.png", title, cuts_of(heart, stacks, frame), inches=1.8)
    rows = {name: {row: _still(stack, frame) for row, stack in labels.items()} for name, frame in moments.items()}
    sheet(folder / "surfaces.png", "Ventricles of the labeled dense stacks", rows, inches=2.2)


def cuts_of(heart: Heart, stacks: Mapping[str, Stack], frame: int) -> dict[str, dict[str, np.ndarray]]:
    """{view: {"acquired" or system: picture in [0, 1]}} of one phase, where the short-axis slices reach."""
    rows = {}
    for image in heart.lax:
        plane = at_phases_of(image.stack, heart.sparse).frame(frame)
        low, high = intensity_window(image.stack.voxels)
        pictures = {"acquired": ((plane.voxels[0, 0] - low) / (high - low)).clip(0, 1)}
        for name, stack in stacks.items():
            pictures[name] = cut(stack.frame(frame), plane, order=0 if name == "nearest" else 1)[0]
        known = np.isfinite(pictures["linear"])
        box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(known))
        rows[image.name] = {name: np.where(known, picture, np.nan)[box] for name, picture in pictures.items()}
    return rows


def _still(labels: Stack, frame: int) -> np.ndarray:
    """(Y, X, 3) in [0, 1]: the surfaces of one phase."""
    meshes = viewer.turned(viewer.viewed(surfaces(labels, frame), viewer.viewing_frame(labels)), STILL_DEGREES)
    picture = stills.paint(viewer.bodies(meshes), size=STILL_SIZE, ground=viewer.GROUND_RGB)
    return np.asarray(picture, np.float32) / 255


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("study", type=Path, help="DICOM folder with short-axis and long-axis cines")
    parser.add_argument("--meshes", type=Path, help="folder with *_LV_ENDOCARDIAL_NNN.vtk and *_RV_ENDOCARDIAL_NNN.vtk")
    parser.add_argument("--phases", type=int, default=25, help="cardiac phases compared")
    parser.add_argument("--factor", type=int, default=8, help="how many gaps each gap becomes")
    add_source_arguments(parser, table="long-axis")


def make(
    place: Place,
    study: Path,
    *,
    systems: Sequence[Named],
    meshes: Path | None = None,
    phases: int = 25,
    factor: int = 8,
    notes: Sequence[str] = (),
) -> None:
    """Make the tables and pictures.

    Args:
        place: folder and files for them.
        study: DICOM folder with short-axis and long-axis cines.
        systems: who upsamples.
        meshes: folder with the study's fitted ventricles, or None.
        phases: how many phases are compared.
        factor: number of gaps that each acquired one becomes.
        notes: remarks below the tables.
    """
    heart = heart_of_study(study, phases=phases, factor=factor)
    stacks = upsampled(heart, systems)
    labels = labels_of_stacks(heart, stacks, models=place.models, device=place.device)
    seen = agreements(heart, stacks)
    anatomy = {} if meshes is None else compare_anatomy(heart, labels, meshes)
    text = markdown(heart, seen, anatomy, paragraphs(notes))
    record = {"agreement": seen, "anatomy": anatomy, "frames": heart.frames, "notes": list(notes)}
    write_table(place, "long-axis", text, record, systems=systems)
    draw(place.out, heart, stacks, labels)


def upsampling(systems: Sequence[Named], names: Sequence[str] | None) -> list[Named]:
    """The named systems and those they are compared with; without names the papers' and the motion alone."""
    return [one for one in chosen(systems, SHOWN if names is None else names) if not one.sees_truth]


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    offer = offer_of(options)
    make(
        place_of(options),
        options.study,
        systems=upsampling(offer.systems, options.systems),
        meshes=options.meshes,
        phases=options.phases,
        factor=options.factor,
        notes=offer.notes,
    )
    return 0
