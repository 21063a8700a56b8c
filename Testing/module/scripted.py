"""An engine in memory behind `EngineTransport`: answers each request with what the test wants, files included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hearts
import numpy as np
import vtk
from calid.heart.surfaces import write_surface
from calid.images import files

SPREAD = np.float32(7.5)
SEGMENTER = {"name": "segmenter", "license": "CC-BY-NC-SA-4.0"}


class ScriptedTransport:
    """Plays an engine.

    Args:
        script: script(request) -> events, the id is filled in; an "exit" event ends the engine.
        obeysCancel: answers a cancel at once; otherwise never.
    """

    def __init__(self, script: Callable[[dict], list[dict]], *, obeysCancel: bool = True) -> None:
        self.script, self.obeysCancel = script, obeysCancel
        self.requests: list[dict] = []
        self.events: list[dict] = []
        self.isStarted = self.isKilled = False

    def start(self) -> None:
        self.isStarted = True
        self.events.append({"event": "ready", "protocol": 1})

    def isRunning(self) -> bool:
        return self.isStarted and not self.isKilled

    def send(self, request: dict) -> None:
        self.requests.append(request)
        if request["command"] == "cancel":
            if self.obeysCancel:
                self.events.append({"event": "cancelled", "id": request["target"]})
        else:
            self.events += [{"id": request["id"], **event} for event in self.script(request)]

    def receive(self) -> list[dict]:
        """One event per call, so that a test can act between two of them."""
        return [self.events.pop(0)] if self.events else []

    def kill(self) -> None:
        self.isKilled = True

    def close(self, timeout_s: float) -> None:
        del timeout_s
        self.kill()

    @property
    def commands(self) -> list[str]:
        return [request["command"] for request in self.requests]


def progress(fraction: float = 0.5) -> dict:
    return {"event": "progress", "fraction": fraction, "stage": "level 1 of 2", "seconds_left": 12.0}


def upsample(request: dict) -> list[dict]:
    """What a good engine answers to "upsample": frames for a cine, and the result's file."""
    stack = hearts.dense(
        files.read_stack(Path(request["input"])), 2 if request["factor"] == "isotropic" else request["factor"]
    )
    events = [progress(0.1)]
    if request["frames_folder"]:
        for index in range(stack.num_frames):
            path = Path(request["frames_folder"]) / f"frame{index:04d}.nrrd"
            files.write_stack(stack.frame(index), path)
            events.append({"event": "frame", "index": index, "path": str(path)})
    files.write_stack(stack, Path(request["output"]))
    if request["uncertainty"]:
        spread = stack.with_voxels(np.broadcast_to(SPREAD * stack.generated[:, None, None], stack.voxels.shape))
        files.write_stack(spread, Path(request["uncertainty"]))
    return [*events, {"event": "result", "output": request["output"], "seconds": 1.5}]


def segment(request: dict) -> list[dict]:
    """The phantom's own labels on the grid of the result, with a provenance like the segmenter's."""
    stack = files.read_stack(Path(request["input"]))
    sparse = replace(hearts.labels(stack.num_frames), frame_times_ms=stack.frame_times_ms)
    factor = (stack.num_slices - 1) // (sparse.num_slices - 1)
    files.write_labels(hearts.dense(sparse, factor).noted(segmenter=SEGMENTER), Path(request["output"]))
    return [progress(0.5), {"event": "result", "output": request["output"]}]


def segmentWithSurfaces(request: dict) -> list[dict]:
    """As `segment`, with a tetrahedron for every frame's LV surface, which no conversion of Slicer's would make."""
    events = segment(request)
    for frame in range(files.read_stack(Path(request["output"])).num_frames):
        write_surface(tetrahedron(), Path(request["surfaces_folder"]) / f"frame{frame:04d}-LV.vtp")
    return events


def tetrahedron():
    """Corners (LPS mm) at (10, 20, 30) and 5 mm further along each axis, faces outwards."""
    points = vtk.vtkPoints()
    for corner in ((10, 20, 30), (15, 20, 30), (10, 25, 30), (10, 20, 35)):
        points.InsertNextPoint(corner)
    mesh, faces = vtk.vtkPolyData(), vtk.vtkCellArray()
    for face in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)):
        faces.InsertNextCell(3, face)
    mesh.SetPoints(points)
    mesh.SetPolys(faces)
    return mesh


def good(request: dict) -> list[dict]:
    """A good engine."""
    return {"upsample": upsample, "segment": segment, "estimate": estimate, "info": info}[request["command"]](request)


def estimate(request: dict) -> list[dict]:
    frames = request["num_frames"]
    facts = {"seconds": 42.0 * frames, "memory_bytes": 7e8 * frames, "free_bytes": 6e9, "fits": frames < 8}
    return [{"event": "result", "device": "CPU (no CUDA GPU was found)", **facts}]


def info(request: dict) -> list[dict]:
    device = "CPU (no CUDA GPU was found)" if request["device"] == "auto" else request["device"]
    return [{"event": "result", "result": {"device": device, "free_memory_gb": 20.0, "torch": "2.9"}}]


def error(code: str = "memory", message: str = "There is not enough memory for this run.") -> list[dict]:
    return [progress(), {"event": "error", "code": code, "message": message, "remedy": "Choose a smaller factor."}]


def exitWith(code: int, stderr: str = "") -> list[dict]:
    return [progress(), {"event": "exit", "code": code, "stderr": stderr}]
