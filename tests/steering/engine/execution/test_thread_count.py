"""The number of threads follows the processors that are free: planted machines on which a pass takes a known time."""

from dataclasses import dataclass, field

import pytest

from steering.engine.transformers.execution.thread_count import Clock, ThreadCount

SERIAL, PARALLEL, ROW = 0.001, 0.008, 0.0005
"""Seconds of a pass: what one thread computes, what all share, and what each row adds to that."""


@dataclass
class Machine:
    """Some of its processors are occupied by others; a thread without one of its own delays all (see ThreadCount)."""

    processors: int
    occupied: int = 0
    threads: int = field(init=False)
    clock: Clock = field(init=False, default=Clock(0.0, 0.0))
    changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.threads = self.processors
        self.count = ThreadCount(self.processors, self.use, lambda: self.clock)

    def use(self, threads: int) -> None:
        self.threads = threads
        self.changes += 1

    def run(self, rows: int = 8, prompt_tokens: int = 0) -> float:
        """Runs a pass; returns its seconds."""
        self.count.begin(rows, prompt_tokens)
        work = PARALLEL + ROW * rows + 0.0002 * prompt_tokens
        delayed = self.threads > self.processors - self.occupied
        seconds = SERIAL + work / self.threads * (3 if delayed else 1)
        self.clock = Clock(self.clock.seconds + seconds, self.clock.processor_seconds + SERIAL + work)
        self.count.end(prompt_tokens)
        return seconds

    def run_for(self, seconds: float, rows: int = 8) -> float:
        """Returns the share of passes with the fewest seconds that are possible."""
        end, passes, best = self.clock.seconds + seconds, 0, 0
        while self.clock.seconds < end:
            self.run(rows)
            passes += 1
            best += self.threads == max(self.processors - self.occupied, 1)
        return best / passes


@pytest.mark.parametrize("processors", [1, 2, 4, 16])
def test_idle_machines_use_every_processor(processors: int) -> None:
    machine = Machine(processors)
    assert machine.run_for(120) > 0.995
    assert machine.count.current == processors


@pytest.mark.parametrize(("processors", "occupied"), [(2, 1), (4, 1), (4, 2), (8, 1), (8, 3)])
def test_busy_processors_are_avoided_and_their_end_is_noticed(processors: int, occupied: int) -> None:
    machine = Machine(processors)
    machine.run_for(10)
    machine.occupied = occupied
    machine.run_for(1.0 if occupied == 1 else 15.0)
    assert machine.run_for(60) > 0.95
    machine.occupied = 0
    machine.run_for(25)
    assert machine.run_for(60) > 0.95


def test_trials_that_change_nothing_take_a_fiftieth_of_the_time() -> None:
    """A model so small that its threads mostly wait: utilization is low, and fewer threads are no faster."""
    machine = Machine(2)
    usual, passes, extra = None, 0, 0.0
    while machine.clock.seconds < 300:
        machine.count._utilization = 0.3
        seconds = machine.run()
        usual = usual or seconds
        extra += seconds - usual
        passes += 1
    assert machine.count.current == 2
    assert machine.changes > 10
    assert extra < 0.02 * machine.clock.seconds


def test_passes_with_prompts_and_changing_batches_decide_nothing() -> None:
    machine = Machine(2, occupied=1)
    for turn in range(3000):
        machine.run(rows=1 if turn % 2 else 32)
        machine.run(rows=4, prompt_tokens=500)
        assert machine.count.current == 2
    machine.run_for(1)
    assert machine.count.current == 1


def test_passes_with_prompts_use_the_count_that_was_found() -> None:
    machine = Machine(2, occupied=1)
    machine.run_for(2)
    for _ in range(20):
        machine.run(prompt_tokens=500)
        assert machine.threads == 1
