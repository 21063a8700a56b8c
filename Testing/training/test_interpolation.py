"""The interpolation table on phantoms: its protocol, its arithmetic and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the training package is not installed (pip install calid[training])")

from calid_training import interpolation, systems
from calid_training.datasets import Case
from calid_training.evaluate import main
from calid_training.prepare import load_cases, write_cases
from phantoms import beating_case


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    cases = []
    for number in range(2):
        stack, labels = beating_case(seed=number)
        cases.append(Case("phantom", f"{number}", "ED", "test", stack.frame(0), labels.frame(0), (1, 2, 3)))
    write_cases(cases, folder)
    return folder


@pytest.fixture(scope="module")
def asked(prepared) -> list[interpolation.Question]:
    return interpolation.questions(load_cases(prepared, datasets=["phantom"], split="test"))


def test_every_inner_slice_is_asked_for_between_its_neighbors(asked):
    first = asked[0]
    assert first.group == "phantom ED 8 mm"
    assert first.truth.shape[1:] == (128, 128)
    np.testing.assert_array_equal(first.before[1:], first.truth[:-1])
    np.testing.assert_array_equal(first.after[:-1], first.truth[1:])
    assert 0 <= first.truth.min() < first.truth.max() <= 1


def test_the_row_of_linear_interpolation_is_what_numpy_says(asked):
    rows = interpolation.evaluate(asked, [systems.Named("linear", systems.linear)], None)["phantom ED 8 mm"]
    by_patient = []
    for question in asked:
        error = np.square((question.before + question.after) / 2 - question.truth).mean(axis=(1, 2))
        by_patient.append(np.mean(-10 * np.log10(error)))
    assert rows["linear"]["psnr"]["mean"] == pytest.approx(np.mean(by_patient), abs=0.01)
    assert rows["linear"]["patients"] == 2
    assert rows["linear"]["sharpness"]["mean"] < 1
    assert rows["linear"]["psnr"]["p_against_linear"] is None


def test_a_perfect_system_is_perfect_in_every_figure(asked):
    truths = {question.before.tobytes(): question.truth for question in asked}
    perfect = systems.Named("perfect", lambda before, _: truths[before.tobytes()])
    named = [systems.Named("linear", systems.linear), perfect]
    row = interpolation.evaluate(asked, named, lambda images: [images, images[:, :, ::2, ::2]])["phantom ED 8 mm"][
        "perfect"
    ]
    assert row["ssim"]["mean"] == pytest.approx(1)
    assert row["sharpness"]["mean"] == pytest.approx(1)
    assert row["feature_distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert row["frechet"] == pytest.approx(0, abs=1e-6)


def test_one_command_writes_the_table_with_what_made_it(prepared, random_models, tmp_path, capsys):
    options = ["--prepared", str(prepared), "--datasets", "phantom", "--models", str(random_models), "--quick", "1"]
    assert main(["interpolation", *options, "--steps", "2", "--samples", "2", "--out", str(tmp_path / "table")]) == 0
    record = json.loads((tmp_path / "table" / "interpolation.json").read_text())
    rows = record["tables"]["phantom ED 8 mm"]
    assert {"nearest", "linear", "bilinear latent", "CaLID", "CaLID+", "fidelity"} <= set(rows)
    assert -1 <= record["uncertainty"]["spearman"] <= 1
    assert len(record["made_by"]["model_sha256"]) == 64
    shown = capsys.readouterr().out
    assert shown.strip() == (tmp_path / "table" / "interpolation.md").read_text().strip()
    assert f"{rows['linear']['psnr']['mean']:.2f}" in shown


def test_a_card_gets_the_tables_between_its_marks_only(tmp_path):
    card = tmp_path / "card.md"
    card.write_text("above\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nbelow\n")
    interpolation.write_into_card(card, "new table")
    assert card.read_text() == "above\n<!-- figures: begin -->\nnew table\n<!-- figures: end -->\nbelow\n"
    card.write_text("no marks")
    with pytest.raises(ValueError, match="no place"):
        interpolation.write_into_card(card, "new table")


def test_labels_are_cut_like_their_slices(asked):
    blood, muscle = (asked[0].truth[asked[0].labels == label] for label in (1, 2))
    assert asked[0].labels.shape == asked[0].truth.shape
    assert blood.mean() > muscle.mean() + 0.2


def test_downstream_dice_of_the_true_slices_labels_is_one(asked):
    from calid_training import downstream

    class Expert:
        """Knows the labels of the true slices by heart; sees background in all others."""

        def foreground(self, images):
            import torch

            answer = torch.zeros(len(images), 3, *images.shape[2:])
            for question in asked:
                for image, labels in zip(question.truth, question.labels, strict=True):
                    for index in np.flatnonzero([(image == shown[0].numpy()).all() for shown in images]):
                        answer[index] = torch.stack([torch.from_numpy(labels == label) for label in (1, 2, 3)]).float()
            return answer

    rows = downstream.evaluate(asked, [systems.Named("linear", systems.linear)], Expert())["phantom ED 8 mm"]
    assert rows["original"]["mean"]["mean"] == 1
    assert rows["linear"]["mean"]["mean"] == 0
