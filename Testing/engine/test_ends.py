"""The valve planes and the tip of the left ventricle, found in computed long-axis images; volumes to them against the
phantom's formulas, with atria above the bases that short-axis labels mistake for the ventricles.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import phantoms
import pytest
from calid.cohort.manifest import CohortCase
from calid.cohort.store import Store
from calid.cohort.work import Procedure, do_case
from calid.heart import figures
from calid.heart.ends import Ends, find_ends
from calid.heart.rv_base import BELOW_SEPTUM_MM, RVBase
from calid.heart.volumes import cardiac_function
from calid.images.files import write_stack
from calid.report import tools
from calid.report.case import Tools
from calid.run.settings import Settings
from calid.stack import LaxImage, Stack

CONTRACTIONS = tuple(1 - 0.14 * (1 - np.cos(2 * np.pi * np.arange(12) / 12)))
"""Of the cavity, smallest in the middle of the beat."""

DESCENT_MM = 12.0
HEART = phantoms.heart_frame(0)
BASE_LPS = np.array([12.0, -31.0, 7.0])
ATRIUM_MM = np.array([24.0, 24.0, 30.0])
RIGHT_ATRIUM_MM, RIGHT_ATRIUM_AT_MM = np.array([30.0, 26.0, 34.0]), np.array([38.0, -20.0, 26.0])


def base_mm(contraction: float) -> float:
    """Height of the valve plane: it descends as the cavity contracts."""
    return -DESCENT_MM * (1 - contraction) / (1 - min(CONTRACTIONS))


def anatomy(points_lps: np.ndarray, contraction: float) -> np.ndarray:
    """0 background, 1 LV cavity, 2 LV wall, 3 RV, 4 left atrium, 5 its thin wall, 6 right atrium, at LPS points."""
    local = (points_lps - BASE_LPS) @ HEART
    base = base_mm(contraction)
    scale = (phantoms.LV_LENGTH_MM + base) / phantoms.LV_LENGTH_MM  # the tip stays, the base descends
    squeezed = local.copy()
    squeezed[..., 2] = (local[..., 2] - base) / scale
    labels = phantoms.heart_at(squeezed, 1.0)
    radii = np.array([phantoms.LV_RADIUS_MM * contraction] * 2 + [phantoms.LV_LENGTH_MM])
    cavity = ((squeezed / radii) ** 2).sum(-1) <= 1
    labels[(labels == 1) & ~cavity] = 2
    above = local - np.array([0, 0, base])
    atrium = (((above / ATRIUM_MM) ** 2).sum(-1) <= 1) & (above[..., 2] > 0)
    around = (((above / (ATRIUM_MM + 1.5)) ** 2).sum(-1) <= 1) & (above[..., 2] > 0)
    right = (((above - RIGHT_ATRIUM_AT_MM) / RIGHT_ATRIUM_MM) ** 2).sum(-1) <= 1
    labels[right & (above[..., 2] > 0) | (labels == 3) & (above[..., 2] > -BELOW_SEPTUM_MM)] = 6
    labels[around] = 5
    labels[atrium] = 4
    return labels


def lv_volume_ml(contraction: float) -> float:
    length = phantoms.LV_LENGTH_MM + base_mm(contraction)
    return 2 / 3 * np.pi * (contraction * phantoms.LV_RADIUS_MM) ** 2 * length / 1000


def seen(stack: Stack, *, wall: float = 60.0) -> np.ndarray:
    """(T, Z, Y, X) intensities, with a little noise: blood and fat bright, muscle dark."""
    levels = np.array([140.0, 220.0, wall, 210.0, 215.0, 70.0, 210.0])
    z, y, x = np.indices(stack.voxels.shape[1:])
    places = stack.to_lps(np.stack([x, y, z], axis=-1))
    across = stack.directions_lps[:, 2] * np.linspace(-2, 2, 3)[:, None]
    frames = [np.mean([levels[anatomy(places + a, c)] for a in across], axis=0) for c in CONTRACTIONS]
    return (np.stack(frames) + np.random.default_rng(0).normal(0, 6, (len(frames), *x.shape))).astype(np.float32)


TIMES_MS = 70.0 * np.arange(len(CONTRACTIONS))


@pytest.fixture(scope="module")
def labels() -> Stack:
    """Slices 9 mm apart, the highest of which lies in the atrium at end-systole and is labeled cavity all the same."""
    matrix = phantoms.centered_affine(
        (9, 96, 110), (1.6, 1.5, 9.0), HEART @ np.diag([1.0, -1, -1]), BASE_LPS + HEART @ np.array([12.0, -4, -34])
    )
    grid = Stack(np.zeros((1, 9, 96, 110)), matrix)
    z, y, x = np.indices((9, 96, 110))
    places = grid.to_lps(np.stack([x, y, z], axis=-1))
    mistaken = np.array([0, 1, 2, 3, 1, 2, 3], np.uint8)
    return Stack(np.stack([mistaken[anatomy(places, c)] for c in CONTRACTIONS]), matrix, TIMES_MS)


def view(degrees: float, **looks: float) -> Stack:
    angle = np.deg2rad(degrees)
    side, down = HEART @ np.array([np.cos(angle), np.sin(angle), 0]), -HEART[:, 2]
    directions = np.stack([side, down, np.cross(side, down)], axis=1)
    matrix = phantoms.centered_affine((1, 110, 100), (1.4, 1.4, 6.0), directions, BASE_LPS - 25 * HEART[:, 2])
    empty = Stack(np.zeros((len(CONTRACTIONS), 1, 110, 100), np.float32), matrix, TIMES_MS)
    return empty.with_voxels(seen(empty, **looks))


@pytest.fixture(scope="module")
def views() -> dict[str, Stack]:
    return {"4ch": view(-30), "2ch": view(90), "3ch": view(30)}


@pytest.fixture(scope="module")
def ends(labels, views) -> Ends:
    found = find_ends(labels, views)
    assert found is not None
    return found


def test_the_valve_plane_is_where_the_walls_end_in_every_phase(ends):
    heights = (ends.base_points_lps - BASE_LPS) @ HEART[:, 2]
    true = np.array([base_mm(c) for c in CONTRACTIONS])
    np.testing.assert_allclose(heights, true, atol=3.0)
    assert np.abs(heights - true).mean() < 1.5
    assert ends.excursion_mm == pytest.approx(DESCENT_MM, abs=2.5)
    assert (ends.base_normals @ HEART[:, 2] > np.cos(np.deg2rad(6))).all()
    assert set(ends.base_views) == {"4ch", "2ch", "3ch"}


def test_the_tip_is_where_the_blood_ends(ends):
    tips = (ends.apex_lps - BASE_LPS) @ HEART
    np.testing.assert_allclose(tips[:, 2], -phantoms.LV_LENGTH_MM, atol=3.0)


def test_volumes_to_the_ends_follow_the_formula_where_labels_follow_the_atrium(labels, ends):
    true = np.array([lv_volume_ml(c) for c in CONTRACTIONS])
    plain, ended = cardiac_function(labels), cardiac_function(labels, ends)
    errors = [np.abs(one.lv.volumes_ml - true) / true for one in (plain, ended)]
    assert errors[0].mean() > 0.15
    assert errors[1].mean() < 0.05
    assert errors[1].max() < 0.1
    ejected = 100 * (1 - lv_volume_ml(CONTRACTIONS[6]) / lv_volume_ml(1.0))
    assert ended.lv.ef_percent == pytest.approx(ejected, abs=3)
    assert abs(ended.lv.ef_percent - ejected) < abs(plain.lv.ef_percent - ejected)


def test_the_tricuspid_plane_moves_with_the_end_of_the_septum(ends):
    base = ends.rv_base
    assert base.views == ("4ch",)  # the 3ch passes the outflow tract
    heights = (base.points_lps - BASE_LPS) @ HEART[:, 2]
    true = np.array([base_mm(c) for c in CONTRACTIONS]) - BELOW_SEPTUM_MM
    np.testing.assert_allclose(heights, true, atol=4.0)
    assert np.abs(heights - true).mean() < 2.5
    assert base.excursion_mm == pytest.approx(DESCENT_MM, abs=3)
    assert base.normal @ HEART[:, 2] > np.cos(np.deg2rad(10))


def test_rv_volumes_to_the_tricuspid_plane_follow_the_anatomy_where_labels_follow_the_atrium(labels, ends):
    """Against counting the anatomy on a fine grid."""
    corner, step = np.array([-50.0, -60.0, -75.0]), 2.0
    fine = np.stack(np.meshgrid(*(np.arange(a, b, step) for a, b in zip(corner, (75, 45, 5), strict=True))), axis=-1)
    true = np.array([(anatomy(BASE_LPS + fine @ HEART.T, c) == 3).sum() * step**3 / 1000 for c in CONTRACTIONS[::3]])
    plain, ended = cardiac_function(labels), cardiac_function(labels, ends)
    errors = [np.abs(one.rv.volumes_ml[::3] - true) / true for one in (plain, ended)]
    assert errors[0].mean() > 0.1
    assert errors[1].mean() < 0.05
    only_lv = cardiac_function(labels, replace(ends, rv_base=None))
    np.testing.assert_allclose(only_lv.rv.volumes_ml, plain.rv.volumes_ml)
    np.testing.assert_array_equal(only_lv.lv.volumes_ml, ended.lv.volumes_ml)


def test_an_image_that_passes_no_right_atrium_or_shows_no_septum_tells_no_tricuspid_plane(labels, views):
    found = find_ends(labels, {name: views[name] for name in ("2ch", "3ch")})
    assert found.rv_base is None
    assert find_ends(labels, {"pale": view(-30, wall=190.0)}) is None


def test_the_tricuspid_plane_leaves_the_outflow_tract_in_front_of_it():
    voxels = np.zeros((1, 6, 60, 60), np.uint8)
    voxels[:, 2:, 20:40, 5:15] = 1  # the LV, from slice 2 on
    voxels[:, 1:, 20:40, 20:40] = 3  # the inflow, one slice of it in the atrium
    voxels[:, :, 40:50, 20:40] = 3  # the outflow tract in front of it, one slice higher
    stack = Stack(voxels, np.diag([1.0, 1, 8, 1]))
    downwards, anterior = np.array([0.0, 0, 1]), np.array([0.0, 1, 0])
    base = RVBase(np.array([[20.0, 30, 14]]), -downwards, 0.0, np.array([[30.0, 39.5, 14]]), anterior, ("4ch",))
    ended = cardiac_function(stack, Ends(downwards, rv_base=base))
    inflow, outflow = 20 * 20 * (44 - 14) / 1000, 20 * 10 * 48 / 1000
    assert ended.rv.edv_ml == pytest.approx(inflow + outflow, rel=0.03)


def test_one_view_that_shows_both_walls_is_enough(labels, views):
    found = find_ends(labels, {"2ch": views["2ch"]})
    heights = (found.base_points_lps - BASE_LPS) @ HEART[:, 2]
    np.testing.assert_allclose(heights, [base_mm(c) for c in CONTRACTIONS], atol=3.5)


def test_a_view_without_contrast_or_beside_the_heart_says_nothing(labels, views):
    pale = view(90, wall=190.0)
    assert find_ends(labels, {"pale": pale}) is None
    aside = views["2ch"].affine.copy()
    aside[:3, 3] += 25 * views["2ch"].directions_lps[:, 2]
    assert find_ends(labels, {"aside": replace(views["2ch"], affine=aside)}) is None
    noise = np.random.default_rng(1).normal(100, 20, pale.voxels.shape).astype(np.float32)
    assert find_ends(labels, {"noise": pale.with_voxels(noise)}) is None


def test_a_plane_that_cuts_a_cylinder_leaves_what_lies_below_it():
    rows, columns = np.indices((60, 60))
    disk = (np.hypot(rows - 30, columns - 30) < 15).astype(np.uint8)
    stack = Stack(np.repeat(disk[None, None], 5, axis=1), np.diag([1.0, 1, 8, 1]))
    downwards = np.array([0.0, 0, 1.0])  # slice 0 is the base
    tilted = np.array([0.2, 0, -1.0])
    cut = Ends(downwards, np.array([[30.0, 30, 6.0]]), (tilted / np.linalg.norm(tilted))[None])
    assert cardiac_function(stack, cut).lv.edv_ml == pytest.approx(disk.sum() * (36 - 6) / 1000, rel=0.01)
    tip = Ends(downwards, apex_lps=np.array([[30.0, 30, 35.0]]))
    assert cardiac_function(stack, tip).lv.edv_ml == pytest.approx(disk.sum() * (4 + 32 + 3 / 2) / 1000)
    nothing = Ends(downwards)
    assert cardiac_function(stack, nothing).lv.edv_ml == pytest.approx(cardiac_function(stack).lv.edv_ml)


def test_figures_tell_both_volumes_and_why_where_there_are_none(labels, views):
    slices = labels.with_voxels(labels.voxels.astype(np.uint8))
    acquired = replace(slices, voxels=slices.voxels)
    picture = acquired.with_voxels(seen(acquired))
    lax = [LaxImage(name, one) for name, one in views.items()]
    ended = figures.function_to_the_ends(labels, picture, lax)
    told = figures.document("report", picture, function=cardiac_function(labels), function_long_axis=ended)
    told = json.loads(json.dumps(told, allow_nan=False))
    assert told["function_long_axis"]["ends"]["valve_plane"]["views"]
    assert told["function_long_axis"]["lv"]["edv_ml"] < told["function"]["lv"]["edv_ml"]
    assert figures.function_to_the_ends(labels, picture, []) == figures.NO_VIEWS


def test_a_cohorts_table_has_the_volumes_to_the_ends_beside_those_of_the_labels(labels, views, tmp_path, monkeypatch):
    (tmp_path / "views").mkdir()
    write_stack(labels.with_voxels(seen(labels)), tmp_path / "sax.seq.nrrd")
    for name, one in views.items():
        write_stack(one, tmp_path / "views" / f"{name}.seq.nrrd")
    segmenting = Tools(upsample=lambda stack: stack, segment=lambda stack: stack.with_voxels(labels.voxels))
    monkeypatch.setattr(tools, "engine_tools", lambda *_, **__: segmenting)
    procedure = Procedure(Settings(method="linear"), is_upsampled=False, is_tried=False)
    cases = [
        CohortCase("A", tmp_path / "sax.seq.nrrd", views=tmp_path / "views"),
        CohortCase("B", tmp_path / "sax.seq.nrrd"),
    ]
    store = Store(tmp_path / "out")
    store.begin(procedure.as_json(), [case.name for case in cases])
    assert [do_case(case, procedure, tmp_path / "out") for case in cases] == ["done", "done"]
    store.write_tables()
    with (tmp_path / "out" / "cohort.csv").open(encoding="utf-8", newline="") as file:
        with_views, without = csv.DictReader(file)
    true = lv_volume_ml(1.0)
    assert float(with_views["lv_edv_ml"]) > 1.1 * true  # the atrium is in it
    assert float(with_views["long_axis_lv_edv_ml"]) == pytest.approx(true, rel=0.07)
    assert float(with_views["long_axis_mass_g"]) > 0
    assert float(with_views["valve_plane_excursion_mm"]) == pytest.approx(DESCENT_MM, abs=2.5)
    assert without["lv_edv_ml"] == with_views["lv_edv_ml"]
    assert without["long_axis_lv_edv_ml"] == without["valve_plane_excursion_mm"] == ""
