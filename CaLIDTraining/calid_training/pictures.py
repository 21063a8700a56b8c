"""Sample pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

MAX_COLUMNS = 6


def log_pictures(stage: L.LightningModule, tag: str, rows: Sequence[torch.Tensor]) -> None:
    """Log batches (N, 1, Y, X) in [-1, 1] as one sheet: a row per batch, a column per case; a cine shows frame 0."""
    if not isinstance(stage.logger, TensorBoardLogger):
        return
    still = [batch[..., 0] if batch.ndim == 5 else batch for batch in rows]
    sheet = torch.cat([torch.cat(list(batch[:MAX_COLUMNS, 0].float()), dim=-1) for batch in still], dim=-2)
    stage.logger.experiment.add_image(tag, ((sheet[None] + 1) / 2).clamp(0, 1), stage.global_step)
