"""The house in figures: rooms, floors and arrows of a package, and the frames from the command line to the network.

`python Testing/architecture.py` counts the imports of `calid`, `calid_training` and `calid_benchmark`. A room is a
module, a wing a folder of rooms, an arrow an import of one room by another, at its top or within a function (imports
for type checkers alone are left out); the floors are the rooms on the longest way along the arrows.

`python Testing/architecture.py --frames` runs `calid upsample` on a small stack with the shipped model and counts the
functions of `calid` that are on Python's stack when eps_theta is asked, `main` and `Denoiser.forward` included; those
of torch and of the standard library are not counted.

`python Testing/architecture.py --settings` counts, for each field of `calid.run.settings.Settings`, the lines outside
the tests that name it. In Python a line names a setting as a field of settings (`settings.steps`), as a keyword of a
call that makes some (`Settings(steps=2)`), or as a word of its own (`"steps"`) in a file that imports settings; in a
page, as a flag (`--steps`) or a field (`steps` between back-ticks). `device`, `model` and `frames` have other meanings,
too, and are counted with these.

`python Testing/architecture.py --lines REVISION PATH ...` counts the lines of the Python files below some paths as git
knows them at a revision: all of them, and those of code, without blank lines, comments and docstrings.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "calid": ROOT / "CaLIDReconstruct" / "calid",
    "calid_training": ROOT / "CaLIDTraining" / "calid_training",
    "calid_benchmark": ROOT / "CaLIDTraining" / "calid_benchmark",
}

Arrows = dict[str, set[str]]
"""The rooms that each room imports."""


def rooms(package: str) -> dict[str, Path]:
    """Modules of a package by their dotted names."""
    folder = PACKAGES[package]
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of all that a file imports, anywhere in it; `import a.b` gives ("a.b", "").

    What stands under `if TYPE_CHECKING` is not run and left out.
    """
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def arrows(package: str) -> Arrows:
    """Which rooms of a package import which others."""
    known = rooms(package)
    found: Arrows = {name: set() for name in known}
    for room, path in known.items():
        for module, name in imports(path):
            target = f"{module}.{name}" if f"{module}.{name}" in known else module
            if target in known and target != room:
                found[room].add(target)
    return found


def floors(graph: Arrows) -> int:
    """Rooms on the longest way along the arrows.

    Raises:
        ValueError: if the arrows run in a circle.
    """

    @cache
    def height(room: str) -> int:
        if room in under_way:
            raise ValueError(f"the imports of {room} run in a circle")
        under_way.add(room)
        stories = 1 + max((height(target) for target in graph[room]), default=0)
        under_way.remove(room)
        return stories

    under_way: set[str] = set()
    return max(map(height, graph))


def wing(room: str) -> str:
    """The folder in which a room lies, or the room itself if it lies in the package's own."""
    return ".".join(room.split(".")[:2])


def wings(graph: Arrows) -> Arrows:
    """Which wings, and rooms outside them, import which others."""
    found: Arrows = {}
    for room, targets in graph.items():
        found.setdefault(wing(room), set()).update(wing(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def summary(package: str) -> str:
    """A line of figures for each package and a line of arrows for each of its wings."""
    graph = arrows(package)
    plain = {room: targets for room, targets in graph.items() if room != package}
    between = wings({room: targets - {package} for room, targets in plain.items()})
    count = sum(map(len, graph.values()))
    lines = [f"{package}: {len(graph)} rooms, {floors(graph)} floors, {count} arrows"]
    lines.append(
        f"  as wings: {len(between)} rooms, {floors(between)} floors, {sum(map(len, between.values()))} arrows"
    )
    for name, targets in sorted(between.items()):
        size = sum(wing(room) == name for room in plain)
        shown = ", ".join(sorted(target.removeprefix(f"{package}.") for target in targets)) or "-"
        lines.append(f"    {name.removeprefix(f'{package}.')} ({size}) -> {shown}")
    return "\n".join(lines)


def frames_to_the_network() -> list[str]:
    """Functions of `calid` on Python's stack when the denoiser is asked, outermost first."""
    sys.path.insert(0, str(PACKAGES["calid"].parent))
    from calid.__main__ import main
    from calid.method.networks import Denoiser

    class Reached(BaseException):
        pass

    seen: list[str] = []
    forward = Denoiser.forward

    def noted(self: Denoiser, *arguments: object, **options: object) -> None:
        del self, arguments, options
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__", "").partition(".")[0] == "calid":
                seen.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        raise Reached

    Denoiser.forward = noted  # type: ignore[method-assign]
    demo = PACKAGES["calid"].parent / "Resources" / "Demo" / "sax.seq.nrrd"
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder, "dense.nrrd"))
            options = [
                "--frames",
                "0:1",
                "--roi",
                "40:72,40:72",
                "--factor",
                "2",
                "--device",
                "cpu",
                "--method",
                "calid",
            ]
            with suppress(Reached):
                main(["upsample", str(demo), output, *options])
    finally:
        Denoiser.forward = forward  # type: ignore[method-assign]
    return [*reversed(seen), f"{Denoiser.__module__}.Denoiser.forward"]


# --- names and words --------------------------------------------------------------------------------------------------


def parameters(path: Path) -> Iterator[tuple[str, str]]:
    """(name, description) of the parameters in the docstrings of a file, as Google's style has them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            told = re.search(r"^Args:\n((?:    .*\n?|\n)*)", ast.get_docstring(node) or "", re.MULTILINE)
            for entry in re.split(r"\n(?=    \S)", f"\n{told[1]}" if told else "")[1:]:
                name, _, description = " ".join(entry.split()).partition(": ")
                yield name, description


def late_attributes(package: str) -> Iterator[str]:
    """Attributes that a method sets on its object though neither the constructor nor the class has set them before."""
    for room, path in rooms(package).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                first = next((one for one in methods if one.name == "__init__"), None)
                known = _set_on_self(first.body if first else [])
                known |= {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign)}
                known |= {ast.unparse(name) for one in node.body if isinstance(one, ast.Assign) for name in one.targets}
                late = {name for one in methods for name in _set_on_self(list(ast.walk(one)))} - known
                yield from (f"{room}.{node.name}.{name}" for name in sorted(late) if name not in INHERITED)


INHERITED = {"disable"}  # of tqdm


def _set_on_self(nodes: Sequence[ast.AST]) -> set[str]:
    """The attributes that assignments among some nodes set on `self`."""
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign | ast.AugAssign)]
    single = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {part.attr for part in single if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self"}


# --- places that name a setting ---------------------------------------------------------------------------------------

SETTINGS_ROOM = PACKAGES["calid"] / "run" / "settings.py"
AREAS = {
    "engine": PACKAGES["calid"],
    "panel": PACKAGES["calid"].parent / "CaLIDReconstructLib",
    "training, benchmark": ROOT / "CaLIDTraining",
}
_HOLDERS = re.compile(r"(settings|options|parameters)$", re.IGNORECASE)
_MAKERS = re.compile(r"(Settings|replace|upsample|uncertainty)$")
_IMPORTS = re.compile(r"run\.settings|run import settings|\.Settings import|\.Parameters import")


def setting_names() -> list[str]:
    """The fields of `Settings`, in their order."""
    tree = ast.parse(SETTINGS_ROOM.read_text(encoding="utf-8"))
    (settings,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    return [node.target.id for node in settings.body if isinstance(node, ast.AnnAssign)]


def named_in_python(path: Path, names: set[str]) -> set[tuple[str, int]]:
    """(setting, line) of all that a Python file names; the fields of `Settings` and of other settings among them."""
    text = path.read_text(encoding="utf-8")
    imports_settings = path == SETTINGS_ROOM or bool(_IMPORTS.search(text))
    found: set[tuple[str, int]] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and _HOLDERS.search(ast.unparse(node.value)):
            found.add((node.attr, node.lineno))
        elif isinstance(node, ast.Call) and _MAKERS.search(ast.unparse(node.func)):
            found |= {(keyword.arg or "", keyword.value.lineno) for keyword in node.keywords}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and imports_settings:
            found.add((node.value, node.lineno))
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            fields = (field for field in node.body if isinstance(field, ast.AnnAssign))
            found |= {(ast.unparse(field.target), field.lineno) for field in fields}
    return {(name, line) for name, line in found if name in names}


def settings_table() -> str:
    """A line for each setting: in how many lines engine, panel, training and pages name it."""
    names = setting_names()
    counts: dict[str, Counter[str]] = {area: Counter() for area in (*AREAS, "pages")}
    for area, folder in AREAS.items():
        for path in folder.rglob("*.py"):
            counts[area].update(name for name, _ in named_in_python(path, set(names)))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            counts["pages"].update(name for name in names if re.search(rf"--{name}\b|`{name}`", line))
    lines = [f"{'setting':10}" + "".join(f"{area:>22}" for area in counts) + f"{'all':>8}"]
    for name in names:
        row = [found[name] for found in counts.values()]
        lines.append(f"{name:10}" + "".join(f"{count:22}" for count in row) + f"{sum(row):8}")
    return "\n".join(lines)


# --- lines ------------------------------------------------------------------------------------------------------------


def code_lines(text: str) -> int:
    """Lines of a Python file that hold code: no blank ones, no comments, no docstrings."""
    told = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr))
    words = {
        line
        for node in told
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for one in tokens if one.type not in silent for line in range(one.start[0], one.end[0] + 1)}
    return len(code - words)


def lines_table(revision: str, paths: list[str]) -> str:
    """All lines and lines of code of each Python file below some paths at a revision, and their sums."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    files = [name for name in git("ls-tree", "-r", "--name-only", revision, "--", *paths).split() if name[-3:] == ".py"]
    texts = {name: git("show", f"{revision}:{name}") for name in files}
    rows = [(name, len(text.splitlines()), code_lines(text)) for name, text in texts.items()]
    rows.append((f"all at {revision}", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return "\n".join(f"{every:7}{code:7}  {name}" for name, every, code in rows)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", action="store_true", help="count the frames from the command line to the network")
    parser.add_argument("--settings", action="store_true", help="count the places that name a setting")
    parser.add_argument("--lines", nargs="+", metavar="WORD", help="a revision and paths: count lines of Python")
    options = parser.parse_args()
    if options.frames:
        found = frames_to_the_network()
        print("\n".join(f"{number:3} {name}" for number, name in enumerate(found, start=1)))
    elif options.settings:
        print(settings_table())
    elif options.lines:
        print(lines_table(options.lines[0], options.lines[1:]))
    else:
        print("\n".join(map(summary, PACKAGES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
