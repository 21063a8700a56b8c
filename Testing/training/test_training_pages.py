"""The commands on the pages about training: those of the how-to page run, the others are commands."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

from calid.errors import CalidError
from calid.images.files import write_stack
from calid_benchmark import evaluate
from calid_benchmark.evaluate import build_parser
from calid_benchmark.tables import TABLES
from calid_training import train
from calid_training.errors import UsageError
from calid_training.export import build_parser as export_parser
from calid_training.stages import CONFIGS, all_stages
from calid_training.train import main
from phantoms import beating_case
from training_runs import ON_CPU

ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to" / "train-a-model.md"
PAGES = [HOW_TO, *(ROOT / "CaLIDTraining").glob("*.md"), ROOT / "CaLIDTraining" / "weights" / "README.md"]
QUICK = [*ON_CPU, "--trainer.max_epochs", "1", "--data.batches", "1", "--data.validation_batches", "1"]
QUICK += ["--data.batch_size", "2", "--data.sizes", "[32]", "--data.size_weights", "[1.0]"]
QUICK += ["--model.network.features", "[8,8,8,8,8,8]"]


def blocks(page: Path, kind: str) -> list[str]:
    """The blocks of a kind on a page, with the lines that go on put together."""
    found = re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def test_the_how_to_page_trains_on_hearts_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (table,) = blocks(HOW_TO, "csv")
    mine = Path("DATA", "mine")
    mine.mkdir(parents=True)
    (mine / "split.csv").write_text(table)
    for number, line in enumerate(table.split()[1:]):
        write_stack(beating_case(seed=number)[0].frame(0), mine / line.split(",")[0])
    for line in "\n".join(blocks(HOW_TO, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["calid-train"]:
            assert main([*words[1:], *(QUICK if words[1] == "motion" else [])]) == 0, line
    assert Path("motion.safetensors").is_file()
    assert "4 stacks prepared" in (told := capsys.readouterr().out)
    assert re.search(r"In all about [\d.,]+ hours", told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_configurations_on_a_page_are_there(page):
    text = page.read_text(encoding="utf-8")
    known = {"calid-train": {"recipe", "prepare", "cine", "export", *all_stages()}, "calid-evaluate": set(TABLES)}
    typed = "\n".join([*blocks(page, "sh"), *re.findall(r"`(calid-(?:train|evaluate) [^`]+)`", text)])
    for program, words in known.items():
        asked = set(re.findall(rf"{program} ([a-z][\w-]*)", typed))
        assert asked <= words, program
    named = re.findall(r"CaLIDTraining/(calid_\w+/configs/[\w/-]+\.yaml)", text)
    assert [name for name in named if not (CONFIGS.parents[1] / name).is_file()] == []


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from (one for command in action.choices.values() for one in parsers(command))


@pytest.fixture
def helps(monkeypatch, capsys) -> Callable[..., str]:
    """What `calid-train` says to these words, with all parsers that were asked in `helps.asked`."""
    asked = []
    print_help = argparse.ArgumentParser.print_help

    def remember(parser, file=None):
        asked.append(parser)
        print_help(parser, file)

    def say(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])
        assert end.value.code == 0
        return capsys.readouterr().out

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", remember)
    say.asked = asked
    return say


def test_every_option_explains_itself(helps):
    for command in ("recipe", "prepare", "cine", "export"):
        helps(command)
    asked = [one for parser in [build_parser(), *helps.asked] for one in parsers(parser)]
    assert len(asked) > len(TABLES) + 10
    silent = [
        f"{parser.prog} {action.dest}"
        for parser in asked
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert silent == []


def test_help_tells_defaults_and_no_folder_of_this_machine(helps):
    assert "(default: autofd chla sunnybrook)" in " ".join(helps("prepare").split())
    told = "".join(parser.format_help() for parser in parsers(build_parser()))
    assert "(default: test)" in told
    assert "None" not in told
    assert "SUPPRESS" not in told
    assert str(ROOT) not in told


def test_help_says_of_every_command_what_it_is_for(capsys):
    assert main(["--help"]) == 0
    told = dict(re.findall(r"^  ([a-z][\w-]+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert set(told) == {"recipe", "prepare", "cine", "export", *all_stages()}


def test_examples_stand_as_they_are_typed(helps):
    lines = [line.strip() for line in helps("export").splitlines() if line.startswith("    calid-train export ")]
    assert len(lines) == 9
    for line in lines:
        assert export_parser().parse_args(shlex.split(line)[2:]).run_command, line


@pytest.mark.parametrize(
    ("run", "words", "told"),
    [
        (train.program, "motion --data.prepared nowhere", "nowhere/index.json is missing; make it with: calid-train"),
        (train.program, "export motion --run none --out motion.safetensors", "give the folder of a run that has begun"),
        (train.program, "recipe small . out --alexnet x --devices 7 --dry-run", "7 devices x 1 batches a step cannot"),
        (evaluate.program, "segmenter --data nowhere", "The set 'acdc' is not at nowhere/acdc; give the folder"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(tmp_path, monkeypatch, capsys, run, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALID_DEBUG", raising=False)
    assert run([*words.split(), *(ON_CPU if words.startswith("motion") else [])]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"calid-(train|evaluate): error: ", last)
    assert told in Path(last).as_posix()
    monkeypatch.setenv("CALID_DEBUG", "1")
    with pytest.raises((CalidError, UsageError, OSError), match=re.escape(told.partition(";")[0].rpartition("/")[2])):
        run([*words.split(), *(ON_CPU if words.startswith("motion") else [])])
