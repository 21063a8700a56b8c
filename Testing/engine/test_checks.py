"""What a stack must be told about: the blocking findings are in test_damaged_input.py, the milder ones here."""

from __future__ import annotations

from dataclasses import replace

import file_phantoms
import numpy as np
import pytest
from calid.errors import InputError
from calid.geometry import plane_of
from calid.images.assembly import count_findings, phase_findings, plane_findings
from calid.images.checks import check_stack, findings, warnings
from calid.stack import Stack
from hypothesis import given
from hypothesis import strategies as st


def good(**options) -> Stack:
    return file_phantoms.noisy_stack((5, 5, 18, 24), **options)


def codes(stack: Stack) -> list[tuple[str, str]]:
    return [(finding.severity, finding.code) for finding in findings(stack)]


@given(
    seed=st.integers(0, 999),
    pixel_mm=st.floats(0.5, 3.0),
    gap_ratio=st.floats(1.6, 12.0),
    step_ms=st.floats(5, 90),
)
def test_a_plausible_stack_in_any_direction_gets_no_finding(seed, pixel_mm, gap_ratio, step_ms):
    spacing = (pixel_mm, pixel_mm, pixel_mm * gap_ratio)
    assert findings(good(seed=seed, spacing_mm=spacing, step_ms=step_ms)) == []


def test_a_slice_that_is_a_copy_of_another_is_worth_a_warning():
    voxels = good().voxels.copy()
    voxels[:, 3] = voxels[:, 2]
    stack = good().with_voxels(voxels)
    assert codes(stack) == [("warning", "repeated-slice")]
    assert "Slice 4" in findings(stack)[0].message
    check_stack(stack)


def test_a_frame_that_is_a_copy_of_another_is_worth_a_warning():
    voxels = good().voxels.copy()
    voxels[1] = voxels[0]
    assert codes(good().with_voxels(voxels)) == [("warning", "repeated-frame")]


@pytest.mark.parametrize("step_ms", [0.0335, 1000.0, 33_500.0])
def test_times_in_another_unit_are_worth_a_warning(step_ms):
    assert codes(good(step_ms=step_ms)) == [("warning", "implausible-frame-times")]


def test_guessed_frame_times_are_worth_a_warning_with_their_guess():
    stack = replace(good(step_ms=1.0), times_guess="frame numbers")
    assert codes(stack) == [("warning", "guessed-frame-times")]
    assert "frame numbers" in findings(stack)[0].message


def test_warnings_leave_out_what_blocks_a_run_and_harmless_findings_do_not_block():
    voxels = good().voxels.copy()
    voxels[1] = voxels[0]
    stack = good(spacing_mm=(1.5, 1.5, 1.5)).with_voxels(voxels)
    assert [finding.code for finding in warnings(stack)] == ["repeated-frame"]
    with pytest.raises(InputError, match="apart"):
        check_stack(stack)
    check_stack(stack, harmless=["already-isotropic"])


def test_generated_slices_in_the_input_are_worth_a_warning():
    stack = replace(good(), generated=np.array([False, True, False, True, False]))
    assert codes(stack) == [("warning", "generated-input")]
    assert "2 of 5" in findings(stack)[0].message


def test_end_diastole_and_end_systole_alone_may_lie_far_apart():
    frames = good().frames(0, 3)
    assert findings(replace(frames, frame_times_ms=np.array([0.0, 40.0, 330.0]))) == []


def test_all_that_is_wrong_is_found_and_the_first_is_raised():
    voxels = good().voxels.astype(float)
    voxels[0, 0, 0, 0] = np.nan
    stack = replace(good(spacing_mm=(1.5, 1.5, 1.5)), voxels=voxels)
    assert codes(stack) == [("error", "already-isotropic"), ("error", "nan-voxels")]
    with pytest.raises(InputError, match=r"^heart\.nrrd: The slices are 1\.50 mm apart") as error:
        check_stack(stack, source="heart.nrrd")
    assert error.value.code == "already-isotropic"


@pytest.mark.parametrize(
    ("voxels", "code"),
    [
        (np.zeros((0, 5, 18, 24), np.int16), "no-voxels"),
        (np.zeros((1, 5, 18, 24), np.complex64), "complex-pixels"),
        (np.full((1, 5, 18, 24), "x"), "unsupported-voxels"),
    ],
)
def test_voxels_that_cannot_be_looked_at_are_the_only_finding(voxels, code):
    stack = Stack(voxels, good().affine, np.arange(float(len(voxels))))
    assert codes(stack) == [("error", code)]


@pytest.mark.parametrize("lowest", [-1.0, 0.5])
def test_a_stack_of_two_values_is_a_label_map_whatever_they_are(lowest):
    voxels = np.where(good().voxels % 2, lowest, 9.0)
    assert codes(good().with_voxels(voxels)) == [("error", "label-map")]


# --- Loose images -----------------------------------------------------------------------------------------------------


def test_a_pixel_spacing_that_was_rounded_is_the_same():
    planes = [plane_of(good(), index) for index in range(5)]
    rounded = [
        replace(plane, spacing_mm=np.array([value] * 2))
        for plane, value in zip(planes, [1.5625, 1.563] * 2 + [1.562], strict=True)
    ]
    assert plane_findings(rounded, list("abcde")) == []
    other = [*rounded[:4], replace(planes[4], spacing_mm=np.array([1.57] * 2))]
    assert [finding.code for finding in plane_findings(other, list("abcde"))] == ["mixed-pixel-spacing"]


def test_planes_and_phases_of_a_good_stack_fit():
    planes = [plane_of(good(), index) for index in range(5)]
    assert plane_findings(planes, list("abcde")) == []
    assert plane_findings(planes[:1], ["a"]) == []
    assert phase_findings([good().frame_times_ms] * 5, list("abcde")) == []
    assert count_findings([25, 25, 25], list("abc")) == []


@given(removed=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_slice_that_is_missing_between_others_is_noticed(removed, seed):
    stack = file_phantoms.noisy_stack((1, 6, 18, 24), seed=seed)
    planes = [plane_of(stack, index) for index in range(6) if index != removed]
    found = plane_findings(planes, list("abcde"))
    assert [finding.code for finding in found] == ["missing-slice"]
    assert f"Gap {removed} of 4" in found[0].message


@given(missing=st.integers(0, 24))
def test_the_frame_that_is_missing_is_named(missing):
    times = 33.0 * np.arange(25)
    found = phase_findings([times, np.delete(times, missing), times], list("abc"))
    assert [finding.code for finding in found] == ["missing-frame"]
    assert f"frame {missing + 1} is missing" in found[0].message


def test_two_planes_at_one_position_are_duplicates():
    planes = [plane_of(good(), index) for index in (0, 1, 1, 2)]
    assert [finding.code for finding in plane_findings(planes, list("abcd"))] == ["duplicate-slices"]


@given(shift_ms=st.floats(0, 6), frames=st.integers(4, 30))
def test_two_acquisitions_mixed_in_one_slice_are_noticed(shift_ms, frames):
    once = 33.0 * np.arange(frames)
    mixed = np.sort(np.concatenate([once, once + shift_ms]))
    assert [finding.code for finding in phase_findings([mixed, mixed], ["a", "b"])] == ["duplicate-frames"]


def test_a_few_chosen_phases_may_lie_unevenly_but_not_at_one_time():
    chosen = np.array([0.0, 40.0, 330.0])
    assert phase_findings([chosen, chosen], ["a", "b"]) == []
    again = np.array([0.0, 330.0, 330.2])
    assert [finding.code for finding in phase_findings([again, again], ["a", "b"])] == ["duplicate-frames"]


# The heart beats during six breath-holds of a real examination, in milliseconds, and a cine of 25 phases in each.
BEATS_MS = np.array([831.0, 814, 776, 829, 860, 863])
SHARES = np.arange(25) / 25


@pytest.mark.parametrize("beats_ms", [BEATS_MS, None])
def test_breath_holds_at_different_heart_rates_show_the_same_phases(beats_ms):
    assert phase_findings(list(np.outer(BEATS_MS, SHARES)), list("abcdef"), beats_ms) == []


def test_frames_that_were_counted_from_the_trigger_are_the_same_at_any_heart_rate():
    assert phase_findings([33.0 * np.arange(20)] * 6, list("abcdef"), BEATS_MS) == []


@given(slices=st.integers(2, 8), frames=st.integers(8, 30), data=st.data())
def test_slices_that_each_lack_another_frame_are_told_apart(slices, frames, data):
    """As many frames in every slice, so that their numbers say nothing."""
    missing = data.draw(st.lists(st.integers(0, frames - 1), min_size=slices, max_size=slices, unique=True))
    times = 33.0 * np.arange(frames)
    found = phase_findings([np.delete(times, index) for index in missing], [str(index) for index in missing])
    assert [finding.code for finding in found] in (["missing-frame"], ["different-phases"])


@pytest.mark.parametrize("beats_ms", [BEATS_MS, None])
@pytest.mark.parametrize("odd", range(6))
@pytest.mark.parametrize(
    ("change", "words"), [(lambda times: times + 400, "starts 400.0 ms"), (lambda times: 0.4 * times, "Frame 25 of")]
)
def test_a_slice_of_other_phases_is_named_with_what_was_measured(beats_ms, odd, change, words):
    times = list(np.outer(BEATS_MS, SHARES))
    times[odd] = change(times[odd])
    (found,) = phase_findings(times, list("abcdef"), beats_ms)
    assert found.code == "different-phases"
    assert words in found.message
    assert f"slice {odd + 1} of 6" in found.message.lower()


def test_a_slice_that_covers_four_fifths_of_its_noted_beat_shows_other_phases():
    times = list(np.outer(BEATS_MS, SHARES))
    times[2] = 0.8 * times[2]
    assert [finding.code for finding in phase_findings(times, list("abcdef"), BEATS_MS)] == ["different-phases"]


@pytest.mark.parametrize(("late_ms", "codes"), [(40.0, []), (60.0, ["different-phases"])])
def test_still_slices_may_lie_fifty_milliseconds_apart(late_ms, codes):
    times = [np.array([time]) for time in (500.0, 500.0, 500.0 + late_ms, 500.0)]
    found = phase_findings(times, list("abcd"))
    assert [finding.code for finding in found] == codes
    assert all("Slice 3 of 4 (c)" in finding.message for finding in found)


def test_a_single_slice_may_leave_frames_out():
    assert phase_findings([np.array([0.0, 30, 60, 120, 150])], ["view"]) == []
