"""What a run may write where: never onto an input, whole or not at all, and nothing left when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import file_phantoms
import numpy as np
import pytest
from calid.__main__ import main
from calid.errors import OutputError, WeightsError
from calid.images import whole_file
from calid.images.files import check_fits, check_output, read_lax_folder, read_stack, write_stack
from calid.method.weights import read_manifest
from processes import is_alive, wait_until

LINEAR = ("--method", "linear", "--factor", "2")

posix = pytest.mark.skipif(os.name != "posix", reason="Windows has other signals")


@pytest.fixture
def sparse(tmp_path) -> Path:
    """A stack in a folder of its own."""
    (tmp_path / "in").mkdir()
    write_stack(file_phantoms.noisy_stack((2, 4, 18, 20)), tmp_path / "in" / "sparse.nrrd")
    return tmp_path / "in" / "sparse.nrrd"


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Inputs stay ------------------------------------------------------------------------------------------------------


def spellings(path: Path) -> dict[str, Path]:
    """The same file by other names."""
    link, hard, folder = (path.with_name(name) for name in ("link.nrrd", "hard.nrrd", "folder"))
    link.symlink_to(path)
    hard.hardlink_to(path)
    folder.symlink_to(path.parent, target_is_directory=True)
    return {"itself": path, "dots": path.parent / ".." / path.parent.name / path.name, "link": link, "hard": hard,
            "by a linked folder": folder / path.name, "relative": Path(os.path.relpath(path))}  # fmt: skip


@pytest.mark.parametrize("option", ["output", "uncertainty"])
def test_no_output_replaces_the_input_by_whatever_name(sparse, tmp_path, option, capsys):
    before = sparse.read_bytes()
    for name, path in spellings(sparse).items():
        words = ["upsample", str(sparse), str(path), *LINEAR, "--overwrite"]
        if option == "uncertainty":
            words = ["upsample", str(sparse), str(tmp_path / "out.nrrd"), "--uncertainty", str(path), "--overwrite"]
        assert main(words) == 2, name
        assert "is an input" in capsys.readouterr().err, name
    assert sparse.read_bytes() == before
    assert not (tmp_path / "out.nrrd").exists()


def test_no_output_lies_in_the_folder_that_is_read(tmp_path, capsys):
    folder = tmp_path / "study"
    file_phantoms.write_stack(folder, file_phantoms.noisy_stack((2, 4, 18, 20)))
    before = contents_of(folder)
    for place in (folder, folder / "s0", folder / "s0" / ".." / "s1"):
        for words in (
            ["upsample", str(folder), str(place / "out.nrrd"), *LINEAR],
            ["segment", str(folder), str(place / "out.seg.nrrd")],
            ["report", str(folder), str(place / "out.html")],
            ["report", str(folder), str(tmp_path / "out.html"), "--json", str(place / "out.json")],
        ):
            assert main(words) == 2
            assert "is an input." in capsys.readouterr().err
    assert contents_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_an_output_beside_the_input_file_is_fine(sparse):
    assert main(["upsample", str(sparse), str(sparse.with_name("dense.nrrd")), *LINEAR]) == 0


@pytest.mark.parametrize(
    "words", [["segment", "{f}", "{f}"], ["report", "{f}", "{o}", "--labels", "{f}", "--json", "{f}"]]
)
def test_segment_and_report_keep_the_input(sparse, tmp_path, words):
    before = sparse.read_bytes()
    assert main([word.format(f=sparse, o=tmp_path / "o.html") for word in words] + ["--overwrite"]) == 2
    assert sparse.read_bytes() == before


# --- Asked before the run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [246, 250, 255])
def test_a_name_as_long_as_the_disk_allows_is_written(sparse, tmp_path, length):
    output = tmp_path / ("x" * (length - 5) + ".nrrd")
    assert main(["upsample", str(sparse), str(output), *LINEAR]) == 0
    assert read_stack(output).num_slices == 7


@pytest.mark.parametrize("name", ["x" * 251 + ".nrrd", "é" * 126 + ".nrrd", "x" * 295 + ".nrrd"])
def test_a_longer_name_is_refused_before_anything_is_read(tmp_path, name, capsys):
    assert main(["upsample", str(tmp_path / "missing.nrrd"), str(tmp_path / name), *LINEAR]) == 2
    assert "bytes; 255 are possible" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a\0b.nrrd", "x" * 300 + "/a.nrrd", "loop/a.nrrd"])
def test_paths_that_no_file_can_have_are_refused(tmp_path, path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError):
        check_output(tmp_path / path)


@pytest.mark.parametrize("suffix", [".nrrd", ".seq.nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.zeros(2)])
def test_a_provenance_that_json_cannot_say_is_found_before_the_run(tmp_path, suffix, value):
    with pytest.raises(OutputError) as error:
        check_fits(file_phantoms.noisy_stack((2, 4, 18, 20)).noted(odd=value), tmp_path / f"a{suffix}")
    assert error.value.code == "bad-provenance"


@pytest.mark.parametrize("suffix", [".nrrd", ".seq.nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("length", [19_000, 29_000, 40_000, 600_000, 2_000_000])
def test_what_fits_can_be_read_again(tmp_path, suffix, length):
    stack = file_phantoms.noisy_stack((1, 4, 18, 20)).noted(log='"' + "x" * length)
    limits = {".mha": 20_000, ".nii.gz": 500_000}
    if length > limits.get(suffix, 29_500):
        with pytest.raises(OutputError) as error:
            check_fits(stack, tmp_path / f"a{suffix}")
        assert error.value.code == "header-too-long"
        return
    write_stack(stack, tmp_path / f"a{suffix}")
    assert read_stack(tmp_path / f"a{suffix}").provenance == stack.provenance


def test_a_disk_without_room_for_an_uncompressed_file_is_found_before_the_run(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("calid.images.whole_file.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError) as error:
        check_fits(file_phantoms.noisy_stack((2, 4, 18, 20)), tmp_path / "a.nii")
    assert error.value.code == "disk-full"


def test_labels_that_are_missing_end_a_report_before_the_work(sparse, tmp_path, capsys):
    words = ["report", str(sparse), str(tmp_path / "r.html"), "--labels", str(tmp_path / "none.nrrd"), *LINEAR]
    assert main(words) == 2
    assert "none.nrrd does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["[1]", '{"models": 5}', '{"models": [1]}', '{"models": {"a": 1}}', '{"models": [{"name": 5}]}', "[" * 100_000,
     '{"models": [{"name": "a", "file": "a", "sha256": 1, "bytes": "x", "license": "MIT", "config": []}]}'],
)  # fmt: skip
def test_a_manifest_of_wrong_types_is_one_clear_error(tmp_path, text):
    (tmp_path / "models.json").write_text(text)
    with pytest.raises(WeightsError) as error:
        read_manifest(tmp_path)
    assert error.value.code == "bad-manifest"


# --- Nothing is left --------------------------------------------------------------------------------------------------


def started(sparse: Path, output: Path) -> subprocess.Popen:
    """`calid upsample` in a process of its own that has begun to write and goes on only when we are gone.

    It waits in naps: Python runs a signal's handler between two instructions, and one that came in just before a single
    long sleep would be heard after it.
    """
    code = f"""
import os, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
from calid.images import whole_file
from calid.run import signals
signals.SAME_WISH_S = 600  # however late a busy machine sends the second one
fsync = os.fsync
def slow(number):
    print("writing", flush=True)
    while os.getppid() == {os.getpid()}:
        time.sleep(0.1)
    fsync(number)
whole_file.os.fsync = slow
from calid.__main__ import main
sys.exit(main({["upsample", str(sparse), str(output), *LINEAR, "--align", "off", "--overwrite"]!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".calid-")]


@posix
@pytest.mark.parametrize("signals", [["SIGTERM"] * 5, ["SIGINT", "SIGTERM"], ["SIGHUP"]])
def test_a_run_that_is_ended_while_it_writes_leaves_nothing(sparse, tmp_path, signals):
    (tmp_path / "out").mkdir()
    process = started(sparse, tmp_path / "out" / "a.nrrd")
    assert len(temporary_files(tmp_path / "out")) == 1
    for name in signals:
        process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert said == "calid: error: cancelled; nothing was written\n"
    assert list((tmp_path / "out").iterdir()) == []


@posix
def test_what_a_killed_run_left_is_swept_by_the_next_and_nothing_else(sparse, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    killed = started(sparse, folder / "a.nrrd")
    running = started(sparse, folder / "b.nrrd")
    killed.kill()
    killed.wait()
    (left,) = (name for name in temporary_files(folder) if f"-{killed.pid}-" in name)
    (alive,) = (name for name in temporary_files(folder) if f"-{running.pid}-" in name)
    others = [".calid-notes.nrrd", ".calid-00000000-1-00000000", f"{left}.bak", left[1:], ".x.nrrd"]
    others.append(".calid-00000000-999999999-00000000.nrrd")  # of another machine
    for name in others:
        (folder / name).write_text("mine")
    assert main(["upsample", str(sparse), str(folder / "c.nrrd"), *LINEAR]) == 0
    assert {path.name for path in folder.iterdir()} == {"c.nrrd", alive, *others}
    running.kill()
    running.wait()


def test_a_temporary_file_of_another_machine_is_swept_when_it_is_old(sparse, tmp_path):
    """Process numbers of another machine mean nothing here."""
    old, new = (tmp_path / f".calid-{'0' * 8}-{os.getpid()}-{letter * 8}.nrrd" for letter in "ab")
    old.write_text("")
    new.write_text("")
    days_ago = time.time() - 3 * whole_file.ABANDONED_SECONDS
    os.utime(old, (days_ago, days_ago))
    assert main(["upsample", str(sparse), str(tmp_path / "c.nrrd"), *LINEAR]) == 0
    assert new.exists()
    assert not old.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_an_ended_process_left_is_swept_though_nobody_has_asked_how_it_ended(tmp_path):
    """In a container without an init process orphans stay on the list of processes."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        wait_until(lambda: not is_alive(ended.pid))
        left, ours = (
            tmp_path / whole_file.temporary_name(".nrrd").replace(f"-{os.getpid()}-", f"-{process}-")
            for process in (ended.pid, os.getpid())
        )
        left.write_text("")
        ours.write_text("")
        whole_file.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [ours]


@pytest.mark.parametrize(("handle", "error", "expected"), [(64, 0, True), (0, 5, True), (0, 87, False)])
def test_on_windows_a_process_that_may_not_be_asked_is_at_work(monkeypatch, handle, error, expected):
    """Of another user, say: its files are not swept; error 87 tells that there is no such process."""
    kernel = SimpleNamespace(OpenProcess=lambda *_: handle, CloseHandle=lambda _: None)
    monkeypatch.setattr(whole_file, "sys", SimpleNamespace(platform="win32"))
    windows = SimpleNamespace(WinDLL=lambda *_, **__: kernel, get_last_error=lambda: error, c_ulong=int)
    monkeypatch.setattr(whole_file, "ctypes", windows)
    assert whole_file.is_at_work(4242) is expected


def test_hidden_files_are_no_long_axis_images(tmp_path):
    """macOS keeps `._view.nrrd` beside `view.nrrd` on foreign disks; a run may be writing."""
    write_stack(file_phantoms.noisy_stack((2, 1, 18, 20)), tmp_path / "2ch.nrrd")
    (tmp_path / "._2ch.nrrd").write_bytes(b"Mac OS X")
    (tmp_path / ".calid-00000000-1-00000000.nrrd").write_bytes(b"")
    assert [image.name for image in read_lax_folder(tmp_path)] == ["2ch"]


def test_requests_that_would_write_into_their_input_are_refused(tmp_path):
    """The panel's folders for frames, surfaces and views are the engine's outputs as well."""
    from calid.serve import commands

    folder = tmp_path / "study"
    file_phantoms.write_stack(folder, file_phantoms.noisy_stack((2, 4, 18, 20)))
    before = contents_of(folder)
    output = str(tmp_path / "o.nrrd")
    for request in (
        {
            "command": "upsample",
            "input": str(folder),
            "output": output,
            "method": "linear",
            "frames_folder": str(folder),
        },
        {"command": "segment", "input": str(folder), "output": output, "surfaces_folder": str(folder / "s0")},
        {"command": "study", "input": str(folder), "folder": str(folder / "new")},
    ):
        with pytest.raises(OutputError) as error:
            commands.COMMANDS[request["command"]].answer(request, lambda: False, lambda *_, **__: None)
        assert error.value.code == "output-is-input"
    assert contents_of(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["study"]
