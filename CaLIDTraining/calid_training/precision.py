"""Which precision the hardware has; one that it would have to emulate is several times slower than float32."""

from __future__ import annotations

import torch

FULL = "32-true"


def suited(asked: str, accelerator: str = "auto") -> tuple[str, str]:
    """The precision to train in, and why it is another than the one asked for ("" if it is not).

    Args:
        asked: one of Lightning's names, such as "bf16-mixed".
        accelerator: Lightning's "auto", "cpu", "gpu", "cuda" or "mps".
    """
    asked = str(asked)
    if not asked.startswith("bf16"):
        return asked, ""
    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    on_apple = not on_cuda and accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    if on_cuda:
        place, has_it = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    elif on_apple:
        place, has_it = "Apple's GPU", False
    else:
        place, has_it = "this processor", getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return (asked, "") if has_it else (FULL, f", because {place} has no bfloat16 ({asked} would be emulated)")
