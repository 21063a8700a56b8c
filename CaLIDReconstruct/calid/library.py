"""CaLID for Python programs: what `import calid` offers.

Every function takes and returns a `Stack` (voxels in frames, slices, rows and columns; LPS millimeters), raises
`CalidError` with a code, a message and a remedy, and imports what it needs when it is called. The examples run as
tests, on a computed stack of three slices, 9 mm apart.

Examples:
    >>> import calid
    >>> sax = calid.read(sparse_path)
    >>> sax.num_slices, round(float(sax.spacing_mm[2]), 2)
    (3, 9.0)
    >>> dense = calid.upsample(sax, factor=4, method="linear")
    >>> dense.num_slices, round(float(dense.spacing_mm[2]), 2)
    (9, 2.25)
    >>> dense.generated.tolist()
    [False, True, True, True, False, True, True, True, False]
    >>> calid.write(dense, folder / "dense.nii.gz")
    >>> calid.read(folder / "dense.nii.gz").provenance["method"]
    'linear'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calid.errors import SettingsError
from calid.stack import LaxImage, Stack

if TYPE_CHECKING:
    from vtkmodules.vtkCommonDataModel import vtkPolyData

    from calid.heart.volumes import Function
    from calid.run.progress import Progress
    from calid.run.reconstruct import Reconstruction
    from calid.run.settings import Settings


def read(path: str | Path) -> Stack:
    """The stack in a volume file, or the short-axis stack in a DICOM folder. Needs no PyTorch.

    Args:
        path: .nii, .nii.gz, .nrrd, .seq.nrrd, .seg.nrrd or .mha; a DICOM file; or a folder of DICOM files.

    Raises:
        InputError: there is nothing there, or it cannot be read for certain.
    """
    from calid.images.files import read_stack

    return read_stack(Path(path))


def read_views(folder: str | Path) -> tuple[LaxImage, ...]:
    """The long-axis images in a folder of DICOM or volume files, each with its name and a stack of one slice.

    Raises:
        InputError: the folder holds no long-axis images, or one cannot be read.
    """
    from calid.images.files import read_lax_folder

    return read_lax_folder(Path(folder))


def upsample(
    stack: Stack,
    *,
    models_folder: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Stack:
    """The stack with its missing slices filled in; acquired slices stay as they are, to the bit.

    Args:
        stack: sparse short-axis stack, static or cine.
        models_folder: folder of the models; None takes the bundled ones.
        progress: function told how far the run is.
        **settings: fields of `calid.run.settings.Settings`, such as `factor=8`, `method="calid"`, `mode="fidelity"`.

    Returns:
        The dense stack; `generated` marks the slices that a model made.

    Raises:
        CalidError: the stack, a setting, the model or the machine cannot be used.
    """
    return _run(stack, settings, models_folder=models_folder, progress=progress).stack


def uncertainty(
    stack: Stack,
    *,
    models_folder: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> tuple[Stack, Stack]:
    """The dense stack, and the standard deviation of the draws at each of its voxels.

    Args:
        stack, models_folder, progress, **settings: as for `upsample`; `samples` is the number of draws.

    Returns:
        The dense stack and its uncertainty, both on the same grid; the uncertainty of acquired slices is 0.

    Raises:
        CalidError: as for `upsample`, and for linear interpolation, which draws nothing.
    """
    made = _run(stack, settings, models_folder=models_folder, progress=progress, uncertainty=True)
    assert made.uncertainty is not None  # it was asked for, and what has none was refused
    return made.stack, made.uncertainty


def _run(stack: Stack, settings: dict[str, Any], *, models_folder: str | Path | None, **more: Any) -> Reconstruction:
    from calid.run import reconstruct

    folder = None if models_folder is None else Path(models_folder)
    return reconstruct.upsample(stack, _settings(settings), models_folder=folder, **more)


def _settings(chosen: dict[str, Any]) -> Settings:
    from calid.run.settings import Settings

    known = [field.name for field in fields(Settings)]
    for name in chosen:
        if name not in known:
            raise SettingsError(name, f"There is no setting '{name}'.", f"Choose among {', '.join(known)}.")
    return Settings(**chosen)


def segment(
    stack: Stack,
    *,
    clean: bool = True,
    device: str = "auto",
    models_folder: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Stack:
    """Labels on the stack's grid: 1 LV cavity, 2 LV myocardium, 3 RV cavity.

    The bundled weights are licensed CC BY-NC-SA 4.0: for non-commercial use only.

    Args:
        stack: short-axis stack, sparse or dense.
        clean: whether each frame is tidied up as an anatomist would.
        device: "auto", "cpu", "cuda" or "mps".
        models_folder: folder of the models; None takes the bundled ones.
        progress: function told how far the run is.

    Raises:
        CalidError: the stack, the model or the device cannot be used.
    """
    from calid.heart.anatomy import clean_labels
    from calid.heart.segmentation import segment as label

    folder = None if models_folder is None else Path(models_folder)
    labels = label(stack, device=device, models_folder=folder, progress=progress)
    return clean_labels(labels) if clean else labels


def function(labels: Stack) -> Function:
    """Volumes over the cycle, ejection fractions and mass. Needs no PyTorch.

    Args:
        labels: 1 LV cavity, 2 LV myocardium, 3 RV cavity; sparse or dense, one frame or a cine.

    Raises:
        InputError: no frame has an LV cavity.

    Examples:
        >>> import calid
        >>> measured = calid.function(heart_labels)
        >>> measured.ed_frame, measured.es_frame, round(measured.lv.ef_percent)
        (0, 1, 49)
    """
    from calid.heart.volumes import cardiac_function

    return cardiac_function(labels)


def surfaces(labels: Stack, frame: int = 0) -> dict[str, vtkPolyData]:
    """Closed surfaces of the structures in one frame, in LPS mm, by the key of their label. Needs no PyTorch.

    Args:
        labels: as for `function`.
        frame: index of the frame.

    Examples:
        >>> import calid
        >>> meshes = calid.surfaces(heart_labels, frame=0)
        >>> sorted(meshes)
        ['LV', 'MYO', 'RV']
        >>> calid.write(meshes["LV"], folder / "lv.stl")
    """
    from calid.heart import surfaces as closed
    from calid.labels import KEYS

    return {KEYS[value]: mesh for value, mesh in closed.surfaces(labels, frame).items()}


def write(made: Stack | vtkPolyData, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a stack, labels or a surface; the file appears whole or not at all.

    Args:
        made: stack to write as .nii, .nii.gz, .nrrd, .seq.nrrd or .mha, labels also as .seg.nrrd; or a surface to write
            as .vtp, .stl or .obj.
        path: name of the file, whose extension says the format.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: it cannot be written there.
    """
    path = Path(path)
    if isinstance(made, Stack):
        from calid.images.files import write_stack

        write_stack(made, path, overwrite=overwrite)
    else:
        from calid.heart.surfaces import write_surface

        write_surface(made, path, overwrite=overwrite)
