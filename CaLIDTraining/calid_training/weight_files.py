"""Files of weights as `calid-train export` writes them: tensors, what networks they belong to, where they come from."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from calid.method.weights import MANIFEST_NAME, packed, read_tensors
from safetensors.torch import save_file

from calid_training.errors import UsageError
from calid_training.licenses import license_of_weights
from calid_training.runs import data_of, run_config, run_starts, without_places

TRAINING_KEY = "training"
"""Of the metadata of a file of weights: where they come from, as JSON."""
WRITTEN = ("license", "trained_on", "budget", "card")  # by people, in the manifest


def write_model(
    folder: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    origin: Mapping[str, Any] | None = None,
    *,
    in_8_bits: bool = False,
    **facts: Any,
) -> Path:
    """Write `<name>.safetensors` and set its entry in the folder's manifest.

    Args:
        folder: folder of the manifest, which is made if it is not there.
        name: name of the model.
        tensors: tensors of the networks, by name.
        config: configuration of the networks.
        origin: `origin_of` the weights, kept in the file.
        in_8_bits: whether weights are `packed`; else all is in half precision.
        **facts: further values of the manifest's entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    halves = {key: value.half().contiguous() for key, value in tensors.items()}
    write_tensors(path, packed(tensors) if in_8_bits else halves, config, origin)
    content = path.read_bytes()
    entry = {
        "name": name,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "config": config,
        **facts,
    }
    set_entry(folder / MANIFEST_NAME, entry)
    print(f"{path}: {len(content) / 1e6:.1f} MB")
    return path


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors with the configuration of their networks and their origin; the file appears when it is whole."""
    partial = path.with_suffix(".part")
    metadata = {"config": json.dumps(config)} | ({} if origin is None else {TRAINING_KEY: json.dumps(origin)})
    save_file(dict(tensors), partial, metadata=metadata)
    partial.chmod(0o644)  # safetensors writes for its owner alone
    partial.replace(path)


def set_entry(manifest: Path, entry: Mapping[str, Any]) -> None:
    """Add or replace one model's entry, keeping what people wrote of it where the new one says nothing."""
    models = json.loads(manifest.read_text())["models"] if manifest.is_file() else []
    old: Mapping[str, Any] = next((model for model in models if model["name"] == entry["name"]), {})
    said = {key: value for key, value in entry.items() if value != ""}
    kept = {key: old[key] for key in WRITTEN if key in old and key not in said}
    if "license" not in said | kept:
        raise UsageError(f"nothing tells what {entry['name']} was trained on: say its license with --license")
    models = [model for model in models if model["name"] != entry["name"]] + [{**said, **kept}]
    partial = manifest.with_suffix(".part")
    partial.write_text(json.dumps({"models": sorted(models, key=lambda model: model["name"])}, indent=2) + "\n")
    partial.replace(manifest)


def prefixed(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a part as a whole model's file names them."""
    return {f"{part}.{key}": value for key, value in tensors.items()}


def part_config(file: str, part: str) -> dict[str, Any]:
    """The configuration of a part from the metadata of its own file or a whole model's."""
    config = json.loads(read_tensors(Path(file))[1]["config"])
    return config.get(part, config)


def origin_of(run: Path, parts: Iterable[str | Path | None] = ()) -> dict[str, Any]:
    """Where the weights of a run come from.

    Args:
        run: folder of the run.
        parts: files of weights that went into it.

    Returns:
        "data" {set: facts}, "foundations" [{name, sha256, license}], "revision" and "config", the run's own.
    """
    starts = run_starts(run)
    if starts:
        newest = starts[-1]
        own = {"data": data_of(starts), "foundations": newest["foundations"], "revision": newest["revision"]}
    else:  # a run from before there were records: its configuration names the sets
        own = {"data": {name: {} for name in run_config(run)["data"].get("datasets", [])}}
    own["config"] = without_places(run_config(run))
    return merged([own, *(origin_in(Path(part)) for part in parts if part is not None)])


def origin_in(file: Path) -> dict[str, Any]:
    """Where the weights of a file come from, as its metadata tell; empty for files from before there were records."""
    return json.loads(read_tensors(file)[1].get(TRAINING_KEY, "{}"))


def merged(origins: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The first origin with the data and foundations of all."""
    first, *others = origins
    found = {**first, "data": dict(first.get("data", {})), "foundations": list(first.get("foundations", []))}
    for other in others:
        found["data"] = {**other.get("data", {}), **found["data"]}
        found["foundations"] += [one for one in other.get("foundations", []) if one not in found["foundations"]]
    return found


def released_facts(options: Namespace, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of a model's origin: license, data with their hashes, revision."""
    data, foundations = origin["data"], origin["foundations"]
    known = data or foundations or options.license
    license_ = license_of_weights(data, (one["license"] for one in foundations), asked=options.license) if known else ""
    counts = {name: facts.get("patients") for name, facts in sorted(data.items())}
    words = ", ".join(name if count is None else f"{name} ({count} patients)" for name, count in counts.items())
    hashes = {name: facts["sha256"] for name, facts in data.items() if "sha256" in facts}
    facts = {"license": license_, "trained_on": options.trained_on or words, "data_sha256": hashes}
    facts |= {"budget": options.budget} if options.budget else {}
    return facts | {"revision": origin.get("revision", "")}
