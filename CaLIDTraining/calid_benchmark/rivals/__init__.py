"""The systems of the papers that CaLID is measured against, each built from its description and trained here.

A system's module is the extension point. Contract of a module in `MODULES`:

- its manifest entry is named like the module ("diffae"); the tensors are those of the network's `state_dict`;
- `restore(state, entry, *, steps, device)` builds the trained system from a checked file; if its entry's configuration
  names a segmenter (`segmenter_sha256`), it is also given `models`, where to look for it first;
- `untrained(*, paper, steps, device)` builds it with random weights, at the paper's size or at ours;
- `manifest_config(model)` is the manifest's configuration, made of the `model` section of a training run, whose
  checkpoint holds the tensors below `network.`;
- `steps=None` means the number of steps that the paper recommends; systems without steps ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np
import torch
from calid.errors import WeightsError
from calid.method.weights import MANIFEST_NAME, ModelEntry, load_model, models_folder
from calid.run.device import Device, choose_device
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[2] / "weights"
"""Where the trained baselines lie in a checkout."""

MODULES = {
    "DiffAE": "diffae",
    "DMCVR": "dmcvr",
    "DeepRecon": "deeprecon",
    "regression U-Net": "regression",
    "regression U-Net, moved neighbors": "moved_regression",
}
NAMES = tuple(MODULES)

Network = TypeVar("Network", bound=nn.Module)


class Baseline(Protocol):
    """A system at work; images are float32 (slices, rows, columns) in [0, 1], rows and columns multiples of 32."""

    @property
    def name(self) -> str:
        """As in the papers' tables."""
        ...

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The slices half-way: (N, Y, X) twice -> (N, Y, X). A slice that occurs twice is encoded once."""
        ...

    def whole_heart(self, slices: np.ndarray, factor: int, *, naive: bool = False) -> np.ndarray:
        """`factor` times as many slices: (Z, Y, X) -> ((Z - 1) * factor + 1, Y, X), the acquired ones kept.

        `naive` encodes both neighbors anew for every new slice, as the papers' timing implies.
        """
        ...

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """Evaluations of the generating network that `whole_heart` takes for `acquired` slices, counted per slice."""
        ...


def load(
    name: str,
    folder: Path = WEIGHTS,
    *,
    steps: int | None = None,
    device: str = "auto",
    models: Path | None = None,
) -> Baseline:
    """A trained baseline.

    Args:
        name: one of `NAMES`.
        folder: folder of the manifest and the weights.
        steps: diffusion or optimization steps; None takes the paper's.
        device: "auto", "cpu", "cuda" or "mps".
        models: folder in which the segmenter of a system that has one may be, beside the bundled models.

    Raises:
        WeightsError: if the weights are missing, damaged or do not fit.
        ValueError: for an unknown name.
    """
    module = module_of(name)
    state, entry = load_model(MODULES[name], folder)
    parts = {"models": models} if "segmenter_sha256" in entry.config else {}
    return module.restore(state, entry, steps=steps, device=choose_device(device), **parts)


def budget_of(model: str, folder: Path | None = None) -> str:
    """What the training of a model cost, in words, as the manifest of a folder says it; "" where it does not.

    Args:
        model: name in the manifest.
        folder: folder of the manifest; None is the bundled models'.
    """
    models = json.loads((models_folder(folder) / MANIFEST_NAME).read_text(encoding="utf-8"))["models"]
    return next((one.get("budget", "") for one in models if one["name"] == model), "")


def untrained(name: str, *, paper: bool, steps: int | None = None, device: str = "auto") -> Baseline:
    """The architecture with random weights, at the paper's size or at ours: what it costs, not what it makes."""
    return module_of(name).untrained(paper=paper, steps=steps, device=choose_device(device))


def module_of(name: str) -> ModuleType:
    """Imported when asked for, so that one baseline's packages are not needed by another."""
    if name not in MODULES:
        raise ValueError(f"there is no baseline '{name}': choose one of {', '.join(MODULES)}")
    return import_module(f"{__name__}.{MODULES[name]}")


def placed(network: Network, device: Device) -> Network:
    """Ready to be used; a processor's bfloat16 convolutions are a quarter faster with channels last."""
    network.eval().to(device.torch_device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # declared for tensors only


def filled(network: Network, state: Mapping[str, Tensor], entry: ModelEntry) -> Network:
    """The network with the tensors of a checked file.

    Raises:
        WeightsError: "bad-config" if they are those of another architecture.
    """
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise WeightsError(
            "bad-config", f"The tensors of '{entry.name}' do not fit its configuration: {reason}", "Export it again."
        ) from error
    return network
