"""Volume files that are damaged in their bytes or say odd things, and independent readers of what is left."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import file_phantoms
import nibabel as nib
import nrrd
import numpy as np
from calid.images.checks import check_stack
from calid.images.files import read_stack, write_stack
from calid.stack import Stack
from fuzz_outcomes import NASTY_NUMBERS, NASTY_TEXTS, RIGHT, WrongError, damaged_bytes
from nibabel.nifti1 import header_dtype

SHAPE = (2, 4, 18, 20)  # frames, slices, rows, columns

METAIMAGE_LINES = ("DistanceUnits = cm", "HeaderSize = 5", "CompressedData = T", "ElementByteOrderMSB = 1",
                   "Name = " + "x" * 600)  # fmt: skip
NRRD_LINES = ('space units: "cm" "cm" "cm"', "byte skip: -1", "data file: a.raw", "spacings: 1 1 1", 'labels: "',
              "MultiVolume.FrameLabels:=1,2", "thicknesses: nan", "endian: big")  # fmt: skip


def original(suffix: str) -> Stack:
    """The stack that is in the file before it is damaged."""
    stack = file_phantoms.noisy_stack(SHAPE)
    return stack.frame(0) if suffix == ".nrrd" else stack


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"a{suffix}"
    write_stack(original(suffix), path)
    return path


def damaged_volume(rng: random.Random, folder: Path, suffix: str) -> Path:
    path = written(folder, suffix)
    contents = path.read_bytes()
    if suffix == ".nii.gz" and rng.random() < 0.6:  # damage below the compression, as a faulty program makes it
        plain = damaged_bytes(rng, gzip.decompress(contents), 800)
        path.write_bytes(gzip.compress(plain, 1))
    else:
        end = {".nii": 800, ".nii.gz": 100}.get(suffix) or contents.find(b"\n\n") + 2
        end = contents.find(b"LOCAL") + 6 if suffix == ".mha" else end
        path.write_bytes(damaged_bytes(rng, contents, end))
    return path


def odd_nifti_field(rng: random.Random, folder: Path, suffix: str) -> Path:
    """One to three fields of the header with values that nobody expects."""
    path = written(folder, suffix)
    contents = path.read_bytes()
    plain = bytearray(gzip.decompress(contents) if suffix == ".nii.gz" else contents)
    raw = np.frombuffer(bytes(plain[:348]), header_dtype).copy()
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(header_dtype.names)
        field = raw[name].reshape(-1)
        if field.dtype.kind == "S":
            raw[name] = rng.choice((b"", b"n+2", b"ni1", b"x" * 80))
            continue
        index = rng.randrange(max(field.size, 1))
        value = float(rng.choice(NASTY_NUMBERS))
        with np.errstate(all="ignore"):
            if field.dtype.kind in "iu":
                limits = np.iinfo(field.dtype)
                value = int(np.clip(np.nan_to_num(value, posinf=limits.max, neginf=limits.min), limits.min, limits.max))
            field[index] = value
        raw[name] = field.reshape(raw[name].shape)
    plain[:348] = raw.tobytes()
    path.write_bytes(gzip.compress(bytes(plain), 1) if suffix == ".nii.gz" else bytes(plain))
    return path


def odd_text_field(rng: random.Random, folder: Path, suffix: str) -> Path:
    """Some lines of a text header changed, doubled, lost, moved or new."""
    path = written(folder, suffix)
    contents = path.read_bytes()
    end = contents.find(b"LOCAL\n") + 6 if suffix == ".mha" else contents.find(b"\n\n") + 1
    lines = contents[:end].decode().splitlines()
    sign = " = " if suffix == ".mha" else ": "
    new = METAIMAGE_LINES if suffix == ".mha" else NRRD_LINES
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(1, len(lines))
        key, found, value = lines[at].partition(sign if sign in lines[at] else ":=")
        action = rng.randrange(7)
        if action == 0:
            del lines[at]
        elif action == 1:
            lines.insert(at, lines[at])
        elif action == 2:
            lines.insert(at, rng.choice(new))
        elif action in (3, 4):
            words = value.split() or [""]
            words[rng.randrange(len(words))] = rng.choice(NASTY_NUMBERS)
            lines[at] = key + found + " ".join(words)
        elif action == 5:
            lines[at] = key + found + rng.choice(NASTY_TEXTS)
        else:
            other = rng.randrange(1, len(lines))
            lines[at], lines[other] = lines[other], lines[at]
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    path.write_bytes(text + b"\n" + contents[end:])
    return path


@dataclass(frozen=True)
class Volume:
    """What an independent reader sees: voxels and their places."""

    voxels: np.ndarray  # (T, Z, Y, X)
    affine: np.ndarray  # (4, 4) to LPS mm


def seen_by_nibabel(path: Path) -> Volume:
    image = nib.Nifti1Image.from_filename(path)
    voxels = np.asanyarray(image.dataobj)
    voxels = voxels.reshape((*voxels.shape[:3], -1))
    affine = np.diag([-1.0, -1, 1, 1]) @ image.affine
    if not image.header["sform_code"] > 0 and not image.header["qform_code"] > 0:
        affine = np.diag([*image.header["pixdim"][1:4], 1.0])  # as ITK and Slicer have it
    return Volume(voxels.transpose(3, 2, 1, 0), affine)


def seen_by_pynrrd(path: Path) -> Volume:
    voxels, header = nrrd.read(str(path), index_order="C")
    directions = np.array(header.get("space directions", np.diag(header.get("spacings", [np.nan] * 3)[-3:])), float)
    listed = np.flatnonzero(~np.isfinite(directions).all(axis=1))
    if voxels.ndim == 4:
        axis = int(listed[0]) if len(listed) else 3
        voxels = np.moveaxis(voxels, 3 - axis, 0)
        directions = np.delete(directions, axis, axis=0)[-3:] if len(directions) > 3 else directions
    affine = np.eye(4)
    affine[:3, :3] = directions[:, :3].T
    affine[:3, 3] = header.get("space origin", np.zeros(3))[:3]
    space = str(header.get("space", "")).lower()
    signs = (
        (-1, -1) if space.startswith(("ras", "right-a")) else (1, -1) if space.startswith(("las", "left-a")) else (1, 1)
    )
    return Volume(voxels if voxels.ndim == 4 else voxels[np.newaxis], np.diag([*signs, 1, 1]) @ affine)


def seen_by_numpy(path: Path) -> Volume:
    """MetaImage by hand, for headers whose voxels are written as ours are."""
    contents = path.read_bytes()
    end = contents.index(b"LOCAL\n") + 6
    pairs = [line.split("=", 1) for line in contents[:end].decode("utf-8", "replace").split("\n") if "=" in line]
    fields = {key.strip(): value.strip() for key, value in pairs}
    kinds = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "FLOAT": "f4",
             "DOUBLE": "f8", "LONG_LONG": "i8", "ULONG_LONG": "u8"}  # fmt: skip
    is_big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "F"))[:1] in ("T", "t", "1")
    data = contents[end:]
    if fields.get("CompressedData", "F")[:1] in ("T", "t", "1"):
        data = zlib.decompress(data)
    sizes = [int(float(word)) for word in fields["DimSize"].split()]
    voxels = np.frombuffer(data, (">" if is_big else "<") + kinds[fields["ElementType"].removeprefix("MET_")])
    voxels = voxels.reshape(sizes[::-1])
    axes = len(sizes)
    matrix = next((fields[key] for key in ("TransformMatrix", "Orientation", "Rotation") if key in fields), None)
    turned = np.eye(axes) if matrix is None else np.array(matrix.split(), float).reshape(axes, axes)
    offset = next((fields[key] for key in ("Offset", "Position", "Origin") if key in fields), "0 " * axes)
    spacing = np.array(fields.get("ElementSpacing", fields.get("ElementSize")).split(), float)
    affine = np.eye(4)
    affine[:3, :3] = turned[:3, :3].T * spacing[:3]
    affine[:3, 3] = [float(word) for word in offset.split()][:3]
    return Volume(voxels if axes == 4 else voxels[np.newaxis], affine)


def need_same(stack: Stack, seen: Volume) -> None:
    """Every voxel has the value that the other reader has at the same place in the patient."""
    if stack.voxels.size != seen.voxels.size or len(stack.voxels) != len(seen.voxels):
        raise WrongError(f"{stack.voxels.shape} voxels, another reader sees {seen.voxels.shape}")
    indices = np.stack(np.meshgrid(*(np.arange(size) for size in stack.voxels.shape[:0:-1]), indexing="ij"), axis=-1)
    there = (stack.to_lps(indices) - seen.affine[:3, 3]) @ np.linalg.inv(seen.affine[:3, :3]).T
    nearest = np.round(there).astype(int)
    if np.abs(there - nearest).max() > 0.51 or (nearest < 0).any() or (nearest >= seen.voxels.shape[:0:-1]).any():
        raise WrongError("voxels lie elsewhere than another reader sees them")
    x, y, z = np.moveaxis(nearest, -1, 0)
    ours = stack.voxels.transpose(0, 3, 2, 1)
    if not np.allclose(ours, seen.voxels[:, z, y, x], rtol=1e-5, atol=1e-6, equal_nan=True):
        raise WrongError("other values than another reader sees")


def judged_volume(path: Path, before: Stack) -> str:
    """Read and check it; what comes out must be what went in, or what an independent reader sees."""
    stack = read_stack(path)
    check_stack(stack, source=path.name)
    is_same = np.array_equal(stack.voxels, before.voxels)
    if is_same and np.allclose(stack.affine, before.affine, atol=1e-3):
        return RIGHT
    reader = seen_by_numpy if path.suffix == ".mha" else seen_by_pynrrd if path.suffix == ".nrrd" else seen_by_nibabel
    try:
        seen = reader(path)
    except Exception as error:
        raise WrongError(
            f"read, though changed, and another reader refuses it: {type(error).__name__}: {error}"
        ) from error
    need_same(stack, seen)
    return RIGHT


def volume(suffix: str) -> Callable[[random.Random, Path], str]:
    def run(rng: random.Random, folder: Path) -> str:
        odd = odd_nifti_field if ".nii" in suffix else odd_text_field
        path = (damaged_volume if rng.random() < 0.5 else odd)(rng, folder, suffix)
        return judged_volume(path, original(suffix))

    return run


def endless(rng: random.Random, folder: Path) -> str:
    """Small headers before compressed voxels without end, and headers that announce more than there is."""
    suffix = rng.choice((".nii.gz", ".nrrd", ".mha"))
    path = written(folder, suffix)
    contents = path.read_bytes()
    zeros = bytes(rng.choice((1 << 20, 1 << 24, 1 << 26)))
    start = {".nrrd": contents.find(b"\n\n") + 2, ".mha": contents.find(b"LOCAL\n") + 6}.get(suffix, 0)
    if suffix == ".nii.gz":
        path.write_bytes(gzip.compress(gzip.decompress(contents)[: rng.choice((400, 800, 10_000))] + zeros, 6))
    elif suffix == ".nrrd":
        path.write_bytes(contents[:start] + gzip.compress(zeros, 6) * rng.choice((1, 4)))
    else:
        path.write_bytes(contents[:start] + zlib.compress(zeros, 6))
    if rng.random() < 0.3 and suffix != ".nii.gz":
        size = rng.choice((b"2000 2000 200", b"60000 60000 4", b"30000 300 300"))
        path.write_bytes(path.read_bytes().replace(b"20 18 4", size))
    tracemalloc.start()
    try:
        read_stack(path)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Of a claimed size, memory that is reserved and never touched counts here.
        if peak > 32 << 20 and b"20 18 4" in path.read_bytes()[:2000]:
            raise WrongError(f"{peak >> 20} MB for a stack of {np.prod(SHAPE) * 2} bytes")
    raise WrongError("compressed voxels without end were read")
