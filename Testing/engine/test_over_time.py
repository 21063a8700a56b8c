"""The 2D+T model: it is the 2D model until it has learned, joins frames as a cycle or not, and is found by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calid.errors import SettingsError, WeightsError
from calid.interpolator import load_interpolator
from calid.networks import Denoiser, TemporalConvolution, Timeline, folded
from calid.reconstruct import upsample, warm_interpolator
from calid.settings import Settings
from calid.stack import Stack
from calid.weights import MANIFEST_NAME, load_model
from phantoms import affine, rotation


@pytest.fixture(scope="module")
def cine_models(random_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained 2D model with untrained temporal layers on top."""
    from calid_training.export import write_model

    folder = Path(shutil.copytree(random_models, tmp_path_factory.mktemp("cine") / "models"))
    network, base = joined(random_models)
    tensors = {f"denoiser.temporal.{key}": value for key, value in network.temporal.state_dict().items()}
    config = {"denoiser": {"temporal": True}, "noise_share": 0.9}
    write_model(folder, "calid-2dt", tensors, config, license="none", base=base.name, base_sha256=base.sha256)
    return folder


def joined(models: Path, *, std: float = 0.05):
    """A temporal denoiser on the 2D one of a folder, its new layers random, and the 2D model's entry."""
    _, entry = load_model("calid-2d", models)
    still = load_interpolator_of(models).denoiser
    torch.manual_seed(1)
    network = Denoiser(replace(still.config, temporal=True)).eval()
    missing = network.load_state_dict(still.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("temporal.") for key in missing)
    for parameter in network.temporal.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network, entry


def load_interpolator_of(models: Path):
    from calid.device import choose_device

    return load_interpolator(choose_device("cpu"), models_folder=models)


def sequence(frames: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, times and images of two slices over time."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, frames, 32, 48, generator=rng) * 2 - 1
    return torch.randn(2, 4, frames, 8, 12, generator=rng), torch.tensor([30, 700]), images


def cine(frames: int = 8, slices: int = 3) -> Stack:
    voxels = np.random.default_rng(0).integers(0, 900, (frames, slices, 40, 56)).astype(np.int16)
    return Stack(voxels, affine((1.4, 1.4, 9.0), rotation(3), np.array([-20.0, 35.0, 7.0])), np.arange(frames) * 40.0)


def quick(**changes) -> Settings:
    return Settings(**({"factor": 2, "steps": 2, "device": "cpu"} | changes))


@pytest.mark.parametrize("anchored", [False, True])
@torch.inference_mode()
def test_an_untrained_temporal_model_is_the_2d_model_frame_by_frame(random_models, anchored):
    config = replace(load_interpolator_of(random_models).denoiser.config, anchored=anchored)
    torch.manual_seed(2)
    still, network = Denoiser(config).eval(), Denoiser(replace(config, temporal=True)).eval()
    for parameter in still.parameters():  # zero convolutions would hide what does not fit
        torch.nn.init.normal_(parameter, std=0.05)
    network.load_state_dict(still.state_dict(), strict=False)
    z, t, images = sequence()
    sides = z.roll(1, dims=0), z + 1
    together = network(z, t, network.condition(images, -images, sides), is_periodic=True)
    frames = []
    for i in range(z.shape[2]):
        image, latents = images[:, :, i], (sides[0][:, :, i], sides[1][:, :, i])
        frames.append(still(z[:, :, i], t, still.condition(image, -image, latents)))
    torch.testing.assert_close(together, torch.stack(frames, dim=2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("is_periodic", "padding"), [(True, "circular"), (False, "replicate")])
def test_a_temporal_convolution_is_a_3d_convolution_along_time(is_periodic, padding):
    torch.manual_seed(0)
    layer = TemporalConvolution(4)
    torch.nn.init.normal_(layer.mix.weight)
    torch.nn.init.normal_(layer.mix.bias)
    oracle = torch.nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0), padding_mode=padding)
    oracle.weight.data = layer.mix.weight.data.reshape(4, 3, 4, 1, 1).transpose(1, 2)
    oracle.bias.data = layer.mix.bias.data
    x = torch.randn(2, 4, 5, 3, 3)
    made = layer(folded(x), Timeline(5, is_periodic))
    torch.testing.assert_close(made, folded(x + oracle(x)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_frames_of_a_cycle_have_no_beginning(random_models):
    network, _ = joined(random_models)
    z, t, images = sequence()

    def run(shift: int, is_periodic: bool) -> torch.Tensor:
        turned = (x.roll(shift, dims=2) for x in (z, images))
        latents, slices = turned
        made = network(latents, t, network.condition(slices, -slices), is_periodic=is_periodic)
        return made.roll(-shift, dims=2)

    torch.testing.assert_close(run(2, True), run(0, True), rtol=1e-4, atol=1e-4)
    assert (run(2, False) - run(0, False)).abs().max() > 1e-2


@torch.inference_mode()
def test_frames_see_each_other_and_sequences_do_not(random_models):
    network, _ = joined(random_models)
    z, t, images = sequence()
    z_c = network.condition(images, -images)
    changed = z.clone()
    changed[0, :, 3] += 1
    difference = (network(changed, t, z_c) - network(z, t, z_c)).abs().amax(dim=(1, 3, 4))
    assert (difference[0, [2, 4]] > 1e-3).all()
    assert difference[0, 3] == difference[0].max()
    assert difference[1].max() < 1e-5


def test_a_cine_is_made_by_the_2dt_model_and_says_so(cine_models):
    sparse = cine()
    shown = []
    dense = upsample(
        sparse,
        quick(factor=4),
        models_folder=cine_models,
        on_frame=lambda index, frame: shown.append((index, frame.frame_times_ms[0])),
    ).stack
    np.testing.assert_array_equal(dense.voxels[:, ::4], sparse.voxels)
    assert shown == [(index, 40.0 * index) for index in range(8)]
    facts = dense.provenance
    assert facts["model"] == "calid-2dt"
    assert "8 frames" in facts["model_choice"]
    assert facts["model_base_sha256"] == load_model("calid-2d", cine_models)[1].sha256


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_single_phases_are_made_by_the_2d_model(cine_models, frames):
    assert upsample(cine(frames), quick(), models_folder=cine_models).stack.provenance["model"] == "calid-2d"


def test_the_choice_can_be_overridden(cine_models, random_models):
    asked = upsample(cine(), quick(model="2d"), models_folder=cine_models).stack
    alone = upsample(cine(), quick(), models_folder=random_models).stack
    np.testing.assert_array_equal(asked.voxels, alone.voxels)
    assert "not installed" in alone.provenance["model_choice"]
    one = upsample(cine(frames=1), quick(model="2d+t"), models_folder=cine_models).stack
    assert (one.provenance["model"], one.provenance["is_periodic"]) == ("calid-2dt", False)
    with pytest.raises(WeightsError, match="calid-2dt"):
        upsample(cine(), quick(model="2d+t"), models_folder=random_models)
    with pytest.raises(SettingsError, match="2d\\+t"):
        quick(model="3d")


def test_the_command_line_takes_the_model(cine_models, tmp_path):
    from calid.__main__ import main
    from calid.files import read_stack, write_stack

    write_stack(cine(), tmp_path / "in.nrrd")
    options = ["--factor", "2", "--steps", "1", "--models", str(cine_models), "--device", "cpu"]
    for model, name in (("auto", "calid-2dt"), ("2d", "calid-2d")):
        out = tmp_path / f"{name}.nrrd"
        assert main(["upsample", str(tmp_path / "in.nrrd"), str(out), "--model", model, *options]) == 0
        assert read_stack(out).provenance["model"] == name


def test_layers_for_another_2d_model_are_refused(cine_models, tmp_path):
    folder = Path(shutil.copytree(cine_models, tmp_path / "models"))
    manifest = folder / MANIFEST_NAME
    record = json.loads(manifest.read_text())
    next(model for model in record["models"] if model["name"] == "calid-2dt")["base_sha256"] = "0" * 64
    manifest.write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="same release") as caught:
        load_model("calid-2dt", folder)
    assert caught.value.code == "other-base"


def test_a_sequence_that_does_not_fit_is_made_in_windows(cine_models, monkeypatch):
    whole, lengths = Denoiser.forward, []

    def forward(self, z_t, t, z_c, **options):
        lengths.append(z_t.shape[2])
        if z_t.shape[2] > 5 or len(z_t) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, z_t, t, z_c, **options)

    sparse, shown = cine(frames=11), []
    reference = upsample(sparse, quick(), models_folder=cine_models).stack.voxels
    warm_interpolator.cache_clear()
    monkeypatch.setattr(Denoiser, "forward", forward)
    made = upsample(
        sparse, quick(), models_folder=cine_models, on_frame=lambda index, _: shown.append((index, len(lengths)))
    ).stack.voxels
    assert max(lengths) == 11
    assert [index for index, _ in shown] == list(range(11))
    assert shown[0][1] < shown[-1][1]  # frames appear window by window
    np.testing.assert_array_equal(made[:, ::2], sparse.voxels)
    assert np.abs(made.astype(float) - reference).mean() < 0.5 * reference.std()


def test_frames_share_noise_as_far_as_the_model_wants(cine_models):
    from calid.bisection import plan_bisection
    from calid.cycle import window_at
    from calid.generation import Generation
    from calid.preparation import plan_preparation
    from calid.progress import Watch

    stack, settings = cine(frames=6), quick(method="calid")
    interpolator = load_interpolator_of(cine_models)
    plan, preparation = plan_bisection(3, 2), plan_preparation(stack)
    acquired = torch.zeros(6, 3, 1, *preparation.padded_shape)

    def starts(share: float) -> np.ndarray:
        model = replace(interpolator, noise_share=share)
        generation = Generation(model, preparation, plan, settings, 1, Watch(1))
        window = window_at(0, num_frames=6, size=6)
        return generation._starts(acquired, window).flatten(1).numpy()

    for share, measured in ((1.0, 1.0), (0.6, 0.6), (0.0, 0.0)):
        correlation = np.corrcoef(starts(share))
        assert correlation[np.triu_indices(6, 1)].mean() == pytest.approx(measured, abs=0.05)
        assert starts(share).std() == pytest.approx(1.0, abs=0.05)


def test_the_estimate_names_the_model_and_counts_all_frames(cine_models):
    from calid.run import estimate

    short, long = (estimate(cine(frames), quick(steps=20), models_folder=cine_models) for frames in (8, 56))
    assert short["model"] == "calid-2dt"
    assert long["seconds"] > 3 * short["seconds"]
    assert long["memory_bytes"] > short["memory_bytes"]
    assert estimate(cine(1), quick(), models_folder=cine_models, num_frames=8)["model"] == "calid-2dt"
