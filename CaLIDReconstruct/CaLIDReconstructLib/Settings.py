"""The settings of one run as a plain value, and the request that carries them to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calid.run import settings as engine

DEFAULTS = engine.Settings()
CHOSEN = ("factor", "method", "model", "mode", "device", "align", "lax")
"""Settings of which the engine names all choices."""


@dataclass(frozen=True)
class RunSettings:
    """Everything one run is told besides its input node.

    Args:
        factor: how many gaps each gap between slices becomes, or "isotropic".
        method: "calid+", "calid" or "linear".
        model: "2d" makes each frame by itself, "2d+t" all frames of a cine together, "auto" chooses by the input.
        mode: "detail" (one sample) or "fidelity" (mean of `samples`).
        samples: number of samples that the mean is made of.
        steps: diffusion steps.
        seed: the same seed gives the same voxels.
        device: "auto", "cuda", "mps" or "cpu".
        align: "report" tells how far slices of different breath-holds are off, "on" moves them within their planes,
            "off" does neither.
        lax: "auto" lets the long-axis images of the scene guide the slices that are made, "off" does not.
        region: markups ROI node that limits the work in plane, or None.
        allFrames: False takes the shown frame of a cine only.
        segment: also segment the result, with 3D models and, for a cine, volumes over time.
        markGenerated: also make a labelmap of the generated slices.
        uncertainty: also make a volume of the spread between samples.
        name: name of the result; empty for an automatic one.
        modelsFolder: folder of other weights; empty for the bundled ones.
    """

    factor: int | str = DEFAULTS.factor
    method: str = DEFAULTS.method
    model: str = DEFAULTS.model
    mode: str = DEFAULTS.mode
    samples: int = engine.DEFAULT_SAMPLES
    steps: int = DEFAULTS.steps
    seed: int = DEFAULTS.seed
    device: str = DEFAULTS.device
    align: str = DEFAULTS.align
    lax: str = DEFAULTS.lax
    region: object | None = None
    allFrames: bool = True
    segment: bool = False
    markGenerated: bool = True
    uncertainty: bool = False
    name: str = ""
    modelsFolder: str = ""

    def __post_init__(self) -> None:
        for name in CHOSEN:
            choices = engine.OPTIONS[name].choices
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, choices))}")
        if self.samples < 1 or self.steps < 1 or self.seed < 0:
            raise ValueError("samples and steps must be at least 1, seed at least 0")

    @classmethod
    def fromParameters(cls, parameters, modelsFolder: str = "") -> RunSettings:
        """The settings that the parameter node holds."""
        return cls(
            factor=parameters.factor.value,
            method=parameters.method.value,
            model=parameters.model.value,
            mode=parameters.mode.value,
            samples=parameters.samples,
            steps=parameters.steps,
            seed=parameters.seed,
            device=parameters.device.value,
            align="on" if parameters.correctShifts else "report",
            lax="auto" if parameters.useLongAxis else "off",
            region=parameters.region,
            allFrames=parameters.frames.value == "all",
            segment=parameters.segmentResult,
            markGenerated=parameters.markGenerated,
            uncertainty=parameters.mapUncertainty,
            name=parameters.outputName.strip(),
            modelsFolder=modelsFolder,
        )

    def summary(self) -> str:
        """The settings in one line, without names of nodes and folders, which may hold a patient's."""
        shown = (
            "factor",
            "method",
            "model",
            "mode",
            "samples",
            "steps",
            "seed",
            "device",
            "align",
            "lax",
            "allFrames",
            "segment",
            "uncertainty",
        )
        return ", ".join(f"{name}={getattr(self, name)}" for name in shown)

    def request(self, inputFile: Path, *, roi: list[int] | None) -> dict:
        """The fields that "upsample" and "estimate" share.

        Args:
            inputFile: the stack as the engine reads it.
            roi: [first column, end column, first row, end row] in voxels, or None.
        """
        names = ("factor", "method", "model", "mode", "steps", "seed", "device", "align", "lax")
        chosen = {name: getattr(self, name) for name in names}
        needsSamples = self.mode == "fidelity" or self.uncertainty
        chosen["samples"] = self.samples if needsSamples else None
        return {**chosen, "input": str(inputFile), "roi": roi, "models": self.modelsFolder or None}

    def cohortRequest(self, source: Path, results: Path) -> dict:
        """The fields of a request for many hearts; a region of interest and a shown frame are of one heart only.

        Args:
            source: folder or table of hearts.
            results: folder for what is made.
        """
        shared = self.request(source, roi=None)
        return {**{key: shared[key] for key in shared if key != "roi"}, "output": str(results), "segment": self.segment}
