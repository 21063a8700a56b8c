"""Models on disk: what is damaged, missing or foreign is said by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from calid.errors import ResourceError, WeightsError
from calid.method.networks import DenoiserConfig
from calid.method.weights import MANIFEST_NAME, config_from, find_model, load_model, models_folder
from calid.run.batches import load_interpolator
from calid.run.device import choose_device


@pytest.fixture
def folder(random_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_models, tmp_path / "models"))


def change_entry(folder: Path, **changes) -> None:
    manifest = folder / MANIFEST_NAME
    record = json.loads(manifest.read_text())
    record["models"][0].update(changes)
    manifest.write_text(json.dumps(record))


def code_of(action) -> str:
    with pytest.raises(WeightsError) as caught:
        action()
    assert caught.value.remedy
    return caught.value.code


def test_one_changed_byte_is_noticed(folder):
    path = folder / find_model("calid-2d", folder).file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert code_of(lambda: load_model("calid-2d", folder)) == "damaged-weights"


def test_missing_weights_are_named(folder):
    path = folder / find_model("calid-2d", folder).file
    path.unlink()
    with pytest.raises(WeightsError, match=path.name):
        load_model("calid-2d", folder)


def test_a_pickle_in_place_of_weights_is_never_loaded(folder):
    import hashlib

    path = folder / find_model("calid-2d", folder).file
    torch.save({"denoiser": torch.zeros(1)}, path)
    change_entry(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert code_of(lambda: load_model("calid-2d", folder)) == "damaged-weights"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"models": [{"name": "x"}]}', '{"models": 3}'])
def test_a_manifest_that_is_none_is_an_error(folder, text):
    (folder / MANIFEST_NAME).write_text(text)
    assert code_of(lambda: find_model("calid-2d", folder)) == "bad-manifest"


def test_an_unknown_model_is_answered_with_those_there_are(folder):
    with pytest.raises(WeightsError, match="calid-2d"):
        find_model("calid-9d", folder)


def test_a_folder_without_models_is_an_error(tmp_path):
    assert code_of(lambda: models_folder(tmp_path)) == "no-models"


def test_the_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("CALID_MODELS", str(folder))
    assert models_folder() == folder


def test_a_misspelt_configuration_is_an_error_and_lists_become_tuples():
    assert config_from(DenoiserConfig, {"channels": [32, 64]}).channels == (32, 64)
    assert code_of(lambda: config_from(DenoiserConfig, {"chanels": [32]})) == "bad-config"


def test_tensors_that_do_not_fit_the_configuration_are_an_error(folder):
    from calid.run.batches import load_interpolator
    from calid.run.device import choose_device

    manifest = json.loads((folder / "models.json").read_text())
    config = manifest["models"][0]["config"]
    config["denoiser"]["channels"] = [2 * width for width in config["denoiser"]["channels"]]
    change_entry(folder, config=config)
    assert code_of(lambda: load_interpolator(choose_device("cpu"), models_folder=folder)) == "bad-config"


def test_what_is_loaded_is_what_was_written(folder):
    interpolator = load_interpolator(choose_device("cpu"), models_folder=folder)
    state, entry = load_model("calid-2d", folder)
    loaded = interpolator.model.denoiser.state_dict()["unet.conv_in.conv.weight"]
    torch.testing.assert_close(loaded, state["denoiser.unet.conv_in.conv.weight"])
    assert interpolator.entry == entry
    assert interpolator.latent_shape((32, 48)) == (4, 8, 12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_and_auto_says_why_the_cpu():
    with pytest.raises(ResourceError, match="no CUDA GPU"):
        choose_device("cuda")
    assert "no CUDA GPU" in choose_device("auto").reason or choose_device("auto").torch_device.type == "mps"
