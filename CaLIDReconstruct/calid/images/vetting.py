"""What a volume file says about itself, its voxels if they are all there, and their place in space.

SimpleITK alone would accept damage in silence. Measured with version 2.5.7: a NIfTI file cut anywhere behind its header
reads as an image whose end is whatever the memory held; beside a file x.nii, x.nii.gz is read with the voxels of x.nii;
a pixel size of 0 or NaN becomes 1 mm; a MetaImage header line of 40,000 characters ends the process. So headers are
vetted and voxels counted here, and SimpleITK, like Slicer's ITK, says where a vetted header places them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import SimpleITK as sitk

from calid.errors import InputError

MAX_BYTES = 32 << 30
"""No stack of the heart comes near 32 GiB; a header that claims more is damaged."""

AGAIN = "Copy or export the file again, or choose another one."

_LONGEST_LINE = 30_000
_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Header:
    """The facts of a volume file.

    Args:
        name: the file's name, for messages.
        sizes: voxels along each axis as stored, the fastest first; the channels of a pixel are not an axis.
        spacing_mm: distances between voxels along the spatial axes.
        dtype: of a stored voxel, with its byte order.
        frame_axis: which of the axes is time, None if all are spatial.
        pixels: what a pixel is.
        placement: the numbers that place the image in space; only looked at for NaN.
        frame_start: time of the first frame, in `frame_unit`.
        frame_step: time between frames where the header says so, likewise.
        frame_values: the time of each frame where they are listed (sequences of Slicer), likewise.
        frame_unit: "s", "ms" or "us", "" where the header does not say.
        entries: free key-value pairs.
    """

    name: str
    sizes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    dtype: np.dtype
    frame_axis: int | None = None
    pixels: Literal["scalar", "colour", "vector", "complex"] = "scalar"
    placement: tuple[float, ...] = ()
    frame_start: float = 0.0
    frame_step: float | None = None
    frame_values: tuple[float, ...] = ()
    frame_unit: str = ""
    entries: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.sizes) * self.dtype.itemsize


def fault(code: str, name: str, message: str, remedy: str = AGAIN) -> InputError:
    """The input error of one file."""
    return InputError(code, f"{name}: {message}", remedy)


def vet(header: Header) -> Header:
    """The header itself, if an image can be made of it.

    Raises:
        InputError: colour, vector or complex pixels, an impossible or absurd size, no usable place in space.
    """
    _vet_pixels(header)
    _vet_size(header)
    _vet_space(header)
    return header


def _vet_pixels(header: Header) -> None:
    if header.pixels == "colour":
        raise colour_fault(header.name)
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
    if math.prod(header.sizes[4:]) > 1:
        remedy = "Save one 3D volume, or one 4D cine with time as the fourth axis."
        raise fault(
            "too-many-dimensions", header.name, f"the image has {len(header.sizes)} dimensions ({sizes}).", remedy
        )
    if len(header.sizes) < 3 or len(header.spacing_mm) == 2:
        remedy = "Use the whole stack as one 3D or 4D file; for DICOM, give the folder."
        raise fault("flat-image", header.name, f"this is a 2D image ({sizes}) and not a stack of slices.", remedy)


def _vet_space(header: Header) -> None:
    remedy = "Correct the header, or export the image again."
    if not header.spacing_mm:
        raise fault("missing-spacing", header.name, "the header does not say how far apart the voxels are.", remedy)
    if not all(math.isfinite(value) and value > 0 for value in header.spacing_mm):
        values = " x ".join(f"{value:g}" for value in header.spacing_mm)
        raise fault("bad-spacing", header.name, f"the header says the voxels are {values} mm apart.", remedy)
    if not all(map(math.isfinite, header.placement)):
        raise fault("bad-placement", header.name, "the orientation or origin in the header is not a number.", remedy)


def voxels_of(header: Header, chunks: Iterable[bytes]) -> np.ndarray:
    """(T, Z, Y, X) voxels as stored, in native byte order, if there are exactly as many as the header announces.

    Raises:
        InputError: there are fewer ("truncated-file") or more ("size-mismatch").
    """
    payload = bytearray()
    for chunk in chunks:
        payload += chunk
        if len(payload) > header.num_bytes:
            sizes = " x ".join(map(str, header.sizes))
            message = f"the file holds more voxels than its header announces ({sizes})."
            raise fault("size-mismatch", header.name, message)
    if len(payload) < header.num_bytes:
        message = f"the file ends early, after {len(payload)} of {header.num_bytes} bytes of voxels."
        raise fault("truncated-file", header.name, message)
    axes = header.sizes[:4]
    voxels = np.frombuffer(payload, header.dtype).reshape(axes[::-1])
    if header.frame_axis is None:
        voxels = voxels[np.newaxis]
    else:
        # numpy counts axes from the slowest.
        voxels = np.moveaxis(voxels, len(axes) - 1 - header.frame_axis, 0)
    return np.ascontiguousarray(voxels, dtype=header.dtype.newbyteorder("="))


def affine_by_itk(path: Path, name: str) -> np.ndarray:
    """The (4, 4) affine, (column, row, slice, 1) -> LPS mm, that ITK and so Slicer see in a file's header.

    Args:
        path: a vetted file; voxels are not read.
        name: what to call it in messages.

    Raises:
        InputError: the axes are slanted where the format does not allow it, or do not span space.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as err:
        if "orthonormal" in str(err):
            remedy = "Resample the image on a straight grid first (in Slicer: Resample Image)."
            raise fault("sheared-affine", name, "the voxel axes are not perpendicular.", remedy) from err
        reason = str(err).strip().splitlines()[-1].strip()
        raise fault("unreadable", name, f"ITK cannot read the header ({reason}).") from err
    count = reader.GetDimension()
    directions = np.reshape(reader.GetDirection(), (count, count))
    if not np.allclose(directions[:3, 3:], 0) or not abs(np.linalg.det(directions[:3, :3])) > 1e-6:
        raise fault("bad-placement", name, "the voxel axes do not span space.", "Correct the header.")
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3] * reader.GetSpacing()[:3]
    affine[:3, 3] = reader.GetOrigin()[:3]
    return affine


def real_values(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Stored values times slope plus intercept, as 64-bit floats; untouched where that changes nothing."""
    return stored if (slope, intercept) == (1.0, 0.0) else stored * slope + intercept


def narrowed(voxels: np.ndarray) -> np.ndarray:
    """The same values as int16 where that is exact, else as another type of at most 32 bits.

    Example:
        >>> narrowed(np.array([0.0, 4095.0])).dtype.name, narrowed(np.array([0.5])).dtype.name
        ('int16', 'float32')
    """
    low, high = voxels.min(), voxels.max()
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.round(voxels)):
        return voxels.astype(np.float32)
    for dtype in (np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return voxels.astype(dtype)
    return voxels


def raw_chunks(file: BinaryIO) -> Iterator[bytes]:
    """What is left of an uncompressed file, in pieces."""
    while chunk := file.read(_CHUNK):
        yield chunk


def inflated_chunks(file: BinaryIO, name: str, window_bits: int) -> Iterator[bytes]:
    """What is left of a file, decompressed; the streams' own ends and checksums are part of the test.

    A gzip file may be several streams one after the other, as bgzip and joined files are.

    Args:
        file: open at the start of the compressed data.
        name: the file's name, for messages.
        window_bits: 15 for zlib, 31 for gzip, as in `zlib.decompressobj`.

    Raises:
        InputError: the stream is damaged or ends early.
    """
    inflate = zlib.decompressobj(window_bits)
    try:
        for chunk in raw_chunks(file):
            rest = chunk
            while rest:
                if inflate.eof:
                    inflate = zlib.decompressobj(window_bits)
                yield inflate.decompress(rest)
                rest = inflate.unused_data
    except zlib.error as err:
        raise fault("damaged-file", name, "the compressed data are damaged.") from err
    if not inflate.eof:
        raise fault("truncated-file", name, "the file ends early: the compressed data are not complete.")


def little_endian(voxels: np.ndarray) -> bytes:
    """Voxels as bytes, the last axis fastest, in the byte order of the files we write."""
    return voxels.astype(voxels.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def gzipped(pieces: Iterable[bytes], level: int) -> Iterator[bytes]:
    """The pieces of a file, compressed as one gzip stream; level 1 (fast) to 9 (small)."""
    deflate = zlib.compressobj(level, zlib.DEFLATED, 31)
    for piece in pieces:
        yield deflate.compress(piece)
    yield deflate.flush()


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Without ITK's warnings on stderr: what they speak of is vetted here."""
    was_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_shown)


def need_magic(start: bytes, magic: bytes, name: str, kind: str) -> None:
    """Return if a file starts as its kind must; else tell another kind of file from one cut within its first bytes."""
    if start == magic:
        return
    if magic.startswith(start):
        raise fault("truncated-file", name, f"the file ends after {len(start)} bytes.")
    raise fault("not-an-image", name, f"this is not a {kind} file, whatever its name says.", "Choose an image file.")


def text_lines(file: BinaryIO, name: str, is_last: Callable[[str], bool]) -> list[str]:
    """The lines of a text header up to and with the last one; what follows in the file are the voxels."""
    lines: list[str] = []
    while not lines or not is_last(lines[-1]):
        line = file.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE or file.tell() > _LONGEST_HEADER:
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


def colour_fault(name: str) -> InputError:
    """Pixels with red, green and blue."""
    remedy = "Use the MR images themselves, not screenshots or overlays."
    return fault("colour-pixels", name, "the pixels are colours (red, green, blue).", remedy)


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
