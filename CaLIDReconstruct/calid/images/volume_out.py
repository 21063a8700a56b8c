"""A stack becomes a volume file, whole or not at all, in a format that can hold it.

Beside voxels and geometry it carries the frame times, which slices were generated, and where the stack comes from: as
key-value pairs in NRRD and MetaImage, in a header extension in NIfTI.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from calid import geometry
from calid.errors import OutputError
from calid.images import metaimage, nifti, nrrd, whole_file
from calid.images.text_header import LONGEST_LINE, text_of
from calid.images.voxels import GZIP, deflated
from calid.labels import LABELS
from calid.stack import Stack

SUFFIXES = (".seq.nrrd", ".seg.nrrd", ".nrrd", ".nii.gz", ".nii", ".mha")
"""Of volume files, the longest first."""

COMPRESSION_LEVEL = 4
"""A real cine shrinks to 42 % at level 4, and no further at level 9, which takes ten times as long."""

LARGEST_NIFTI_SIZE = 32767
"""Voxels along an axis, of which NIfTI keeps 16 bits."""


def suffix_of(path: Path) -> str | None:
    """Which of `SUFFIXES` a file name ends in.

    Example:
        >>> suffix_of(Path("heart.SEQ.nrrd")), suffix_of(Path("heart.png"))
        ('.seq.nrrd', None)
    """
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def check_output(path: Path, *, overwrite: bool = False, sources: Iterable[Path | None] = ()) -> None:
    """Return if a volume can be written to `path`; to be asked before a long run.

    Raises:
        OutputError: as for `whole_file.check_new_file`.
    """
    whole_file.check_new_file(path, SUFFIXES, overwrite=overwrite, sources=sources)


def check_fits(stack: Stack, path: Path) -> None:
    """Return if the format of `path` can hold a stack; to be asked before a long run of what it will make.

    Raises:
        OutputError: "unsupported-voxels", "bad-provenance" if it is no JSON, "sheared-affine" or "too-large" for NIfTI,
            "header-too-long" if an entry has more characters than readers take, or "disk-full" if an uncompressed file
            does not fit on the disk.
    """
    path = Path(path)
    _need_plain_voxels(stack, path)
    _need_short_header(stack, path)
    if suffix_of(path) in (".nii", ".nii.gz"):
        _need_nifti(stack)
    if suffix_of(path) == ".nii":
        whole_file.need_room(path, stack.voxels.nbytes)


def write_stack(stack: Stack, path: Path, *, overwrite: bool = False) -> None:
    """Write a stack with its frame times, generated marks and provenance, whole or not at all.

    Args:
        stack: stack to write, its voxels as they are.
        path: name of the file, whose extension says the format: .nii, .nii.gz, .nrrd, .seq.nrrd, .mha, or .seg.nrrd for
            labels.
        overwrite: whether what exists may be replaced.

    Raises:
        OutputError: the file cannot be written there; nothing is left behind.
    """
    with pending_stack(stack, path, overwrite=overwrite):
        pass


@contextmanager
def pending_stack(stack: Stack, path: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Write a stack like `write_stack`, but let the file appear when what is done meanwhile has gone well.

    Args:
        stack, path, overwrite: as for `write_stack`.

    Raises:
        OutputError: as `write_stack`.
    """
    path = Path(path)
    suffix = suffix_of(path)
    check_fits(stack, path)
    if suffix == ".seg.nrrd":
        _need_labels(stack, path)
    with whole_file.whole_file(path, SUFFIXES, overwrite=overwrite) as temporary:
        with temporary.open("wb") as file:
            file.writelines(_pieces(stack, suffix))
        yield


def _pieces(stack: Stack, suffix: str | None) -> Iterable[bytes]:
    """The bytes of a stack in the format that a suffix says."""
    entries = _entries(stack)
    if suffix == ".mha":
        return metaimage.written(stack, entries, level=COMPRESSION_LEVEL)
    if suffix in (".nii", ".nii.gz"):
        pieces = nifti.written(stack, entries)
        return deflated(pieces, GZIP, COMPRESSION_LEVEL) if suffix == ".nii.gz" else pieces
    if suffix == ".seg.nrrd":
        entries = {**_segment_entries(stack), **entries}
    if stack.num_frames > 1:
        # The list axis holds the times; kept twice, one would go stale when Slicer saves a part of the sequence.
        del entries["calid_frame_times_ms"]
    return nrrd.written(stack, entries, level=COMPRESSION_LEVEL)


def write_labels(stack: Stack, path: Path, *, overwrite: bool = False) -> None:
    """Write labels; as .seg.nrrd 3D Slicer opens them as a segmentation with names, colors and terminology.

    A cine becomes one layer per frame there, with one segment per structure and frame.

    Args:
        stack: uint8 voxels with the values of `labels.LABELS`.
        path: .seg.nrrd, or any extension of `write_stack`.
        overwrite: whether what exists may be replaced.

    Raises:
        OutputError: the voxels are no labels, or the file cannot be written there; nothing is left behind.
    """
    _need_labels(stack, path)
    write_stack(stack, path, overwrite=overwrite)


def _need_plain_voxels(stack: Stack, path: Path) -> None:
    kind = stack.voxels.dtype.name
    if kind not in nrrd.TYPES:
        remedy = "Convert them to integers or floats of 8 to 64 bits."
        raise OutputError("unsupported-voxels", f"Voxels of type {kind} cannot be written to {path.name}.", remedy)


def _need_short_header(stack: Stack, path: Path) -> None:
    """Return if our readers, and ITK's in Slicer, take entries as long as these."""
    entries, suffix = _entries(stack), suffix_of(path)
    key, longest = max(((key, len(value)) for key, value in entries.items()), key=lambda entry: entry[1])
    limit, instead = metaimage.LONGEST_VALUE, ".nrrd or .nii.gz"
    if suffix in (".nii", ".nii.gz"):
        longest, limit, instead = len(nifti.extension(entries)), nifti.LARGEST_OFFSET // 2, "a shorter provenance"
    elif suffix != ".mha":
        longest, limit, instead = max(map(len, nrrd.header_lines(stack, entries))), LONGEST_LINE - 2, ".nii.gz"
    if longest > limit:
        message = f"{key} has {longest} characters, {path.name} can hold {limit} that readers take."
        raise OutputError("header-too-long", message, f"Write {instead} instead.")


def _need_nifti(stack: Stack) -> None:
    shear = geometry.shear_degrees(stack.affine)
    if shear > geometry.PARALLEL_TOLERANCE_DEGREES:
        message = f"The voxel axes miss a right angle by {shear:.2f} degrees, which NIfTI's quaternion cannot say."
        raise OutputError("sheared-affine", message, "Write .nrrd or .mha instead.")
    if max(stack.voxels.shape) > LARGEST_NIFTI_SIZE:
        message = f"NIfTI holds {LARGEST_NIFTI_SIZE} voxels along an axis, the result has {max(stack.voxels.shape)}."
        raise OutputError("too-large", message, "Write .nrrd or .mha instead.")


def _need_labels(stack: Stack, path: Path) -> None:
    if stack.voxels.dtype != np.uint8 or stack.voxels.max(initial=0) > len(LABELS):
        message = f"{Path(path).name} would be a segmentation, but the voxels are no labels from 0 to {len(LABELS)}."
        raise OutputError("not-labels", message, "Write an image as .nrrd or .seq.nrrd.")


def _entries(stack: Stack) -> dict[str, str]:
    """The key-value pairs that carry what the formats have no place for."""
    try:
        provenance = json.dumps(stack.history, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        remedy = "Keep texts, finite numbers, and lists and dictionaries of them."
        raise OutputError("bad-provenance", f"The provenance cannot be written as JSON ({err}).", remedy) from err
    return {
        "calid_frame_times_ms": text_of(stack.frame_times_ms),
        "calid_generated": " ".join("1" if mark else "0" for mark in np.asarray(stack.generated)),
        "calid_provenance": provenance,
    }


def _segment_entries(stack: Stack) -> dict[str, str]:
    """Slicer's description of each segment: one per structure, and per frame in a cine, whose frames are layers.

    https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html
    """
    slices, rows, columns = stack.voxels.shape[1:]
    entries = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    pairs = ((frame, label) for frame in range(stack.num_frames) for label in LABELS)
    for index, (frame, label) in enumerate(pairs):
        is_cine = stack.num_frames > 1
        segment = {
            "ID": f"{label.key}_{frame:03d}" if is_cine else label.key,
            "Name": f"{label.name}, frame {frame + 1}" if is_cine else label.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6f}" for part in label.rgb),
            "ColorAutoGenerated": "0",
            "Extent": f"0 {columns - 1} 0 {rows - 1} 0 {slices - 1}",
            "LabelValue": str(label.value),
            "Layer": str(frame),
            "Tags": f"TerminologyEntry:{label.terminology}|",
        }
        entries |= {f"Segment{index}_{key}": value for key, value in segment.items()}
    return entries
