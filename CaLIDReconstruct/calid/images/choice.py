"""Which images of a study are the short axis: the evidence, the choice, its reasons, and how sure it is.

Asked in this order, as a reader of the study would: what moves (a cine before two phases before images of unknown time
before stills, and a cine's contrast before any other); which direction the long-axis views cut at a right angle; which
is more than a few planes; and of several acquisitions in one direction the usual pulse sequence, the most slices, the
most images, the last acquired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calid.errors import InputError, SettingsError
from calid.images.groups import MAX_VIEW_POSITIONS, Group

MIN_LEAD_DEGREES = 10.0
"""By so much nearer to a right angle must the long-axis views cut the short axis than any other stack."""

RIGHT_ANGLE_DEGREES = 15.0
"""Views that miss a right angle by less than this cut a stack as long-axis views cut the short axis."""

MOTIONS = {
    "cine": "a cine",
    "phases": "two phases of the heart beat",
    "unclear": "several images of unknown time",
    "still": "still images",
    "repeats": "images of one moment in many beats or contrasts",
}
"""What each motion is called, the one that counts most first."""

Role = Literal["short axis", "long axis", "left out"]
Confidence = Literal["high", "medium", "low"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a group is taken for.

    Args:
        group: the images.
        role: "short axis", "long axis" or "left out".
        reason: why, in words that continue a sentence.
    """

    group: Group
    role: Role
    reason: str


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen of a study.

    Args:
        verdicts: what every group is taken for, in the order of their series.
        reasons: why that one is the short axis, in words.
        confidence: "high" where the views prove it or nothing else could be meant, "low" where it is a guess.
        doubt: the error that says why there is no short axis; None where there is one.
    """

    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...] = ()
    confidence: Confidence = "low"
    doubt: InputError | None = None

    @property
    def sax(self) -> Group:
        """The short axis.

        Raises:
            InputError: the doubt, if there is any.
        """
        if self.doubt is not None:
            raise self.doubt
        return self._of("short axis")[0]

    @property
    def views(self) -> list[Group]:
        """The groups that hold long-axis views."""
        return self._of("long axis")

    @property
    def left_out(self) -> list[Verdict]:
        """Groups that are neither short axis nor long-axis views, with the reason."""
        return [verdict for verdict in self.verdicts if verdict.role == "left out"]

    def _of(self, role: Role) -> list[Group]:
        return [verdict.group for verdict in self.verdicts if verdict.role == role]


def choose(groups: Sequence[Group], series: str | None = None) -> Choice:
    """Choose the short axis of a study, and say of each group what it is taken for.

    Args:
        groups: all images, at least one group.
        series: number or UID of a series that belongs to the short axis; None leaves the choice to the evidence.

    Raises:
        SettingsError: "unknown-series" if no group has that series.
    """
    if series is not None:
        sax = _with_series(groups, series).latest()
        return Choice(_verdicts(groups, sax), (f"series {series} was asked for",), "high")
    reasons: list[str] = []
    candidates = _moving_most(groups, reasons)
    candidates = _at_right_angles(candidates, groups, reasons)
    directions = _directions(candidates)
    if len(directions) > 1:
        stacks = [part for part in directions if any(len(group.places) > MAX_VIEW_POSITIONS for group in part)]
        if len(stacks) != 1:
            return Choice(tuple(_in_doubt(group, candidates) for group in groups), doubt=_several_stacks(candidates))
        reasons.append(f"no other stack of this kind has more than {MAX_VIEW_POSITIONS} slices")
        directions = stacks
    sax = _of_one_direction(directions[0], reasons).latest()
    return Choice(_verdicts(groups, sax), tuple(reasons), _confidence(sax, groups))


# --- The questions ----------------------------------------------------------------------------------------------------


def _moving_most(groups: Sequence[Group], reasons: list[str]) -> list[Group]:
    """The stacks among the groups that show most of the heart's motion; without a stack the best single planes."""
    stacks = [group for group in groups if len(group.places) > 1] or list(groups)
    ranks = [_motion_rank(group) for group in stacks]
    best = [group for group, rank in zip(stacks, ranks, strict=True) if rank == max(ranks)]
    if len(groups) == 1:
        reasons.append("there is nothing else")
    elif len(best) == 1:
        reasons.append(f"it is the only stack that is {called(best[0])}")
    else:
        reasons.append(f"it is {called(best[0])}")
    return best


def _motion_rank(group: Group) -> tuple[bool, bool, int]:
    """MR magnitude images of a cine's contrast first, and of these what moves."""
    return group.is_magnitude, not group.subject, -list(MOTIONS).index(group.motion)


def called(group: Group) -> str:
    """What a group shows, in words."""
    return f"{group.subject} ({MOTIONS[group.motion]})" if group.subject else MOTIONS[group.motion]


def _at_right_angles(candidates: list[Group], groups: Sequence[Group], reasons: list[str]) -> list[Group]:
    """The candidates of the direction that long-axis views cut at a right angle, where that tells one from the others.

    A group of a few planes is asked as a view of the others and as a candidate itself.
    """
    if not candidates:
        return candidates
    misses = [miss_of_right_angle(group, groups) for group in candidates]
    best = candidates[int(np.argmin(misses))]
    rivals = [miss for group, miss in zip(candidates, misses, strict=True) if not group.is_beside(best)]
    if min(misses) < RIGHT_ANGLE_DEGREES:
        views = views_of(best, groups)
        angle = float(np.mean([view.tilt_degrees(best) for view in views]))
        count = sum(len(view.places) for view in views)
        reasons.append(f"{count} long-axis view{'s cut' if count > 1 else ' cuts'} it at {angle:.0f} degrees")
    if rivals and min(rivals) - min(misses) < MIN_LEAD_DEGREES:
        return candidates
    return [group for group in candidates if group.is_beside(best)]


def views_of(stack: Group, groups: Sequence[Group]) -> list[Group]:
    """The groups that may be long-axis views of a stack: of its kind, a few planes, in another direction."""
    return [group for group in groups if group is not stack and not _why_no_view(group, stack)]


def miss_of_right_angle(stack: Group, groups: Sequence[Group]) -> float:
    """By how many degrees the long-axis views miss a right angle with a stack on average; 90 without any."""
    angles = [view.tilt_degrees(stack) for view in views_of(stack, groups)]
    return 90.0 - float(np.mean(angles)) if angles else 90.0


def _directions(candidates: Sequence[Group]) -> list[list[Group]]:
    """The candidates, those of one direction together."""
    found: list[list[Group]] = []
    for group in candidates:
        beside = next((part for part in found if part[0].is_beside(group)), None)
        if beside is None:
            found.append([group])
        else:
            beside.append(group)
    return found


def _of_one_direction(candidates: Sequence[Group], reasons: list[str]) -> Group:
    """The best of several acquisitions of the same planes."""
    questions = (
        ("it has the usual pulse sequence of a cine (SSFP)", lambda group: group.is_ssfp),
        ("it has the most slices", lambda group: len(group.places)),
        ("it has the most images", lambda group: len(group.images)),
        ("it was acquired last", lambda group: max(group.series)),
    )
    left = list(candidates)
    for reason, rank in questions:
        best = max(map(rank, left))
        kept = [group for group in left if rank(group) == best]
        if len(kept) < len(left):
            reasons.append(reason)
            left = kept
    return left[0]


def _confidence(sax: Group, groups: Sequence[Group]) -> Confidence:
    views = views_of(sax, groups)
    is_right = bool(views) and miss_of_right_angle(sax, groups) < RIGHT_ANGLE_DEGREES
    if sax.motion in ("repeats", "still", "unclear") and len(groups) > 1:
        return "low"
    if (is_right and (len(views) > 1 or len(sax.places) > MAX_VIEW_POSITIONS)) or len(groups) == 1:
        return "high"
    others = [group for group in groups if group is not sax and len(group.places) > 1]
    is_seen_otherwise = bool(views) and not is_right
    return "medium" if (len(sax.places) > MAX_VIEW_POSITIONS and not is_seen_otherwise) or not others else "low"


def _several_stacks(candidates: Sequence[Group]) -> InputError:
    named = "; ".join(
        f"{len(group.images)} images of {group.description} (series {numbers_of(group)})" for group in candidates
    )
    message = f"There are cine stacks in different directions, and no long-axis views tell the short axis: {named}."
    if candidates[0].motion != "cine":
        message = message.replace("cine stacks", "stacks")
    remedy = "Name a series of the short axis with --series, or add the long-axis views."
    return InputError("several-stacks", message, remedy)


def _in_doubt(group: Group, candidates: Sequence[Group]) -> Verdict:
    is_candidate = any(group is candidate for candidate in candidates)
    return Verdict(group, "left out", "it may be the short axis" if is_candidate else called(group))


def _with_series(groups: Sequence[Group], series: str) -> Group:
    """The group that holds most images of a series, which at its positions comes before repeats of it."""
    counts = [sum(_is_series(image.series, series) for image in group.images) for group in groups]
    if not any(counts):
        known = ", ".join(dict.fromkeys(f"{one[0]:g}" for group in groups for one in group.series))
        message = f"There is no series {series} with a place in space; there are {known}."
        raise SettingsError("unknown-series", message, "Give a series number or UID that `calid info FOLDER` lists.")
    group = groups[int(np.argmax(counts))]
    asked = {
        place: [take for take in takes if _is_series(take.series, series)] for place, takes in enumerate(group.places)
    }
    takes = (asked[place] or takes for place, takes in enumerate(group.places))
    return replace(group, takes=tuple(take for place in takes for take in place))


def _is_series(series: tuple[float, str], asked: str) -> bool:
    return asked in (series[1], f"{series[0]:g}")


# --- What everything else is ------------------------------------------------------------------------------------------


def _verdicts(groups: Sequence[Group], sax: Group) -> tuple[Verdict, ...]:
    chosen = {id(take) for take in sax.takes}
    found = []
    for group in groups:
        if any(id(take) in chosen for take in group.takes):
            found.append(Verdict(sax, "short axis", called(sax)))
            rest = tuple(take for take in group.takes if id(take) not in chosen)
            if rest:
                found.append(
                    Verdict(
                        replace(group, takes=rest),
                        "left out",
                        "the same slices, not corrected for distortion or acquired before",
                    )
                )
            continue
        reason = _why_no_view(group, sax)
        found.append(Verdict(group, "left out" if reason else "long axis", reason or called(group)))
    return tuple(found)


def _why_no_view(group: Group, sax: Group) -> str:
    """In words; empty if the group holds long-axis views."""
    if group.is_beside(sax):
        what = "another acquisition" if group.is_alike(sax) else called(group)
        return f"{what}, in the planes of the short axis"
    if not group.is_alike(sax):
        return f"another kind of image than the short axis, {called(group)}"
    if len(group.places) > MAX_VIEW_POSITIONS:
        return "another stack of parallel planes"
    if group.references != sax.references and group.references and sax.references:
        return "not in the same frame of reference as the short axis"
    return ""


def numbers_of(group: Group) -> str:
    """The numbers of a group's series, in words; whole ranges short."""
    numbers = sorted({int(number) for number, _ in group.series})
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
