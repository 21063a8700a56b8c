"""What a volume file says about itself, if an image can be made of it.

No header that came from elsewhere reaches a reader in C++. Measured with ITK 5.4 (SimpleITK 2.5.7): a NIfTI file cut
anywhere behind its header reads as an image whose end is whatever the memory held; beside a file x.nii, x.nii.gz is
read with the voxels of x.nii; a pixel size of 0 or NaN becomes 1 mm; a MetaImage header with a long line, a long name
or 65 dimensions corrupts the memory. Nor are whole files given to libraries in Python: nibabel and pynrrd inflate
whatever a stream holds, terabytes if need be, and do not miss a lost checksum. So the formats' modules turn a header
into a `Header`, and here it is vetted; `voxels.py` counts the voxels in one pass of bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np

from calid.errors import InputError

MAX_BYTES = 32 << 30
"""No stack of the heart comes near 32 GiB; a header that claims more is damaged."""

SLICE_RATIO = 1.5
"""An axis whose voxels lie so many times as far apart as those of both others is the one from slice to slice."""

AGAIN = "Copy or export the file again, or choose another one."

LONGEST_LINE = 30_000
"""Characters of a line in a text header."""

_LONGEST_HEADER = 1 << 20
_FARTHEST_MM = 1e6
_SMALLEST_VOXEL_MM3 = 1e-9


@dataclass(frozen=True)
class Header:
    """The facts of a volume file.

    Args:
        name: the file's name, for messages.
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
    """

    name: str
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

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.sizes) * self.dtype.itemsize

    @property
    def spatial_order(self) -> tuple[int, int, int]:
        """Which of the spatial axes are the column, the row and the slice.

        Programs that turn images towards the axes of the body (nibabel's `as_closest_canonical`) store the slices along
        the first or second axis. The order stays cyclic, so that no image is mirrored.
        """
        *_, slices = [size for axis, size in enumerate(self.sizes[:4]) if axis != self.frame_axis]
        for axis in (0, 1):
            widest_other = max(self.spacing_mm[other] for other in range(3) if other != axis)
            if slices > 1 and self.spacing_mm[axis] > SLICE_RATIO * widest_other:
                return (axis + 1) % 3, (axis + 2) % 3, axis
        return 0, 1, 2


def fault(code: str, name: str, message: str, remedy: str = AGAIN) -> InputError:
    """The input error of one file."""
    return InputError(code, f"{name}: {message}", remedy)


def vet(header: Header) -> Header:
    """The header itself, if an image can be made of it.

    Raises:
        InputError: color, vector or complex pixels, an impossible or absurd size, no usable place in space.
    """
    _vet_pixels(header)
    _vet_size(header)
    _vet_space(header)
    return header


def _vet_pixels(header: Header) -> None:
    if header.pixels == "color":
        raise color_fault(header.name)
    if header.pixels == "vector":
        remedy = "Use a scalar image; a cine needs its frames as a list or time axis (in Slicer: .seq.nrrd)."
        raise fault("vector-pixels", header.name, "each pixel is a vector of several numbers.", remedy)
    if header.pixels == "complex":
        raise fault(
            "complex-pixels", header.name, "the pixels are complex numbers.", "Save and use the magnitude image."
        )


def _vet_size(header: Header) -> None:
    sizes = " x ".join(map(str, header.sizes))
    if not header.sizes or any(size < 1 for size in header.sizes):
        raise fault("bad-size", header.name, f"the header gives the image a size of {sizes or 'nothing'}.")
    if header.num_bytes > MAX_BYTES:
        raise fault("absurd-size", header.name, f"the header claims {sizes} voxels, more than {MAX_BYTES >> 30} GiB.")
    if math.prod(header.sizes[4:]) > 1 or (header.frame_axis or 0) > 3:
        remedy = "Save one 3D volume, or one 4D cine with time as the fourth axis."
        raise fault(
            "too-many-dimensions", header.name, f"the image has {len(header.sizes)} dimensions ({sizes}).", remedy
        )
    if len(header.sizes) < 3 or len(header.spacing_mm) == 2:
        remedy = "Use the whole stack as one 3D or 4D file; for DICOM, give the folder."
        raise fault("flat-image", header.name, f"this is a 2D image ({sizes}) and not a stack of slices.", remedy)


def _vet_space(header: Header) -> None:
    remedy = "Correct the header, or export the image again."
    if not header.spacing_mm or header.affine is None:
        raise fault("missing-spacing", header.name, "the header does not say how far apart the voxels are.", remedy)
    if not all(1 / _FARTHEST_MM < value < _FARTHEST_MM for value in header.spacing_mm):
        values = " x ".join(f"{value:g}" for value in header.spacing_mm)
        raise fault("bad-spacing", header.name, f"the header says the voxels are {values} mm apart.", remedy)
    if not np.isfinite(header.affine).all():
        raise fault("bad-placement", header.name, "the orientation or origin in the header is not a number.", remedy)
    if np.abs(header.affine).max() > _FARTHEST_MM:
        raise fault("bad-placement", header.name, "the header places the image more than a kilometer away.", remedy)
    axes = header.affine[:3, :3]
    is_flat = abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) < 1e-6
    if is_flat or abs(np.linalg.det(axes)) < _SMALLEST_VOXEL_MM3:
        raise fault("bad-placement", header.name, "the voxel axes do not span space.", remedy)


def need_millimeters(units: Iterable[str], name: str) -> None:
    """Return if all units of length in a header are millimeters, or are left open.

    Raises:
        InputError: "unsupported-unit" with the unit.
    """
    for unit in units:
        if unit.strip().lower() not in ("", "?", "???", "mm", "millimeter", "millimeters", "millimetre", "millimetres"):
            message = f"lengths are given in {unit.strip()[:20]!r} and not in millimeters."
            raise fault("unsupported-unit", name, message, "Save the image in millimeters.")


def need_magic(file: BinaryIO, magic: bytes, name: str, kind: str) -> None:
    """Return if a file starts as its kind must; else tell another kind of file from one cut within its first bytes."""
    start = file.read(len(magic))
    file.seek(0)
    if start == magic:
        return
    if magic.startswith(start):
        raise fault("truncated-file", name, f"the file ends after {len(start)} bytes.")
    raise fault("not-an-image", name, f"this is not a {kind} file, whatever its name says.", "Choose an image file.")


def text_lines(file: BinaryIO, name: str, is_last: Callable[[str], bool]) -> list[str]:
    """The lines of a text header up to and with the last one; what follows in the file are the voxels."""
    lines: list[str] = []
    while not lines or not is_last(lines[-1]):
        line = file.readline(LONGEST_LINE)
        if len(line) == LONGEST_LINE or file.tell() > _LONGEST_HEADER:
            raise fault(
                "damaged-header", name, f"line {len(lines) + 1} of the header is too long, or the header does not end."
            )
        if not line.endswith(b"\n"):
            raise fault("truncated-file", name, "the file ends within its header.")
        lines.append(line.decode("utf-8", "replace").rstrip("\r\n"))
    return lines


def numbers(text: str, name: str) -> list[float]:
    """The numbers in a header field."""
    try:
        return [float(word) for word in text.split()]
    except ValueError as err:
        raise fault("damaged-header", name, f"the header holds {text[:60]!r} where numbers belong.") from err


def integers(text: str, name: str) -> list[int]:
    """The whole numbers in a header field."""
    values = numbers(text, name)
    if not all(math.isfinite(value) and value == int(value) for value in values):
        raise fault("damaged-header", name, f"the header holds {text[:60]!r} where whole numbers belong.")
    return [int(value) for value in values]


def need_fields(fields: Mapping[str, str], needed: tuple[str, ...], name: str) -> None:
    """Return if a header has all the fields that make an image."""
    for key in needed:
        if key not in fields:
            raise fault("damaged-header", name, f"the header lacks the field {key!r}.")


def color_fault(name: str) -> InputError:
    """Pixels with red, green and blue."""
    remedy = "Use the MR images themselves, not screenshots or overlays."
    return fault("color-pixels", name, "the pixels are colors (red, green, blue).", remedy)


def voxel_type_fault(name: str, kind: str) -> InputError:
    """A voxel type that is no number of 8 to 64 bits."""
    remedy = "Save the image with 8 to 64 bit integers or floats."
    return fault("unsupported-voxels", name, f"the voxels are of {kind}, which cannot be used.", remedy)


def detached_fault(name: str) -> InputError:
    """A header whose voxels lie in another file."""
    remedy = "Save header and voxels in one file (.nrrd, .mha or .nii.gz)."
    return fault("detached-voxels", name, "the voxels lie in another file than the header.", remedy)


def encoding_fault(name: str, encoding: str) -> InputError:
    """Voxels written as text, where a lost last digit could not be seen, or compressed in a rare way."""
    remedy = "Save the image uncompressed or with gzip compression."
    return fault(
        "unsupported-encoding", name, f"the voxels are stored as {encoding[:30]!r}, which cannot be used.", remedy
    )
