"""What the user can choose: every setting once, with its default, choices, limits and words.

`Settings` is the one place where a setting is described. The command line's flags and their help are made from it
(`add_flags`, `from_flags`), requests of `calid serve` are checked by it (`from_json`), the Slicer panel takes its
choices and limits, and tests hold README and docs/protocol.md against it. A new setting is one more field here, and
its use. Nothing heavy is imported: Slicer reads this before anything is installed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, get_args

from calid.errors import SettingsError
from calid.method.bisection import FACTORS, Factor

Method = Literal["calid", "calid+", "linear"]
Mode = Literal["detail", "fidelity"]
Model = Literal["auto", "2d", "2d+t"]
Align = Literal["report", "on", "off"]
Lax = Literal["auto", "off"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]

METHODS: tuple[Method, ...] = get_args(Method)
MODES: tuple[Mode, ...] = get_args(Mode)
MODELS: tuple[Model, ...] = get_args(Model)
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
ROIS = ("heart", "all")
MAX_STEPS, MAX_SAMPLES, MAX_SEED = 1000, 64, 2**32 - 1
DEFAULT_SAMPLES = 8  # the mean of 8 draws is 0.5 dB from the mean of all


@dataclass(frozen=True)
class Option:
    """What may be chosen for a setting, and how it is told.

    Args:
        help: one phrase for the command line's help.
        choices: all values there are, or all words where numbers are possible as well; empty where numbers are asked
            for.
        low, high: limits of a whole number, or of each one in a list.
        count: how many whole numbers a list has; 0 for a value that is no list.
        metavar: how the command line writes a list, such as "A:B".
        unit: unit of the numbers.
        of_one_stack: whether it speaks of the pixels or frames of one stack, so that many stacks have no common value.
    """

    help: str
    choices: tuple[object, ...] = ()
    low: int = 0
    high: int = 2**31 - 1
    count: int = 0
    metavar: str | None = None
    unit: str = ""
    of_one_stack: bool = False

    @property
    def words(self) -> list[str]:
        """All choices as they are written, with the form of a list where one is possible."""
        return [*map(str, self.choices), *([self.metavar] if self.metavar else [])]


def _told(help: str, **limits: Any) -> dict[str, Option]:  # noqa: A002 (argparse's word)
    """The metadata of a field of `Settings`."""
    return {"option": Option(help, **limits)}


@dataclass(frozen=True)
class Settings:
    """Settings of one run; whether they fit a stack is checked when it is known.

    Lists become tuples, so that what JSON holds can be given as it is.

    Args:
        factor: 2, 4, 8 or 16 new gaps for each, or "isotropic": slices about as far apart as pixels.
        method: "calid" starts from noise, "calid+" from its neighbors' inverted latents, "linear" needs no model.
        model: "2d" makes every frame by itself, "2d+t" all together; "auto" is 2D+T for a cine, if it is installed.
        mode: "detail" is one draw; "fidelity" the slice at the least expected error, in `samples` mirrored views. Where
            the uncertainty is asked for too, it is the mean of `samples` whole draws, and so another result.
        samples: draws for "fidelity" and for the uncertainty; None is 1 where one is enough, else 8.
        steps: DDIM steps.
        seed: number from which all noise follows. A model without a codec starts the first draw of CaLID+ from its
            neighbors' latents alone.
        roi: where codec and denoiser work: "heart" is where a cine moves, "all" the whole image, or (x0, x1, y0, y1)
            half-open columns and rows. Around it slices are the mean of their moved neighbors.
        frames: (first, last + 1) frames to keep; None keeps all.
        device: "auto", "cpu", "cuda" or "mps".
        align: "report" tells how far the slices of different breath-holds are off, "on" moves them within their planes.
        lax: "auto" lets long-axis images guide the slices that are made, where there are some; needs the alignment.

    Raises:
        SettingsError: if a value is not possible; its code is the setting's name.
    """

    factor: Factor = field(
        default="isotropic",
        metadata=_told(
            "how many gaps each gap between slices becomes; isotropic makes them about as wide as pixels",
            choices=(*FACTORS, "isotropic"),
        ),
    )
    method: Method = field(
        default="calid+",
        metadata=_told(
            "calid+: from the neighbors' inverted latents; calid: from noise; linear: without a model", choices=METHODS
        ),
    )
    model: Model = field(
        default="auto",
        metadata=_told("2d: every frame by itself; 2d+t: all frames together; auto: 2d+t for a cine", choices=MODELS),
    )
    mode: Mode = field(
        default="detail",
        metadata=_told(
            "detail: one draw; fidelity: the slice at the least expected error, softer, from --samples mirrored views; "
            "with --uncertainty it is the mean of --samples whole draws, another result",
            choices=MODES,
        ),
    )
    samples: int | None = field(
        default=None,
        metadata=_told(f"draws for fidelity and uncertainty (default: {DEFAULT_SAMPLES})", low=1, high=MAX_SAMPLES),
    )
    steps: int = field(default=2, metadata=_told("DDIM steps", low=1, high=MAX_STEPS))
    seed: int = field(
        default=0,
        metadata=_told(
            "start of all random noise; the first draw of calid+ uses none with a model without a codec", high=MAX_SEED
        ),
    )
    roi: Literal["heart", "all"] | tuple[int, int, int, int] = field(
        default="heart",
        metadata=_told(
            "where codec and denoiser work, with moved neighbors around; heart: where a cine moves; all: everywhere",
            choices=ROIS,
            count=4,
            metavar="x0:x1,y0:y1",
            unit="pixels",
            of_one_stack=True,
        ),
    )
    frames: tuple[int, int] | None = field(
        default=None, metadata=_told("frames A to B-1, counted from 0", count=2, metavar="A:B", of_one_stack=True)
    )
    device: DeviceName = field(default="auto", metadata=_told("where the networks run", choices=DEVICES))
    align: Align = field(
        default="report",
        metadata=_told(
            "slices of different breath-holds; report: tell how far they are off; on: move them in plane; off: neither"
            ", and no guides",
            choices=get_args(Align),
        ),
    )
    lax: Lax = field(
        default="auto",
        metadata=_told(
            "long-axis images of the same heart; auto: they guide the slices that are made; off: they do not",
            choices=get_args(Lax),
        ),
    )

    def __post_init__(self) -> None:
        for name in OPTIONS:
            object.__setattr__(self, name, checked(name, getattr(self, name)))

    def resolved(self, *, uncertainty: bool) -> Settings:
        """The settings a run really uses: fidelity takes the slices at the least error, and draws nothing.

        A model with a codec then makes the mean of its moved neighbors, any other one velocity step from noise, which
        predicts the mean of all draws; both average over mirrored views. Where the spread of draws is asked for, whole
        draws are needed and their mean is taken.
        """
        if self.mode == "fidelity" and self.method != "linear" and not uncertainty:
            return replace(self, method="calid", steps=1)
        return self

    def draws(self, *, uncertainty: bool) -> int:
        """How many slices are drawn for each one that is shown."""
        if self.mode == "fidelity" or uncertainty:
            return self.samples or DEFAULT_SAMPLES
        return 1


OPTIONS: dict[str, Option] = {setting.name: setting.metadata["option"] for setting in fields(Settings)}
DEFAULTS: dict[str, Any] = {setting.name: setting.default for setting in fields(Settings)}
COHORT_SETTINGS = tuple(name for name, option in OPTIONS.items() if not option.of_one_stack)


def checked(name: str, value: Any) -> Any:
    """A value of the setting `name`, if it is possible; a list becomes a tuple.

    Raises:
        SettingsError: if it is not; its code is the setting's name.
    """
    option = OPTIONS[name]
    if value is None and DEFAULTS[name] is None:
        return None
    if option.choices and (isinstance(value, str) or not option.count):
        if not any(value == choice and type(value) is type(choice) for choice in option.choices):
            remedy = f"Choose one of: {', '.join(option.words)}."
            raise SettingsError(name, f"The {name} '{_shown(value)}' is not possible.", remedy)
        return value
    numbers = value if option.count else [value]
    is_list = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) == (option.count or 1)
    if not is_list or not all(type(number) is int and option.low <= number <= option.high for number in numbers):
        what = f"{option.count} whole numbers" if option.count else "a whole number"
        remedy = f"Give {what} from {option.low} to {option.high}."
        raise SettingsError(name, f"{name} is {_shown(value)!r}.", remedy)
    return tuple(numbers) if option.count else value


def _shown(value: Any) -> Any:
    """A value short enough for one line."""
    return value if isinstance(value, int | float) and abs(value) < 1e15 else str(value)[:60]


def from_json(values: Mapping[str, Any]) -> Settings:
    """The settings among the fields of a request; what is missing or null takes its default.

    Raises:
        SettingsError: if a value is not possible.
    """
    return Settings(**{name: values[name] for name in OPTIONS if values.get(name) is not None})


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(OPTIONS)) -> None:
    """Give a command the flags of settings, as `Settings` describes them."""
    for name in names:
        option, default = OPTIONS[name], DEFAULTS[name]
        parser.add_argument(
            f"--{name}",
            type=partial(_parsed, name),
            default=default,
            metavar=f"{{{','.join(option.words)}}}" if option.choices else option.metavar or "N",
            help=option.help if default is None else f"{option.help} (default: {default})",
        )


def from_flags(options: argparse.Namespace) -> Settings:
    """The settings of a parsed command line, whose command may have only some of the flags.

    Raises:
        SettingsError: if a value is not possible.
    """
    return Settings(**{name: getattr(options, name) for name in OPTIONS if hasattr(options, name)})


def _parsed(name: str, text: str) -> Any:
    """A flag's text as a value.

    Raises:
        argparse.ArgumentTypeError: if it is not possible.
    """
    option = OPTIONS[name]
    try:
        named = {str(choice): choice for choice in option.choices}
        if text in named or (named and not option.count):
            return checked(name, named.get(text, text))
        found = re.fullmatch(re.sub("[A-Za-z][0-9]?", "(-?[0-9]{1,18})", option.metavar or "N"), text)
        if found is None:
            form = " or ".join(option.words) or "a whole number"
            raise argparse.ArgumentTypeError(f"{text[:60]!r} does not look like {form}")
        numbers = [int(number) for number in found.groups()]
        return checked(name, numbers if option.count else numbers[0])
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
