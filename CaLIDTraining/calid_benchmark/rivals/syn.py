"""ANTs' SyN (Avants et al. 2008), the registration that others are measured by; the package antspyx, if it is there.

Symmetric normalization with cross-correlation gives the displacements both ways in one run; what lies between two
slices is then made as by `classical.registration`, whose `register` this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

NAME = "ANTs SyN"
RADIUS_PIXELS = 2
"""Radius of the window of the cross-correlation."""
ITERATIONS = (40, 20, 10)
"""Iterations on each level, coarse to fine: ANTs' own."""


def is_here() -> bool:
    """Whether antspyx is installed."""
    return find_spec("ants") is not None


def syn(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fields u, v (2, Y, X), rows and columns: after(x + u(x)) ~ before(x) and before(x + v(x)) ~ after(x)."""
    import ants

    # ANTs' first axis is x. Without "Identity" it would begin by laying centers of mass over each other.
    fixed, moving = (ants.from_numpy(np.ascontiguousarray(image.T, np.float32)) for image in (before, after))
    with TemporaryDirectory() as folder:
        found = ants.registration(
            fixed,
            moving,
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            syn_metric="CC",
            syn_sampling=RADIUS_PIXELS,
            reg_iterations=ITERATIONS,
            random_seed=1,
            outprefix=str(Path(folder) / "syn"),
        )
        fields = [_field(found[way], before.shape) for way in ("fwdtransforms", "invtransforms")]
    return fields[0], fields[1]


def _field(transforms: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """(2, Y, X) rows, columns: the displacements among the files of a registration, none where it moved nothing."""
    import ants

    file = next((name for name in transforms if name.endswith(".nii.gz")), None)
    if file is None:
        return np.zeros((2, *shape), np.float32)
    return np.ascontiguousarray(ants.image_read(file).numpy().transpose(2, 1, 0)[::-1], np.float32)
