"""Make pictures from the bundled demo case: the panel before, while and after a run and with an error, the comparison.

    python Testing/module/make_screenshots.py [--method calid+|linear] [--factor isotropic] [--frames current|all]
                                              [--lax auto|off] [--folder FOLDER]

The panel is the real .ui and widget under the test host's stand-ins for Slicer's own widgets; the views are drawn by
Slicer's own displayable managers. The method used is written on the picture. The long-axis images do not guide the
result unless asked for: they stand beside it, and one that guided it would prove nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import host  # noqa: E402 - found through the line above

REPOSITORY = Path(__file__).resolve().parents[2]
TARGET = REPOSITORY / "Resources" / "Screenshots"
THUMBNAIL = REPOSITORY / "CaLIDReconstruct" / "Resources" / "Icons" / "CaLIDDemoCase.png"
THUMBNAIL_PIXELS = (260, 280)
VIEW_PIXELS = (236, 200)
VIEW_3D_WIDTH = 470
MARGIN, HEAD = 8, 30
BACKGROUND, INK = (24, 24, 28), (235, 235, 240)
LARGEST_BYTES = 200_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="calid+", choices=["calid+", "calid", "linear"])
    parser.add_argument("--factor", default="isotropic")
    parser.add_argument("--frames", default="current", choices=["current", "all"], help="all takes 25 times as long")
    parser.add_argument(
        "--lax", default="off", choices=["auto", "off"], help="whether long-axis images guide the result"
    )
    parser.add_argument("--folder", type=Path, help="put all pictures here; else those of the README where it looks")
    options = parser.parse_args()
    target, thumbnail = options.folder or TARGET, (options.folder or THUMBNAIL.parent) / THUMBNAIL.name
    application = host.install()
    from host.application import MODULE_FOLDER, loadModule, openWidget

    module, _ = loadModule(MODULE_FOLDER / "CaLIDReconstruct.py")
    from CaLIDReconstructLib.Licenses import segmenterLicense

    widget = openWidget(module, "CaLIDReconstruct")
    widget.logic.preferences.agreedLicense = segmenterLicense().identifier  # nobody is there to be asked
    widget.parent.resize(420, 1500)
    widget.parent.show()
    target.mkdir(parents=True, exist_ok=True)
    try:
        runDemo(application, widget, options)
        saveViews(comparisonPicture(widget), target / "comparison.jpg")
        savePanel(application, widget, target / "panel.png")
        saveThumbnail(widget, thumbnail)
        if options.folder:
            saveError(application, widget, target / "panel-error.png")
    finally:
        widget.cleanup()
    return 0


def runDemo(application, widget, options) -> None:
    """Load the demo case and upsample it by clicks, as a user would."""
    from CaLIDReconstructLib.Parameters import FactorChoice, FramesChoice, MethodChoice

    widget.ui.sampleButton.click()
    parameters = widget.panel.parameters
    parameters.method = MethodChoice(options.method)
    parameters.frames = FramesChoice(options.frames)
    parameters.useLongAxis = options.lax == "auto"
    parameters.factor = FactorChoice(int(options.factor) if options.factor.isdigit() else options.factor)
    until(application, lambda: widget.ui.estimateLabel.text)
    if options.folder:
        savePanel(application, widget, options.folder / "panel-before.png")
    widget.ui.upsampleButton.click()
    if options.folder:
        until(application, lambda: widget.ui.progressBar.value > 200 or not widget.panel.isRunning)
        savePanel(application, widget, options.folder / "panel-while.png")
    until(application, lambda: not widget.panel.isRunning)
    if widget.panel.results.result is None:
        raise SystemExit(widget.ui.statusLabel.text)


def until(application, condition, timeout_s: float = 3600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("The demo case took too long.")
        application.processEvents()
        time.sleep(0.02)


def comparisonPicture(widget) -> Image.Image:
    """The comparison layout as it is on the screen: rows of planes, and the 3D view."""
    from CaLIDReconstructLib import LaxLayout
    from host.views import LayoutViews, ThreeDView

    views = LayoutViews(VIEW_PIXELS)
    panel = widget.panel.results
    panel.ui.compareButton.click()
    comparison = panel.comparison
    comparison.fill()
    rows = range(len(comparison.planes))
    height = len(rows) * (VIEW_PIXELS[1] + MARGIN) - MARGIN
    segmentation = panel.result.segmentation
    if segmentation is not None:
        segmentation.GetDisplayNode().SetOpacity3D(0.85)
        segmentation.GetDisplayNode().SetVisibility2D(False)
    view3d = ThreeDView("1", (VIEW_3D_WIDTH, height))
    view3d.node.SetBoxVisible(False)
    view3d.node.SetAxisLabelsVisible(False)
    view3d.node.SetBackgroundColor(*(value / 255 for value in BACKGROUND))
    view3d.node.SetBackgroundColor2(*(value / 255 for value in BACKGROUND))
    pictures = [[views.views[LaxLayout.viewTag(row, c)].pixels() for c in comparison.columns] for row in rows]
    left = len(comparison.columns) * (VIEW_PIXELS[0] + MARGIN) + MARGIN
    canvas = Image.new("RGB", (left + VIEW_3D_WIDTH + MARGIN, height + HEAD + MARGIN), BACKGROUND)
    for row, line in enumerate(pictures):
        for index, pixels in enumerate(line):
            corner = (index * (VIEW_PIXELS[0] + MARGIN) + MARGIN, row * (VIEW_PIXELS[1] + MARGIN) + HEAD)
            canvas.paste(Image.fromarray(pixels), corner)
            write(canvas, (corner[0] + 6, corner[1] + 4), comparison.planes[row].name, 15)
    for index, column in enumerate(comparison.columns):
        title = comparison.heading(column)
        write(canvas, (index * (VIEW_PIXELS[0] + MARGIN) + MARGIN, 6), title, 16)
    right, up, normal = comparison.planes[min(2, len(rows) - 1)].sliceToRas[:3, :3].T
    towards = 0.8 * normal + 0.4 * right + 0.35 * up
    canvas.paste(Image.fromarray(view3d.pixels(towards=towards, up=up, zoom=2.3)), (left, HEAD))
    write(canvas, (left, 6), "ventricles and planes", 16)
    return canvas


def saveThumbnail(widget, path: Path) -> None:
    """The picture on the Sample Data module's button: a slice of the demo case's short-axis cine."""
    import slicer

    voxels = slicer.util.arrayFromVolume(widget.panel.parameters.inputNode)
    middle = voxels[len(voxels) // 2].astype(float)
    low, high = np.percentile(middle, [1, 99.5])
    gray = Image.fromarray((255 * np.clip((middle - low) / (high - low), 0, 1)).astype(np.uint8))
    width, height = THUMBNAIL_PIXELS
    scale = max(width / gray.width, height / gray.height)
    gray = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.LANCZOS)
    left, top = (gray.width - width) // 2, (gray.height - height) // 2
    gray.crop((left, top, left + width, top + height)).quantize(64).save(path, optimize=True)


def write(canvas: Image.Image, place: tuple[int, int], text: str, size: int) -> None:
    ImageDraw.Draw(canvas).text(place, text, fill=INK, font=ImageFont.load_default(size))


def saveError(application, widget, path: Path) -> None:
    """A picture of the panel when a long-axis image was chosen in place of the stack."""
    from CaLIDReconstructLib import LaxPlanes

    widget.panel.parameters.inputNode = LaxPlanes.acquiredPlanes(widget.panel.results.result.volume)[0].volume
    savePanel(application, widget, path)


def savePanel(application, widget, path: Path) -> None:
    """A picture of the panel with its result."""
    for _ in range(20):
        application.processEvents()
    pixmap = widget.parent.grab()
    pixmap.save(str(path))
    picture = Image.open(path).convert("RGB")
    used = np.flatnonzero((np.asarray(picture) != np.asarray(picture)[-1, -1]).any(axis=(1, 2)))
    picture = picture.crop((0, 0, picture.width, min(picture.height, used.max() + 16)))
    palettes = (picture.quantize(colors, dither=Image.Dither.NONE) for colors in (256, 128, 96, 64, 48))
    save(path, ((palette, {}) for palette in palettes))


def saveViews(picture: Image.Image, path: Path) -> None:
    """A JPEG: shaded surfaces do not fit into a palette, as a panel's few colors do."""
    save(path, ((picture, {"quality": quality, "subsampling": 0}) for quality in (92, 88, 84, 80, 75)))


def save(path: Path, versions: Iterable[tuple[Image.Image, dict[str, int]]]) -> None:
    """Write the first of ever smaller versions, with their options, that is below the limit."""
    for picture, options in versions:
        picture.save(path, optimize=True, **options)
        if path.stat().st_size <= LARGEST_BYTES:
            break
    print(f"{path.name}: {picture.width} x {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
