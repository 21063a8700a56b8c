"""Whole models by one command: what is told before, what a stop costs, and that the steps fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

from calid.images.files import write_stack
from calid.stack import Stack
from calid_training import recipe
from calid_training.estimate import checkpoint_bytes, flops_of_step, optimizer_steps, prepared_bytes
from calid_training.recipe import RECIPES, Plan, Step, cook
from calid_training.train import main
from phantoms import beating_case


def plan(folder: Path, **changes) -> Plan:
    return Plan(folder / "data", folder / "out", ("own",), ("own",), **changes)


def stages(name: str, folder: Path, **changes) -> dict[str, Step]:
    return {step.name: step for step in RECIPES[name](plan(folder, **changes)) if step.configs}


@pytest.mark.parametrize(("name", "batch", "epoch"), [("paper-2d", 64, 178), ("paper-2d+t", 16, 710)])
@pytest.mark.parametrize(("devices", "accumulate"), [(None, 1), (1, 1), (4, 1), (1, 8)])
def test_the_papers_batch_stays_however_many_devices_share_it(tmp_path, name, batch, epoch, devices, accumulate):
    for step in stages(name, tmp_path, devices=devices, accumulate=accumulate).values():
        settings = step.settings()
        together = settings["model"].get("accumulate", 1) * settings["trainer"].get("accumulate_grad_batches", 1)
        assert settings["trainer"]["devices"] * settings["data"]["batch_size"] * together == batch
        assert optimizer_steps(settings) == 2000 * epoch
    with pytest.raises(ValueError, match="7 devices x 1 batches a step cannot share"):
        stages(name, tmp_path, devices=7)


def test_a_dry_run_tells_steps_hours_and_bytes_and_makes_nothing(tmp_path, capsys):
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    write_stack(
        Stack(np.zeros((2, 3, 8, 10), np.int16), np.diag([1, 1, 8, 1]), np.arange(2) * 40.0), folder / "a.nii.gz"
    )
    (folder / "split.csv").write_text("path,patient,split\na.nii.gz,a,train\n")
    assert prepared_bytes(tmp_path / "data", ["own"]) == (1, 2 * 3 * 8 * 10 * 2)
    command = ["recipe", "paper-2d", str(tmp_path / "data"), str(tmp_path / "out"), "--datasets", "own"]
    assert main([*command, "--judged", "--dry-run", "--override", "denoiser:trainer.max_epochs=10"]) == 0
    said = capsys.readouterr().out
    assert "prepare: 1 stacks" in said
    assert "autoencoder: 356,000 steps, about" in said
    assert "denoiser: 1,780 steps, about" in said
    assert "evaluate" not in said
    assert not (tmp_path / "out").exists()


def test_the_cost_of_a_step_grows_with_the_batch_and_its_files_with_the_network(tmp_path):
    small, paper = (stages(name, tmp_path) for name in ("small", "paper-2d"))
    assert set(small) == {"autoencoder", "refined", "motion", "denoiser"}
    for name in ("autoencoder", "denoiser"):
        settings = small[name].settings()
        doubled = {**settings, "data": {**settings["data"], "batch_size": 2 * settings["data"]["batch_size"]}}
        assert flops_of_step(doubled) == pytest.approx(2 * flops_of_step(settings))
        assert checkpoint_bytes(paper[name].settings()) > 10 * checkpoint_bytes(settings)


def test_what_is_done_is_not_done_again_and_a_failure_stops(tmp_path, monkeypatch, capsys):
    """Programs that note that they were run; the second fails at first."""
    log, broken = tmp_path / "log", tmp_path / "broken"
    broken.touch()
    script = "import os, sys; print(sys.argv[1], file=open({!r}, 'a')); sys.exit(os.path.exists(sys.argv[2]))"
    script = script.format(str(log))
    monkeypatch.setattr(recipe, "_program", lambda _: [sys.executable, "-c", script])
    steps = [Step(name, (name, str(broken) if name == "b" else "-")) for name in "abc"]
    assert cook(steps, tmp_path / "out") == 1
    assert "stopped in 'b'; the same command goes on from there" in capsys.readouterr().out
    broken.unlink()
    assert cook(steps, tmp_path / "out") == 0
    assert log.read_text().split() == ["a", "b", "b", "c"]
    changed = [steps[0], Step("b", ("b", "-", "--more")), steps[2]]
    assert cook(changed, tmp_path / "out") == 0
    assert log.read_text().split() == ["a", "b", "b", "c", "b"], "only what changed is done again"
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["b"] == ["b", "-", "--more"]


def test_an_override_that_is_none_is_refused():
    with pytest.raises(SystemExit, match="wants STAGE:KEY=VALUE, not 'denoiser=3'"):
        main(["recipe", "small", "DATA", "OUT", "--override", "denoiser=3"])


def own_hearts(folder: Path) -> None:
    """One's own data: three computed hearts."""
    folder.mkdir(parents=True)
    lines = ["path,patient,split"]
    for number, split in enumerate(("train", "validation", "test")):
        write_stack(beating_case(seed=number)[0], folder / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{number},{split}")
    (folder / "split.csv").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-2d", "paper-2d+t"])
def test_one_step_of_every_stage_at_the_papers_size_makes_a_model_that_upsamples(tmp_path, name):
    """With the papers' networks; only the clips are shorter and the crops smaller, to be done in minutes."""
    from networks_at_hand import random_alexnet, saved_alexnet

    own_hearts(tmp_path / "data" / "own")
    alexnet = saved_alexnet(tmp_path, random_alexnet())
    quick = ["trainer.max_epochs=1", "trainer.accelerator=cpu", "data.batches=1", "data.validation_batches=1"]
    quick += ["data.batch_size=1", "data.sizes=[32]"] + (["data.frames=8"] if "+t" in name else [])
    overrides = [f"{stage}:{setting}" for stage in ("autoencoder", "denoiser") for setting in quick]
    command = ["recipe", name, str(tmp_path / "data"), str(tmp_path / "out"), "--datasets", "own", "--judged"]
    command += ["--alexnet", str(alexnet), "--devices", "1", "--license", "CC0-1.0", "--override", *overrides]
    assert main(command) == 0
    from calid.__main__ import main as calid

    dense = tmp_path / "dense.nrrd"
    options = ["--factor", "2", "--steps", "1", "--models", str(tmp_path / "out" / "models"), "--device", "cpu"]
    options += ["--model", "2d+t" if "+t" in name else "2d"]
    assert calid(["upsample", str(tmp_path / "data" / "own" / "2.nii.gz"), str(dense), *options]) == 0


@pytest.mark.slow
def test_the_small_recipe_killed_twice_ends_with_a_table(tmp_path):
    own_hearts(tmp_path / "data" / "own")
    quick = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "data.batches=4", "data.validation_batches=1"]
    quick += ["data.batch_size=1", "data.sizes=[64]", "data.size_weights=[1.0]"]
    overrides = [f"{stage}:{one}" for stage in ("autoencoder", "refined", "motion", "denoiser") for one in quick]
    command = [
        sys.executable,
        "-m",
        "calid_training.train",
        "recipe",
        "small",
        str(tmp_path / "data"),
        str(tmp_path / "out"),
    ]
    command += ["--datasets", "own", "--judged", "own", "--license", "CC0-1.0", "--override", *overrides]
    for stage in ("autoencoder", "denoiser"):
        running = subprocess.Popen(command)
        checkpoints = tmp_path / "out" / "runs" / stage / "checkpoints"
        while not list(checkpoints.glob("*.ckpt")) and running.poll() is None:
            pass
        running.kill()
        running.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert "linear" in (tmp_path / "out" / "table" / "interpolation.md").read_text()
