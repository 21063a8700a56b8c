"""The tables and figures of both papers, one module each; see `calid_benchmark.evaluate` for the commands.

A table is a module with `add_arguments(parser)` and `run(options) -> int`, named in `TABLES`; its docstring says what
it shows. What they share: `questions` (what is asked, of whom), `record` (what is written) and `drawings`.
"""

from importlib import import_module
from types import ModuleType

TABLES = {
    "interpolation": "interpolation",
    "downstream": "downstream",
    "reconstruction": "reconstruction",
    "long-axis": "long_axis",
    "steps": "steps",
    "denoising": "denoising",
    "speed": "speed",
    "segmenter": "segmenter",
    "cine": "cine",
    "agreement": "agreement",
    "gates": "gates",
    "gate-curve": "gate_curve",
    "alignment": "alignment",
    "guidance": "guidance",
    "all": "everything",
}
"""The module of every table."""


def table_module(name: str) -> ModuleType:
    """The module of a table, imported when asked for."""
    return import_module(f"{__name__}.{TABLES[name]}")
