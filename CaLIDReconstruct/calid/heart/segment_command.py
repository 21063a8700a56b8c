"""`calid segment`: labels of a stack as a file for 3D Slicer, a volume, or DICOM Segmentations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from calid.errors import InputError
from calid.heart import figures
from calid.heart.anatomy import clean_labels
from calid.heart.segmentation import license_notice, segment
from calid.heart.volumes import Function, cardiac_function
from calid.images.checks import warnings
from calid.images.dicom_objects import need_highdicom, segmentation_place, write_segmentations
from calid.images.dicom_out import find_sources, need_dicom
from calid.images.files import check_output, read_heart, write_labels
from calid.images.overview import told
from calid.run.logs import tell
from calid.run.progress import progress_bar, shown_on
from calid.run.settings import add_flags
from calid.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `calid segment`."""
    parser.add_argument("input", type=Path, help="NIfTI, NRRD or MHA file, or a folder of DICOM files")
    parser.add_argument(
        "output", type=Path, help="labels; .seg.nrrd for 3D Slicer, .nii.gz, .nrrd, .mha; .dcm or a folder for DICOM"
    )
    parser.add_argument(
        "--format",
        default="file",
        choices=("file", "dicom"),
        help="dicom: OUTPUT is a folder for one DICOM Segmentation of each phase, in the study of the DICOM input; a "
        "name in .dcm says the same: the file if there is one phase, of a cine the folder of that name without .dcm",
    )
    parser.add_argument("--series", metavar="NUMBER_OR_UID", help="in a DICOM folder: a series of the short axis")
    parser.add_argument(
        "--lax",
        type=Path,
        metavar="DIR",
        dest="views",
        help="folder of long-axis images, which show where the ventricles end; by default those of INPUT",
    )
    parser.add_argument("--raw", action="store_true", help="leave each slice as the network sees it, without clean-up")
    add_flags(parser, ["device"])
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="models to use instead of the bundled ones")
    figures.add_json_argument(parser)
    figures.add_body_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`calid segment`: read, label, clean up, write."""
    is_dicom = options.format == "dicom" or options.output.suffix.lower() == ".dcm"
    if is_dicom:
        need_dicom(options.input)
        need_highdicom()
    else:
        check_output(options.output, overwrite=options.overwrite, sources=(options.input, options.models))
    figures.check_json_output(options)
    tell(license_notice(options.models))
    stack, lax = read_heart(options.input, options.series, lax_folder=options.views)
    output = options.output
    if is_dicom:  # file or folder, by the number of phases
        output = segmentation_place(output, stack, overwrite=options.overwrite, source=options.input)
    sources = find_sources(options.input, stack, options.series) if is_dicom else None
    for line in told(stack, options.input):
        tell(line)
    with progress_bar() as bar:
        labels = segment(
            stack,
            device=options.device,
            models_folder=options.models,
            progress=shown_on(bar),
            source=options.input.name,
        )
    clean = clean_labels(labels)
    chosen = labels if options.raw else clean
    if sources is not None:
        write_segmentations(chosen, sources, output, overwrite=options.overwrite)
    else:
        write_labels(chosen, output, overwrite=options.overwrite)
    ended = figures.function_to_the_ends(clean, stack, lax) if lax else figures.NO_VIEWS
    if options.json is not None:
        figures.write_figures(_figures(stack, clean, ended, options), options.json, overwrite=options.overwrite)
    print(f"{output}: {labels.num_slices} slices, {labels.num_frames} frame(s) labeled.")
    if lax:
        print(_told_of_the_ends(ended))
    return 0


def _told_of_the_ends(ended: Function | str) -> str:
    """One line about the volumes to the valve plane and the tip, or why there are none."""
    if isinstance(ended, str) or ended.ends is None:
        return f"Volumes end where the labels end: {ended}"
    lv = ended.lv
    es = "" if lv.esv_ml is None else f", ESV {lv.esv_ml:.0f} ml, EF {lv.ef_percent:.0f} %"
    return f"LV to {ended.ends.words}: EDV {lv.edv_ml:.0f} ml{es}, mass {ended.mass_g:.0f} g."


def _figures(stack: Stack, labels: Stack, ended: Function | str, options: argparse.Namespace) -> dict[str, Any]:
    """What the labels say of the heart, as data."""
    try:
        function: Function | str = cardiac_function(labels)
    except InputError as error:
        function = str(error)
    return figures.document(
        "segment",
        stack,
        function=function,
        function_long_axis=ended,
        wall_thickness=figures.wall_section(labels),
        body=figures.body_from(options),
        findings=warnings(stack),
        labels=labels,
    )
