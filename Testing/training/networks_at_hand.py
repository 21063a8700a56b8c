"""Networks that are published elsewhere, with random weights in files that look like the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn


def random_alexnet() -> nn.Sequential:
    """The convolutional part of AlexNet as torchvision numbers it, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def saved_alexnet(folder: Path, network: nn.Sequential) -> Path:
    """The network in a file with the start of its SHA-256 in its name, as published ones have it."""
    path = folder / "draft.pth"
    torch.save({f"features.{key}": value for key, value in network.state_dict().items()}, path)
    return path.rename(folder / f"alexnet-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
