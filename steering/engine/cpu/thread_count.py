"""ThreadCount: how many OpenMP threads compute a pass. Fewer where another process occupies processors."""

from collections.abc import Callable
from itertools import cycle
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import structlog

log = structlog.get_logger()
LOW_UTILIZATION = 0.65
"""Share of the time of a pass that its threads run, below which fewer are tried. On two idle cores it is 0.75 to 0.95,
next to a busy process about 0.5."""
SMOOTHING = 0.1
TRIAL_PASSES = 6  # passes of a trial with each of both counts
GAIN, LOSS = 0.95, 1.3
"""A trial is won with at most this share of the other's median time, and lost early from this share on."""
SHORTEST_WAIT, LONGEST_WAIT = 1.0, 10.0  # seconds between two trials: doubled after a trial that changed nothing
COST = 0.02  # longer waits follow a lost trial that took more time than this share
EXPIRES = 5.0  # seconds that a trial waits for the next pass of similar size
FORGET = 60.0  # seconds without a decode pass after which the number that was found is not known to be right any more
SIMILAR_ROWS = 0.25


class Clock(NamedTuple):
    """A monotonic clock, and the time that all threads of the process ran together."""

    seconds: float
    processor_seconds: float


def read_clock() -> Clock:
    """Reads both clocks."""
    return Clock(perf_counter(), process_time())


class Trial:
    """Compares two thread counts in decode passes of about as many rows, in turns."""

    def __init__(self, current: int, candidate: int, rows: int, expires: float) -> None:
        self.current, self.candidate, self.rows, self.expires = current, candidate, rows, expires
        self.seconds: dict[int, list[float]] = {current: [], candidate: []}
        self.order = cycle((current, candidate, candidate, current))

    def takes(self, rows: int) -> bool:
        """Whether a pass is similar enough to be compared."""
        return abs(rows - self.rows) <= SIMILAR_ROWS * self.rows

    def ratio(self) -> float:
        """The candidate's median time as a share of the current count's; nan before both have two passes."""
        current, candidate = self.seconds[self.current], self.seconds[self.candidate]
        enough = min(len(current), len(candidate)) >= 2
        return median(candidate) / median(current) if enough else float("nan")

    @property
    def complete(self) -> bool:
        """Whether both counts had their passes, or the candidate is clearly slower."""
        return min(map(len, self.seconds.values())) >= TRIAL_PASSES or self.ratio() >= LOSS


class ThreadCount:
    """Finds the number of threads with which decode passes are fastest: tries one more or less than now, then two, then four.

    The threads of a decode pass wait for each other at every operation, so one that shares its processor with another process delays
    all (benchmarks/README.md, busy processor). Low utilization starts a trial with fewer threads; from time to time a trial with
    more finds out whether the processors are free again. Only the engine's thread uses it.

    maximum: of threads; 1: there is no choice, as without `EngineLimits.adaptive_threads`.
    apply: sets the number for the calling thread.
    """

    def __init__(self, maximum: int, apply: Callable[[int], None], clock: Callable[[], Clock] = read_clock) -> None:
        self.current = self._maximum = self._used = maximum
        self._apply, self._clock = apply, clock
        self._utilization = 1.0
        self._trial: Trial | None = None
        self._next_trial, self._wait = 0.0, SHORTEST_WAIT
        self._steps = {True: 1, False: 1}
        """By how many the next trial goes down (True) or up; a smaller step may have freed too few processors to gain anything."""
        self._lost_down = False
        self._began, self._decoded = Clock(0.0, 0.0), 0.0

    def begin(self, rows: int) -> None:
        """Sets the threads of the next pass. rows: that decode; 0: it has prompt tokens, and takes part in no trial. Those have every thread:
        next to a busy process they take as long as with fewer, and a number that decode passes found before may be wrong by now."""
        if self._maximum == 1:
            return
        self._began = self._clock()
        now = self._began.seconds
        if now > self._decoded + FORGET:
            self.current, self._utilization, self._trial, self._decoded = self._maximum, 1.0, None, now
        if not rows:
            self._use(self._maximum)
            return
        self._decoded = now
        if self._trial is not None and now > self._trial.expires:
            self._trial, self._next_trial = None, now + self._wait
        if self._trial is None and now >= self._next_trial:
            self._trial = self._next(rows, now)
        trial = self._trial
        self._use(self.current if trial is None or not trial.takes(rows) else next(trial.order))

    def end(self, rows: int) -> None:
        """Notes what the pass took. Is not called after a pass that failed."""
        if not rows or self._maximum == 1:
            return
        now = self._clock()
        seconds = now.seconds - self._began.seconds
        if self._used == self.current:
            utilization = (now.processor_seconds - self._began.processor_seconds) / (seconds * self._used)
            self._utilization += SMOOTHING * (utilization - self._utilization)
        if self._trial is not None and self._trial.takes(rows):
            self._trial.seconds[self._used].append(seconds)
            self._trial.expires = now.seconds + EXPIRES
            if self._trial.complete:
                self._decide(self._trial, now.seconds)

    def settle(self) -> None:
        """Sets the threads for work between passes."""
        self._use(self.current)

    def _use(self, count: int) -> None:
        if count != self._used:
            self._apply(count)
            self._used = count

    def _next(self, rows: int, now: float) -> Trial | None:
        """The next trial: with fewer threads at low utilization, unless that was just lost and more can be tried."""
        low = self._utilization < LOW_UTILIZATION and not (self._lost_down and self.current < self._maximum)
        if low and self.current > 1:
            candidate = max(self.current - self._steps[True], 1)
        elif self.current < self._maximum:
            candidate = min(self.current + self._steps[False], self._maximum)
        else:
            return None
        return Trial(self.current, candidate, rows, now + EXPIRES)

    def _decide(self, trial: Trial, now: float) -> None:
        won, down = trial.ratio() <= GAIN, trial.candidate < trial.current
        tried = trial.seconds[trial.candidate]
        lost_seconds = sum(tried) - len(tried) * median(trial.seconds[trial.current])
        self._wait = SHORTEST_WAIT if won else min(2 * self._wait, LONGEST_WAIT)
        self._next_trial, self._trial = now + max(self._wait, 0.0 if won else lost_seconds / COST), None
        step = 2 * self._steps[down]
        self._steps = {True: 1, False: 1} if won else {**self._steps, down: step if step < self._maximum else 1}
        self._lost_down = down and not won
        if won:
            utilization = round(self._utilization, 2)
            log.info("threads_changed", threads=trial.candidate, before=trial.current, utilization=utilization)
            self.current, self._utilization = trial.candidate, 1.0
