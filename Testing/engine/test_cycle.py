"""Frames in the cardiac cycle: which cines close, and windows that keep every frame once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calid.run.windows import CONTEXT_FRAMES, spans_the_cycle, window_at, windows
from calid.stack import Stack


def beating(phases: np.ndarray, *, step_ms: float = 35.0, noise: float = 5.0) -> Stack:
    """A bright disc whose radius follows the phase of the beat (0 and 1 are end-diastole), with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-20:20, -20:20]
    radii = 9 + 5 * np.cos(2 * np.pi * phases)
    discs = 200 / (1 + np.exp(np.hypot(rows, columns) - radii[:, None, None]))
    voxels = discs[:, None] + noise * rng.standard_normal((len(phases), 1, 40, 40))
    return Stack(voxels, np.eye(4), step_ms * np.arange(len(phases)))


def test_a_whole_beat_closes():
    assert spans_the_cycle(beating(np.arange(25) / 25))
    assert spans_the_cycle(beating(np.arange(12) / 12, step_ms=70))


def test_half_a_beat_does_not_close():
    assert not spans_the_cycle(beating(np.arange(13) / 25))


def test_a_beat_without_its_end_does_not_close():
    assert not spans_the_cycle(beating(np.arange(17) / 25))


def test_several_beats_are_no_cycle_although_their_ends_are_alike():
    assert not spans_the_cycle(beating(3 * np.arange(75) / 75))


def test_frame_numbers_in_place_of_times_do_not_decide():
    assert spans_the_cycle(beating(np.arange(25) / 25, step_ms=1.0))


def test_the_beat_that_the_scanner_noted_decides():
    """Prospective triggering leaves out the end of diastole, where the heart is still: pictures cannot tell."""
    phases = np.linspace(0, 1, 25, endpoint=False)
    cine = beating(phases, step_ms=35)
    assert spans_the_cycle(replace(cine, beat_ms=880.0))
    assert not spans_the_cycle(replace(cine, beat_ms=1050.0))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_single_phases_are_no_cycle(frames):
    assert not spans_the_cycle(beating(np.zeros(frames)))


@pytest.mark.parametrize("is_periodic", [False, True])
@pytest.mark.parametrize(("num_frames", "size"), [(1, 1), (7, 1), (25, 10), (40, 17), (33, 16), (9, 3)])
def test_every_frame_is_kept_once_and_no_window_is_too_long(num_frames, size, is_periodic):
    cut = windows(num_frames=num_frames, size=size, is_periodic=is_periodic)
    assert [frame for window in cut for frame in window.frames[window.kept]] == list(range(num_frames))
    assert max(len(window.frames) for window in cut) <= size
    assert all(len(set(window.frames)) == len(window.frames) for window in cut)


def test_a_window_sees_its_neighbors_around_the_end_of_a_cycle_only():
    around = window_at(0, num_frames=30, size=16, is_periodic=True)
    assert around.frames[:CONTEXT_FRAMES] == (26, 27, 28, 29)
    assert not around.is_periodic
    assert window_at(0, num_frames=30, size=16).frames[0] == 0


@pytest.mark.parametrize("is_periodic", [False, True])
@pytest.mark.parametrize(("num_frames", "size"), [(1, 16), (10, 16), (25, 16), (25, 32), (25, 480), (32, 48), (70, 32)])
def test_networks_that_halve_time_get_a_multiple_and_every_frame_is_kept_once(num_frames, size, is_periodic):
    cut = windows(num_frames=num_frames, size=size, is_periodic=is_periodic, multiple=16)
    assert [frame for window in cut for frame in window.frames[window.kept]] == list(range(num_frames))
    assert all(len(window.frames) % 16 == 0 and len(window.frames) <= size for window in cut)
    assert not any(window.is_periodic for window in cut)


def test_they_see_a_cycle_with_frames_around_it_and_a_part_with_its_last_frame_again():
    around = window_at(0, num_frames=25, size=480, is_periodic=True, multiple=16)
    assert (len(around.frames), around.kept) == (48, slice(11, 36))
    assert around.frames[8:14] == (22, 23, 24, 0, 1, 2)
    assert around.frames[33:40] == (22, 23, 24, 0, 1, 2, 3)
    assert window_at(0, num_frames=14, size=480, multiple=16).frames == (*range(14), 13, 13)


def test_one_window_of_all_frames_is_the_cycle_itself():
    whole = window_at(0, num_frames=25, size=100, is_periodic=True)
    assert (whole.is_periodic, whole.frames, whole.num_kept) == (True, tuple(range(25)), 25)
