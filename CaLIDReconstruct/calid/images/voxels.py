"""The voxels of a volume file: counted as they come, in pieces of bounded memory, and written likewise."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np

from calid.images.memory import need_memory
from calid.images.vetting import Header, fault

PLAIN, ZLIB, GZIP = 0, 15, 31
"""How voxels are stored; the numbers are zlib's for the two kinds of compressed stream (`wbits`)."""

_CHUNK = 1 << 18


class ByteStream:
    """What is left of a file, decompressed; it comes in pieces of bounded size and is taken in portions.

    Args:
        file: file that stands at the start of the stream.
        storage: `PLAIN`, `ZLIB` or `GZIP`.
    """

    def __init__(self, file: BinaryIO, storage: int) -> None:
        chunks = iter(lambda: file.read(_CHUNK), b"")
        self._pieces, self._held = iter(_inflated(chunks, storage) if storage else chunks), bytearray()

    def take(self, count: int) -> bytearray:
        """The next `count` bytes, fewer only where the file ends.

        Raises:
            InputError: the compressed stream is damaged or ends early.
        """
        while len(self._held) < count and (piece := next(self._pieces, None)) is not None:
            self._held += piece
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def is_at_end(self) -> bool:
        """Whether nothing is left; a compressed stream raises here if its checksum is wrong."""
        return not self._held and not any(self._pieces)


def _inflated(chunks: Iterable[bytes], storage: int) -> Iterator[bytes]:
    """Compressed data, decompressed; the streams' own ends and checksums are part of the test.

    A gzip file may be several streams one after the other, as bgzip and joined files are.
    """
    inflate = zlib.decompressobj(storage)
    try:
        for rest in chunks:
            while rest:
                if inflate.eof:
                    inflate = zlib.decompressobj(storage)
                # A megabyte of zeros fits into a kilobyte, so what comes out is bounded, too.
                yield inflate.decompress(rest, _CHUNK)
                rest = inflate.unconsumed_tail or inflate.unused_data
    except zlib.error as err:
        raise fault("damaged-file", "the compressed data are damaged.") from err
    if not inflate.eof:
        raise fault("truncated-file", "the file ends early: the compressed data are not complete.")


def voxels_of(header: Header, stream: ByteStream) -> np.ndarray:
    """(T, Z, Y, X) real values in native byte order, if there are exactly as many as the header announces.

    The memory is asked for once, and the voxels take their places in it as they come, whatever the order of the axes in
    the file.

    Raises:
        InputError: there are fewer ("truncated-file") or more ("size-mismatch").
        ResourceError: there is not enough memory.
    """
    is_scaled = header.scale != (1.0, 0.0)
    need_memory(header.num_bytes + is_scaled * math.prod(header.sizes) * np.dtype(np.float32).itemsize)
    slices_first = [header.spatial_axes[axis] for axis in reversed(header.spatial_order)]
    shape = [header.num_frames, *(header.sizes[axis] for axis in slices_first)]
    voxels = np.empty(shape, header.dtype.newbyteorder("="))
    # The same memory with the axes as they are stored, the slowest first; without a stored one, time is the slowest.
    depths = [-math.inf if axis is None else -axis for axis in (header.frame_axis, *slices_first)]
    stored = voxels.transpose(sorted(range(4), key=depths.__getitem__))
    there = 0
    for part in _parts(stored):
        taken = stream.take(part.nbytes)
        there += len(taken)
        if len(taken) < part.nbytes:
            ends = f"the file ends early, after {there} of {header.num_bytes} bytes of voxels."
            raise fault("truncated-file", ends)
        part[...] = np.frombuffer(taken, header.dtype).reshape(part.shape)
    if not stream.is_at_end():
        raise fault("size-mismatch", f"the file holds more voxels than its header announces ({header.shape}).")
    return scaled(voxels, *header.scale)


def _parts(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """An array in parts of about `_CHUNK` bytes, the slowest axis first."""
    if voxels.ndim > 1 and voxels[:1].nbytes > _CHUNK:
        for inner in voxels:
            yield from _parts(inner)
        return
    step = max(1, _CHUNK // max(voxels[:1].nbytes, 1))
    yield from (voxels[start : start + step] for start in range(0, len(voxels), step))


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


def little_endian(voxels: np.ndarray) -> bytes:
    """Voxels as bytes, the last axis fastest, in the byte order of the files we write."""
    return voxels.astype(voxels.dtype.newbyteorder("<"), order="C", copy=False).tobytes()


def deflated(pieces: Iterable[bytes], storage: int, level: int) -> Iterator[bytes]:
    """The pieces of a file, compressed as one `ZLIB` or `GZIP` stream; level 1 (fast) to 9 (small)."""
    deflate = zlib.compressobj(level, wbits=storage)
    for piece in pieces:
        yield deflate.compress(piece)
    yield deflate.flush()
