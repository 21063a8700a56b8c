"""The engine process as 3D Slicer speaks to it: lines of JSON in, lines of ASCII JSON out."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import file_phantoms
import numpy as np
import pytest
from calid.errors import SettingsError
from calid.images.files import read_stack, write_stack
from calid.labels import LABELS
from calid.run.settings import OPTIONS
from calid.serve.commands import COMMANDS
from calid.serve.exchange import Exchange
from calid.stack import Stack
from phantoms import heart_labels, pictured
from test_reconstruct import cine

TIMEOUT_S = 600  # for what never happens; a busy machine may be slow


class Engine:
    """A real engine process."""

    def __init__(self, *arguments: str, environment: dict | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "calid", "serve", *arguments],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )

    def send(self, **request) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def until(self, *events: str) -> list[dict]:
        """All events up to the first of the named ones."""
        seen = []
        while not seen or seen[-1]["event"] not in events:
            line = self.process.stdout.readline()
            assert line, f"the engine ended after {seen}"
            seen.append(json.loads(line))
            assert seen[-1]["event"] in (*events, "ready", "progress", "log", "frame", "file", "case"), seen[-1]
        return seen


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    assert engine.until("ready")[-1]["protocol"] == 2
    yield engine
    engine.process.stdin.close()
    assert engine.process.wait(TIMEOUT_S) == 0


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    path = tmp_path / "sparse.nrrd"
    write_stack(cine(frames=3), path)
    return path


def test_a_cine_comes_back_frame_by_frame_and_whole(engine, sparse, tmp_path, random_models):
    frames = tmp_path / "frames"
    frames.mkdir()
    out = tmp_path / "dense.nrrd"
    engine.send(
        id="7",
        command="upsample",
        input=str(sparse),
        output=str(out),
        factor=2,
        steps=1,
        device="cpu",
        frames_folder=str(frames),
        models=str(random_models),
        roi=None,
    )
    events = engine.until("result", "error")
    assert events[-1]["event"] == "result", events[-1]
    assert events[-1]["output"] == str(out)
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    shown = [event for event in events if event["event"] == "frame"]
    assert [event["index"] for event in shown] == [0, 1, 2]
    dense = read_stack(out)
    for event in shown:
        assert (read_stack(Path(event["path"])).voxels[0] == dense.voxels[event["index"]]).all()


def test_errors_carry_code_message_and_remedy_and_the_engine_stays(engine, tmp_path):
    engine.send(id=1, command="upsample", input=str(tmp_path / "no.nrrd"), output=str(tmp_path / "out.nrrd"))
    error = engine.until("error", "result")[-1]
    assert error["id"] == 1
    assert error["code"]
    assert "no.nrrd" in error["message"]
    assert error["remedy"]
    engine.send(id=2, command="dance")
    assert engine.until("error")[-1]["code"] == "unknown-command"
    engine.process.stdin.write("not json\n")
    engine.process.stdin.flush()
    assert engine.until("error")[-1]["code"] == "bad-request"


def test_cancel_stops_a_run_and_leaves_no_file(engine, sparse, tmp_path, random_models):
    out = tmp_path / "dense.nrrd"
    engine.send(
        id="long",
        command="upsample",
        input=str(sparse),
        output=str(out),
        factor=16,
        steps=500,
        models=str(random_models),
        device="cpu",
    )
    engine.until("progress")
    engine.send(command="cancel", target="long")
    *before, last = engine.until("cancelled", "result")
    assert last == {"event": "cancelled", "id": "long"}
    assert all(event["fraction"] < 0.1 for event in before)  # of more than a minute's work, on whatever machine
    assert not out.exists()


def test_the_engine_ends_when_its_stdin_closes_even_in_a_run(sparse, tmp_path, random_models):
    engine = Engine()
    engine.until("ready")
    engine.send(
        id="long",
        command="upsample",
        input=str(sparse),
        output=str(tmp_path / "dense.nrrd"),
        factor=16,
        steps=500,
        models=str(random_models),
        device="cpu",
    )
    engine.until("progress")
    engine.process.stdin.close()
    assert engine.process.wait(TIMEOUT_S) == 0
    assert [path.name for path in tmp_path.iterdir() if "dense" in path.name] == []


def test_check_and_estimate_answer_before_a_run(engine, sparse, tmp_path, random_models):
    engine.send(id="c", command="check", input=str(sparse))
    assert [f for f in engine.until("result", "error")[-1]["findings"] if f["severity"] == "error"] == []
    one = tmp_path / "one.nrrd"
    write_stack(cine(slices=1), one)
    engine.send(id="d", command="check", input=str(one))
    found = engine.until("result", "error")[-1]["findings"]
    assert found
    assert all(finding["remedy"] for finding in found)
    engine.send(id="e", command="estimate", input=str(sparse), models=str(random_models), factor=4, device="cpu")
    answer = engine.until("result", "error")[-1]
    assert answer["seconds"] > 0
    assert answer["slices"] == 9
    assert answer["memory_bytes"] < answer["free_bytes"]
    assert answer["fits"]


def linear(sparse: Path, output: Path) -> dict:
    return {"command": "upsample", "input": str(sparse), "output": str(output), "factor": 2, "method": "linear"}


def test_a_cancel_that_comes_too_late_does_not_stop_a_later_request_of_that_name(engine, sparse, tmp_path):
    engine.send(id="a", **linear(sparse, tmp_path / "first.nrrd"))
    engine.until("result", "error")
    engine.send(command="cancel", target="a")
    engine.send(id="a", **linear(sparse, tmp_path / "second.nrrd"))
    assert engine.until("result", "error", "cancelled")[-1]["event"] == "result"
    assert (tmp_path / "second.nrrd").exists()


def test_a_request_that_is_cancelled_while_it_waits_is_never_begun(engine, sparse, tmp_path, random_models):
    out = tmp_path / "long.nrrd"
    long = {"factor": 16, "steps": 500, "models": str(random_models), "device": "cpu", "method": "calid"}
    engine.send(id="long", **linear(sparse, out) | long)
    engine.send(id="next", **linear(sparse, tmp_path / "next.nrrd"))
    engine.until("progress")
    engine.send(command="cancel", target="next")
    engine.send(command="cancel", target="long")
    assert engine.until("cancelled", "result")[-1]["id"] == "long"
    assert engine.until("cancelled", "result")[-1] == {"event": "cancelled", "id": "next"}
    assert not (tmp_path / "next.nrrd").exists()


def test_labels_come_with_closed_surfaces_of_every_frame(engine, tmp_path):
    heart, folder, labels = tmp_path / "heart.nrrd", tmp_path / "surfaces", tmp_path / "labels.nrrd"
    write_stack(pictured(heart_labels((2.6, 2.4, 10.0), contractions=(1.0, 0.8))), heart)
    folder.mkdir()
    engine.send(id="s", command="segment", input=str(heart), output=str(labels), surfaces_folder=str(folder))
    events = engine.until("result")
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    made = read_stack(labels)
    expected = {  # the bundled segmenter sees a heart in the phantom
        f"frame{frame:04d}-{label.key}.vtp"
        for frame in range(made.num_frames)
        for label in LABELS
        if (made.voxels[frame] == label.value).any()
    }
    assert expected
    assert {path.name for path in folder.iterdir()} == expected
    assert events[-1]["provenance"]["segmenter"]["name"] == "segmenter"


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "upsample", "output": "x.nrrd"},
        {"command": "upsample", "input": "a.nrrd", "output": "x.nrrd", "stpes": 8},
        {"command": "upsample", "input": 7, "output": "x.nrrd"},
        {"command": "upsample", "input": "a\0.nrrd", "output": "x.nrrd"},
        {"command": "upsample", "input": "\ud800.nrrd", "output": "x.nrrd"},
        {"command": "upsample", "input": "a.nrrd", "output": "x.nrrd", "overwrite": "no"},
        {"command": "estimate", "input": "a.nrrd", "num_frames": 100_000_000},
        {"command": "estimate", "input": "a.nrrd", "num_frames": "8"},
        {"command": "estimate", "input": "a.nrrd", "num_views": -1},
        {"command": ["upsample"]},
        {"command": {}},
    ],
    ids=[
        *("no input", "misspelt", "no path", "null", "surrogate", "no flag", "too many", "text", "negative", "list"),
        "object",
    ],
)
def test_a_request_that_makes_no_sense_says_so(engine, request_):
    engine.send(id=1, **request_)
    assert engine.until("error")[-1]["code"] == "bad-request"


def test_a_study_is_told_and_written_as_sequences_with_their_times(engine, tmp_path):
    sax = file_phantoms.noisy_stack((4, 5, 18, 24))
    file_phantoms.write_stack(tmp_path / "in" / "a", sax)
    view = file_phantoms.long_axis(sax)
    file_phantoms.write_stack(tmp_path / "in" / "b", view, series=lambda _t, _z: 40, description="4ch of secret-id")
    engine.send(id=1, command="study", input=str(tmp_path / "in"), folder=str(tmp_path / "out"))
    answer = engine.until("result")[-1]
    assert [(one["number"], one["role"]) for one in answer["study"]["series"]] == [
        *((number, "short axis") for number in range(5)),
        (40, "long axis"),
    ]
    assert answer["study"]["choice"]["slices"] == 5
    assert answer["study"]["confidence"] == "high"
    assert "ecret" not in json.dumps(answer)
    for path, expected in ((answer["sax"], sax), (answer["lax"][0]["path"], view)):
        found = read_stack(Path(path))
        assert (found.voxels == expected.voxels).all()
        assert found.frame_times_ms == pytest.approx(expected.frame_times_ms, abs=1e-3)
    engine.send(id=2, command="study", input=str(tmp_path / "in"), series=7)
    error = engine.until("error")[-1]
    assert (error["code"], "40" in error["message"]) == ("unknown-series", True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("steps", value) for value in ("8", 8.0, True, [8], {}, 0, 10**30, -1)],
        *[("factor", value) for value in (3, "2", True, [], 2.0)],
        *[("roi", value) for value in ("abc", [1, 2], [1, 2, 3, "4"], 7, {"x": 1})],
        *[("device", value) for value in ("abacus", 1, ["cpu"])],
        *[("seed", value) for value in (2**32, "0", [])],
        *[("mode", value) for value in (0, "sharp", ["detail"])],
    ],
)
def test_a_setting_that_is_not_possible_is_named(setting, value):
    request = {"command": "upsample", "input": "a.nrrd", "output": "x.nrrd", setting: value}
    with pytest.raises(SettingsError) as caught:
        COMMANDS["upsample"].check(request)
    assert caught.value.code == setting
    assert len(str(caught.value)) < 300


def test_an_unknown_device_is_refused_by_every_command(engine, sparse, tmp_path):
    engine.send(id=1, command="info", device="abacus")
    assert engine.until("error")[-1]["code"] == "device"
    engine.send(id=2, command="segment", input=str(sparse), output=str(tmp_path / "x.nrrd"), device="abacus")
    assert engine.until("error")[-1]["code"] == "device"


BAD_LINES = (
    b"\xff\xfe{\n",
    b"[" * 100_000 + b"\n",
    b'{"command":' * 20_000 + b"\n",
    b'{"id": {}, "command": "info"}\n',
    b'{"id": NaN, "command": "info"}\n',
    b'{"id": 1, "command": null}\n',
    b"[]\n",
    b"7\n",
    b'"upsample"\n',
    b"\x00\x00\n",
    b'{"command": "info"' + b" " * (3 << 20) + b"}\n",
)


def test_any_bytes_get_an_answer_and_the_end_of_stdin_ends_the_engine():
    """Each damaged line is answered by one error; the engine still answers then, and ends when its stdin does."""
    engine = Engine()
    engine.until("ready")
    pipe = engine.process.stdin.buffer
    for line in BAD_LINES:
        pipe.write(line)
        pipe.flush()
        assert engine.until("error")[-1]["code"] == "bad-request", line[:40]
    engine.send(id="still there", command="dance")
    assert engine.until("error")[-1] | {"message": "", "remedy": ""} == {
        **{"event": "error", "id": "still there", "code": "unknown-command"},
        **{"message": "", "remedy": ""},
    }
    pipe.write(b'\xff{"command": ')
    engine.process.stdin.close()
    assert engine.process.wait(TIMEOUT_S) == 0


def test_the_protocol_page_names_every_field_and_every_choice():
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `")}
    for name, command in COMMANDS.items():
        fields = command.fields
        said = set(re.findall(r"`([a-z_]+)`", rows[name].split("|")[3]))
        assert said >= (fields - set(OPTIONS) - {"models"} if "upsample" in said else fields), name
    for name in OPTIONS:
        for choice in OPTIONS[name].choices:
            shown = f'"{choice}"' if isinstance(choice, str) else str(choice)
            assert name == "device" or shown in rows["upsample"], (name, choice)


def test_a_caller_on_another_computer_sends_and_gets_the_files_through_the_lines(tmp_path):
    """With `--apart` requests name files of the caller's, which lie in a folder that goes with the engine."""
    stack = cine(frames=3)
    write_stack(stack, tmp_path / "mine.nrrd")
    there = tmp_path / "there"
    there.mkdir()
    engine = Engine("--apart", environment={"TMPDIR": str(there)})
    engine.until("ready")
    whole, half = (tmp_path / "mine.nrrd").read_bytes(), 1000
    for at, piece in ((0, whole[:half]), (half, whole[half:])):
        engine.send(id=1, command="put", name="input.nrrd", at=at, data=base64.b64encode(piece).decode())
    asked = {"input": "input.nrrd", "output": "dense.seq.nrrd", "frames_folder": "frames"}
    engine.send(id=1, command="upsample", method="linear", factor=2, **asked)
    events = engine.until("result")
    files = received(events)
    assert list(files) == ["frames/frame0000.nrrd", "frames/frame0001.nrrd", "frames/frame0002.nrrd", "dense.seq.nrrd"]
    assert events[-1]["output"] == "dense.seq.nrrd"
    assert [event["path"] for event in events if event["event"] == "frame"] == list(files)[:3]
    (tmp_path / "got.seq.nrrd").write_bytes(files["dense.seq.nrrd"])
    got = read_stack(tmp_path / "got.seq.nrrd")
    assert (got.voxels[:, ::2] == stack.voxels).all()
    assert str(there) not in json.dumps(events)
    (folder,) = there.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["dense.seq.nrrd", "frames", "input.nrrd"]
    engine.send(command="drop", names=["input.nrrd", "frames"])
    engine.send(id=2, command="check", input="input.nrrd")
    assert engine.until("error")[-1]["code"] == "missing-file"
    assert [path.name for path in folder.iterdir()] == ["dense.seq.nrrd"]
    engine.process.stdin.close()
    assert engine.process.wait(TIMEOUT_S) == 0
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../mine.nrrd", "a/b/c.nrrd", "", ".hidden", "a/../../b", 7, "C:\\x"])
def test_an_engine_apart_touches_no_file_beyond_its_folder(name, tmp_path):
    exchange = Exchange(tmp_path)
    for reach in (
        lambda: exchange.put({"command": "put", "name": name, "at": 0, "data": ""}),
        lambda: exchange.drop({"names": [name]}),
        lambda: exchange.request_here(COMMANDS["check"], {"command": "check", "input": name or "/"}),
    ):
        with pytest.raises(SettingsError) as error:
            reach()
        assert error.value.code == "bad-request"
    exchange.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_piece_that_does_not_follow_the_one_before_is_refused(tmp_path):
    exchange = Exchange(tmp_path)
    exchange.put({"name": "a.nrrd", "at": 0, "data": base64.b64encode(b"1234").decode()})
    for wrong in ({"at": 3, "data": ""}, {"at": 5, "data": ""}, {"at": None, "data": ""}, {"at": 4, "data": "!"}):
        with pytest.raises(SettingsError):
            exchange.put({"name": "a.nrrd", **wrong})
    exchange.put({"name": "a.nrrd", "at": 4, "data": base64.b64encode(b"56").decode()})
    assert (exchange.folder / "a.nrrd").read_bytes() == b"123456"
    assert exchange.folder.stat().st_mode & 0o077 == 0


def test_what_a_killed_engine_left_of_a_caller_goes_when_the_next_one_starts(tmp_path):
    engine = Engine("--apart", environment={"TMPDIR": str(tmp_path)})
    engine.until("ready")
    assert len(list(tmp_path.iterdir())) == 1
    engine.process.kill()
    engine.process.wait()
    assert len(list(tmp_path.iterdir())) == 1
    exchange = Exchange(tmp_path)
    assert list(tmp_path.iterdir()) == [exchange.folder]


def test_an_engine_apart_that_hears_nothing_for_long_ends_and_takes_the_files_along(tmp_path):
    program = (
        "import os, sys; from calid.serve import server, run; import argparse; "
        "server.Server.__init__.__kwdefaults__['silence_s'] = 0.5; sys.exit(run(argparse.Namespace(apart=True)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.wait(TIMEOUT_S) == 0  # though its stdin is open
    process.stdin.close()
    assert list(tmp_path.iterdir()) == []


def received(events: list[dict]) -> dict[str, bytes]:
    """The files that came in `file` events."""
    files: dict[str, bytes] = {}
    for event in events:
        if event["event"] == "file":
            before = files.get(event["name"], b"")
            assert event["at"] == len(before)
            files[event["name"]] = before + base64.b64decode(event["data"])
    sizes = {event["name"]: event["size"] for event in events if event["event"] == "file"}
    assert sizes == {name: len(content) for name, content in files.items()}
    return files


def test_long_axis_images_are_taken_along_and_told(engine, sparse, tmp_path):
    """The views beside the stack are looked at for the alignment, and named in what made the result."""
    views = tmp_path / "views"
    views.mkdir()
    stack = read_stack(sparse)
    affine = stack.affine[:, [2, 1, 0, 3]].copy()  # a plane through the stack, across its slices
    affine[:3, 0] /= 4
    affine[:3, 3] = stack.to_lps([stack.voxels.shape[3] / 2, 0.0, 0.0])
    image = np.moveaxis(stack.voxels[..., stack.voxels.shape[3] // 2], 1, -1)
    view = Stack(np.repeat(image, 4, axis=-1)[:, None], affine, stack.frame_times_ms)
    write_stack(view, views / "view 1.seq.nrrd")
    output = tmp_path / "dense.seq.nrrd"
    request = {"command": "upsample", "input": str(sparse), "output": str(output), "method": "linear", "factor": 2}
    engine.send(id=1, views=str(views), **request)
    told = engine.until("result", "error")[-1]
    assert told["event"] == "result", told
    assert [shift["name"] for shift in told["provenance"]["alignment"]["views"]] == ["view 1"]
    engine.send(id=2, views=str(tmp_path / "nowhere"), overwrite=True, **request)
    assert engine.until("error")[-1]["code"] == "missing-file"


def test_a_dense_stack_becomes_a_series_of_the_study_it_came_from(engine, tmp_path):
    pytest.importorskip("pydicom")
    study, output = tmp_path / "study", tmp_path / "derived"
    file_phantoms.write_stack(study, file_phantoms.noisy_stack((1, 4, 18, 20)))
    engine.send(id=1, command="upsample", input=str(study), output=str(tmp_path / "d.nrrd"), method="linear", factor=2)
    engine.until("result")
    engine.send(id=2, command="dicom", input=str(tmp_path / "d.nrrd"), source=str(study), output=str(output))
    told = engine.until("result")[-1]
    assert told["images"] == len(list(output.iterdir())) == 7
    engine.send(id=3, command="dicom", input=str(tmp_path / "d.nrrd"), source=str(tmp_path / "d.nrrd"), output="x")
    assert engine.until("error")[-1]["code"] in ("no-source", "missing-folder")


def test_a_folder_of_hearts_is_done_case_by_case_and_goes_on_where_it_stopped(engine, sparse, tmp_path):
    """The very work of `calid cohort`; a case that fails does not stop the others."""
    cases, out = tmp_path / "in", tmp_path / "out"
    cases.mkdir()
    (cases / "a.nrrd").write_bytes(sparse.read_bytes())
    (cases / "broken.nrrd").write_bytes(b"no image")
    request = {"command": "cohort", "input": str(cases), "output": str(out), "method": "linear", "factor": 2}
    request |= {"segment": False, "keep": ["dense"], "workers": 1}
    engine.send(id=1, **request)
    events = engine.until("result")
    told = [(event["name"], event["outcome"], event["done"]) for event in events if event["event"] == "case"]
    assert told == [(None, None, 0), ("a", "done", 1), ("broken", "failed", 2)]
    assert events[-1]["failed"] == ["broken"]
    assert Path(events[-1]["table"]).read_text().count("\na,") == 1
    assert read_stack(out / "cases" / "a" / "dense.seq.nrrd").num_slices == 2 * read_stack(sparse).num_slices - 1
    engine.send(id=2, **{**request, "keep": ["everything"]})
    assert engine.until("error")[-1]["code"] == "bad-request"
    engine.send(id=3, **request)
    again = engine.until("result")
    assert [(event["name"], event["done"]) for event in again if event["event"] == "case"] == [(None, 1), ("broken", 2)]
