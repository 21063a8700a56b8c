"""DeepRecon: its StyleGAN2 against explicit formulas, its codes against known ones, its training from the command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
import torch.nn.functional as F
import yaml
from calid.heart.medformer import COMPACT, MedFormer
from calid.heart.segmentation import Segmenter
from calid.method.weights import config_from
from calid.run.device import Device
from calid_benchmark import rivals
from calid_benchmark.rivals.deeprecon import DeepRecon, Optimization, SegmenterDistance, embed, mosaic
from calid_benchmark.rivals.deeprecon_network import DeepReconNetwork, EncoderConfig
from calid_benchmark.rivals.deeprecon_stage import (
    DeepReconStage,
    LabeledCase,
    completed_labels,
    labeled_batch,
    labeled_cases,
)
from calid_benchmark.rivals.stylegan import (
    Discriminator,
    Generator,
    GeneratorConfig,
    ModulatedConv,
    batch_deviation,
)
from calid_benchmark.rivals.training import CONFIGS
from calid_training.prepare import AnyCase, IndexEntry, PreparedCase, load_cases
from calid_training.train import main
from training_runs import averaging, scalars, train

EXACT = Device(torch.device("cpu"), "in float32", None)
TINY = GeneratorConfig(channels=(16, 16, 16, 8), style_width=16, mapping_layers=2)
TINY_ENCODER = EncoderConfig(channels=(8, 16, 16), pyramid_channels=8, groups=4)


@pytest.fixture(scope="module")
def network() -> DeepReconNetwork:
    torch.manual_seed(0)
    return DeepReconNetwork(TINY, TINY_ENCODER).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """Random weights: its labels mean nothing, its features tell images apart."""
    torch.manual_seed(0)
    return Segmenter(MedFormer(COMPACT).eval(), EXACT)


def random_slices(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size)).astype(np.float32)


# -- StyleGAN2 ---------------------------------------------------------------------------------------------------------


def test_a_modulated_convolution_is_a_convolution_with_weights_of_its_own_for_every_image():
    torch.manual_seed(0)
    layer = ModulatedConv(3, 5, style_width=7)
    x, w = torch.randn(2, 3, 6, 8), torch.randn(2, 7)
    made = layer(x, w)
    for image, style, result in zip(x, layer.affine(w), made, strict=True):
        weights = torch.empty(5, 3, 3, 3)
        for out in range(5):
            for channel in range(3):
                weights[out, channel] = style[channel] * layer.weight[out, channel]
            weights[out] /= weights[out].square().sum().sqrt()
        assert torch.allclose(result, F.conv2d(image[None], weights, padding=1)[0], atol=1e-5)


def test_demodulation_gives_unit_variance_whatever_the_style():
    torch.manual_seed(0)
    layer = ModulatedConv(32, 64, style_width=8)
    deviations = [layer(torch.randn(4, 32, 32, 32), scale * torch.randn(4, 8)).std() for scale in (0.1, 1, 30)]
    assert [x.item() for x in deviations] == pytest.approx([1, 1, 1], abs=0.06)


def test_doubling_is_zeros_between_the_pixels_the_convolution_and_the_filter():
    torch.manual_seed(0)
    layer = ModulatedConv(2, 3, style_width=4)
    x = torch.randn(1, 2, 5, 7)
    spread = torch.zeros(1, 2, 11, 15)
    spread[:, :, 1::2, 1::2] = x  # with a border of one pixel, as a transposed convolution sees it
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    sharp = F.conv2d(spread, layer.weight.flip(2, 3) * layer.gain, padding=1)
    expected = F.conv2d(sharp.transpose(0, 1), torch.outer(taps, taps)[None, None], padding=1).transpose(0, 1)
    assert torch.allclose(layer.convolved(x, doubles=True), expected, atol=1e-5)


def test_doubling_keeps_a_flat_picture_flat_and_as_bright():
    layer = ModulatedConv(1, 1, style_width=4)
    layer.weight.data = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1)) / layer.gain
    made = layer.convolved(torch.ones(1, 1, 8, 8), doubles=True)
    assert torch.allclose(made[:, :, 2:-2, 2:-2], torch.ones(1), atol=1e-6)


def test_the_papers_generator_makes_a_picture_and_four_labels_of_twelve_codes():
    generator = Generator(GeneratorConfig()).requires_grad_(False)
    images, scores = generator(torch.randn(1, 12, 512))
    assert generator.config.style_count == 12
    assert images.shape == (1, 1, 128, 128)
    assert scores.shape == (1, 4, 128, 128)


def test_every_code_changes_the_picture_and_coarse_ones_change_it_everywhere(network):
    codes = torch.randn(1, 8, 16)
    reference, _ = network.generator(codes)
    changes = []
    for index in range(8):
        other = codes.clone()
        other[:, index] += torch.randn(16)
        changes.append((network.generator(other)[0] - reference).abs())
    assert all(change.mean() > 1e-3 for change in changes)
    assert (changes[0] > 1e-4).float().mean() > 0.9


def test_pictures_differ_by_their_codes_alone_unless_noise_is_drawn():
    generator = Generator(TINY)
    for layer in generator.layers:
        layer.noise_strength.data.fill_(0.3)
    codes = torch.randn(1, 8, 16).repeat(2, 1, 1)
    fixed, _ = generator(codes)
    drawn, _ = generator(codes, random_noise=True)
    assert torch.equal(fixed[0], fixed[1])
    assert (drawn[0] - drawn[1]).abs().mean() > 0.01


def test_the_discriminator_sees_when_all_pictures_are_the_same():
    same, different = torch.ones(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    assert batch_deviation(same).max() < 1e-3
    assert batch_deviation(different).mean() == pytest.approx(float(different.std(dim=0, unbiased=False).mean()))
    assert Discriminator(TINY.channels)(torch.randn(6, 1, 32, 32)).shape == (6,)


# -- codes -------------------------------------------------------------------------------------------------------------


def test_windows_cover_the_image():
    for rows, columns in ((128, 128), (32, 32), (100, 49)):
        seen = np.zeros((rows, columns), bool)
        for place in mosaic(rows, columns):
            assert seen[place].shape == (min(rows, 48), min(columns, 48))
            seen[place] = True
        assert seen.all()


def test_optimization_recovers_a_picture_of_the_same_generator(network, segmenter):
    """A code exists that makes the picture: 200 steps from the encoder's (untrained) answer come close to it."""
    torch.manual_seed(1)
    hidden = network.average + 0.5 * torch.randn(2, 8, 16)
    images, scores = network.generator(hidden)
    labels, perceptual = scores.argmax(dim=1, keepdim=True), SegmenterDistance(segmenter.model)

    def error(codes: torch.Tensor) -> torch.Tensor:
        return (network.generator(codes)[0] - images).square().mean(dim=(1, 2, 3))

    def found(steps: int) -> torch.Tensor:
        return embed(network, images, labels, perceptual, settings=Optimization(steps=steps, rate=0.05))

    def agreement(codes: torch.Tensor) -> float:
        return float((network.generator(codes)[1].argmax(dim=1, keepdim=True) == labels).float().mean())

    start, end = found(0), found(200)
    assert (error(end) < 0.03 * error(start)).all()
    assert agreement(end) > max(0.85, agreement(start) + 0.1)


def test_the_segmentation_loss_moves_the_labels(network, segmenter):
    torch.manual_seed(2)
    images, scores = network.generator(0.5 * torch.randn(1, 8, 16))
    wanted, perceptual = scores.argmin(dim=1, keepdim=True), SegmenterDistance(segmenter.model)

    def agreement(weight: float) -> float:
        settings = Optimization(steps=80, rate=0.05, segmentation_weight=weight)
        codes = embed(network, images, wanted, perceptual, settings=settings)
        return float((network.generator(codes)[1].argmax(dim=1, keepdim=True) == wanted).float().mean())

    assert agreement(5.0) > agreement(0.0) + 0.2


def test_the_rate_falls_to_zero_over_the_last_quarter():
    settings = Optimization(steps=1000, rate=0.02)
    assert settings.rate_at(0) == settings.rate_at(750) == 0.02
    assert settings.rate_at(875) == pytest.approx(0.01)
    assert settings.rate_at(999) < 1e-6


def test_a_slice_among_others_gets_the_code_that_it_gets_alone(network, segmenter):
    system = DeepRecon(network, segmenter, EXACT, Optimization(steps=12))
    slices = random_slices(3)
    alone = torch.cat([system.codes(image[None]) for image in slices])
    assert torch.allclose(system.codes(slices), alone, atol=1e-4)


def test_between_two_equal_slices_lies_the_slice_as_the_generator_knows_it(network, segmenter):
    system = DeepRecon(network, segmenter, EXACT, Optimization(steps=5))
    slices = random_slices(2)
    pictures, labels = system.pictures_and_labels_between(slices, slices)
    known, known_labels = system.synthesized(system.codes(slices), (32, 32))
    np.testing.assert_allclose(pictures, known, atol=1e-5)
    np.testing.assert_array_equal(labels, known_labels)
    assert labels.max() <= 3
    np.testing.assert_array_equal(system.between(slices, slices), pictures)


class Calls:
    """Counts the codes that pass through the generator."""

    def __init__(self, network: DeepReconNetwork) -> None:
        self.codes = 0
        self.handle = network.generator.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        del module, output
        self.codes += len(inputs[0])


@pytest.mark.parametrize("naive", [False, True])
def test_evaluations_are_those_that_a_whole_heart_takes(network, segmenter, naive):
    system, calls = DeepRecon(network, segmenter, EXACT, Optimization(steps=3)), Calls(network)
    heart = random_slices(3)
    dense = system.whole_heart(heart, 4, naive=naive)
    calls.handle.remove()
    assert calls.codes == system.evaluations(3, 4, naive=naive)
    assert dense.shape == (9, 32, 32)
    np.testing.assert_array_equal(dense[::4], heart)


def test_embedding_once_or_for_every_new_slice_makes_the_same_heart(network, segmenter):
    system, heart = DeepRecon(network, segmenter, EXACT, Optimization(steps=4)), random_slices(3)
    once, naive = (system.whole_heart(heart, 4, naive=naive) for naive in (False, True))
    np.testing.assert_allclose(once, naive, atol=1e-3)


def test_slices_of_another_size_come_back_in_their_size(network, segmenter):
    system = DeepRecon(network, segmenter, EXACT, Optimization(steps=1))
    assert system.between(*random_slices(2, 64)[:, None]).shape == (1, 64, 64)


def test_our_size_fits_its_file():
    network = rivals.untrained("DeepRecon", paper=False, device="cpu").network
    assert 2 * sum(tensor.numel() for tensor in network.state_dict().values()) < 1.58e6


# -- training ----------------------------------------------------------------------------------------------------------


def test_what_experts_did_not_draw_is_predicted():
    entry = IndexEntry("set", "1", "ED", "train", "", (1, 1, 8), (1, 3, 1, 4), (1,), "")
    drawn = np.array([[[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[0, 1, 0, 0]]]], np.uint8)
    predicted = np.array([[[[2, 1, 1, 3]], [[1, 2, 2, 0]], [[3, 3, 2, 0]]]], np.uint8)
    case = PreparedCase(entry, np.zeros((1, 3, 1, 4), np.float16), drawn)
    expected = [[[1, 1, 0, 3]], [[1, 2, 2, 0]], [[3, 1, 2, 0]]]  # the second slice has no contour: predicted whole
    np.testing.assert_array_equal(completed_labels(case, predicted)[0], expected)
    complete = replace(case, entry=replace(entry, annotated=(1, 2, 3)))
    np.testing.assert_array_equal(completed_labels(complete, predicted), drawn)
    np.testing.assert_array_equal(completed_labels(replace(case, labels=None), predicted), predicted)


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    return phantom_set(3, still=True)


def test_predictions_are_made_once_and_kept(phantom_set, segmenter, tmp_path):
    beating = phantom_set(3)

    def labels(segmenter: Segmenter | None) -> list[np.ndarray]:
        cases = load_cases(beating, datasets=["phantom"], split="validation")
        return [found.labels for found in labeled_cases(unlabeled(cases), segmenter, tmp_path)]

    made = labels(segmenter)
    assert made[0].shape == next(load_cases(beating, datasets=["phantom"], split="validation")).images.shape
    for first, again in zip(made, labels(None), strict=True):  # without anyone who could predict
        np.testing.assert_array_equal(first, again)


def unlabeled(cases: Iterable[AnyCase]) -> Iterator[PreparedCase]:
    return (PreparedCase(case.entry, case.images, None) for case in cases)


def test_labels_are_cut_like_their_slices(hearts):
    case = next(load_cases(hearts, datasets=["phantom"], split="train"))
    labels = np.repeat(case.labels[:, 5:6], case.labels.shape[1], axis=1)
    source = LabeledCase(case=replace_images(case, 5), labels=labels, center=np.array([50.0, 50.0]))
    batch = labeled_batch(np.random.default_rng(0), [source], 4, 96)
    assert batch["images"].shape == batch["labels"].shape == (4, 1, 96, 96)
    blood, muscle = (batch["images"][batch["labels"] == label].mean() for label in (1, 2))
    assert blood > muscle + 0.4


def replace_images(case: AnyCase, index: int) -> PreparedCase:
    """The case with one slice everywhere."""
    images = np.repeat(case.images[:, index : index + 1], case.images.shape[1], axis=1)
    return PreparedCase(case.entry, images, case.labels)


class Slope(torch.nn.Module):
    """A discriminator whose gradient is known."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * images.sum(dim=(1, 2, 3))


def test_the_gradient_penalty_of_a_linear_score_is_its_squared_slope():
    stage = DeepReconStage(TINY, TINY_ENCODER)
    stage.discriminator = Slope()
    assert stage.gradient_penalty(torch.randn(2, 1, 4, 5)) == pytest.approx(9 * 20)


def test_mixed_codes_are_coarse_ones_of_one_picture_and_fine_ones_of_another():
    torch.manual_seed(0)
    codes = DeepReconStage(TINY, TINY_ENCODER).sampled_codes(64)
    steps = (codes[:, 1:] != codes[:, :-1]).all(dim=2).sum(dim=1)
    assert set(steps.tolist()) == {0, 1}
    assert 0.7 < steps.float().mean() < 1.0


def test_deeprecon_learns_and_ships(hearts, tmp_path):
    run, models, small = tmp_path / "run", tmp_path / "models", tmp_path / "small.yaml"
    models.mkdir()
    sizes = {
        "generator": {"channels": [16, 16, 16, 8], "style_width": 16, "mapping_layers": 2},
        "encoder": {"channels": [8, 16, 16], "pyramid_channels": 8, "groups": 4},
    }
    small.write_text(yaml.safe_dump({"model": sizes}))
    options = [
        *("--config", str(small), *averaging(tmp_path, 0.5), "--data.predictions", str(tmp_path / "predictions")),
        *("--data.batch_size", "4", "--data.batches", "40", "--data.validation_batches", "2"),
        *("--trainer.log_every_n_steps", "1", "--model.learning_rate", "4e-3", "--model.adversarial_start", "32"),
    ]
    train("deeprecon", hearts, run, options, epochs=2)
    l2, segmentation = (scalars(run, f"train/{name}") for name in ("l2", "segmentation"))
    assert np.mean(l2[-10:]) < 0.7 * np.mean(l2[:5])
    assert segmentation[-1] < segmentation[0]
    assert len(scalars(run, "train/discriminator")) == 80 - 32
    assert len(set(scalars(run, "train/r1"))) == 4  # lazily: step 32 of the first epoch, 0, 16 and 32 of the second
    export = ["--run", str(run), "--models", str(models), "--name", "DeepRecon", "--trained-on", "phantoms"]
    export += ["--license", "CC-BY-NC-SA-4.0"]
    assert main(["export", "baseline", *export]) == 0
    entry = json.loads((models / "models.json").read_text())["models"][0]
    assert entry["config"]["generator"]["channels"] == [16, 16, 16, 8]
    system = rivals.load("DeepRecon", models, steps=2, device="cpu")
    assert (system.name, system.settings.steps) == ("DeepRecon", 2)
    assert system.between(*random_slices(2)[:, None]).shape == (1, 32, 32)


def test_the_papers_config_is_the_papers_size():
    model = yaml.safe_load((CONFIGS / "paper-deeprecon.yaml").read_text())["model"]
    assert config_from(GeneratorConfig, model["generator"]) == GeneratorConfig()
    assert config_from(EncoderConfig, model["encoder"]) == EncoderConfig()


def test_untrained_systems_have_the_size_they_are_asked_for():
    paper = rivals.untrained("DeepRecon", paper=True, steps=7, device="cpu")
    ours = rivals.untrained("DeepRecon", paper=False, device="cpu")
    count = {name: sum(p.numel() for p in x.network.parameters()) for name, x in (("paper", paper), ("ours", ours))}
    assert count["paper"] > 25e6
    assert count["ours"] < 0.8e6
    assert (paper.settings.steps, ours.settings.steps) == (7, 1000)
    assert paper.network.encode(torch.zeros(1, 1, 128, 128)).shape == (1, 12, 512)
