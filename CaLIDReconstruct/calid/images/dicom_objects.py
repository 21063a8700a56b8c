"""Labels as DICOM Segmentations and the uncertainty as a Parametric Map, by highdicom (`pip install calid[dicom]`).

A Segmentation has no unambiguous place for cardiac phases, so a cine becomes one object for each phase, its time in
the content description. All objects stand in the patient, study and frame of reference of the images they are about.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage, generate_uid

from calid import __version__
from calid.errors import ResourceError
from calid.geometry import plane_of
from calid.images import whole_file
from calid.images.dicom import MAKER, DicomImage
from calid.images.dicom_out import Sources, check_folder, header_of, new_folder
from calid.labels import LABELS, Label
from calid.stack import Stack

SEGMENTATION_SERIES, MAP_SERIES = 9001, 9002
FILE_SUFFIX = ".dcm"

_MAKER = {
    "manufacturer": MAKER,
    "manufacturer_model_name": MAKER,
    "software_versions": __version__,
    "device_serial_number": __version__,
}


def need_highdicom() -> Any:
    """The package highdicom.

    Raises:
        ResourceError: "no-highdicom" if it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        message = "DICOM segmentations and maps need the package highdicom."
        raise ResourceError("no-highdicom", message, 'pip install "calid[dicom]"') from error
    return highdicom


def segmentation_place(output: Path, stack: Stack, *, overwrite: bool = False, source: Path | None = None) -> Path:
    """Where the labels of a stack go, which can be written; to be asked before a long run.

    A name in .dcm is the file of the one phase there is; a cine's phases go into the folder of that name without .dcm.

    Args:
        output: as the user named it.
        stack: what is to be labeled.
        overwrite: whether an earlier result may be replaced.
        source: what the run reads, which the result may neither replace nor lie in.

    Raises:
        OutputError: it cannot be written there.
    """
    if output.suffix.lower() == FILE_SUFFIX and stack.num_frames == 1:
        whole_file.check_new_file(output, (FILE_SUFFIX,), overwrite=overwrite, sources=(source,))
        return output
    folder = output.with_suffix("") if output.suffix.lower() == FILE_SUFFIX else output
    check_folder(folder, overwrite=overwrite, source=source)
    return folder


def write_segmentations(labels: Stack, sources: Sources, place: Path, *, overwrite: bool = False) -> None:
    """Write labels as one Segmentation for each phase: a file, or a folder of `phase000.dcm` and so on, whole or not.

    Args:
        labels: uint8 values of `labels.LABELS`.
        sources: where the acquired slices of the stack come from.
        place: file in .dcm of one phase, or new folder, see `segmentation_place`.
        overwrite: whether an earlier result of this kind may be replaced.

    Raises:
        OutputError: the place exists already, or cannot be written.
        ResourceError: highdicom is not installed.
    """
    if place.suffix.lower() != FILE_SUFFIX:
        _write_phases(_segmentation, labels, sources, place, overwrite=overwrite)
        return
    need_highdicom()
    made = _segmentation(labels, sources, 0, generate_uid())
    with whole_file.whole_file(place, (FILE_SUFFIX,), overwrite=overwrite) as draft:
        made.save_as(draft)


def write_maps(spread: Stack, sources: Sources, folder: Path, *, overwrite: bool = False) -> None:
    """Write the standard deviation of the draws as one Parametric Map for each phase.

    Args:
        spread: float stack in the units of the images.
        sources, overwrite: as for `write_segmentations`.
        folder: new folder, or an earlier one of this kind to replace.

    Raises:
        OutputError, ResourceError: as for `write_segmentations`.
    """
    _write_phases(_map, spread, sources, folder, overwrite=overwrite)


def _write_phases(
    make: Callable[[Stack, Sources, int, str], Dataset],
    stack: Stack,
    sources: Sources,
    folder: Path,
    *,
    overwrite: bool,
) -> None:
    need_highdicom()
    series = generate_uid()
    with new_folder(folder, overwrite=overwrite) as draft:
        for frame in range(stack.num_frames):
            make(stack, sources, frame, series).save_as(draft / f"phase{frame:03d}.dcm")


def _map(spread: Stack, sources: Sources, frame: int, series: str) -> Dataset:
    hd = need_highdicom()
    from pydicom.sr.codedict import codes

    top = float(max(spread.voxels.max(), 1.0))
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="SD",
        lut_explanation="Standard deviation of draws",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, top),
        intercept=0.0,
        slope=1.0,
        quantity_definition=hd.sr.CodedConcept("386136009", "SCT", "Standard deviation"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.pm.ParametricMap(
            pixel_array=spread.voxels[frame].astype(np.float32),
            series_instance_uid=series,
            series_number=MAP_SERIES,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            window_center=top / 2,
            window_width=top,
            content_label=f"SPREAD_{frame + 1:03d}",
            **_common(hd, spread, sources, frame),
        )
    made.SeriesDescription = "CaLID uncertainty"
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_heart(hd)]
    return made


def _heart(hd: Any) -> Dataset:
    """The macro that every Parametric Map must have: what the frames show."""
    anatomy = Dataset()
    anatomy.FrameLaterality = "U"  # unpaired
    anatomy.AnatomicRegionSequence = [hd.sr.CodedConcept("80891009", "SCT", "Heart")]
    return anatomy


def _segmentation(labels: Stack, sources: Sources, frame: int, series: str) -> Dataset:
    hd = need_highdicom()
    masks = np.stack([labels.voxels[frame] == label.value for label in LABELS], axis=-1).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.seg.Segmentation(
            pixel_array=masks,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _described(hd, number, label, labels) for number, label in enumerate(LABELS, start=1)
            ],
            series_instance_uid=series,
            series_number=SEGMENTATION_SERIES,
            omit_empty_frames=False,
            content_label=f"HEART_{frame + 1:03d}",
            **_common(hd, labels, sources, frame),
        )
    made.SeriesDescription = "CaLID ventricles"
    return made


def _common(hd: Any, stack: Stack, sources: Sources, frame: int) -> dict[str, Any]:
    """What both kinds of objects are told of one phase: its images, its place, its time, and their maker."""
    images = [image for (time, _), image in sorted(sources.images.items()) if time == frame]
    first = [image for image in images if image.series == images[0].series]
    others = [image for image in images if image.series != images[0].series]
    moment = f"phase {frame + 1} of {stack.num_frames}, {stack.frame_times_ms[frame]:.1f} ms after the R wave"
    return {
        "source_images": [_source_header(image, stack) for image in first],
        "further_source_images": [_source_header(image, stack) for image in others] or None,
        "sop_instance_uid": generate_uid(),
        "instance_number": frame + 1,
        "content_description": moment[:64],
        "content_creator_name": f"{MAKER}^",  # a person's name has two parts
        **_geometry(hd, stack),
        **_MAKER,
    }


def _described(hd: Any, number: int, label: Label, labels: Stack) -> Any:
    named = labels.provenance.get("segmenter", {})
    algorithm = hd.AlgorithmIdentificationSequence(
        name="CaLID segmenter",
        version=__version__,
        family=hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
        parameters={"sha256": str(named["sha256"])[:12]} if named else None,
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=hd.sr.CodedConcept("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=hd.sr.CodedConcept(label.snomed, "SCT", label.meaning),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=hd.color.CIELabColor.from_rgb(*label.rgb),
    )


def _source_header(image: DicomImage, stack: Stack) -> Dataset:
    header = header_of(image)
    del header.ContributingEquipmentSequence
    header.Modality = "MR"
    header.SOPClassUID, header.SOPInstanceUID = image.sop_class or MRImageStorage, image.uid
    header.SeriesInstanceUID = image.series[1]
    header.Rows, header.Columns = stack.voxels.shape[2:]
    header.ImagePositionPatient = image.plane.origin_lps.tolist()
    header.ImageOrientationPatient = [*image.plane.row_lps.tolist(), *image.plane.column_lps.tolist()]
    header.PixelSpacing = image.plane.spacing_mm[::-1].tolist()
    header.SliceThickness = image.thickness_mm if image.thickness_mm > 0 else float(stack.spacing_mm[2])
    return header


def _geometry(hd: Any, stack: Stack) -> dict[str, Any]:
    """Where the frames of an object lie."""
    first, *others = (plane_of(stack, index) for index in range(stack.num_slices))
    across, along, apart = stack.spacing_mm.tolist()
    return {
        "plane_positions": [
            hd.PlanePositionSequence("PATIENT", plane.origin_lps.tolist()) for plane in (first, *others)
        ],
        "plane_orientation": hd.PlaneOrientationSequence(
            "PATIENT", [*first.row_lps.tolist(), *first.column_lps.tolist()]
        ),
        "pixel_measures": hd.PixelMeasuresSequence(
            pixel_spacing=[along, across], slice_thickness=apart, spacing_between_slices=apart
        ),
    }
