"""One cine, three doors: read from DICOM, from a file and from Slicer's nodes, it becomes the same voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import file_phantoms
import numpy as np
import phantoms
import pytest
from calid.images.files import read_stack, write_stack
from calid.stack import Stack
from CaLIDReconstructLib import Nodes

FRAMES, STEP_MS = 10, 35.0


def cine() -> Stack:
    """A small cine that closes like a cycle, whatever its beat is."""
    rng = np.random.default_rng(0)
    still = rng.integers(200, 900, (3, 32, 40))
    moving = 60 * np.sin(2 * np.pi * np.arange(FRAMES) / FRAMES)[:, None, None, None] * rng.random((3, 32, 40))
    matrix = phantoms.affine((1.4, 1.4, 9.0), phantoms.rotation(3), np.array([-20.0, 35.0, 7.0]))
    return Stack((still + moving).astype(np.int16), matrix, np.arange(FRAMES) * STEP_MS)


@pytest.mark.parametrize(("beat_ms", "is_cycle"), [(FRAMES * STEP_MS, True), (900.0, False)])
def test_a_cine_has_the_same_times_beat_and_voxels_through_every_door(tmp_path: Path, beat_ms, is_cycle):
    torch = pytest.importorskip("torch")
    from calid.run.reconstruct import upsample
    from calid.run.settings import Settings

    torch.set_num_threads(1)
    file_phantoms.write_stack(tmp_path / "dicom", cine(), changes=lambda _t, _z: {"NominalInterval": beat_ms})
    dicom = read_stack(tmp_path / "dicom")
    write_stack(dicom, tmp_path / "cine.nrrd")
    _, sequence = Nodes.addStack(dicom, "cine")
    stacks = [dicom, read_stack(tmp_path / "cine.nrrd"), Nodes.stackFromSequence(sequence)]
    for stack in stacks:
        np.testing.assert_array_equal(stack.voxels, dicom.voxels)
        np.testing.assert_allclose(stack.affine, dicom.affine, atol=1e-9)
        np.testing.assert_allclose(stack.frame_times_ms, dicom.frame_times_ms)
        assert (stack.beat_ms, stack.times_guess) == (beat_ms, "")

    settings = Settings(factor=2, steps=1, device="cpu")
    made = [upsample(replace(stack, affine=dicom.affine), settings).stack for stack in stacks]
    assert made[0].provenance["model"] == "calid-2dt"
    assert [dense.provenance["is_periodic"] for dense in made] == [is_cycle] * 3
    for dense in made[1:]:
        np.testing.assert_array_equal(dense.voxels, made[0].voxels)
