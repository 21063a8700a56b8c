"""The training commands of `calid-train`: what learns, from what, and with which settings by default.

CaLID's own are listed here. Other packages, such as the benchmark's rivals, offer theirs as an entry point of the group
`calid_training.stages`: a mapping like `STAGES`. So they need this package, and it needs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
ENTRY_POINTS = "calid_training.stages"


@dataclass(frozen=True)
class Stage:
    """One training command. Classes and functions are named as "module:name" and imported when they are asked for.

    Args:
        module: LightningModule that learns.
        data: LightningDataModule that it learns from.
        configs: folder with the default configuration, `<command>.yaml`.
        system: name of the system in the benchmark's tables that `calid-train export baseline` makes of a run; "" if
            none.
        manifest: function that turns the `model` section of a run's configuration into the manifest's, where there is
            a `system`.
        summary: what is trained, in words.
    """

    module: str
    data: str
    configs: Path = CONFIGS
    system: str = ""
    manifest: str = ""
    summary: str = ""

    def classes(self) -> tuple[type, type]:
        """The LightningModule and its LightningDataModule."""
        return resolve_name(self.module), resolve_name(self.data)

    def manifest_config(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's configuration of a trained baseline."""
        return resolve_name(self.manifest)(model)


STAGES: dict[str, Stage] = {
    "autoencoder": Stage(
        "calid_training.autoencoder:AutoencoderStage",
        "calid_training.data:ImageData",
        summary="E and D of single slices, the paper's first stage",
    ),
    "motion": Stage(
        "calid_training.motion:MotionStage",
        "calid_training.data:TripletData",
        summary="what brings two neighboring slices half-way to each other",
    ),
    "codec": Stage(
        "calid_training.codec:CodecStage",
        "calid_training.data:TripletData",
        summary="E and D that know the moved neighbors",
    ),
    "code-denoiser": Stage(
        "calid_training.code_denoiser:CodeDenoiserStage",
        "calid_training.data:TripletData",
        summary="the denoiser of the codec's codes; with further configurations D and the motion too",
    ),
    "denoiser": Stage(
        "calid_training.denoiser:DenoiserStage",
        "calid_training.data:TripletData",
        summary="the denoiser of an autoencoder's latents, the paper's second stage",
    ),
    "cine-autoencoder": Stage(
        "calid_training.autoencoder:AutoencoderStage",
        "calid_training.cine_data:ClipImages",
        summary="the paper's E and D over time, with 3D convolutions",
    ),
    "cine-codes": Stage(
        "calid_training.cine_codes:CineCodeStage",
        "calid_training.cine_data:ClipData",
        summary="layers over time for code-denoiser",
    ),
    "cine-denoiser": Stage(
        "calid_training.cine_denoiser:CineDenoiserStage",
        "calid_training.cine_data:ClipData",
        summary="layers over time for denoiser, or the paper's 3D denoiser",
    ),
    "segmenter": Stage(
        "calid_training.segmenter:SegmenterModule",
        "calid_training.segmenter:SegmenterData",
        summary="what labels LV cavity, LV myocardium and RV cavity",
    ),
}
"""CaLID's own stages by command."""


@cache
def all_stages() -> dict[str, Stage]:
    """CaLID's own stages and those that installed packages offer, by command."""
    offered = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return STAGES | {command: stage for point in offered for command, stage in point.load().items()}
