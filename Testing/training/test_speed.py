"""The speed table: exact counts, the papers' ratios, costs recovered from small runs, and the table itself."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.method.codec import CodecConfig
from calid.run.settings import Settings
from calid_benchmark import ways
from calid_benchmark.evaluate import main
from calid_benchmark.rivals.diffae import DiffAE
from calid_benchmark.systems import Named
from calid_benchmark.tables import contestants, costs, speed
from calid_benchmark.tables.contestants import OURS, CalidRunner, Contestant, PlainRunner


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


def line(name: str, steps: int | None = 8) -> Contestant:
    return Contestant(name, OURS, lambda _: None, steps)


def test_the_three_costs_are_recovered_from_the_small_runs():
    true = costs.Costs(evaluation=0.03, encoded=0.2, made=0.05)
    for probes in speed.PROBES.values():
        runs = [costs.work_of(line("DiffAE"), diffae(steps), a, f) for a, f, steps in probes]
        for fit in (costs.fitted_costs, costs.solved_costs):
            found = fit(runs, [true.of(work) for work in runs])
            assert (found.evaluation, found.encoded, found.made) == pytest.approx((0.03, 0.2, 0.05))
    careful = true.of(costs.work_of(line("DiffAE"), diffae(64), 11, 8))
    assert careful == pytest.approx(0.03 * 64 * 81 + 0.2 * 11 + 0.05 * 70)
    naive = true.of(costs.work_of(line("DiffAE"), diffae(64), 11, 8, naive=True))
    assert naive == pytest.approx(0.03 * 64 * 210 + 0.2 * 140 + 0.05 * 70), "two slices encoded for each new one"


def test_a_system_that_inverts_nothing_has_no_naive_way():
    plain, naive = (costs.work_of(line("CaLID"), calid("calid"), 11, 8, naive=way) for way in (False, True))
    assert plain == naive
    plain, naive = (costs.work_of(line("CaLID+"), calid("calid+"), 11, 8, naive=way) for way in (False, True))
    assert naive.evaluations > plain.evaluations


def test_costs_of_flops_may_take_back_what_another_part_counts_and_those_of_time_may_not():
    runs = [costs.Work(1, 1, 0), costs.Work(1, 0, 1), costs.Work(0, 1, 1)]
    assert costs.solved_costs(runs, [1.0, 4.0, 1.0]) == costs.Costs(*map(pytest.approx, (2.0, -1.0, 2.0)))
    assert costs.fitted_costs(runs, [1.0, 4.0, 1.0]).encoded == 0


class Multiplying:
    """Multiplies each acquired and each new slice by itself once per step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def whole_heart(self, slices, factor):
        count = self.evaluations(len(slices), factor)
        for _ in range(count):
            torch.from_numpy(slices[0]) @ torch.from_numpy(slices[0])
        return ways.linear_between(slices, factor)

    def evaluations(self, acquired, factor, *, naive=False):
        new = (acquired - 1) * (factor - 1)
        return self.steps * ((2 * new if naive else acquired) + new)


class Searching(Multiplying):
    """As DeepRecon: a step on each acquired slice multiplies three times, a new slice once, and some come with each."""

    def whole_heart(self, slices, factor):
        new = (len(slices) - 1) * (factor - 1)
        for _ in range(self.steps * len(slices) * 3 + 5 * len(slices) + new):
            torch.from_numpy(slices[0]) @ torch.from_numpy(slices[0])
        return ways.linear_between(slices, factor)

    def evaluations(self, acquired, factor, *, naive=False):
        new = (acquired - 1) * (factor - 1)
        return self.steps * (2 * new if naive else acquired) + new


def test_operations_of_a_search_for_codes_are_counted_exactly():
    lines = [
        Contestant("CaLID", OURS, lambda steps: Multiplying(steps or 8), steps=8),
        Contestant("DeepRecon", OURS, lambda steps: Searching(steps or 1000)),
    ]
    row = speed.Race(lines, affordable=0, acquired=11, factor=8).results(rounds=1)[1]
    one = 2 * 128**3
    assert row["flops"] == pytest.approx(one * (1000 * 11 * 3 + 5 * 11 + 70))
    assert row["flops_naive"] == pytest.approx(one * (1000 * 140 * 3 + 5 * 140 + 70))


def test_making_a_slice_of_a_code_is_not_taken_for_a_step_of_the_search():
    probes = speed.PROBES[OURS]
    works = [costs.work_of(line("DeepRecon", None), Searching(steps), a, f) for a, f, steps in probes]
    seconds = [1.0 * steps * a + 0.5 * a + 0.1 * (a - 1) * (f - 1) for a, f, steps in probes]
    found = costs.fitted_costs(works, seconds)
    assert (found.evaluation, found.encoded, found.made) == pytest.approx((1.0, 0.5, 0.1))


def test_operations_of_a_whole_heart_are_counted_from_small_runs_exactly():
    multiplying = Contestant("CaLID", OURS, lambda steps: Multiplying(steps or 8), steps=8)
    row = speed.Race([multiplying], affordable=0, acquired=11, factor=8).results(rounds=1)[0]
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
            return ways.linear_between(slices, factor)

    watched = Contestant("CaLID", OURS, lambda steps: Watched(steps or 8), steps=8)
    rows = speed.Race([watched], affordable=1000, acquired=5, factor=2).results(rounds=2)
    assert seen.count(5) == 2
    assert rows[0]["measured"]
    seen.clear()
    speed.Race([watched], affordable=0, acquired=5, factor=2).results(rounds=2)
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
    runner = PlainRunner(Named("linear", ways.linear, upsample=ways.linear_between))
    assert runner.evaluations(11, 8) == 0
    assert runner.whole_heart(np.zeros((3, 8, 8), np.float32), 4).shape == (9, 8, 8)


def test_the_papers_sizes_come_from_the_papers_configurations():
    sizes = contestants.paper_sizes()
    assert sizes.denoiser.prediction == "epsilon"
    assert all(sizes.denoiser.condition_attention), "self-attention at each resolution scale"
    assert sizes.coder.downsampling == 4
    assert sizes.denoiser.latent_channels == sizes.coder.latent_channels


def test_our_size_runs_as_it_ships_and_the_papers_decodes_and_is_done():
    shipped = contestants.shipped_sizes(None)
    interpolator = contestants.untrained_interpolator(shipped, device="cpu")
    assert interpolator.model.motion is not None
    assert interpolator.knows_neighbors == isinstance(shipped.coder, CodecConfig)
    strengths = shipped.engine.get("strength", {"detail": None})
    assert interpolator.departures["detail"].strength == strengths["detail"]
    assert contestants.paper_sizes().motion is None
    assert contestants.paper_sizes().engine == {}


def test_the_output_says_so_where_other_processes_kept_the_machine_busy():
    made_on = {"processor": "one", "cores": 2}
    assert "Other processes kept 1.3 of these cores busy" in speed.markdown("task", [], made_on, 1.3)
    assert "Other processes" not in speed.markdown("task", [], made_on, 0.1)
    assert "Other processes" not in speed.markdown("task", [], made_on, None)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux says how busy its cores are")
def test_own_work_is_nobody_elses():
    """On one core, what this process and all others do adds up to no more than that core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        wall, others, cpu = time.perf_counter(), speed.OtherLoad(), time.process_time()
        while time.process_time() < cpu + 1:
            pass
        load, own = others.mean(), 1 / (time.perf_counter() - wall)
    finally:
        os.sched_setaffinity(0, allowed)
    assert 0 <= load <= 1.1 - own


def test_one_command_writes_times_and_ratios(random_models, tmp_path, monkeypatch):
    monkeypatch.setattr(contestants.rivals, "NAMES", ("regression U-Net",))
    options = ["--models", str(random_models), "--rounds", "1", "--no-paper", "--acquired", "3", "--factor", "2"]
    options += ["--systems", "linear", "regression U-Net", "CaLID+"]
    assert main(["speed", *options, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["load_of_others"] is None or record["load_of_others"] >= 0
    rows = {row["system"]: row for row in record["rows"]}
    assert set(rows) == {"linear", "regression U-Net", "CaLID", "CaLID+"}
    assert rows["CaLID"]["measured"]
    assert rows["CaLID+"]["ratio_evaluations"] == (2 + 3) / 2
    assert rows["CaLID+"]["flops"] > rows["CaLID"]["flops"] > 0
    assert rows["CaLID"]["slice_at_128"]["mean"] > 0
    assert record["made_by"]["machine"]["cores"] >= 1
    assert "3 slices to 5" in (tmp_path / "speed.md").read_text()
    assert len(list(tmp_path.glob("*.png"))) == 2
