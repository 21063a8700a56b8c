"""MedFormer 2D: its blocks against arithmetic written down independently, and what the whole promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from calid.heart.medformer import (
    COMPACT,
    PAPER,
    BidirectionalAttention,
    MapFusion,
    MapGeneration,
    MedFormer,
    PatchMerging,
    features,
)
from tiny_networks import TINY_MEDFORMER
from torch import nn


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def test_bidirectional_attention_is_one_score_matrix_read_in_both_directions() -> None:
    width, heads = 6, 2
    block = BidirectionalAttention(width, heads=heads).double()
    block.out_pixels, block.out_tokens = nn.Identity(), nn.Identity()
    pixels, tokens = torch.randn(1, width, 4, 5).double(), torch.randn(1, width, 3, 3).double()
    new_pixels, new_tokens = block(pixels, tokens)
    of_pixels = block.of_pixels(pixels).detach().numpy()[0].reshape(2 * width, 20)
    of_tokens = block.of_tokens(tokens).detach().numpy()[0].reshape(2 * width, 9)
    d = width // heads
    for h in range(heads):
        rows = slice(h * d, (h + 1) * d)
        scores = of_pixels[:width][rows].T @ of_tokens[:width][rows] / np.sqrt(d)  # (pixels, tokens)
        expected_pixels = softmax(scores, axis=1) @ of_tokens[width:][rows].T
        expected_tokens = softmax(scores, axis=0).T @ of_pixels[width:][rows].T
        np.testing.assert_allclose(new_pixels[0, rows].detach().numpy().reshape(d, 20).T, expected_pixels, atol=1e-10)
        np.testing.assert_allclose(new_tokens[0, rows].detach().numpy().reshape(d, 9).T, expected_tokens, atol=1e-10)


def test_map_tokens_are_weighted_means_of_the_pixels_features() -> None:
    block = MapGeneration(4, map_size=3)
    block.features = nn.Identity()
    x = torch.randn(2, 4, 8, 8)
    tokens = block(x)
    assert tokens.shape == (2, 4, 3, 3)
    assert (tokens.amax(dim=(2, 3)) <= x.amax(dim=(2, 3))).all()
    assert (tokens.amin(dim=(2, 3)) >= x.amin(dim=(2, 3))).all()
    assert tokens.flatten(2).std(dim=2).min() > 0, "every token has weights of its own"


def test_patch_merging_sees_every_pixel_of_a_two_by_two_block() -> None:
    block = PatchMerging(1, 3).eval()
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image = torch.zeros(1, 1, 16, 16)
        baseline = block(image)
        image[0, 0, 8 + row, 6 + column] = 1
        changed = (block(image) - baseline).abs().sum(dim=1)[0] > 0
        rows, columns = np.nonzero(changed.numpy())
        assert changed[4, 3]
        assert abs(rows - 4).max() <= 1
        assert abs(columns - 3).max() <= 1


def test_map_fusion_lets_the_scales_see_each_other() -> None:
    fusion = MapFusion((4, 8), width=8, heads=2, depth=1).eval()
    maps = [torch.randn(1, 4, 3, 3), torch.randn(1, 8, 3, 3)]
    first = fusion(maps)
    second = fusion([maps[0], maps[1] + 1])
    assert [m.shape for m in first] == [m.shape for m in maps]
    assert (first[0] - second[0]).abs().max() > 1e-6


@pytest.mark.parametrize("shape", [(64, 96), (16, 16), (128, 112)])
def test_every_pixel_of_any_allowed_size_gets_class_scores(shape: tuple[int, int]) -> None:
    model = MedFormer(TINY_MEDFORMER).eval()
    logits, auxiliary = model.forward_with_auxiliary(torch.rand(2, 1, *shape))
    assert logits.shape == (2, 4, *shape)
    assert auxiliary.shape == (2, 4, shape[0] // 4, shape[1] // 4)


def test_a_size_the_network_would_have_to_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 16, got 60 x 64"):
        MedFormer(TINY_MEDFORMER)(torch.rand(1, 1, 60, 64))


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    model, images = MedFormer(COMPACT).eval(), torch.rand(3, 1, 32, 48)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_weight_takes_part_in_training() -> None:
    model = MedFormer(TINY_MEDFORMER)
    logits, auxiliary = model.forward_with_auxiliary(torch.rand(2, 1, 32, 32))
    (logits.square().mean() + auxiliary.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_what_the_network_says_of_a_pixel_depends_on_far_away_pixels() -> None:
    """The maps carry what a convolutional network of this depth could not: 240 pixels are far beyond its reach."""
    model = MedFormer(TINY_MEDFORMER).eval()
    image = torch.rand(1, 1, 16, 512, requires_grad=True)
    model(image)[0, :, 8, 8].sum().backward()
    assert image.grad[0, 0, :, 400:].abs().max() > 0


def test_the_compact_model_fits_the_eight_megabytes_of_the_repository() -> None:
    values = sum(value.numel() for value in MedFormer(COMPACT).state_dict().values())
    assert 2 * values < 8e6


def test_the_paper_widths_can_be_built_and_named() -> None:
    assert PAPER.widths == (64, 128, 256, 512, 256, 128, 64, 32)
    with torch.device("meta"):
        model = MedFormer(PAPER)
    assert model.down[3].merge.reduce[1].weight.shape[0] == 512
    assert len(model.down[2].attentions) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (32, 64)}, "widths needs 8 entries"),
        ({"heads": (1, 3, 8, 16, 8, 4, 1, 1)}, "no multiple of its 3 heads"),
        ({"attention_blocks": (0, 2, 2, 2, 2, 2, 2, 0)}, "receive no semantic map"),
        ({"fusion_heads": 7}, "fusion_width 512 is no multiple of 7 heads"),
    ],
)
def test_widths_that_cannot_work_are_refused_when_the_config_is_built(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PAPER, **change)


def test_encoder_features_come_at_five_scales_and_are_frozen() -> None:
    model = MedFormer(TINY_MEDFORMER).eval()
    images = torch.rand(2, 1, 48, 32)
    found = features(model, images)
    assert [tuple(f.shape[2:]) for f in found] == [(48, 32), (24, 16), (12, 8), (6, 4), (3, 2)]
    assert not any(f.requires_grad for f in found)
    other = features(model, images + 0.1 * torch.rand_like(images))
    assert all((a - b).abs().mean() > 0 for a, b in zip(found, other, strict=True))
