"""Figures over the number of steps (Fig. 2) and over a walk (Fig. 4), and all tables in one command."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.method.model import Departures
from calid.run.device import choose_device
from calid.run.reconstruct import warm_interpolator
from calid_benchmark import ways
from calid_benchmark.evaluate import main
from calid_benchmark.rivals import diffae
from calid_benchmark.rivals.diffae_network import DiffAEConfig, DiffAENetwork
from calid_benchmark.systems import Named
from calid_benchmark.tables import contestants, denoising, steps
from calid_benchmark.tables.interpolation import Judges

GROUP = "phantom ED 16 mm"


def blurring(count: int | None = None) -> Named:
    """A system that comes nearer to the mean of both with every step."""
    share = 0.5 if count is None else 0.5 - 0.4 / count
    return Named("blurring", lambda a, b: (1 - share) * a + share * b, at_steps=blurring)


def test_every_number_of_steps_is_a_row_of_its_own(asked):
    systems_asked = [Named("linear", ways.linear), blurring()]
    tables = steps.evaluate_steps(asked, systems_asked, Judges(), steps=(1, 2, 8))
    rows = tables[GROUP]["blurring"]
    assert list(rows) == [1, 2, 8]
    assert rows[1]["psnr"]["mean"] < rows[2]["psnr"]["mean"] < rows[8]["psnr"]["mean"]
    assert set(tables[GROUP]) == {"blurring"}
    panels = steps.panels_of(tables[GROUP])
    assert panels["PSNR dB"]["blurring"] == ([1, 2, 8], [rows[count]["psnr"]["mean"] for count in (1, 2, 8)])
    assert "rFID" not in panels


@pytest.mark.parametrize("refined", [False, True])
def test_the_last_estimate_of_a_walk_is_what_the_engine_makes(asked, random_models, refined):
    interpolator = warm_interpolator(choose_device("cpu"), random_models)
    before, after = asked[0].before[2], asked[0].after[2]
    images = [torch.from_numpy(x)[None, None] * 2 - 1 for x in (before, after)]
    z_T = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 32, 32), dtype=np.float32))
    if refined:
        z_T = denoising.slerp(*(interpolator.batched(partial(interpolator.model.invert, steps=4), x) for x in images))
    moved = interpolator.halfway(*images).unbind(1)
    assert (moved[0] - images[0]).abs().max() > 0.1, "a motion that moves nothing would not tell"
    between = partial(interpolator.model.between, steps=4, departures=Departures(strength=None))
    expected = (interpolator.batched(between, *images, z_T)[0, 0] + 1) / 2
    found = denoising.calid_walk(before, after, interpolator=interpolator, refined=refined, steps=4)
    assert found.shape == (4, 128, 128)
    np.testing.assert_allclose(found[-1], expected.numpy(), atol=0.02)
    assert np.abs(found[0] - found[-1]).max() > 1e-3


def test_the_last_estimate_of_diffae_is_its_slice_between(asked):
    torch.manual_seed(0)
    network = DiffAENetwork(DiffAEConfig())
    for parameter in network.parameters():  # zero convolutions would hide the network
        torch.nn.init.normal_(parameter, std=0.02)
    device = choose_device("cpu")
    system = diffae.DiffAE("DiffAE", diffae.placed(network, device), device, steps=2)
    before, after = asked[0].before[2], asked[0].after[2]
    found = denoising.diffae_walk(before, after, system=system)
    np.testing.assert_allclose(found[-1], system.between(before[None], after[None])[0], atol=0.02)


def test_all_tables_are_made_by_one_command(prepared, all_random_models, tmp_path, monkeypatch):
    monkeypatch.setattr(contestants.rivals, "NAMES", ())
    options = ["--prepared", str(prepared), "--datasets", "phantom", "--models", str(all_random_models), "--quick"]
    options += ["--systems", "CaLID", "--weights", str(tmp_path / "none"), "--out", str(tmp_path)]
    results, other = tmp_path / "results.md", tmp_path / "other.md"
    results.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in ("steps", "cine")))
    other.write_text("No place.")
    with pytest.raises(ValueError, match=r"other\.md has no place for any of: interpolation"):
        main(["all", *options, "--into", str(results), str(other)])
    assert main(["all", *options, "--into", str(results)]) == 0
    made = ("interpolation", "downstream", "reconstruction", "steps", "denoising", "speed")
    for name in made:
        record = json.loads((tmp_path / name / f"{name}.json").read_text())
        assert record["made_by"]["options"]["out"] == str(tmp_path / name)
        assert list((tmp_path / name).glob("*.png")), name
    record = json.loads((tmp_path / "downstream" / "downstream.json").read_text())
    assert {"original", "linear", "CaLID", "CaLID+", "shape-based (labels given)"} == set(record["tables"][GROUP])
    assert record["made_by"]["weights"].keys() == {"calid-2d", "segmenter"}
    index = (tmp_path / "index.md").read_text()
    assert [name for name in made if f"[{name}]({name}/{name}.md)" in index] == list(made)
    assert "long-axis" not in index
    steps = (tmp_path / "steps" / "steps.md").read_text().strip()
    assert f"<!-- steps: begin -->\n{steps}\n<!-- steps: end -->" in results.read_text()
    assert "<!-- cine: begin -->\n<!-- cine: end -->" in results.read_text()
