"""The engine's own model and segmenter as the tools that a case is gathered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from calid.heart.segmentation import segment
from calid.report.case import METHOD_NAMES, Tools
from calid.run.logs import unsaid
from calid.run.progress import progress_bar, shown_on
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import LaxImage, Stack, is_dense


def engine_tools(
    stack: Stack,
    settings: Settings,
    *,
    lax: Sequence[LaxImage] = (),
    models_folder: Path | None = None,
    is_silent: bool = False,
) -> Tools:
    """Upsampling, prediction of left-out slices and segmentation; a dense stack's own method is the one that is tested.

    Args:
        stack: what the case is gathered from.
        settings: settings of the upsampling.
        lax: long-axis images that guide it, if the settings say so.
        models_folder: folder of the models; None takes the bundled ones.
        is_silent: whether no progress bar is shown.
    """
    made_by: Any = stack.provenance.get("method") if is_dense(stack) else settings.method
    settings = replace(settings, method=made_by if made_by in METHOD_NAMES else settings.method)

    def filled(sparse: Stack, chosen: Settings, views: Sequence[LaxImage] = ()) -> Stack:
        with progress_bar(is_silent=is_silent) as bar:
            told = shown_on(bar)
            return upsample(sparse, chosen, lax=views, models_folder=models_folder, progress=told).stack

    def led(sparse: Stack, views: Sequence[LaxImage]) -> Stack:
        quick = replace(settings, factor=4, mode="fidelity", samples=1, frames=None, align="report")
        with unsaid():  # how far its slices are off has been told of the whole heart
            return filled(sparse, quick, views)

    def label(dense: Stack) -> Stack:
        with progress_bar(is_silent=is_silent) as bar:
            return segment(dense, device=settings.device, models_folder=models_folder, progress=shown_on(bar))

    alone = replace(settings, factor=2, frames=None, align="off")
    return Tools(
        upsample=partial(filled, chosen=settings, views=lax),
        predict=None if settings.method == "linear" else partial(filled, chosen=alone),
        guided=led if settings.lax == "auto" and settings.align != "off" and settings.method != "linear" else None,
        segment=label,
        method=METHOD_NAMES[settings.method],
    )
