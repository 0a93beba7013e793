"""Live scores of vectors: readouts that a request names, and monitors that an operator sets on all traffic."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from steering.shapes import Direction, Residual, Scores
from steering.spec import PhaseName

EDGES: tuple[float, ...] = tuple(step / 4 for step in range(-12, 13))
"""Upper edges of the buckets of a score's distribution, in natural scales: the poles lie at +0.5 and -0.5."""
LATEST = 100
"""Raises that are kept."""
HOUR = 3600
HOURS = 48
"""Hours whose means are kept, so that drift can be seen."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A live readout: (r . direction - middle) / scale after block `layer`, at the position that predicts each token. layer may be any
    point (`steering/model/hook_points.py`); r is then what is there.

    direction (d_model,), float32, unit. middle: of the class means on it, 0 where they are not known.
    """

    name: str
    layer: int
    direction: Direction
    scale: float
    middle: float = 0.0

    def scores(self, residual: Residual) -> Scores:
        """residual (token, d_model) -> score of each token."""
        return (residual @ self.direction - self.middle) / self.scale


@dataclass(frozen=True, slots=True)
class Raise:
    """The first time that a monitor was raised in an answer. token: None for the prompt. at: Unix time."""

    request_id: str
    score: float
    token: int | None
    at: float


@dataclass(slots=True)
class HourlyScores:
    """Scores of one hour. start: Unix time; total: their sum."""

    start: int
    count: int = 0
    raised: int = 0
    total: float = 0.0


class ScoreStatistics:
    """What one monitor measured since it was set, in this process.

    buckets: scores up to each of EDGES, and beyond the last.
    raised: scores beyond the bound; answers: answers with at least one.
    Only the engine's thread writes; others may read a score more in one field than in another.
    """

    def __init__(self) -> None:
        self.buckets = [0] * (len(EDGES) + 1)
        self.total = 0.0
        self.lowest, self.highest = float("inf"), float("-inf")
        self.raised = self.answers = 0
        self.latest: deque[Raise] = deque(maxlen=LATEST)
        self.hours: deque[HourlyScores] = deque(maxlen=HOURS)

    @property
    def count(self) -> int:
        """How many scores were measured."""
        return sum(self.buckets)

    def add(self, score: float, raised: bool) -> None:
        """Counts one score."""
        self.buckets[bisect_left(EDGES, score)] += 1
        self.total += score
        self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)
        hour = int(time.time()) // HOUR * HOUR
        if not self.hours or self.hours[-1].start != hour:
            self.hours.append(HourlyScores(hour))
        now = self.hours[-1]
        now.count += 1
        now.total += score
        if raised:
            now.raised += 1
            self.raised += 1

    def note(self, first: Raise) -> None:
        """Counts one answer in which the monitor was raised."""
        self.answers += 1
        self.latest.append(first)


@dataclass(frozen=True, slots=True, eq=False)
class Monitor:
    """A bound on a live score, for all requests: of the last prompt position, or of each position that predicts a token.

    vector, sha256: `name@version` and its digest.
    action: `count` only counts, `flag` also reports in the response, `stop` also ends the answer: with the token at which it
    is raised, or before the first token for a prompt.
    phase: of the positions at which `generated` counts, besides that which predicts the first generated token; None: all.
    """

    name: str
    vector: str
    sha256: str
    reading: Reading
    above: bool
    bound: float
    at: Literal["prompt", "generated"] = "generated"
    action: Literal["count", "flag", "stop"] = "count"
    phase: tuple[PhaseName, ...] | None = None
    statistics: ScoreStatistics = field(default_factory=ScoreStatistics)

    def covers(self, phase: PhaseName) -> bool:
        """Whether positions in a phase count. An answer that a request wants as JSON is an answer still."""
        return self.phase is None or phase in self.phase or (phase == "json" and "answer" in self.phase)

    def holds(self, score: float) -> bool:
        """Whether a score lies beyond the bound."""
        return score > self.bound if self.above else score < self.bound


@dataclass(frozen=True, slots=True, eq=False)
class RaisedMonitor:
    """A monitor that was raised at a token, or by the prompt, and the score."""

    monitor: Monitor
    score: float


class MonitorSet:
    """The monitors of a policy. ordered: those of generated tokens first; `generated` is how many they are. by_phase: some count in
    phases only."""

    def __init__(self, monitors: Sequence[Monitor] = ()) -> None:
        self.ordered = tuple(sorted(monitors, key=lambda one: one.at == "prompt"))
        self.generated = sum(one.at == "generated" for one in self.ordered)
        self.by_phase = any(one.phase is not None for one in self.ordered)

    def read_at(self, *, first: bool) -> tuple[Monitor, ...]:
        """The monitors that are read at a position. first: the last prompt position, where all of them are."""
        return self.ordered if first else self.ordered[: self.generated]


NO_MONITORS = MonitorSet()


class MonitoredAnswer:
    """Counts the scores of one answer and reports the monitors that are raised.

    Scores come in the order of `MonitorSet.read_at`. Those of action `count` are counted and not returned.
    """

    def __init__(self, monitors: MonitorSet, request_id: str) -> None:
        self._monitors, self._request_id = monitors, request_id
        self._raised: set[str] = set()

    def read(
        self, scores: Sequence[float], token: int | None, phase: PhaseName = "prompt"
    ) -> tuple[RaisedMonitor, ...]:
        """Reads the scores of the last prompt position (token None), or of the position that predicted a token. phase: of that position."""
        count = self._monitors.generated
        here = slice(count, None) if token is None else slice(count)
        found: list[RaisedMonitor] = []
        for monitor, score in zip(self._monitors.ordered[here], scores[here], strict=True):
            # the first generated token always: a request could have all of its prompt, and no more, in another phase
            if token and not monitor.covers(phase):
                continue
            holds = monitor.holds(score)
            monitor.statistics.add(score, holds)
            if not holds:
                continue
            if monitor.name not in self._raised:
                self._raised.add(monitor.name)
                monitor.statistics.note(Raise(self._request_id, score, token, time.time()))
            if monitor.action != "count":
                found.append(RaisedMonitor(monitor, score))
        return tuple(found)


def stops(raised: Sequence[RaisedMonitor]) -> bool:
    """Whether one of the raised monitors ends the answer."""
    return any(one.monitor.action == "stop" for one in raised)
