"""Draw the module's icon, a heart between two slices, cut into those that are generated: make_icon.py OUT.png."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE, FINE = 128, 8
SLICE_FILL, SLICE_EDGE = (58, 124, 190, 255), (232, 241, 250, 255)
HEART_TOP, HEART_BOTTOM = np.array([240, 96, 84]), np.array([176, 28, 48])
HALO = (255, 255, 255, 210)
Points = list[tuple[float, float]]


def main() -> None:
    big = Image.new("RGBA", (SIZE * FINE, SIZE * FINE), (0, 0, 0, 0))
    heart = heart_mask(big.size)
    draw_slice(big, center_y=101)
    draw_heart(big, heart)
    draw_slice(big, center_y=27, behind=heart)
    big.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(Path(sys.argv[1]), optimize=True)


def heart_mask(size: tuple[int, int]) -> Image.Image:
    """The heart's outline, x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, as a filled mask."""
    t = np.linspace(0, 2 * np.pi, 400)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    mask = Image.new("L", size, 0)
    points = [((64 + 2.5 * a) * FINE, (61 - 2.5 * b) * FINE) for a, b in zip(x, y, strict=True)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def draw_heart(image: Image.Image, mask: Image.Image) -> None:
    """A shaded heart with a light halo, so that it stands out on dark ground, and the cuts of the generated slices."""
    halo = mask.filter(ImageFilter.MaxFilter(4 * FINE // 2 * 2 + 1))
    image.paste(Image.new("RGBA", image.size, HALO), (0, 0), halo)
    share = np.linspace(0, 1, image.height)[:, None, None]
    shade = ((1 - share) * HEART_TOP + share * HEART_BOTTOM).astype(np.uint8)
    image.paste(Image.fromarray(np.broadcast_to(shade, (image.height, image.width, 3)).copy()), (0, 0), mask)
    cuts = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(cuts)
    for y in (46, 60, 74, 88):
        draw.line([(0, y * FINE), (image.width, y * FINE)], fill=150, width=2 * FINE)
    image.paste(Image.new("RGBA", image.size, (255, 255, 255, 255)), (0, 0), multiplied(cuts, mask))


def draw_slice(image: Image.Image, *, center_y: float, behind: Image.Image | None = None) -> None:
    """An acquired slice, seen from above at a slant; what lies behind the heart stays hidden."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    corners: Points = [(26, center_y - 13), (122, center_y - 13), (102, center_y + 13), (6, center_y + 13)]
    fine = [(x * FINE, y * FINE) for x, y in corners]
    draw = ImageDraw.Draw(layer)
    draw.polygon(fine, fill=SLICE_FILL)
    draw.line([*fine, fine[0], fine[1]], fill=SLICE_EDGE, width=3 * FINE, joint="curve")
    if behind is not None:
        front = behind.filter(ImageFilter.MaxFilter(2 * FINE + 1))
        hidden = Image.new("L", image.size, 0)
        hidden.paste(front.crop((0, int(center_y * FINE), image.width, image.height)), (0, int(center_y * FINE)))
        layer.putalpha(multiplied(layer.getchannel("A"), hidden.point(lambda value: 255 - value)))
    image.alpha_composite(layer)


def multiplied(first: Image.Image, second: Image.Image) -> Image.Image:
    """The product of two masks."""
    product = np.asarray(first, np.uint16) * np.asarray(second, np.uint16) // 255
    return Image.fromarray(product.astype(np.uint8))


if __name__ == "__main__":
    main()
