"""Damage in compressed pixels: what comes out of a damaged codestream does not take as many bytes as are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from calid.images.codestreams import fits
from calid.images.files import read_stack
from pydicom.encaps import encapsulate, generate_frames

DEMO = Path(__file__).resolve().parents[2] / "CaLIDReconstruct" / "Resources" / "Demo" / "sax.seq.nrrd"

PLACES = np.linspace(0.1, 0.9, 9)
"""Where a stream is damaged, as shares of it."""


@pytest.fixture(scope="module")
def images():
    """Three slices of the demo case, unsigned and of as many bits as the scanner gave."""
    return [image.astype(np.uint16) for image in read_stack(DEMO).voxels[0, 1:4]]


def coded(image, compressor, folder):
    """The file that GDCM makes of an image, and its codestream."""
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "coded.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(image[np.newaxis]))
    file = pydicom.dcmread(folder / "coded.dcm")
    return file, next(generate_frames(file.PixelData, number_of_frames=1))


def decoded(file, codestream, folder):
    """What GDCM makes of a codestream, or None where it refuses."""
    file.PixelData = encapsulate([codestream])
    file.save_as(folder / "damaged.dcm")
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "damaged.dcm")))[0]
    except RuntimeError:
        return None


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_whole_codestreams_fit_their_pixels(images, compressor, tmp_path):
    signed = images[0].astype(np.int16) - 300
    for image in (*images, signed, images[0][:50, :33]):
        _, codestream = coded(image, compressor, tmp_path)
        assert fits(codestream, image, 16)
        assert fits(codestream, image, 12)


@pytest.mark.parametrize(("compressor", "least"), [("JPEG", 1.0), ("JPEG2000", 0.75)])
def test_zeroed_bytes_that_the_decoder_passes_over_are_found(images, compressor, least, tmp_path):
    silent = found = 0
    for image in images:
        file, codestream = coded(image, compressor, tmp_path)
        for share in PLACES:
            damaged = bytearray(codestream)
            at = int(share * len(damaged))
            damaged[at : at + 40] = bytes(40)
            pixels = decoded(file, bytes(damaged), tmp_path)
            if pixels is not None and not np.array_equal(pixels, image):
                silent += 1
                found += not fits(bytes(damaged), pixels, 12)
    assert silent >= 20
    assert found >= least * silent


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_a_header_that_is_cut_short_does_not_fit(images, compressor, tmp_path):
    _, codestream = coded(images[0], compressor, tmp_path)
    assert not fits(codestream[:60], images[0], 16)


def test_what_is_not_known_is_not_refused(images):
    assert fits(
        b"\xff\xd8\xff\xc0\x00\x0b" + bytes(9) + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(50), images[0], 12
    )
    assert fits(b"something else", images[0], 12)
