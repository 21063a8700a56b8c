"""The codec of what neighbors do not show, and weights in 8 bits."""

from __future__ import annotations

import pytest
import torch
from calid.method.codec import Codec, CodecConfig, without_cells
from calid.method.weights import SCALE, packed, unpacked

SMALL = CodecConfig(channels=(8, 16, 16), code_channels=3, num_res_blocks=(1, 1, 1), norm_num_groups=4)


def images(seed: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 1, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def with_random_weights(codec: Codec) -> Codec:
    generator = torch.Generator().manual_seed(0)
    for parameter in codec.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return codec.eval()


@pytest.fixture
def codec() -> Codec:
    return with_random_weights(Codec(SMALL))


@pytest.fixture
def gaps() -> torch.Tensor:
    return torch.tensor([20.0, 10.0])


def test_an_untrained_decoder_answers_with_the_mean_of_both_neighbors(gaps):
    codec = Codec(SMALL)
    before, after = images(1), images(2)
    sight = codec.see(before, after, gaps)
    code = torch.randn(codec.code_shape(before))
    torch.testing.assert_close(codec.decode(code, sight), (before + after) / 2)


def test_a_code_has_an_eighth_of_the_image_s_size(codec, gaps):
    sight = codec.see(images(1), images(2), gaps)
    assert codec.encode(images(3), sight).shape == codec.code_shape(images(3)) == (2, 3, 4, 6)


def test_the_slice_between_depends_on_its_code_and_on_the_gap(codec, gaps):
    before, after = images(1), images(2)
    sight = codec.see(before, after, gaps)
    zero, drawn = torch.zeros(codec.code_shape(before)), torch.randn(codec.code_shape(before))
    made = codec.decode(drawn, sight)
    assert not torch.allclose(made, codec.decode(zero, sight))
    assert not torch.allclose(made, codec.decode(drawn, codec.see(before, after, gaps.flip(0))))


def test_features_do_not_tell_which_neighbor_came_first(codec, gaps):
    one, other = (codec.see(*pair, gaps).features for pair in ((images(1), images(2)), (images(2), images(1))))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_every_slice_is_made_by_itself(codec, gaps):
    before, after = images(1), images(2)
    code = torch.randn(codec.code_shape(before))
    together = codec.decode(code, codec.see(before, after, gaps))
    alone = codec.decode(code[1:], codec.see(before[1:], after[1:], gaps[1:]))
    torch.testing.assert_close(together[1:], alone, atol=1e-3, rtol=1e-3)


def test_a_code_is_measured_in_its_channels_deviations(codec, gaps):
    sight = codec.see(images(1), images(2), gaps)
    before = codec.encode(images(3), sight)
    made = codec.decode(before, sight)
    codec.scale.copy_(torch.tensor([0.5, 2.0, 4.0]).reshape(1, 3, 1, 1))
    after = codec.encode(images(3), sight)
    torch.testing.assert_close(after * codec.scale, before)
    torch.testing.assert_close(codec.decode(after, sight), made)


def test_weights_in_8_bits_err_by_at_most_half_a_step_of_their_output():
    weight, bias = torch.randn(64, 32, 3, 3), torch.randn(64)
    stored = packed({"layer.weight": weight, "layer.bias": bias})
    assert {key: value.dtype for key, value in stored.items()} == {
        "layer.weight": torch.int8,
        "layer.weight" + SCALE: torch.float32,
        "layer.bias": torch.float16,
    }
    found = unpacked(stored)
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert ((found["layer.weight"] - weight).abs() <= largest / 254 * 1.001).all()
    torch.testing.assert_close(found["layer.bias"], bias.half().float())
    assert set(found) == {"layer.weight", "layer.bias"}


def test_unpacking_multiplies_and_does_nothing_else():
    stored = {
        "w": torch.tensor([[-127, 0], [5, 127]], dtype=torch.int8),
        "w" + SCALE: torch.tensor([0.5, 2.0]),
        "n": torch.tensor([7]),
    }
    found = unpacked(stored)
    assert found["w"].tolist() == [[-63.5, 0.0], [10.0, 254.0]]
    assert found["n"].dtype == torch.int64


@pytest.mark.parametrize("axis", [-2, -1])
def test_what_alternates_from_pixel_to_pixel_goes_and_coarser_detail_stays(axis):
    place = torch.arange(64, dtype=torch.float32).reshape((-1, 1) if axis == -2 else (1, -1))
    wave = torch.cos(torch.pi * place / 3).expand(1, 1, 64, 64)  # six pixels a period
    cells = torch.cos(torch.pi * place).expand(1, 1, 64, 64)
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    torch.testing.assert_close(without_cells(wave + cells)[inside], wave[inside], atol=0.02, rtol=0)
    torch.testing.assert_close(without_cells(wave)[inside], wave[inside], atol=0.02, rtol=0)
