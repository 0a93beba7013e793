"""Watchdog: finds out that an engine has died or hangs."""

from collections.abc import Callable
from time import monotonic

from steering.engine.api import EngineStats
from steering.errors import EngineDead

MOST_SECONDS = 1.0  # the longest pause between two checks


class Watchdog:
    """An engine hangs when a turn takes longer than `seconds`, of which only those count in which the watcher ran as well.

    A process that was stopped (SIGSTOP, a frozen container) finds its last turn as old as the stop was long, although the engine
    had no processor to end it. pause: between two checks. It is called by one thread.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.pause = min(MOST_SECONDS, seconds / 4)
        self._seconds, self._clock = seconds, clock
        self._checked = clock()
        self._hung = 0.0

    def check(self, stats: EngineStats) -> None:
        """Counts the time since the last check, at most twice the pause that was to be between them."""
        now = self._clock()
        elapsed, self._checked = now - self._checked, now
        before = self._hung if stats.last_turn_age >= elapsed else 0.0  # another turn has begun since
        self._hung = min(stats.last_turn_age, before + min(elapsed, 2 * self.pause))

    def failure(self, stats: EngineStats) -> EngineDead | None:
        """Returns why the engine will not answer any more; None while it works."""
        if not stats.alive:
            return EngineDead("the engine has stopped; the server restarts")
        if self._hung > self._seconds:
            return EngineDead(f"a forward pass has not returned for {self._seconds:g} s")
        return None
