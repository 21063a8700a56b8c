"""Where the networks run, why there, and how many images at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calid.errors import ResourceError
from calid.images.memory import free_system_bytes
from calid.run.settings import checked

CPU_BATCH_PIXELS = 12 * 128 * 128  # what a processor's cache likes; larger batches are slower for each image
BYTES_PER_PIXEL = 1600  # peak working memory of the widest step per image pixel, see Testing/benchmarks/upsampling.py
MEMORY_SHARE = 0.5  # of what is free


@dataclass(frozen=True)
class Device:
    """A chosen device.

    Args:
        torch_device: where tensors live.
        reason: one sentence for the user.
        autocast_dtype: what networks compute in, or None for float32.
    """

    torch_device: torch.device
    reason: str
    autocast_dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """The context in which networks are called."""
        kind = self.torch_device.type
        if self.autocast_dtype is None:
            return torch.autocast(kind if kind != "mps" else "cpu", enabled=False)
        return torch.autocast(kind, dtype=self.autocast_dtype)

    def free_bytes(self) -> int:
        """Memory that is free for the networks now."""
        if self.torch_device.type == "cuda":
            return torch.cuda.mem_get_info(self.torch_device)[0]
        return free_system_bytes()

    def batch_size(self, pixels: int) -> int:
        """How many images of `pixels` pixels go through the networks at once."""
        fitting = int(self.free_bytes() * MEMORY_SHARE / (pixels * BYTES_PER_PIXEL))
        if self.torch_device.type == "cpu":
            fitting = min(fitting, CPU_BATCH_PIXELS // pixels)
        return max(1, fitting)

    def working_bytes(self, pixels: int, images: int) -> int:
        """What the networks need for `images` images of `pixels` pixels, as many at once as `batch_size` says."""
        return min(images, self.batch_size(pixels)) * pixels * BYTES_PER_PIXEL


def choose_device(request: str = "auto") -> Device:
    """The device asked for, or the best one there is.

    Args:
        request: "auto", "cpu", "cuda" or "mps".

    Raises:
        ResourceError: "no-device" if the one asked for is not usable, with the reason.
        SettingsError: "device" if there is no such kind.
    """
    checked("device", request)
    if request == "cpu":
        return _cpu("as asked")
    if request == "cuda":
        return _required("cuda", _cuda_problem())
    if request == "mps":
        return _required("mps", _mps_problem())
    cuda_problem = _cuda_problem()
    if cuda_problem is None:
        return _accelerator("cuda", "the fastest here")
    if _mps_problem() is None:
        return _accelerator("mps", "the fastest here")
    return _cpu(cuda_problem)


def _cpu(reason: str) -> Device:
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # elsewhere it is emulated and slower
    return Device(torch.device("cpu"), f"CPU ({reason})", torch.bfloat16 if has_bfloat16 else None)


def _required(kind: str, problem: str | None) -> Device:
    if problem is not None:
        raise ResourceError("no-device", f"The device '{kind}' cannot be used: {problem}.", "Choose 'auto' or 'cpu'.")
    return _accelerator(kind, "as asked")


def _accelerator(kind: str, reason: str) -> Device:
    if kind == "mps":
        return Device(torch.device("mps"), f"Apple GPU ({reason})", None)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return Device(torch.device("cuda"), f"{torch.cuda.get_device_name()} ({reason})", dtype)


def _cuda_problem() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA GPU was found"
    try:  # a GPU newer than this torch is listed but cannot run anything
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError as error:
        return f"the GPU does not work with this PyTorch ({str(error).splitlines()[0]})"
    return None


def _mps_problem() -> str | None:
    return None if torch.backends.mps.is_available() else "no Apple GPU was found"
