"""The labels of a segmented heart: values, names, colors and terminology, as 3D Slicer knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One labeled structure.

    Args:
        value: value of its voxels.
        key: short and stable name, for identifiers and file names.
        name: name as people read it.
        rgb: color, 0 to 255: red for the left side, blue for the right, the wall neutral, as cardiologists draw them.
        snomed: its SNOMED CT code.
        meaning: the code's meaning in the terminology.
    """

    value: int
    key: str
    name: str
    rgb: tuple[int, int, int]
    snomed: str
    meaning: str

    @property
    def terminology(self) -> str:
        """Slicer's terminology entry: context, category, type, modifier, and the same for the region (none)."""
        category = "SCT^123037004^Anatomical Structure"
        kind = f"SCT^{self.snomed}^{self.meaning}"
        return (
            f"Segmentation category and type - DICOM master list~{category}~{kind}~^^"
            "~Anatomic codes - DICOM master list~^^~^^"
        )


BACKGROUND = 0
LV_CAVITY = Label(1, "LV", "Left ventricle", (204, 51, 47), "87878005", "Left ventricle")
MYOCARDIUM = Label(2, "MYO", "LV myocardium", (189, 178, 166), "74281007", "Myocardium")
RV_CAVITY = Label(3, "RV", "Right ventricle", (52, 113, 196), "53085002", "Right ventricle")
LABELS = (LV_CAVITY, MYOCARDIUM, RV_CAVITY)
KEYS = {label.value: label.key for label in LABELS}
