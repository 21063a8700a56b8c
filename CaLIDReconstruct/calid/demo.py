"""`calid demo`: the bundled human heart, upsampled and laid beside the long-axis images that were acquired of it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from calid.comparison import standard_columns
from calid.errors import InputError
from calid.files import read_lax_folder, read_stack, write_stack
from calid.output import check_folder
from calid.reconstruct import Settings, upsample
from calid.sheet import lax_movie, lax_sheet, write_index

CASE_FOLDER = Path(__file__).parent.parent / "Resources" / "Demo"
FACTOR = 8
MOVIE_VIEW = "4ch"
TITLES = {"CaLID+": "calid+", "CaLID": "calid", "linear": "linear"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo-output"))
    parser.add_argument("--frames", metavar="N", type=int, help="only every N-th cardiac phase, for a quicker look")
    parser.add_argument("--overwrite", action="store_true")
    parser.set_defaults(run=run)
