"""`calid-train cine`: semi-synthetic cines from pairs of end-diastole (ED) and end-systole (ES), documented as such.

The open sets that may train hold two phases of a beat. What lies between them is made from the two:

1. ES slices are put beside the ED slices that they show (`aligned`): what does not move is alike in both.
2. Each ED slice is registered to its ES slice in-plane (`displacement`, symmetric diffeomorphic demons).
3. The displacement is carried through a volume curve of two-phase filling (`contraction`), every frame a warp of both
   ends, blended (`on_the_way`): positions from the displacement, appearance from the pair.
4. Every frame gets thermal noise of its own (`with_noise`), so that noise is not frozen to the tissue.

What this cannot show: motion through the plane, twist beyond what ED and ES show, arrhythmia, breathing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from calid.stack import Stack
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

from calid_training.datasets import RawCase
from calid_training.errors import UsageError
from calid_training.prepare import AnyCase, case_center, load_cases, write_cases
from calid_training.registration import demons_field

NUM_FRAMES = 20
BEAT_MS = 900.0
MIN_ALIKE = 0.6  # correlation of ED and ES slices below which they are not taken for the same place
MARGIN_PIXELS = 160  # rows and columns kept around the heart
DEMONS_ITERATIONS, FIELD_SIGMA_PIXELS = 40, 1.5
INVERSION_ROUNDS = 6
NOISE = (0.008, 0.02)  # standard deviation of thermal noise in intensity windows, drawn for each patient


@dataclass(frozen=True)
class Beat:
    """The course of one beat, in parts of it.

    Args:
        systole: when the ventricle is smallest.
        early: share of the stroke volume that the early filling wave brings; the atrial kick brings most of the rest.
        noise: standard deviation of the thermal noise, in intensity windows.
    """

    systole: float = 0.36
    early: float = 0.72
    noise: float = 0.014


def draw_beat(rng: np.random.Generator) -> Beat:
    """A plausible beat."""
    return Beat(systole=rng.uniform(0.30, 0.42), early=rng.uniform(0.6, 0.85), noise=rng.uniform(*NOISE))


def contraction(beat: Beat, phases: np.ndarray) -> np.ndarray:
    """How far the ventricle has gone from ED (0) to ES (1) at phases of the beat in [0, 1).

    Monotone pieces through: isovolumic contraction, ejection, isovolumic relaxation, early filling, diastasis, atrial
    kick: the shape of volume-time curves in cine MR. Periodic: phase 1 is phase 0.
    """
    end = beat.systole
    filled = beat.early
    knots = np.array(
        [
            (0.0, 0.0),
            (0.05, 0.03),
            (0.5 * end, 0.55),
            (end, 1.0),
            (end + 0.05, 0.97),
            (end + 0.14, 1 - 0.6 * filled),
            (end + 0.24, 1 - filled),
            (0.82, 0.93 - 0.93 * filled),
            (0.93, 0.02),
            (1.0, 0.0),
        ]
    )
    return PchipInterpolator(*knots.T)(np.asarray(phases) % 1.0)


def aligned(ed: np.ndarray, es: np.ndarray) -> tuple[int, float]:
    """The ED slice that ES slice 0 shows, and the mean correlation of the slices this puts beside each other.

    Args:
        ed, es: (Z, Y, X) with the same spacing; either may reach beyond the other.
    """
    likeness = _standardized(ed) @ _standardized(es).T
    shortest = max(3, min(likeness.shape) - 2)
    offsets = range(shortest - len(es), len(ed) - shortest + 1)
    means = {offset: float(np.mean(np.diagonal(likeness, -offset))) for offset in offsets}
    best = max(means, key=means.__getitem__)
    return best, means[best]


def _standardized(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def displacement(ed: np.ndarray, es: np.ndarray) -> np.ndarray:
    """Where the tissue of an ED image (Y, X) is at ES: (2, Y, X) pixels, columns first, ED(x) = ES(x + u(x))."""
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    field = demons_field(demons, ed, es, iterations=DEMONS_ITERATIONS, sigma_pixels=FIELD_SIGMA_PIXELS)
    return field.astype(np.float32)


def on_the_way(ed: np.ndarray, es: np.ndarray, field: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Images (len(fractions), Y, X) of tissue that has gone a fraction of its way from ED (0) to ES (1).

    Tissue at x in ED is at y = x + c u(x) at fraction c; x is found by fixed-point iteration of x = y - c u(x). The
    appearance is (1 - c) ED(x) + c ES(x + u(x)).
    """
    c = torch.as_tensor(fractions, dtype=torch.float32).reshape(-1, 1, 1, 1)
    u, first, last = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (field, ed[None], es[None]))
    rows, columns = torch.meshgrid(*(torch.arange(float(size)) for size in ed.shape), indexing="ij")
    y = torch.stack([columns, rows])
    x = y.expand(len(c), -1, -1, -1)
    for _ in range(INVERSION_ROUNDS):
        x = y - c * _sampled(u, x)
    frames = (1 - c) * _sampled(first, x, mode="bicubic") + c * _sampled(last, x + _sampled(u, x), mode="bicubic")
    return frames[:, 0].numpy()


def _sampled(image: torch.Tensor, places: torch.Tensor, *, mode: str = "bilinear") -> torch.Tensor:
    """An image (C, Y, X) at places (N, 2, Y, X) in pixels, columns first: (N, C, Y, X)."""
    sizes = torch.tensor([image.shape[2] - 1.0, image.shape[1] - 1.0])
    grid = places.movedim(1, -1) / sizes * 2 - 1
    images = image.expand(len(places), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=True)


def with_noise(rng: np.random.Generator, images: np.ndarray, deviation: float) -> np.ndarray:
    """Images in [0, 1] with independent noise, a little smooth in-plane as after a scanner's own interpolation."""
    noise = ndimage.gaussian_filter(rng.standard_normal(images.shape, np.float32), (*[0] * (images.ndim - 2), 0.6, 0.6))
    return (images + deviation / noise.std() * noise).clip(0, 1).astype(np.float32)


def beating(rng: np.random.Generator, ed: AnyCase, es: AnyCase) -> RawCase | None:
    """A semi-synthetic cine (T, Z, Y, X) in [0, 1] of a pair of one patient, or None where the two do not fit."""
    if ed.images.shape[2:] != es.images.shape[2:]:
        return None
    offset, alike = aligned(ed.images[0], es.images[0])
    if alike < MIN_ALIKE:
        return None
    first, last = max(offset, 0), min(len(ed.images[0]), len(es.images[0]) + offset)
    window = _around_heart(ed)
    ends = ed.images[0, first:last][window], es.images[0, first - offset : last - offset][window]
    beat = draw_beat(rng)
    course = contraction(beat, np.arange(NUM_FRAMES) / NUM_FRAMES)
    slices = [on_the_way(a, b, displacement(a, b), course) for a, b in zip(*ends, strict=True)]
    images = with_noise(rng, np.stack(slices, axis=1), beat.noise)
    labels = np.broadcast_to(ed.drawn[0, first:last][window], images.shape)  # of ED: they say where the heart is
    affine = np.diag([*ed.entry.spacing_mm, 1.0])
    times = BEAT_MS * np.arange(NUM_FRAMES) / NUM_FRAMES
    patient, split = ed.entry.patient, ed.entry.split
    stacks = Stack(images, affine, times), Stack(labels, affine, times)
    return RawCase(ed.entry.dataset, patient, "cine", split, *stacks, ed.entry.annotated)


def _around_heart(case: AnyCase) -> tuple[slice, ...]:
    """All slices, and rows and columns around the heart."""
    column, row = case_center(case)
    ranges = (
        slice(start := int(np.clip(center - MARGIN_PIXELS / 2, 0, max(size - MARGIN_PIXELS, 0))), start + MARGIN_PIXELS)
        for center, size in zip((row, column), case.images.shape[2:], strict=True)
    )
    return slice(None), *ranges


def pairs(cases: Iterable[AnyCase]) -> list[tuple[AnyCase, AnyCase]]:
    """The (ED, ES) cases of every patient whose LV was contoured in both: the larger labeled volume is ED."""
    stacks: dict[tuple[str, str], list[AnyCase]] = {}
    for case in cases:
        if not case.entry.series.startswith("RV_"):
            stacks.setdefault((case.entry.dataset, case.entry.patient), []).append(case)
    found = []
    for members in stacks.values():
        if len(members) == 2:
            ed, es = sorted(members, key=lambda case: -np.count_nonzero(case.drawn))
            found.append((ed, es))
    return found


def make_cines(
    prepared: Path, out: Path, *, datasets: Sequence[str], seed: int = 0, patients: int | None = None
) -> Path:
    """Write the semi-synthetic cines of prepared ED and ES stacks as a prepared folder, and return its index.

    Args:
        prepared: folder with the stacks.
        out: folder for the cines.
        datasets: sets of which cines are made.
        seed: seed of everything that is drawn.
        patients: number of patients of every set and split, the first ones; None is all.

    Raises:
        UsageError: if no cine can be made.
    """
    found = [
        pair
        for split in ("train", "validation", "test")
        for dataset in datasets
        for pair in pairs(load_cases(prepared, datasets=[dataset], split=split))[:patients]
    ]
    made = list(_made(tqdm(found, unit=" patients"), seed))
    if not made:
        raise UsageError(
            f"{prepared}: no patient of {', '.join(datasets)} has ED and ES stacks of the same slices: prepare a "
            "set with both, or train on real cines"
        )
    return write_cases(made, out)


def _made(found: Iterable[tuple[AnyCase, AnyCase]], seed: int) -> Iterator[RawCase]:
    for number, pair in enumerate(found):
        cine = beating(np.random.default_rng((seed, number)), *pair)
        if cine is not None:
            yield cine
