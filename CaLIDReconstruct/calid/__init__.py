"""CaLID: whole hearts from sparse short-axis MR stacks, by latent interpolation diffusion.

The library is eight functions and the nouns they speak of; `calid.library` describes them:

    import calid

    sax = calid.read("sax.nrrd")
    dense = calid.upsample(sax, factor=8)
    labels = calid.segment(dense)
    print(calid.function(labels).lv.ef_percent)
    calid.write(dense, "dense.nrrd")

Nothing is imported before it is used: `import calid` takes milliseconds, and PyTorch is loaded by the first function
that needs a model.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
"""Read when PyTorch loads GNU's OpenMP: how long a thread that waits keeps its core. Beside another program it keeps it
from the very thread it waits for, by default 300,000 rounds: eleven slices to 81 took 3.2 times as long beside one, and
take 1.9 times; alone they take as long as before (`Testing/benchmarks/upsampling.py --quick --busy 1`).
"""

STANDING_NOTE = "Generated slices are not acquired data; not for diagnosis."

if TYPE_CHECKING:
    from calid.errors import CalidError
    from calid.library import function, read, read_views, segment, surfaces, uncertainty, upsample, write
    from calid.stack import Stack

_HOMES = {
    "calid.errors": ("CalidError",),
    "calid.library": ("function", "read", "read_views", "segment", "surfaces", "uncertainty", "upsample", "write"),
    "calid.stack": ("Stack",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "STANDING_NOTE",
    "CalidError",
    "Stack",
    "__version__",
    "function",
    "read",
    "read_views",
    "segment",
    "surfaces",
    "uncertainty",
    "upsample",
    "write",
]


def __getattr__(name: str) -> Any:
    """A function or class of the library, its module imported when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'calid' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
