"""The systems that are compared, behind one door: two neighbors in, the slice between them out.

A new system is one function with the signature of `System`, named in `offered`. Trained baselines (`rivals/`) come
in by themselves once their weights are there; until then `offered` says what is missing and how to get it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from calid.errors import WeightsError
from calid.method.weights import find_model, models_folder
from calid.run.batches import Interpolator
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator
from calid.run.settings import DEFAULT_SAMPLES, DeviceName, Method, Mode, Settings

from calid_benchmark import paper_form, rivals
from calid_benchmark.paper_form import PaperForm
from calid_benchmark.rivals import classical, syn
from calid_benchmark.rivals.slices import System, bisected
from calid_benchmark.ways import (
    COMMON_SPACING_MM,
    calid,
    calid_between,
    drawn,
    latent_linear,
    latent_linear_between,
    linear,
    linear_between,
    moved_mean,
    moved_mean_of_views,
    moved_mean_with_texture,
    nearest,
    nearest_slices,
    of_code,
    reconstruction,
)

MOTION_ALONE = "CaLID's motion alone"
CODE_0, FROM_PRIOR = "CaLID's D, code 0", "CaLID's D, code from its prior"
HOT = "CaLID, temperature 1"
"""A draw that goes all of the way from the mean of all draws."""
DIFFUSION_BASELINES = ("DiffAE", "DMCVR")
SLOW_BASELINES = (syn.NAME, *DIFFUSION_BASELINES, "DeepRecon")
"""Seconds for a slice; tables can ask them about fewer patients."""
PAPERS_SMALL = "CaLID, the paper's, small", "CaLID+, the paper's, small"
"""The paper's model at our size: no motion, no anchor, D(z_0) and nothing else; CaLID+ in the paper's own form."""
PAPERS_INFERENCE = "CaLID, D(z_0) alone", "CaLID+, the paper's form"
"""The model that ships without what the engine does after and beside the diffusion; the motion, which it was trained
with, stays."""
ON_REQUEST = ("CaLID, mean of draws", "CaLID+, mean of draws")
"""Rows that are made only where they are named: each costs as much as eight others, and "fidelity" is better."""
CONTROLS = {
    MOTION_ALONE: "registration",
    "bilinear latent": "linear",
    "regression U-Net": "linear",
    "regression U-Net, moved neighbors": MOTION_ALONE,
    PAPERS_SMALL[0]: "linear",
    PAPERS_SMALL[1]: "linear",
    PAPERS_INFERENCE[0]: MOTION_ALONE,
    PAPERS_INFERENCE[1]: MOTION_ALONE,
    CODE_0: MOTION_ALONE,
    "CaLID": MOTION_ALONE,
    "CaLID+": MOTION_ALONE,
    "CaLID, one step": MOTION_ALONE,
    "fidelity": "motion, 8 views",
    "CaLID, mean of draws": "motion, 8 views",
    "CaLID+, mean of draws": "motion, 8 views",
}
"""{row with a learned part: the row without it}; tables hold the two side by side at equal sharpness."""
Upsampling = Callable[[np.ndarray, int], np.ndarray]
"""(slices (Z, Y, X) in [0, 1], factor) -> ((Z - 1) * factor + 1, Y, X), the acquired slices kept."""


class Made(NamedTuple):
    """What a system made of a question, and how long it took."""

    images: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False)
class Named:
    """A system with what the tables say of it.

    Args:
        name: row of the system in the tables.
        make: the slice between.
        upsample: a whole stack at once; None bisects with `make`.
        at_steps: the same system with another number of diffusion steps, where it has any.
        at_spacing: the same system told how many mm acquired slices are apart, where it asks.
        sees_truth: not an interpolation: it is given the true slice twice, and shows the most that its kind can reach.
        weights: (model name, SHA-256) of all that is behind it.
        budget: what its training cost, in words; "" for a system that needs none, or whose manifest does not say it.
    """

    name: str
    make: System
    upsample: Upsampling | None = None
    at_steps: Callable[[int], Named] | None = None
    at_spacing: Callable[[float], Named] | None = None
    sees_truth: bool = False
    weights: tuple[tuple[str, str], ...] = ()
    budget: str = ""

    def answer(self, before: np.ndarray, after: np.ndarray) -> Made:
        """The slices between, clipped to [0, 1], and how long they took."""
        start = time.perf_counter()
        made = np.asarray(self.make(before, after), np.float32).clip(0, 1)
        return Made(made, time.perf_counter() - start)

    def told(self, spacing_mm: float) -> Named:
        """This system, told the distance of acquired slices, if it asks."""
        return self if self.at_spacing is None else self.at_spacing(spacing_mm)

    def whole_heart(self, slices: np.ndarray, factor: int) -> np.ndarray:
        """The dense stack of a sparse one: ((Z - 1) * factor + 1, Y, X) in [0, 1], the acquired slices as they came."""
        if self.upsample is None:
            return bisected(self.make, slices, factor)
        dense = np.asarray(self.upsample(slices, factor), np.float32).clip(0, 1)
        dense[::factor] = slices
        return dense


@dataclass(frozen=True)
class Source:
    """Where the systems' weights lie, and how they run.

    Args:
        models: folder with the manifest of CaLID's models; None takes the bundled ones.
        weights: folder with the manifest of the rivals.
        steps: DDIM steps of CaLID.
        samples: draws of its means.
        device: "auto", "cpu", "cuda" or "mps".
        optimization_steps: number of steps for DeepRecon's latent codes; None takes the paper's 1,000.
    """

    models: Path | None = None
    weights: Path = rivals.WEIGHTS
    steps: int = Settings().steps
    samples: int = DEFAULT_SAMPLES
    device: DeviceName = "auto"
    optimization_steps: int | None = None


@dataclass(frozen=True, eq=False)
class Offer:
    """The systems that can answer.

    Args:
        systems: systems that can answer, in the order of the papers' tables.
        notes: why others cannot, and where one does not run as its paper has it.
    """

    systems: tuple[Named, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Named:
        return next(system for system in self.systems if system.name == name)


def offered(source: Source) -> Offer:
    """All systems, in the order of the papers' tables."""
    trained, notes = _trained_baselines(source)
    papers, reasons = _paper(source)
    if not syn.is_here():
        reasons.append(f"{syn.NAME} is left out: the package antspyx is not installed (pip install 'calid[rivals]').")
    systems = (*classical_systems(), *_latent(source), *trained, *papers, *_calid(source))
    return Offer(systems, (*notes, *reasons))


def classical_systems() -> list[Named]:
    """The systems without a network."""
    return [
        Named("nearest", nearest, upsample=nearest_slices),
        Named("linear", linear, upsample=linear_between),
        Named("B-spline", classical.bspline, upsample=classical.bspline_between),
        _registration("registration", classical.demons),
        *([_registration(syn.NAME, syn.syn)] if syn.is_here() else []),
    ]


def _registration(name: str, register: classical.Register) -> Named:
    return Named(
        name,
        partial(classical.registration, register=register),
        upsample=partial(classical.registration_between, register=register),
    )


def _latent(source: Source) -> list[Named]:
    interpolator = warm_interpolator(choose_device(source.device), source.models)
    weights = ((interpolator.entry.name, interpolator.entry.sha256),)
    if interpolator.knows_neighbors:
        return [*_motion(interpolator), *_codec(interpolator, source.steps)]
    return [
        Named("reconstruction", partial(reconstruction, interpolator=interpolator), sees_truth=True, weights=weights),
        Named(
            "bilinear latent",
            partial(latent_linear, interpolator=interpolator),
            upsample=partial(latent_linear_between, interpolator=interpolator),
            weights=weights,
        ),
        *_motion(interpolator),
    ]


def _motion(interpolator: Interpolator) -> list[Named]:
    """CaLID without its diffusion; whole stacks by bisection, as the engine makes them."""
    if interpolator.model.motion is None:
        return []
    weights = ((interpolator.entry.name, interpolator.entry.sha256),)
    rows = {
        MOTION_ALONE: moved_mean,
        "motion and texture": moved_mean_with_texture,
        "motion, 8 views": moved_mean_of_views,
    }
    return [Named(name, partial(make, interpolator=interpolator), weights=weights) for name, make in rows.items()]


def _codec(interpolator: Interpolator, steps: int) -> list[Named]:
    """D without a denoiser, of a code of zeros and of one from the prior N(0, 1) of its training; and hot draws."""
    weights = ((interpolator.entry.name, interpolator.entry.sha256),)
    whole = {mode: replace(told, temperature=1.0) for mode, told in interpolator.departures.items()}
    hot = replace(interpolator, departures=whole)
    settings = Settings(factor=2, method="calid", steps=steps)
    makers: dict[str, Callable[..., np.ndarray]] = {
        CODE_0: partial(of_code, interpolator=interpolator, scale=0.0),
        FROM_PRIOR: partial(of_code, interpolator=interpolator, scale=1.0),
        HOT: partial(drawn, interpolator=hot, settings=settings),
    }

    def row(name: str, spacing_mm: float) -> Named:
        make = partial(makers[name], spacing_mm=spacing_mm)
        return Named(name, make, at_spacing=partial(row, name), weights=weights)

    return [row(name, COMMON_SPACING_MM) for name in makers]


def _trained_baselines(source: Source) -> tuple[list[Named], tuple[str, ...]]:
    found, notes = [], []
    for name in rivals.NAMES:
        try:
            found.append(_trained(name, source))
        except WeightsError as error:
            notes.append(_left_out(name, error, source))
            continue
        if name == "DeepRecon":
            notes += _notes_of_steps(source.optimization_steps)
    return found, tuple(notes)


def _left_out(name: str, error: WeightsError, source: Source) -> str:
    """Why a row is missing. A table goes to others, whom this machine's folders tell nothing."""
    reason = error.message
    for folder in (source.weights, models_folder(source.models)):
        reason = reason.replace(str(folder), _seen_from_here(folder))
    return f'{name} is left out: {reason} CaLIDTraining/README.md, "Baselines", says how to train and export it.'


def _seen_from_here(folder: Path) -> str:
    """A folder's path from the working directory, or its name where it lies elsewhere."""
    if not folder.is_absolute():
        return folder.as_posix()
    return folder.relative_to(Path.cwd()).as_posix() if folder.is_relative_to(Path.cwd()) else folder.name


def _notes_of_steps(steps: int | None) -> list[str]:
    papers = rivals.module_of("DeepRecon").Optimization.steps
    return [] if steps in (None, papers) else [f"DeepRecon took {steps} steps for a slice, not its paper's {papers:,}."]


def _trained(name: str, source: Source, steps: int | None = None) -> Named:
    if name == "DeepRecon" and steps is None:
        steps = source.optimization_steps
    system = rivals.load(name, source.weights, steps=steps, device=source.device, models=source.models)
    entry = find_model(rivals.MODULES[name], source.weights)
    return Named(
        name,
        system.between,
        upsample=system.whole_heart,
        at_steps=partial(_trained, name, source) if name in DIFFUSION_BASELINES else None,
        weights=((entry.name, entry.sha256),),
        budget=rivals.budget_of(entry.name, source.weights),
    )


def _paper(source: Source) -> tuple[list[Named], list[str]]:
    """The paper's model at our size, and the paper's inference on the model that ships."""
    device = choose_device(source.device)
    shipped = warm_interpolator(device, source.models)
    found: list[Named] = []
    notes: list[str] = []
    try:
        small = paper_form.small_model(device, source.weights)
    except WeightsError as error:
        notes.append(_left_out("The paper's small model", error, source))
    else:
        found += [
            _paper_row(name, PaperForm(small, paper_form.STEPS, refined), source.weights)
            for name, refined in zip(PAPERS_SMALL, (False, True), strict=True)
        ]
    if not shipped.knows_neighbors:  # what ships otherwise is the paper's form, D(z_0), already
        found += [
            _paper_row(name, PaperForm(shipped, source.steps, refined, paper_form.MOVED), source.models)
            for name, refined in zip(PAPERS_INFERENCE, (False, True), strict=True)
        ]
    return found, notes


def _paper_row(name: str, form: PaperForm, folder: Path | None) -> Named:
    entry = form.interpolator.entry
    return Named(
        name,
        form.between,
        at_steps=lambda steps: _paper_row(name, form.at_steps(steps), folder),
        weights=((entry.name, entry.sha256),),
        budget=rivals.budget_of(entry.name, folder),
    )


def _calid(source: Source) -> list[Named]:
    def row(name: str, method: Method, mode: Mode, steps: int, *, changeable: bool = False) -> Named:
        settings = Settings(
            factor=2, method=method, mode=mode, steps=steps, samples=source.samples, device=source.device
        )
        return _calid_row(name, source, settings, changeable=changeable)

    return [
        row("CaLID", "calid", "detail", source.steps, changeable=True),
        row("CaLID+", "calid+", "detail", source.steps, changeable=True),
        row("CaLID, one step", "calid", "detail", 1),
        row("fidelity", "calid", "fidelity", 1),
        row("CaLID, mean of draws", "calid", "fidelity", source.steps),
        row("CaLID+, mean of draws", "calid+", "fidelity", source.steps),
    ]


def _calid_row(
    name: str,
    source: Source,
    settings: Settings,
    *,
    changeable: bool = False,
    spacing_mm: float = COMMON_SPACING_MM,
) -> Named:
    entry = warm_interpolator(choose_device(source.device), source.models).entry
    bound: dict[str, Any] = {"settings": settings, "models_folder": source.models, "spacing_mm": spacing_mm}

    def other(settings: Settings, spacing_mm: float) -> Named:
        return _calid_row(name, source, settings, changeable=changeable, spacing_mm=spacing_mm)

    return Named(
        name,
        partial(calid, **bound),
        upsample=partial(calid_between, **bound),
        at_steps=(lambda steps: other(replace(settings, steps=steps), spacing_mm)) if changeable else None,
        at_spacing=partial(other, settings),
        weights=((entry.name, entry.sha256),),
        budget=rivals.budget_of(entry.name, source.models),
    )


def chosen(systems: Sequence[Named], names: Iterable[str] | None) -> list[Named]:
    """The named systems, linear interpolation and CaLID+ (the others are compared with these).

    Without names all of them, but for those made only `ON_REQUEST`.
    """
    if names is None:
        return [system for system in systems if system.name not in ON_REQUEST]
    return [system for system in systems if system.name in {"linear", "CaLID+", *names}]
