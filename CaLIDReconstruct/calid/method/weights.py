"""Models on disk: the manifest that says what they are, the check that they are what it says, and their loading.

A model is a safetensors file (tensors and JSON, nothing that can execute) and an entry in `models.json`. A model that
extends another holds only what it adds, and names the other with its SHA-256. Extension point: a new model is a new
entry; nothing else needs to know its name.

Tensors lie in half precision, or weights in 8 bits: an int8 tensor W and, under its name with `SCALE` after it, a scale
s for each place on its first axis. The weight is then W * s in float32, and nothing else is done to it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from calid.errors import WeightsError
from calid.method.codec import Codec, CodecConfig
from calid.method.motion import Motion, MotionConfig
from calid.method.networks import Autoencoder, AutoencoderConfig, LatentSpace

MANIFEST_NAME = "models.json"
FOLDER_VARIABLE = "CALID_MODELS"
_HERE = Path(__file__).parents[1]
BUNDLED_FOLDERS = (_HERE.parent / "Resources" / "Models", _HERE / "Models")  # in the extension; in an installed package

SCALE = "::scale"  # after a tensor's name: what its 8-bit numbers are multiplied with
MIN_PACKED = 1024  # numbers of a tensor that is worth packing

Config = TypeVar("Config")
_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class ModelEntry:
    """What the manifest says of one model.

    Args:
        name: how it is asked for.
        file: path of the weights below the folder of the manifest.
        sha256, bytes: checksum and size of that file.
        license: SPDX identifier of the weights.
        config: everything needed to build the networks; of a model that extends another, what differs.
        trained_on: the data, in words.
        card: path of the model card below the folder of the manifest.
        base, base_sha256: the model that this one extends, and the SHA-256 of the very file; empty if it is whole.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    license: str
    config: Mapping[str, Any]
    trained_on: str = ""
    card: str = ""
    base: str = ""
    base_sha256: str = ""


def models_folder(folder: Path | None = None) -> Path:
    """The folder with the manifest: the one given, else the one in CALID_MODELS, else the bundled one.

    Raises:
        WeightsError: "no-models" if it holds no manifest.
    """
    named = folder or os.environ.get(FOLDER_VARIABLE)
    candidates = [Path(named)] if named else list(BUNDLED_FOLDERS)
    for candidate in candidates:
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    raise WeightsError(
        "no-models",
        f"There is no {MANIFEST_NAME} in {candidates[0]}.",
        "Reinstall CaLID, or choose the folder that holds the models.",
    )


def read_manifest(folder: Path | None = None) -> dict[str, ModelEntry]:
    """All models of a folder by name.

    Raises:
        WeightsError: "no-models" or "bad-manifest".
    """
    path = models_folder(folder) / MANIFEST_NAME
    known = {field.name for field in fields(ModelEntry)}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["models"]
        entries = [ModelEntry(**{key: value for key, value in record.items() if key in known}) for record in records]
        for entry in entries:
            _need_types(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            "bad-manifest", f"{path} cannot be read as a list of models: {error}.", "Reinstall CaLID."
        ) from error
    return {entry.name: entry for entry in entries}


def _need_types(entry: ModelEntry) -> None:
    """Raise TypeError if a field of an entry is of another type than it is declared."""
    declared: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "int": int,
        "Mapping[str, Any]": Mapping,
        "Mapping[str, Any] | None": (Mapping, type(None)),
    }
    for field in fields(ModelEntry):
        value = getattr(entry, field.name)
        if not isinstance(value, declared[str(field.type)]) or isinstance(value, bool):
            raise TypeError(f"'{field.name}' of the model {entry.name!r} is {value!r}")


def find_model(name: str, folder: Path | None = None) -> ModelEntry:
    """The manifest's entry of one model.

    Raises:
        WeightsError: "unknown-model", with the names there are.
    """
    manifest = read_manifest(folder)
    if name not in manifest:
        raise WeightsError(
            "unknown-model",
            f"There is no model '{name}' in {models_folder(folder)}.",
            f"Choose one of: {', '.join(sorted(manifest)) or 'none are installed'}.",
        )
    return manifest[name]


def load_model(name: str, folder: Path | None = None) -> tuple[dict[str, torch.Tensor], ModelEntry]:
    """The checked tensors of one model, as float32, and its entry; with those of its base, if it extends one.

    Raises:
        WeightsError: "missing-weights" or "damaged-weights" with the file's name, "other-base" if the base is not the
            one the model was trained on.
    """
    entry = find_model(name, folder)
    state = read_tensors(check_file(entry, folder))[0]
    if not entry.base:
        return state, entry
    base_state, base = load_model(entry.base, folder)
    if base.sha256 != entry.base_sha256:
        raise WeightsError(
            "other-base",
            f"The model '{name}' extends another '{entry.base}' than the one installed (SHA-256 "
            f"{entry.base_sha256[:12]}, not {base.sha256[:12]}).",
            f"Install '{name}' and '{entry.base}' from the same release.",
        )
    return base_state | state, replace(entry, config=_extended(base.config, entry.config))


def _extended(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some values, at any depth, replaced or added."""
    merged = dict(config)
    for key, value in changes.items():
        merged[key] = _extended(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def check_file(entry: ModelEntry, folder: Path | None = None) -> Path:
    """The file of a model, which is there and is the one that the manifest describes.

    Raises:
        WeightsError: "missing-weights" or "damaged-weights" with the file's name.
    """
    path = models_folder(folder) / entry.file
    if not path.is_file():
        raise WeightsError(
            "missing-weights", f"The weights {path} are missing.", "Reinstall CaLID, or copy them there."
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
        raise WeightsError(
            "damaged-weights",
            f"The weights {path} are not the ones {MANIFEST_NAME} describes (SHA-256 differs).",
            "Reinstall CaLID, or copy the file again.",
        )
    return path


@contextmanager
def built_for(name: str) -> Iterator[None]:
    """Around the building of a model's networks: what fails there does not fit this version.

    Raises:
        WeightsError: "bad-config", with the first reason.
    """
    try:
        yield
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            "bad-config", f"The model '{name}' does not fit this version of CaLID: {reason}.", "Update CaLID."
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file as float32, whatever they are stored in, and its metadata.

    Raises:
        WeightsError: "damaged-weights" if it is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            "damaged-weights", f"{path} is not a safetensors file: {error}.", "Copy it again."
        ) from error
    return unpacked(tensors), metadata


def packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as they are stored: weights in 8 bits with a scale for each output, all else in half precision.

    The largest weight of every output becomes 127, so no weight errs by more than 1/254 of it.
    """
    stored = {}
    for key, value in tensors.items():
        if value.ndim < 2 or value.numel() < MIN_PACKED:
            stored[key] = value.half().contiguous()
            continue
        scale = value.float().abs().flatten(1).amax(dim=1).clamp_min(1e-12) / 127
        stored[key] = (value / _per_output(scale, value)).round().to(torch.int8).contiguous()
        stored[key + SCALE] = scale
    return stored


def unpacked(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stored tensors as float32; integers without a scale stay as they are."""
    found = {}
    for key, value in tensors.items():
        if key.endswith(SCALE):
            continue
        if key + SCALE in tensors:
            found[key] = value.float() * _per_output(tensors[key + SCALE], value)
        else:
            found[key] = value.float() if value.is_floating_point() else value
    return found


def _per_output(scale: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))


def config_from(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a frozen config from JSON values; lists become tuples, unknown keys are an error.

    Raises:
        WeightsError: "bad-config" naming what does not fit.
    """
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise WeightsError(
            "bad-config", f"The model's configuration does not fit {kind.__name__}: {error}.", "Update CaLID."
        ) from error


def build_latent_space(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> LatentSpace:
    """E, D and the latent moments from the state of a `LatentSpace`."""
    autoencoder = Autoencoder(config_from(AutoencoderConfig, config))
    return _filled(LatentSpace(autoencoder, mean=state["mean"].flatten(), std=state["std"].flatten()), state)


def build_motion(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Motion:
    """A `Motion` from its configuration and state."""
    return _filled(Motion(config_from(MotionConfig, config)), state)


def build_codec(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Codec:
    """A `Codec` from its configuration and state."""
    return _filled(Codec(config_from(CodecConfig, config)), state)


def _filled(network: _Network, state: Mapping[str, torch.Tensor]) -> _Network:
    network.load_state_dict(state)
    return network.eval()


def read_latent_space(path: Path) -> LatentSpace:
    """A `LatentSpace` from a file of its own, as stage one of the training exports it, or from a whole model's."""
    state, metadata = read_tensors(path)
    config = json.loads(metadata["config"])
    if "autoencoder" in config:
        return build_latent_space(config["autoencoder"], below(state, "latent_space."))
    return build_latent_space(config, state)


def read_motion(path: Path) -> Motion:
    """A `Motion` from a file of its own, as its training exports it, or from a whole model's."""
    return build_motion(*_part(path, "motion"))


def read_codec(path: Path) -> Codec:
    """A `Codec` from a file of its own, as its training exports it, or from a whole model's."""
    return build_codec(*_part(path, "codec"))


def _part(path: Path, name: str) -> tuple[Mapping[str, Any], dict[str, torch.Tensor]]:
    """Configuration and state of a part of a model."""
    state, metadata = read_tensors(path)
    return json.loads(metadata["config"])[name], below(state, f"{name}.")


def below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
