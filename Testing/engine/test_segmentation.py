"""Labels of a stack: the way to the network's grid and back, the search for the heart, and the command."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from calid.errors import Cancelled, InputError, OutputError, WeightsError
from calid.heart.medformer import MedFormer
from calid.heart.segment_command import add_arguments
from calid.heart.segmentation import (
    PIXEL_MM,
    PlaneGrid,
    Segmenter,
    find_heart,
    into_window,
    license_notice,
    out_of_window,
    segment,
    segment_with,
    whole_view,
)
from calid.images.files import read_stack, write_stack
from calid.method.weights import find_model
from calid.run.device import Device
from calid.run.progress import Progress
from calid.stack import Stack
from phantoms import centered_affine, heart_labels, pictured, rotation
from safetensors.torch import save_file
from tiny_networks import TINY_MEDFORMER
from torch import nn


class Threshold(nn.Module):
    """Stands for a trained network: what is brighter than the middle is LV cavity. Its answer is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))
        self.largest_input = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] % 16 == 0
        assert images.shape[3] % 16 == 0
        self.largest_input = max(self.largest_input, images.shape[2] * images.shape[3])
        brightness = 40 * (images - 0.5)
        return torch.cat((torch.zeros_like(images), brightness, torch.full_like(images.repeat(1, 2, 1, 1), -9)), dim=1)


@pytest.fixture
def segmenter() -> Segmenter:
    torch.set_num_threads(1)
    return Segmenter(Threshold().eval(), Device(torch.device("cpu"), "a test", None))


def picture(labels: Stack, *, gain: float = 100.0, offset: float = 20.0) -> Stack:
    """Bright LV cavity on dark ground."""
    return labels.with_voxels((offset + gain * (labels.voxels == 1)).astype(np.float32))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def large_view(seed: int = 3) -> tuple[Stack, np.ndarray]:
    """A bright ball of 25 mm radius, off-center in an oblique 340 x 300 mm view; and its center in LPS."""
    shape, spacing = (8, 214, 170), (2.0, 1.4, 8.0)
    matrix = centered_affine(shape, spacing, rotation(seed), np.array([40.0, -70.0, 15.0]))
    grid = Stack(np.zeros((1, *shape), np.uint8), matrix)
    ball = grid.to_lps(np.array([110.0, 80.0, 3.5]))
    z, y, x = np.indices(shape)
    distance = np.linalg.norm(grid.to_lps(np.stack([x, y, z], axis=-1)) - ball, axis=-1)
    return grid.with_voxels((distance <= 25).astype(np.uint8)[None]), ball


@pytest.mark.parametrize("pixel_mm", [0.9, 1.5, 2.5])
def test_a_physical_point_stays_put_on_the_way_into_the_window_and_back(pixel_mm: float) -> None:
    stack = heart_labels(spacing_mm=(1.7, 1.2, 9.0))
    rows, columns = stack.voxels.shape[2:]
    y, x = np.indices((rows, columns))
    spot = np.exp(-(((y - 40.3) * 1.2) ** 2 + ((x - 61.8) * 1.7) ** 2) / (2 * 6.0**2)).astype(np.float32)
    window = whole_view(stack, pixel_mm)
    inside = into_window(spot[None], window)
    weights = inside[0, 0].numpy()
    center_row = (weights.sum(1) * window.indices(0)).sum() / weights.sum()
    center_column = (weights.sum(0) * window.indices(1)).sum() / weights.sum()
    assert abs(center_row - 40.3) * 1.2 < 0.05, "millimeters"
    assert abs(center_column - 61.8) * 1.7 < 0.05
    back = out_of_window(inside, window, (rows, columns))[0, 0].numpy()
    assert abs((back * y).sum() / back.sum() - 40.3) * 1.2 < 0.05
    assert abs((back * x).sum() / back.sum() - 61.8) * 1.7 < 0.05


def test_the_whole_view_covers_every_voxel_in_sizes_the_network_takes() -> None:
    for seed, spacing in enumerate([(1.5, 1.4, 8.0), (0.7, 0.8, 10.0), (2.6, 2.9, 5.0)]):
        stack = heart_labels(spacing_mm=spacing, seed=seed)
        window = whole_view(stack, PIXEL_MM)
        for axis in (0, 1):
            assert window.shape[axis] % 16 == 0
            assert window.indices(axis)[0] <= 0
            assert window.indices(axis)[-1] >= stack.voxels.shape[2 + axis] - 1


def test_nothing_is_found_outside_the_window() -> None:
    window = PlaneGrid(shape=(16, 16), center=(20.0, 30.0), step=(1.0, 1.0))
    restored = out_of_window(torch.ones(1, 3, 16, 16), window, (50, 60))
    inside = np.zeros((50, 60), bool)
    inside[13:28, 23:38] = True  # the grid's pixel centers reach from 12.5 to 27.5 and from 22.5 to 37.5
    assert (restored[0, 0].numpy()[inside] > 0.99).all()
    assert (restored[0, 0].numpy()[np.pad(~inside, 0)] < 0.51).all()
    assert restored[0, 0].numpy()[:12].max() == 0


@pytest.mark.parametrize("spacing", [(1.5, 1.4, 8.0), (0.8, 0.7, 10.0), (2.4, 2.1, 6.0)])
def test_labels_lie_where_the_structure_is_at_any_pixel_size(segmenter: Segmenter, spacing: tuple) -> None:
    truth = heart_labels(spacing_mm=spacing, seed=1, contractions=(1.0, 0.7))
    labels = segment_with(segmenter, picture(truth))
    assert labels.voxels.dtype == np.uint8
    assert labels.voxels.shape == truth.voxels.shape
    np.testing.assert_array_equal(labels.affine, truth.affine)
    np.testing.assert_array_equal(labels.frame_times_ms, truth.frame_times_ms)
    for frame in range(2):
        assert dice(labels.voxels[frame] == 1, truth.voxels[frame] == 1) > 0.95


def test_the_heart_is_found_in_a_large_view_and_only_its_surroundings_are_worked_on(segmenter: Segmenter) -> None:
    truth, ball = large_view()
    window = find_heart(segmenter, picture(truth))
    column, row = truth.to_index(ball)[:2]
    assert window.shape == (128, 128)
    assert abs(window.center[0] - row) * 1.4 < 4
    assert abs(window.center[1] - column) * 2.0 < 4
    labels = segment_with(segmenter, picture(truth))
    assert dice(labels.voxels == 1, truth.voxels == 1) > 0.95
    assert segmenter.model.largest_input == 128 * 144, "the search is coarse, the window 128 x 128"


def test_a_second_smaller_bright_thing_does_not_draw_the_window(segmenter: Segmenter) -> None:
    truth, ball = large_view()
    voxels = truth.voxels.copy()
    voxels[:, 2:6, 10:18, 8:14] = 1
    window = find_heart(segmenter, picture(truth.with_voxels(voxels)))
    assert abs(window.center[0] - truth.to_index(ball)[1]) * 1.4 < 4


def test_a_heart_that_nobody_finds_is_looked_for_in_the_whole_view(segmenter: Segmenter) -> None:
    truth, _ = large_view()
    blank = truth.with_voxels(np.zeros_like(truth.voxels, np.float32))
    assert find_heart(segmenter, blank) == whole_view(truth, PIXEL_MM)
    assert not segment_with(segmenter, blank).voxels.any()


def test_intensity_units_do_not_matter(segmenter: Segmenter) -> None:
    truth = heart_labels(seed=2)
    first = segment_with(segmenter, picture(truth, gain=100, offset=20))
    second = segment_with(segmenter, picture(truth, gain=7000, offset=-300))
    np.testing.assert_array_equal(first.voxels, second.voxels)


def test_a_mirrored_patient_gets_mirrored_labels(segmenter: Segmenter) -> None:
    truth = heart_labels(spacing_mm=(1.3, 1.8, 8.0))
    plain = segment_with(segmenter, picture(truth)).voxels
    mirrored = segment_with(segmenter, picture(truth.with_voxels(truth.voxels[..., ::-1, ::-1]))).voxels
    assert (plain != mirrored[..., ::-1, ::-1]).mean() < 1e-4


def test_every_slice_is_counted_once_and_counting_may_stop_the_run(segmenter: Segmenter) -> None:
    stack, counts = picture(heart_labels(contractions=(1.0, 0.8))), []
    segment_with(segmenter, stack, tick=counts.append)
    assert sum(counts) == 2 * stack.num_slices
    assert len(counts) > 1

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_with(segmenter, stack, tick=stop)


# --- With weights from a manifest


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with an untrained segmenter, biased so that it labels something."""
    torch.manual_seed(0)
    folder = tmp_path / "models"
    folder.mkdir()
    model = MedFormer(TINY_MEDFORMER)
    model.head.weight.data *= 20
    path = folder / "tiny.safetensors"
    save_file({key: value.half() for key, value in model.state_dict().items()}, path)
    entry = {
        "name": "segmenter",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "license": "CC-BY-NC-SA-4.0",
        "trained_on": "nothing at all",
        "config": {"network": dataclasses.asdict(TINY_MEDFORMER), "pixel_mm": 1.5, "mirrored": True},
    }
    (folder / "models.json").write_text(json.dumps({"models": [entry]}))
    return folder


def scan() -> Stack:
    """A noisy picture of a heart."""
    stack = pictured(heart_labels(spacing_mm=(2.5, 2.4, 16.0)))
    noise = np.random.default_rng(0).normal(0, 5, stack.voxels.shape)
    return stack.with_voxels((stack.voxels + noise).astype(np.float32))


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_command_writes_labels_and_tells_the_license_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stack(scan(), tmp_path / "in.nrrd")
    chosen = options(tmp_path / "in.nrrd", tmp_path / "out.seg.nrrd", "--models", models, "--device", "cpu", "--raw")
    assert chosen.run(chosen) == 0
    told = capsys.readouterr().err
    assert "CC-BY-NC-SA-4.0" in told
    assert "nothing at all" in told
    labels = read_stack(tmp_path / "out.seg.nrrd")
    expected = segment(scan(), device="cpu", models_folder=models)
    np.testing.assert_array_equal(labels.voxels, expected.voxels)
    assert expected.voxels.any()
    np.testing.assert_allclose(labels.affine, scan().affine, atol=1e-4)


def test_existing_labels_are_kept_unless_asked(models: Path, tmp_path: Path) -> None:
    write_stack(scan(), tmp_path / "in.nrrd")
    (tmp_path / "out.seg.nrrd").write_text("precious")
    chosen = options(tmp_path / "in.nrrd", tmp_path / "out.seg.nrrd", "--models", models)
    with pytest.raises(OutputError):
        chosen.run(chosen)
    assert (tmp_path / "out.seg.nrrd").read_text() == "precious"


def test_labels_say_which_weights_made_them(models: Path) -> None:
    made = segment(scan(), device="cpu", models_folder=models)
    entry = json.loads((models / "models.json").read_text())["models"][0]
    assert made.provenance["segmenter"] == {key: entry[key] for key in ("name", "sha256", "license")}


def test_a_label_map_is_refused_and_a_single_slice_is_not(models: Path) -> None:
    voxels = heart_labels().voxels.copy()
    voxels[..., 0, 0] = 1  # no slice is blank, which would be refused for itself
    with pytest.raises(InputError, match="label map"):
        segment(heart_labels().with_voxels(voxels), device="cpu", models_folder=models)
    stack = scan()
    one = Stack(stack.voxels[:, 2:3], stack.slice_affine(2))
    assert segment(one, device="cpu", models_folder=models).voxels.shape == one.voxels.shape


def test_a_cancelled_run_stops_and_an_ended_one_says_so(models: Path) -> None:
    with pytest.raises(Cancelled):
        segment(scan(), device="cpu", models_folder=models, is_cancelled=lambda: True)
    seen: list[Progress] = []
    segment(scan(), device="cpu", models_folder=models, progress=seen.append)
    assert seen[-1].fraction == 1.0
    assert seen[-1].seconds_left == 0


@pytest.mark.parametrize("change", [{"stem_width": 8}, {"heads": [3] * 8}])
def test_weights_that_do_not_fit_their_description_are_refused(models: Path, change: dict) -> None:
    manifest = json.loads((models / "models.json").read_text())
    manifest["models"][0]["config"]["network"].update(change)
    (models / "models.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="does not fit this version"):
        segment(scan(), device="cpu", models_folder=models)


def test_the_license_notice_needs_a_segmenter(models: Path) -> None:
    assert "CC-BY-NC-SA-4.0" in license_notice(models)
    (models / "models.json").write_text('{"models": []}')
    with pytest.raises(WeightsError, match="no model 'segmenter'"):
        license_notice(models)


# --- The bundled weights


def test_the_bundled_segmenter_is_small_and_labels_a_heart_it_never_saw() -> None:
    entry = find_model("segmenter")
    assert entry.bytes <= 8_000_000
    assert entry.license == "CC-BY-NC-SA-4.0"
    truth = heart_labels(spacing_mm=(1.5, 1.4, 16.0), seed=1)
    noise = np.random.default_rng(0).normal(0, 6, truth.voxels.shape)
    stack = truth.with_voxels((pictured(truth).voxels + noise).astype(np.float32))
    labels = segment(stack, device="cpu").voxels
    for value, least in ((1, 0.85), (2, 0.65), (3, 0.8)):
        assert dice(labels == value, truth.voxels == value) > least
