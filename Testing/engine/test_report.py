"""The report tells what is known, says what is missing and why, and works in a real browser, offline."""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import phantoms
import pytest
from browser import browser
from calid.errors import InputError, OutputError, SettingsError, WeightsError
from calid.heart.longaxis import cut, derive_planes
from calid.images.files import write_labels, write_stack
from calid.report import chapters, command, page
from calid.report.case import Missing, Tools, around_heart, gather
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import LaxImage, Stack, acquired_slices, is_dense
from PIL import Image

WEB = Path(command.__file__).parent / "web"
CONTRACTIONS = (1.0, 0.8, 0.7, 0.9, 0.97)
SPACING_MM = (2.0, 1.9, 2.4)
STEP = 4


def truth() -> Stack:
    """Labels of a beating heart, fine."""
    labels = phantoms.heart_labels(SPACING_MM, contractions=CONTRACTIONS)
    return Stack(labels.voxels[:, : (labels.num_slices - 1) // STEP * STEP + 1], labels.affine, labels.frame_times_ms)


def sparse_of(stack: Stack) -> Stack:
    affine = stack.affine.copy()
    affine[:3, 2] *= STEP
    return Stack(stack.voxels[:, ::STEP], affine, stack.frame_times_ms, provenance={"source": "phantom <b>1</b>"})


def linear(factor: int):
    return lambda stack: upsample(stack, Settings(factor=factor, method="linear")).stack


def true_labels(dense: Stack) -> Stack:
    return dense.with_voxels(truth().voxels)


def no_weights(_: Stack) -> Stack:
    raise WeightsError("no-weights", "There is no segmentation model.", "Reinstall the extension.")


def long_axis_images() -> tuple[LaxImage, ...]:
    fine = phantoms.pictured(truth())
    images = []
    for name, plane in derive_planes(truth()).items():
        shown = np.nan_to_num(cut(fine, plane), nan=40.0)
        images.append(LaxImage(name, plane.with_voxels(shown[:, None])))
    return tuple(images)


TOOLS = Tools(upsample=linear(STEP), predict=linear(2), segment=true_labels, method="linear interpolation")


@pytest.fixture(scope="module")
def case():
    return gather(sparse_of(phantoms.pictured(truth())), long_axis_images(), TOOLS)


@pytest.fixture(scope="module")
def whole(case) -> str:
    return command.as_html(case, title="Phantom & co")


class _Reader(HTMLParser):
    """Plain text, loaded or linked addresses, headings and embedded JSON of a page."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.words, self.targets, self.headings, self.data = "", [], [], {}
        self._inside: tuple[str, str | None] = ("", None)
        self.feed(document)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.targets += [named[name] for name in ("src", "href", "action", "poster", "srcset") if named.get(name)]
        self._inside = (tag, named.get("id"))

    def handle_endtag(self, _):
        self._inside = ("", None)

    def handle_data(self, data):
        tag, name = self._inside
        if tag == "script":
            self.data[name] = self.data.get(name, "") + data
        elif tag != "style":
            self.words += data + " "
        if tag == "h2" and data.strip():
            self.headings.append(data.strip())


CHAPTERS = ["Long-axis views", "The ventricles in 3D", "Function", "Trust", "Provenance"]


def test_the_report_has_all_its_chapters_and_the_standing_note(whole):
    read = _Reader(whole)
    assert read.headings == CHAPTERS
    assert read.words.count(page.STANDING_NOTE) >= 2
    assert "Phantom & co" in read.words


def test_the_report_loads_nothing_and_links_nowhere(whole):
    assert all(target.startswith("data:") for target in _Reader(whole).targets)
    assert not re.search(r"https?://|url\(|@import|//cdn", whole)


def test_text_from_the_input_cannot_become_markup(whole):
    assert "phantom <b>1</b>" in _Reader(whole).words
    assert "phantom &lt;b&gt;1&lt;/b&gt;" in whole


def test_the_figures_are_those_of_the_phantom(whole):
    data = json.loads(_Reader(whole).data["calid-report"])
    expected = 100 * (1 - 0.7**3)
    assert data["function"]["lv"]["ef_percent"] == pytest.approx(expected, abs=1.5)
    assert data["function"]["mass_g"] == pytest.approx(1.05 * phantoms.myocardium_volume_ml(), rel=0.04)
    assert data["function"]["es_frame"] == 2
    assert data["function_acquired"]["lv"]["edv_ml"] == pytest.approx(phantoms.lv_volume_ml(), rel=0.1)
    assert set(data["long_axis"]) == {"2ch", "3ch", "4ch"}
    assert data["trust"]["score"] == pytest.approx(1)
    assert {one["level"] for one in data["trust"]["slices"]} == {"basal", "middle", "apical"}


def test_the_page_shows_the_same_figures_to_people(whole, case):
    words = _Reader(whole).words
    assert f"{case.function.lv.edv_ml:.1f} ml" in words
    assert f"{case.function.lv.ef_percent:.1f} %" in words
    assert "linear interpolation" in words


def test_without_segmentation_weights_the_rest_is_there_and_the_reason_is_said():
    tools = replace(TOOLS, segment=no_weights)
    bare = gather(sparse_of(phantoms.pictured(truth())).frames(0, 1), long_axis_images(), tools)
    assert isinstance(bare.labels, Missing)
    read = _Reader(command.as_html(bare))
    assert read.headings == CHAPTERS
    assert read.words.count("There is no segmentation model. Reinstall the extension.") == 2
    data = json.loads(read.data["calid-report"])
    assert data["function"] == {"missing": "There is no segmentation model. Reinstall the extension."}
    assert data["trust"]["score"] == pytest.approx(1)
    assert len(data["long_axis"]) == 3


def test_without_long_axis_images_planes_are_derived_from_the_labels():
    lone = gather(sparse_of(phantoms.pictured(truth())).frames(0, 1), (), replace(TOOLS, segment=first_labels))
    read = _Reader(command.as_html(lone))
    assert "these planes follow from its labels" in read.words
    assert json.loads(read.data["calid-report"])["long_axis"] == {"missing": "There are no long-axis images."}


def first_labels(dense: Stack) -> Stack:
    return dense.with_voxels(truth().voxels[:1])


def test_a_cine_beats_in_the_report_with_and_without_long_axis_images(whole, case, tmp_path):
    alone, _ = chapters.long_axis(replace(case, lax=()), tmp_path)
    for html in (whole, "".join(alone)):
        (beating,) = re.findall(r'<img src="data:image/gif;base64,([^"]+)" alt="The 4ch plane through one heart', html)
        with Image.open(io.BytesIO(base64.b64decode(beating))) as movie:
            assert movie.n_frames == len(CONTRACTIONS)


def test_with_neither_images_nor_labels_the_report_says_why_there_are_no_planes():
    neither = gather(sparse_of(phantoms.pictured(truth())).frames(0, 1), (), replace(TOOLS, segment=None, predict=None))
    words = _Reader(command.as_html(neither)).words
    assert "no planes could be derived" in words
    assert "No model was given to predict left-out slices." in words


def test_a_dense_stack_is_taken_as_it_is(case):
    def never(_: Stack) -> Stack:
        raise AssertionError("upsampled what was dense already")

    again = gather(case.dense, (), replace(TOOLS, upsample=never))
    assert again.dense is case.dense
    assert again.seconds is None
    np.testing.assert_array_equal(again.sparse.voxels, case.sparse.voxels)


def test_acquired_slices_are_found_again_in_place(case):
    original = sparse_of(phantoms.pictured(truth()))
    found = acquired_slices(case.dense)
    np.testing.assert_array_equal(found.voxels, original.voxels)
    np.testing.assert_allclose(found.affine, original.affine, atol=1e-9)


def test_a_fine_stack_without_marks_counts_as_dense_and_has_no_sparse_one():
    fine = phantoms.pictured(phantoms.heart_labels((1.5, 1.4, 1.5)))
    assert is_dense(fine)
    assert not is_dense(sparse_of(fine))
    assert acquired_slices(fine) is None


def test_trust_is_measured_around_the_heart(case):
    inside = around_heart(case.sparse, case.lax, case.labels)
    hearts = (case.labels.voxels > 0).any(axis=(0, 1))
    assert inside[0][hearts].all()
    assert inside.mean() < 0.75
    by_planes = around_heart(case.sparse, case.lax, Missing("none"))
    assert by_planes[0][hearts].mean() > 0.95


# --- the file and the command ---


def test_a_report_is_not_written_over_another_unless_asked(tmp_path):
    path = tmp_path / "heart.html"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists already"):
        command.write_report("new", path)
    assert path.read_text(encoding="utf-8") == "mine"
    command.write_report("new", path, overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["heart.html"]
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize(("name", "message"), [("heart.pdf", r"\.html"), ("nowhere/heart.html", "does not exist")])
def test_an_impossible_report_name_is_refused_before_any_work(tmp_path, name, message):
    with pytest.raises(OutputError, match=message):
        command.run(options("missing.nrrd", tmp_path / name))


def options(source, output, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(source), str(output), *more])


def test_the_command_makes_a_report_from_files(tmp_path, capsys):
    sparse = sparse_of(phantoms.pictured(truth())).frames(0, 1)
    write_stack(sparse, tmp_path / "heart.nrrd")
    views = tmp_path / "lax"
    views.mkdir()
    for image in long_axis_images():
        write_stack(image.stack, views / f"{image.name}.nrrd")
    labels = first_labels(linear(STEP)(sparse))
    write_labels(labels, tmp_path / "labels.nrrd")
    more = ["--lax", str(views), "--labels", str(tmp_path / "labels.nrrd"), "--method", "linear", "--factor", str(STEP)]
    assert command.run(options(tmp_path / "heart.nrrd", tmp_path / "heart.html", *more)) == 0
    assert page.STANDING_NOTE in capsys.readouterr().out
    data = json.loads(_Reader((tmp_path / "heart.html").read_text(encoding="utf-8")).data["calid-report"])
    assert len(data["long_axis"]) == 3
    assert data["function"]["lv"]["edv_ml"] == pytest.approx(phantoms.lv_volume_ml(), rel=0.05)


def test_labels_of_another_grid_are_refused(tmp_path):
    sparse = sparse_of(phantoms.pictured(truth())).frames(0, 1)
    write_stack(sparse, tmp_path / "heart.nrrd")
    write_labels(sparse_of(truth()).frames(0, 1), tmp_path / "labels.nrrd")
    more = ["--labels", str(tmp_path / "labels.nrrd"), "--method", "linear", "--factor", str(STEP)]
    with pytest.raises(SettingsError, match="do not lie on the stack's grid"):
        command.run(options(tmp_path / "heart.nrrd", tmp_path / "heart.html", *more))
    assert not (tmp_path / "heart.html").exists()


def test_labels_of_unknown_values_are_refused_with_their_value(tmp_path):
    sparse = sparse_of(phantoms.pictured(truth())).frames(0, 1)
    write_stack(sparse, tmp_path / "heart.nrrd")
    labels = first_labels(linear(STEP)(sparse))
    voxels = labels.voxels.astype(np.int16)
    voxels[voxels == 3] = 257
    write_stack(labels.with_voxels(voxels), tmp_path / "labels.nrrd")
    more = ["--labels", str(tmp_path / "labels.nrrd"), "--method", "linear", "--factor", str(STEP)]
    with pytest.raises(SettingsError, match=rf"the value 257 in {(voxels == 257).sum()} voxels"):
        command.run(options(tmp_path / "heart.nrrd", tmp_path / "heart.html", *more))
    assert not (tmp_path / "heart.html").exists()


def test_a_damaged_dense_stack_is_refused_by_name(tmp_path):
    dense = linear(STEP)(sparse_of(phantoms.pictured(truth())).frames(0, 1))
    voxels = dense.voxels.copy()
    voxels[0, 5, 3, 3] = np.nan
    write_stack(dense.with_voxels(voxels), tmp_path / "dense.nrrd")
    with pytest.raises(InputError, match=r"^dense\.nrrd: Voxels of slice 6 of \d+ are not a number") as error:
        command.run(options(tmp_path / "dense.nrrd", tmp_path / "heart.html"))
    assert error.value.code == "nan-voxels"


# --- the 3D view ---

DRAWN = "Number(document.getElementById('calid-view').dataset.drawn || 0)"


def test_the_bundled_viewer_was_built_from_its_source():
    digest = hashlib.sha256((WEB / "viewer.js").read_bytes()).hexdigest()[:16]
    assert f"built from viewer.js {digest}" in (WEB / "viewer.min.js").read_text(encoding="utf-8")[:200]


@pytest.fixture(scope="module")
def window(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(whole, encoding="utf-8")
    with browser(folder / "profile") as opened:
        opened.open(folder / "report.html")
        opened.wait_for(f"{DRAWN} > 0")
        yield opened


def colors(picture: np.ndarray) -> dict[str, float]:
    """Share of the picture that is red (LV), blue (RV) or neither the ground nor colored (pictures)."""
    red, green, blue = (picture[..., index].astype(int) for index in range(3))
    gray = (np.abs(red - blue) < 6) & (np.abs(red - green) < 6) & (red > 60)
    return {"red": (red > blue + 50).mean(), "blue": (blue > red + 50).mean(), "gray": gray.mean()}


def press(window, words: str) -> None:
    """Click the check box with these words and wait for the view to be drawn again."""
    change(
        window,
        "const label = [...document.querySelectorAll('#calid-view label')]"
        f".find(one => one.textContent.trim() === {json.dumps(words)}); label.querySelector('input').click()",
    )


def change(window, script: str) -> None:
    """Run a script that changes what the view shows, and wait until it is drawn."""
    drawn = window.run(f"const drawn = {DRAWN}; {script}; return drawn")
    window.wait_for(f"{DRAWN} > {drawn}")


def pause(window) -> None:
    button = "document.querySelector('#calid-view button')"
    window.run(f"if ({button}.textContent === 'Pause') {button}.click()")


def test_the_3d_view_draws_both_ventricles(window):
    seen = colors(window.canvas("#calid-view canvas"))
    assert seen["red"] > 0.02
    assert seen["blue"] > 0.02


def test_dragging_turns_the_heart(window):
    pause(window)
    before = window.canvas("#calid-view canvas")
    window.run("document.getElementById('calid-view').scrollIntoView({block: 'center'})")
    drawn = window.run(f"return {DRAWN}")
    window.drag("#calid-view canvas", 200, 30)
    window.wait_for(f"{DRAWN} > {drawn + 3}")
    assert np.abs(window.canvas("#calid-view canvas").astype(int) - before).mean() > 1


def test_a_ventricle_can_be_hidden_and_a_plane_shown(window):
    press(window, "Right ventricle")
    assert colors(window.canvas("#calid-view canvas"))["blue"] < 0.002
    press(window, "4ch plane")
    assert colors(window.canvas("#calid-view canvas"))["gray"] > 0.01
    press(window, "4ch plane")
    press(window, "Right ventricle")
    assert colors(window.canvas("#calid-view canvas"))["blue"] > 0.02


def test_the_slider_shows_systole_smaller_than_diastole(window):
    pause(window)
    areas = []
    for frame in (0, 2):
        change(
            window,
            "const slider = document.querySelector('#calid-view input[type=range]');"
            f"slider.value = {frame}; slider.dispatchEvent(new Event('input'))",
        )
        areas.append(colors(window.canvas("#calid-view canvas"))["red"])
    assert areas[1] < 0.9 * areas[0]


def test_the_view_rests_while_nothing_changes(window):
    pause(window)
    drawn_in_ten_ticks = (
        f"return new Promise(done => {{ const before = {DRAWN}; let ticks = 0; const tick = () => "
        f"++ticks < 10 ? requestAnimationFrame(tick) : done({DRAWN} - before); tick() }})"
    )
    assert 0 in [window.run(drawn_in_ten_ticks) for _ in range(10)]  # turning comes to rest slowly


def test_every_picture_of_the_page_is_decoded(window):
    sizes = window.run("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) >= 4
    assert min(sizes) > 0


def test_the_page_fits_a_telephone_without_scrolling_sideways(window):
    window.set_width(390)
    try:
        assert window.run("return innerWidth") == 390
        assert window.run("return document.documentElement.scrollWidth") <= 390
    finally:
        window.set_width(1200)


def test_the_console_is_silent_and_nothing_is_fetched(window):
    assert window.complaints() == []
