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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from calid.heart.medformer import features
from calid.heart.segmentation import Segmenter
from calid.method.codec import Codec, Sight
from calid.method.coded import CodedCaLID
from calid.method.model import Departures
from calid.method.motion import Motion, halfway
from calid.method.networks import Denoiser, DenoiserConfig
from calid.method.texture import with_texture_of
from calid.method.weights import below, build_codec, build_motion, config_from
from calid.run.device import choose_device
from calid_training.errors import UsageError
from calid_training.runs import checkpoint_of, run_config
from calid_training.weight_files import part_config

from calid_benchmark import metrics, perceptual
from calid_benchmark.rivals.slices import as_images, as_slices
from calid_benchmark.segmenters import judging_segmenter, network_of, segmented
from calid_benchmark.tables.questions import StackQuestion, add_place_arguments, add_set_arguments, asked_of
from calid_benchmark.tables.record import Place, markdown_table, place_of, write_table

FIGURES = {"psnr": 2, "ssim": 3, "sharpness": 2, "fd": 3, "lpips": 4}
HEADS = (*FIGURES, "Frechet", "Dice")
REFERENCE = "code 0"
"""The way that the others are tested against."""
MIN_SPACING_MM = 7.0
"""Slices of a clinical short axis lie 8 to 10 mm apart; closer ones are another question."""
BATCH = 11
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(before, after, gap_mm, truth) in [-1, 1] -> the slices between."""


@dataclass(frozen=True)
class Answered:
    """A question's slices as one way made them.

    Args:
        question: stack that was asked about.
        images: (N, Y, X) in [0, 1], the slices between.
    """

    question: StackQuestion
    images: np.ndarray


@dataclass(frozen=True)
class GateJudges:
    """What the figures are measured with.

    Args:
        extract: features of the segmenter.
        lpips: (truth, made) (N, Y, X) in [0, 1] -> the distance of every pair; None where its weights are not here.
        segmenter: labels the slices that were made.
    """

    extract: metrics.FeatureExtractor
    lpips: Callable[[np.ndarray, np.ndarray], list[float]] | None
    segmenter: Segmenter


def answered(asked: Sequence[StackQuestion], way: Way, *, autocast: torch.autocast) -> list[Answered]:
    """What a way makes of all questions."""
    made = []
    for question in asked:
        before, after = as_images(question.before), as_images(question.after)
        truth, gap_mm = as_images(question.truth), torch.full((len(question.truth),), 2 * question.spacing_mm)
        with torch.inference_mode(), autocast:
            images = way(before, after, gap_mm, truth).float()
        made.append(Answered(question, as_slices(images).clip(0, 1)))
    return made


def figures_of_slices(made: Sequence[Answered], judges: GateJudges) -> dict[str, np.ndarray]:
    """{figure: its value on every slice}, with the pooled features under "pooled" and "true_pooled"."""
    truth = np.concatenate([one.question.truth for one in made])
    images = np.concatenate([one.images for one in made]).astype(np.float32)
    seen, made_seen = (
        [_extracted(judges.extract, x) for x in np.array_split(side, -(-len(side) // BATCH))]
        for side in (truth, images)
    )
    found = {
        "psnr": metrics.psnr(truth, images),
        "ssim": metrics.ssim(truth, images),
        "sharpness": np.array(metrics.gradient_magnitude(images)) / np.mean(metrics.gradient_magnitude(truth)),
        "fd": np.concatenate([metrics.feature_distance(a, b) for a, b in zip(seen, made_seen, strict=True)]),
        "pooled": np.concatenate([metrics.pooled(x) for x in made_seen]),
        "true_pooled": np.concatenate([metrics.pooled(x) for x in seen]),
    }
    if judges.lpips is not None:
        found["lpips"] = np.asarray(judges.lpips(truth, images))
    return {name: np.asarray(values) for name, values in found.items()}


def _extracted(extract: metrics.FeatureExtractor, images: np.ndarray) -> list[torch.Tensor]:
    with torch.inference_mode():
        return extract(torch.from_numpy(np.ascontiguousarray(images))[:, None])


def dice_of(made: Iterable[Answered], segmenter: Segmenter) -> float:
    """Mean over labeled stacks of the structures' mean Dice, over all slices of a stack together."""
    found = []
    for one in made:
        if one.question.labels is not None:
            labels = segmented(segmenter, one.images)
            pairs = ((labels == label, one.question.labels == label) for label in one.question.annotated)
            found.append(metrics.known_mean([metrics.compare_masks(*pair, {})["dice"] for pair in pairs]))
    return float(np.mean(found))


def cells_of(
    made: Sequence[Answered],
    figures: Mapping[str, np.ndarray],
    judges: GateJudges,
    reference: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """A way's line of the table, one cell for every figure in `HEADS`; p in brackets where there is a reference.

    Args:
        made: slices of the way.
        figures: their `figures_of_slices`.
        judges: features, LPIPS and segmenter.
        reference: figures of the way that this one is tested against.
    """
    cells = []
    for name, digits in FIGURES.items():
        if name not in figures:
            cells.append("-")
            continue
        text = f"{figures[name].mean():.{digits}f}"
        if reference is not None and name in ("fd", "lpips"):
            p = metrics.paired_p(figures[name].tolist(), reference[name].tolist())
            text += f" ({'-' if p is None else f'{p:.0e}'})"
        cells.append(text)
    distance = f"{metrics.frechet_distance(figures['true_pooled'], figures['pooled']):.3f}"
    if reference is not None:
        patients = [one.question.patient for one in made for _ in one.question.truth]
        p = metrics.frechet_p(figures["true_pooled"], figures["pooled"], reference["pooled"], patients)
        distance += f" ({p:.0e})"
    return [*cells, distance, f"{dice_of(made, judges.segmenter):.3f}"]


def far_apart(asked: Iterable[StackQuestion]) -> list[StackQuestion]:
    """The questions about stacks whose slices lie as far apart as is common.

    Raises:
        UsageError: if there are none.
    """
    found = [question for question in asked if question.spacing_mm > MIN_SPACING_MM]
    if not found:
        raise UsageError(f"no stack that was asked for has slices over {MIN_SPACING_MM:g} mm apart; see --datasets")
    return found


def judges_of(options: Namespace) -> GateJudges:
    """What the options' models and files let the figures be measured with.

    Raises:
        WeightsError: if there is no segmenter.
    """
    segmenter = judging_segmenter(choose_device(options.device), options.models)
    extract = partial(features, network_of(judging_segmenter(choose_device("cpu"), options.models)))
    return GateJudges(extract, perceptual.measures_of(options).lpips, segmenter)


def is_of_denoiser(run: Path) -> bool:
    """Whether a run trained the denoiser of codes, and not the codec."""
    return run_config(run)["model"].get("codec") is not None


def ways_of(run: Path, *, draw_steps: Sequence[int], temperatures: Sequence[float]) -> dict[str, Way]:
    """The ways to a slice that a run offers, by name.

    Args:
        run: folder of a run of the codec, or of the denoiser of codes, which has all of the codec's ways.
        draw_steps: numbers of steps of the denoiser's draws.
        temperatures: how far draws go from their mean, 0 to 1.
    """
    settings, state = run_config(run)["model"], checkpoint_of(run)
    draws = is_of_denoiser(run)
    if draws:
        codec = build_codec(part_config(settings["codec"], "codec"), below(state, "codec."))
    else:
        codec = build_codec(settings["network"], below(state, "network."))
    whole = settings["codec" if draws else "motion"]
    motion = build_motion(part_config(whole, "motion"), below(state, "motion."))

    def moved(before: torch.Tensor, after: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        first, second = halfway(motion, before, after)
        return (first + second) / 2

    def textured(before: torch.Tensor, after: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return with_texture_of(before, after, moved(before, after).float())

    def coded(code_of: Callable[[torch.Tensor, Sight], torch.Tensor]) -> Way:
        def way(before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            sight = codec.see(*halfway(motion, before, after), gap_mm)
            return codec.decode(code_of(truth, sight), sight)

        return way

    def prior(scale: float) -> Callable[[torch.Tensor, Sight], torch.Tensor]:
        return lambda truth, _: scale * seeded(codec.code_shape(truth), 0) / codec.scale

    ways: dict[str, Way] = {
        "moved mean": moved,
        "motion and texture": textured,
        REFERENCE: coded(prior(0.0)),
        "drawn from the prior": coded(prior(1.0)),
        "half as wide": coded(prior(0.5)),
        "code of the truth": coded(codec.encode),
    }
    if not draws:
        return ways
    denoiser = Denoiser(config_from(DenoiserConfig, settings["network"]))
    denoiser.load_state_dict(below(state, "network."))
    return ways | _draws(denoiser, codec, motion, draw_steps=draw_steps, temperatures=temperatures)


def _draws(
    denoiser: Denoiser, codec: Codec, motion: Motion, *, draw_steps: Sequence[int], temperatures: Sequence[float]
) -> dict[str, Way]:
    """What the denoiser draws, by the number of steps and the temperature; one step is the mean of all draws."""
    model = CodedCaLID(codec, denoiser, motion).eval()

    def drawn(steps: int, temperature: float) -> Way:
        told = Departures(temperature=temperature)

        def way(before: torch.Tensor, after: torch.Tensor, gap_mm: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            z_T = seeded(codec.code_shape(truth), 0)
            return model.between(before, after, z_T, gap_mm, steps=steps, departures=told)

        return way

    return {
        f"{steps} steps, temperature {temperature:g}": drawn(steps, temperature)
        for steps in draw_steps
        for temperature in (temperatures if steps > 1 else [1.0])
    }


def seeded(shape: torch.Size, seed: int) -> torch.Tensor:
    """Noise that depends on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_set_arguments(parser, split="validation")
    run_folder = parser.add_mutually_exclusive_group(required=True)
    run_folder.add_argument("--codec", type=Path, help="run folder of the codec")
    run_folder.add_argument("--denoiser", type=Path, help="run folder of the denoiser of codes")
    parser.add_argument("--rows", nargs="+", help="only these rows")
    add_way_arguments(parser, draw_steps=[1, 2, 4], temperatures=[1.0])
    perceptual.add_arguments(parser)
    add_place_arguments(parser, table="gates")


def add_way_arguments(parser: ArgumentParser, *, draw_steps: list[int], temperatures: list[float]) -> None:
    """How many stacks are asked about, and by which draws where nothing is said."""
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N stacks of every group")
    parser.add_argument(
        "--draw-steps", nargs="+", type=int, default=draw_steps, metavar="N", help="DDIM steps of draws"
    )
    parser.add_argument(
        "--temperatures",
        nargs="+",
        type=float,
        default=temperatures,
        metavar="T",
        help="how far draws go from their mean, 1 is all of the way",
    )


def make(place: Place, asked: Sequence[StackQuestion], ways: Mapping[str, Way], judges: GateJudges) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        asked: questions that are put.
        ways: the ways that are judged, by name; those after `REFERENCE` are tested against it.
        judges: features, LPIPS and segmenter.
    """
    autocast, reference, lines = choose_device(place.device).autocast(), None, []
    for name, way in ways.items():
        made = answered(asked, way, autocast=autocast)
        figures = figures_of_slices(made, judges)
        lines.append([name, *cells_of(made, figures, judges, reference)])
        if name == REFERENCE:
            reference = figures
    write_table(place, "gates", "\n".join(markdown_table(["way", *HEADS], lines)), {"lines": lines})


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    ways = ways_of(options.denoiser or options.codec, draw_steps=options.draw_steps, temperatures=options.temperatures)
    if options.rows:
        ways = {name: way for name, way in ways.items() if name in options.rows}
    make(place_of(options), far_apart(asked_of(options)), ways, judges_of(options))
    return 0
