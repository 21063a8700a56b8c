"""The painter puts surfaces where they are, nearest first, lit from the right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calid.report import stills
from calid.report.stills import Solid, beside, paint
from PIL import Image

GROUND = (10, 20, 30)


def ball(radius: float, center=(0.0, 0.0, 0.0), rgb=(200, 80, 60), opacity: float = 1.0) -> Solid:
    """A UV sphere, triangles facing outwards."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, 25), np.linspace(0, 2 * np.pi, 49), indexing="ij")
    points = radius * np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), -np.sin(theta) * np.sin(phi)], axis=-1)
    index = np.arange(25 * 49).reshape(25, 49)
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    triangles = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    corners = points.reshape(-1, 3)[triangles]
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume > 0
    return Solid(points.reshape(-1, 3) + np.array(center), triangles, rgb, opacity)


def painted(*bodies: Solid, size=(160, 120)) -> np.ndarray:
    return np.asarray(paint(bodies, size=size, ground=GROUND), int)


def covered(image: np.ndarray) -> np.ndarray:
    return np.abs(image - np.array(GROUND)).sum(axis=-1) > 30


def test_a_ball_is_a_full_disk_of_the_right_size_in_the_middle():
    mask = covered(painted(ball(30)))
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == pytest.approx((59.5, 79.5), abs=0.6)
    expected = np.hypot(*(np.indices((120, 160)) - np.array([59.5, 79.5])[:, None, None])) < 0.92 * 60 - 1.5
    assert mask[expected].all(), "there are holes"
    assert mask.sum() == pytest.approx(np.pi * (0.92 * 60) ** 2, rel=0.03)


def test_nothing_is_ground():
    assert (painted() == np.array(GROUND)).all()


def test_the_nearer_of_two_balls_hides_the_farther():
    red, blue = (220, 30, 30), (30, 30, 220)
    for order in (1, -1):
        bodies = [ball(30, (0, 0, 0), red), ball(15, (0, 0, 40), blue)][::order]
        middle = painted(*bodies)[60, 80]
        assert middle[2] > middle[0]
        hidden = painted(ball(30, (0, 0, 0), red), ball(15, (0, 0, -40), blue))[60, 80]
        assert hidden[0] > hidden[2]


def test_up_is_up_and_right_is_right():
    image = painted(ball(10, (-40, 30, 0)), ball(10, (40, -30, 0), (60, 80, 200)))
    rows, columns = np.nonzero(covered(image) & (image[..., 0] > image[..., 2]))
    assert rows.mean() < 60
    assert columns.mean() < 80


def test_light_comes_from_the_upper_right():
    image = painted(ball(30)).sum(axis=-1)
    assert image[35, 105] > image[85, 55]


def test_what_lies_behind_a_translucent_ball_shines_through():
    inner = ball(12, rgb=(230, 30, 30))
    alone = painted(ball(30, rgb=(200, 200, 200), opacity=0.3))[60, 80]
    around = painted(inner, ball(30, rgb=(200, 200, 200), opacity=0.3))[60, 80]
    assert around[0] - around[2] > alone[0] - alone[2] + 40


def test_pictures_stand_side_by_side(tmp_path):
    pictures = [paint([ball(20)], size=(40, 30), ground=GROUND), Image.new("RGB", (40, 30), (255, 255, 255))]
    (tmp_path / "strip.png").write_bytes(beside(pictures))
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == (80, 30)
        assert strip.getpixel((60, 15)) == (255, 255, 255)


@pytest.mark.parametrize("script", ["viewer.js", "viewer.min.js"])
def test_the_viewer_is_lit_as_the_pictures_are(script):
    shader = (Path(stills.__file__).parent / "web" / script).read_text(encoding="utf-8")
    key = ", ".join(map(str, stills.KEY_DIRECTION))
    for words in (
        f"key = normalize(vec3({key}))",
        f"light = {stills.AMBIENT} + {stills.KEY} * max(dot(normal, key), 0.0) + {stills.FACING} * facing",
        f"shine = {stills.SHINE} * pow(max(dot(reflect(-key, normal), toEye), 0.0), {stills.SHINE_POWER:.1f})",
        f"rim = opacity < 1.0 ? {stills.RIM} * pow(1.0 - facing, {stills.RIM_POWER:.1f}) : 0.0",
    ):
        assert words in shader
