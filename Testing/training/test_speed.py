"""The speed table: exact counts, the papers' ratios, costs recovered from small runs, and the table itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.settings import Settings
from calid_training import systems
from calid_training.baselines.diffae import DiffAE
from calid_training.evaluate import main
from calid_training.systems import Named
from calid_training.tables import contestants, speed
from calid_training.tables.contestants import OURS, CalidRunner, Contestant, PlainRunner


def calid(method: str) -> CalidRunner:
    return CalidRunner(None, Settings(factor=2, method=method, steps=8))


def diffae(steps: int) -> DiffAE:
    return DiffAE("DiffAE", None, None, steps)


def test_naive_counts_give_the_papers_ratios_of_24_and_8():
    counts = {
        name: runner.evaluations(11, 8, naive=True)
        for name, runner in {"DiffAE": diffae(64), "CaLID": calid("calid"), "CaLID+": calid("calid+")}.items()
    }
    assert counts["DiffAE"] / counts["CaLID"] == 24
    assert counts["DiffAE"] / counts["CaLID+"] == 8


def test_inverting_each_slice_once_is_counted_once():
    assert calid("calid").evaluations(11, 8) == 70 * 8
    assert calid("calid+").evaluations(11, 8) == (70 + 11) * 8
    assert diffae(128).evaluations(11, 8) == (70 + 11) * 128


def test_the_three_costs_are_recovered_from_the_small_runs():
    true = speed.Costs(evaluation=0.03, acquired=0.2, new=0.05)
    runs = [(diffae(steps), acquired, factor) for acquired, factor, steps in speed.PROBES]
    counts = [(runner.evaluations(a, f), a, (a - 1) * (f - 1)) for runner, a, f in runs]
    found = speed.fitted(counts, [true.of(*run) for run in runs])
    assert (found.evaluation, found.acquired, found.new) == pytest.approx((0.03, 0.2, 0.05))
    whole = found.of(diffae(64), 11, 8)
    assert whole == pytest.approx(0.03 * 64 * 81 + 0.2 * 11 + 0.05 * 70)
    naive = found.of(diffae(64), 11, 8, naive=True)
    assert naive == pytest.approx(0.03 * 64 * 210 + 0.2 * 140 + 0.05 * 70), "two slices encoded for each new one"


def test_a_system_that_inverts_nothing_has_no_naive_way():
    costs = speed.Costs(evaluation=0.03, acquired=0.2, new=0.05)
    assert costs.of(calid("calid"), 11, 8, naive=True) == costs.of(calid("calid"), 11, 8)
    assert costs.of(calid("calid+"), 11, 8, naive=True) > costs.of(calid("calid+"), 11, 8)


class Multiplying:
    """Multiplies each acquired and each new slice by itself once per step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def whole_heart(self, slices, factor):
        count = self.evaluations(len(slices), factor)
        for _ in range(count):
            torch.from_numpy(slices[0]) @ torch.from_numpy(slices[0])
        return systems.linear_between(slices, factor)

    def evaluations(self, acquired, factor, *, naive=False):
        new = (acquired - 1) * (factor - 1)
        return self.steps * ((2 * new if naive else acquired) + new)


def test_operations_of_a_whole_heart_are_counted_from_small_runs_exactly():
    line = Contestant("CaLID", OURS, lambda steps: Multiplying(steps or 8), steps=8)
    row = speed.Race([line], affordable=0, acquired=11, factor=8).results(rounds=1)[0]
    assert row["flops"] == pytest.approx(2 * 128**3 * 8 * 81)
    assert row["flops_naive"] == pytest.approx(2 * 128**3 * 8 * 210)
    assert row["evaluations"] == 8 * 81
    assert not row["measured"]
    assert row["ratio_wall"]["mean"] == 1


def test_what_is_affordable_is_run_and_what_is_not_is_computed():
    seen = []

    class Watched(Multiplying):
        def whole_heart(self, slices, factor):
            seen.append(len(slices))
            return systems.linear_between(slices, factor)

    line = Contestant("CaLID", OURS, lambda steps: Watched(steps or 8), steps=8)
    rows = speed.Race([line], affordable=1000, acquired=5, factor=2).results(rounds=2)
    assert seen.count(5) == 2
    assert rows[0]["measured"]
    seen.clear()
    speed.Race([line], affordable=0, acquired=5, factor=2).results(rounds=2)
    assert 5 not in seen


def test_the_claim_is_a_ratio_of_equals():
    def row(name, careful, naive):
        seconds = {"wall": {"mean": careful / 10}, "cpu": {"mean": careful / 20}}
        seconds |= {"wall_naive": {"mean": naive / 10}, "cpu_naive": {"mean": naive / 20}}
        counts = {"evaluations": careful, "evaluations_naive": naive, "flops": 2 * careful, "flops_naive": 2 * naive}
        return {"system": name, **seconds, **counts}

    found = speed.claims([row("DMCVR", 10368, 26880), row("CaLID", 560, 560), row("CaLID+", 648, 1680)])
    assert set(found) == {"DMCVR : CaLID", "DMCVR : CaLID+"}
    for ratios in found["DMCVR : CaLID"].values():
        assert ratios == pytest.approx((10368 / 560, 48))
    for ratios in found["DMCVR : CaLID+"].values():
        assert ratios == pytest.approx((16, 16))


def test_a_system_without_a_network_costs_no_evaluations():
    runner = PlainRunner(Named("linear", systems.linear, upsample=systems.linear_between))
    assert runner.evaluations(11, 8) == 0
    assert runner.whole_heart(np.zeros((3, 8, 8), np.float32), 4).shape == (9, 8, 8)


def test_the_papers_sizes_come_from_the_papers_configurations():
    autoencoder, denoiser = contestants.paper_configs()
    assert denoiser.prediction == "epsilon"
    assert all(denoiser.condition_attention), "self-attention at each resolution scale"
    assert autoencoder.downsampling == 4
    assert denoiser.latent_channels == autoencoder.latent_channels


def test_one_command_writes_times_and_ratios(random_models, tmp_path, monkeypatch):
    monkeypatch.setattr(contestants.baselines, "NAMES", ("regression U-Net",))
    options = ["--models", str(random_models), "--rounds", "1", "--no-paper", "--acquired", "3", "--factor", "2"]
    options += ["--systems", "linear", "regression U-Net", "CaLID+"]
    assert main(["speed", *options, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "speed.json").read_text())
    rows = {row["system"]: row for row in record["rows"]}
    assert set(rows) == {"linear", "regression U-Net", "CaLID", "CaLID+"}
    assert rows["CaLID"]["measured"]
    assert rows["CaLID+"]["ratio_evaluations"] == (2 + 3) / 2
    assert rows["CaLID+"]["flops"] > rows["CaLID"]["flops"] > 0
    assert rows["CaLID"]["slice_at_128"]["mean"] > rows["CaLID"]["wall"]["mean"] / 2
    assert record["before"]["cores"] >= 1
    assert "3 slices to 5" in (tmp_path / "speed.md").read_text()
    assert len(list(tmp_path.glob("*.png"))) == 2
