"""What the cine table asks: slices over whole cines, between their neighbors, on cines no model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calid.heart.segmentation import Segmenter, segment_with
from calid.images.files import read_stack
from calid.labels import LV_CAVITY
from calid.run.windows import spans_the_cycle
from calid.stack import Stack
from calid_training.datasets import RawCase
from calid_training.prepare import AnyCase, IndexEntry, PreparedCase, case_center, scaled_images, spans_cycle

from calid_benchmark.tables.questions import cut_around


@dataclass(frozen=True, eq=False)
class Passage:
    """Three slices over time.

    Args:
        group: a block of the table.
        patient: patient, or gap of an acquired cine; each counts once.
        before, after: frames (T, 128, 128) in [0, 1] of the outer slices.
        truth: frames of the slice between, or None where none was acquired.
        spans_cycle: whether the last frame is followed by the first.
    """

    group: str
    patient: str
    before: np.ndarray
    truth: np.ndarray | None
    after: np.ndarray
    spans_cycle: bool


def passages_of(
    cases: Iterable[AnyCase],
    segmenter: Segmenter,
    *,
    count: int | None = None,
    dicom: Path | None = None,
    gaps: int = 1,
) -> list[Passage]:
    """The sequences to ask about.

    Args:
        cases: prepared cines that no model was trained on.
        segmenter: finds the heart of the acquired one.
        count: sequences of every set, from the first on; None is all.
        dicom: folder of an acquired cine, or None.
        gaps: number of its gaps, from the middle.
    """
    asked = middle_slices(cases)
    if count is not None:
        groups = sorted({sequence.group for sequence in asked})
        asked = [s for group in groups for s in [s for s in asked if s.group == group][:count]]
    if dicom is not None:
        found = between_acquired(read_stack(dicom), segmenter, group=f"{dicom.resolve().parent.name} cine")
        first = max(0, (len(found) - gaps) // 2)
        asked += found[first : first + gaps]
    return asked


def middle_slices(cases: Iterable[AnyCase]) -> list[Passage]:
    """The middle slice of every cine with its neighbors, cut around the heart."""
    found = []
    for case in cases:
        if min(case.entry.shape[:2]) < 3:
            continue
        middle = case.entry.shape[1] // 2
        before, truth, after = (_cut(case.images[:, middle + step], case) for step in (-1, 0, 1))
        group = f"{case.entry.dataset} {case.entry.spacing_mm[2]:.0f} mm"
        found.append(Passage(group, case.entry.patient, before, truth, after, spans_cycle(case)))
    return found


def _cut(images: np.ndarray, case: AnyCase) -> np.ndarray:
    return cut_around(case_center(case), images, native_mm=case.entry.spacing_mm[0])


def between_acquired(stack: Stack, segmenter: Segmenter, *, group: str) -> list[Passage]:
    """Every gap of an acquired cine whose two slices both show the left ventricle, cut around it."""
    labels = segment_with(segmenter, stack.frame(0)).voxels == LV_CAVITY.value
    x_mm, y_mm, z_mm = map(float, stack.spacing_mm)
    shape = stack.voxels.shape
    entry = IndexEntry(group, "", "cine", "test", "", (x_mm, y_mm, z_mm), shape, (LV_CAVITY.value,), "")
    images = scaled_images(RawCase(group, "", "cine", "test", stack))
    case = PreparedCase(entry, images, np.broadcast_to(labels, shape))
    gaps = [gap for gap in range(stack.num_slices - 1) if labels[0, gap].any() and labels[0, gap + 1].any()]
    cut = {index: _cut(images[:, index], case) for gap in gaps for index in (gap, gap + 1)}
    spans = spans_the_cycle(stack)
    return [Passage(group, f"gap {gap + 1}", cut[gap], None, cut[gap + 1], spans) for gap in gaps]
