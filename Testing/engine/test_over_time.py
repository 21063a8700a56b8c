"""The 2D+T model: it is the 2D model until it has learned, joins frames as a cycle or not, and is found by itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calid.errors import ResourceError, SettingsError, WeightsError
from calid.method.bisection import plan_bisection
from calid.method.diffusion import sample
from calid.method.model import PAPER
from calid.method.networks import (
    Autoencoder,
    AutoencoderConfig,
    Denoiser,
    DenoiserConfig,
    LatentSpace,
    TemporalConvolution,
    Timeline,
    folded,
)
from calid.method.weights import MANIFEST_NAME, load_model
from calid.run.batches import load_interpolator
from calid.run.device import Device, choose_device
from calid.run.generation import Generation
from calid.run.preparation import plan_preparation
from calid.run.progress import Watch
from calid.run.reconstruct import plan_run, upsample
from calid.run.settings import MODES, Settings
from calid.run.windows import CONTEXT_FRAMES, WINDOW_FRAMES, window_at
from calid.stack import Stack
from phantoms import affine, rotation


@pytest.fixture(scope="module")
def cine_models(random_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained 2D model with untrained temporal layers on top."""
    from calid_training.weight_files import write_model

    folder = Path(shutil.copytree(random_models, tmp_path_factory.mktemp("cine") / "models"))
    network, base = joined(random_models)
    tensors = {f"denoiser.temporal.{key}": value for key, value in network.temporal.state_dict().items()}
    config = {"denoiser": {"temporal": True}, "noise_share": 0.9}
    write_model(folder, "calid-2dt", tensors, config, license="none", base=base.name, base_sha256=base.sha256)
    return folder


def joined(models: Path, *, std: float = 0.05):
    """A temporal denoiser on the 2D one of a folder, its new layers random, and the 2D model's entry."""
    _, entry = load_model("calid-2d", models)
    still = load_interpolator_of(models).model.denoiser
    torch.manual_seed(1)
    network = Denoiser(replace(still.config, temporal=True)).eval()
    missing = network.load_state_dict(still.state_dict(), strict=False).missing_keys
    assert missing
    assert all(key.startswith("temporal.") for key in missing)
    for parameter in network.temporal.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return network, entry


@pytest.fixture(scope="module")
def papers_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the paper's form: 3D convolutions throughout, no motion, no strength."""
    from calid_training.weight_files import write_model

    coding = AutoencoderConfig(spatial_dims=3, channels=(8, 8, 8), latent_channels=2, norm_num_groups=8)
    attention = (False, False, True)
    config = DenoiserConfig(
        spatial_dims=3,
        latent_channels=2,
        channels=(16, 16, 32),
        attention=attention,
        condition_attention=attention,
        tau1_channels=(16, 16, 16),
        num_res_blocks=1,
        head_channels=16,
        norm_num_groups=16,
        prediction="epsilon",
    )
    torch.manual_seed(3)
    space = LatentSpace(Autoencoder(coding), mean=torch.zeros(2), std=torch.ones(2))
    network = Denoiser(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    tensors = {f"denoiser.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"latent_space.{key}": value for key, value in space.state_dict().items()}
    folder = tmp_path_factory.mktemp("papers")
    facts = {"autoencoder": asdict(coding), "denoiser": asdict(config), "noise_share": 0.0}
    write_model(folder, "calid-2dt", tensors, facts, license="none")
    return folder


def load_interpolator_of(models: Path, name: str = "calid-2d"):
    return load_interpolator(choose_device("cpu"), name=name, models_folder=models)


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
    config = replace(load_interpolator_of(random_models).model.denoiser.config, anchored=anchored)
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
    from calid.images.files import read_stack, write_stack

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


@pytest.fixture
def seen_together(monkeypatch) -> list[tuple[int, int]]:
    """(sequences, frames) of every call of the denoiser."""
    whole, calls = Denoiser.forward, []

    def forward(self, z_t, t, z_c, **options):
        calls.append((len(z_t), z_t.shape[2]))
        return whole(self, z_t, t, z_c, **options)

    monkeypatch.setattr(Denoiser, "forward", forward)
    return calls


def test_free_memory_does_not_decide_which_frames_see_each_other(cine_models, seen_together, monkeypatch):
    sparse, settings = cine(frames=11), quick(factor=4)
    made, works = [], []
    for free_bytes in (10**12, 1):
        monkeypatch.setattr(Device, "free_bytes", lambda _, free_bytes=free_bytes: free_bytes)
        works.append(plan_run(sparse, settings, models_folder=cine_models).work)
        made.append(upsample(sparse, settings, models_folder=cine_models).stack.voxels)
    assert {frames for _, frames in seen_together} == {11}
    assert {sequences for sequences, _ in seen_together} > {1}  # a batch was cut where memory was short
    assert works[0] == works[1]
    np.testing.assert_allclose(*made, atol=1)  # batches of other sizes round differently, no more


def test_a_cine_longer_than_a_window_is_made_in_windows_of_its_length(cine_models, seen_together):
    sparse, shown = cine(frames=WINDOW_FRAMES + 3), []
    asked = quick(steps=1, method="calid")

    def show(index: int, _: Stack) -> None:
        shown.append((index, len(seen_together)))

    made = upsample(sparse, asked, models_folder=cine_models, on_frame=show).stack.voxels
    lengths = [frames for _, frames in seen_together]
    assert lengths[0] == max(lengths) == WINDOW_FRAMES - CONTEXT_FRAMES  # nothing is before the first
    assert [index for index, _ in shown] == list(range(len(sparse.voxels)))
    assert shown[0][1] < shown[-1][1]  # frames appear window by window
    np.testing.assert_array_equal(made[:, ::2], sparse.voxels)


def test_frames_that_do_not_fit_with_a_single_gap_are_refused_with_what_to_do(cine_models, monkeypatch):
    def forward(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Denoiser, "forward", forward)
    with pytest.raises(ResourceError, match=r"11 frames.*--frames.*--model 2d") as caught:
        upsample(cine(frames=11), quick(), models_folder=cine_models)
    assert caught.value.code == "memory"


@pytest.mark.parametrize("method", ["calid", "calid+"])
@pytest.mark.parametrize("frames", [1, 8, 18, 70])
def test_the_papers_form_makes_any_number_of_frames_and_counts_its_work(papers_models, frames, method):
    told = []
    sparse = cine(frames)
    asked = quick(factor=4, method=method, model="2d+t")
    dense = upsample(sparse, asked, models_folder=papers_models, progress=told.append).stack
    assert dense.voxels.shape == (frames, 9, 40, 56)
    np.testing.assert_array_equal(dense.voxels[:, ::4], sparse.voxels)
    assert told[-1].fraction == 1
    assert all(step.fraction < 1 for step in told[:-1])


def test_the_papers_form_joins_the_ends_of_a_cycle(papers_models):
    """Turning the cycle turns the result at its ends, but for what strides of 16 frames bring there from elsewhere."""
    interpolator = load_interpolator_of(papers_models, "calid-2dt")
    voxels = cine(frames=16).voxels.astype(np.float32)

    def made(turn: int, *, is_periodic: bool) -> np.ndarray:
        turned = np.roll(voxels, turn, axis=0)
        stack = Stack(turned, np.eye(4), np.arange(16) * 40.0)
        watch, preparation = Watch(1), plan_preparation(stack)
        run = Generation(interpolator, preparation, plan_bisection(3, 2), quick(), 1, watch, is_periodic)
        return np.roll(np.stack([values for values, _ in run.frames(turned)]), -turn, axis=0)[[0, 1, -2, -1]]

    apart = {way: np.abs(made(8, is_periodic=way) - made(0, is_periodic=way)).mean() for way in (True, False)}
    assert apart[True] < 0.5 * apart[False]


@pytest.mark.parametrize("mode", ["detail", "fidelity"])
def test_without_its_departures_the_model_shows_what_d_makes_of_z_0_and_nothing_else(random_models, mode):
    interpolator = load_interpolator_of(random_models)
    plain = replace(interpolator, departures=dict.fromkeys(MODES, PAPER))
    stack = cine(frames=1, slices=2)
    preparation = plan_preparation(stack)
    settings = quick(method="calid", mode=mode, seed=4)
    ((values, _),) = Generation(plain, preparation, plan_bisection(2, 2), settings, 1, Watch(1)).frames(stack.voxels)

    before, after = preparation.prepare(stack.voxels[0]).unsqueeze(1)
    shape = plain.latent_shape(preparation.padded_shape)
    z_T = torch.from_numpy(np.random.default_rng((4, 1, 0)).standard_normal((1, *shape), dtype=np.float32))
    with torch.inference_mode(), plain.device.autocast():
        z_c = plain.model.denoiser.condition(before, after)
        *_, z_0 = sample(plain.model.schedule, lambda z, t: plain.model.denoiser(z, t, z_c), z_T, steps=2)
        image = plain.model.decode(z_0).clamp(-1, 1)
    expected = preparation.restore(image)[0]
    expected = expected + preparation.excess(stack.voxels[0]).mean(axis=0)
    np.testing.assert_allclose(values[1], expected, rtol=1e-4, atol=0.1)


def test_frames_share_noise_as_far_as_the_model_wants(cine_models):
    stack, settings = cine(frames=6), quick(method="calid")
    interpolator = load_interpolator_of(cine_models)
    plan, preparation = plan_bisection(3, 2), plan_preparation(stack)

    def starts(share: float) -> np.ndarray:
        model = replace(interpolator, noise_share=share)
        generation = Generation(model, preparation, plan, settings, 1, Watch(1))
        window = window_at(0, num_frames=6, size=6)
        return generation._starts(None, window, range(1)).flatten(1).numpy()

    for share, measured in ((1.0, 1.0), (0.6, 0.6), (0.0, 0.0)):
        correlation = np.corrcoef(starts(share))
        assert correlation[np.triu_indices(6, 1)].mean() == pytest.approx(measured, abs=0.05)
        assert starts(share).std() == pytest.approx(1.0, abs=0.05)


def test_the_estimate_names_the_model_and_counts_all_frames(cine_models):
    from calid.run.job import estimate

    short, long = (estimate(cine(frames), quick(steps=20), models_folder=cine_models) for frames in (8, 56))
    assert short["model"] == "calid-2dt"
    assert long["seconds"] > 3 * short["seconds"]
    assert long["memory_bytes"] > short["memory_bytes"]
    assert estimate(cine(1), quick(), models_folder=cine_models, num_frames=8)["model"] == "calid-2dt"
