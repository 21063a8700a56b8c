"""One job from file to file, and what a user may ask before it: how long, on what device, with which models."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calid import __version__
from calid.errors import InputError, OutputError, WeightsError
from calid.images.dicom_objects import need_highdicom, write_maps
from calid.images.dicom_out import Sources, check_folder, find_sources, need_dicom, write_series
from calid.images.files import (
    check_fits,
    check_output,
    pending_stack,
    read_heart,
    read_stack,
    write_stack,
)
from calid.images.memory import free_system_bytes
from calid.images.overview import told
from calid.method.bisection import Bisection
from calid.method.weights import ModelEntry, check_file, read_manifest
from calid.run.device import Device, choose_device
from calid.run.progress import Progress, Watch
from calid.run.reconstruct import Reconstruction, plan_run, upsample
from calid.run.settings import Settings
from calid.run.trial import expected_seconds
from calid.stack import LaxImage, Stack

LOG = logging.getLogger("calid")

SEGMENTATION_SUFFIX = ".seg.nrrd"
RESULT_COPIES = 2  # the dense stack, and once more while it is written
SEQUENCE_BYTES_PER_PIXEL = 800  # of the denoiser, for every frame of a sequence
HELD_BYTES = 17  # for each pixel of every slice of the frames that are made together: images, starts, draws summed up
LEVEL_BYTES = 150  # for each pixel of the images that are in work: what comes before and after the networks
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
        as_dicom: whether outputs are folders of DICOM files, in the study of the source.
        series: number or UID of a series of the short axis in a DICOM folder; None leaves the choice to the evidence.
        views: folder of long-axis images; None takes those in a DICOM folder beside the short axis.
    """

    source: Path
    output: Path
    settings: Settings
    uncertainty: Path | None = None
    overwrite: bool = False
    models_folder: Path | None = None
    as_dicom: bool = False
    series: str | None = None
    views: Path | None = None

    def run(
        self,
        *,
        progress: Callable[[Progress], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        on_frame: Callable[[int, Stack], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Reconstruction:
        """Do it. Outputs are checked before the work, so that no minutes are lost to a read-only folder or a format.

        Args:
            progress: function told how far the run is.
            is_cancelled: function asked at every network evaluation whether to stop.
            on_frame: function given each dense frame when it is complete.
            tell: function told, line by line, which images of a folder are used, before the work begins.

        Raises:
            CalidError: whatever is wrong with input, settings, weights, machine or output.
            Cancelled: if `is_cancelled` said so; nothing was written.
        """
        self._check_outputs()
        sax, lax = self._read()
        sources = find_sources(self.source, sax, self.series) if self.as_dicom else None
        made = upsample(
            sax,
            self.settings,
            lax=lax,
            models_folder=self.models_folder,
            uncertainty=self.uncertainty is not None,
            progress=progress,
            is_cancelled=is_cancelled,
            on_plan=partial(self._begin, tell),
            on_frame=on_frame,
            source=self.source.name,
        )
        if sources is not None:
            first_frame = self.settings.frames[0] if self.settings.frames else 0
            self._write_dicom(made, sources.of_dense(sax, made.stack, first_frame))
        else:
            with self._pending(made.uncertainty):  # takes its name when the result has been written as well
                write_stack(made.stack, self.output, overwrite=self.overwrite)
        return made

    def _check_outputs(self) -> None:
        outputs = [path for path in (self.output, self.uncertainty) if path is not None]
        if len({path.resolve() for path in outputs}) < len(outputs):
            raise OutputError("same-output", f"{self.output} is asked for twice.", "Give two different names.")
        if self.as_dicom:
            need_dicom(self.source)
            if self.uncertainty is not None:
                need_highdicom()
        for path in outputs:
            if self.as_dicom:
                for source in (self.source, self.views):
                    check_folder(path, overwrite=self.overwrite, source=source)
                continue
            check_output(path, overwrite=self.overwrite, sources=(self.source, self.views, self.models_folder))
            if path.name.lower().endswith(SEGMENTATION_SUFFIX):
                raise OutputError("not-labels", f"{path} would be a segmentation.", "End the name in .nrrd or .nii.gz.")

    def _write_dicom(self, made: Reconstruction, sources: Sources) -> None:
        write_series(made.stack, sources, self.output, overwrite=self.overwrite)
        if self.uncertainty is not None and made.uncertainty is not None:
            write_maps(made.uncertainty, sources, self.uncertainty, overwrite=self.overwrite)

    def _read(self) -> tuple[Stack, Sequence[LaxImage]]:
        """The stack, and the long-axis images where they are wanted; flawed ones beside the stack are left out."""
        if self.settings.align == "off":
            return read_stack(self.source, self.series), ()
        try:
            return read_heart(self.source, self.series, lax_folder=self.views)
        except InputError as error:
            if self.views is not None:
                raise
            sax = read_stack(self.source, self.series)  # raises, if it is the short axis that is flawed
            LOG.warning("The long-axis images are not used: %s", error)
            return sax, ()

    def _begin(self, tell: Callable[[str], None] | None, planned: Reconstruction) -> None:
        if tell is not None:
            for line in (*told(planned.stack, self.source), *_told_region(planned.stack)):
                tell(line)
        if self.as_dicom:
            return  # every stack that was read from DICOM fits into it
        check_fits(planned.stack, self.output)
        if self.uncertainty is not None and planned.uncertainty is not None:
            check_fits(planned.uncertainty, self.uncertainty)

    def _pending(self, uncertainty: Stack | None) -> AbstractContextManager[None]:
        if self.uncertainty is None or uncertainty is None:
            return nullcontext()
        return pending_stack(uncertainty, self.uncertainty, overwrite=self.overwrite)


def _told_region(planned: Stack) -> list[str]:
    """Where codec and denoiser work, if that is not everywhere."""
    box = planned.provenance.get("roi")
    if box is None:
        return []
    x0, x1, y0, y1 = box
    columns, rows = planned.voxels.shape[:1:-1]
    return [
        f"generated in columns {x0}:{x1}, rows {y0}:{y1} of {columns} x {rows} pixels, moved neighbors around; "
        "--roi all generates everywhere"
    ]


def estimate(
    stack: Stack,
    settings: Settings,
    *,
    uncertainty: bool = False,
    models_folder: Path | None = None,
    num_frames: int | None = None,
    num_views: int = 0,
    is_cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Seconds, memory and slices of a run; the seconds measured by a trial run of a few slices of its size.

    Args:
        stack: the input, or one frame of it.
        settings: what to do.
        uncertainty: whether the run also makes the standard deviation.
        models_folder: where the manifest lies; None takes the bundled models.
        num_frames: number of frames of the whole input, where `stack` is a part of it.
        num_views: long-axis images that the slices are compared with, and guided by.
        is_cancelled: function asked at every network evaluation whether to stop.
    """
    run = plan_run(
        stack,
        settings,
        uncertainty=uncertainty,
        models_folder=models_folder,
        num_frames=num_frames,
        num_views=num_views,
    )
    facts: dict[str, Any] = {"factor": run.plan.factor, "slices": run.plan.num_slots, "frames": run.num_frames}
    memory = partial(expected_memory, stack, run.plan, frames=run.num_frames, draws=run.draws)
    interpolator = run.interpolator
    if interpolator is None:
        return facts | memory(choose_device("cpu"), pixels=0) | {"seconds": 0.1 * run.num_frames, "device": "CPU"}
    seconds = expected_seconds(run, interpolator, Watch(1, is_cancelled=is_cancelled))
    together = max(len(window.frames) for window in run.windows(interpolator))
    facts |= memory(interpolator.device, pixels=run.pixels, together=together)
    facts |= {"device": interpolator.device.reason, "model": interpolator.entry.name}
    return facts | {"seconds": round(seconds, 1)}


def expected_memory(
    stack: Stack, plan: Bisection, device: Device, *, frames: int, draws: int, pixels: int, together: int = 1
) -> dict[str, Any]:
    """What a run needs beyond the loaded engine, against what is free.

    Args:
        stack: stack with the size of slices and the type of voxels.
        plan: which slices are made.
        device: where the networks run.
        frames: number of frames of the whole run.
        draws: number of draws of every slice.
        pixels: number of pixels of one image as the networks see it; 0 without networks.
        together: number of frames that go through the networks at once.

    Returns:
        "memory_bytes" and "free_bytes" on the device, and whether the run "fits" there and into the main memory.
    """
    voxels = plan.num_slots * math.prod(stack.voxels.shape[2:])
    spread_bytes = np.dtype(np.float32).itemsize if draws > 1 else 0
    kept = frames * voxels * (RESULT_COPIES * stack.voxels.itemsize + spread_bytes)
    working = voxels * WORKING_COPIES * np.dtype(np.float32).itemsize
    networks = 0
    if pixels:
        images = plan.num_generated * draws * together
        networks = max(device.working_bytes(pixels, images), pixels * SEQUENCE_BYTES_PER_PIXEL * together)
        images = max(together, min(images, device.batch_size(pixels)))
        working += together * voxels * HELD_BYTES + images * pixels * LEVEL_BYTES
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


def _summary(entry: ModelEntry, folder: Path | None) -> dict[str, Any]:
    """What a user wants to know of a model, and whether its file is the one that the manifest means."""
    shown = ("name", "bytes", "license", "trained_on")
    facts = {key: value for key, value in asdict(entry).items() if key in shown}
    try:
        check_file(entry, folder)
    except WeightsError as error:
        return facts | {"problem": str(error)}
    return facts
