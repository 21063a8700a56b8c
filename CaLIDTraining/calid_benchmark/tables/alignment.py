"""`calid-evaluate alignment`: are shifts of breath-holds found that were put in, and none where there are none?

Shifts of 0 to 8 mm within the plane and 0 to 4 mm through it, each in any direction, are put into every slice:

- "the study": into the places of a human's slices, beside its own long-axis images. The true shifts are those found
  without (this heart has some of its own) and those put in. What two disjoint sets of its views say apart from each
  other ("views apart") tells how well its own shifts are known.
- every prepared set: into slices of open stacks, beside three long-axis cuts made of the straight stack (between slices
  linear), 6 mm thick, with a gain and an offset of their own and noise of 5 %. Without shifts, none may be found.

Errors are of slices against the mean of a heart's slices, for all images moved together look the same, and of slices
that a view crosses where they were displaced to; of the others nothing can be known, and nothing is said.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from calid.geometry import heart_center
from calid.images.study import read_study
from calid.run.alignment import align, align_images
from calid.run.intersections import Image, images_of
from calid.run.shifts import Alignment, moved
from calid.stack import LaxImage, Stack
from calid_training.prepare import load_cases
from scipy import ndimage
from tqdm import tqdm

from calid_benchmark.tables.drawings import sheet
from calid_benchmark.tables.long_axis import Heart, cuts_of
from calid_benchmark.tables.questions import PIXEL_MM, StackQuestion, add_place_arguments, add_set_arguments, questions
from calid_benchmark.tables.record import Place, markdown_table, place_of, write_table

IN_PLANE_MM, THROUGH_MM = 8.0, 4.0
ANGLES_DEGREES = (10.0, 70.0, 130.0)
SLAB_MM, NOISE = 6.0, 0.05
MAX_WORSE_MM = 0.5


@dataclass(frozen=True, eq=False)
class Trial:
    """What was put into one heart and found.

    Args:
        put_in: (Z, 3) mm shifts.
        errors: (Z, 3) mm how far from them what was found lies.
        known: (Z,) bool: slices that a view crosses.
        agreement: along the lines, before and after.
    """

    put_in: np.ndarray
    errors: np.ndarray
    known: np.ndarray
    agreement: tuple[float, float]

    @property
    def made_worse(self) -> int:
        """Number of slices that lie farther off in plane than before, by more than `MAX_WORSE_MM`.

        Slices that no view crosses stay where they are, and only seem to move against the mean of the others.
        """
        before, after = (np.hypot(x[self.known, 0], x[self.known, 1]) for x in (self.put_in, self.errors))
        return int((after > before + MAX_WORSE_MM).sum())


def random_shifts(rng: np.random.Generator, slices: int) -> np.ndarray:
    """(Z, 3) mm."""
    length, angle = rng.uniform(0, IN_PLANE_MM, slices), rng.uniform(0, 2 * np.pi, slices)
    through = rng.uniform(0, THROUGH_MM, slices) * rng.choice([-1, 1], slices)
    return np.stack([length * np.cos(angle), length * np.sin(angle), through], axis=1)


def centered(shifts: np.ndarray) -> np.ndarray:
    """Shifts (Z, ...) less their mean over the slices, which no alignment can know."""
    return shifts - shifts.mean(axis=0)


def trial(
    slices: Sequence[Image], views: Mapping[str, Image], center: np.ndarray, put_in: np.ndarray, own: np.ndarray
) -> Trial:
    """Displace the places of slices and look for it; `own` (Z, 3) are the shifts that they have without."""
    displaced = [image.shifted(-shift) for image, shift in zip(slices, put_in, strict=True)]
    found = _need(align_images(displaced, views, center))
    known = np.array([shift.confidence > 0 for shift in found.slices])
    errors = found.slice_shifts_mm - put_in - own
    before, errors = (shifts - shifts[known].mean(axis=0) for shifts in (put_in, errors))
    return Trial(before, errors, known, (found.agreement_before, found.agreement_after))


def _need(found: Alignment | None) -> Alignment:
    if found is None:
        raise ValueError("no long-axis image crosses the slices")
    return found


def of_study(sax: Stack, lax: Sequence[LaxImage], *, trials: int, seed: int = 0) -> tuple[list[Trial], float, float]:
    """Trials of a study, and how far two disjoint sets of its views differ, in plane and through it (means, mm)."""
    rng = np.random.default_rng(seed)
    center = heart_center(sax, [view.stack for view in lax])
    slices, views = images_of(sax), {view.name: images_of(view.stack)[0] for view in lax}
    own = _need(align_images(slices, views, center)).slice_shifts_mm
    made = [
        trial(slices, views, center, random_shifts(rng, len(slices)), own) for _ in tqdm(range(trials), desc="study")
    ]
    names = list(views)
    halves = [{name: views[name] for name in names[start::2]} for start in (0, 1)]
    first, second = (centered(_need(align_images(slices, half, center)).slice_shifts_mm) for half in halves)
    apart = first - second
    return made, float(np.hypot(apart[:, 0], apart[:, 1]).mean()), float(np.abs(apart[:, 2]).mean())


def of_question(question: StackQuestion, rng: np.random.Generator) -> tuple[Trial, float]:
    """A trial of an open stack with synthetic long-axis cuts, and the largest shift found where none was put in."""
    affine = np.diag([PIXEL_MM, PIXEL_MM, question.spacing_mm, 1.0])
    noisy = question.images + rng.normal(0, NOISE, question.images.shape)
    stack = Stack(noisy[None].astype(np.float32), affine)
    views = {f"{angle:.0f}": synthetic_cut(question, affine, angle, rng) for angle in ANGLES_DEGREES}
    slices, center = images_of(stack), stack.to_lps((np.array(stack.voxels.shape[:0:-1]) - 1) / 2)
    still = _need(align_images(slices, views, center)).slice_shifts_mm
    zero = np.zeros_like(still)
    worst = float(np.hypot(*centered(still).T[:2]).max())
    return trial(slices, views, center, random_shifts(rng, len(slices)), zero), worst


def synthetic_cut(question: StackQuestion, affine: np.ndarray, degrees: float, rng: np.random.Generator) -> Image:
    """A long-axis image through the middle of a stack, at an angle from its rows."""
    angle = np.deg2rad(degrees)
    side, down = np.array([np.cos(angle), np.sin(angle), 0.0]), np.array([0.0, 0.0, 1.0])
    slices, rows, columns = question.images.shape
    height = int((slices - 1) * question.spacing_mm / PIXEL_MM) + 1
    plane = np.eye(4)
    plane[:3, :3] = np.stack([side, down, np.cross(side, down)], axis=1) * [PIXEL_MM, PIXEL_MM, SLAB_MM]
    middle = affine[:3, :3] @ np.array([(columns - 1) / 2, (rows - 1) / 2, 0.0])
    plane[:3, 3] = middle - side * PIXEL_MM * (columns - 1) / 2
    y, x = np.indices((height, columns))
    points = np.stack([x, y, 0 * x, np.ones_like(x)], axis=-1) @ plane[:3].T
    across = np.linspace(-0.4, 0.4, 5)[:, None, None, None] * SLAB_MM * np.cross(side, down)
    column, row, place = np.moveaxis((points + across) @ np.linalg.inv(affine[:3, :3]).T, -1, 0)
    seen = ndimage.map_coordinates(question.images, [place, row, column], order=1, mode="nearest").mean(axis=0)
    told = rng.uniform(0.6, 1.6) * seen + rng.uniform(-0.2, 0.2) + rng.normal(0, NOISE, seen.shape)
    return Image(told[None].astype(np.float32), plane, SLAB_MM, np.zeros(1))


def summary_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """Errors in mm over all slices, and agreement along the lines."""
    errors = np.concatenate([one.errors[one.known] for one in trials])
    put_in = np.concatenate([one.put_in for one in trials])
    in_plane, through = np.hypot(errors[:, 0], errors[:, 1]), np.abs(errors[:, 2])
    return {
        "trials": len(trials),
        "slices": sum(len(one.errors) for one in trials),
        "unknown": sum(int((~one.known).sum()) for one in trials),
        "put_in_mm": [float(np.hypot(put_in[:, 0], put_in[:, 1]).mean()), float(np.abs(put_in[:, 2]).mean())],
        "in_plane_mm": [float(in_plane.mean()), float(np.percentile(in_plane, 95)), float(in_plane.max())],
        "through_mm": [float(through.mean()), float(np.percentile(through, 95)), float(through.max())],
        "made_worse": sum(one.made_worse for one in trials),
        "agreement": [float(x) for x in np.mean([one.agreement for one in trials], axis=0)],
    }


def markdown(rows: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The rows as a Markdown table, and notes below it."""
    heads = [
        "",
        "trials",
        "slices (crossed by no view)",
        "put in: in plane / through",
        "error in plane: mean, 95 %, max",
    ]
    heads += [
        "error through: mean, 95 %, max",
        f"worse by > {MAX_WORSE_MM} mm",
        "agreement before / after",
        "none put in",
    ]
    body = [
        [
            name,
            str(row["trials"]),
            f"{row['slices']} ({row['unknown']})",
            " / ".join(f"{x:.1f}" for x in row["put_in_mm"]),
            ", ".join(f"{x:.2f}" for x in row["in_plane_mm"]),
            ", ".join(f"{x:.2f}" for x in row["through_mm"]),
            str(row["made_worse"]),
            " / ".join(f"{x:.3f}" for x in row["agreement"]),
            f"{row['worst_at_rest_mm']:.2f}" if "worst_at_rest_mm" in row else "-",
        ]
        for name, row in rows.items()
    ]
    return "\n".join(["Breath-holds (mm)", "", *markdown_table(heads, body), *notes, ""])


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("study", type=Path, help="DICOM folder with short-axis and long-axis cines")
    add_set_arguments(parser, datasets=("chla", "autofd"), split="validation", required=False)
    parser.add_argument("--trials", type=int, default=6, help="how often shifts are put into the study")
    parser.add_argument("--stacks", type=int, default=10, help="how many stacks of the prepared sets")
    parser.add_argument("--phases", type=int, default=8, help="cardiac phases of the study")
    add_place_arguments(parser, table="alignment")


def make(place: Place, study: Path, *, asked: Sequence[StackQuestion] = (), trials: int = 6, phases: int = 8) -> None:
    """Make the table and a sheet of the study's views before and after.

    Args:
        place: folder and files for them.
        study: DICOM folder with short-axis and long-axis cines.
        asked: stacks of open data, whose slices are shifted by known amounts.
        trials: number of trials of the study.
        phases: number of phases of the study's cine.
    """
    read = read_study(study)
    frames = np.unique(np.linspace(0, read.sax.num_frames - 1, phases).astype(int))
    sax = replace(read.sax, voxels=read.sax.voxels[frames], frame_times_ms=read.sax.frame_times_ms[frames])
    made, in_plane, through = of_study(sax, read.lax, trials=trials)
    rows: dict[str, dict[str, Any]] = {"the study": summary_of(made)}
    groups: dict[str, list[tuple[Trial, float]]] = {}
    rng = np.random.default_rng(1)
    for question in tqdm(asked, desc="open stacks"):
        groups.setdefault(question.group, []).append(of_question(question, rng))
    for name, found in groups.items():
        rows[name] = summary_of([one for one, _ in found]) | {"worst_at_rest_mm": max(worst for _, worst in found)}
    own = align(sax, {view.name: view.stack for view in read.lax})
    note = f"Views apart: two disjoint sets of the study's views differ by {in_plane:.2f} mm in plane, {through:.2f} mm"
    notes = [f"{note} through it (mean over slices). The study's own shifts: {own.summary}"]
    text = markdown(rows, notes)
    write_table(place, "alignment", text, {"rows": rows, "own": own.as_json(), "apart_mm": [in_plane, through]})
    draw(place.out, sax, read.lax, own)


def draw(folder: Path, sax: Stack, lax: Sequence[LaxImage], own: Alignment) -> None:
    """The acquired views, and the stack cut in their planes as acquired and as moved."""
    heart = Heart(sax, tuple(lax), (0,), 1)
    rows = cuts_of(heart, {"linear": sax, "linear, slices moved": moved(sax, own)[0]}, 0)
    low, high = np.percentile(sax.voxels[0], [1, 99.5])
    shown = {
        view: {
            name: picture if name == "acquired" else (picture - low) / (high - low) for name, picture in found.items()
        }
        for view, found in rows.items()
    }
    sheet(folder / "alignment.png", "Long-axis planes before and after the breath-holds are aligned", shown, inches=2.6)


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    asked: list[StackQuestion] = []
    if options.prepared is not None:
        cases = load_cases(options.prepared, datasets=options.datasets, split=options.split)
        every = questions(cases)
        asked = every[:: max(1, len(every) // options.stacks)][: options.stacks]
    make(place_of(options), options.study, asked=asked, trials=options.trials, phases=options.phases)
    return 0
