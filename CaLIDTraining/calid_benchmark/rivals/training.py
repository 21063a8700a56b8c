"""The rivals' training commands, which `calid-train` offers beside CaLID's own (entry point in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path

from calid_training.stages import Stage

CONFIGS = Path(__file__).parents[1] / "configs"

_TRIPLETS = "calid_training.data:TripletData"
_RIVALS = "calid_benchmark.rivals"


def _stage(command: str, module: str, data: str, system: str) -> Stage:
    manifest = f"{_RIVALS}.{command}:manifest_config"
    return Stage(f"{_RIVALS}.{module}", data, CONFIGS, system, manifest, f"a system to compare with: {system}")


STAGES: dict[str, Stage] = {
    "deeprecon": _stage(
        "deeprecon", "deeprecon_stage:DeepReconStage", f"{_RIVALS}.deeprecon_stage:DeepReconData", "DeepRecon"
    ),
    "diffae": _stage("diffae", "diffae_stage:DiffAEStage", _TRIPLETS, "DiffAE"),
    "dmcvr": _stage("dmcvr", "diffae_stage:DMCVRStage", _TRIPLETS, "DMCVR"),
    "regression": _stage("regression", "regression_stage:RegressionStage", _TRIPLETS, "regression U-Net"),
    "moved-regression": _stage(
        "moved_regression", "regression_stage:RegressionStage", _TRIPLETS, "regression U-Net, moved neighbors"
    ),
}
"""By command, which is also the name of the rival's module and of its weights (with underscores)."""
