"""What a whole heart costs, out of small runs: the work that a run does, and the price of each part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from calid_benchmark.tables.contestants import Contestant, Runner


class Work(NamedTuple):
    """What a run does: its cost is a sum over these.

    Args:
        evaluations: number of evaluations of the network in diffusion or optimization steps.
        encoded: number of slices that are encoded.
        made: number of new slices. A system without diffusion steps synthesizes each by one evaluation that is unlike a
            step (DeepRecon's go forth and back), and is counted here alone.
    """

    evaluations: int
    encoded: int
    made: int


def work_of(line: Contestant, runner: Runner, acquired: int, factor: int, *, naive: bool = False) -> Work:
    """The work of a whole heart; naive runs encode two slices for every new one, where a system inverts any."""
    made = (acquired - 1) * (factor - 1)
    evaluations = runner.evaluations(acquired, factor, naive=naive)
    inverts = evaluations != runner.evaluations(acquired, factor)
    synthesized = made if line.steps is None and evaluations else 0
    return Work(evaluations - synthesized, 2 * made if inverts else acquired, made)


@dataclass(frozen=True)
class Costs:
    """What each part of the work costs, in seconds or FLOPs."""

    evaluation: float
    encoded: float
    made: float

    def of(self, work: Work) -> float:
        """The cost of a run."""
        return self.evaluation * work.evaluations + self.encoded * work.encoded + self.made * work.made


def fitted_costs(runs: Sequence[Work], seconds: Sequence[float]) -> Costs:
    """The costs that explain the small runs' times best, none of them negative."""
    scale = max(seconds) or 1.0
    found, _ = nnls(np.array(runs, float), np.array(seconds, float) / scale)
    return Costs(*(float(value) * scale for value in found))


def solved_costs(runs: Sequence[Work], flops: Sequence[float]) -> Costs:
    """The costs whose sums are the small runs' FLOPs: as many equations as costs (or fewer, for parts it lacks)."""
    found, *_ = np.linalg.lstsq(np.array(runs, float), np.array(flops, float), rcond=None)
    return Costs(*map(float, found))
