"""What a volume file says about itself, and its voxels if they are all there.

No header that came from elsewhere reaches a reader in C++. Measured with ITK 5.4 (SimpleITK 2.5.7): a NIfTI file cut
anywhere behind its header reads as an image whose end is whatever the memory held; beside a file x.nii, x.nii.gz is
read with the voxels of x.nii; a pixel size of 0 or NaN becomes 1 mm; a MetaImage header with a long line, a long name
or 65 dimensions corrupts the memory. Nor are whole files given to libraries in Python: nibabel and pynrrd inflate
whatever a stream holds, terabytes if need be, and do not miss a lost checksum. So the formats' modules turn a header
into a `Header`, and here it is vetted, and the voxels are counted in one pass of bounded memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np

from calid.errors import InputError
from calid.images.memory import need_memory

MAX_BYTES = 32 << 30
"""No stack of the heart comes near 32 GiB; a header that claims more is damaged."""

SLICE_RATIO = 1.5
"""An axis whose voxels lie so many times as far apart as those of both others is the one from slice to slice."""

AGAIN = "Copy or export the file again, or choose another one."

LONGEST_LINE = 30_000
"""Characters of a line in a text header."""

_LONGEST_HEADER = 1 << 20
_CHUNK = 1 << 18
_FARTHEST_MM = 1e6
_SMALLEST_VOXEL_MM3 = 1e-9


@dataclass(frozen=True)
class Header:
    """The facts of a volume file.

    Args:
        name: the file's name, for messages.
        sizes: voxels along each axis as stored, the fastest first; the channels of a pixel are not an axis.
        spacing_mm: distances between voxels along the spatial axes, in their stored order.
        dtype: of a stored voxel, with its byte order.
        affine: (4, 4), indices along the spatial axes in their stored order -> LPS mm; None if the header has no place.
        frame_axis: which of the axes is time, None if all are spatial.
        pixels: what a pixel is.
        scale: slope and intercept that make real values of stored ones.
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
    affine: np.ndarray | None = None
    frame_axis: int | None = None
    pixels: Literal["scalar", "colour", "vector", "complex"] = "scalar"
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
        raise fault("bad-placement", header.name, "the header places the image more than a kilometre away.", remedy)
    axes = header.affine[:3, :3]
    is_flat = abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) < 1e-6
    if is_flat or abs(np.linalg.det(axes)) < _SMALLEST_VOXEL_MM3:
        raise fault("bad-placement", header.name, "the voxel axes do not span space.", remedy)


def need_millimetres(units: Iterable[str], name: str) -> None:
    """Return if all units of length in a header are millimetres, or are left open.

    Raises:
        InputError: "unsupported-unit" with the unit.
    """
    for unit in units:
        if unit.strip().lower() not in ("", "?", "???", "mm", "millimeter", "millimeters", "millimetre", "millimetres"):
            message = f"lengths are given in {unit.strip()[:20]!r} and not in millimetres."
            raise fault("unsupported-unit", name, message, "Save the image in millimetres.")


def voxels_of(header: Header, chunks: Iterable[bytes]) -> np.ndarray:
    """(T, Z, Y, X) real values in native byte order, if there are exactly as many as the header announces.

    The memory is asked for once, and the voxels take their places in it as they come, whatever the order of the axes in
    the file.

    Raises:
        InputError: there are fewer ("truncated-file") or more ("size-mismatch").
        ResourceError: there is not enough memory.
    """
    is_scaled = header.scale != (1.0, 0.0)
    need_memory(header.num_bytes + is_scaled * math.prod(header.sizes) * np.dtype(np.float32).itemsize, header.name)
    frames = 1 if header.frame_axis is None else header.sizes[header.frame_axis]
    spatial = [axis for axis in range(min(len(header.sizes), 4)) if axis != header.frame_axis]
    slices_first = [spatial[axis] for axis in reversed(header.spatial_order)]
    stored_axes = [header.frame_axis, *slices_first]
    shape = [frames, *(header.sizes[axis] for axis in slices_first)]
    voxels = np.empty(shape, header.dtype.newbyteorder("="))
    # The same memory with the axes as they are stored, the slowest first; without a stored one, time is the slowest.
    depths = [-math.inf if axis is None else -axis for axis in stored_axes]
    stored = voxels.transpose(sorted(range(4), key=depths.__getitem__))
    _fill(stored, header.dtype, _Counted(header, chunks))
    return scaled(voxels, *header.scale)


class _Counted:
    """Pieces of the voxels of a file, as many as its header announces.

    Args:
        header: says how many there must be.
        chunks: the bytes as they come.
    """

    def __init__(self, header: Header, chunks: Iterable[bytes]) -> None:
        self._header, self._chunks, self._held, self._count = header, iter(chunks), bytearray(), 0

    def take(self, count: int) -> bytearray:
        """The next `count` bytes."""
        while len(self._held) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                ends = f"the file ends early, after {self._count} of {self._header.num_bytes} bytes of voxels."
                raise fault("truncated-file", self._header.name, ends)
            self._held += chunk
            self._count += len(chunk)
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def need_end(self) -> None:
        """Return if nothing is left; a compressed stream says here whether its checksum is right."""
        if self._held or any(self._chunks):
            sizes = " x ".join(map(str, self._header.sizes))
            message = f"the file holds more voxels than its header announces ({sizes})."
            raise fault("size-mismatch", self._header.name, message)


def _fill(stored: np.ndarray, dtype: np.dtype, source: _Counted) -> None:
    """Fill an array, the slowest axis first, with what comes from a file, in pieces of about `_CHUNK` bytes."""

    def fill(part: np.ndarray) -> None:
        step = max(1, _CHUNK // max(part[:1].nbytes, 1))
        if step == 1 and part.ndim > 1 and part[:1].nbytes > _CHUNK:
            for inner in part:
                fill(inner)
            return
        for start in range(0, len(part), step):
            piece = part[start : start + step]
            piece[...] = np.frombuffer(source.take(piece.nbytes), dtype).reshape(piece.shape)

    fill(stored)
    source.need_end()


def scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """(T, Z, Y, X) stored values times slope plus intercept, as `narrowed` would have them, slice by slice.

    Where the real values take as many bytes as the stored ones, they take their place.
    """
    if (slope, intercept) == (1.0, 0.0):
        return stored
    places = [*np.ndindex(stored.shape[:2])]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found, and told, by `checks.py`
        slices = (real_values(stored[place], slope, intercept) for place in places)
        lows, highs, wholes = zip(*((real.min(), real.max(), _is_whole(real)) for real in slices), strict=True)
        dtype = _narrow(min(lows), max(highs), is_whole=all(wholes)) or np.dtype(np.float64)
        values = stored.view(dtype) if dtype.itemsize == stored.itemsize else np.empty(stored.shape, dtype)
        for place in places:
            values[place] = real_values(stored[place], slope, intercept)
    return values


def real_values(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Stored values times slope plus intercept, as 64-bit floats; untouched where that changes nothing."""
    return stored if (slope, intercept) == (1.0, 0.0) else stored * np.float64(slope) + np.float64(intercept)


def narrowed(voxels: np.ndarray) -> np.ndarray:
    """The same values as int16 where that is exact, else as another type of at most 32 bits.

    Example:
        >>> narrowed(np.array([0.0, 4095.0])).dtype.name, narrowed(np.array([0.5])).dtype.name
        ('int16', 'float32')
    """
    dtype = _narrow(voxels.min(), voxels.max(), is_whole=_is_whole(voxels))
    return voxels if dtype is None else voxels.astype(dtype)


def _is_whole(values: np.ndarray) -> bool:
    return values.dtype.kind != "f" or np.array_equal(values, np.round(values))


def _narrow(low: float, high: float, *, is_whole: bool) -> np.dtype | None:
    """The type of at most 32 bits for values between two limits, if there is one."""
    if not is_whole:
        return np.dtype(np.float32)
    for dtype in (np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return None


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
                # A megabyte of zeros fits into a kilobyte, so what comes out is bounded, too.
                yield inflate.decompress(rest, _CHUNK)
                rest = inflate.unconsumed_tail or inflate.unused_data
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
