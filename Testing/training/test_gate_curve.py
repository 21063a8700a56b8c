"""What every hour of training brought: logs of known times, and the command on a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark.evaluate import main
from calid_benchmark.tables.gate_curve import PAUSE_SECONDS, epochs_of, hours_of, markdown, working_seconds


def log(run: Path, version: int, lines: list[tuple[str, int, float, float]]) -> None:
    """Write (tag, step, time of the clock, value) as TensorBoard's events of one start of a run."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run / "lightning_logs" / f"version_{version}"))
    for tag, step, time, value in lines:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(step=step, wall_time=time, summary=summary))
    writer.close()


@pytest.fixture
def stopped_run(tmp_path: Path) -> Path:
    """A run of two hours that stood still for a day in its middle."""
    run, start = tmp_path / "codec", 1_700_000_000.0
    first = [("train/l1", 20 * index, start + 60 * index, 0.1) for index in range(61)]
    again = [("train/l1", 20 * index, start + 86_400 + 60 * index, 0.1) for index in range(61, 121)]
    log(run, 0, [*first, ("val/lpips", 1200, start + 3600, 0.25)])
    log(run, 1, [*again, ("val/lpips", 2400, start + 86_400 + 7200, 0.125)])
    return run


def test_a_pause_between_two_starts_is_not_counted(stopped_run):
    assert hours_of(stopped_run) == pytest.approx((3600 + 59 * 60) / 3600)
    assert working_seconds([0, PAUSE_SECONDS, 2 * PAUSE_SECONDS + 1]) == [0, PAUSE_SECONDS, PAUSE_SECONDS]
    assert working_seconds([]) == []


def test_every_validation_has_its_step_and_its_hours(stopped_run):
    first, last = epochs_of(stopped_run)
    assert first == {"step": 1200, "hours": pytest.approx(1.0), "lpips": 0.25}
    assert last["lpips"] == 0.125
    assert "| 2,400 | 1.98 | 0.125 |" in markdown([], {"codec": [first, last]})


def test_a_run_without_a_log_has_no_hours(tmp_path):
    assert hours_of(tmp_path) is None
    assert epochs_of(tmp_path) == []


def test_the_command_writes_what_the_runs_logged(stopped_run, tmp_path, random_models):
    out = tmp_path / "out"
    command = ["gate-curve", str(stopped_run), "--logs-only", "--models", str(random_models), "--out", str(out)]
    assert main(command) == 0
    assert "**codec**, validation crops" in (out / "gate-curve.md").read_text()
    assert [row["step"] for row in json.loads((out / "gate-curve.json").read_text())["epochs"]["codec"]] == [1200, 2400]
