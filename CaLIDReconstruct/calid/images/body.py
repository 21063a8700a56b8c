"""How tall and heavy the patient is, by which volumes and masses are indexed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

HEIGHT_LIMITS_CM = (30.0, 250.0)
WEIGHT_LIMITS_KG = (1.0, 400.0)


@dataclass(frozen=True)
class Body:
    """Height and weight of the patient.

    Args:
        height_cm: 30 to 250.
        weight_kg: 1 to 400.

    Raises:
        ValueError: a value is beyond what people measure.
    """

    height_cm: float
    weight_kg: float

    def __post_init__(self) -> None:
        for name, value, (low, high) in (
            ("height", self.height_cm, HEIGHT_LIMITS_CM),
            ("weight", self.weight_kg, WEIGHT_LIMITS_KG),
        ):
            if not low <= value <= high:
                raise ValueError(f"a {name} of {value:g} is not between {low:g} and {high:g}")

    @property
    def bsa_m2(self) -> float:
        """Body surface area after Mosteller (N Engl J Med 1987; 317: 1098).

        Example:
            >>> round(Body(180, 80).bsa_m2, 2)
            2.0
        """
        return math.sqrt(self.height_cm * self.weight_kg / 3600)


def read_body(path: Path) -> Body | None:
    """Height and weight from DICOM headers: from the first image that has plausible values of both, else None.

    Args:
        path: DICOM file, or folder with DICOM files at any depth; anything else has no body.
    """
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    for one in paths:
        if one.is_file() and (body := _body_of(one)) is not None:
            return body
    return None


def _body_of(path: Path) -> Body | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientSize", "PatientWeight"])
        return Body(100 * float(header.PatientSize), float(header.PatientWeight))
    except (InvalidDicomError, OSError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None  # not DICOM, without the elements, or with nonsense in them
