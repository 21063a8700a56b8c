"""What `calid-evaluate cine` says of motion and flicker, against courses whose figures are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training package is not installed (pip install calid[training])")

import torch
from calid_benchmark import beating
from calid_benchmark.perceptual import Perceptual
from calid_benchmark.tables import cine
from calid_benchmark.tables.passages import Passage, middle_slices
from calid_training.cine import Beat, contraction
from calid_training.datasets import RawCase
from calid_training.prepare import load_cases, write_cases
from phantoms import heart_labels, pictured

FRAMES = 20


def wave(harmonic: int, amplitude: float = 0.1) -> np.ndarray:
    """(20, 8, 8) frames that all pixels go through `harmonic` times, each in its own phase."""
    phase = np.linspace(0, 6, 64).reshape(8, 8)
    time = np.arange(FRAMES)[:, None, None] / FRAMES
    return 0.5 + amplitude * np.cos(2 * np.pi * harmonic * time + phase)


def test_true_slices_have_the_right_figures():
    truth = wave(1) + wave(6, 0.02)
    assert beating.temporal_figures(truth, truth, ring=True) == pytest.approx(
        {"change": 1, "flicker": 1, "above_4th": 1}
    )
    assert beating.motion_error(truth, truth, ring=True) == 0


def test_twice_the_motion_is_twice_the_change():
    figures = beating.temporal_figures(wave(1, 0.2), wave(1, 0.1), ring=True)
    assert figures["change"] == pytest.approx(2)
    assert figures["flicker"] == pytest.approx(2)


def test_only_fast_changes_are_above_the_fourth_harmonic():
    slow, fast = (beating.above_low_harmonics(wave(harmonic)) for harmonic in (4, 5))
    assert slow < 1e-20
    assert fast == pytest.approx(np.square(wave(5) - 0.5).sum() / 2, rel=1e-6)  # the other half has negative frequency


def test_flicker_weighs_more_in_second_differences():
    truth = wave(1)
    flickering = truth + 0.01 * np.random.default_rng(0).standard_normal(truth.shape)
    figures = beating.temporal_figures(flickering, truth, ring=True)
    assert figures["flicker"] > figures["change"] > 1


def test_a_slice_that_does_not_move_has_a_motion_error_of_one():
    assert beating.motion_error(np.zeros((FRAMES, 8, 8)), wave(1), ring=True) == pytest.approx(1)


@pytest.mark.parametrize(("ring", "count"), [(True, FRAMES), (False, FRAMES - 2)])
def test_a_cycle_is_a_ring(ring, count):
    ramp = np.arange(FRAMES, dtype=float)[:, None, None] * np.ones((1, 2, 2))
    second = beating.differences(ramp, 2, ring=ring)
    assert len(second) == count
    assert bool(second.any()) == ring  # a ramp is straight but for its jump back


def test_the_middle_slice_is_asked_from_its_neighbors(tmp_path):
    (case,) = cases_on_disk(tmp_path)
    (asked,) = middle_slices([case])
    assert asked.truth.shape == (FRAMES, 128, 128)
    assert asked.spans_cycle
    similar = np.corrcoef([asked.truth[0].ravel(), asked.before[0].ravel(), asked.after[0].ravel()])
    assert 0.5 < similar[0, 1:].min() < 0.999


def cases_on_disk(folder: Path) -> list:
    course = tuple(1 - 0.3 * contraction(Beat(), np.arange(FRAMES) / FRAMES))
    labels = heart_labels((3.0, 3.0, 22.0), contractions=course)
    write_cases([RawCase("phantom", "0", "cine", "validation", pictured(labels), labels, (1, 2, 3))], folder)
    return list(load_cases(folder, datasets=["phantom"], split="validation"))


class Areas:
    """A segmenter that calls every bright pixel LV cavity."""

    def foreground(self, images: torch.Tensor) -> torch.Tensor:
        lv = (images > 0.5).float()
        return torch.cat([lv, torch.zeros_like(lv), torch.zeros_like(lv)], dim=1)


def test_a_smooth_area_is_less_rough_than_a_jumping_one():
    rows, columns = np.mgrid[-16:16, -16:16]
    radii = 9 + 2 * np.cos(2 * np.pi * np.arange(FRAMES) / FRAMES)
    smooth = (np.hypot(rows, columns) < radii[:, None, None]).astype(np.float32)
    jumping = (np.hypot(rows, columns) < (radii + np.tile([-1, 1], 10))[:, None, None]).astype(np.float32)
    figures = [beating.roughness(Areas(), frames, ring=True) for frames in (smooth, jumping)]
    assert figures[1] > 3 * figures[0]


def passages(count: int) -> list[Passage]:
    """Sequences of 32 x 32 pixels whose three slices are the same."""
    tiled = np.tile(wave(1), (1, 4, 4))
    frames = [np.clip(tiled + 0.02 * number, 0, 1).astype(np.float32) for number in range(count)]
    return [Passage("set 8 mm", str(number), x, x, x, True) for number, x in enumerate(frames)]


def test_two_d_and_time_is_tested_against_the_same_row_frame_by_frame_and_only_with_enough_sequences():
    noise = np.random.default_rng(0).standard_normal((FRAMES, 32, 32)) * 0.03
    rows = {
        "linear": cine.Row(lambda before, *_: before + 2 * noise),
        "CaLID": cine.Row(lambda before, *_: before + noise),
        "CaLID, 2D+T": cine.Row(lambda before, *_: before),
    }
    tables = cine.evaluate(passages(7), rows, Areas(), Perceptual())
    row = tables["set 8 mm"]["CaLID, 2D+T"]["flicker"]
    assert row["p_against_2d"] == pytest.approx(2 / 2**7), "all seven are smoother"
    assert "p_against_2d" not in tables["set 8 mm"]["CaLID"]["flicker"]
    assert "p of 2D+T against frame by frame" in cine.markdown(tables)
    alone = cine.evaluate(passages(1), rows, Areas(), Perceptual())
    assert "p of 2D+T" not in cine.markdown(alone)
    assert "[" not in cine.markdown(alone)


def test_lpips_and_rfid_are_of_all_frames_and_say_where_they_are_not_measured():
    seen = []

    def rfid(pairs):
        seen.extend((truth.shape, made.shape) for truth, made in pairs)
        return 12.34

    judges = Perceptual(
        lambda truth, made: [float(np.abs(a - b).mean()) for a, b in zip(truth, made, strict=True)], rfid
    )
    rows = {"linear": cine.Row(lambda before, *_: before + np.float32(0.01))}
    tables = cine.evaluate(passages(2), rows, Areas(), judges)
    assert seen == [((FRAMES, 32, 32), (FRAMES, 32, 32))] * 2
    row = tables["set 8 mm"]["linear"]
    assert row["lpips"]["mean"] == pytest.approx(0.01, rel=0.01)
    assert row["seconds_per_slice"] > 0
    assert "| 12.3 |" in cine.markdown(tables)
    assert "not measured" in cine.markdown(cine.evaluate(passages(2), rows, Areas(), Perceptual()))


def test_the_table_has_all_rows_and_a_picture(random_models, tmp_path, monkeypatch):
    """End to end with untrained models; two frames in a hundred of the real work."""
    from dataclasses import replace

    from calid.method.networks import Denoiser
    from calid.run.batches import load_interpolator
    from calid.run.device import choose_device
    from calid_benchmark.evaluate import main
    from calid_training.weight_files import write_model

    models = Path(shutil.copytree(random_models, tmp_path / "models"))
    still = load_interpolator(choose_device("cpu"), models_folder=models)
    network = Denoiser(replace(still.model.denoiser.config, temporal=True))
    write_model(
        models,
        "calid-2dt",
        {f"denoiser.temporal.{key}": value for key, value in network.temporal.state_dict().items()},
        {"denoiser": {"temporal": True}},
        license="none",
        base="calid-2d",
        base_sha256=still.entry.sha256,
    )
    cases_on_disk(tmp_path / "prepared")
    monkeypatch.setattr(cine, "judging_segmenter", lambda *_: Areas())
    out = tmp_path / "out"
    options = ["--prepared", str(tmp_path / "prepared"), "--datasets", "phantom", "--models", str(models)]
    options += ["--steps", "1", "--systems", "CaLID", "CaLID, 2D+T", "--device", "cpu", "--out", str(out)]
    assert main(["cine", *options]) == 0
    text = (out / "cine.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if line.startswith("| ")}
    assert {"acquired", "linear", "CaLID", "CaLID, 2D+T"} <= set(rows)
    assert rows["CaLID"][:-2] == rows["CaLID, 2D+T"][:-2]  # without training, 2D+T is 2D, but for its seconds
    assert "LPIPS-alex is not measured: no path to AlexNet's weights" in text
    made_by = json.loads((out / "cine.json").read_text())["made_by"]
    assert {"calid-2d", "calid-2dt"} <= set(made_by["weights"])
    assert (out / "space-time.png").stat().st_size > 5000
    assert (out / "phases-phantom-22-mm.png").stat().st_size > 5000
