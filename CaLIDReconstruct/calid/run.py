"""One job from file to file, and what a user may ask before it: how long, on what device, with which models."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calid import __version__
from calid.bisection import Plan
from calid.device import Device, choose_device, free_system_bytes
from calid.errors import OutputError, WeightsError
from calid.files import SUFFIXES, check_output, read_stack, write_stack
from calid.generation import HELD_BYTES, frames_together
from calid.interpolator import Interpolator
from calid.output import whole_file
from calid.progress import Progress, Watch
from calid.reconstruct import Reconstruction, Run, plan_run, upsample
from calid.settings import Settings
from calid.stack import Stack
from calid.weights import Entry, check_file, read_manifest

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
        with self._uncertainty_file() as spread:  # takes its name when the result has been written as well
            if spread is not None and made.uncertainty is not None:
                write_stack(made.uncertainty, spread)
            write_stack(made.stack, self.output, overwrite=self.overwrite)
        return made

    def _uncertainty_file(self) -> AbstractContextManager[Path | None]:
        if self.uncertainty is None:
            return nullcontext()
        return whole_file(self.uncertainty, SUFFIXES, overwrite=self.overwrite)


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
    run = plan_run(stack, settings, uncertainty=uncertainty, models_folder=models_folder, num_frames=num_frames)
    facts: dict[str, Any] = {"factor": run.plan.factor, "slices": run.plan.num_slots, "frames": run.num_frames}
    memory = partial(expected_memory, stack, run.plan, frames=run.num_frames, draws=run.draws)
    interpolator = run.interpolator
    if interpolator is None:
        return facts | memory(choose_device("cpu"), pixels=0) | {"seconds": 0.1 * run.num_frames, "device": "CPU"}
    one = _seconds_per_evaluation(interpolator, run.preparation.padded_shape, Watch(1, is_cancelled=is_cancelled))
    facts |= memory(interpolator.device, pixels=run.pixels, together=_frames_together(interpolator, run))
    facts |= {"device": interpolator.device.reason, "model": interpolator.entry.name}
    return facts | {"seconds": round(one * run.work, 1)}


def _frames_together(interpolator: Interpolator, run: Run) -> int:
    """How many frames a 2D+T model makes at once; 1 for a 2D model."""
    if not interpolator.is_over_time:
        return 1
    return min(run.num_frames, frames_together(interpolator, run.plan, pixels=run.pixels, draws=run.draws))


def _seconds_per_evaluation(interpolator: Interpolator, shape: tuple[int, int], watch: Watch) -> float:
    count = max(min(TRIAL_BATCH, interpolator.device.batch_size(math.prod(shape))), interpolator.frame_multiple)
    images = torch.zeros(count, 1, *shape)
    z_T = torch.zeros(count // interpolator.frames_per_latent, *interpolator.latent_shape(shape))
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
    spread_bytes = np.dtype(np.float32).itemsize if draws > 1 else 0
    kept = frames * voxels * (RESULT_COPIES * stack.voxels.itemsize + spread_bytes)
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
        "models": [_summary(entry, models_folder) for entry in read_manifest(models_folder).values()],
    }


def _summary(entry: Entry, folder: Path | None) -> dict[str, Any]:
    """What a user wants to know of a model, and whether its file is the one that the manifest means."""
    shown = ("name", "bytes", "license", "trained_on")
    facts = {key: value for key, value in asdict(entry).items() if key in shown}
    try:
        check_file(entry, folder)
    except WeightsError as error:
        return facts | {"problem": str(error)}
    return facts
