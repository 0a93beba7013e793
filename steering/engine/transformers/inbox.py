"""Inbox: hands work from callers' threads to the engine's thread, which waits here when there is nothing to do."""

import threading
from collections.abc import Callable, Sequence

from steering.engine.options import EngineLimits
from steering.engine.transformers.request import BackgroundTask, Request
from steering.errors import EngineDead, Overloaded
from steering.threads import release_thread_pool

IDLE_SECONDS = 0.05
"""After this time without work the thread does what it does when idle, and then frees its OpenMP pool, so that another engine of the
process is not slowed down by it (see steering/threads.py). To make the pool again takes 0.1 ms."""


class Inbox:
    """A queue with one consumer. Everything but `collect` may be called by any thread."""

    def __init__(
        self, limits: EngineLimits, waiting: Callable[[bool], int], idle: Callable[[], bool] = lambda: False
    ) -> None:
        """waiting: how many live (False) or background (True) requests wait in the scheduler. idle: called by `collect` again and
        again while there is no work, until it returns False; takes milliseconds."""
        self._limits, self._waiting, self._idle = limits, waiting, idle
        self._work: list[Request | BackgroundTask] = []
        self._calls: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self.ended = False

    def count(self, *, background: bool) -> int:
        """How many live or background requests are in the inbox."""
        return sum(isinstance(one, Request) and one.background == background for one in self._work)

    def put(self, work: Sequence[Request | BackgroundTask]) -> None:
        """Hands over the work of one call. Raises EngineDead; Overloaded when as many requests of its kind wait as may."""
        with self._wake:
            if self._closing or self.ended:
                raise EngineDead("the engine has stopped")
            if work and isinstance(work[0], Request):
                self._check_limit(background=work[0].background)
            self._work.extend(work)
            self._wake.notify()

    def _check_limit(self, *, background: bool) -> None:
        most = self._limits.max_background_waiting if background else self._limits.max_waiting
        waiting = self._waiting(background) + self.count(background=background)
        if waiting >= most:
            kind = "texts or background requests" if background else "requests"
            raise Overloaded(f"{waiting} {kind} are waiting, and at most {most} may; try again shortly")

    def call(self, function: Callable[[], None]) -> None:
        """Has the engine's thread call a function between two passes, in the order of these calls."""
        with self._wake:
            self._calls.append(function)
            self._wake.notify()

    def calls(self) -> list[Callable[[], None]]:
        """Takes the functions to call."""
        with self._wake:
            found, self._calls = self._calls, []
            return found

    def collect(self, *, busy: bool) -> list[Request | BackgroundTask] | None:
        """Takes the work that came; waits for some unless `busy`. None once it was closed."""
        if not busy:
            self._wait()
        with self._wake:
            if self._closing:
                return None  # what is still here is given back by `end`
            work, self._work = self._work, []
            return work

    def _wait(self) -> None:
        with self._wake:
            if self._wake.wait_for(self._has_work, IDLE_SECONDS):
                return
        while self._idle():
            if self._has_work():
                return
        release_thread_pool()
        with self._wake:
            self._wake.wait_for(self._has_work)

    def _has_work(self) -> bool:
        return bool(self._work or self._calls or self._closing)

    def close(self) -> None:
        """Accepts nothing more, and has the thread end."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def end(self) -> list[Request | BackgroundTask]:
        """Returns what was left when the thread ended; nothing more is accepted."""
        with self._wake:
            self.ended = True
            work, self._work = self._work, []
            return work
