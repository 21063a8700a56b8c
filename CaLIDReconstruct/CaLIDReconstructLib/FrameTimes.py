"""When the frames of a sequence were taken: read from wherever the importer that made the sequence has put it.

| made by | times are in |
|---|---|
| this module | the sequence's attribute `CaLID.FrameTimesMs` |
| MultiVolumeImporter | the sequence's attributes `MultiVolume.FrameLabels` and `...FrameIdentifyingDICOMTagUnits` |
| DICOMImageSequencePlugin | each data node's attribute `DICOM.triggerTime`, in ms |
| files, other modules | the index values, where the index unit is one of time |

Whatever is none of these is a number and no time: an index without a unit counts frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .DicomSources import nominalBeatMs

MILLISECONDS = {"ms": 1.0, "msec": 1.0, "s": 1000.0, "sec": 1000.0}
FRAME_TIMES = "CaLID.FrameTimesMs"
GUESSED = "CaLID.GuessedTimes"
BEAT = "CaLID.BeatMs"
NUMBERED = "frame numbers"
TRIGGER_TIME = "DICOM.triggerTime"
FRAME_LABELS = "MultiVolume.FrameLabels"
TAG = "MultiVolume.FrameIdentifyingDICOMTagName"
UNIT = "MultiVolume.FrameIdentifyingDICOMTagUnits"
TIME_TAGS = ("Time", "TriggerTime", "AcquisitionTime", "ContentTime", "SeriesTime", "DeltaStartTime")
"""What MultiVolumeImporter tells the frames of a cine apart by; EchoTime, in ms as well, is no time in the beat."""

COUNTING_TAGS = ("", "TemporalPositionIdentifier", "CardiacCycle", "NominalPercentageOfCardiacPhase")


@dataclass(frozen=True)
class FrameTimes:
    """The times of a sequence's items.

    Args:
        ms: (T,) in the order of the items, which need not be that of time; None where only numbers are known.
        differsBy: what the frames differ by where that is not time, such as "EchoTime"; else empty.
        guess: how the times were guessed, or that there are numbers only; empty where they are known.
    """

    ms: np.ndarray | None
    differsBy: str = ""
    guess: str = ""

    @property
    def areSorted(self) -> bool:
        """Whether there are times and they increase from item to item."""
        return self.ms is not None and bool((np.diff(self.ms) > 0).all())


def frameTimes(sequence) -> FrameTimes:
    """The times of a sequence's items, in the order of the items."""
    count = sequence.GetNumberOfDataNodes()
    own = _numbers((sequence.GetAttribute(FRAME_TIMES) or "").split(","), count)
    if own is not None:
        return FrameTimes(own, guess=sequence.GetAttribute(GUESSED) or "")
    differsBy = _otherTag(sequence)
    if differsBy:
        return FrameTimes(None, differsBy)
    for found in (labelTimes(sequence, count), _triggerTimes(sequence, count), _indexTimes(sequence, count)):
        if found is not None:
            return FrameTimes(found, guess=sequence.GetAttribute(GUESSED) or "")
    return FrameTimes(None, guess=NUMBERED)


def labelTimes(node, count: int) -> np.ndarray | None:
    """(count,) ms from the attributes that MultiVolumeImporter leaves on a node; None without such times."""
    scale = MILLISECONDS.get(node.GetAttribute(UNIT) or "")
    if scale is None or node.GetAttribute(TAG) not in TIME_TAGS:
        return None
    labels = _numbers((node.GetAttribute(FRAME_LABELS) or "").split(","), count)
    return _distinct(labels * scale) if labels is not None else None


def keepTimes(source, target) -> None:
    """Index a sequence that is made of another one's frames as that one is, and note the times of its frames.

    A browser shows the items of both together by their index values, which therefore stay as they are.
    """
    target.SetIndexName(source.GetIndexName())
    target.SetIndexUnit(source.GetIndexUnit())
    target.SetIndexType(source.GetIndexType())
    target.SetNumericIndexValueTolerance(source.GetNumericIndexValueTolerance())
    times = frameTimes(source)
    if times.ms is not None:
        target.SetAttribute(FRAME_TIMES, ",".join(f"{time:.10g}" for time in times.ms))
        target.SetAttribute(GUESSED, times.guess or None)
    noteBeat(target, beatMs(source))


def beatMs(sequence) -> float | None:
    """Length of the heart beat that the scanner noted, on the node or in Slicer's DICOM database; None without one."""
    found = _numbers([sequence.GetAttribute(BEAT) or ""], 1)
    return nominalBeatMs(sequence) if found is None else float(found[0])


def noteBeat(sequence, beat_ms: float | None) -> None:
    """Keep the length of the beat on a sequence."""
    sequence.SetAttribute(BEAT, None if beat_ms is None else f"{beat_ms:.10g}")


def triggerTime(dataNode) -> float | None:
    """Milliseconds after the R wave that DICOMImageSequencePlugin noted on an item; None where it did not."""
    found = _numbers([dataNode.GetAttribute(TRIGGER_TIME) or ""], 1)
    return None if found is None else float(found[0])


def _otherTag(sequence) -> str:
    """The tag by which the frames differ, if that says that they are no cine."""
    tag = sequence.GetAttribute(TAG) or ""
    return "" if tag in (*TIME_TAGS, *COUNTING_TAGS) else tag


def _triggerTimes(sequence, count: int) -> np.ndarray | None:
    times = [triggerTime(sequence.GetNthDataNode(index)) for index in range(count)]
    return None if None in times else _distinct(np.array(times))


def _indexTimes(sequence, count: int) -> np.ndarray | None:
    scale = MILLISECONDS.get(sequence.GetIndexUnit() or "")
    values = _numbers([sequence.GetNthIndexValue(index) for index in range(count)], count)
    return _distinct(values * scale) if scale is not None and values is not None else None


def _numbers(texts: list[str], count: int) -> np.ndarray | None:
    """(count,) finite numbers; None where the texts are no such numbers."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def _distinct(times: np.ndarray) -> np.ndarray | None:
    """One and the same time for all, as some exports have it, says nothing."""
    return times if len(times) < 2 or np.ptp(times) > 0 else None
