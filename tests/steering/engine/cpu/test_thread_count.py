"""The number of threads follows the processors that are free: planted machines on which a pass takes a known time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import pytest

from steering.engine.cpu.thread_count import Clock, ThreadCount

SERIAL, PARALLEL, ROW = 0.001, 0.008, 0.0005
"""Seconds of a pass: what one thread computes, what all share, and what each row adds to that."""


@dataclass
class Machine:
    """Some of its processors are occupied by others; a thread without one of its own delays all (see ThreadCount)."""

    processors: int
    occupied: int = 0
    scale: float = 1.0
    noise: Iterator[float] = field(default_factory=lambda: repeat(1.0))
    threads: int = field(init=False)
    clock: Clock = field(init=False, default=Clock(0.0, 0.0))
    changes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.threads = self.processors
        self.count = ThreadCount(self.processors, self.use, lambda: self.clock)

    def use(self, threads: int) -> None:
        self.threads = threads
        self.changes += 1

    def seconds(self, threads: int, rows: int, prompt_tokens: int = 0) -> float:
        """Returns the seconds of a pass without noise."""
        delay = 3 if threads > self.processors - self.occupied else 1
        return self.scale * (SERIAL + self.work(rows, prompt_tokens) / threads * delay)

    def work(self, rows: int, prompt_tokens: int) -> float:
        return PARALLEL + ROW * rows + 0.0002 * prompt_tokens

    def run(self, rows: int = 8, prompt_tokens: int = 0) -> float:
        """Runs a pass; returns how many seconds more it took than with the best number of threads."""
        self.count.begin(0 if prompt_tokens else rows)
        noise = next(self.noise)
        seconds = noise * self.seconds(self.threads, rows, prompt_tokens)
        best = noise * min(self.seconds(threads, rows, prompt_tokens) for threads in range(1, self.processors + 1))
        ran = self.scale * (SERIAL + self.work(rows, prompt_tokens))
        self.clock = Clock(self.clock.seconds + seconds, self.clock.processor_seconds + ran)
        self.count.end(0 if prompt_tokens else rows)
        return seconds - best

    def run_for(self, seconds: float, rows: int = 8) -> float:
        """Runs decode passes; returns the share of the time that was lost."""
        began, lost = self.clock.seconds, 0.0
        while self.clock.seconds < began + seconds:
            lost += self.run(rows)
        return lost / (self.clock.seconds - began)


@pytest.mark.parametrize("processors", [1, 2, 4, 16])
def test_idle_machines_use_every_processor(processors: int) -> None:
    machine = Machine(processors)
    assert machine.run_for(120) < 0.01
    assert machine.count.current == processors


@pytest.mark.parametrize(("processors", "occupied"), [(2, 1), (4, 1), (4, 2), (8, 1), (8, 3), (16, 4)])
def test_busy_processors_are_avoided_and_their_end_is_noticed(processors: int, occupied: int) -> None:
    machine = Machine(processors)
    machine.run_for(10)
    machine.occupied = occupied
    machine.run_for(1.0 if occupied == 1 else 15.0)
    assert machine.run_for(60) < 0.05
    machine.occupied = 0
    machine.run_for(60)
    assert machine.run_for(60) < 0.05


def test_slow_passes_are_compared_too() -> None:
    machine = Machine(2, occupied=1, scale=100.0)
    machine.run_for(100)
    assert machine.run_for(1000) < 0.05


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["passes of 7 ms", "passes of 0.7 s"])
def test_trials_that_change_nothing_take_little_time(scale: float) -> None:
    """A model whose threads mostly wait: utilization is low, and fewer threads are slower all the same."""
    machine = Machine(2, scale=scale)
    lost = 0.0
    while machine.clock.seconds < 600 * scale**0.5:
        machine.count._utilization = 0.3  # as measured on such a model
        lost += machine.run()
    assert machine.count.current == 2
    assert machine.changes > 10
    assert lost < 0.03 * machine.clock.seconds


def _noise(seed: int) -> Iterator[float]:
    """One pass in ten takes up to four times as long."""
    rng = random.Random(seed)
    while True:
        yield rng.uniform(1.5, 4.0) if rng.random() < 0.1 else 1.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("processors", "occupied"), [(2, 0), (2, 1), (16, 0)])
def test_noisy_passes_do_not_mislead_it_for_long(processors: int, occupied: int, seed: int) -> None:
    machine = Machine(processors, occupied, noise=_noise(seed))
    machine.run_for(60)
    assert machine.run_for(300) < 0.1


def test_batches_that_change_with_every_pass_use_the_count_that_was_found() -> None:
    """A trial waits for passes of similar size and takes a small part of them."""
    machine = Machine(2, occupied=1)
    machine.run_for(2)
    used = []
    for turn in range(5000):
        machine.run(rows=(1, 32, 8)[turn % 3])
        used.append(machine.threads)
    assert machine.count.current == 1
    assert used.count(2) < 0.05 * len(used)


def test_without_decode_passes_the_count_is_forgotten() -> None:
    machine = Machine(2, occupied=1)
    machine.run_for(2)
    assert machine.count.current == 1
    while machine.clock.seconds < 80:
        machine.run(prompt_tokens=500)
    assert machine.count.current == 2


def test_a_failed_pass_decides_nothing_and_work_between_passes_uses_the_count_that_was_found() -> None:
    machine = Machine(2, occupied=1)
    for _ in range(200):
        machine.count.begin(8)  # `end` is not called
        machine.count.settle()
        assert machine.threads == machine.count.current == 2


def test_passes_with_prompts_use_every_thread_and_decode_passes_the_count_that_was_found() -> None:
    machine = Machine(2, occupied=1)
    machine.run_for(2)
    for _ in range(20):
        machine.run(prompt_tokens=500)
        assert (machine.threads, machine.count.current) == (2, 1)
