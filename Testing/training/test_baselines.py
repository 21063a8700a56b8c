"""DiffAE, DMCVR and the regression U-Net as systems that run, learn, ship and are counted."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
import yaml
from calid.errors import WeightsError
from calid.heart.segmentation import load_segmenter
from calid.method.weights import config_from, find_model, read_manifest, read_motion
from calid.run.device import choose_device
from calid_benchmark import rivals
from calid_benchmark.metrics import psnr
from calid_benchmark.rivals import dmcvr, regression
from calid_benchmark.rivals.diffae import SCHEDULE, Codes, DiffAE, mixed, placed
from calid_benchmark.rivals.diffae_network import PAPER_DIFFAE, PAPER_DMCVR, DiffAEConfig, DiffAENetwork
from calid_benchmark.rivals.diffae_stage import DiffAEStage
from calid_benchmark.rivals.slices import distinct
from calid_benchmark.rivals.training import CONFIGS
from calid_training.stages import all_stages
from calid_training.train import main
from calid_training.weight_files import write_model
from phantoms import beating_case
from training_runs import averaging, scalars, train

CPU = choose_device("cpu")
TINY = DiffAEConfig(
    channels=(16, 16, 16, 16), encoder_channels=(16, 16, 16), attention_levels=(), embedding=32, norm_num_groups=4
)
SHALLOW = DiffAEConfig(
    channels=(16, 16), encoder_channels=(16, 16), attention_levels=(), embedding=32, norm_num_groups=4
)
TINY_MORPHOLOGY = DiffAEConfig(**{**asdict(TINY), "morphology_channels": 5, "morphology_width": 4})

SHIPPED = read_manifest(rivals.WEIGHTS)


def pooled_morphology(images: torch.Tensor) -> torch.Tensor:
    """A stand-in for a segmenter's features: the image at 1/16, five times."""
    return torch.nn.functional.avg_pool2d(images, 16).repeat(1, 5, 1, 1)


def random_system(config: DiffAEConfig, *, steps: int, seed: int = 0) -> DiffAE:
    """A system without zero convolutions, which in a fresh one hide every condition."""
    torch.manual_seed(seed)
    network = DiffAENetwork(config)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    morphology = pooled_morphology if config.morphology_channels else None
    return DiffAE("DiffAE", placed(network, CPU), CPU, steps, morphology)


def random_slices(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, size, size)).astype(np.float32)


def heart_slices(count: int, size: int = 32) -> np.ndarray:
    """The middles of a phantom's slices, every second pixel, in [0, 1]."""
    stack, _ = beating_case(seed=0)
    _, slices, rows, columns = stack.voxels.shape
    chosen = np.linspace(2, slices - 3, count).round().astype(int)
    y, x = rows // 2 - size, columns // 2 - size
    return (stack.voxels[0, chosen, y : y + 2 * size : 2, x : x + 2 * size : 2] / 300).clip(0, 1).astype(np.float32)


class Calls:
    """Counts the images that pass through a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.images = 0
        module.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        del module, output
        self.images += len(inputs[0])


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# -- architecture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "millions"), [(PAPER_DIFFAE, 103.8), (PAPER_DMCVR, None)], ids=["DiffAE", "DMCVR"])
def test_the_authors_networks_have_their_size_and_take_what_they_are_given(config, millions):
    with torch.device("meta"):
        network = DiffAENetwork(config)
        x = torch.empty(1, 1, 128, 128)
        l_mor = torch.empty(1, 512, 8, 8) if config.morphology_channels else None
        assert network.encode(x).shape == (1, 512)
        assert network(x, torch.zeros(1), torch.empty(1, 512), l_mor).shape == x.shape
    if millions is not None:
        assert parameters(network.unet) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize(("name", "megabytes"), [("DiffAE", 1.6), ("DMCVR", 1.8), ("regression U-Net", 1.0)])
def test_our_sizes_fit_their_files(name, megabytes):
    network = rivals.untrained(name, paper=False, device="cpu").network
    assert 2 * parameters(network) / 1e6 < megabytes - 0.02  # two bytes each, and the names


@pytest.mark.parametrize("config", [DiffAEConfig(), TINY_MORPHOLOGY], ids=["ours", "with morphology"])
@pytest.mark.parametrize("shape", [(32, 48), (64, 16)])
def test_noise_is_predicted_for_every_pixel_of_any_image_size(config, shape):
    network = DiffAENetwork(config)
    x = torch.randn(2, 1, *shape)
    l_mor = pooled_morphology(x) if config.morphology_channels else None
    assert network(x, torch.tensor([3, 999]), network.encode(x), l_mor).shape == x.shape


def test_time_semantics_and_morphology_each_change_the_prediction():
    network = random_system(TINY_MORPHOLOGY, steps=1).network
    x, t, z = torch.randn(1, 1, 32, 32), torch.tensor([500]), torch.randn(1, 32)
    l_mor = torch.randn(1, 5, 2, 2)
    with torch.no_grad():
        reference = network(x, t, z, l_mor)
        others = [network(x, t - 300, z, l_mor), network(x, t, -z, l_mor), network(x, t, z, -l_mor)]
    for other in others:
        assert (other - reference).abs().mean() > 1e-3 * reference.abs().mean()


def test_a_network_with_morphology_refuses_to_run_without():
    network = DiffAENetwork(TINY_MORPHOLOGY)
    with pytest.raises(ValueError, match="needs l_mor"):
        network(torch.zeros(1, 1, 32, 32), torch.zeros(1), torch.zeros(1, 32))


def test_a_network_too_shallow_for_the_morphology_is_refused():
    with pytest.raises(ValueError, match="level 3"):
        DiffAEConfig(channels=(16, 16), morphology_channels=5, morphology_width=4)


# -- codes and counting ------------------------------------------------------------------------------------------------


def test_codes_are_mixed_linearly_and_noise_on_the_sphere():
    system = random_system(TINY_MORPHOLOGY, steps=2)
    codes = system.encode(random_slices(2))
    half = mixed(codes[:1], codes[1:], 0.25)
    assert torch.allclose(half.z_sem, 0.75 * codes.z_sem[:1] + 0.25 * codes.z_sem[1:], atol=1e-6)
    assert torch.allclose(half.l_mor, 0.75 * codes.l_mor[:1] + 0.25 * codes.l_mor[1:], atol=1e-6)
    a, b, between = (x.flatten().double() for x in (*codes.x_T, half.x_T[0]))
    angle = torch.arccos(a @ b / (a.norm() * b.norm()))
    expected = (torch.sin(0.75 * angle) * a + torch.sin(0.25 * angle) * b) / torch.sin(angle)
    assert torch.allclose(between, expected, atol=1e-4)


def test_the_ends_of_the_way_are_the_codes_themselves():
    codes = random_system(TINY, steps=1).encode(random_slices(2))
    for weight, end in ((0.0, codes[:1]), (1.0, codes[1:])):
        made = mixed(codes[:1], codes[1:], weight)
        assert torch.allclose(made.z_sem, end.z_sem, atol=1e-6)
        assert torch.allclose(made.x_T, end.x_T, atol=1e-4)


def test_a_slice_that_occurs_twice_is_encoded_once():
    system = random_system(TINY, steps=3)
    semantic, noise = Calls(system.network.encoder), Calls(system.network.unet)
    stack = random_slices(5)
    made = system.between(stack[:-1], stack[1:])
    assert semantic.images == 5
    assert noise.images == 3 * (5 + 4)  # each acquired slice inverted, each new one decoded
    alone = np.concatenate([system.between(a[None], b[None]) for a, b in pairwise(stack)])
    assert np.allclose(made, alone, atol=0.02)  # bfloat16 sums in another order


def test_distinct_slices_come_with_their_places():
    a, b, c = random_slices(3)
    slices, (first, second) = distinct(np.stack([a, b, a]), np.stack([b, c, a]))
    assert len(slices) == 3
    assert np.array_equal(slices[first], [a, b, a])
    assert np.array_equal(slices[second], [b, c, a])


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("factor", [2, 3])
def test_evaluations_are_those_that_a_whole_heart_takes(naive, factor):
    system = random_system(TINY, steps=2)
    calls = Calls(system.network.unet)
    heart = random_slices(4)
    dense = system.whole_heart(heart, factor, naive=naive)
    assert calls.images == system.evaluations(4, factor, naive=naive)
    assert dense.shape == (3 * factor + 1, 32, 32)
    assert np.array_equal(dense[::factor], heart)


@pytest.mark.parametrize(("name", "naive", "expected"), [("DiffAE", True, 192), ("DMCVR", True, 384)])
def test_a_new_slice_costs_what_the_paper_says(name, naive, expected):
    """CaLID's Fig. 7: 24 times the 8 evaluations of CaLID for DiffAE at 64 steps, 48 for DMCVR at 128."""
    assert rivals.untrained(name, paper=False, device="cpu").evaluations(2, 2, naive=naive) == expected


def test_inverting_once_or_for_every_new_slice_makes_the_same_heart():
    system, heart = random_system(TINY_MORPHOLOGY, steps=2), random_slices(4)
    once, naive = (system.whole_heart(heart, 3, naive=naive) for naive in (False, True))
    assert np.allclose(once, naive, atol=0.02)
    assert np.allclose(once[2::3], system.whole_heart(heart[::-1], 3)[::-1][2::3], atol=0.02)  # either end first


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overfitted() -> tuple[DiffAE, np.ndarray]:
    """A small DiffAE that knows two slices by heart."""
    torch.manual_seed(0)
    slices = heart_slices(2)
    stage = DiffAEStage(SHALLOW, noise_draws=4)
    optimizer = torch.optim.Adam(stage.parameters(), lr=4e-3)
    x_0 = torch.from_numpy(slices)[:, None] * 2 - 1
    for _ in range(250):
        loss = stage.loss(x_0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return DiffAE("DiffAE", placed(stage.network, CPU), CPU, 20), slices


def test_decoding_the_codes_of_a_slice_returns_it(overfitted):
    system, slices = overfitted
    returned = system.decode(system.encode(slices))
    assert min(psnr(slices, returned)) > 25


def test_the_semantic_code_of_another_slice_leads_elsewhere(overfitted):
    system, slices = overfitted
    codes = system.encode(slices)
    exchanged = system.decode(Codes(codes.z_sem.flip(0), codes.x_T))
    assert max(psnr(slices, exchanged)) < min(psnr(slices, system.decode(codes))) - 2


def test_the_inverted_noise_is_as_wide_as_gaussian_noise(overfitted):
    system, slices = overfitted
    assert system.encode(slices).x_T.std() == pytest.approx(1.0, abs=0.25)


def test_the_loss_of_an_ignorant_network_is_the_power_of_the_noise():
    stage = DiffAEStage(TINY)
    stage.network.unet.out[0].bias.data.zero_()
    assert stage.loss(torch.zeros(8, 1, 32, 32)).item() == pytest.approx(1.0, abs=0.05)
    assert SCHEDULE.prediction == "epsilon"


# -- regression --------------------------------------------------------------------------------------------------------


def test_an_untrained_regression_is_linear_interpolation():
    """The residual starts at zero, so bisection must give exactly what NumPy's linear interpolation gives."""
    system = regression.untrained(paper=False, steps=None, device=choose_device("cpu"))
    heart = random_slices(3)
    places = np.arange(9) / 4
    pixels = heart.reshape(3, -1)
    expected = np.stack([np.interp(places, np.arange(3), pixel) for pixel in pixels.T], axis=1).reshape(9, 32, 32)
    assert np.allclose(system.whole_heart(heart, 4), expected, atol=1e-5)


def test_regression_evaluates_once_per_new_slice():
    system = regression.untrained(paper=False, steps=None, device=CPU)
    calls = Calls(system.network)
    system.whole_heart(random_slices(3), 8)
    assert calls.images == system.evaluations(3, 8) == 14


def test_regression_refuses_what_it_cannot_bisect():
    with pytest.raises(ValueError, match="power of two, got 3"):
        regression.untrained(paper=False, steps=None, device=CPU).whole_heart(random_slices(3), 3)


# -- weights -----------------------------------------------------------------------------------------------------------


def written(folder: Path, key: str, network: torch.nn.Module, config: dict) -> None:
    write_model(folder, key, network.state_dict(), config, license="none", trained_on="nothing")


def test_a_baseline_comes_back_as_it_was_written(tmp_path):
    system = random_system(TINY, steps=3)
    system.network.load_state_dict({key: value.half() for key, value in system.network.state_dict().items()})
    written(tmp_path, "diffae", system.network, {"network": asdict(TINY)})
    loaded = rivals.load("DiffAE", tmp_path, steps=3, device="cpu")
    assert (loaded.name, loaded.steps) == ("DiffAE", 3)
    stack = random_slices(3)
    assert np.array_equal(loaded.between(stack[:-1], stack[1:]), system.between(stack[:-1], stack[1:]))


@pytest.mark.parametrize("name", [name for name, file in rivals.MODULES.items() if file in SHIPPED])
def test_every_baseline_has_weights_in_the_repository(name):
    assert rivals.load(name, device="cpu").name == name


def test_steps_default_to_the_papers(tmp_path):
    written(tmp_path, "diffae", DiffAENetwork(TINY), {"network": asdict(TINY)})
    assert rivals.load("DiffAE", tmp_path, device="cpu").steps == 64


def test_weights_of_another_architecture_are_refused(tmp_path):
    other = DiffAEConfig(**{**asdict(TINY), "embedding": 16})
    written(tmp_path, "diffae", DiffAENetwork(TINY), {"network": asdict(other)})
    with pytest.raises(WeightsError, match="do not fit its configuration"):
        rivals.load("DiffAE", tmp_path, device="cpu")


def test_weights_that_were_changed_are_refused(tmp_path):
    written(tmp_path, "diffae", DiffAENetwork(TINY), {"network": asdict(TINY)})
    file = tmp_path / "diffae.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="SHA-256 differs"):
        rivals.load("DiffAE", tmp_path, device="cpu")


def test_dmcvr_refuses_a_segmenter_it_was_not_trained_with(tmp_path):
    network = DiffAENetwork(TINY_MORPHOLOGY)
    written(tmp_path, "dmcvr", network, {"network": asdict(TINY_MORPHOLOGY), "segmenter_sha256": "0" * 64})
    with pytest.raises(WeightsError, match="another segmenter"):
        rivals.load("DMCVR", tmp_path, device="cpu")


def test_dmcvr_finds_the_segmenter_it_was_trained_with_in_another_folder(all_random_models, tmp_path):
    network = DiffAENetwork(TINY_MORPHOLOGY)
    sha256 = find_model("segmenter", all_random_models).sha256
    written(tmp_path, "dmcvr", network, {"network": asdict(TINY_MORPHOLOGY), "segmenter_sha256": sha256})
    system = rivals.load("DMCVR", tmp_path, device="cpu", models=all_random_models)
    theirs = load_segmenter(CPU, models_folder=all_random_models).model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in system.morphology.model.state_dict().items())
    with pytest.raises(WeightsError, match=sha256[:12]):
        rivals.load("DMCVR", tmp_path, device="cpu")


def test_an_unknown_baseline_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"no baseline 'RIFE'.*DiffAE, DMCVR"):
        rivals.untrained("RIFE", paper=False)


# -- from the command line ---------------------------------------------------------------------------------------------

SMALL = [
    *("--data.batch_size", "2", "--data.validation_batches", "1", "--data.batches", "20"),
    *("--trainer.log_every_n_steps", "1", "--model.warmup_steps", "5"),
]
SMALL_DIFFAE = [
    *("--model.network.channels", "[16,16,16,16]", "--model.network.encoder_channels", "[16,16,16]"),
    *("--model.network.attention_levels", "[]", "--model.network.embedding", "32"),
    *("--model.validation_steps", "2", "--model.learning_rate", "3e-3"),
]


@pytest.fixture(scope="module")
def hearts(phantom_set) -> Path:
    return phantom_set(3)


def trained(stage: str, hearts: Path, run: Path, options: list[str]) -> Path:
    train(stage, hearts, run, [*SMALL, *averaging(run.parent, 0.5), *options], epochs=2)
    return run


def losses(run: Path) -> list[float]:
    return scalars(run, "train/loss")


def exported(run: Path, name: str, *, license_: str = "CC0-1.0") -> rivals.Baseline:
    models = run / "models"
    models.mkdir(exist_ok=True)
    options = ["--run", str(run), "--models", str(models), "--name", name, "--trained-on", "phantoms"]
    options += ["--license", license_, "--budget", "two epochs"]
    assert main(["export", "baseline", *options]) == 0
    assert rivals.budget_of(rivals.MODULES[name], models) == "two epochs"
    assert json.loads((models / "models.json").read_text())["models"][0]["trained_on"] == "phantoms"
    return rivals.load(name, models, steps=2, device="cpu")


@pytest.fixture(scope="module")
def diffae_run(hearts, tmp_path_factory) -> Path:
    return trained("diffae", hearts, tmp_path_factory.mktemp("runs") / "diffae", SMALL_DIFFAE)


def test_diffae_learns_and_ships(diffae_run):
    curve = losses(diffae_run)
    assert np.mean(curve[-10:]) < 0.6 * np.mean(curve[:5])
    system = exported(diffae_run, "DiffAE")
    assert system.between(*random_slices(2)[:, None]).shape == (1, 32, 32)


def test_dmcvr_starts_from_diffae_learns_and_ships(diffae_run, hearts, tmp_path):
    options = [*SMALL_DIFFAE, "--model.start", str(diffae_run)]
    run = trained("dmcvr", hearts, tmp_path / "dmcvr", options)
    assert np.mean(losses(run)[:5]) < 0.6 * np.mean(losses(diffae_run)[:5])  # it begins with what DiffAE knows
    with pytest.raises(ValueError, match=r"carry CC-BY-NC-SA-4.0, which does not allow CC0-1.0"):
        exported(run, "DMCVR")  # the bundled segmenter's license, which was trained on ACDC
    system = exported(run, "DMCVR", license_="CC-BY-NC-SA-4.0")
    assert system.morphology is not None
    codes = system.encode(random_slices(1))
    assert codes.l_mor.shape == (1, 160, 2, 2)
    changed = Codes(codes.z_sem, codes.x_T, -codes.l_mor)
    assert np.abs(system.decode(changed) - system.decode(codes)).max() > 1e-3


def errors_of(system: rivals.Baseline, hearts: Path) -> tuple[float, float]:
    """Mean absolute error of a system, and of the neighbors' mean, on the crops that it was trained on."""
    from calid_training.data import TripletData

    data = TripletData(prepared=hearts, datasets=("phantom",), sizes=(32,), size_weights=(1.0,), batches=20)
    data.setup("fit")
    found = []
    for batch in data.train_stream:
        before, truth, after = ((batch[name][:, 0].numpy() + 1) / 2 for name in ("before", "target", "after"))
        answers = system.between(before, after), (before + after) / 2
        found.append([np.abs(answer - truth).mean() for answer in answers])
    made, linear = np.mean(found, axis=0)
    return float(made), float(linear)


def test_regression_learns_and_ships(hearts, tmp_path):
    options = ["--model.network.features", "[8,8,8,8,8,8]", "--model.learning_rate", "3e-3"]
    run = trained("regression", hearts, tmp_path / "regression", options)
    system = exported(run, "regression U-Net")
    made, linear = errors_of(system, hearts)
    assert made < linear, "untrained it is the mean of both neighbors"
    before, after = random_slices(2)[:, None]
    assert np.abs(system.between(before, after) - (before + after) / 2).max() > 1e-3  # a residual was learned


def test_regression_learns_on_moved_neighbors_whose_motion_stays_and_ships(hearts, random_models, tmp_path):
    motion = random_models / "calid-2d.safetensors"
    options = ["--model.network.features", "[8,8,8,8,8,8]", "--model.motion", str(motion)]
    options += ["--data.sizes", "[128]", "--data.batches", "4"]
    run = trained("moved-regression", hearts, tmp_path / "moved", options)
    system = exported(run, "regression U-Net, moved neighbors")
    for key, value in read_motion(motion).state_dict().items():
        torch.testing.assert_close(system.network.motion.state_dict()[key], value.half().float())
    before, after = np.random.default_rng(0).random((2, 1, 128, 128)).astype(np.float32)
    assert np.abs(system.between(before, after) - (before + after) / 2).max() > 1e-2


def test_every_rival_that_is_loaded_can_be_trained_and_exported():
    offered = {stage.system: command for command, stage in all_stages().items() if stage.system}
    assert {system: command.replace("-", "_") for system, command in offered.items()} == rivals.MODULES
    for command in offered.values():
        stage = all_stages()[command]
        assert all(isinstance(kind, type) for kind in stage.classes())
        assert (stage.configs / f"{command}.yaml").is_file()


def test_the_shipped_settings_are_the_sizes_that_are_timed():
    networks = {
        name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["network"]
        for name in ("diffae", "dmcvr", "paper-diffae", "paper-dmcvr")
    }
    ours = asdict(DiffAEConfig())
    morphology = {"morphology_channels": 160, "morphology_width": dmcvr.MORPHOLOGY_WIDTH}
    assert asdict(config_from(DiffAEConfig, networks["diffae"])) == ours
    assert asdict(config_from(DiffAEConfig, networks["dmcvr"])) == ours | morphology
    assert config_from(DiffAEConfig, networks["paper-diffae"]) == PAPER_DIFFAE
    assert config_from(DiffAEConfig, networks["paper-dmcvr"]) == PAPER_DMCVR
    assert find_model("segmenter").config["network"]["widths"][3] == morphology["morphology_channels"]
