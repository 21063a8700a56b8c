"""What the user is told: more, less, as JSON, by exit codes; and words that a shell completes."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import calid.__main__ as command_line
import numpy as np
import pytest
from calid.__main__ import build_parser, main
from calid.images.files import write_stack
from calid.run import progress
from calid.run.logs import is_quiet, set_up_logging, unsaid
from test_reconstruct import cine


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_up_logging()


@pytest.fixture
def twice(tmp_path) -> list[str]:
    """A command that warns: it upsamples what was upsampled before."""
    write_stack(cine(frames=1), tmp_path / "sparse.nrrd")
    options = ["--method", "linear", "--factor", "2"]
    assert main(["upsample", str(tmp_path / "sparse.nrrd"), str(tmp_path / "once.nrrd"), *options]) == 0
    return ["upsample", str(tmp_path / "once.nrrd"), str(tmp_path / "twice.nrrd"), *options]


def test_a_log_of_json_has_an_object_per_line(twice, capsys):
    assert main(["--log-json", *twice]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["warning"]
    assert "generated before" in lines[0]["message"]
    assert lines[0]["time"].endswith("+00:00")


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_errors_are_json_too_with_code_and_remedy(twice, capsys, monkeypatch):
    assert main(["--log-json", *twice]) == 0
    capsys.readouterr()
    assert main(["--log-json", *twice]) == 2
    error = objects(capsys.readouterr().err)[-1]
    assert (error["level"], error["logger"], error["code"]) == ("error", "calid", "exists")
    assert "exists already" in error["message"]
    assert error["remedy"]
    with pytest.raises(SystemExit) as stop:
        main(["--log-json", "upsample", "--no-such-option"])
    assert stop.value.code == 2
    (error,) = objects(capsys.readouterr().err)
    assert error["code"] == "usage"
    assert error["remedy"] == "See calid upsample --help."
    monkeypatch.setattr(command_line, "_info", interrupted)
    assert main(["--log-json", "info"]) == 130
    assert objects(capsys.readouterr().err)[-1]["code"] == "cancelled"


def interrupted(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_defect_of_ours_is_json_with_its_place_for_those_who_ask(capsys, monkeypatch, is_asked):
    monkeypatch.setattr(command_line, "_info", lambda _: 1 // 0)
    monkeypatch.setenv("CALID_DEBUG", "1" if is_asked else "")
    assert main(["--log-json", "info"]) == 1
    (error,) = objects(capsys.readouterr().err)
    assert error["code"] == "internal"
    assert "ZeroDivisionError" in error["message"]
    assert ("test_logs.py" in error.get("exception", "")) == is_asked


def test_what_is_told_what_libraries_warn_of_and_how_far_a_run_is_are_json_too(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)

    def run(_):
        command_line.tell("Series 3 is the short axis.")
        warnings.warn("old habits", stacklevel=1)
        with progress.progress_bar() as bar:
            progress.shown_on(bar)(progress.Progress(0.5, "upsampling", 3.0))
        return 0

    monkeypatch.setattr(command_line, "_info", run)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["--log-json", "info"]) == 0
    told, warned, done = objects(capsys.readouterr().err)
    assert told["message"] == "Series 3 is the short axis."
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")
    assert "old habits" in warned["message"]
    assert done["fraction"] == 0.5
    assert "upsampling" in done["message"]


def test_without_a_terminal_a_line_now_and_then_says_how_far_a_run_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for words, said in (([], [" 25%", " 50%"]), (["-q"], [])):

        def run(_):
            with progress.progress_bar() as bar:
                for fraction in (0.25, 0.5):
                    progress.shown_on(bar)(progress.Progress(fraction, "upsampling", 3.0))
            return 0

        monkeypatch.setattr(command_line, "_info", run)
        assert main([*words, "info"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == len(said)
        for line, share in zip(lines, said, strict=True):
            assert re.fullmatch(rf"upsampling: {share}, [\d:?]+ left", line)


def test_a_cohorts_workers_log_as_it_was_asked_and_name_cases_only(tmp_path):
    """The second case warns, in a worker; the third cannot be read."""
    write_stack(cine(frames=1), tmp_path / "Anna.nrrd")
    write_stack(replace(cine(), frame_times_ms=np.array([0.0, 1.0])), tmp_path / "Berta.seq.nrrd")
    (tmp_path / "Carla.nrrd").write_text("no volume")
    (tmp_path / "list.csv").write_text("case,path\nP1,Anna.nrrd\nP2,Berta.seq.nrrd\nP3,Carla.nrrd\n")
    asked = ["cohort", str(tmp_path / "list.csv"), str(tmp_path / "out"), "--workers", "1", "--no-segment"]
    line = [sys.executable, "-m", "calid", "--log-json", *asked, "--no-trust", "--method", "linear", "--factor", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    told = objects(done.stderr)
    assert [one["case"] for one in told if one.get("code") == "case-failed"] == ["P3"]
    assert [one["message"][:4] for one in told if one["level"] == "warning"] == ["P2: "]
    assert not re.search("Anna|Berta|Carla", done.stderr)


def test_quiet_means_errors_only(twice, capsys, caplog):
    assert main(["-q", *twice]) == 0
    assert is_quiet()
    assert "generated before" not in caplog.text
    assert capsys.readouterr().err == ""
    assert main(["-q", *twice]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "level"), [([], 30), (["-v"], 20), (["-vv"], 10), (["-vvvv"], 10), (["-qq"], 40)])
def test_more_and_less_is_told_on_demand(words, level):
    options = build_parser([*words, "info"]).parse_args([*words, "info"])
    set_up_logging(verbosity=options.verbose - options.quiet)
    assert logging.getLogger("calid").level == level


@pytest.mark.parametrize(("words", "told"), [([], "0000"), (["-v"], "1011"), (["-vv"], "1111"), (["-q"], "0000")])
def test_who_asks_for_more_is_told_what_is_done_and_with_which_settings(tmp_path, words, told):
    write_stack(cine(frames=1, slices=6), tmp_path / "sparse.nrrd")
    paths = [str(tmp_path / name) for name in ("sparse.nrrd", "dense.nrrd")]
    line = [sys.executable, "-m", "calid", *words, "upsample", *paths, "--method", "linear", "--factor", "2"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stderr.splitlines()
    plan, settings = (
        r"6 slices to 11, 1 frame\(s\), by linear interpolation",
        r"Settings\(factor=2, method='linear'.*\)",
    )
    lines = (plan, settings, r"\d+\.\d s: comparing breath-holds", r"\d+\.\d s: interpolating")
    expected = [f"calid: {one}" for one, is_told in zip(lines, told, strict=True) if is_told == "1"]
    assert len(said) == len(expected), said
    assert all(re.fullmatch(one, line) for one, line in zip(expected, said, strict=True)), said


def test_runs_that_judge_another_one_say_nothing(caplog):
    log = logging.getLogger("calid")
    with unsaid():
        log.warning("of the run that judges")
    log.warning("of the run itself")
    assert [record.message for record in caplog.records] == ["of the run itself"]


def test_a_command_after_options_has_its_own_arguments(capsys):
    with pytest.raises(SystemExit):
        main(["-q", "cohort", "--help"])
    assert "--scheduler" in capsys.readouterr().out


def test_shells_learn_all_commands(capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for word in ("upsample", "cohort", "--scheduler", "--uncertainty"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("calid up", {"upsample"}),
        ("calid --log", {"--log-json"}),
        ("calid upsample --uncer", {"--uncertainty"}),
        ("calid upsample --method cal", {"calid", "calid+"}),
        ("calid cohort --sch", {"--scheduler"}),
        ("calid segment --device cu", {"cuda"}),
        ("calid upsample spar", {"sparse.nrrd"}),
        ("calid upsample sparse.nrrd out.nrrd --models mod", {"models"}),
        ("calid cohort lis", {"list.csv"}),
        ("calid completion ", {"bash", "zsh", "tcsh"}),
    ],
)
def test_bash_completes_commands_options_values_and_files(tmp_path, capsys, typed, offered):
    pytest.importorskip("shtab")
    for name in ("sparse.nrrd", "list.csv"):
        (tmp_path / name).touch()
    (tmp_path / "models").mkdir()
    assert main(["completion", "bash"]) == 0
    (tmp_path / "calid.bash").write_text(capsys.readouterr().out)
    words = " ".join(f"'{word}'" for word in typed.split(" "))
    script = f"source calid.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); complete -p calid\n"
    script += "_shtab_calid; printf '%s\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    registered, *found = done.stdout.splitlines()
    assert registered.endswith("-F _shtab_calid calid")
    assert {word.strip() for word in found} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_what_a_shell_is_given_is_in_its_language(tmp_path, capsys, shell):
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- exit codes -------------------------------------------------------------------------------------------------------

OTHERWISE = "import sys, time, calid.__main__ as c; c._info = lambda _: {}; sys.exit(c.main(['info']))"
"""A program in which `calid info` does something else."""


def ended(*arguments: str) -> int:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode


def test_every_exit_code_of_the_page_is_what_a_process_ends_with(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [0, 1, 2, 3, 130]
    assert ended("-m", "calid", "--version") == 0
    assert ended("-c", OTHERWISE.format("1 // 0")) == 1
    assert ended("-m", "calid", "upsample", "--no-such-option") == 2
    assert ended("-m", "calid", "upsample", str(tmp_path / "none.nrrd"), str(tmp_path / "out.nrrd")) == 2
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.nrrd").write_text("no volume")
    cohort = ["cohort", str(tmp_path / "in"), str(tmp_path / "out"), "--no-segment", "--method", "linear"]
    assert ended("-m", "calid", *cohort, "--workers", "1") == 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_end_ends_with_130(number):
    waiting = "(print('here', flush=True), [time.sleep(0.1) for _ in range(6000)])"  # naps, see `test_outputs.started`
    heard = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests may run in the background
    )
    with subprocess.Popen([sys.executable, "-c", heard + OTHERWISE.format(waiting)], stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"here\n"
        running.send_signal(number)
        assert running.wait(timeout=300) == 130
