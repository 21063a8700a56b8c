"""One word has one meaning, and is spelled as in the US, over the whole tree."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "CaLIDReconstruct/calid",
    "CaLIDReconstruct/CaLIDReconstructLib",
    "CaLIDTraining/calid_training",
    "CaLIDTraining/calid_benchmark",
)
PROSE = (".py", ".md", ".toml", ".yaml", ".yml", ".ui", ".cff", ".js", ".css", ".html", "Makefile")
BRITISH = re.compile(
    r"""
    \w*(?:colour|neighbour|behaviour|favour|honour|labour|tumour|catalogue|paediatric|haemo|oedema|foetal|manoeuv)\w*
    | \w*(?:centre|metre|litre|fibre|grey|licence|programme|storey)[sd]?
    | \w*(?:analys|catalys|optimis|normalis|standardis|initialis|regularis|visualis|recognis|organis|minimis|maximis
        |summaris|generalis|characteris|localis|quantis|discretis|randomis|serialis|penalis|specialis|utilis|synchronis
        |equalis|stabilis|symmetris|binaris|rasteris|parametris|anonymis|finalis|prioritis)(?:e[sd]?|ing|ations?)
    | \w*(?:labell|modell|travell|signall|levell|channell|fuell)(?:ed|ing|er)
    | judgements? | artefacts? | ageing | aluminium | sceptical
    """,
    re.VERBOSE | re.IGNORECASE,
)
QUOTED = {"CaLIDReconstruct/calid/images/text_header.py": ("millimetre", "millimetres")}
"""Words that files of others hold, and that stay, by the file of ours that has to know them."""


def meanings(package: str) -> dict[str, list[str]]:
    """Where a package defines its classes and types, by name; names with an underscore are a module's own."""
    found = defaultdict(list)
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if re.fullmatch(r"[A-Z]+[a-z]\w*", name):
                    found[name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_no_class_or_type_has_the_name_of_another():
    found = defaultdict(list)
    for package in PACKAGES:
        for name, places in meanings(package).items():
            found[name] += places
    assert len(found) > 150
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def written() -> list[Path]:
    """The tree's files that people read, in a checkout or out of an archive."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.splitlines() if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    return [ROOT / name for name in names if name.endswith(PROSE) and (ROOT / name).is_file()]


def test_words_are_spelled_as_in_the_us():
    found = set()
    for path in written():
        name = path.relative_to(ROOT).as_posix()
        if path != Path(__file__) and ".min." not in name:
            words = set(re.findall(r"[A-Za-z]+", path.read_text(encoding="utf-8")))
            found |= {(name, word) for word in words if is_british(word) and word not in QUOTED.get(name, ())}
    assert found == set()


@cache
def is_british(word: str) -> bool:
    return BRITISH.fullmatch(word) is not None


def test_the_list_of_words_knows_both_spellings():
    british = "neighbours centre colouring labelled grey millimetres licence optimised analysing behaviour judgement"
    american = "neighbors center coloring labeled gray millimeters license optimized analyzing behavior judgment meter"
    assert all(is_british(word) for word in british.split())
    assert not any(is_british(word) for word in american.split())
