"""The engine as a child process: lines in and out, its death in words, its tree ended, its environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from CaLIDReconstructLib.EngineClient import EngineClient
from CaLIDReconstructLib.EngineProcess import EngineCommand, EngineProcess, engineCommand
from processes import is_alive, wait_until

FAKE = Path(__file__).parent / "fake_engine.py"


def fakeClient(behavior: str, *arguments: str, **options) -> EngineClient:
    command = EngineCommand((sys.executable, str(FAKE), behavior, *arguments), os.environ, str(FAKE.parent))
    return EngineClient(lambda: EngineProcess(command), **options)


def ask(client: EngineClient, *, isCancelled: bool = False) -> list[dict]:
    """Put one request and poll until its last event; returns its events.

    Args:
        client: gets the request.
        isCancelled: whether the request is cancelled once the engine is at work on it.
    """
    events: list[dict] = []
    requestId = client.request("upsample", events.append)

    def isDone() -> bool:
        client.poll()
        if isCancelled and events:
            client.cancel(requestId)
        return not client.isBusy

    wait_until(isDone)
    return events


def test_progress_and_result_arrive_in_order():
    client = fakeClient("good")
    assert [event["event"] for event in ask(client)] == ["progress", "result"]
    client.shutdown()


def test_one_engine_serves_many_requests():
    client = fakeClient("good")
    ask(client)
    first = client._transport.process.pid
    ask(client)
    assert client._transport.process.pid == first
    client.shutdown()


@pytest.mark.parametrize(
    ("behavior", "code", "word"),
    [
        ("crash", "engine-crashed", "something broke"),
        ("kill", "engine-killed", "exit code -9"),
        ("memory", "memory", "DefaultCPUAllocator"),
        ("missing", "engine-missing", "torch"),
    ],
)
def test_the_death_of_the_engine_is_told_apart(behavior, code, word):
    (event,) = ask(fakeClient(behavior))
    assert event["event"] == "error"
    assert event["code"] == code
    assert word in event["message"]


def test_an_engine_that_is_killed_behind_the_launcher_is_called_killed():
    (event,) = ask(fakeClient("launched", "kill"))
    assert event["code"] == "engine-killed"
    assert event["message"] == "(exit code 1)"
    (event,) = ask(fakeClient("launched", "crash"))
    assert event["code"] == "engine-crashed"


def test_an_interpreter_that_does_not_exist_is_an_error_and_no_exception():
    command = EngineCommand(("/no/such/python", "-m", "calid"), os.environ, str(FAKE.parent))
    (event,) = ask(EngineClient(lambda: EngineProcess(command)))
    assert event["code"] == "engine-not-started"


def test_a_new_engine_is_started_after_a_crash():
    behaviors = iter(["crash", "good"])
    client = EngineClient(
        lambda: EngineProcess(EngineCommand((sys.executable, str(FAKE), next(behaviors)), os.environ, str(FAKE.parent)))
    )
    assert ask(client)[-1]["event"] == "error"
    assert ask(client)[-1]["event"] == "result"
    client.shutdown()


def test_lines_that_are_no_events_are_logged_and_do_not_end_the_run():
    client = fakeClient("rubbish")
    heard = []
    client.onLog = lambda level, message: heard.append((level, message))
    assert ask(client)[-1]["event"] == "result"
    client.shutdown()
    assert sum(level == "warning" for level, _ in heard) == 3
    assert any("Downloading" in message for _, message in heard)


@pytest.mark.parametrize("behavior", ["hang", "slow"])
def test_cancel_takes_effect_within_two_seconds_even_when_the_engine_does_not_listen(behavior):
    """By the client's clock, and for its end in seconds of the processor: a busy machine is no fault of theirs."""
    now, events = [100.0], []
    client = fakeClient(behavior, clock=lambda: now[0])
    requestId = client.request("upsample", events.append)
    process = client._transport.process
    if behavior == "hang":  # the other one has not even started
        wait_until(lambda: client.poll() or events)
    client.cancel(requestId)
    now[0] += 0.5
    client.poll()
    assert client.isBusy, "it has time to obey"
    now[0] += 1.0
    used = time.process_time()
    client.poll()
    assert time.process_time() - used < 0.5
    assert events[-1]["event"] == "cancelled"
    assert not client.isBusy
    assert not client.isRunning
    wait_until(lambda: not is_alive(process.pid))


def test_a_cancelled_engine_leaves_no_child_behind(tmp_path):
    pids = tmp_path / "pids"
    assert ask(fakeClient("child", str(pids)), isCancelled=True)[-1]["event"] == "cancelled"
    engine, child = map(int, pids.read_text().split())
    wait_until(lambda: not is_alive(engine) and not is_alive(child))


def test_the_engine_ends_when_its_stdin_closes():
    client = fakeClient("good")
    ask(client)
    process = client._transport.process
    process.stdin.close()
    assert process.wait(timeout=300) == 0


def test_shutdown_answers_what_is_under_way_and_ends_the_engine():
    client = fakeClient("hang")
    events = []
    client.request("upsample", events.append)
    process = client._transport.process
    client.shutdown()
    assert events[-1]["event"] == "cancelled"
    assert process.poll() is not None


def test_another_interpreter_gets_no_slicer_paths_but_finds_the_engine():
    environment = {"PYTHONHOME": "/slicer", "PYTHONPATH": "/slicer/lib", "PATH": "/bin"}
    command = engineCommand("/opt/python", environment=environment, moduleFolder=Path("/module"))
    assert command.arguments == ("/opt/python", "-m", "calid", "serve")
    assert "PYTHONHOME" not in command.environment
    assert command.environment["PYTHONPATH"] == "/module"


def test_slicers_own_interpreter_keeps_its_paths():
    environment = {"PYTHONHOME": "/slicer", "PYTHONPATH": "/slicer/lib"}
    command = engineCommand("", environment=environment, moduleFolder=Path("/module"))
    assert command.environment["PYTHONHOME"] == "/slicer"
    assert command.environment["PYTHONPATH"] == os.pathsep.join(["/module", "/slicer/lib"])
    assert environment == {"PYTHONHOME": "/slicer", "PYTHONPATH": "/slicer/lib"}
