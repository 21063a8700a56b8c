"""`calid demo`: the bundled human heart, upsampled and laid beside the long-axis images that were acquired of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calid.errors import InputError, OutputError, SettingsError
from calid.images.files import read_lax_folder, read_stack, write_stack
from calid.report import page
from calid.report.comparison import ViewAgreement, agreement_table, standard_columns
from calid.report.sheet import lax_movie, lax_sheet
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


# --- the page ---------------------------------------------------------------------------------------------------------

_BEATING = "One heartbeat in a long-axis plane: the acquired image beside the stack before and after upsampling"


def write_index(
    folder: Path,
    *,
    figures: Sequence[ViewAgreement],
    sheets: Mapping[str, Path],
    movie: Path | None = None,
    case: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> Path:
    """Write the demonstration's `index.html`: one file, nothing loaded from elsewhere.

    Args:
        folder: where the page goes.
        figures: figures by `lax_sheet` or `compare_views`.
        sheets: heading -> picture sheet (PNG), in order.
        movie: a beating view from `lax_movie`.
        case: what was loaded and what came out, for a reader.
        provenance: provenance of the dense stack.
        seconds: how long the upsampling took.
    """
    fragments = [_headline(figures, seconds, provenance or {})]
    if movie:
        fragments.append(
            page.section(
                "One heartbeat",
                page.picture(movie, "The same plane through the cycle.", alternative=_BEATING),
            )
        )
    for heading, path in sheets.items():
        caption = (
            "Rows are acquired long-axis views; columns the acquired image, and the same plane cut from the short-axis "
            "stack. One scale, one window per row, turned so that the base is on top."
        )
        fragments.append(page.section(heading, page.picture(path, caption, alternative=heading)))
    fragments.append(page.section("Agreement with the acquired images", agreement_table(figures)))
    if case:
        fragments.append(page.section("The case", page.facts(case)))
    if provenance:
        fragments.append(page.section("How it was made", page.facts(provenance)))
    lead = "Missing slices of a cardiac short-axis stack, filled in by a latent diffusion model and seen from the side."
    target = folder / "index.html"
    target.write_text(page.page("CaLID on the demonstration heart", lead, fragments), encoding="utf-8")
    return target


def _headline(figures: Sequence[ViewAgreement], seconds: float | None, provenance: Mapping[str, Any]) -> str:
    """The largest figures: slices before and after as the provenance counts them, time, and views won."""
    shown = []
    if {"acquired_slices", "factor"} <= set(provenance):
        acquired, factor = int(provenance["acquired_slices"]), int(provenance["factor"])
        shown += [("acquired slices", f"{acquired}"), ("slices now", f"{(acquired - 1) * factor + 1}")]
    if seconds is not None:
        shown.append(("seconds to upsample", f"{seconds:.0f}"))
    if figures:
        last = list(figures[0].columns)[-1]
        wins = sum(result.best == last for result in figures)
        shown.append((f"views in which {last} agrees best", f"{wins} of {len(figures)}"))
    return page.tiles(shown) if shown else ""
