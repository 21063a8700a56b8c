"""DiffAE (Preechakul et al. 2022) as an interpolator: codes of two slices, a mixture of them, the slice it decodes to.

A slice is encoded as z_sem = E(x_0) and x_T, which DDIM run backwards makes of x_0; between two slices z_sem is
interpolated linearly and x_T on the sphere. DMCVR (He et al. 2023) is the same with a third code, the morphology map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from calid.method.diffusion import Schedule, invert, sample, slerp
from calid.method.weights import ModelEntry, config_from
from calid.run.device import Device
from torch import Tensor

from calid_benchmark.rivals import filled, placed
from calid_benchmark.rivals.diffae_network import PAPER_DIFFAE, DiffAEConfig, DiffAENetwork
from calid_benchmark.rivals.slices import as_images, as_slices, distinct, interpolated

STEPS = 64
"""As CaLID's paper ran it, for the inversion and for the decoding."""

SCHEDULE = Schedule(prediction="epsilon", zero_terminal_snr=False, max_latent=1.0)
"""T = 1000, linear betas; the estimate of x_0 is kept within the range of pixels."""

Morphology = Callable[[Tensor], Tensor]
"""Images (N, 1, Y, X) in [-1, 1] -> l_mor (N, C, Y / 16, X / 16)."""


@dataclass(frozen=True, eq=False)
class Codes:
    """What N slices are to the network.

    Args:
        z_sem: (N, embedding) semantic codes.
        x_T: (N, 1, Y, X) stochastic codes.
        l_mor: (N, C, Y / 16, X / 16) morphology codes; DiffAE has none.
    """

    z_sem: Tensor
    x_T: Tensor  # noqa: N815 (the papers' name)
    l_mor: Tensor | None = None

    def __getitem__(self, chosen: slice | np.ndarray) -> Codes:
        return Codes(self.z_sem[chosen], self.x_T[chosen], None if self.l_mor is None else self.l_mor[chosen])

    def to(self, device: torch.device) -> Codes:
        """The same codes on a device."""
        return Codes(self.z_sem.to(device), self.x_T.to(device), None if self.l_mor is None else self.l_mor.to(device))


def mixed(a: Codes, b: Codes, weight: float) -> Codes:
    """The codes at `weight` of the way from a to b (DMCVR, Eq. 5 and Section 2.2)."""
    l_mor = None if a.l_mor is None or b.l_mor is None else torch.lerp(a.l_mor, b.l_mor, weight)
    return Codes(torch.lerp(a.z_sem, b.z_sem, weight), slerp(a.x_T, b.x_T, weight), l_mor)


@dataclass(frozen=True, eq=False)
class DiffAE:
    """DiffAE, or with a morphology DMCVR, on a device: a `Baseline`.

    Args:
        name: as in the papers' tables.
        network: trained networks in evaluation mode, on the device.
        device: where it runs.
        steps: number of steps of the inversion, and of the decoding.
        morphology: None for DiffAE.
    """

    name: str
    network: DiffAENetwork
    device: Device
    steps: int = STEPS
    morphology: Morphology | None = None

    def between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """See `Baseline`."""
        slices, (first, second) = distinct(before, after)
        codes = self.encode(slices)
        return self._decoded_between(codes[first], codes[second], 0.5)

    def whole_heart(self, slices: np.ndarray, factor: int, *, naive: bool = False) -> np.ndarray:
        """See `Baseline`."""
        return interpolated(self.encode, self._decoded_between, slices, factor, naive=naive)

    def evaluations(self, acquired: int, factor: int, *, naive: bool = False) -> int:
        """See `Baseline`; E and the segmenter run once per encoded slice and are not counted."""
        new = (acquired - 1) * (factor - 1)
        return self.steps * ((2 * new if naive else acquired) + new)

    def _decoded_between(self, a: Codes, b: Codes, weight: float) -> np.ndarray:
        return self.decode(mixed(a, b, weight))

    def encode(self, slices: np.ndarray) -> Codes:
        """The codes of slices (N, Y, X) in [0, 1]."""
        images = as_images(slices)
        parts = [self._encoded(part) for part in images.split(self._batch_size(images))]
        l_mor = [part.l_mor for part in parts if part.l_mor is not None]
        return Codes(
            torch.cat([part.z_sem for part in parts]),
            torch.cat([part.x_T for part in parts]),
            torch.cat(l_mor) if l_mor else None,
        )

    def decode(self, codes: Codes) -> np.ndarray:
        """The slices (N, Y, X) in [0, 1] that codes stand for."""
        size = self._batch_size(codes.x_T)
        starts = range(0, len(codes.x_T), size)
        return as_slices(torch.cat([self._decoded(codes[start : start + size]) for start in starts]))

    def _batch_size(self, images: Tensor) -> int:
        return self.device.batch_size(images[0].numel())

    @torch.inference_mode()
    def _encoded(self, images: Tensor) -> Codes:
        with self.device.autocast():
            x_0 = images.to(self.device.torch_device, memory_format=torch.channels_last)
            l_mor = None if self.morphology is None else self.morphology(x_0).float()
            codes = Codes(self.network.encode(x_0).float(), x_0, l_mor)
            *_, x_T = invert(SCHEDULE, self._model(codes), x_0, steps=self.steps)
        return Codes(codes.z_sem, x_T, l_mor).to(torch.device("cpu"))

    @torch.inference_mode()
    def _decoded(self, codes: Codes) -> Tensor:
        codes = codes.to(self.device.torch_device)
        with self.device.autocast():
            *_, x_0 = sample(SCHEDULE, self._model(codes), codes.x_T, steps=self.steps)
        return x_0.cpu()

    def _model(self, codes: Codes) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x_t, t: self.network(x_t, t, codes.z_sem, codes.l_mor)


def restored_network(state: Mapping[str, Tensor], entry: ModelEntry, device: Device) -> DiffAENetwork:
    """The trained network of DiffAE or DMCVR, on a device."""
    return placed(filled(DiffAENetwork(config_from(DiffAEConfig, entry.config["network"])), state, entry), device)


def restore(state: Mapping[str, Tensor], entry: ModelEntry, *, steps: int | None, device: Device) -> DiffAE:
    """See the contract in `calid_benchmark.rivals`."""
    return DiffAE("DiffAE", restored_network(state, entry, device), device, steps or STEPS)


def untrained(*, paper: bool, steps: int | None, device: Device) -> DiffAE:
    """See the contract in `calid_benchmark.rivals`."""
    network = DiffAENetwork(PAPER_DIFFAE if paper else DiffAEConfig())
    return DiffAE("DiffAE", placed(network, device), device, steps or STEPS)


def manifest_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """See the contract in `calid_benchmark.rivals`."""
    return {"network": asdict(config_from(DiffAEConfig, model["network"]))}
