"""One job from file to file, and what a user may ask before it: how long, on what device, with which models."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calid import __version__
from calid.bisection import Plan, plan_bisection, resolve_factor
from calid.checks import check_stack
from calid.device import Device, choose_device, free_system_bytes
from calid.errors import OutputError
from calid.files import check_output, read_stack, write_stack
from calid.generation import HELD_BYTES, frames_made, frames_together, work
from calid.interpolator import Interpolator, choose_model
from calid.preparation import plan_preparation
from calid.progress import Progress, Watch
from calid.reconstruct import Reconstruction, upsample, warm_interpolator
from calid.settings import Settings
from calid.stack import Stack
from calid.weights import read_manifest

SEGMENTATION_SUFFIX = ".seg.nrrd"
TRIAL_BATCH, TRIAL_STEPS = 4, 2
RESULT_COPIES = 2  # the dense stack, and once more while it is written
SEQUENCE_BYTES_PER_PIXEL = 800  # of the denoiser, for every frame of a sequence
WORKING_COPIES = 6  # of one frame: what the levels read and write, and what is carried past the networks


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
    stack: Stack,
    settings: Settings,
    *,
    uncertainty: bool = False,
    models_folder: Path | None = None,
    num_frames: int | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Seconds, memory and slices of a run; the seconds measured by a trial of a few network evaluations of its size.

    Args:
        stack: the input, or one frame of it.
        settings: what to do.
        uncertainty: the run also makes the standard deviation.
        models_folder: where the manifest lies; None takes the bundled models.
        num_frames: of the whole input, where `stack` is a part of it.
        is_cancelled: asked at every network evaluation.
    """
    settings = settings.resolved(uncertainty=uncertainty)
    check_stack(stack)
    frames = num_frames or stack.num_frames
    plan = plan_bisection(stack.num_slices, resolve_factor(settings.factor, stack))
    facts = {"factor": plan.factor, "slices": plan.num_slots, "frames": frames}
    device = choose_device("cpu" if settings.method == "linear" else settings.device)
    draws = settings.draws(uncertainty=uncertainty)
    if settings.method == "linear":
        memory = expected_memory(stack, plan, device, frames=frames, draws=draws, pixels=0)
        return facts | memory | {"seconds": 0.1 * frames, "device": "CPU"}
    model, _ = choose_model(settings.model, frames=frames, models_folder=models_folder)
    interpolator = warm_interpolator(device, models_folder, model)
    shape = plan_preparation(stack, roi=settings.roi).padded_shape
    pixels = math.prod(shape)
    one = _seconds_per_evaluation(interpolator, shape, Watch(1, is_cancelled=is_cancelled))
    made = frames_made(interpolator, plan, frames=frames, pixels=pixels, draws=draws)
    evaluations = work(plan, settings, frames=made, draws=draws)
    together = min(frames, frames_together(interpolator, plan, pixels=pixels, draws=draws))
    together = together if interpolator.is_over_time else 1
    memory = expected_memory(stack, plan, device, frames=frames, draws=draws, pixels=pixels, together=together)
    return facts | memory | {"seconds": round(one * evaluations, 1), "device": device.reason, "model": model}


def _seconds_per_evaluation(interpolator: Interpolator, shape: tuple[int, int], watch: Watch) -> float:
    images = torch.zeros(min(TRIAL_BATCH, interpolator.device.batch_size(math.prod(shape))), 1, *shape)
    z_T = torch.zeros(len(images), *interpolator.latent_shape(shape))
    if interpolator.is_over_time:  # as many images, but of one sequence
        images, z_T = (tensor.transpose(0, 1)[None] for tensor in (images, z_T))
    interpolator.interpolate(images, images, z_T, steps=1, tick=watch.tick)  # the first call is slow
    start = time.perf_counter()
    interpolator.interpolate(images, images, z_T, steps=TRIAL_STEPS, tick=watch.tick)
    return (time.perf_counter() - start) / (images[..., 0, 0].numel() * TRIAL_STEPS)


def expected_memory(
    stack: Stack, plan: Plan, device: Device, *, frames: int, draws: int, pixels: int, together: int = 1
) -> dict[str, Any]:
    """What a run needs beyond the loaded engine, against what is free.

    Args:
        stack: gives slice size and voxel type.
        plan: gives the number of slices.
        device: where the networks run.
        frames: of the whole run.
        draws: of every slice.
        pixels: of one image as the networks see it; 0 without networks.
        together: frames that a 2D+T model makes at once.

    Returns:
        "memory_bytes" and "free_bytes" on the device, and whether the run "fits" there and into the main memory.
    """
    networks = device.working_bytes(pixels, plan.num_generated * draws) if pixels else 0
    networks = max(networks, pixels * SEQUENCE_BYTES_PER_PIXEL * together)
    voxels = plan.num_slots * math.prod(stack.voxels.shape[2:])
    kept = frames * voxels * RESULT_COPIES * stack.voxels.itemsize
    frame_bytes = HELD_BYTES if together > 1 else WORKING_COPIES * np.dtype(np.float32).itemsize
    working = together * voxels * draws * frame_bytes
    free, free_system = device.free_bytes(), free_system_bytes()
    if device.torch_device.type != "cuda":  # networks and voxels share one memory
        return {"memory_bytes": networks + kept + working, "free_bytes": free, "fits": networks + kept + working < free}
    return {"memory_bytes": networks, "free_bytes": free, "fits": networks < free and kept + working < free_system}


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
        "free_memory_gb": round(chosen.free_bytes() / 1e9, 1),
        "models": [_summary(entry) for entry in read_manifest(models_folder).values()],
    }


def _summary(entry: Any) -> dict[str, Any]:
    shown = ("name", "bytes", "license", "trained_on")
    return {key: value for key, value in asdict(entry).items() if key in shown}
