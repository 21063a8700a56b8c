"""What a volume file says about itself, if an image can be made of it.

No header that came from elsewhere reaches a reader in C++. Measured with ITK 5.4 (SimpleITK 2.5.7): a NIfTI file cut
anywhere behind its header reads as an image whose end is whatever the memory held; beside a file x.nii, x.nii.gz is
read with the voxels of x.nii; a pixel size of 0 or NaN becomes 1 mm; a MetaImage header with a long line, a long name
or 65 dimensions corrupts the memory. Nor are whole files given to libraries in Python: nibabel and pynrrd inflate
whatever a stream holds, terabytes if need be, and do not miss a lost checksum. So the formats' modules turn a header
into a `Header`, which vets itself; `voxels.py` counts the voxels in one pass of bounded memory. `files.py` puts the
file's name in front of whatever is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np

from calid.errors import InputError

MAX_BYTES = 32 << 30
"""No stack of the heart comes near 32 GiB; a header that claims more is damaged."""

SLICE_RATIO = 1.5
"""An axis whose voxels lie so many times as far apart as those of both others is the one from slice to slice."""

AGAIN = "Copy or export the file again, or choose another one."

_FARTHEST_MM = 1e6
_SMALLEST_VOXEL_MM3 = 1e-9


@dataclass(frozen=True)
class Header:
    """The facts of a volume file, of which an image can be made.

    Args:
        sizes: number of voxels along each axis as stored, the fastest first; the channels of a pixel are not an axis.
        spacing_mm: distances between voxels along the spatial axes, in their stored order.
        dtype: type of a stored voxel, with its byte order.
        affine: (4, 4), indices along the spatial axes in their stored order -> LPS mm; None if the header has no place.
        frame_axis: which of the axes is time, None if all are spatial.
        pixels: what a pixel is.
        scale: slope and intercept that make real values of stored ones.
        frame_start: time of the first frame, in `frame_unit`.
        frame_step: time between frames, in `frame_unit`; None where the header does not say.
        frame_values: time of each frame, in `frame_unit`, where they are listed (sequences of Slicer).
        frame_unit: "s", "ms" or "us", "" where the header does not say.
        entries: free key-value pairs.

    Raises:
        InputError: color, vector or complex pixels, an impossible or absurd size, no usable place in space.
    """

    sizes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    dtype: np.dtype
    affine: np.ndarray | None = None
    frame_axis: int | None = None
    pixels: Literal["scalar", "color", "vector", "complex"] = "scalar"
    scale: tuple[float, float] = (1.0, 0.0)
    frame_start: float = 0.0
    frame_step: float | None = None
    frame_values: tuple[float, ...] = ()
    frame_unit: str = ""
    entries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _vet_pixels(self)
        _vet_size(self)
        _vet_space(self)

    @property
    def shape(self) -> str:
        """The sizes in words."""
        return " x ".join(map(str, self.sizes))

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.sizes) * self.dtype.itemsize

    @property
    def num_frames(self) -> int:
        """Number of frames, 1 where time is no axis."""
        return 1 if self.frame_axis is None else self.sizes[self.frame_axis]

    @property
    def spatial_axes(self) -> list[int]:
        """Which of the axes are spatial, the fastest first."""
        return [axis for axis in range(len(self.sizes[:4])) if axis != self.frame_axis]

    @property
    def spatial_order(self) -> tuple[int, int, int]:
        """Which of the spatial axes are the column, the row and the slice.

        Programs that turn images towards the axes of the body (nibabel's `as_closest_canonical`) store the slices along
        the first or second axis. The order stays cyclic, so that no image is mirrored.
        """
        slices = self.sizes[self.spatial_axes[-1]]
        for axis in (0, 1):
            widest_other = max(self.spacing_mm[other] for other in range(3) if other != axis)
            if slices > 1 and self.spacing_mm[axis] > SLICE_RATIO * widest_other:
                return (axis + 1) % 3, (axis + 2) % 3, axis
        return 0, 1, 2


def fault(code: str, message: str, remedy: str = AGAIN) -> InputError:
    """The input error of a file that is being read."""
    return InputError(code, message, remedy)


def _vet_pixels(header: Header) -> None:
    if header.pixels == "color":
        raise color_fault()
    if header.pixels == "vector":
        remedy = "Use a scalar image; a cine needs its frames as a list or time axis (in Slicer: .seq.nrrd)."
        raise fault("vector-pixels", "each pixel is a vector of several numbers.", remedy)
    if header.pixels == "complex":
        raise fault("complex-pixels", "the pixels are complex numbers.", "Save and use the magnitude image.")


def _vet_size(header: Header) -> None:
    if not header.sizes or any(size < 1 for size in header.sizes):
        raise fault("bad-size", f"the header gives the image a size of {header.shape or 'nothing'}.")
    if header.num_bytes > MAX_BYTES:
        raise fault("absurd-size", f"the header claims {header.shape} voxels, more than {MAX_BYTES >> 30} GiB.")
    if math.prod(header.sizes[4:]) > 1 or (header.frame_axis or 0) > 3:
        remedy = "Save one 3D volume, or one 4D cine with time as the fourth axis."
        message = f"the image has {len(header.sizes)} dimensions ({header.shape})."
        raise fault("too-many-dimensions", message, remedy)
    if len(header.sizes) < 3 or len(header.spacing_mm) == 2:
        remedy = "Use the whole stack as one 3D or 4D file; for DICOM, give the folder."
        raise fault("flat-image", f"this is a 2D image ({header.shape}) and not a stack of slices.", remedy)


def _vet_space(header: Header) -> None:
    remedy = "Correct the header, or export the image again."
    if not header.spacing_mm or header.affine is None:
        raise fault("missing-spacing", "the header does not say how far apart the voxels are.", remedy)
    if not all(1 / _FARTHEST_MM < value < _FARTHEST_MM for value in header.spacing_mm):
        values = " x ".join(f"{value:g}" for value in header.spacing_mm)
        raise fault("bad-spacing", f"the header says the voxels are {values} mm apart.", remedy)
    if not np.isfinite(header.affine).all():
        raise fault("bad-placement", "the orientation or origin in the header is not a number.", remedy)
    if np.abs(header.affine).max() > _FARTHEST_MM:
        raise fault("bad-placement", "the header places the image more than a kilometer away.", remedy)
    axes = header.affine[:3, :3]
    is_flat = abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) < 1e-6
    if is_flat or abs(np.linalg.det(axes)) < _SMALLEST_VOXEL_MM3:
        raise fault("bad-placement", "the voxel axes do not span space.", remedy)


def need_magic(file: BinaryIO, magic: bytes, kind: str) -> None:
    """Return if a file starts as its kind must; else tell another kind of file from one cut within its first bytes."""
    start = file.read(len(magic))
    file.seek(0)
    if start == magic:
        return
    if magic.startswith(start):
        raise fault("truncated-file", f"the file ends after {len(start)} bytes.")
    raise fault("not-an-image", f"this is not a {kind} file, whatever its name says.", "Choose an image file.")


def color_fault() -> InputError:
    """Pixels with red, green and blue."""
    remedy = "Use the MR images themselves, not screenshots or overlays."
    return fault("color-pixels", "the pixels are colors (red, green, blue).", remedy)


def voxel_type_fault(kind: str) -> InputError:
    """A voxel type that is no number of 8 to 64 bits."""
    remedy = "Save the image with 8 to 64 bit integers or floats."
    return fault("unsupported-voxels", f"the voxels are of {kind}, which cannot be used.", remedy)
