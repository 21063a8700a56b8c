"""The engine's own model and segmenter as the tools that a case is gathered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from calid.heart.segmentation import segment
from calid.report.case import METHOD_NAMES, Tools
from calid.run.progress import progress_bar, shown_on
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import Stack, is_dense


def engine_tools(
    stack: Stack, settings: Settings, *, models_folder: Path | None = None, is_silent: bool = False
) -> Tools:
    """Upsampling, prediction of left-out slices and segmentation; a dense stack's own method is the one that is tested.

    Args:
        stack: what the case is gathered from.
        settings: settings of the upsampling.
        models_folder: folder of the models; None takes the bundled ones.
        is_silent: whether no progress bar is shown.
    """
    made_by: Any = stack.provenance.get("method") if is_dense(stack) else settings.method
    settings = replace(settings, method=made_by if made_by in METHOD_NAMES else settings.method)

    def fill(chosen: Settings) -> Callable[[Stack], Stack]:
        def filled(sparse: Stack) -> Stack:
            with progress_bar(is_silent=is_silent) as bar:
                return upsample(sparse, chosen, models_folder=models_folder, progress=shown_on(bar)).stack

        return filled

    def label(dense: Stack) -> Stack:
        with progress_bar(is_silent=is_silent) as bar:
            return segment(dense, device=settings.device, models_folder=models_folder, progress=shown_on(bar))

    return Tools(
        upsample=fill(settings),
        predict=None if settings.method == "linear" else fill(replace(settings, factor=2, frames=None)),
        segment=label,
        method=METHOD_NAMES[settings.method],
    )
