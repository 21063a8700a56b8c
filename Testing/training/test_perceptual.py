"""LPIPS against torchmetrics' own on the same random network, and what is said where weights are missing."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="the training package is not installed (pip install calid[training])")

from calid_training import perceptual
from calid_training.perceptual import Unmeasurable
from torchmetrics.functional.image import lpips


def backbone() -> nn.Sequential:
    """The convolutional part of AlexNet as torchvision numbers it, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def saved(folder: Path, network: nn.Sequential) -> Path:
    """The network in a file with the start of its SHA-256 in its name, as published ones have it."""
    path = folder / "draft.pth"
    torch.save({f"features.{key}": value for key, value in network.state_dict().items()}, path)
    return path.rename(folder / f"alexnet-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.random((2, 3, 64, 64)).astype(np.float32))


def test_lpips_is_torchmetrics_lpips(tmp_path, monkeypatch, pairs):
    network = backbone()
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: network)
    oracle = lpips._LPIPS(net="alex", pnet_rand=True)
    colored = [torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1) * 2 - 1 for x in pairs]
    expected = oracle(*colored).flatten().tolist()
    measure = perceptual.lpips_alex(saved(tmp_path, network))
    assert measure(*pairs) == pytest.approx(expected, rel=1e-4)
    assert measure(pairs[0], pairs[0]) == pytest.approx([0, 0, 0])


def test_missing_damaged_and_foreign_files_are_reasons_and_never_numbers(tmp_path):
    with pytest.raises(Unmeasurable, match="no path to AlexNet's weights"):
        perceptual.lpips_alex(None)
    with pytest.raises(Unmeasurable, match="there is no"):
        perceptual.rfid(tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    damaged = tmp_path / "alexnet-owt-7be5be79.pth"
    damaged.write_bytes(b"something else")
    with pytest.raises(Unmeasurable, match="SHA-256 does not begin with 7be5be79"):
        perceptual.lpips_alex(damaged)


def test_files_are_found_by_option_or_environment_and_reasons_are_kept(tmp_path, monkeypatch):
    parser = ArgumentParser()
    perceptual.add_arguments(parser)
    monkeypatch.setenv(perceptual.ALEXNET_VARIABLE, str(saved(tmp_path, backbone())))
    monkeypatch.delenv(perceptual.INCEPTION_VARIABLE, raising=False)
    found = perceptual.measures_of(parser.parse_args([]))
    assert found.lpips is not None
    assert found.rfid is None
    assert set(found.reasons) == {"rFID"}
    monkeypatch.delenv(perceptual.ALEXNET_VARIABLE)
    assert set(perceptual.measures_of(parser.parse_args([])).reasons) == {"LPIPS-alex", "rFID"}
