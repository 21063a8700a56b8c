"""What the stages log of their validation, for TensorBoard: figures and sample pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

MAX_COLUMNS = 6

FiguresOf = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
"""(images, truth) in [-1, 1] -> figures by name."""


def mean_gradient(images: torch.Tensor) -> torch.Tensor:
    """Mean length of the gradient over the last two axes: how sharp images (..., Y, X) are."""
    return torch.hypot(*torch.gradient(images, dim=(-2, -1))).mean()


def image_figures(images: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """PSNR (dB), the mean over the images (N, 1, Y, X) in [-1, 1], and sharpness relative to the truth."""
    errors = (images - truth).square().mean(dim=(1, 2, 3))
    return {
        "psnr": (10 * torch.log10(4 / errors)).mean(),
        "sharpness": mean_gradient(images) / mean_gradient(truth),
    }


def log_slices_between(
    stage: L.LightningModule,
    batch: Mapping[str, torch.Tensor],
    made: Mapping[str, torch.Tensor],
    *,
    index: int,
    figures_of: FiguresOf = image_figures,
) -> None:
    """Log the figures of slices made between others and, of the first batch, their pictures.

    Args:
        stage: the stage that made them.
        batch: "before", "target" and "after", images in [-1, 1].
        made: the slices between by the name of the way in which they were made.
        index: index of the batch.
        figures_of: measures the slices.
    """
    truth = batch["target"]
    for name, images in made.items():
        figures = {f"val/{figure}_{name}": value for figure, value in figures_of(images, truth).items()}
        stage.log_dict(figures, batch_size=len(truth), sync_dist=True)
    if index == 0:
        log_pictures(stage, [batch["before"], truth, *made.values(), batch["after"]])


def log_pictures(stage: L.LightningModule, rows: Sequence[torch.Tensor]) -> None:
    """Log batches (N, 1, Y, X) in [-1, 1] as one sheet: a row per batch, a column per case; a cine shows frame 0."""
    if not isinstance(stage.logger, TensorBoardLogger):
        return
    still = [batch[:, :, 0] if batch.ndim == 5 else batch for batch in rows]
    sheet = torch.cat([torch.cat(list(batch[:MAX_COLUMNS, 0].float()), dim=-1) for batch in still], dim=-2)
    stage.logger.experiment.add_image("validation", ((sheet[None] + 1) / 2).clamp(0, 1), stage.global_step)
