"""What all suites share: few threads, and a small random model that runs like the real one."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

with contextlib.suppress(ImportError):  # not every part needs it
    import hypothesis

    hypothesis.settings.register_profile(
        "calid",
        deadline=None,  # a busy machine is no fault
        suppress_health_check=[hypothesis.HealthCheck.too_slow],  # nor is a slow one
        derandomize=True,  # the same examples for everyone; `fuzz.py` is what looks for new ones
    )
    hypothesis.settings.load_profile("calid")

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws its own numbers, whichever ran before it; one marked slow may take its time."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if item.get_closest_marker("slow"):
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the real data sets, named by CALID_DATA."""
    folder = os.environ.get("CALID_DATA")
    if not folder:
        pytest.skip("CALID_DATA does not name the folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with an untrained model: its slices are meaningless, its shapes and rules are the real ones."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("lightning")  # the training writes it
    from calid.method.motion import Motion, MotionConfig
    from calid.method.networks import Autoencoder, AutoencoderConfig, Denoiser, DenoiserConfig, LatentSpace
    from calid_training.weight_files import write_model

    autoencoder = AutoencoderConfig(channels=(8, 8, 16), num_res_blocks=1, norm_num_groups=8)
    denoiser = DenoiserConfig(
        channels=(16, 16, 32),
        attention=(False, False, True),
        condition_attention=(False, False, True),
        tau1_channels=(16, 16, 16),
        num_res_blocks=1,
        head_channels=16,
        norm_num_groups=16,
    )
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(autoencoder), mean=torch.zeros(4), std=torch.ones(4))
    network = Denoiser(denoiser)
    for parameter in network.parameters():  # zero convolutions would hide the condition
        torch.nn.init.normal_(parameter, std=0.05)
    motion = Motion(MotionConfig(features=(8,) * 6))
    torch.nn.init.normal_(motion.unet.final_conv.weight, std=0.1)  # a pixel or so
    tensors = {f"denoiser.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"latent_space.{key}": value for key, value in space.state_dict().items()}
    tensors |= {f"motion.{key}": value for key, value in motion.state_dict().items()}
    folder = tmp_path_factory.mktemp("models")
    config = {"autoencoder": asdict(autoencoder), "denoiser": asdict(denoiser), "motion": asdict(motion.config)}
    config["strength"] = {"detail": 1.0, "fidelity": 1.0}
    write_model(folder, "calid-2d", tensors, config, license="none", trained_on="nothing")
    return folder
