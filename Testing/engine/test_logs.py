"""What the user is told: more, less, as JSON; and words that a shell completes."""

from __future__ import annotations

import json
import logging

import pytest
from calid.__main__ import build_parser, main
from calid.images.files import write_stack
from calid.run.logs import set_up_logging
from calid.run.progress import is_quiet
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
