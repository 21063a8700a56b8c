"""`calid-evaluate gates`: the parts of a model in training, judged before the next stage starts (GATES.md).

Slice n from n-1 and n+1 on the development patients, ED and ES together, every figure the mean over slices. A row is a
way to a slice: the mean of the moved neighbors and its controls, what the codec makes of a code of zeros, of codes
drawn from the prior and of the true slice's own code, and what the denoiser draws.

"Dice" is of the bundled segmenter on the slice that was made against the expert's labels of the one left out, over a
patient's slices together, mean of the structures. p are against code 0: Wilcoxon's signed ranks over the slices, and
for Frechet's distance a bootstrap over the patients.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calid.heart.segmentation import Segmenter
from calid.method.codec import Codec, Sight
from calid.method.coded import CodedCaLID
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.texture import with_texture_of
from calid.method.weights import below, build_codec, build_motion, config_from
from calid.run.device import choose_device
from calid_training.runs import checkpoint_of, run_config
from calid_training.weight_files import part_config

from calid_benchmark import metrics, perceptual
from calid_benchmark.rivals.slices import as_images, as_slices
from calid_benchmark.segmenters import judging_segmenter
from calid_benchmark.tables.downstream import segmented
from calid_benchmark.tables.interpolation import segmenter_features
from calid_benchmark.tables.questions import StackQuestion, add_place_arguments, add_set_arguments, asked_of
from calid_benchmark.tables.record import markdown_table

FIGURES = {"psnr": 2, "ssim": 3, "sharpness": 2, "fd": 3, "lpips": 4}
BATCH = 11
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(before, after, gap_mm, truth) in [-1, 1] -> the slices between."""


@dataclass(frozen=True)
class Answered:
    """A question's slices as one way made them."""

    question: StackQuestion
    images: np.ndarray


def answered(asked: list[StackQuestion], way: Way, *, autocast: torch.autocast) -> list[Answered]:
    """What a way makes of all questions."""
    made = []
    for question in asked:
        before, after = as_images(question.before), as_images(question.after)
        truth, gap_mm = as_images(question.truth), torch.full((len(question.truth),), 2 * question.spacing_mm)
        with torch.inference_mode(), autocast:
            images = way(before, after, gap_mm, truth).float()
        made.append(Answered(question, as_slices(images).clip(0, 1)))
    return made


def figures_of(
    made: list[Answered], extract: metrics.FeatureExtractor, lpips: Callable | None
) -> dict[str, np.ndarray]:
    """{figure: its value on every slice}, with the pooled features under "pooled" and "true_pooled"."""
    truth = np.concatenate([one.question.truth for one in made])
    images = np.concatenate([one.images for one in made]).astype(np.float32)
    features = [
        [_extracted(extract, x) for x in np.array_split(side, -(-len(side) // BATCH))] for side in (truth, images)
    ]
    found = {
        "psnr": metrics.psnr(truth, images),
        "ssim": metrics.ssim(truth, images),
        "sharpness": np.array(metrics.gradient_magnitude(images)) / np.mean(metrics.gradient_magnitude(truth)),
        "fd": np.concatenate([metrics.feature_distance(a, b) for a, b in zip(*features, strict=True)]),
        "pooled": np.concatenate([metrics.pooled(x) for x in features[1]]),
        "true_pooled": np.concatenate([metrics.pooled(x) for x in features[0]]),
    }
    if lpips is not None:
        found["lpips"] = lpips(truth, images)
    return {name: np.asarray(values) for name, values in found.items()}


def _extracted(extract: metrics.FeatureExtractor, images: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        return extract(torch.from_numpy(np.ascontiguousarray(images))[:, None])


def dice_of(made: list[Answered], segmenter: Segmenter) -> float:
    """Mean over labeled stacks of the structures' mean Dice, over all slices of a stack together."""
    found = []
    for one in made:
        if one.question.labels is not None:
            labels = segmented(segmenter, one.images)
            pairs = ((labels == label, one.question.labels == label) for label in one.question.annotated)
            found.append(metrics.known_mean([metrics.compare(*pair, {})["dice"] for pair in pairs]))
    return float(np.mean(found))


def row(made: list[Answered], judges: tuple, reference: dict[str, np.ndarray] | None) -> tuple[dict, list[str]]:
    """Figures and the cells of one line."""
    extract, lpips, segmenter = judges
    found = figures_of(made, extract, lpips)
    cells = []
    for name, digits in FIGURES.items():
        if name not in found:
            continue
        text = f"{found[name].mean():.{digits}f}"
        if reference is not None and name in ("fd", "lpips"):
            p = metrics.paired_p(found[name].tolist(), reference[name].tolist())
            text += f" ({'-' if p is None else f'{p:.0e}'})"
        cells.append(text)
    distance = f"{metrics.frechet_distance(found['true_pooled'], found['pooled']):.3f}"
    if reference is not None:
        patients = [one.question.patient for one in made for _ in one.question.truth]
        p = metrics.frechet_p(found["true_pooled"], found["pooled"], reference["pooled"], patients)
        distance += f" ({p:.0e})"
    cells.append(distance)
    cells.append(f"{dice_of(made, segmenter):.3f}" if segmenter is not None else "-")
    return found, cells


COMMON_MM = 7
"""Slices of a clinical short axis lie 8 to 10 mm apart; closer ones are another question."""


def asked_for(options: Namespace) -> list[StackQuestion]:
    """The questions about stacks whose slices lie as far apart as is common.

    Raises:
        ValueError: if there are none.
    """
    found = [question for question in asked_of(options) if question.spacing_mm > COMMON_MM]
    if not found:
        sets = ", ".join(options.datasets)
        raise ValueError(f"{options.prepared} has no stack of {sets} whose slices lie more than {COMMON_MM} mm apart")
    return found


def ways_of(options: Namespace) -> dict[str, Way]:
    """The ways that the options' runs offer, by name."""
    run = options.denoiser or options.codec
    settings, state = run_config(run)["model"], checkpoint_of(run)
    if options.denoiser is None:
        codec = build_codec(settings["network"], below(state, "network."))
    else:
        codec = build_codec(part_config(settings["codec"], "codec"), below(state, "codec."))
    whole = settings["codec" if options.denoiser else "motion"]
    motion = build_motion(part_config(whole, "motion"), below(state, "motion."))

    def moved(before: torch.Tensor, after: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        first, second = halfway(motion, before, after)
        return (first + second) / 2

    def textured(before: torch.Tensor, after: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return with_texture_of(before, after, moved(before, after).float())

    def coded(code_of: Callable[[torch.Tensor, Sight], torch.Tensor]) -> Way:
        def way(before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            sight = codec.see(*halfway(motion, before, after, both_ways=True), gap_mm)
            return codec.decode(code_of(truth, sight), sight)

        return way

    def prior(scale: float) -> Callable[[torch.Tensor, Sight], torch.Tensor]:
        return lambda truth, _: scale * seeded(codec.code_shape(truth), 0) / codec.scale

    def estimate(before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return codec.estimate(codec.see(*halfway(motion, before, after, both_ways=True), gap_mm))

    ways: dict[str, Way] = {
        "moved mean": moved,
        "motion and texture": textured,
        "estimate": estimate,
        "code 0": coded(prior(0.0)),
        "drawn from the prior": coded(prior(1.0)),
        "half as wide": coded(prior(0.5)),
        "code of the truth": coded(codec.encode),
    }
    return ways if options.denoiser is None else ways | _draws(options, codec, motion, settings, state)


def _draws(
    options: Namespace,
    codec: Codec,
    motion: Motion,
    settings: Mapping[str, Any],
    state: Mapping[str, torch.Tensor],
) -> dict[str, Way]:
    """What the denoiser draws, by the number of steps and the temperature."""
    denoiser = Denoiser(config_from(DenoiserConfig, settings["network"]))
    denoiser.load_state_dict(below(state, "network."))

    def drawn(steps: int, temperature: float) -> Way:
        model = CodedCaLID(codec, denoiser, motion, temperature=temperature).eval()

        def way(before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            return model.between(before, after, seeded(codec.code_shape(truth), 0), gap_mm, steps=steps)

        return way

    return {
        f"{steps} steps, temperature {temperature:g}": drawn(steps, temperature)
        for steps in options.draw_steps
        for temperature in (options.temperatures if steps > 1 else [1.0])
    }


def seeded(shape: torch.Size, seed: int) -> torch.Tensor:
    """Noise that depends on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_set_arguments(parser)
    parser.set_defaults(split="validation")
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    parser.add_argument("--codec", type=Path, help="run folder of the codec")
    parser.add_argument("--denoiser", type=Path, help="run folder of the denoiser of codes")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--draw-steps", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[1.0])
    perceptual.add_arguments(parser)
    add_place_arguments(parser, table="gates")


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    asked = asked_for(options)
    ways = ways_of(options)
    if options.rows:
        ways = {name: way for name, way in ways.items() if name in options.rows}
    device = choose_device(options.device)
    lpips = perceptual.measures_of(options).lpips
    judges = segmenter_features(options.models), lpips, judging_segmenter(device, options.models)
    lines, reference = [], None
    for name, way in ways.items():
        found, cells = row(answered(asked, way, autocast=device.autocast()), judges, reference)
        if name == "code 0":
            reference = found
        lines.append([name, *cells])
        print(*lines[-1], sep=" | ", flush=True)
    print("\n".join(markdown_table(["way", *FIGURES, "Frechet", "Dice"], lines)))
    return 0
