"""The segmenter's training: a loss that asks only for what was annotated, honest crops, and learning itself."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from calid.heart.medformer import PAPER, MedFormerConfig
from calid.heart.segmentation import Segmenter, load_segmenter, segment_with
from calid.images.files import write_stack
from calid.method.weights import config_from
from calid.run.device import Device, choose_device
from calid.stack import Stack
from calid_training.datasets import RawCase
from calid_training.labeled_slices import Augmentation, LabeledSlice, RandomCrops, labeled_slices, random_crop
from calid_training.segmenter import (
    SegmenterData,
    SegmenterModule,
    SegmenterSets,
    dice_by_structure,
    marginal_log_probabilities,
    segmentation_loss,
)
from calid_training.stages import CONFIGS
from calid_training.train import main as train
from phantoms import heart_labels, pictured
from tiny_networks import TINY_MEDFORMER

ALL = torch.tensor([[True, True, True, True]])
LV_ONLY = torch.tensor([[True, True, False, False]])
SMALL_MEDFORMER = replace(TINY_MEDFORMER, stem_width=8, widths=(12, 16, 16, 24, 16, 16, 12, 8), fusion_width=16)
"""Large enough to learn something."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def phantom_case(
    dataset: str = "acdc", patient: str = "patient001", *, seed: int = 0, annotated: tuple[int, ...] = (1, 2, 3)
) -> RawCase:
    """A computed heart with noise; only the annotated structures keep their labels."""
    truth = heart_labels(spacing_mm=(1.7, 1.5, 10.0), seed=seed, contractions=(1.0 - 0.05 * (seed % 4),))
    noise = np.random.default_rng(seed).normal(0, 8, truth.voxels.shape)
    images = pictured(truth).voxels + noise
    kept = np.where(np.isin(truth.voxels, annotated), truth.voxels, 0).astype(np.uint8)
    stack = truth.with_voxels(images.astype(np.float32))
    return RawCase(dataset, patient, "ED", "train", stack, truth.with_voxels(kept), annotated)


# --- The loss


def test_marginal_probabilities_are_the_sums_an_accountant_would_make() -> None:
    logits = torch.randn(2, 4, 3, 3)
    annotated = torch.tensor([[True, False, False, True], [False, True, True, True]])
    found = marginal_log_probabilities(logits, annotated).exp().numpy()
    e = np.exp(logits.numpy().astype(np.float64))
    p = e / e.sum(axis=1, keepdims=True)
    expected = np.zeros_like(p)
    expected[0, 0], expected[0, 3] = p[0, 0] + p[0, 1] + p[0, 2], p[0, 3]
    expected[1] = p[1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_with_every_structure_annotated_the_loss_is_plain_cross_entropy_and_dice() -> None:
    logits, labels = torch.randn(1, 4, 8, 8), torch.randint(0, 4, (1, 8, 8))
    e = np.exp(logits.numpy().astype(np.float64))[0]
    p, y = e / e.sum(axis=0), labels.numpy()[0]
    weights = np.array([0.5, 1, 1, 1])[y]
    chosen = np.take_along_axis(p, y[None], axis=0)[0]
    cross_entropy = -(weights * np.log(chosen)).sum() / weights.sum()
    dice = np.mean([(2 * p[k][y == k].sum() + 1) / (p[k].sum() + (y == k).sum() + 1) for k in (1, 2, 3)])
    assert segmentation_loss(logits, labels, ALL).item() == pytest.approx(cross_entropy + 1 - dice, abs=1e-5)


def test_what_nobody_annotated_is_not_held_against_the_network() -> None:
    """In an image with the LV cavity drawn, calling other pixels muscle or RV costs no more than background."""
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, 2:5, 2:5] = 1
    as_background, as_anatomy = torch.full((2, 1, 4, 8, 8), -8.0)
    for logits in (as_background, as_anatomy):
        logits[:, 1][labels == 1] = 8
    as_background[:, 0][labels == 0] = 8
    as_anatomy[:, 2, :, :4][labels[:, :, :4] == 0] = 8
    as_anatomy[:, 3, :, 4:][labels[:, :, 4:] == 0] = 8
    lenient = segmentation_loss(as_anatomy, labels, LV_ONLY)
    torch.testing.assert_close(lenient, segmentation_loss(as_background, labels, LV_ONLY), atol=1e-5, rtol=0)
    assert lenient < 0.01
    assert segmentation_loss(as_anatomy, labels, ALL) > 1, "a full annotation does hold it against the network"


def test_only_the_sum_of_merged_classes_feels_the_loss() -> None:
    logits = torch.randn(1, 4, 6, 6, requires_grad=True)
    labels = torch.randint(0, 2, (1, 6, 6))
    segmentation_loss(logits, labels, LV_ONLY).backward()
    p = logits.detach().softmax(dim=1)
    per_probability = logits.grad / p  # equal among classes that are only ever seen as a sum
    torch.testing.assert_close(per_probability[:, 0], per_probability[:, 2], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(per_probability[:, 0], per_probability[:, 3], atol=1e-5, rtol=1e-3)
    assert (per_probability[:, 0] - per_probability[:, 1]).abs().max() > 1e-3


def test_an_image_without_a_structure_annotated_has_no_say_in_its_dice() -> None:
    logits = torch.randn(2, 4, 8, 8)
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 2:6, 2:6] = 3
    annotated = torch.cat((ALL, LV_ONLY))
    base = segmentation_loss(logits, labels, annotated)
    swapped = logits.clone()
    swapped[1, [0, 3]] = logits[1, [3, 0]]  # more or less RV in the image where nobody drew it
    torch.testing.assert_close(segmentation_loss(swapped, labels, annotated), base)


# --- The images


def test_slices_without_a_contour_teach_only_where_all_structures_were_drawn() -> None:
    full, partial = phantom_case(), phantom_case("chla", "07", annotated=(1,))
    empty = int((~full.labels.voxels.any(axis=(0, 2, 3))).sum())
    without_lv = int((~(full.labels.voxels == 1).any(axis=(0, 2, 3))).sum())
    slices = full.stack.num_slices
    assert empty > 0
    assert len(labeled_slices(full)) == slices
    assert len(labeled_slices(partial)) == slices - without_lv
    assert labeled_slices(partial)[0].annotated == (True, True, False, False)


def test_crops_are_fixed_by_seed_epoch_and_index_alone() -> None:
    slices = labeled_slices(phantom_case())

    def crops(**changes: int) -> RandomCrops:
        key = {"seed": 1, "epoch": 2, **changes}
        return RandomCrops(slices, weights={"acdc": 1.0}, length=4, augmentation=Augmentation(), size=64, **key)

    first, again = crops()[3], crops()[3]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], crops(epoch=3)[3][0])
    assert not torch.equal(first[0], crops(seed=2)[3][0])
    assert not torch.equal(first[0], crops()[2][0])


def test_image_and_labels_of_a_crop_are_cut_at_the_same_place() -> None:
    """The picture is its own truth: bright is labeled, whatever the turn, the scale and the bend."""
    y, x = np.indices((120, 100))
    disc = ((y - 50) * 1.5) ** 2 + ((x - 60) * 2.0) ** 2 < 30**2
    item = LabeledSlice(disc.astype(np.float16), disc.astype(np.uint8), (1.5, 2.0), (50.0, 60.0), (True,) * 4, "acdc")
    settings = Augmentation(noise=0, blur_mm=0.21, shading=0, gamma=(1, 1), wide_share=0, far_share=0)
    areas = []
    for seed in range(20):
        image, labels = random_crop(item, settings, np.random.default_rng(seed), size=128)
        bright = image[0].numpy() > 0.5
        labeled = labels.numpy() == 1
        assert 2 * (bright & labeled).sum() / (bright.sum() + labeled.sum()) > 0.96
        areas.append(labeled.sum())
        assert image.min() >= 0
        assert image.max() <= 1
    low, high = np.pi * 30**2 / 2.0**2, np.pi * 30**2 / 1.15**2
    assert 0.8 * low < min(areas) < max(areas) < 1.2 * high
    assert max(areas) > 1.5 * min(areas), "scales differ"


def test_image_and_labels_agree_to_a_fraction_of_a_pixel_far_from_the_middle() -> None:
    y, x = np.indices((120, 100))
    disc = (y - 96) ** 2 + (x - 80) ** 2 < 12**2
    item = LabeledSlice(disc.astype(np.float16), disc.astype(np.uint8), (1.5, 1.5), (96.0, 80.0), (True,) * 4, "acdc")
    settings = Augmentation(
        pixel_mm=(0.4, 0.4), offset_mm=5, noise=0, blur_mm=0.21, shading=0, gamma=(1, 1), wide_share=0, far_share=0
    )
    for seed in range(5):
        image, labels = random_crop(item, settings, np.random.default_rng(seed), size=128)
        bright, labeled = image[0].numpy() > 0.5, labels.numpy() == 1
        between = np.argwhere(bright).mean(axis=0) - np.argwhere(labeled).mean(axis=0)
        assert np.abs(between).max() < 0.35, "in pixels of 0.4 mm"


def test_no_patient_both_trains_and_chooses_and_the_test_patients_do_neither() -> None:
    base = phantom_case()
    cases = [
        RawCase("acdc", f"patient{n:03d}", "ED", split, base.stack, base.labels, (1, 2, 3))
        for n, split in ((1, "train"), (54, "train"), (55, "validation"), (60, "validation"), (61, "test"))
    ]
    cases += [RawCase("chla", "05", "LV_ED", "validation", base.stack, base.labels, (1,))]
    train, validation = SegmenterSets().split(cases)
    assert [case.patient for case in train] == ["patient001", "patient054"]
    assert [case.patient for case in validation] == ["patient055", "patient060"]


def test_dice_of_a_hand_made_overlap() -> None:
    truth, found = np.zeros((1, 2, 4, 4), np.uint8), np.zeros((1, 2, 4, 4), np.uint8)
    truth[0, 0, :2], found[0, 0, 1:3] = 1, 1  # 8 and 8 voxels, 4 shared
    found[0, 1, 0, 0] = 3
    assert dice_by_structure(found, truth) == {"lv": 0.5, "rv": 0.0}


# --- Learning


class Phantoms(SegmenterData):
    """The data module with computed hearts in place of folders; half of the patients have the LV drawn only."""

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        partial = [phantom_case("chla", f"{n:02d}", seed=n, annotated=(1,)) for n in range(3)]
        full = [phantom_case(seed=10 + n) for n in range(3)]
        self.sets = SegmenterSets(weights={"acdc": 0.6, "chla": 0.4})
        self.slices = [item for case in partial + full for item in labeled_slices(case)]
        self.validation = [phantom_case(patient="patient055", seed=20)]


def test_it_learns_computed_hearts_in_a_minute(tmp_path: Path) -> None:
    gentle = Augmentation(pixel_mm=(2.0, 3.0), offset_mm=10, wide_share=0, far_share=0)
    data = Phantoms(tmp_path, augmentation=gentle, batch_size=6, steps_per_epoch=50, size=64)
    module = SegmenterModule(SMALL_MEDFORMER, learning_rate=4e-3, total_steps=160, warmup_steps=10, average_decay=0.9)
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            losses.append(float(trainer.callback_metrics["loss"]))

    trainer = L.Trainer(
        max_steps=150,
        accelerator="cpu",
        logger=False,
        callbacks=[Record()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    unseen = phantom_case(patient="patient099", seed=30)
    before = dice_by_structure(labels_of(module, unseen.stack).voxels, unseen.labels.voxels)
    trainer.fit(module, data)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:10])
    after = dice_by_structure(labels_of(module, unseen.stack).voxels, unseen.labels.voxels)
    assert after["lv"] > max(0.8, before.get("lv", 0) + 0.3)
    assert after["myocardium"] > max(0.5, before.get("myocardium", 0) + 0.2)
    assert after["rv"] > max(0.6, before.get("rv", 0) + 0.2)
    assert float(trainer.callback_metrics["dice"]) > 0.5


def labels_of(module: SegmenterModule, stack: Stack) -> Stack:
    return segment_with(Segmenter(module.averaged.eval(), Device(torch.device("cpu"), "a test", None), 2.5), stack)


def test_the_papers_segmenter_has_its_authors_size_and_falls_to_the_end_of_its_run(capsys) -> None:
    with pytest.raises(SystemExit):
        train(["segmenter", "--config", str(CONFIGS / "paper-segmenter.yaml"), "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert config_from(MedFormerConfig, settings["model"]["network"]) == PAPER
    assert (
        settings["model"]["total_steps"]
        == settings["trainer"]["max_steps"]
        == 200 * settings["data"]["steps_per_epoch"]
    )
    assert settings["model"]["warmup_steps"] == 5 * settings["data"]["steps_per_epoch"]


def test_the_shipped_config_trains_and_exports_from_the_command_line(tmp_path: Path) -> None:
    """Two steps on a folder in ACDC's layout, then the manifest's entry loads and labels a stack."""
    for number in (1, 55):
        case = phantom_case(seed=number)
        folder = tmp_path / "data" / "acdc" / f"patient{number:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\n")
        for frame in ("01", "09"):
            stem = f"patient{number:03d}_frame{frame}"
            acdc_labels = np.array([0, 3, 2, 1], np.uint8)[case.labels.voxels]
            write_stack(case.stack, folder / f"{stem}.nii.gz")
            write_stack(case.labels.with_voxels(acdc_labels), folder / f"{stem}_gt.nii.gz")
    run = tmp_path / "run"
    widths = asdict(SMALL_MEDFORMER).items()
    small = [f"--model.network.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in widths]
    flags = ["--trainer.max_steps=2", "--trainer.precision=32-true", "--trainer.enable_progress_bar=false"]
    flags += ["--data.batch_size=2", "--data.steps_per_epoch=2", "--data.size=32", "--data.sets.weights={acdc: 1.0}"]
    where = [f"--data.data={tmp_path / 'data'}", f"--trainer.default_root_dir={run}"]
    assert train(["segmenter", *small, *flags, *where]) == 0
    checkpoints = run / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    (checkpoints / "last.ckpt").unlink()  # the best by the validation patients is exported
    models = tmp_path / "models"
    models.mkdir()
    assert train(["export", "segmenter", "--run", str(run), "--models", str(models)]) == 0
    segmenter = load_segmenter(choose_device("cpu"), models_folder=models)
    assert segmenter.entry.license == "CC-BY-NC-SA-4.0"
    labels = segment_with(segmenter, phantom_case().stack)
    assert labels.voxels.shape == phantom_case().stack.voxels.shape
