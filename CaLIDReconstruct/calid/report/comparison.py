"""Acquired long-axis images against the same planes cut from the short-axis stack: the figures, view by view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calid.geometry import heart_center
from calid.heart.longaxis import Agreement, agreement, around, at_phases_of, crossing_views, cut
from calid.report import page
from calid.stack import GUIDED_KEY, LaxImage, Stack

HEART_RADIUS_MM = 75.0
"""Agreement is measured within this distance of the line through the heart: whole hearts fit, most lung does not."""


NO_PROOF = Agreement(float("nan"), float("nan"), float("nan"), 0)
_NO_PROOF_WORDS = (
    "Not measured: this image guided the result, so its agreement would only show that the result follows it. How much "
    "guidance helps a view that is left out stands under Trust."
)


@dataclass(frozen=True)
class Column:
    """One way to fill a long-axis plane from a short-axis stack.

    Args:
        name: heading, such as "CaLID+".
        stack: what is cut; for nearest and linear the sparse stack itself, which needs no upsampling.
        order: 0 nearest voxel, 1 linear.
    """

    name: str
    stack: Stack
    order: int = 1


def standard_columns(sparse: Stack, dense: Stack, name: str = "CaLID+") -> tuple[Column, Column, Column]:
    """Nearest and linear interpolation of the acquired slices beside the upsampled stack."""
    return Column("nearest", sparse, order=0), Column("linear", sparse), Column(name, dense)


@dataclass(frozen=True)
class ViewAgreement:
    """Agreement of every column with one acquired long-axis image.

    A column that this image guided has no figures: its agreement would be no proof.
    """

    view: str
    columns: Mapping[str, Agreement]

    @property
    def best(self) -> str:
        """The column with the highest gradient correlation, of those that have one."""
        known = [name for name, figure in self.columns.items() if figure.num_pixels]
        return max(known, key=lambda name: self.columns[name].gradient_correlation, default="")


def compare_views(acquired: Sequence[LaxImage], columns: Sequence[Column]) -> list[ViewAgreement]:
    """Agreement of every column with every long-axis image, around the heart, over the phases all of them have."""
    if not acquired:
        return []
    stacks = [column.stack for column in columns]
    fewest = min(stacks, key=lambda stack: stack.num_frames)
    normal = stacks[0].directions_lps[:, 2]
    center = heart_center(stacks[0], [image.stack for image in acquired])
    results = []
    for image in crossing_views(acquired, stacks[0]):
        plane = at_phases_of(image.stack, fewest)
        region = around(plane, center, normal, HEART_RADIUS_MM)
        judged = [column for column in columns if image.name not in guides_of(column.stack)]
        figures = {
            column.name: agreement(plane, cut(column.stack, plane, order=column.order), normal, region=region)
            if column in judged
            else NO_PROOF
            for column in columns
        }
        if judged and all(figures[column.name].num_pixels for column in judged):
            results.append(ViewAgreement(image.name, figures))
    return results


def guides_of(stack: Stack) -> Sequence[str]:
    """The long-axis images that guided a stack's generated slices, by name."""
    return stack.provenance.get(GUIDED_KEY, ()) if np.asarray(stack.generated).any() else ()


def agreement_table(figures: Sequence[ViewAgreement]) -> str:
    """HTML: the headline figure per view and column, its mean, and how often each column is best; details below."""
    if not figures:
        return page.paragraph("No long-axis image crosses the short-axis slices, so there is nothing to compare with.")
    names = list(figures[0].columns)
    headline = [[_figure(result.columns[name].gradient_correlation) for name in names] for result in figures]
    rows = [[result.view, *cells] for result, cells in zip(figures, headline, strict=True)]
    means = [np.mean([result.columns[name].gradient_correlation for result in figures]) for name in names]
    rows.append(["mean", *(_figure(float(mean)) for mean in means)])
    best = [(index, 1 + names.index(result.best)) for index, result in enumerate(figures) if result.best]
    if np.isfinite(means).any():
        best.append((len(figures), 1 + int(np.nanargmax(means))))
    unmeasured = any(not figure.num_pixels for result in figures for figure in result.columns.values())
    details = [
        [result.view, name, _figure(figure.correlation), _figure(figure.sharpness), f"{figure.num_pixels}"]
        for result in figures
        for name, figure in result.columns.items()
    ]
    return (
        page.paragraph(
            "Correlation of the derivatives along the slice axis with the acquired long-axis image, around the heart, "
            "averaged over the cardiac phases. 1 is perfect, 0 is none."
        )
        + page.table(["view", *names], rows, best=best)
        + (page.paragraph(_NO_PROOF_WORDS) if unmeasured else "")
        + "<details><summary>Correlation of intensities and sharpness</summary>"
        + page.table(["view", "from", "correlation", "sharpness", "pixels"], details)
        + page.paragraph(
            "Sharpness is the root mean square steepness along the slice axis relative to the acquired image: below 1 "
            "is blurred, above 1 stepped or noisy. Long- and short-axis images are taken in different breath-holds, so "
            "even a perfect stack does not reach an agreement of 1."
        )
        + "</details>\n"
    )


def _figure(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "not measured"
