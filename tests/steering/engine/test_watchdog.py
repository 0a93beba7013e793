"""Watchdog: a turn that does not end is found, and a process that was stopped is not taken for one."""

import pytest

from app.core.watchdog import Watchdog
from steering.engine.api import EngineStats

SECONDS = 10.0
PAUSE = 1.0


class Watched:
    """An engine and its watchdog on a clock that tests move. began: when the turn began; None: there is no work."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watchdog = Watchdog(SECONDS, lambda: self.now)
        self.began: float | None = None
        self.alive = True

    @property
    def stats(self) -> EngineStats:
        age = 0.0 if self.began is None else self.now - self.began
        return EngineStats(0, 0, 0, 0, 0, 0, self.alive, busy=self.began is not None, last_turn_age=age)

    def pass_time(self, seconds: float = PAUSE) -> bool:
        """Checks after a pause; whether the engine has failed."""
        self.now += seconds
        self.watchdog.check(self.stats)
        return self.failed

    @property
    def failed(self) -> bool:
        return self.watchdog.failure(self.stats) is not None


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_turn_that_does_not_end_is_found_after_the_seconds_that_it_may_take(watched: Watched) -> None:
    watched.began = watched.now
    assert [watched.pass_time() for _ in range(11)] == [False] * 10 + [True]


def test_an_engine_that_works_or_waits_never_hangs(watched: Watched) -> None:
    for _ in range(50):
        watched.began = watched.now + 0.5 * PAUSE
        assert not watched.pass_time()
    watched.began = None
    assert not any(watched.pass_time() for _ in range(50))


def test_an_engine_that_died_is_found_at_once(watched: Watched) -> None:
    watched.alive = False
    assert watched.failed


def test_a_process_that_was_stopped_has_not_hung(watched: Watched) -> None:
    """Nor do requests that are answered before the next check find that it has."""
    watched.began = watched.now
    watched.now += 100 * SECONDS
    assert not watched.failed
    assert not watched.pass_time(0.0)
    assert not watched.pass_time()
    watched.began = None
    assert not watched.pass_time()


def test_a_turn_that_hangs_after_a_stop_is_found(watched: Watched) -> None:
    watched.began = watched.now
    watched.pass_time(100 * SECONDS)
    assert [watched.pass_time() for _ in range(9)] == [False] * 8 + [True]


def test_what_an_earlier_turn_took_does_not_count_for_the_one_that_was_stopped(watched: Watched) -> None:
    watched.began = watched.now
    assert not any(watched.pass_time() for _ in range(9))
    watched.began = watched.now + 0.1
    assert not watched.pass_time(100 * SECONDS)
    assert not any(watched.pass_time() for _ in range(8))
