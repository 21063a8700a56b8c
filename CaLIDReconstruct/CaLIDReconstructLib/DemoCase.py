"""The bundled demo case: found on disk, loaded as nodes, offered in the Sample Data module."""

from __future__ import annotations

import hashlib
from pathlib import Path

from slicer.i18n import tr as _

from . import Views
from .StudyNodes import StudyNodes, addStudy

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "Resources" / "Demo"
CATEGORY = "CaLID"
SAMPLE_NAME = "CaLID demo case"
STUDY_NAME = "CaLID demo case"
SHORT_AXIS = "sax"


def isThere(folder: Path = DEMO_FOLDER) -> bool:
    """Whether the case's images are in this folder."""
    return folder.is_dir() and any(folder.rglob("*.nrrd"))


def load(folder: Path = DEMO_FOLDER) -> StudyNodes:
    """Load the case into the scene, in a study of its own."""
    from calid.images import files

    return addStudy(STUDY_NAME, ((_name(path), files.read_stack(path)) for path in _files(folder)))


def register(iconsFolder: Path) -> None:
    """Offer the case in the Sample Data module; called once the application has started.

    A click on its button loads and shows it (`customDownloader`); `SampleData.downloadSample` asks for files with
    addresses instead, and gets those that are bundled, the short axis first.
    """
    import SampleData

    files = _files()
    SampleData.SampleDataLogic.registerCustomSampleDataCategory(CATEGORY, title=_("CaLID"))
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(iconsFolder / "CaLIDDemoCase.png"),
        uris=[path.as_uri() for path in files],
        fileNames=[f"CaLID-{path.name}" for path in files],
        nodeNames=[_name(path) for path in files],
        checksums=[f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files],
        loadFileTypes=["SequenceFile"] * len(files),
        customDownloader=_loadSource,
    )


def _loadSource(_source) -> None:
    Views.showVolume(load().sax)


def _files(folder: Path = DEMO_FOLDER) -> list[Path]:
    """The case's images, the short axis first."""
    return sorted(folder.rglob("*.nrrd"), key=lambda path: (_name(path) != SHORT_AXIS, path.name))


def _name(path: Path) -> str:
    return path.name.split(".")[0]
