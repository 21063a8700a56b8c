"""A long-axis image that guided a result is named, and never shown as independent proof of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calid.report import chapters
from calid.report.case import Case, Missing
from calid.report.comparison import Column, agreement_table, compare_views, standard_columns
from calid.report.trust import left_out_views
from calid.stack import GUIDED_KEY, LaxImage, Stack, acquired_slices
from test_guidance import heart


@pytest.fixture(scope="module")
def made() -> tuple[Stack, Stack, list[LaxImage]]:
    """A sparse stack, the linear dense one that says "4ch" guided it, and the views."""
    sparse, views = heart()
    voxels = np.repeat(sparse.voxels, 2, axis=1)[:, :-1].astype(np.float32)
    voxels[:, 1::2] = (sparse.voxels[:, :-1] + sparse.voxels[:, 1:]) / 2
    affine = sparse.affine.copy()
    affine[:3, 2] /= 2
    generated = np.arange(voxels.shape[1]) % 2 == 1
    dense = Stack(voxels, affine, generated=generated, provenance={GUIDED_KEY: ["4ch"]})
    return sparse, dense, views


def test_a_guiding_view_does_not_judge_what_it_guided_but_still_judges_the_rest(made):
    _, dense, views = made
    figures = {one.view: one for one in compare_views(views, standard_columns(acquired_slices(dense), dense))}
    assert figures["4ch"].columns["CaLID+"].num_pixels == 0
    assert figures["4ch"].columns["linear"].num_pixels > 0
    assert figures["2ch"].columns["CaLID+"].num_pixels > 0
    assert figures["4ch"].best in ("nearest", "linear")
    table = agreement_table(list(figures.values()))
    assert "not measured" in table
    assert "guided the result" in table
    assert "nan" not in table.lower().replace("contrast", "")


def test_a_result_that_only_guides_could_judge_is_not_judged(made):
    _, dense, views = made
    everyone = dense.noted(**{GUIDED_KEY: [view.name for view in views]})
    assert compare_views(views, [Column("CaLID+", everyone)]) == []


def test_every_view_is_left_out_once_and_takes_no_part_in_what_it_judges(made):
    sparse, dense, views = made
    asked = []

    def guided(stack: Stack, others: list[LaxImage]) -> Stack:
        assert stack is sparse
        asked.append([other.name for other in others])
        return dense.noted(**{GUIDED_KEY: asked[-1]})

    found = left_out_views(sparse, views, guided)
    assert [one.view for one in found] == ["2ch", "3ch", "4ch"]
    assert asked == [[], ["3ch", "4ch"], ["2ch", "4ch"], ["2ch", "3ch"]]
    assert all(one.guided == pytest.approx(one.alone) for one in found)
    assert left_out_views(sparse, views[:1], guided) == ()


def test_the_report_tells_shifts_guides_and_views_left_out(made):
    sparse, dense, views = made
    zero = {"mm": [1.25, -0.5, 2.0], "uncertainty_mm": [0.5, 0.4, 0.7], "confidence": 0.9}
    told = {"basis": "long-axis images", "applied": False, "lines": 21, "agreement": [0.8, 0.9]}
    told |= {"slices": [{"name": "slice 1", **zero}], "views": [{"name": "4ch", **zero}]}
    case = Case(
        dense=dense.noted(alignment=told),
        sparse=sparse,
        lax=tuple(views),
        labels=Missing("none"),
        function=Missing("none"),
        sparse_function=Missing("none"),
        trust=Missing("none"),
        method="CaLID+",
        seconds=None,
        left_out_views=left_out_views(sparse, views, lambda *_: replace(dense, provenance={})),
    )
    page = "".join(chapters.guidance(case))
    for words in ("slice 1", "+1.2 +- 0.5 mm", "Guided by: 4ch.", "are off", "left out"):
        assert words in page
    assert chapters.guidance(replace(case, dense=replace(dense, provenance={}), left_out_views=())) == []


def test_a_stack_whose_slices_were_moved_to_fit_the_views_is_not_proved_by_them(made, tmp_path):
    sparse, dense, views = made
    told = {"applied": True, "views": [{"name": "4ch"}], "slices": []}
    case = Case(dense, sparse, tuple(views), *[Missing("none")] * 4, "CaLID+", None)
    for alignment, words in ((told, True), (told | {"applied": False}, False)):
        moved = replace(case, dense=replace(dense, provenance={"alignment": alignment}))
        page = "".join(chapters.long_axis(moved, tmp_path)[0])
        assert ("moved to fit 4ch" in page) == words
