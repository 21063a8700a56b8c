"""Agreement of volumes: known statistics, known hearts, and the command from files to a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid.images.files import write_stack
from calid.stack import Stack
from calid_benchmark.agreement import agreement_of, icc
from calid_benchmark.evaluate import main
from calid_benchmark.tables.agreement import (
    EXPERT,
    EXPERT_KEPT,
    SPARSE,
    UNITS,
    draw,
    evaluate,
    every_nth,
    markdown,
    quantities,
)
from phantoms import beating_case, heart_labels, lv_volume_ml, myocardium_volume_ml

SHROUT_AND_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Six targets rated by four judges (Psychological Bulletin 86, 1979, Table 2); the paper's ICC(2,1) is .29."""


def test_the_icc_is_that_of_shrout_and_fleiss() -> None:
    assert icc(SHROUT_AND_FLEISS) == pytest.approx(0.29, abs=0.005)


def test_a_constant_offset_lowers_the_icc_and_is_the_bias() -> None:
    values = np.array([100.0, 120, 140, 160, 180])
    found = agreement_of((values + 7).tolist(), values.tolist())
    assert found["bias"]["mean"] == pytest.approx(7)
    assert found["sd"] == pytest.approx(0, abs=1e-9)
    assert found["limits"] == pytest.approx((7, 7))
    # variance of the patients 1000, of the raters' offset 49 / 2
    assert found["icc"]["mean"] == pytest.approx(1000 / (1000 + 49 / 2), abs=1e-6)
    assert agreement_of(values.tolist(), values.tolist())["icc"]["mean"] == pytest.approx(1)


def test_limits_of_agreement_hold_95_percent_of_normal_differences() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(150, 30, 4000)
    differences = rng.normal(2, 5, 4000)
    pairs = truth + differences, truth
    differences_sd = float(differences.std(ddof=1))
    low, high = float(differences.mean()) - 1.96 * differences_sd, float(differences.mean()) + 1.96 * differences_sd
    found = agreement_of(*(side[:400].tolist() for side in pairs))
    assert found["limits"] == pytest.approx((low, high), abs=1)
    assert np.mean((differences > found["limits"][0]) & (differences < found["limits"][1])) == pytest.approx(
        0.95, abs=0.02
    )


def test_who_could_not_be_measured_is_left_out_and_two_patients_are_too_few() -> None:
    assert agreement_of([1, 2, 3, float("nan")], [1, 2, 4, 4])["patients"] == 3
    assert agreement_of([1, 2], [1, 2]) is None


def test_quantities_of_a_computed_heart_are_its_own() -> None:
    ed, es = (heart_labels((1.0, 1.0, 2.0), contractions=(size,)) for size in (1.0, 0.8))
    found = quantities(ed, es)
    assert set(found) == set(UNITS)
    assert found["LV EDV"] == pytest.approx(lv_volume_ml(1.0), rel=0.03)
    assert found["LV EF"] == pytest.approx(100 * (1 - lv_volume_ml(0.8) / lv_volume_ml(1.0)), abs=2)
    assert found["LV mass"] == pytest.approx(1.05 * myocardium_volume_ml(1.0), rel=0.05)


def test_every_second_slice_keeps_its_place() -> None:
    stack = Stack(np.arange(5)[None, :, None, None] * np.ones((1, 5, 4, 4)), np.diag([1.5, 1.5, 8, 1]))
    kept = every_nth(stack, 2)
    assert kept.voxels[0, :, 0, 0].tolist() == [0, 2, 4]
    assert kept.spacing_mm.tolist() == [1.5, 1.5, 16]
    assert np.allclose(kept.to_lps([0, 0, 1]), stack.to_lps([0, 0, 2]))
    assert every_nth(stack, 1) is stack


def patients() -> dict[str, dict[str, dict[str, float]]]:
    """Four patients; the dense stack measures 1 more than the expert, the sparse one 3 less."""
    found = {}
    for number, value in enumerate((90.0, 110, 130, 150)):
        offsets = {EXPERT: 0, SPARSE: -3, "dense, calid+": 1}
        found[f"{number}"] = {way: dict.fromkeys(UNITS, value + offset) for way, offset in offsets.items()}
    return found


def test_every_way_is_held_against_the_expert_and_dense_against_sparse(tmp_path: Path) -> None:
    rows = [row for row in evaluate(patients()) if row["quantity"] == "LV EF"]
    bias = {(row["way"], row["against"]): row["agreement"]["bias"]["mean"] for row in rows}
    assert bias == {(SPARSE, EXPERT): -3, ("dense, calid+", EXPERT): 1, ("dense, calid+", SPARSE): 4}
    text = markdown(rows, "a set")
    assert "| LV EF % | sparse | expert | 117.0 / 120.0 | -3.0 [-3.0, -3.0] | -3.0 to -3.0 |" in text
    draw(tmp_path / "plot.png", "a title", patients())
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_command_measures_files_and_writes_the_table(tmp_path: Path, all_random_models: Path) -> None:
    folder, out = tmp_path / "data" / "own", tmp_path / "out"
    folder.mkdir(parents=True)
    lines = ["path,patient,split,series,labels"]
    for number in range(3):
        for phase, frame in (("ED", 0), ("ES", 2)):
            names = [f"{number}-{phase}{kind}.nii.gz" for kind in ("", "-labels")]
            for name, stack in zip(names, beating_case(seed=number), strict=True):
                write_stack(thin(stack.frame(frame)), folder / name)
            lines.append(f"{names[0]},{number},test,{phase},{names[1]}")
    (folder / "split.csv").write_text("\n".join(lines))
    command = ["agreement", "--data", str(tmp_path / "data"), "--dataset", "own", "--every", "2", "--factor", "2"]
    command += ["--methods", "linear", "--models", str(all_random_models), "--device", "cpu", "--out", str(out)]
    assert main(command) == 0
    record = json.loads((out / "agreement-every-2.json").read_text())
    truth = quantities(*(thin(beating_case(seed=1)[1].frame(frame)) for frame in (0, 2)))
    assert record["patients"]["1"][EXPERT] == pytest.approx(truth)
    assert set(record["patients"]["1"]) == {EXPERT, EXPERT_KEPT, SPARSE, "dense, linear"}
    thinned = quantities(*(every_nth(thin(beating_case(seed=1)[1].frame(frame)), 2) for frame in (0, 2)))
    assert record["patients"]["1"][EXPERT_KEPT] == pytest.approx(thinned)
    assert "own test, every 2. slice kept, dense: factor 2, 3 patients" in (out / "agreement-every-2.md").read_text()
    assert (out / "agreement-every-2.png").is_file()


def thin(stack: Stack) -> Stack:
    """The stack with integer voxels and times as files keep them."""
    return replace(stack, voxels=np.round(stack.voxels).astype(np.int16))
