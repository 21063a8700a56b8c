"""`calid demo`: the bundled human heart, upsampled and laid beside the long-axis images that were acquired of it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from calid.errors import InputError, OutputError, SettingsError
from calid.images.files import read_lax_folder, read_stack, write_stack
from calid.report.comparison import standard_columns
from calid.report.sheet import lax_movie, lax_sheet, write_index
from calid.run.progress import progress_bar, shown_on
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import LaxImage, Stack

_HERE = Path(__file__).parents[1]
BUNDLED_FOLDERS = (_HERE.parent / "Resources" / "Demo", _HERE / "Demo")  # in the extension; in an installed package
CASE_FOLDER = next((folder for folder in BUNDLED_FOLDERS if folder.is_dir()), BUNDLED_FOLDERS[0])
SAX_NAME, DENSE_NAME = "sax.seq.nrrd", "dense.seq.nrrd"
SHEET_NAME, MOVIE_NAME, INDEX_NAME = "lax.png", "lax.gif", "index.html"
DEMO_SETTINGS = Settings(factor=8, method="calid+")
MOVIE_VIEW = "4ch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid demo`."""
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"), help="where the result goes")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="only every N-th cardiac phase, to be quicker"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in the folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Upsample the case; leave the dense stack, the picture sheet, the movie and `index.html` in the folder."""
    sparse, lax = read_demo(CASE_FOLDER)
    sparse = _every(sparse, options.every)
    folder: Path = options.folder
    _prepare_folder(folder, overwrite=options.overwrite)
    start = time.monotonic()
    with progress_bar() as bar:
        dense = upsample(sparse, DEMO_SETTINGS, progress=shown_on(bar)).stack
    seconds = time.monotonic() - start
    write_stack(dense, folder / DENSE_NAME, overwrite=options.overwrite)
    columns = standard_columns(sparse, dense)
    figures = lax_sheet(lax, columns, folder / SHEET_NAME)
    view = next((image for image in lax if MOVIE_VIEW in image.name.lower()), lax[0])
    index = write_index(
        folder,
        figures=figures,
        sheets={"Long-axis planes": folder / SHEET_NAME},
        movie=lax_movie(view, lax, columns[-2:], folder / MOVIE_NAME),
        case={
            "acquired": f"{sparse.num_slices} slices, {sparse.spacing_mm[2]:.1f} mm apart",
            "upsampled": f"{dense.num_slices} slices, {dense.spacing_mm[2]:.1f} mm apart",
            "phases": dense.num_frames,
        },
        provenance=dense.provenance,
        seconds=seconds,
    )
    print(f"{sparse.num_slices} slices became {dense.num_slices} in {seconds:.0f} s. Open {index}")
    return 0


def read_demo(folder: Path) -> tuple[Stack, tuple[LaxImage, ...]]:
    """The bundled SAX cine and its long-axis images.

    Raises:
        InputError: "no-demo" if they are not there.
    """
    if not (folder / SAX_NAME).is_file():
        raise InputError("no-demo", f"The demo case is not in {folder}.", "Reinstall CaLID.")
    return read_stack(folder / SAX_NAME), read_lax_folder(folder)


def _prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder; nothing in it that the demo would write may be there already, unless that is asked for."""
    taken = [name for name in (DENSE_NAME, SHEET_NAME, MOVIE_NAME, INDEX_NAME) if (folder / name).exists()]
    if taken and not overwrite:
        raise OutputError(
            "exists", f"{folder} holds {', '.join(taken)} already.", "Choose another folder, or ask to overwrite."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "unwritable", f"The folder {folder} cannot be made: {error.strerror}.", "Choose another folder."
        ) from error


def _every(stack: Stack, step: int) -> Stack:
    if step < 1:
        raise SettingsError("every", f"Every {step}th phase is not possible.", "Give 1 or more.")
    return stack.with_voxels(stack.voxels[::step], frame_times_ms=stack.frame_times_ms[::step])
