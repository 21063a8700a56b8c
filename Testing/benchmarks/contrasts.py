"""What CaLID+ gains over linear interpolation on other contrasts: `python Testing/benchmarks/contrasts.py ACDC`.

Contrasts are made from labeled cines: inverted; late enhancement, with a nulled wall and a bright scar in it; dark
blood; a T1 map, which is noise where there is no signal. Every second slice is left out and made again; PSNR is that of
the left-out slices around the heart, of values between the 1st and 99.5th percentile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from calid.images.checks import findings
from calid.images.files import read_stack
from calid.run.reconstruct import upsample
from calid.run.settings import Settings
from calid.stack import Stack
from scipy import ndimage

KINDS = ("cine", "inverted", "late enhancement", "dark blood", "T1 map")
RV, MYOCARDIUM, LV = 1, 2, 3
MARGIN = 15


def pictured(kind: str, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) values from 0 to 1000 in another contrast; the image lies between 0 and 1."""

    def soft(mask: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(mask.astype(float), (0, 0.7, 0.7))

    wall, blood = soft(labels == MYOCARDIUM), soft(np.isin(labels, (RV, LV)))
    made = image
    if kind == "inverted":
        made = 1 - image
    elif kind == "late enhancement":
        scar = soft((labels == MYOCARDIUM) & _sector(labels))
        made = 0.8 * image * (1 - 0.8 * wall) * (1 - scar) + 0.95 * scar
    elif kind == "dark blood":
        made = image * (1 - 0.9 * blood) * (1 - wall) + np.clip(1.6 * image, 0, 1) * wall
    elif kind == "T1 map":
        is_air = ndimage.gaussian_filter(image, (0, 1, 1)) < 0.12
        made = np.where(is_air, rng.uniform(0, 1, image.shape), 0.2 + 0.5 * image)
    return np.round(1000 * made).astype(np.int16)


def _sector(labels: np.ndarray) -> np.ndarray:
    """A sixth of the circle around the left ventricle in each slice."""
    sector = np.zeros(labels.shape, bool)
    y, x = np.mgrid[: labels.shape[1], : labels.shape[2]]
    for index, image in enumerate(labels):
        if (image == LV).any():
            row, column = np.argwhere(image == LV).mean(axis=0)
            sector[index] = np.abs(np.degrees(np.arctan2(y - row, x - column)) - 30) < 30
    return sector


def gain_db(stack: Stack, box: tuple[slice, slice]) -> float:
    """How much better CaLID+ makes the left-out slices of a static stack than linear interpolation does."""
    voxels = stack.voxels[0]
    count = len(voxels) - (1 - len(voxels) % 2)
    affine = stack.affine.copy()
    affine[:3, 2] *= 2
    sparse = Stack(voxels[None, :count:2], affine, np.zeros(1))
    low, high = np.percentile(voxels, (1, 99.5))

    def shown(images: np.ndarray) -> np.ndarray:
        return np.clip((images[:, box[0], box[1]] - low) / (high - low), 0, 1)

    truth, found = shown(voxels[1:count:2]), []
    for method in ("calid+", "linear"):
        made = upsample(sparse, Settings(factor=2, method=method, align="off")).stack.voxels[0]
        error = ((shown(made[1::2]) - truth) ** 2).mean(axis=(1, 2))
        found.append(float(np.mean(-10 * np.log10(error))))
    return found[0] - found[1]


def main() -> None:
    """Print a row for each contrast."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("acdc", type=Path, help="folder with patientNNN/patientNNN_frameMM.nii.gz and _gt.nii.gz")
    parser.add_argument("--patients", type=int, nargs=2, default=(61, 80), metavar=("FIRST", "LAST"))
    options = parser.parse_args()
    gains: dict[str, list[float]] = {kind: [] for kind in KINDS}
    warned = dict.fromkeys(KINDS, 0)
    for number in range(options.patients[0], options.patients[1] + 1):
        label_path = min(options.acdc.rglob(f"patient{number:03d}_frame*_gt.nii.gz"))
        stack = read_stack(label_path.with_name(label_path.name.replace("_gt", "")))
        labels = np.asanyarray(nib.load(label_path).dataobj).transpose(2, 1, 0)
        rows, columns = (np.flatnonzero((labels > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
        box = tuple(slice(max(found[0] - MARGIN, 0), found[-1] + MARGIN) for found in (rows, columns))
        low, high = np.percentile(stack.voxels, (1, 99.5))
        image = np.clip((stack.voxels[0] - low) / (high - low), 0, 1)
        for kind in KINDS:
            made = stack.with_voxels(pictured(kind, image, labels, np.random.default_rng(number))[None])
            gains[kind].append(gain_db(made, box))
            warned[kind] += any(finding.code == "unusual-contrast" for finding in findings(made))
    print(f"{'contrast':18} {'patients':>8} {'gain dB':>8} {'worse in':>8} {'warned of':>9}")
    for kind, found in gains.items():
        worse = sum(gain < 0 for gain in found)
        print(f"{kind:18} {len(found):8} {np.mean(found):+8.2f} {worse:8} {warned[kind]:9}")


if __name__ == "__main__":
    main()
