"""The interpolation table on phantoms: its protocol, its arithmetic and its files."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_benchmark import ways
from calid_benchmark.controls import Filter, as_sharp_as
from calid_benchmark.evaluate import main
from calid_benchmark.systems import Named
from calid_benchmark.tables import interpolation
from calid_benchmark.tables.answers import ask, control_name, with_controls
from calid_benchmark.tables.deviation import trust_note, trust_of, uncertainty_figures
from calid_benchmark.tables.interpolation import Judges, Tally, over_phases, phases_markdown
from calid_benchmark.tables.record import write_into
from scipy import stats

GROUP = "phantom ED 16 mm"
LINEAR = Named("linear", ways.linear)


@pytest.fixture
def evaluate(tmp_path):
    """Asks systems and judges what they answered."""

    def evaluated(asked, systems_asked, judges, **options):
        return interpolation.evaluate(ask(systems_asked, asked, tmp_path, **options), judges)

    return evaluated


def test_every_inner_slice_is_asked_for_between_its_neighbors(asked):
    first = asked[0]
    assert first.group == GROUP
    assert first.truth.shape[1:] == (128, 128)
    assert len(first.truth) == len(first.images) - 2
    np.testing.assert_array_equal(first.before[1:], first.truth[:-1])
    np.testing.assert_array_equal(first.after[:-1], first.truth[1:])
    assert 0 <= first.truth.min() < first.truth.max() <= 1


def test_the_row_of_linear_interpolation_is_what_numpy_says(asked, evaluate):
    rows = evaluate(asked, [LINEAR], Judges())[GROUP]
    by_patient = []
    for question in asked:
        error = np.square((question.before + question.after) / 2 - question.truth).mean(axis=(1, 2))
        by_patient.append(np.mean(-10 * np.log10(error)))
    assert rows["linear"]["psnr"]["mean"] == pytest.approx(np.mean(by_patient), abs=0.01)
    assert rows["linear"]["patients"] == 2
    assert rows["linear"]["slices"] == sum(len(question.truth) for question in asked)
    assert rows["linear"]["sharpness"]["mean"] < 1
    assert rows["linear"]["psnr"]["p_against_linear"] is None


def test_a_perfect_system_is_perfect_in_every_figure(asked, evaluate):
    truths = {question.before.tobytes(): question.truth for question in asked}
    perfect = Named("perfect", lambda before, _: truths[before.tobytes()])
    judges = Judges(lambda images: [images, images[:, :, ::2, ::2]])
    row = evaluate(asked, [LINEAR, perfect], judges)[GROUP]["perfect"]
    assert row["ssim"]["mean"] == pytest.approx(1)
    assert row["sharpness"]["mean"] == pytest.approx(1)
    assert row["feature_distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert row["frechet"] == pytest.approx(0, abs=1e-6)


def test_the_ceiling_is_shown_the_true_slice_and_the_others_are_not(asked, evaluate):
    shown = []

    def copying(before, after):
        shown.append((before, after))
        return before

    rows = evaluate(asked[:1], [LINEAR, Named("copy", copying, sees_truth=True)], Judges())[GROUP]
    np.testing.assert_array_equal(shown[0][0], asked[0].truth)
    assert rows["copy"]["ssim"]["mean"] == pytest.approx(1)
    assert rows["linear"]["ssim"]["mean"] < 1


def test_a_slow_baseline_is_compared_on_the_patients_it_was_asked_about(asked, evaluate):
    slow = Named("DiffAE", lambda before, after: (before + after) / 2)
    judges = Judges(lambda images: [images, images[:, :, ::2, ::2]])
    rows = evaluate(asked, [LINEAR, slow], judges, slow_patients=1)[GROUP]
    first = evaluate(asked[:1], [LINEAR], judges)[GROUP]["linear"]
    assert (rows["linear"]["patients"], rows["DiffAE"]["patients"]) == (2, 1)
    for name in ("psnr", "sharpness", "feature_distance"):
        assert rows["DiffAE"][name]["mean"] == pytest.approx(first[name]["mean"])
    assert rows["DiffAE"]["frechet"] == pytest.approx(first["frechet"])
    assert "| DiffAE | 1 |" in interpolation.markdown({GROUP: rows})


def test_the_table_says_what_a_row_was_trained_for_where_that_is_known(asked, evaluate):
    rows = evaluate(asked[:1], [LINEAR, Named("DiffAE", ways.linear)], Judges())[GROUP]
    assert "trained for" not in interpolation.markdown({GROUP: rows})
    rows["DiffAE"]["budget"] = "12 core minutes"
    lines = interpolation.markdown({GROUP: rows}).splitlines()
    assert next(line for line in lines if line.startswith("| system")).endswith("| s/slice | trained for |")
    assert next(line for line in lines if line.startswith("| DiffAE")).endswith("| 12 core minutes |")
    assert next(line for line in lines if line.startswith("| linear")).endswith("| - |")


def test_the_deviation_is_judged_by_its_own_error_everywhere_and_in_the_heart(asked, monkeypatch):
    """In the heart the deviation is small where the error is large, elsewhere both are the same."""
    rows, columns = np.indices((128, 128)) - 63.5
    error = np.random.default_rng(1).random((128, 128))
    deviation = np.where(np.hypot(rows, columns) < 40, 1 - error, error)

    def drawn(*_, **__):
        return [(image + error, deviation) for image in asked[0].truth]

    monkeypatch.setattr("calid_benchmark.tables.deviation.draws_between", drawn)
    monkeypatch.setattr("calid_benchmark.tables.deviation.disagreement", lambda asked, **_: [error] * len(asked.truth))
    found = uncertainty_figures(asked[:1], models_folder=None, samples=2, device="cpu")
    assert found["heart"]["spearman"] == pytest.approx(-1, abs=0.02)
    assert found["heart"]["control"] == pytest.approx(1)
    assert 0 < found["everywhere"]["spearman"] < 0.9
    assert found["slices"] == len(asked[0].truth)
    assert "over all pixels" in trust_note(found)


def test_intervals_of_a_true_deviation_hold_their_share_of_the_errors():
    deviation = np.random.default_rng(0).uniform(0.5, 2.0, 40_000)
    error = np.abs(np.random.default_rng(1).standard_normal(len(deviation)) * deviation)
    found = trust_of(error, deviation)
    assert found["spread_over_error"] == pytest.approx(1, rel=0.02)
    for share, held in found["coverage"].items():
        assert held == pytest.approx(float(share), abs=0.01)
    assert trust_of(error, deviation / 2)["spread_over_error"] == pytest.approx(0.5, rel=0.02)


def test_every_system_is_tested_against_linear_and_against_calid_plus_over_patients():
    rng = np.random.default_rng(0)
    one, two, three = (
        {str(i): {"psnr": [v], "gradient": [1.0], "true_gradient": [1.0]} for i, v in enumerate(rng.normal(20, 1, 12))}
        for _ in range(3)
    )
    tallies = {
        name: interpolation.Tally(side, slices=12)
        for name, side in {"linear": one, "CaLID+": two, "other": three}.items()
    }
    row = interpolation._summary(tallies["other"], tallies)["psnr"]
    values = [[patient["psnr"][0] for patient in side.values()] for side in (one, two, three)]
    assert row["p_against_linear"] == pytest.approx(stats.wilcoxon(values[2], values[0]).pvalue)
    assert row["p_against_calid_plus"] == pytest.approx(stats.wilcoxon(values[2], values[1]).pvalue)
    assert row["p_against_linear"] != row["p_against_calid_plus"]


def test_a_slice_at_many_steps_is_timed_warm_and_often_alone_and_together(asked, evaluate):
    seen, timed = [], []

    def counted(before, after):
        timed.append(len(before))
        return ways.linear(before, after)

    def at_steps(steps):
        seen.append(steps)
        return Named("slow", counted)

    stepped = Named("stepped", ways.linear, at_steps=at_steps)
    tables = evaluate(asked[:1], [LINEAR, stepped], Judges())
    interpolation.add_times(tables, asked, [LINEAR, stepped], steps=128)
    assert seen == [128]
    rounds = interpolation.ROUNDS
    assert rounds >= 3
    assert timed == [1, *[1] * rounds, *[interpolation.BATCH] * rounds], "one to warm up, which no time counts"
    times = tables[GROUP]["stepped"]["seconds_at_steps"]
    for how in ("alone", "batch"):
        assert 0 < times[how]["low"] <= times[how]["mean"] <= times[how]["high"]
    assert "seconds_at_steps" not in tables[GROUP]["linear"]
    assert "s/slice at 128, alone | s/slice at 128, 4 together" in interpolation.markdown(tables)


def test_a_learned_row_is_held_beside_its_control_at_equal_sharpness(asked, tmp_path):
    """What is called learned here is the control under a blur: nothing may be left of its gain in PSNR."""
    rng = np.random.default_rng(0)
    rough = Named("rough", lambda before, after: (before + after) / 2 + 0.05 * rng.standard_normal(before.shape))
    smooth = Named("smooth", lambda before, after: Filter(blur_pixels=1.0)((before + after) / 2))
    answers = ask([LINEAR, smooth], asked, tmp_path / "answers")
    name = control_name("smooth", "linear")
    held = with_controls(answers, {"smooth": "linear", "rough": "linear", "linear": "nobody"}, tmp_path / "controls")
    assert list(held.rows) == ["linear", "smooth", name]
    assert held.filters[name][GROUP].blur_pixels == pytest.approx(1.0, abs=0.01)
    rows = interpolation.evaluate(held, Judges())[GROUP]
    assert rows[name]["sharpness"]["mean"] == pytest.approx(rows["smooth"]["sharpness"]["mean"], abs=2e-3)
    claim = rows["smooth"]["control"]
    assert claim["row"] == name
    assert claim["difference"]["psnr"]["mean"] == pytest.approx(0, abs=0.02)
    assert abs(rows["smooth"]["psnr"]["mean"] - rows["linear"]["psnr"]["mean"]) > 0.1
    assert f"| smooth | {name} | blurred by 1.00 px |" in interpolation.markdown({GROUP: rows})

    blunt = with_controls(ask([LINEAR, rough], asked, tmp_path / "rough"), {"rough": "linear"}, tmp_path / "blunt")
    assert blunt.filters[control_name("rough", "linear")][GROUP].gain > 1.05
    sharpness = interpolation.evaluate(blunt, Judges())[GROUP]
    made, true = (sharpness[row]["sharpness"]["mean"] for row in (control_name("rough", "linear"), "rough"))
    assert made == pytest.approx(true, rel=0.01)


def test_no_filter_gives_detail_to_images_that_have_none():
    with pytest.raises(ValueError, match="no blur up to 8 px and no gain up to 16"):
        as_sharp_as(np.full((1, 16, 16), 0.5), np.random.default_rng(0).random((1, 16, 16)))


def test_one_command_writes_the_table_with_what_made_it(prepared, random_models, tmp_path, capsys):
    options = ["--prepared", str(prepared), "--datasets", "phantom", "--models", str(random_models), "--quick", "1"]
    options += ["--weights", str(tmp_path / "none"), "--steps", "2", "--samples", "2", "--slow-baselines", "1"]
    assert main(["interpolation", *options, "--out", str(tmp_path / "table")]) == 0
    record = json.loads((tmp_path / "table" / "interpolation.json").read_text())
    rows = record["tables"][GROUP]
    assert {"nearest", "linear", "B-spline", "registration", "reconstruction", "CaLID", "CaLID+", "fidelity"} <= set(
        rows
    )
    assert record["uncertainty"]["slices"] == 5, "the first of every five stacks"
    assert all(-1 <= record["uncertainty"][place]["spearman"] <= 1 for place in ("everywhere", "heart"))
    assert len(record["made_by"]["model_sha256"]) == len(record["made_by"]["prepared_sha256"]) == 64
    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "table" / "interpolation.md").read_text().strip()
    assert f"{rows['linear']['psnr']['mean']:.2f}" in shown
    for name in ("DiffAE", "DMCVR", "DeepRecon", "regression U-Net"):
        assert name not in rows
        assert any(note.startswith(f"{name} is left out: ") for note in record["notes"])
    assert "LPIPS-alex is not measured: no path to AlexNet's weights" in shown
    assert "ANTs SyN, DiffAE, DMCVR, DeepRecon: asked about 1 patient(s) of every group only" in shown
    assert {path.name for path in (tmp_path / "table").glob("*.png")} == {"phantom-ED-16-mm.png", "slices.png"}


def test_a_file_gets_a_table_into_its_place_only(tmp_path):
    card = tmp_path / "card.md"
    place = "above\n<!-- steps: begin -->\n{}\n<!-- steps: end -->\n<!-- cine: begin --><!-- cine: end -->\nbelow\n"
    card.write_text(place.format("old\nlines"))
    write_into(card, "steps", r"new \1 table")
    assert card.read_text() == place.format(r"new \1 table")
    with pytest.raises(ValueError, match=r"card\.md has no place for speed"):
        write_into(card, "speed", "new table")


def test_labels_are_cut_like_their_slices(asked):
    blood, muscle = (asked[0].truth[asked[0].labels == label] for label in (1, 2))
    assert asked[0].labels.shape == asked[0].truth.shape
    assert blood.mean() > muscle.mean() + 0.2


def tally(first: float, *, patients: int = 6) -> Tally:
    """Of two slices a patient, PSNR `first` on average and as sharp as the truth."""
    figures = {"gradient": [1.0, 1.0], "true_gradient": [1.0, 1.0]}
    numbered = ((str(number), number + first) for number in range(patients))
    return Tally({name: figures | {"psnr": [mean - 1, mean + 1]} for name, mean in numbered}, slices=2 * patients)


def test_draws_are_compared_on_the_mean_of_both_phases_of_a_patient():
    ed = {"linear": tally(1), "CaLID's D, code 0": tally(2), "CaLID": tally(3)}
    es = {"linear": tally(0), "CaLID's D, code 0": tally(1), "CaLID": tally(4), "motion and texture": tally(1)}
    found = over_phases({"phantom ED 10 mm": ed, "phantom ES 10 mm": es, "phantom ED 5 mm": ed})
    assert list(found) == ["phantom 10 mm"]
    assert found["phantom 10 mm"]["patients"] == 6
    rows = found["phantom 10 mm"]["rows"]["CaLID"]
    assert list(rows) == ["CaLID's D, code 0"]
    assert rows["CaLID's D, code 0"]["psnr"]["mean"] == pytest.approx((1 + 3) / 2)
    assert rows["CaLID's D, code 0"]["psnr"]["p"] == pytest.approx(2 / 2**6)
    lines = phases_markdown(found)
    assert lines[0].startswith("**phantom 10 mm, ED and ES**: 6 patients")
    assert any("| CaLID | CaLID's D, code 0 | +2.000 (0.031) |" in line for line in lines)


def test_phases_are_not_compared_where_only_one_was_asked_about():
    assert over_phases({GROUP: {"linear": tally(1), "CaLID": tally(3)}}) == {}
