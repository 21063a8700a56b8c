"""Whether what was chosen can be a heart's short axis: said of what is chosen, and asked before choosing by itself."""

from __future__ import annotations

import numpy as np
from calid.images import checks
from calid.stack import Stack
from slicer.i18n import tr as _

from .Messages import Failure, engineFailure, failure

PHASES_CORRELATION = 0.7
"""Of the first slice with every other: 0.88 and more between the phases of a slice, below 0.45 between the slices of a
stack (11 cines of one subject; 47 stacks of two data sets)."""

FEWEST_PHASES = 5
OBLIQUE_DEGREES = 15.0
"""A short axis is tilted by more than this against the patient's axial, sagittal and coronal planes."""

PLANES = ("sagittal", "coronal", "axial")


def blockingFailure(stack: Stack, name: str) -> Failure | None:
    """The first reason why this stack cannot be upsampled, or None."""
    if arePhases(stack):
        return failure("phases-as-slices", f"{name}: {stack.num_slices}.")
    for finding in checks.findings(stack):
        if finding.severity == "error":
            return engineFailure(finding.code, f"{name}: {finding.message}", finding.remedy)
    return None


def warningTexts(stack: Stack) -> list[str]:
    """What is unusual but does not stop a run."""
    found = [
        engineFailure(finding.code, finding.message, finding.remedy).text()
        for finding in checks.findings(stack)
        if finding.severity != "error"
    ]
    plane = alignedPlane(stack)
    if plane:
        found.append(_alignedText(plane))
    return found


def arePhases(stack: Stack) -> bool:
    """Whether the slices of a static stack show one and the same slice at several times.

    A reader that takes each image of a cine for a slice makes a volume that looks like a stack.
    """
    if stack.num_frames > 1 or stack.num_slices < FEWEST_PHASES:
        return False
    slices = stack.voxels[0].reshape(stack.num_slices, -1).astype(np.float64)
    slices -= slices.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(slices, axis=1)
    if not lengths.all():
        return False
    return bool((slices[1:] @ slices[0] / (lengths[1:] * lengths[0])).min() > PHASES_CORRELATION)


def alignedPlane(stack: Stack) -> str:
    """Which plane the slices lie in, "axial", "sagittal" or "coronal", as a short axis never does; else empty."""
    normal = np.abs(np.cross(stack.directions_lps[:, 0], stack.directions_lps[:, 1]))
    nearest = int(normal.argmax())
    angle = np.degrees(np.arccos(min(1.0, normal[nearest] / np.linalg.norm(normal))))
    return PLANES[nearest] if angle < OBLIQUE_DEGREES else ""


def _alignedText(plane: str) -> str:
    title = {"axial": _("axial"), "sagittal": _("sagittal"), "coronal": _("coronal")}[plane]
    return _("The slices are {plane}, which a short axis is not, unless the file has lost its orientation.").format(
        plane=title
    )
