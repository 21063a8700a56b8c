"""`calid-evaluate interpolation`: slice n from n-1 and n+1 on patients no model ever saw (CaLID, Table I).

Figures are per slice, then per patient, then over patients; nothing is averaged over data sets or spacings. Brackets
are 95 % bootstrap intervals over patients, tests are Wilcoxon's signed ranks over patients, two-sided, uncorrected.
"reconstruction" is no interpolation: E and D of the true slice, the most that any method in this latent space reaches.

Three rows are CaLID without its diffusion, so that what each part adds can be told apart. All begin with the neighbors
as the motion network brings them half-way. "CaLID's motion alone" is their mean. "motion and texture" is that mean with
its fine texture made as strong as the neighbors', as the engine does after the diffusion: CaLID's rows differ from it
by what the diffusion adds. "motion, 8 views" averages that mean over the eight mirrored and swapped views of
"fidelity", which differs from it likewise.

"A, as sharp as B" is B's control: A lacks the learned part that B has, and was blurred, or its fine detail made
stronger (one number for a group), until it is as sharp as B. Blur alone gains PSNR and detail alone gains LPIPS: only
what B has beyond its control comes from what was learned. A block below each table tests every such pair over patients.
Where ED and ES were both asked about, a last block tests CaLID's draws on the mean of both phases of every patient.

Rows of fewer patients (`--slow-baselines`) are compared with the others on these patients, their Frechet distances and
rFID are to these patients' slices alone, and grow as slices become fewer.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from calid.errors import WeightsError
from calid.heart.medformer import features
from calid.run.device import choose_device
from tqdm import tqdm

from calid_benchmark import metrics, perceptual
from calid_benchmark.controls import Filter
from calid_benchmark.perceptual import Perceptual
from calid_benchmark.segmenters import judging_segmenter, network_of
from calid_benchmark.systems import CODE_0, CONTROLS, FROM_PRIOR, Named, chosen
from calid_benchmark.tables.answers import Answers, Kept, ask, control_name, with_controls
from calid_benchmark.tables.deviation import trust_note, uncertainty_figures
from calid_benchmark.tables.drawings import dots, error_bars, sheet
from calid_benchmark.tables.questions import (
    StackQuestion,
    add_question_arguments,
    add_slow_argument,
    asked_of,
    by_group,
    notes_of_slow,
    offer_of,
)
from calid_benchmark.tables.record import Place, cell, markdown_table, paragraphs, place_of, probability, write_table

FIGURES = {"psnr": 2, "ssim": 3, "sharpness": 2, "feature_distance": 3, "lpips": 3}
"""Figures with an interval, and their digits."""
ROUNDS, BATCH = 3, 4
"""How often a slice at many steps is timed, and how many slices together."""
DRAWS = ("CaLID", "CaLID+", "CaLID, one step")
WITHOUT_DRAW = (CODE_0, FROM_PRIOR, "motion and texture")
"""What draws are compared with over both phases, beside their controls."""
HEADS = ("PSNR dB", "SSIM", "sharpness", "feature distance", "LPIPS-alex", "Frechet", "rFID", "s/slice")


@dataclass(frozen=True)
class Judges:
    """What the figures are measured with.

    Args:
        extract: the segmenter's features, or None where it is not installed.
        perceptual: LPIPS and rFID, or why they are not measured.
    """

    extract: metrics.FeatureExtractor | None = None
    perceptual: Perceptual = field(default_factory=Perceptual)


@dataclass(eq=False)
class Tally:
    """What one row's slices of one group came to so far."""

    patients: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    pooled: list[np.ndarray] = field(default_factory=list)
    true_pooled: list[np.ndarray] = field(default_factory=list)
    slices: int = 0
    seconds: float = 0.0


Tallies = Mapping[str, Mapping[str, Tally]]
"""{group: {row: its tally}}."""


def evaluate(answers: Answers, judges: Judges) -> dict[str, dict[str, Any]]:
    """{group: {row: figures}}; figures have means over patients, 95 % intervals and p against linear and CaLID+.

    Args:
        answers: answers of all rows, linear interpolation among them.
        judges: features, LPIPS and rFID.
    """
    return tables_of(tallied(answers, judges), answers, judges)


def tallied(answers: Answers, judges: Judges) -> Tallies:
    """The figures of every slice of all answers."""
    found = {}
    for group, members in by_group(answers.asked).items():
        tallies = {row: Tally() for row in answers.rows}
        for question in tqdm(members, desc=f"judging {group}", unit=" stacks"):
            truth = None if judges.extract is None else judges.extract(torch.from_numpy(question.truth)[:, None])
            for row, tally in tallies.items():
                if question in answers.rows[row]:
                    judge(tally, answers.rows[row][question], question, truth, judges)
        found[group] = {row: tally for row, tally in tallies.items() if tally.slices}
    return found


def tables_of(of_groups: Tallies, answers: Answers, judges: Judges) -> dict[str, dict[str, Any]]:
    """What `evaluate` finds, of the answers' tallies."""
    tables: dict[str, dict[str, Any]] = {}
    for group, members in by_group(answers.asked).items():
        tallies = of_groups[group]
        rows = {row: _summary(tally, tallies) for row, tally in tallies.items()}
        if judges.perceptual.rfid is not None:
            for row, figures in rows.items():
                pairs = ((question.truth, kept.images()) for question, kept in answers.of(row, members))
                figures["rfid"] = judges.perceptual.rfid(pairs)
        for control, filters in answers.filters.items():
            if control in rows:
                learned = answers.controls[control]
                figures = _against(tallies[learned], tallies[control])
                rows[learned]["control"] = {"row": control, "filter": asdict(filters[group]), "difference": figures}
        tables[group] = rows
    return tables


def judge(tally: Tally, kept: Kept, question: StackQuestion, truth: list[torch.Tensor] | None, judges: Judges) -> None:
    """Add the figures of every slice of an answer to its row's tally.

    Args:
        tally: tally of the row.
        kept: answer of the row.
        question: stack that was asked about.
        truth: features of the true slices, None where there is no extractor.
        judges: features, LPIPS and rFID.
    """
    made = kept.images()
    tally.seconds += kept.seconds
    tally.slices += len(made)
    figures = {
        "psnr": metrics.psnr(question.truth, made),
        "ssim": metrics.ssim(question.truth, made),
        "gradient": metrics.gradient_magnitude(made),
        "true_gradient": metrics.gradient_magnitude(question.truth),
    }
    if judges.extract is not None and truth is not None:
        found = judges.extract(torch.from_numpy(made)[:, None])
        figures["feature_distance"] = metrics.feature_distance(truth, found)
        tally.pooled.append(metrics.pooled(found))
        tally.true_pooled.append(metrics.pooled(truth))
    if judges.perceptual.lpips is not None:
        figures["lpips"] = judges.perceptual.lpips(question.truth, made)
    patient = tally.patients.setdefault(question.patient, {})
    for name, values in figures.items():
        patient.setdefault(name, []).extend(values)


def _means(side: Tally, patients: Iterable[str]) -> dict[str, list[float]]:
    """{figure: its mean of every patient}; sharpness is the ratio of a patient's mean gradients, made to true."""
    means: dict[str, list[float]] = {}
    for figures in (side.patients[patient] for patient in patients):
        for name in FIGURES:
            if name in figures:
                means.setdefault(name, []).append(float(np.mean(figures[name])))
        means.setdefault("sharpness", []).append(float(np.sum(figures["gradient"]) / np.sum(figures["true_gradient"])))
    return means


def _summary(tally: Tally, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """A row, compared with linear interpolation and CaLID+ on the patients that it was asked about."""
    mine, linear = (_means(side, tally.patients) for side in (tally, tallies["linear"]))
    best = _means(tallies["CaLID+"], tally.patients) if "CaLID+" in tallies else {}
    row: dict[str, Any] = {"patients": len(tally.patients), "slices": tally.slices}
    row |= {name: metrics.compared(mine[name], linear[name], best.get(name)) for name in FIGURES if name in mine}
    if tally.pooled:
        row["frechet"] = metrics.frechet_distance(*(np.concatenate(x) for x in (tally.true_pooled, tally.pooled)))
    return row | {"seconds_per_slice": tally.seconds / tally.slices}


def _against(learned: Tally, control: Tally) -> dict[str, dict[str, Any]]:
    """{figure: mean, interval and p of the differences of patients}, a learned row's less its control's."""
    return _differences(*(_means(side, control.patients) for side in (learned, control)))


def _differences(
    mine: Mapping[str, Sequence[float]], its: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float | None]]:
    """{figure: mean, interval and p of the differences}, of figures of the same patients in the same order."""
    differences = {name: np.subtract(mine[name], its[name]).tolist() for name in FIGURES if name in mine}
    return {
        name: {**(metrics.summary(values) or {}), "p": metrics.paired_p(mine[name], its[name])}
        for name, values in differences.items()
    }


def over_phases(of_groups: Tallies) -> dict[str, dict[str, Any]]:
    """CaLID's draws against what lacks their diffusion, on the mean of ED and ES of every patient.

    Returns:
        {"<set> <spacing> mm": {"patients": their number, "rows": {draw: {other row: {figure: difference and p}}}}} of
        the sets of which both phases were asked about.
    """
    found = {}
    for group, at_ed in of_groups.items():
        at_es = of_groups.get(group.replace(" ED ", " ES "), {})
        if " ED " not in group or not at_es:
            continue
        patients = sorted(at_ed["linear"].patients.keys() & at_es["linear"].patients.keys())
        both = {row: (at_ed[row], at_es[row]) for row in at_ed if row in at_es}
        rows = {draw: _draw_against(draw, both, patients) for draw in DRAWS if draw in both}
        if patients and any(rows.values()):
            found[group.replace(" ED ", " ")] = {"patients": len(patients), "rows": rows}
    return found


def _draw_against(
    draw: str, both: Mapping[str, tuple[Tally, Tally]], patients: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """{other row: {figure: difference and p}} of a draw less each row without its diffusion."""

    def means(row: str) -> dict[str, list[float]]:
        first, second = (_means(tally, patients) for tally in both[row])
        return {name: np.mean([values, second[name]], axis=0).tolist() for name, values in first.items()}

    mine, others = means(draw), [*WITHOUT_DRAW, control_name(draw, CONTROLS[draw])]
    return {row: _differences(mine, means(row)) for row in others if row in both}


def add_times(
    tables: Mapping[str, Mapping[str, Any]], asked: Sequence[StackQuestion], systems: Sequence[Named], *, steps: int
) -> None:
    """Add the generation time of a slice at `steps` steps to the rows of systems that have steps.

    Warmed up by one slice, then `ROUNDS` times: one slice alone, and `BATCH` slices together (seconds for each).
    """
    before, after = asked[0].before[:BATCH], asked[0].after[:BATCH]
    for system in systems:
        if system.at_steps is None:
            continue
        slow = system.at_steps(steps)
        slow.make(before[:1], after[:1])
        found = {
            "alone": _spread([slow.answer(before[:1], after[:1]).seconds for _ in range(ROUNDS)]),
            "batch": _spread([slow.answer(before, after).seconds / len(before) for _ in range(ROUNDS)]),
        }
        for rows in tables.values():
            rows[system.name]["seconds_at_steps"] = {"steps": steps, "batch_slices": len(before), **found}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median (as "mean", what cells of a table print), minimum and maximum."""
    return {"mean": float(np.median(values)), "low": min(values), "high": max(values)}


def markdown(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The tables as Markdown, the tests and the controls below each, and notes at the end."""
    lines = []
    for group, rows in tables.items():
        first = next(iter(rows.values()))
        timed = next((row["seconds_at_steps"] for row in rows.values() if "seconds_at_steps" in row), None)
        heads = [*HEADS]
        has_budgets = any(row.get("budget") for row in rows.values())
        if timed is not None:
            how = ("alone", f"{timed['batch_slices']} together")
            heads += [f"s/slice at {timed['steps']}, {one}" for one in how]
        lines += [f"**{group}**: {first['patients']} patients, {first['slices']} slices", ""]
        heads += ["trained for"] if has_budgets else []
        body = [
            [name, str(row["patients"]), *_cells(row), *_times(row, timed)]
            + ([row.get("budget") or "-"] if has_budgets else [])
            for name, row in rows.items()
        ]
        lines += markdown_table(["system", "patients", *heads], body)
        lines += [*_tests(rows), *_claims(rows)]
    return "\n".join([*lines, *notes])


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [cell(row.get(name), digits) for name, digits in FIGURES.items() if name != "lpips"]
    lpips, rfid = perceptual_cells(row)
    frechet = f"{row['frechet']:.2f}" if "frechet" in row else "-"
    return [*cells, lpips, frechet, rfid, f"{row['seconds_per_slice']:.2f}"]


def _times(row: Mapping[str, Any], timed: Mapping[str, Any] | None) -> list[str]:
    """Seconds of a slice at many steps, where any row has them: median [minimum, maximum]."""
    if timed is None:
        return []
    mine = row.get("seconds_at_steps", {})
    return [cell(mine.get(how), 2) for how in ("alone", "batch")]


def _claims(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What every learned part adds to its control at equal sharpness: difference and p, figure by figure."""
    claims = {name: row["control"] for name, row in rows.items() if "control" in row}
    if not claims:
        return []
    names = [name for name in FIGURES if all(name in claim["difference"] for claim in claims.values())]
    body = []
    for learned, claim in claims.items():
        cells = [_difference(claim["difference"][name], FIGURES[name]) for name in names]
        body.append([learned, claim["row"], str(Filter(**claim["filter"])), *cells])
    heads = ["learned", "its control", "the control was", *(f"{name} (p)" for name in names)]
    return ["What the learned parts add to their controls at equal sharpness:", "", *markdown_table(heads, body)]


def _difference(figure: Mapping[str, Any], digits: int) -> str:
    """A mean difference with its sign and p."""
    return f"{figure['mean']:+.{digits}f} ({probability(figure['p'])})"


def phases_markdown(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The lines of what `over_phases` found, with one digit more than a figure has: differences are small."""
    lines = []
    for place, asked in found.items():
        pairs = {(draw, other): figures for draw, others in asked["rows"].items() for other, figures in others.items()}
        names = list(next(iter(pairs.values())))
        body = [
            [*rows, *(_difference(figures[name], FIGURES[name] + 1) for name in names)]
            for rows, figures in pairs.items()
        ]
        title = (
            f"**{place}, ED and ES**: {asked['patients']} patients, the mean of both phases of each; differences (p)"
        )
        lines += [title, "", *markdown_table(["draw", "less", *names], body)]
    return lines


def perceptual_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """LPIPS-alex and rFID of a row as printed."""
    lpips = cell(row["lpips"], FIGURES["lpips"]) if "lpips" in row else "not measured"
    return lpips, f"{row['rfid']:.1f}" if "rfid" in row else "not measured"


def _tests(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """p against linear interpolation and against CaLID+, where there are enough patients."""
    names = [name for name in FIGURES if all(name in row for row in rows.values())]
    tested = {name: [_pair(row[figure]) for figure in names] for name, row in rows.items()}
    if all(pair == "- / -" for pairs in tested.values() for pair in pairs):
        return []
    return [
        "p against linear / against CaLID+:",
        "",
        *markdown_table(["system", *names], [[name, *pairs] for name, pairs in tested.items()]),
    ]


def _pair(figure: Mapping[str, float | None]) -> str:
    return f"{probability(figure['p_against_linear'])} / {probability(figure.get('p_against_calid_plus'))}"


def draw(folder: Path, tables: Mapping[str, Mapping[str, Any]], answers: Answers) -> None:
    """Means of every group, and a sheet of slices: the truth and what every system made of its neighbors."""
    for group, rows in tables.items():
        names = [name for name in ("psnr", "ssim", "sharpness", "feature_distance") if name in rows["linear"]]
        dots(folder / f"{group.replace(' ', '-')}.png", f"{group}: slice n from n-1 and n+1", error_bars(rows, names))
    sheet(folder / "slices.png", "The slice between: truth, and each system", sample_slices(answers))


def sample_slices(answers: Answers) -> dict[str, dict[str, np.ndarray]]:
    """{group: {heading: picture}}: the middle slice of the first stack of every group."""
    pictures = {}
    for group, (question, *_) in by_group(answers.asked).items():
        middle = len(question.truth) // 2
        row = {"before": question.before[middle], "truth": question.truth[middle], "after": question.after[middle]}
        made = {name: kept[question] for name, kept in answers.rows.items() if question in kept}
        row |= {name: kept.images()[middle] for name, kept in made.items() if name not in answers.ceilings}
        pictures[group] = row
    return pictures


def make(
    place: Place,
    answers: Answers,
    judges: Judges,
    *,
    systems: Sequence[Named],
    notes: Sequence[str] = (),
    time_steps: int | None = None,
    uncertainty_every: int = 0,
    samples: int = 8,
) -> None:
    """Make the table.

    Args:
        place: folder and files for it.
        answers: answers of all rows.
        judges: features, LPIPS and rFID.
        systems: systems that answered, whose weights the table names.
        notes: remarks below the table.
        time_steps: steps of which the generation time is also measured.
        uncertainty_every: how well the deviation tells the error, on every Nth stack; 0 leaves it out.
        samples: draws of the deviation.
    """
    of_groups = tallied(answers, judges)
    tables, phases = tables_of(of_groups, answers, judges), over_phases(of_groups)
    for rows in tables.values():
        for system in systems:
            if system.name in rows:
                rows[system.name]["budget"] = system.budget
    if time_steps is not None:
        add_times(tables, answers.asked, systems, steps=time_steps)
    remarks, trust = list(notes), None
    if uncertainty_every:
        some = answers.asked[::uncertainty_every]
        trust = uncertainty_figures(some, models_folder=place.models, samples=samples, device=place.device)
        remarks.insert(0, trust_note(trust))
    text = markdown(tables, [*phases_markdown(phases), *notes_of(remarks, judges.perceptual), ""])
    record = {
        "tables": tables,
        "phases": phases,
        "uncertainty": trust,
        "notes": list(notes),
        "not_measured": judges.perceptual.reasons,
    }
    write_table(place, "interpolation", text, record, systems=systems)
    draw(place.out, tables, answers)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    add_question_arguments(parser, table="interpolation")
    perceptual.add_arguments(parser)
    add_slow_argument(parser)
    parser.add_argument("--time-steps", type=int, metavar="N", help="also time N steps, as the paper's 128")
    parser.add_argument(
        "--uncertainty-every",
        type=int,
        default=5,
        metavar="N",
        help="how well the deviation tells the error, on every Nth stack; 0 leaves it out",
    )


def run(options: Namespace) -> int:
    """Run the command; returns its exit code."""
    offer = offer_of(options)
    systems = chosen(offer.systems, options.systems)
    judges = Judges(segmenter_features(options.models), perceptual.measures_of(options))
    with TemporaryDirectory() as folder:
        answers = ask(systems, asked_of(options), Path(folder), slow_patients=options.slow_baselines)
        make(
            place_of(options),
            with_controls(answers, CONTROLS, Path(folder)),
            judges,
            systems=systems,
            notes=[*notes_of_slow(options.slow_baselines), *offer.notes],
            time_steps=options.time_steps,
            uncertainty_every=options.uncertainty_every,
            samples=options.samples,
        )
    return 0


def notes_of(notes: Sequence[str], measures: Perceptual) -> list[str]:
    """What is not in the table, and why, as paragraphs."""
    reasons = [f"{name} is not measured: {reason}." for name, reason in measures.reasons.items()]
    return paragraphs([*notes, *reasons])


def segmenter_features(models_folder: Path | None) -> metrics.FeatureExtractor | None:
    """The frozen encoder of the bundled segmenter, or None where it is not installed."""
    try:
        segmenter = judging_segmenter(choose_device("cpu"), models_folder)
    except WeightsError:
        return None
    return lambda images: features(network_of(segmenter), images)
