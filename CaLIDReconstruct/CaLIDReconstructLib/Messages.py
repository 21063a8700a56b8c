"""What went wrong, in the user's words: error codes of the engine and of the module -> translated text."""

from __future__ import annotations

from dataclasses import dataclass

from slicer.i18n import tr as _


@dataclass(frozen=True)
class Failure:
    """One failure as the panel shows it.

    Args:
        code: stable code, of the engine (`calid.errors`) or of the module.
        title: what happened, one translated sentence.
        message: where and with which measured value; empty when the title says all.
        remedy: what the user can do.
        details: for the log and the copied report only (the engine's last lines).
    """

    code: str
    title: str
    message: str = ""
    remedy: str = ""
    details: str = ""

    def text(self) -> str:
        """The failure as one paragraph."""
        return " ".join(part for part in (self.title, self.message, self.remedy) if part)


class ModuleError(Exception):
    """Raised by the module's logic; carries the `Failure` to show."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text())
        self.failure = failure


def _titles() -> dict[str, str]:
    return {
        "no-input": _("No volume is chosen."),
        "not-an-image": _("The chosen node holds no image."),
        "frames-differ": _("The frames of this sequence do not lie in the same place."),
        "engine-missing": _("The engine's packages are not installed."),
        "engine-not-started": _("The engine did not start."),
        "engine-crashed": _("The engine stopped unexpectedly."),
        "engine-killed": _("The operating system ended the engine."),
        "memory": _("There is not enough memory."),
        "disk-full": _("The disk is full."),
        "no-models": _("The models are not there."),
        "no-device": _("The chosen device cannot be used."),
        "internal": _("The engine met an error of its own."),
        "input-removed": _("The input was removed from the scene during the run."),
        "output-removed": _("The result was removed from the scene during the run."),
        "scene-closed": _("The scene was closed, so the run was ended."),
        "result-unreadable": _("The engine's result could not be read."),
        "nothing-to-assemble": _("No group of single-slice volumes or cines was found."),
        "no-long-axis": _("There is no long-axis plane to compare in."),
        "busy": _("A run is already going on."),
        "one-slice": _("This volume has only one slice."),
        "no-voxels": _("This volume is empty."),
        "too-small": _("The slices are too small."),
        "already-isotropic": _("The slices are already close together."),
        "uneven-spacing": _("The slices are not evenly spaced."),
        "missing-slice": _("A slice is missing."),
        "duplicate-slices": _("A slice is there twice."),
        "non-parallel": _("The slices are not parallel."),
        "rotated-slice": _("A slice is turned against the others."),
        "shifted-slice": _("A slice is shifted against the others."),
        "sheared-stack": _("The stack is sheared."),
        "sheared-affine": _("The voxel axes are not perpendicular."),
        "implausible-spacing": _("The spacing is implausible."),
        "mixed-sizes": _("The slices differ in size."),
        "mixed-pixel-spacing": _("The slices differ in pixel size."),
        "nan-voxels": _("Some voxels are not numbers."),
        "infinite-voxels": _("Some voxels are infinite."),
        "absurd-values": _("Some voxels have impossible values."),
        "constant-image": _("There is no image in this volume."),
        "blank-slice": _("A slice is blank."),
        "blank-frame": _("A frame is blank."),
        "label-map": _("This is a label map and not an MR image."),
        "missing-frame": _("A frame of the cine is missing."),
        "uneven-frames": _("The slices have different numbers of frames."),
        "no-left-ventricle": _("No left ventricle was found."),
        "no-right-ventricle": _("No right ventricle was found."),
        "unclear-apex": _("Base and apex could not be told apart."),
    }


def _remedies() -> dict[str, str]:
    return {
        "no-input": _("Choose a short-axis volume or cine, or click 'Try on sample data'."),
        "not-an-image": _("Choose a scalar volume or a sequence of scalar volumes."),
        "frames-differ": _("Load the cine again as one volume sequence."),
        "engine-missing": _("Open 'Setup' and click 'Install'."),
        "engine-not-started": _("Open 'Setup' and click 'Self-check'; the log says what the engine printed."),
        "engine-crashed": _("Nothing was changed in the scene. Try again; the log says what the engine printed."),
        "engine-killed": _(
            "This is what happens when memory runs out: choose a region of interest, fewer samples or a smaller "
            "factor, or close other programs."
        ),
        "memory": _("Choose a region of interest, fewer samples, a smaller factor, or the CPU."),
        "disk-full": _("Free some space on the disk of the temporary folder and try again."),
        "nothing-to-assemble": _("Load the short-axis series first; each position must be one volume or one sequence."),
        "no-long-axis": _(
            "Load the long-axis cines, or run with 'Segmentation' on so that planes can be derived from the anatomy."
        ),
        "busy": _("Wait for it or cancel it first."),
    }


def failure(code: str, message: str = "", *, remedy: str = "", details: str = "") -> Failure:
    """The failure of this code; unknown codes keep the engine's own words."""
    title = _titles().get(code, "")
    return Failure(code, title, message, remedy or _remedies().get(code, ""), details)


def failureFromEvent(event: dict) -> Failure:
    """The failure that an engine's "error" event reports."""
    return failure(
        str(event.get("code", "engine-crashed")),
        str(event.get("message", "")),
        remedy=str(event.get("remedy", "")),
        details=str(event.get("details", "")),
    )


def failureFromOSError(error: OSError) -> Failure:
    """The failure behind a file that could not be written or read."""
    import errno

    code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "result-unreadable"
    return failure(code, str(error))


def timeText(seconds: float) -> str:
    """A length of time as people say it: "40 s", "3 min", "1 h 10 min"."""
    if seconds < 1:
        return _("less than a second")
    if seconds < 100:
        return _("{count} s").format(count=round(seconds))
    if seconds < 5400:
        return _("{count} min").format(count=round(seconds / 60))
    return _("{hours} h {minutes} min").format(hours=int(seconds // 3600), minutes=round(seconds % 3600 / 60))


def memoryText(size_bytes: float) -> str:
    """A size as people say it: "350 MB", "1.2 GB"."""
    if size_bytes < 1e9:
        return _("{count} MB").format(count=max(1, round(size_bytes / 1e6)))
    return _("{count} GB").format(count=f"{size_bytes / 1e9:.1f}")
