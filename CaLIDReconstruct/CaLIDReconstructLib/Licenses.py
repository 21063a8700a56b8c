"""Under which license the segmenter's weights come, and the user's consent to one that is not for every use."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from .EngineProcess import MODULE_FOLDER
from .Parameters import Preferences

BUNDLED_MODELS = MODULE_FOLDER / "Resources" / "Models"
SEGMENTER = "segmenter"


@dataclass(frozen=True)
class License:
    """The license of a model's weights.

    Args:
        identifier: SPDX, such as "CC-BY-NC-SA-4.0".
        trainedOn: the data, in the manifest's words.
    """

    identifier: str
    trainedOn: str = ""

    @property
    def isNonCommercial(self) -> bool:
        """Whether the weights may not be used commercially."""
        return "NC" in self.identifier.split("-")

    @property
    def name(self) -> str:
        """As people write it: "CC BY-NC-SA 4.0"."""
        found = self._creativeCommons()
        return f"CC {found[1]} {found[2]}" if found else self.identifier

    @property
    def url(self) -> str:
        """Where it can be read."""
        found = self._creativeCommons()
        if found:
            return f"https://creativecommons.org/licenses/{found[1].lower()}/{found[2]}/"
        return f"https://spdx.org/licenses/{self.identifier}.html"

    def notice(self) -> str:
        """What stands beside the choice of a segmentation; rich text with a link."""
        link = f'<a href="{self.url}">{self.name}</a>'
        if self.isNonCommercial:
            return _("Its weights are for non-commercial use only ({license}).").format(license=link)
        return _("Its weights are licensed {license}.").format(license=link)

    def _creativeCommons(self):
        return re.fullmatch(r"CC-(BY(?:-[A-Z]+)*)-(\d\.\d)", self.identifier)


def segmenterLicense(modelsFolder: str = "") -> License | None:
    """The license that the manifest names for the segmenter; None where there is no segmenter.

    Args:
        modelsFolder: folder of other weights; empty for the bundled ones.
    """
    manifest = Path(modelsFolder or os.environ.get("CALID_MODELS") or BUNDLED_MODELS) / "models.json"
    try:
        models = json.loads(manifest.read_text(encoding="utf-8"))["models"]
        (entry,) = (model for model in models if model["name"] == SEGMENTER)
        return License(entry["license"], entry.get("trained_on", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def isAgreed(terms: License | None, preferences: Preferences) -> bool:
    """Whether the weights may be used: asked once for each license that is not for every use, then remembered."""
    if terms is None or not terms.isNonCommercial or preferences.agreedLicense == terms.identifier:
        return True
    question = _(
        "The segmentation uses weights that are licensed {license}, for non-commercial use only.\n\n"
        "They were trained on {data}.\n\nIs your use non-commercial? (Without it, untick the segmentation.)"
    ).format(license=terms.name, data=terms.trainedOn)
    if not slicer.util.confirmYesNoDisplay(question, windowTitle=_("License of the segmentation")):
        return False
    preferences.agreedLicense = terms.identifier
    return True
