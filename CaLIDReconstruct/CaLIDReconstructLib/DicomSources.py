"""Which DICOM files an image of the scene was loaded from, wherever the importer that loaded it has noted it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import slicer

FOLDER = "CaLID.DicomFolder"
FILES = "CaLID.DicomFiles"
UIDS = "DICOM.instanceUIDs"
MULTI_VOLUME_FILES = "MultiVolume.FrameFileList"
NOMINAL_INTERVAL = "0018,1062"
SEPARATOR = "\n"


def noteFolder(node, folder: str) -> None:
    """Note on a volume or sequence node in which folder its DICOM files lie."""
    node.SetAttribute(FOLDER, folder)


def noteFiles(node, paths: list[Path]) -> None:
    """Note on a node that was made of others from which files these came."""
    if paths:
        node.SetAttribute(FILES, SEPARATOR.join(map(str, paths)))


def sourceFiles(node) -> list[Path]:
    """The DICOM files of a volume or sequence that are still there; none for an image of another origin.

    Args:
        node: volume or sequence node.
    """
    for each in _with_items(node):
        folder = each.GetAttribute(FOLDER)
        if folder and Path(folder).is_dir():
            return sorted(path for path in Path(folder).rglob("*") if path.is_file())
    found = [path for each in _with_items(node) for path in _named(each)]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def nominalBeatMs(node) -> float | None:
    """The length of the heart beat in the header of one of an image's DICOM files, if the database has it."""
    uid = next((uid for each in _with_items(node) for uid in _uids(each)), None)
    return _beatOf(uid) if uid is not None and _database() is not None else None


@functools.lru_cache(maxsize=1000)
def _beatOf(uid: str) -> float | None:
    """Asked once for each image: the panel wants to know it again and again."""
    try:
        beat = float(_database().instanceValue(uid, NOMINAL_INTERVAL))
    except (TypeError, ValueError):
        return None
    return beat if beat > 0 else None


def _with_items(node) -> Iterator:
    """A node, and the items of a sequence."""
    yield node
    if node.IsA("vtkMRMLSequenceNode"):
        yield from (node.GetNthDataNode(index) for index in range(node.GetNumberOfDataNodes()))


def _named(node) -> Iterator[Path]:
    """The files that one node names, by path or by UID."""
    yield from (Path(path) for path in (node.GetAttribute(FILES) or "").split(SEPARATOR) if path)
    yield from (Path(path) for path in (node.GetAttribute(MULTI_VOLUME_FILES) or "").split(",") if path)
    database = _database()
    for uid in _uids(node) if database is not None else ():
        path = database.fileForInstance(uid)
        if path:
            yield Path(path)


def _uids(node) -> list[str]:
    return (node.GetAttribute(UIDS) or "").split()


def _database():
    """Slicer's own DICOM database; None where there is none, or it is not open."""
    database = getattr(slicer, "dicomDatabase", None)
    return database if database is not None and database.isOpen else None
