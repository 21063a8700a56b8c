"""The house in figures: rooms, floors and arrows of a package, and the frames from the command line to the network.

`python Testing/architecture.py` counts the imports of `calid`, `calid_training` and `calid_benchmark`. A room is a
module, a wing a folder of rooms, an arrow an import of one room by another, at its top or within a function (imports
for type checkers alone are left out); the floors are the rooms on the longest way along the arrows.

`python Testing/architecture.py --frames` runs `calid upsample` on a small stack with the shipped model and counts the
functions of `calid` that are on Python's stack when eps_theta is asked, `main` and `Denoiser.forward` included; those
of torch and of the standard library are not counted.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
from collections.abc import Iterator
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
        storeys = 1 + max((height(target) for target in graph[room]), default=0)
        under_way.remove(room)
        return storeys

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


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", action="store_true", help="count the frames from the command line to the network")
    if parser.parse_args().frames:
        found = frames_to_the_network()
        print("\n".join(f"{number:3} {name}" for number, name in enumerate(found, start=1)))
    else:
        print("\n".join(map(summary, PACKAGES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
