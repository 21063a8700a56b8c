"""NIfTI-1 in one file (.nii, .nii.gz): its header by nibabel, and the header extension in which our entries travel.

NIfTI has 80 characters of description and one time step for all frames. Frame times, generated marks and provenance
therefore go, as JSON, into a header extension of plain text (code 6, "comment"), which readers skip by `vox_offset`.
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h

nibabel is imported when a file is read or written: Slicer's own process imports this module before it is installed.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from calid import geometry
from calid.images.vetting import Header, fault, need_magic, voxel_type_fault
from calid.images.voxels import GZIP, PLAIN, ByteStream, little_endian, voxels_of
from calid.stack import Stack

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

LARGEST_OFFSET = 1 << 20
"""Bytes before the voxels: the header and its extensions."""

_HEADER_BYTES = 352
_COMMENT = 6
_TIME_UNITS = {8: "s", 16: "ms", 24: "us"}
_GZIP_MAGIC = b"\x1f\x8b"
_SCANNER = 1
_SPACING_TOLERANCE, _QUATERNION_TOLERANCE = 1e-3, 1e-3
_CORRECT = "Correct the one that is wrong, or set its code (sform_code, qform_code) to 0, or export the image again."


def read(file: BinaryIO, storage: int = PLAIN) -> tuple[Header, np.ndarray]:
    """The header of a NIfTI file, `PLAIN` or `GZIP`, and its (T, Z, Y, X) real voxels.

    Raises:
        InputError: the file is cut short, damaged, of another kind, or cannot be placed in space.
    """
    if storage == GZIP:
        need_magic(file, _GZIP_MAGIC, "gzip-compressed NIfTI")
    stream = ByteStream(file, storage)
    raw = bytes(stream.take(_HEADER_BYTES))
    if len(raw) < _HEADER_BYTES:
        raise fault("truncated-file", "the file ends within its header.")
    fields = _fields(raw)
    extensions = bytes(stream.take(_voxel_offset(fields) - _HEADER_BYTES))
    header = _facts(fields, extensions if raw[348] else b"")
    return header, voxels_of(header, stream)


def _fields(raw: bytes) -> Nifti1Header:
    """The fixed header as nibabel reads it; it guesses the byte order from another field, and does not see a cut."""
    from nibabel.nifti1 import Nifti1Header

    for order in ("<", ">"):
        if struct.unpack_from(order + "i", raw)[0] == 348 and raw[344:348] == b"n+1\0":
            return Nifti1Header(raw[:348], order, check=False)
    kind = "a NIfTI-2 file" if raw[4:7] == b"n+2" else "not a NIfTI-1 file"
    raise fault("not-an-image", f"this is {kind}.", "Save the image as NIfTI-1 (.nii or .nii.gz), NRRD or MHA.")


def _voxel_offset(fields: Nifti1Header) -> int:
    """Where the voxels begin; 0 stands for right behind the header."""
    offset = float(fields["vox_offset"]) or _HEADER_BYTES
    if not (_HEADER_BYTES <= offset <= LARGEST_OFFSET and offset == int(offset)):
        raise fault("damaged-header", f"the voxels cannot begin at byte {offset:g}.")
    return int(offset)


def _facts(fields: Nifti1Header, extensions: bytes) -> Header:
    dimensions, *sizes = (int(value) for value in fields["dim"])
    steps = tuple(float(value) for value in fields["pixdim"][1:])
    units = int(fields["xyzt_units"])
    if not 1 <= dimensions <= 7:
        raise fault("damaged-header", f"the header gives the image {dimensions} dimensions.")
    if units & 7 not in (0, 2):
        raise fault("unsupported-unit", "lengths are not in millimeters.", "Save the image in millimeters.")
    dtype = _dtype(fields)
    return Header(
        sizes=tuple(sizes[:dimensions]),
        spacing_mm=steps[: min(dimensions, 3)],
        dtype=dtype,
        affine=geometry.ras_to_lps(_matrix(fields)),
        frame_axis=3 if dimensions > 3 else None,
        pixels=_pixels(dtype, is_vector=dimensions > 4 and sizes[3] == 1 and sizes[4] > 1),
        scale=_scale(fields),
        frame_start=float(fields["toffset"]),
        frame_step=steps[3] if dimensions > 3 else None,
        frame_unit=_TIME_UNITS.get(units & 56, ""),
        entries=_entries(extensions, fields.endianness),
    )


def _dtype(fields: Nifti1Header) -> np.dtype:
    """The type of a stored voxel.

    Raises:
        InputError: it is no number of 8 to 64 bits, and neither complex nor a color, which get errors of their own.
    """
    try:
        dtype = fields.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V")
    is_number = dtype.kind == "c" or (dtype.kind in "iuf" and dtype.itemsize <= 8)
    if not is_number and dtype.names is None:
        raise voxel_type_fault(f"NIfTI type {int(fields['datatype'])}")
    return dtype


def _pixels(dtype: np.dtype, *, is_vector: bool) -> Literal["scalar", "color", "vector", "complex"]:
    if dtype.kind == "c":
        return "complex"
    if dtype.kind == "V":
        return "color"
    return "vector" if is_vector else "scalar"


def _scale(fields: Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or one that is no number, means that values are stored as they are."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(intercept):
        raise fault("damaged-header", f"the intensity scale of the header is {slope:g} and {intercept:g}.")
    return slope, intercept


def _matrix(fields: Nifti1Header) -> np.ndarray:
    """(4, 4) indices -> RAS mm, by the matrix (sform), else the quaternion (qform), else, like ITK, by pixdim.

    Raises:
        InputError: there are several that do not agree; programs would choose one or another.
    """
    has_matrix, has_quaternion = int(fields["sform_code"]) > 0, int(fields["qform_code"]) > 0
    steps = fields["pixdim"][1:4].astype(np.float64)
    if not has_matrix:
        return _qform(fields) if has_quaternion else geometry.lps_to_ras(np.diag([*steps, 1.0]))
    matrix = fields.get_sform().astype(np.float64)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    is_known = np.isfinite(matrix).all() and np.isfinite(steps).all() and (steps > 0).all()
    if is_known and not np.allclose(lengths, steps, rtol=_SPACING_TOLERANCE):
        by_matrix, by_steps = (" x ".join(f"{value:.4g}" for value in values) for values in (lengths, steps))
        message = f"voxels lie {by_matrix} mm apart by the header's matrix (sform), {by_steps} mm by its pixdim."
        raise fault("bad-placement", message, _CORRECT)
    if is_known and has_quaternion:
        corners = np.array([*itertools.product(*((0, int(size) - 1) for size in fields["dim"][1:4]), (1,))])
        apart = np.linalg.norm(corners @ (matrix - _qform(fields))[:3].T, axis=1).max()
        if not apart <= steps.min() / 2:
            message = f"the header's matrix (sform) and quaternion (qform) place a corner {apart:.1f} mm apart."
            raise fault("bad-placement", message, _CORRECT)
    return matrix


def _qform(fields: Nifti1Header) -> np.ndarray:
    """(4, 4) indices -> RAS mm by the quaternion.

    nibabel refuses quaternions whose length exceeds one by 2e-7, as 32 bits may leave them; ITK and this do not.
    """
    quaternion = np.array([float(fields[f"quatern_{letter}"]) for letter in "bcd"])
    rest = 1.0 - float(quaternion @ quaternion)
    if not rest > -_QUATERNION_TOLERANCE:
        message = "the quaternion (qform) in the header is no rotation, or not a number."
        raise fault("bad-placement", message, _CORRECT)
    steps = fields["pixdim"][1:4] * (1.0, 1.0, -1.0 if fields["pixdim"][0] < 0 else 1.0)
    rotation = Rotation.from_quat([*quaternion, math.sqrt(max(rest, 0.0))]).as_matrix()
    return geometry.affine_from(rotation * steps, [float(fields[f"qoffset_{letter}"]) for letter in "xyz"])


def _entries(extensions: bytes, endianness: str) -> dict[str, str]:
    """Our key-value pairs, if one of the header extensions holds them.

    nibabel would hand extensions of other kinds to readers of DICOM and XML.
    """
    start = 0
    while start + 8 <= len(extensions):
        size, code = struct.unpack_from(endianness + "2i", extensions, start)
        text = extensions[start + 8 : start + max(size, 8)].rstrip(b"\0")
        if code == _COMMENT and text.startswith(b'{"calid_'):
            try:
                return {str(key): str(value) for key, value in json.loads(text).items()}
            except (ValueError, RecursionError) as err:
                message = "the header extension with the frame times and provenance is damaged."
                raise fault("damaged-header", message) from err
        start += max(size, 8)
    return {}


# --- Writing ----------------------------------------------------------------------------------------------------------


def written(stack: Stack, entries: Mapping[str, str]) -> Iterator[bytes]:
    """The pieces of a NIfTI file, 3D or 4D with the mean time between frames in seconds as fourth spacing.

    Args:
        stack: stack to write; its matrix is kept as it is, the quaternion gets the nearest right angles.
        entries: free key-value pairs, which go into a header extension.
    """
    from nibabel.nifti1 import Nifti1Extension, Nifti1Header

    frames, slices, rows, columns = stack.voxels.shape
    times, matrix = stack.frame_times_ms / 1000, geometry.lps_to_ras(stack.affine)
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(stack.voxels.dtype)
    header.set_data_shape((columns, rows, slices, frames)[: 4 if frames > 1 else 3])
    header.set_qform(matrix, _SCANNER, strip_shears=True)
    header.set_sform(matrix, _SCANNER)
    header.set_xyzt_units("mm", "sec")
    header.set_slope_inter(1, 0)
    header["pixdim"][4] = np.ptp(times) / max(frames - 1, 1)
    header["toffset"] = times[0]
    header.extensions.append(Nifti1Extension(_COMMENT, extension(entries)))
    file = io.BytesIO()
    header.write_to(file)
    yield file.getvalue()
    for frame in stack.voxels:
        yield from map(little_endian, frame)


def extension(entries: Mapping[str, str]) -> bytes:
    """The entries as the text of a header extension."""
    return json.dumps(dict(entries), ensure_ascii=True).encode("ascii")
