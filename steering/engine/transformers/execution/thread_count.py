"""ThreadCount: how many OpenMP threads compute a pass. Fewer where another process occupies processors."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import NamedTuple

import structlog

log = structlog.get_logger()

LOW_UTILIZATION = 0.65
"""Share of the time of a pass that its threads run, below which fewer are tried. On two idle cores it is 0.75 to 0.95,
next to a busy process about 0.5."""
SMOOTHING = 0.1
TRIAL_PASSES = 6
"""Passes of a trial with each of both counts."""
GAIN = 0.95
"""A trial is won with at most this share of the other's time."""
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 10.0
"""Seconds between two trials: doubled after one that changed nothing, so that a trial takes at most 2 % of the time."""
SIMILAR_ROWS = 0.25


class Clock(NamedTuple):
    """A monotonic clock, and the time that all threads of the process ran together."""

    seconds: float
    processor_seconds: float


def read_clock() -> Clock:
    """Reads both clocks."""
    return Clock(perf_counter(), process_time())


@dataclass(slots=True)
class Trial:
    """Compares two thread counts in decode passes of about as many rows, in the order a, b, b, a."""

    counts: tuple[int, int]
    rows: int
    seconds: dict[int, float] = field(init=False)
    order: "itertools.chain[int]" = field(init=False)
    left: int = field(init=False, default=2 * TRIAL_PASSES)

    def __post_init__(self) -> None:
        current, candidate = self.counts
        self.seconds = {current: 0.0, candidate: 0.0}
        self.order = itertools.chain.from_iterable(itertools.repeat((candidate, current, current, candidate)))


class ThreadCount:
    """Finds the number of threads with which decode passes are fastest: tries one more or less than now, then two, then four.

    The threads of a pass wait for each other at every operation. Where another process occupies one of two processors, the
    thread that shares it delays both: one thread alone is 1.5 to 2.1 times as fast then (benchmarks/README.md, busy
    processor). Low utilization of the processors starts a trial with fewer threads; from time to time a trial with more
    finds out whether the processors are free again. Not safe for threads: only the engine's thread uses it.

    maximum: of threads; 1: there is no choice. apply: sets the number for the calling thread. Switched off by `EngineLimits.adaptive_threads`.
    """

    def __init__(self, maximum: int, apply: Callable[[int], None], clock: Callable[[], Clock] = read_clock) -> None:
        self.current = self._maximum = self._used = maximum
        self._apply, self._clock = apply, clock
        self._utilization = 1.0
        self._trial: Trial | None = None
        self._next_trial, self._wait, self._step = 0.0, SHORTEST_WAIT, 1
        self._began = Clock(0.0, 0.0)

    def begin(self, rows: int, prompt_tokens: int) -> None:
        """Sets the threads of the next pass. rows: that decode; a pass with prompt tokens takes part in no trial."""
        if self._maximum == 1:
            return
        self._began = self._clock()
        if prompt_tokens:
            self._use(self.current)
            return
        if self._trial is not None and abs(rows - self._trial.rows) > SIMILAR_ROWS * self._trial.rows:
            self._trial = None
        if self._trial is None and self._began.seconds >= self._next_trial:
            self._start_trial(rows)
        self._use(self.current if self._trial is None else next(self._trial.order))

    def end(self, prompt_tokens: int) -> None:
        """Notes what the pass took."""
        if prompt_tokens or self._maximum == 1:
            return
        now = self._clock()
        seconds, processor_seconds = (
            now.seconds - self._began.seconds,
            now.processor_seconds - self._began.processor_seconds,
        )
        if self._used == self.current:
            utilization = processor_seconds / (seconds * self._used)
            self._utilization += SMOOTHING * (utilization - self._utilization)
        if self._trial is not None:
            self._trial.seconds[self._used] += seconds
            self._trial.left -= 1
            if not self._trial.left:
                self._decide(self._trial, now.seconds)

    def _use(self, count: int) -> None:
        if count != self._used:
            self._apply(count)
            self._used = count

    def _start_trial(self, rows: int) -> None:
        if self.current > 1 and self._utilization < LOW_UTILIZATION:
            self._trial = Trial((self.current, max(self.current - self._step, 1)), rows)
        elif self.current < self._maximum:
            self._trial = Trial((self.current, min(self.current + self._step, self._maximum)), rows)

    def _decide(self, trial: Trial, now: float) -> None:
        current, candidate = trial.counts
        won = trial.seconds[candidate] <= GAIN * trial.seconds[current]
        self._wait = SHORTEST_WAIT if won else min(2 * self._wait, LONGEST_WAIT)
        # a smaller step may have freed too few processors to gain anything
        self._step = 1 if won or 2 * self._step >= self._maximum else 2 * self._step
        self._next_trial, self._trial = now + self._wait, None
        if won:
            log.info("threads_changed", threads=candidate, before=current, utilization=round(self._utilization, 2))
            self.current, self._utilization = candidate, 1.0
