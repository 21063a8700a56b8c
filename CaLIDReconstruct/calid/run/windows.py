"""How the frames of a stack lie in the cardiac cycle, and how a long cine is cut into windows of frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from calid.stack import BEAT_LIMITS_MS, MAX_FRAMES_OFF, NUMBERED_MS, Stack

MIN_CINE_FRAMES = 8  # fewer are phases, end-diastole and end-systole say: the heart goes far from one to the next
CLOSING_LIMIT = 1.25  # of the largest difference of frames that follow each other
CONTEXT_FRAMES = 4  # seen on both sides of a window, and made again in the next
WINDOW_FRAMES = 64  # made together at most: a whole beat (50 in the UK Biobank), and what networks can halve six times


def is_cine(num_frames: int) -> bool:
    """Whether so many frames show a course of time."""
    return num_frames >= MIN_CINE_FRAMES


def spans_the_cycle(stack: Stack) -> bool:
    """Whether the last frame of a cine is followed by its first: the frames show one whole beat.

    Two things must hold. The frames, with the mean interval after the last, take as long as one beat: the one that the
    scanner noted, else any that a heart can have (a recording of several beats takes longer). And the last frame is
    like the first, no more different than the most different frames that do follow each other; a sequence that was cut
    is not.
    """
    if not is_cine(stack.num_frames):
        return False
    first, *_, last = stack.frame_times_ms
    interval = float(last - first) / (stack.num_frames - 1)
    return _is_one_beat(interval, stack.num_frames, noted_ms=stack.beat_ms) and closes(stack.voxels)


def _is_one_beat(interval_ms: float, frames: int, *, noted_ms: float | None) -> bool:
    length = interval_ms * frames
    if interval_ms <= NUMBERED_MS:  # numbers say nothing of time
        return True
    if noted_ms:
        return abs(length - noted_ms) <= MAX_FRAMES_OFF * interval_ms
    return BEAT_LIMITS_MS[0] <= length <= BEAT_LIMITS_MS[1]


def closes(voxels: np.ndarray) -> bool:
    """Whether the last frame of voxels (T, ...) is as like the first as frames that follow each other are."""
    steps = [_difference(a, b) for a, b in pairwise(voxels)]
    return _difference(voxels[-1], voxels[0]) <= CLOSING_LIMIT * max(steps)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())


@dataclass(frozen=True)
class Window:
    """Frames that are made together.

    Args:
        frames: their indices in the cine, in order of time.
        kept: which of them are kept; the others are there for their influence.
        is_periodic: whether they are the whole cycle.
    """

    frames: tuple[int, ...]
    kept: slice
    is_periodic: bool

    @property
    def num_kept(self) -> int:
        """Number of its frames that are kept."""
        return self.kept.stop - self.kept.start


def window_at(
    start: int,
    *,
    num_frames: int,
    size: int,
    is_periodic: bool = False,
    context: int = CONTEXT_FRAMES,
    multiple: int = 1,
) -> Window:
    """The window of at most `size` frames that keeps frame `start` and those after it.

    Args:
        start: the first frame to keep.
        num_frames: number of frames of the cine.
        size: number of frames that can be made together, a multiple of `multiple`.
        is_periodic: whether the last frame is followed by the first.
        context: number of frames to see on both sides, at most a quarter of `size`.
        multiple: what the number of frames has to be a multiple of, for networks that halve time and cannot be told
            that a window is a whole cycle; 1 for those that take any number and can.

    >>> window_at(6, num_frames=12, size=8).frames
    (4, 5, 6, 7, 8, 9, 10, 11)
    >>> window_at(8, num_frames=12, size=8, is_periodic=True).frames
    (6, 7, 8, 9, 10, 11, 0, 1)
    >>> window_at(0, num_frames=5, size=8, is_periodic=True, multiple=8).frames
    (4, 0, 1, 2, 3, 4, 0, 1)
    >>> window_at(0, num_frames=5, size=8, multiple=8).frames
    (0, 1, 2, 3, 4, 4, 4, 4)
    """
    window = _window_at(start, num_frames=num_frames, size=size, is_periodic=is_periodic, context=context)
    if multiple == 1:
        return window
    if not window.is_periodic:
        missing = -len(window.frames) % multiple
        return replace(window, frames=window.frames + window.frames[-1:] * missing)
    length = min(-(-(num_frames + 2 * context) // multiple) * multiple, size)
    before = (length - num_frames) // 2
    around = tuple(frame % num_frames for frame in range(-before, length - before))
    return Window(around, slice(before, before + num_frames), is_periodic=False)


def _window_at(start: int, *, num_frames: int, size: int, is_periodic: bool, context: int) -> Window:
    """The window of any number of frames."""
    if size >= num_frames:
        return Window(tuple(range(num_frames)), slice(0, num_frames), is_periodic)
    context = min(context, size // 4)
    stop = min(start + size - 2 * context, num_frames)
    seen = range(start - context, stop + context)
    if is_periodic:
        frames = tuple(frame % num_frames for frame in seen)
    else:
        frames = tuple(frame for frame in seen if 0 <= frame < num_frames)
    first = frames.index(start)
    return Window(frames, slice(first, first + stop - start), is_periodic=False)


def windows(
    *,
    num_frames: int,
    size: int = WINDOW_FRAMES,
    is_periodic: bool = False,
    context: int = CONTEXT_FRAMES,
    multiple: int = 1,
) -> list[Window]:
    """The windows of a whole cine, see `window_at`; every frame is kept once, in order."""
    made, start = [], 0
    while start < num_frames:
        made.append(
            window_at(
                start, num_frames=num_frames, size=size, is_periodic=is_periodic, context=context, multiple=multiple
            )
        )
        start += made[-1].num_kept
    return made
