"""The picture sheet and the demonstration's page show what they claim, and load nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import phantoms
import pytest
from calid.geometry import heart_center
from calid.heart import longaxis
from calid.report import comparison, demo, page, sheet
from calid.stack import Stack
from PIL import Image


@dataclass(frozen=True)
class View:
    """A long-axis image with its name, as `stack.LaxImage`."""

    name: str
    stack: Stack


def every(stack: Stack, step: int) -> Stack:
    matrix = stack.affine.copy()
    matrix[:3, 2] *= step
    return Stack(stack.voxels[:, ::step], matrix, stack.frame_times_ms)


@pytest.fixture(scope="module")
def study():
    """A fine heart in three phases as "CaLID+", every twelfth of its slices as acquired, and its long-axis images."""
    labels = phantoms.heart_labels((1.5, 1.4, 1.0), contractions=(1.0, 0.85, 0.7))
    fine = phantoms.pictured(labels)
    planes = longaxis.derive_planes(labels)
    views = []
    for name, plane in planes.items():
        shown = np.nan_to_num(longaxis.cut(fine, plane), nan=40.0)
        views.append(View(name, plane.with_voxels(shown[:, None])))
    return views, comparison.standard_columns(every(fine, 12), fine)


def test_the_fine_stack_agrees_best_in_every_view(study):
    views, columns = study
    figures = comparison.compare_views(views, columns)
    assert [result.view for result in figures] == [view.name for view in views]
    assert all(result.best == "CaLID+" for result in figures)
    assert all(result.columns["CaLID+"].gradient_correlation > 0.98 for result in figures)


def test_an_image_parallel_to_the_slices_is_left_out(study):
    views, columns = study
    sparse = columns[0].stack
    parallel = View("sax", Stack(sparse.voxels[:, :1], sparse.affine, sparse.frame_times_ms))
    assert [view.name for view in longaxis.crossing_views([*views, parallel], sparse)] == [v.name for v in views]


def test_an_upright_plane_stays_in_the_images_plane_with_slices_level(study):
    views, columns = study
    sparse = columns[0].stack
    for view in views:
        center = heart_center(sparse, [view.stack])
        upright = sheet.upright_plane(view.stack, sparse, center)
        normal = view.stack.directions_lps[:, 2]
        assert upright.directions_lps[:, 2] @ normal == pytest.approx(1, abs=1e-9)
        assert (upright.origin_lps - view.stack.origin_lps) @ normal == pytest.approx(0, abs=1e-9)
        assert upright.directions_lps[:, 0] @ sparse.directions_lps[:, 2] == pytest.approx(0, abs=1e-9)
        lines = longaxis.intersection_lines(sparse, upright)[:, :, 1]
        np.testing.assert_allclose(lines[:, 0], lines[:, 1], atol=1e-6)


def test_an_upright_plane_shows_the_acquired_image_itself(study):
    views, columns = study
    sparse = columns[0].stack
    upright = sheet.upright_plane(views[0].stack, sparse, heart_center(sparse, [views[0].stack]))
    fine = longaxis.cut(columns[2].stack, upright)[0]
    inside = np.isfinite(fine) & (upright.voxels[0, 0] > 0)
    assert np.corrcoef(fine[inside], upright.voxels[0, 0][inside])[0, 1] > 0.985


def test_the_sheet_has_a_picture_per_view_and_column(study, tmp_path):
    views, columns = study
    figures = sheet.lax_sheet(views, columns, tmp_path / "sheet.png")
    assert len(figures) == 3
    with Image.open(tmp_path / "sheet.png") as picture:
        gray = np.asarray(picture.convert("L"), float)
    assert gray.shape[1] > 4 * 2 * comparison.HEART_RADIUS_MM
    bright = np.flatnonzero((gray > 190).mean(axis=0) > 0.05)
    assert np.unique(bright // (gray.shape[1] // 4)).size == 4


def test_the_sheet_shows_the_phase_that_was_asked_for(study, tmp_path):
    views, columns = study
    pictures = []
    for moment in (0.0, 533.0):
        sheet.lax_sheet(views[:1], columns, tmp_path / f"{moment}.png", moment_ms=moment)
        with Image.open(tmp_path / f"{moment}.png") as picture:
            pictures.append(np.asarray(picture.convert("L"), float))
    diastole, systole = ((picture > 190).sum() for picture in pictures)
    assert systole < 0.9 * diastole


def test_the_movie_has_a_frame_per_phase(study, tmp_path):
    views, columns = study
    with Image.open(sheet.lax_movie(views[0], views, columns[1:], tmp_path / "beat.gif")) as movie:
        assert movie.n_frames == 3
        assert movie.info["loop"] == 0
        frames = []
        for index in range(3):
            movie.seek(index)
            frames.append(np.asarray(movie.convert("RGB"), float))
    changes = [np.abs(frame - frames[0]).mean(axis=(0, 2)) for frame in frames[1:]]
    thirds = np.array_split(changes[0], 3)
    assert all(third.max() > 20 for third in thirds)  # every column beats
    colors = {tuple(color) for color in frames[0].reshape(-1, 3).astype(int)}
    assert (76, 194, 180) in colors  # the heading of the last column keeps its accent


def test_a_derived_plane_beats_without_an_acquired_image(study, tmp_path):
    views, columns = study
    plane = next(view.stack for view in views if "4ch" in view.name)
    with Image.open(sheet.lax_movie(views[0], views, columns[1:], tmp_path / "three.gif")) as three:
        beside = three.size
    with Image.open(sheet.derived_movie("4ch", plane, columns[1:], tmp_path / "two.gif")) as two:
        assert two.n_frames == plane.num_frames
        assert two.size[0] < beside[0] * 1.2  # no acquired column


class _Links(HTMLParser):
    """Collects everything a page would load or link to, and its plain text."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.words = ""

    def handle_starttag(self, _, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href", "action", "poster") and value]

    def handle_data(self, data):
        self.words += data


def parsed(document: str) -> _Links:
    links = _Links()
    links.feed(document)
    return links


def test_the_index_page_holds_everything_it_shows(study, tmp_path):
    views, columns = study
    figures = sheet.lax_sheet(views, columns, tmp_path / "sheet.png")
    movie = sheet.lax_movie(views[0], views, columns[1:], tmp_path / "beat.gif")
    index = demo.write_index(
        tmp_path,
        figures=figures,
        sheets={"End-diastole": tmp_path / "sheet.png"},
        movie=movie,
        case={"source": "phantom <i>1</i>"},
        provenance={"model": {"name": "test", "steps": 8}, "acquired_slices": 7, "factor": 8},
        seconds=12.4,
    )
    links = parsed(index.read_text(encoding="utf-8"))
    assert links.targets
    assert all(target.startswith("data:") for target in links.targets)
    assert not re.search(r"url\(|@import", index.read_text(encoding="utf-8"))
    for expected in (page.STANDING_NOTE, "phantom <i>1</i>", "steps: 8", "12", "3 of 3", "2ch", "slices now", "49"):
        assert expected in links.words


def test_the_index_page_says_when_there_is_nothing_to_compare(tmp_path):
    index = demo.write_index(tmp_path, figures=[], sheets={})
    assert "nothing to compare" in parsed(index.read_text(encoding="utf-8")).words


def test_the_table_marks_the_best_column_of_each_view():
    good, poor = (longaxis.Agreement(value, value, 1.0, 100) for value in (0.8, 0.4))
    figures = [
        comparison.ViewAgreement("4ch", {"linear": poor, "CaLID+": good}),
        comparison.ViewAgreement("2ch", {"linear": good, "CaLID+": poor}),
    ]
    rows = re.findall(r"<tr>(<td.*?)</tr>", comparison.agreement_table(figures))[:2]
    best = [re.findall(r"<td( class=\"best\")?>", row) for row in rows]
    assert [[bool(mark) for mark in row] for row in best] == [[False, False, True], [False, True, False]]
