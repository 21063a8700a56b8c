"""Every setting is described once; the command line, the README and the Slicer panel say the same of it."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from calid.__main__ import build_parser
from calid.errors import SettingsError
from calid.run.settings import DEFAULTS, OPTIONS, Settings, add_flags, checked, from_flags, from_json
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def parsed(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return from_flags(parser.parse_args(arguments))


def outcome(make: Callable[..., Settings], *arguments: object) -> tuple[Settings | None, Exception | None]:
    """What is made, or the error by which it is refused."""
    try:
        return make(*arguments), None
    except (argparse.ArgumentError, SettingsError) as error:
        return None, error


def test_the_command_line_without_flags_and_an_empty_request_are_the_defaults():
    assert parsed() == from_json({}) == from_json(dict.fromkeys(OPTIONS)) == Settings()


def test_every_choice_and_every_list_can_be_typed_and_sent():
    for name, option in OPTIONS.items():
        for choice in option.choices:
            assert getattr(parsed(f"--{name}", str(choice)), name) == choice
            assert getattr(from_json({name: choice}), name) == choice
    assert parsed("--roi", "1:20,30:40").roi == from_json({"roi": [1, 20, 30, 40]}).roi == (1, 20, 30, 40)
    assert parsed("--frames", "0:7").frames == from_json({"frames": [0, 7]}).frames == (0, 7)


@given(name=st.sampled_from(sorted(OPTIONS)), value=JSON)
def test_whatever_json_holds_is_a_setting_or_is_refused_by_name(name, value):
    made, refused = outcome(from_json, {name: value})
    if made is None:
        assert isinstance(refused, SettingsError)
        assert refused.code == name
        assert len(str(refused)) < 300
    else:
        assert getattr(made, name) == checked(name, DEFAULTS[name] if value is None else value)


@given(name=st.sampled_from(sorted(OPTIONS)), text=st.text(max_size=12) | st.from_regex(r"-?[0-9]{1,30}(:[0-9]*)?"))
def test_whatever_is_typed_is_a_setting_or_is_refused(name, text):
    made, refused = outcome(parsed, f"--{name}={text}")
    if made is None:
        assert isinstance(refused, argparse.ArgumentError)
        assert refused.argument_name == f"--{name}"
    else:
        assert str(getattr(made, name)) == text or OPTIONS[name].count or int(text) == getattr(made, name)


def test_every_setting_is_a_flag_of_upsample_with_its_choices_in_the_help():
    parser = build_parser(["upsample"])
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    flags = {action.dest: action for action in commands.choices["upsample"]._actions}
    for name, option in OPTIONS.items():
        assert flags[name].default == DEFAULTS[name]
        assert all(str(choice) in flags[name].metavar for choice in option.choices)


def test_the_readme_names_every_setting_with_its_choices():
    table = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `--")]
    told = "\n".join(table)
    for name, option in OPTIONS.items():
        row = next((line for line in table if f"--{name}" in line), "")
        assert row, f"--{name} is not in the table"
        assert name == "device" or all(str(choice) in row for choice in option.choices), name
        assert name in ("device", "seed") or DEFAULTS[name] is None or str(DEFAULTS[name]) in row, name
    more = {"--uncertainty", "--json", "--models", "--overwrite", "--series", "--views"}
    known = {f"--{name}" for name in OPTIONS} | more
    assert set(re.findall(r"--[a-z]+", told)) <= known


def test_provenance_says_every_setting_that_decides_voxels():
    from calid.run.reconstruct import RUN_FACTS

    decides = {field.name for field in fields(Settings)} - {"samples"}  # told as the draws that were made
    assert decides <= {*RUN_FACTS, "model"}
    json.dumps(DEFAULTS)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_default_is_possible(name):
    assert checked(name, DEFAULTS[name]) == DEFAULTS[name]
