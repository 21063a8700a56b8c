"""What an input is, told to people and programs: the table of a study's series, or the facts of a stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calid.images.checks import findings
from calid.images.choice import MOTIONS, Choice, Verdict, numbers_of
from calid.images.dicom import DicomImage
from calid.images.groups import Group, Take, alike
from calid.images.times import phase_times_ms
from calid.stack import Stack

CHOICE_KEY = "choice"
LEFT_OUT_KEY = "left_out"
"""What a stack's provenance calls the sentence on which series it is, and those on what else was in the folder."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of a study, or the part of it that lies in one direction.

    Args:
        number, uid, description: what the headers call the series, without identifiers of the patient.
        role: "short axis", "long axis" or "left out".
        kind: what it shows, in words.
        slices: number of its positions.
        phases: number of images at each position.
        spacing_mm: distance from slice to slice of its stack; None for a single plane.
        pixel_mm: distances between columns and between rows; 0 where the headers do not say.
        size: (columns, rows).
        times_ms: times of the first and the last phase after the R wave; None where the headers do not say.
        tilt_degrees: angle of its planes against the short axis; None where there is none.
        reason: why it is taken for that, in words.
    """

    number: int
    uid: str
    description: str
    role: str
    kind: str
    slices: int = 1
    phases: int = 1
    spacing_mm: float | None = None
    pixel_mm: tuple[float, float] = (0.0, 0.0)
    size: tuple[int, int]
    times_ms: tuple[float, float] | None = None
    tilt_degrees: float | None = None
    reason: str


@dataclass(frozen=True, eq=False)
class Overview:
    """A study as its headers tell it; no pixels were looked at.

    Args:
        choice: what each group of images is taken for.
        notes: what else was left out or passed over, and which headers were not believed, in sentences.
        unplaced: images that no header places in space.
    """

    choice: Choice
    notes: tuple[str, ...] = ()
    unplaced: tuple[DicomImage, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """One sentence for each group of images that is not used, and the notes."""
        counts: Counter[tuple[str, str]] = Counter()
        for verdict in self.choice.left_out:
            counts[named(verdict.group), verdict.reason] += len(verdict.group.images)
        for image in self.unplaced:
            counts[f"{_described(image)} (series {image.series[0]:g})", "without a place in space"] += 1
        return (*(f"{count} images of {name}: {reason}." for (name, reason), count in counts.items()), *self.notes)

    @property
    def series(self) -> list[Series]:
        """Every series of the study, in order."""
        sax = None if self.choice.doubt else self.choice.sax
        placed = [one for verdict in self.choice.verdicts for one in _series_of(verdict, sax)]
        unplaced = {image.series: image for image in self.unplaced}
        return sorted([*placed, *map(_unplaced, unplaced.values())], key=lambda one: (one.number, one.uid))

    def sentence(self) -> str:
        """The choice in one line: what, how sure, and why.

        Raises:
            InputError: there is none.
        """
        sax = self.choice.sax
        apart = "" if sax.gap_mm is None else f", {sax.gap_mm:.1f} mm apart"
        return (
            f"short axis: {named(sax)}, {len(sax.places)} slices of {sax.num_frames} frames{apart} "
            f"({self.choice.confidence} confidence: {'; '.join(self.choice.reasons)})"
        )

    def as_json(self) -> dict[str, Any]:
        """The same for programs; docs/protocol.md describes it."""
        doubt = self.choice.doubt
        sax = None if doubt else self.choice.sax
        chosen = None
        if sax is not None:
            chosen = {
                "series": [int(number) for number, _ in sax.series],
                "uids": [uid for _, uid in sax.series],
                "description": sax.description,
                "slices": len(sax.places),
                "phases": sax.num_frames,
                "spacing_mm": sax.gap_mm,
            }
        return {
            "series": [asdict(one) for one in self.series],
            "choice": chosen,
            "confidence": None if doubt else self.choice.confidence,
            "reasons": list(self.choice.reasons),
            "doubt": doubt and {"code": doubt.code, "message": doubt.message, "remedy": doubt.remedy},
            "left_out": list(self.left_out),
        }

    def as_text(self) -> str:
        """The table of all series, and the choice with its reasons."""
        head = ("series", "description", "taken for", "slices x phases", "apart mm", "pixels mm", "times ms", "why")
        rows = [head, *map(_cells, self.series)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        doubt = self.choice.doubt
        said = str(doubt) if doubt else self.sentence()
        return "\n".join([*lines, "", said[:1].upper() + said[1:], *self.notes])


def told(stack: Stack, source: Path) -> list[str]:
    """What a person should be told of the folder that a stack was read from, in lines.

    Nothing of a single file, whose header may still hold what was told when its voxels came from a folder.
    """
    facts = stack.provenance if source.is_dir() else {}
    choice = [str(facts[CHOICE_KEY])] if CHOICE_KEY in facts else []
    return [*choice, *(f"left out: {sentence}" for sentence in facts.get(LEFT_OUT_KEY, ()))]


def named(group: Group) -> str:
    """A group's description and the numbers of its series."""
    return f"{group.description} (series {numbers_of(group)})"


def facts_of(stack: Stack) -> dict[str, Any]:
    """What a stack is, and what its checks find."""
    columns, rows = stack.voxels.shape[:1:-1]
    return {
        "slices": stack.num_slices,
        "generated_slices": int(np.asarray(stack.generated).sum()),
        "frames": stack.num_frames,
        "size": [columns, rows],
        "spacing_mm": [round(float(value), 4) for value in stack.spacing_mm],
        "frame_times_ms": [round(float(time), 3) for time in stack.frame_times_ms],
        "type": stack.voxels.dtype.name,
        "values": [float(stack.voxels.min()), float(stack.voxels.max())],
        "provenance": dict(stack.provenance),
        "findings": [asdict(finding) for finding in findings(stack)],
    }


def facts_as_text(facts: Mapping[str, Any], name: str) -> str:
    """The facts of a stack in lines."""
    x, y, z = facts["spacing_mm"]
    first, last = facts["frame_times_ms"][0], facts["frame_times_ms"][-1]
    source = facts["provenance"].get("source", "made by CaLID")
    generated = f" ({facts['generated_slices']} of them generated)" if facts["generated_slices"] else ""
    lines = [
        f"{name}: {source}, {facts['slices']} slices{generated} of {facts['frames']} frames",
        f"  pixels    {facts['size'][0]} x {facts['size'][1]}, {x:.4g} x {y:.4g} mm; slices {z:.4g} mm apart",
        f"  times     {first:g} to {last:g} ms after the R wave",
        f"  values    {facts['values'][0]:g} to {facts['values'][1]:g} ({facts['type']})",
    ]
    lines += [f"  {one['severity']:9s} {one['message']} {one['remedy']}" for one in facts["findings"]]
    if not any(one["severity"] == "error" for one in facts["findings"]):
        lines.append("  It can be upsampled.")
    return "\n".join(lines)


def _series_of(verdict: Verdict, sax: Group | None) -> list[Series]:
    """The series in a group."""
    group = verdict.group
    gap = group.gap_mm
    subject = f", {group.subject}" if group.subject else ""
    return [
        Series(
            number=int(number),
            uid=uid,
            description=takes[0].images[0].description,
            role=verdict.role,
            kind=f"{MOTIONS[group.motion]}{subject}",
            slices=len({tuple(np.round(take.plane.origin_lps, 2)) for take in takes}),
            phases=max(len(take.images) for take in takes),
            spacing_mm=None if gap is None else round(gap, 3),
            pixel_mm=(round(float(group.plane.spacing_mm[0]), 4), round(float(group.plane.spacing_mm[1]), 4)),
            size=group.plane.size,
            times_ms=_span_ms(takes),
            tilt_degrees=None if sax is None else round(group.tilt_degrees(sax), 1),
            reason=verdict.reason,
        )
        for (number, uid), takes in alike(group.takes, lambda take: take.series).items()
    ]


def _unplaced(image: DicomImage) -> Series:
    return Series(
        number=int(image.series[0]),
        uid=image.series[1],
        description=image.description,
        role="left out",
        kind="images without a place",
        size=image.size,
        reason="no header places it in space",
    )


def _span_ms(takes: Sequence[Take]) -> tuple[float, float] | None:
    times = [found for take in takes if (found := phase_times_ms(take.images)) is not None]
    if len(times) < len(takes):
        return None
    together = np.concatenate(times)
    return round(float(together.min()), 2), round(float(together.max()), 2)


def _described(image: DicomImage) -> str:
    return image.description or "a series without description"


def _cells(one: Series) -> tuple[str, ...]:
    """A row of the table."""
    return (
        str(one.number),
        one.description[:32],
        one.role,
        f"{one.slices} x {one.phases}",
        "" if one.spacing_mm is None else f"{one.spacing_mm:.2f}",
        "" if not any(one.pixel_mm) else " x ".join(f"{value:.3g}" for value in one.pixel_mm),
        "" if one.times_ms is None else f"{one.times_ms[0]:.0f}-{one.times_ms[1]:.0f}",
        one.reason,
    )
