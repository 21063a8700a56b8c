"""`calid-evaluate agreement`: volumes and ejection fraction from sparse and dense stacks against experts' labels.

Every patient's ED and ES are measured in several ways, all by disk summation (`calid.heart.volumes`):

- "expert": the expert's labels of all acquired slices. This is what the others are held against.
- "expert, kept slices": the same labels of the slices that are kept, where some are not: what leaving slices out does
  by itself. Its bias is mostly that of the ends, which stand for half a gap beyond the stack, and is in all rows.
- "sparse": the bundled segmenter's labels of the slices that are kept: all, or every Nth (`--every N`).
- "dense, METHOD": the segmenter's labels of the stack that METHOD makes of the kept slices, `--factor` times as many
  gaps. Linear interpolation is the control: what CaLID has beyond it, it does not have from cutting finer disks.

Labels are cleaned as `calid segment` cleans them. ED and ES are the set's own, not the largest and the smallest volume.
Definitions of bias, limits of agreement and ICC: `calid_benchmark.agreement`. The experts of ACDC drew the basal slice
by their own rule, which no interpolation knows: a bias of all rows alike is the segmenter's or the base's.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from calid.heart.anatomy import clean_labels
from calid.heart.segmentation import Segmenter, segment_with
from calid.heart.volumes import MYOCARDIAL_DENSITY_G_PER_ML, label_volumes_ml
from calid.labels import LV_CAVITY, MYOCARDIUM, RV_CAVITY
from calid.method.bisection import FACTORS, Factor
from calid.run.device import choose_device
from calid.run.reconstruct import upsample
from calid.run.settings import METHODS, Mode, Settings
from calid.stack import Stack
from calid_training.datasets import Item, RawCase, items_of
from calid_training.errors import UsageError
from matplotlib.figure import Figure
from tqdm import tqdm

from calid_benchmark.agreement import LIMITS, agreement_of
from calid_benchmark.segmenters import judging_segmenter
from calid_benchmark.tables.drawings import HIGHLIGHT, PIXELS_PER_INCH
from calid_benchmark.tables.questions import add_place_arguments
from calid_benchmark.tables.record import Place, cell, markdown_table, place_of, write_table

EXPERT, EXPERT_KEPT, SPARSE = "expert", "expert, kept slices", "sparse"
PHASES = ("ED", "ES")
UNITS = {"LV EDV": "ml", "LV ESV": "ml", "LV SV": "ml", "LV EF": "%", "LV mass": "g"}
UNITS |= {"RV EDV": "ml", "RV ESV": "ml", "RV EF": "%"}
"""What is measured."""
DRAWN = ("LV EDV", "LV ESV", "LV EF")
"""The panels of the picture."""

Measured = Mapping[str, Mapping[str, float]]
"""{way: {quantity: value}} of one patient."""


@dataclass(frozen=True)
class Ways:
    """How a patient's images become labels.

    Args:
        segmenter: labels slices.
        settings: {way: how its dense stack is made}.
        every: 1 keeps all acquired slices, 2 every second one, and so on.
        models: folder with the manifest of CaLID's models; None takes the bundled ones.
    """

    segmenter: Segmenter
    settings: Mapping[str, Settings]
    every: int = 1
    models: Path | None = None

    def labels(self, stack: Stack) -> dict[str, Stack]:
        """{way: cleaned labels} of one phase."""
        kept = every_nth(stack, self.every)
        images = {SPARSE: kept}
        for way, settings in self.settings.items():
            images[way] = upsample(kept, settings, models_folder=self.models).stack
        return {way: clean_labels(segment_with(self.segmenter, one)) for way, one in images.items()}


def every_nth(stack: Stack, count: int) -> Stack:
    """Every Nth slice of a stack, from the first on."""
    affine = stack.affine.copy()
    affine[:3, 2] *= count
    return stack if count == 1 else replace(stack, voxels=stack.voxels[:, ::count], affine=affine, generated=None)


def quantities(ed: Stack, es: Stack) -> dict[str, float]:
    """Everything in `UNITS` from the labels of both phases; an EF without a cavity at ED is NaN."""
    found: dict[str, float] = {}
    for side, label in (("LV", LV_CAVITY), ("RV", RV_CAVITY)):
        edv, esv = (float(label_volumes_ml(one, label.value)[0]) for one in (ed, es))
        found |= {f"{side} EDV": edv, f"{side} ESV": esv, f"{side} SV": edv - esv}
        found[f"{side} EF"] = 100 * (edv - esv) / edv if edv else float("nan")
    mass = MYOCARDIAL_DENSITY_G_PER_ML * float(label_volumes_ml(ed, MYOCARDIUM.value)[0])
    return {name: value for name, value in (found | {"LV mass": mass}).items() if name in UNITS}


def measured(ed: RawCase, es: RawCase, ways: Ways) -> dict[str, dict[str, float]]:
    """{way: {quantity: value}} of one patient, by the expert's labels and by every way."""
    if ed.labels is None or es.labels is None:
        raise UsageError(f"{ed.dataset}/{ed.patient}: the expert's labels of ED and ES are needed")
    found = {EXPERT: quantities(ed.labels, es.labels)}
    if ways.every > 1:
        found[EXPERT_KEPT] = quantities(*(every_nth(labels, ways.every) for labels in (ed.labels, es.labels)))
    made_ed, made_es = ways.labels(ed.stack), ways.labels(es.stack)
    return found | {way: quantities(made_ed[way], made_es[way]) for way in (SPARSE, *ways.settings)}


def evaluate(patients: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """A row for every quantity and pair of ways: each way against the expert, each dense one against the sparse."""
    names = list(next(iter(patients.values())))
    pairs = [(way, EXPERT) for way in names if way != EXPERT]
    pairs += [(way, SPARSE) for way in names if way not in (EXPERT, EXPERT_KEPT, SPARSE)]
    rows = []
    for quantity in UNITS:
        for way, other in pairs:
            sides = ([one[side][quantity] for one in patients.values()] for side in (way, other))
            rows.append({"quantity": quantity, "way": way, "against": other, "agreement": agreement_of(*sides)})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], head: str) -> str:
    """The rows as Markdown; brackets are 95 % bootstrap intervals over patients, limits are those of agreement."""
    body = []
    for row in rows:
        found, unit = row["agreement"], UNITS[row["quantity"]]
        if found is None:
            continue
        limits = "{:.1f} to {:.1f}".format(*found["limits"])
        means = f"{found['mean']:.1f} / {found['other_mean']:.1f}"
        cells = [cell(found["bias"], 1), limits, cell(found["icc"], 3), str(found["patients"])]
        body.append([f"{row['quantity']} {unit}", row["way"], row["against"], means, *cells])
    heads = ["", "way", "against", "means", "bias", "limits of agreement", "ICC(A,1)", "patients"]
    return "\n".join([head, "", *markdown_table(heads, body)])


def draw(path: Path, title: str, patients: Mapping[str, Measured]) -> None:
    """Bland-Altman plots against the expert: a row of panels for every way, a column for every quantity in `DRAWN`."""
    ways = [way for way in next(iter(patients.values())) if way != EXPERT]
    figure = Figure(figsize=(3.2 * len(DRAWN), 2.6 * len(ways) + 0.4), layout="constrained")
    grid = figure.subplots(len(ways), len(DRAWN), squeeze=False, sharey="col")
    for line, way in zip(grid, ways, strict=True):
        for axis, quantity in zip(line, DRAWN, strict=True):
            pair = np.array([[one[side][quantity] for side in (way, EXPERT)] for one in patients.values()])
            difference = pair[:, 0] - pair[:, 1]
            bias, deviation = np.nanmean(difference), np.nanstd(difference, ddof=1)
            axis.scatter(pair.mean(axis=1), difference, s=14, color=HIGHLIGHT)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.axhline(bias, color="k", linewidth=1)
            for sign in (-1, 1):
                axis.axhline(bias + sign * LIMITS * deviation, color="k", linewidth=1, linestyle="--")
            axis.tick_params(labelsize=8)
            axis.set_title(f"{way}: {quantity}", fontsize=8)
            axis.set_ylabel(f"way - expert, {UNITS[quantity]}", fontsize=7)
            axis.set_xlabel(f"mean of both, {UNITS[quantity]}", fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=PIXELS_PER_INCH)


def pairs_of(items: Iterable[Item], split: str) -> list[tuple[Item, Item]]:
    """(ED, ES) of every patient of a split that has both; nothing is read."""
    found: dict[str, dict[str, Item]] = {}
    for item in items:
        if item.split == split and item.series in PHASES:
            found.setdefault(item.patient, {})[item.series] = item
    return [(one["ED"], one["ES"]) for one in found.values() if len(one) == len(PHASES)]


def table_name(every: int) -> str:
    """What the table's files and its place in a document are called."""
    return "agreement" if every == 1 else f"agreement-every-{every}"


def make(
    place: Place,
    pairs: Sequence[tuple[Item, Item]],
    ways: Ways,
    *,
    head: str,
) -> None:
    """Make the table and its picture.

    Args:
        place: folder and files for them.
        pairs: ED and ES of every patient.
        ways: the ways in which they are measured.
        head: line above the table that says what was asked.
    """
    patients: dict[str, dict[str, dict[str, float]]] = {}
    for ed, es in tqdm(pairs, desc="agreement", unit=" patients"):
        patients[ed.patient] = measured(ed.read(), es.read(), ways)
    rows = evaluate(patients)
    text = markdown(rows, f"{head}, {len(patients)} patients")
    name = table_name(ways.every)
    write_table(place, name, text, {"patients": patients, "rows": rows})
    draw(place.out / f"{name}.png", f"{head}: Bland-Altman against the expert", patients)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds one folder per set")
    parser.add_argument("--dataset", default="acdc", help="a set with experts' labels at ED and ES")
    parser.add_argument("--split", default="test", help="ACDC's test split is patients 061-080 and 101-150")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep only every Nth acquired slice")
    parser.add_argument(
        "--factor",
        default="isotropic",
        choices=[*map(str, FACTORS), "isotropic"],
        help="how many gaps each gap becomes in dense stacks",
    )
    parser.add_argument(
        "--methods", nargs="+", default=["linear", "calid+"], choices=METHODS, help="what makes dense stacks"
    )
    parser.add_argument("--mode", default="detail", choices=get_args(Mode), help="of calid and calid+")
    parser.add_argument("--quick", type=int, metavar="N", help="only the first N patients, two or more")
    add_place_arguments(parser, table="agreement")


def run(options: Namespace) -> int:
    """Run the command."""
    factor: Factor = "isotropic" if options.factor == "isotropic" else int(options.factor)  # type: ignore[assignment]
    shared: dict[str, Any] = {"factor": factor, "mode": options.mode, "device": options.device, "align": "off"}
    settings = {f"dense, {method}": Settings(method=method, **shared) for method in options.methods}
    segmenter = judging_segmenter(choose_device(options.device), options.models)
    pairs = list(islice(pairs_of(items_of(options.data, options.dataset), options.split), options.quick))
    kept = "all slices" if options.every == 1 else f"every {options.every}. slice"
    head = f"{options.dataset} {options.split}, {kept} kept, dense: factor {factor}"
    make(place_of(options), pairs, Ways(segmenter, settings, options.every, options.models), head=head)
    return 0
