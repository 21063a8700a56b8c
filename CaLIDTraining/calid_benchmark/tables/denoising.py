"""`calid-evaluate denoising`: what each system sees after every diffusion step (CaLID, Fig. 4).

The picture after a step is the network's estimate of the clean slice at that time, decoded where it is a latent.
CaLID's denoiser is shown its neighbors as the engine shows them, moved half-way; what the engine does after the walk
(strength, brightness, texture) is not in these pictures. The paper shows the times 9, 8, 7, 5, 2 and 0 of a 10-step
walk: the estimates after 1, 2, 3, 5, 8 and 10 steps.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from calid.method.diffusion import sample, slerp
from calid.run.batches import Interpolator
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator

from calid_benchmark import metrics, rivals
from calid_benchmark.rivals.diffae import SCHEDULE, DiffAE, mixed
from calid_benchmark.systems import DIFFUSION_BASELINES, Offer, Source, offered
from calid_benchmark.tables.drawings import sheet
from calid_benchmark.tables.questions import StackQuestion, add_question_arguments, asked_of, by_group, source_of
from calid_benchmark.tables.record import Place, markdown_table, paragraphs, place_of, write_table
from calid_benchmark.ways import COMMON_SPACING_MM

STEPS, SHOWN = 10, (1, 2, 3, 5, 8, 10)

Walk = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(before, after): (Y, X) float32 in [0, 1] -> (steps, Y, X) estimates of the slice between."""


def calid_walk(
    before: np.ndarray, after: np.ndarray, *, interpolator: Interpolator, refined: bool, steps: int
) -> np.ndarray:
    """CaLID's estimates, or CaLID+'s (`refined`: started from both neighbors' inverted latents)."""
    images = [torch.from_numpy(x)[None, None] * 2 - 1 for x in (before, after)]
    if refined:
        invert = partial(interpolator.model.invert, steps=steps)
        first, second = (interpolator.batched(invert, x) for x in images)
        z_T = slerp(first, second)
    else:
        shape = (1, *interpolator.latent_shape(before.shape))
        z_T = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    place = interpolator.device.torch_device
    tensors = (x.to(place) for x in (*images, z_T, torch.tensor([2 * COMMON_SPACING_MM])))
    with torch.inference_mode(), interpolator.device.autocast():
        made = torch.cat([image.float().cpu() for image in interpolator.model.estimates(*tensors, steps=steps)])
    return ((made[:, 0].clamp(-1, 1) + 1) / 2).numpy()


def walks(offer: Offer, source: Source, *, steps: int) -> dict[str, Walk]:
    """{system: its walk} of the systems that are there."""
    interpolator = warm_interpolator(choose_device(source.device), source.models)
    found: dict[str, Walk] = {}
    for name in DIFFUSION_BASELINES:
        if any(system.name == name for system in offer.systems):
            found[name] = _baseline_walk(name, source, steps=steps)
    for name, refined in (("CaLID", False), ("CaLID+", True)):
        found[name] = partial(calid_walk, interpolator=interpolator, refined=refined, steps=steps)
    return found


def _baseline_walk(name: str, source: Source, *, steps: int) -> Walk:
    system = rivals.load(name, source.weights, steps=steps, device=source.device, models=source.models)
    if not isinstance(system, DiffAE):
        raise TypeError(f"{name} has no walk of diffusion steps")
    return partial(diffae_walk, system=system)


def diffae_walk(before: np.ndarray, after: np.ndarray, *, system: DiffAE) -> np.ndarray:
    """DiffAE's or DMCVR's estimates, from the mixture of both neighbors' codes."""
    place = system.device.torch_device
    codes = mixed(system.encode(before[None]), system.encode(after[None]), 0.5).to(place)
    with torch.inference_mode(), system.device.autocast():
        model = partial(system.network, z_sem=codes.z_sem, l_mor=codes.l_mor)
        estimates = [x_0.float().cpu() for x_0 in sample(SCHEDULE, model, codes.x_T, steps=system.steps)]
    return ((torch.cat(estimates)[:, 0].clamp(-1, 1) + 1) / 2).numpy()


def progress(question: StackQuestion, found: Mapping[str, Walk]) -> dict[str, tuple[np.ndarray, list[float]]]:
    """{system: (its estimates (steps, Y, X), the PSNR of each)} of the stack's middle slice."""
    middle = len(question.truth) // 2
    rows = {}
    for name, walk in found.items():
        estimates = np.asarray(walk(question.before[middle], question.after[middle]), np.float32).clip(0, 1)
        truth = np.broadcast_to(question.truth[middle], estimates.shape)
        rows[name] = estimates, metrics.psnr(truth, estimates)
    return rows


def markdown(tables: Mapping[str, Mapping[str, Sequence[float]]], notes: Sequence[str]) -> str:
    """PSNR of every estimate, a row per system."""
    lines = []
    for group, rows in tables.items():
        lines += [f"**{group}**: PSNR dB of the estimate after each step, one slice", ""]
        steps = range(1, len(next(iter(rows.values()))) + 1)
        body = [[name, *(f"{value:.2f}" for value in values)] for name, values in rows.items()]
        lines += markdown_table(["system", *map(str, steps)], body)
    return "\n".join([*lines, *notes, ""])


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_question_arguments(parser, table="denoising")
    parser.add_argument("--walk", type=int, default=STEPS, metavar="N", help="steps of the walk")
    parser.add_argument("--shown", nargs="+", type=int, default=list(SHOWN), help="steps whose estimates are shown")
    parser.set_defaults(quick=1)


def make(
    place: Place,
    asked: Sequence[StackQuestion],
    offer: Offer,
    source: Source,
    *,
    steps: int = STEPS,
    shown: Sequence[int] = SHOWN,
) -> None:
    """Make the table and its sheets.

    Args:
        place: folder and files for them.
        asked: the questions; the first of every group is shown.
        offer: the systems that are there.
        source: folders of their weights.
        steps: number of steps of the walk.
        shown: the steps whose estimates are shown.
    """
    found = walks(offer, source, steps=steps)
    tables: dict[str, Any] = {}
    place.out.mkdir(parents=True, exist_ok=True)
    for group, members in by_group(asked).items():
        rows = progress(members[0], found)
        tables[group] = {name: figures for name, (_, figures) in rows.items()}
        path = place.out / f"{group.replace(' ', '-')}.png"
        sheet(path, f"{group}: estimates after each of {steps} steps", pictures(members[0], rows, shown))
    text = markdown(tables, paragraphs(offer.notes))
    write_table(place, "denoising", text, {"psnr": tables, "notes": list(offer.notes)}, systems=offer.systems)


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    place, source = place_of(options), source_of(options)
    make(place, asked_of(options), offered(source), source, steps=options.walk, shown=options.shown)
    return 0


def pictures(
    question: StackQuestion, rows: Mapping[str, tuple[np.ndarray, list[float]]], shown: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """{system: {"n steps" or "truth": picture}}."""
    truth = question.truth[len(question.truth) // 2]
    return {
        name: {f"after {step}": estimates[step - 1] for step in shown if step <= len(estimates)} | {"truth": truth}
        for name, (estimates, _) in rows.items()
    }
