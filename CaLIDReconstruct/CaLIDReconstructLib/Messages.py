"""What went wrong, in the user's words: error codes of the engine and of the module -> translated text."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from calid.errors import CalidError
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


EXPECTED_ERRORS = (ModuleError, CalidError, OSError)
"""What is raised where the input, the settings, the disk or the machine are at fault, and not the program."""


def _titles() -> dict[str, str]:
    return {
        "no-input": _("No volume is chosen."),
        "not-an-image": _("The chosen node holds no image."),
        "frames-differ": _("The frames of this sequence do not lie in the same place."),
        "mixed-positions": _("This sequence holds slices of several positions, each with its phases."),
        "unsorted-frames": _("The frames of this sequence are not in the order of time."),
        "not-a-cine": _("The frames of this sequence differ by something else than time."),
        "multi-volume": _("This is a multi-volume, whose voxels each hold all frames."),
        "phases-as-slices": _("The slices of this volume are phases of one slice: time was loaded as a third axis."),
        "engine-missing": _("The engine's packages are not installed."),
        "engine-not-started": _("The engine did not start."),
        "engine-crashed": _("The engine stopped unexpectedly."),
        "engine-killed": _("The operating system ended the engine."),
        "remote-not-agreed": _("Nothing is sent to another computer before you agreed to it."),
        "remote-no-ssh": _("This computer has no ssh, by which another one is reached."),
        "remote-not-found": _("The other computer was not found."),
        "remote-unreachable": _("The other computer cannot be reached."),
        "remote-unknown-key": _("The other computer is not known to ssh yet, so nothing was sent."),
        "remote-changed-key": _("The other computer's host key has changed, so nothing was sent."),
        "remote-denied": _("The other computer does not let you in."),
        "remote-no-engine": _("There is no CaLID on the other computer."),
        "remote-version": _("The other computer has another version of CaLID."),
        "remote-lost": _("The connection to the other computer was lost."),
        "remote-files": _("Only images that the module wrote for a run may be sent to another computer."),
        "memory": _("There is not enough memory."),
        "disk-full": _("The disk is full."),
        "unwritable": _("A file could not be written."),
        "no-models": _("The models are not there."),
        "no-device": _("The chosen device cannot be used."),
        "internal": _("The engine met an error of its own."),
        "input-removed": _("The input was removed from the scene during the run."),
        "output-removed": _("The result was removed from the scene during the run."),
        "scene-closed": _("The scene was closed, so the run was ended."),
        "result-unreadable": _("The engine's result could not be read."),
        "nothing-to-assemble": _("No group of single-slice volumes or cines was found."),
        "no-long-axis": _("There is no long-axis plane to compare in."),
        "no-hearts": _("The scene holds no short-axis stack that can be upsampled."),
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
        "complex-pixels": _("The voxels are complex numbers."),
        "unsupported-voxels": _("The voxels are of an unsupported type."),
        "nan-voxels": _("Some voxels are not numbers."),
        "infinite-voxels": _("Some voxels are infinite."),
        "absurd-values": _("Some voxels have impossible values."),
        "constant-image": _("There is no image in this volume."),
        "blank-slice": _("A slice is blank."),
        "blank-frame": _("A frame is blank."),
        "label-map": _("This is a label map and not an MR image."),
        "unusual-contrast": _("The contrast is not that of cine MR."),
        "missing-frame": _("A frame of the cine is missing."),
        "uneven-frames": _("The slices have different numbers of frames."),
        "repeated-frame": _("Some frames are there twice."),
        "repeated-slice": _("Some slices are there twice."),
        "guessed-frame-times": _("The times of the frames are guessed."),
        "implausible-frame-times": _("The times of the frames are implausible."),
        "generated-input": _("Some slices were generated before."),
        "no-left-ventricle": _("No left ventricle was found."),
        "no-right-ventricle": _("No right ventricle was found."),
        "unclear-apex": _("Base and apex could not be told apart."),
    }


def _remedies() -> dict[str, str]:
    return {
        "no-input": _("Choose a short-axis volume or cine, or click 'Try on sample data'."),
        "not-an-image": _("Choose a scalar volume or a sequence of scalar volumes."),
        "frames-differ": _("Load the cine again as one volume sequence."),
        "mixed-positions": _("Click 'Assemble' under 'Loose slices' to make one cine of them."),
        "unsorted-frames": _("Click 'Assemble' under 'Loose slices' to sort them."),
        "not-a-cine": _("Choose the short-axis cine."),
        "multi-volume": _("Click 'Assemble' under 'Loose slices' to make a cine of it."),
        "phases-as-slices": _("Load the study again with 'Load DICOM folder'."),
        "engine-missing": _("Open 'Setup' and click 'Install'."),
        "engine-not-started": _("Open 'Setup' and click 'Self-check'; the log says what the engine printed."),
        "engine-crashed": _("Nothing was changed in the scene. Try again; the log says what the engine printed."),
        "engine-killed": _(
            "This is what happens when memory runs out: choose a region of interest, fewer samples or a smaller "
            "factor, or close other programs."
        ),
        "remote-not-agreed": _("Open 'Setup' and click 'Connect'."),
        "remote-no-ssh": _("Install OpenSSH (on Windows an optional feature) or run the engine on this computer."),
        "remote-not-found": _("Check its name in 'Setup'."),
        "remote-unreachable": _("Check that it is switched on, that the network reaches it, and that ssh is allowed."),
        "remote-unknown-key": _(
            "Connect once in a terminal with 'ssh' and compare the fingerprint that it shows with the other computer's."
        ),
        "remote-changed-key": _(
            "Ask whoever looks after that computer. Only if they changed it, remove the old key with 'ssh-keygen -R'."
        ),
        "remote-denied": _("Set up a key for it (ssh-copy-id), and let ssh-agent hold the key; no password is asked."),
        "remote-no-engine": _("Install it there (the documentation says how), or give its path under 'Program there'."),
        "remote-version": _("Install the same version on both computers."),
        "remote-lost": _("Nothing was changed in the scene. Try again; the files there are removed by themselves."),
        "memory": _(
            "Choose a region of interest, the shown frame only, fewer samples or a smaller factor, or close other "
            "programs."
        ),
        "disk-full": _("Free some space on the disk of Slicer's temporary folder and try again."),
        "unwritable": _(
            "Choose a temporary folder that you may write to in Edit > Application Settings > Modules, or another file."
        ),
        "no-models": _("Choose another models folder under 'Advanced', or install CaLID again."),
        "no-device": _("Choose 'Automatic' or the processor under 'Advanced'."),
        "internal": _("Copy the log and report it."),
        "nothing-to-assemble": _("Load the short-axis series first; each position must be one volume or one sequence."),
        "no-long-axis": _(
            "Load the long-axis cines, or run with 'Segmentation' on so that planes can be derived from the anatomy."
        ),
        "no-hearts": _("Load the studies first, or take a folder of them."),
        "busy": _("Wait for it or cancel it first."),
        "one-slice": _("Load the whole short-axis stack (for DICOM: the folder that holds all its slices)."),
        "no-voxels": _("Export it again, or choose another volume."),
        "too-small": _("Use the slices as they were acquired, not a thumbnail or a narrow crop."),
        "already-isotropic": _("Choose a stack whose slices are further apart."),
        "uneven-spacing": _("Load slices of one evenly spaced acquisition, or resample the stack first."),
        "missing-slice": _("Load the missing slice, or keep only the slices on one side of the gap."),
        "duplicate-slices": _("Keep one of the two."),
        "non-parallel": _("Leave this slice out, or resample it parallel to the others first."),
        "rotated-slice": _("Leave this slice out, or resample it like the others first."),
        "shifted-slice": _("Leave this slice out, or resample it on the grid of the others first."),
        "sheared-stack": _("Resample the stack on a straight grid first."),
        "sheared-affine": _("Resample the image on a straight grid first, or harden its transform."),
        "unusual-contrast": _("Use the cine as the scanner shows it."),
        "implausible-spacing": _("Correct the spacing (it must be in millimeters), or export the image again."),
        "mixed-sizes": _("Load only slices of one acquisition, or resample them to one grid first."),
        "mixed-pixel-spacing": _("Load only slices of one acquisition, or resample them to one grid first."),
        "complex-pixels": _("Save the magnitude image and use that."),
        "unsupported-voxels": _("Save the image with integer or floating point voxels."),
        "nan-voxels": _("Export the image again, or repair these slices."),
        "infinite-voxels": _("Export the image again, or repair these slices."),
        "absurd-values": _("Export the image again, or repair these slices."),
        "constant-image": _("Export the image again."),
        "blank-slice": _("Export the image again, or crop the stack to the slices that show the heart."),
        "blank-frame": _("Export the image again."),
        "label-map": _("Choose the MR image and not its segmentation."),
        "missing-frame": _("Load the missing frame, or keep the frames that are complete."),
        "uneven-frames": _("Load slices that were acquired with the same number of phases, or one phase of each."),
        "repeated-frame": _("Check whether the export doubled it and lost another."),
        "repeated-slice": _("Check whether the export doubled it and lost another."),
        "guessed-frame-times": _("The voxels are not affected; heart rate and times in the results are."),
        "implausible-frame-times": _("The voxels are not affected; heart rate and times in the results are."),
        "generated-input": _("Start from the acquired stack where you have it."),
    }


def failure(code: str, message: str = "", *, remedy: str = "", details: str = "") -> Failure:
    """The module's own failure of this code; a remedy given here is for this case and stands before the usual one."""
    return Failure(code, _titles().get(code, ""), message, remedy or _remedies().get(code, ""), details)


def engineFailure(code: str, message: str, remedy: str, *, details: str = "") -> Failure:
    """What the engine reports, whose words are English: ours stand in place of its remedy where the code is known."""
    return Failure(code, _titles().get(code, ""), message, _remedies().get(code, remedy), details)


def failureFromEvent(event: dict) -> Failure:
    """The failure that an engine's "error" event reports."""
    return engineFailure(
        str(event.get("code", "engine-crashed")),
        str(event.get("message", "")),
        str(event.get("remedy", "")),
        details=str(event.get("details", "")),
    )


def failureFromError(error: Exception, *, otherwise: str = "result-unreadable") -> Failure:
    """The failure behind one of `EXPECTED_ERRORS`.

    Args:
        error: exception that was caught.
        otherwise: code of the system's errors, by what was done with the file; a full disk has its own.
    """
    if isinstance(error, ModuleError):
        return error.failure
    if isinstance(error, CalidError):
        return engineFailure(error.code, error.message, error.remedy)
    isFull = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return failure("disk-full" if isFull else otherwise, str(error))


def stageText(stage: str) -> str:
    """What the engine is doing, in words; a stage that is not known stands as the engine says it."""
    level = re.fullmatch(r"level (\d+) of (\d+)", stage)
    if level:
        return _("Filling the gaps, round {number} of {count}").format(number=level[1], count=level[2])
    guided = re.fullmatch(r"guided by long-axis images, level (\d+) of (\d+)", stage)
    if guided:
        return _("Following the long-axis images, round {number} of {count}").format(number=guided[1], count=guided[2])
    moved = re.fullmatch(r"(sending|receiving) (\d+) of (\d+) MB", stage)
    if moved:
        text = _("Sending {done} of {size} MB") if moved[1] == "sending" else _("Receiving {done} of {size} MB")
        return text.format(done=moved[2], size=moved[3])
    words = {
        "starting": _("Starting"),
        "inverting the acquired slices": _("Reading the acquired slices"),
        "comparing breath-holds": _("Comparing slices with long-axis images"),
        "interpolating": _("Interpolating"),
        "segmenting": _("Finding the ventricles"),
        "surfaces": _("Making 3D surfaces"),
    }
    return words.get(stage, stage)


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
