"""One job from file to file, and what a user may ask before it: how long, on what device, with which models."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from calid import __version__
from calid.bisection import plan_bisection, resolve_factor
from calid.checks import check_stack
from calid.device import choose_device
from calid.errors import OutputError
from calid.files import check_output, read_stack, write_stack
from calid.generation import work
from calid.preparation import plan_preparation
from calid.progress import Progress
from calid.reconstruct import Reconstruction, upsample, warm_interpolator
from calid.settings import Settings
from calid.stack import Stack
from calid.weights import read_manifest

SEGMENTATION_SUFFIX = ".seg.nrrd"
TRIAL_BATCH, TRIAL_STEPS = 4, 2


@dataclass(frozen=True)
class Job:
    """Read a stack, upsample it, write the result; nothing is written unless all of it went well.

    Args:
        source: file or DICOM folder.
        output: file for the dense stack, its format by its extension.
        settings: what to do.
        uncertainty: file for the standard deviation over the draws, or None.
        overwrite: whether existing files may be replaced.
        models_folder: where the manifest lies; None takes the bundled models.
    """

    source: Path
    output: Path
    settings: Settings
    uncertainty: Path | None = None
    overwrite: bool = False
    models_folder: Path | None = None

    def run(
        self,
        *,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        on_frame: Callable[[int, Stack], None] | None = None,
    ) -> Reconstruction:
        """Do it. Outputs are checked before the work, so that no minutes are lost to a read-only folder.

        Raises:
            CalidError: whatever is wrong with input, settings, weights, machine or output.
            Cancelled: if `is_cancelled` said so; nothing was written.
        """
        outputs = [path for path in (self.output, self.uncertainty) if path is not None]
        if len({path.resolve() for path in outputs}) < len(outputs):
            raise OutputError("same-output", f"{self.output} is asked for twice.", "Give two different names.")
        for path in outputs:
            check_output(path, overwrite=self.overwrite)
            if path.name.lower().endswith(SEGMENTATION_SUFFIX):
                raise OutputError("not-labels", f"{path} would be a segmentation.", "End the name in .nrrd or .nii.gz.")
        made = upsample(
            read_stack(self.source),
            self.settings,
            models_folder=self.models_folder,
            uncertainty=self.uncertainty is not None,
            progress=progress,
            is_cancelled=is_cancelled,
            on_frame=on_frame,
            source=self.source.name,
        )
        if self.uncertainty is not None and made.uncertainty is not None:
            write_stack(made.uncertainty, self.uncertainty, overwrite=self.overwrite)
        write_stack(made.stack, self.output, overwrite=self.overwrite)
        return made


def estimate(
    stack: Stack, settings: Settings, *, uncertainty: bool = False, models_folder: Path | None = None
) -> dict[str, Any]:
    """Seconds and slices a run will take, measured by a trial of a few network evaluations of this very size."""
    check_stack(stack)
    plan = plan_bisection(stack.num_slices, resolve_factor(settings.factor, stack))
    facts = {"factor": plan.factor, "slices": plan.num_slots, "frames": stack.num_frames}
    if settings.method == "linear":
        return facts | {"seconds": 0.1 * stack.num_frames, "device": "CPU"}
    device = choose_device(settings.device)
    interpolator = warm_interpolator(device, models_folder)
    shape = plan_preparation(stack, roi=settings.roi).padded_shape
    images = torch.zeros(min(TRIAL_BATCH, device.batch_size(shape[0] * shape[1])), 1, *shape)
    z_T = torch.zeros(len(images), *interpolator.latent_shape(shape))
    interpolator.interpolate(images, images, z_T, steps=1, tick=lambda _: None)  # the first call is slow
    start = time.perf_counter()
    interpolator.interpolate(images, images, z_T, steps=TRIAL_STEPS, tick=lambda _: None)
    one = (time.perf_counter() - start) / (len(images) * TRIAL_STEPS)
    draws = settings.draws(uncertainty=uncertainty)
    evaluations = work(plan, settings, frames=stack.num_frames, draws=draws)
    return facts | {"seconds": round(one * evaluations, 1), "device": device.reason}


def information(device: str = "auto", models_folder: Path | None = None) -> dict[str, Any]:
    """Versions, device with its reason and free memory, and the installed models: the self-check of `calid info`."""
    import monai

    chosen = choose_device(device)
    return {
        "calid": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "device": chosen.reason,
        "precision": str(chosen.autocast_dtype or torch.float32).removeprefix("torch."),
        "free_memory_gb": round(chosen.free_bytes() / 1024**3, 1),
        "models": [_summary(entry) for entry in read_manifest(models_folder).values()],
    }


def _summary(entry: Any) -> dict[str, Any]:
    shown = ("name", "bytes", "license", "trained_on")
    return {key: value for key, value in asdict(entry).items() if key in shown}
