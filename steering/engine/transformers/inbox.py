"""Inbox: what callers hand to an engine's thread, and the waiting of that thread when there is nothing to do."""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows

from steering.engine.transformers.background import BackgroundTask
from steering.engine.transformers.sequence import Sequence
from steering.errors import EngineDead, Overloaded


class Inbox:
    """Work for one thread, and what becomes ready for it meanwhile. Everything but `collect` may be called by any thread."""

    def __init__(self, waiting: Callable[[], int], most_waiting: int) -> None:
        """waiting: live requests that wait elsewhere already; most_waiting: how many may wait in all."""
        self._waiting, self._most_waiting = waiting, most_waiting
        self._work: list[Sequence | BackgroundTask] = []
        self._arrived: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._closing = False
        self.ended = False

    def __len__(self) -> int:
        return len(self._work)

    def put(self, work: Rows[Sequence | BackgroundTask], *, bounded: bool) -> None:
        """Raises EngineDead; Overloaded when `bounded` and as many live requests wait as may."""
        with self._wake:
            if self._closing or self.ended:
                raise EngineDead("the engine has stopped")
            waiting = self._waiting() + sum(isinstance(one, Sequence) and one.priority == 0 for one in self._work)
            if bounded and waiting >= self._most_waiting:
                raise Overloaded(f"{waiting} requests are waiting already, which is the limit; try again shortly")
            self._work.extend(work)
            self._wake.notify()

    def arrive(self, take: Callable[[], None]) -> None:
        """Something that the thread is to take between two passes, in the order of arrival."""
        with self._wake:
            self._arrived.append(take)
            self._wake.notify()

    def arrivals(self) -> list[Callable[[], None]]:
        """What has arrived since the last time."""
        with self._wake:
            found, self._arrived = self._arrived, []
            return found

    def collect(self, *, busy: bool) -> list[Sequence | BackgroundTask] | None:
        """The work that came; waits for some unless `busy`. None once it was closed."""
        with self._wake:
            while not (busy or self._work or self._arrived or self._closing):
                self._wake.wait()
            if self._closing:
                return None  # what is still here is given back by `end`
            work, self._work = self._work, []
            return work

    def close(self) -> None:
        """Nothing more is taken, and the thread is told to end."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    def end(self) -> list[Sequence | BackgroundTask]:
        """The thread has ended: nothing more is taken. What was left."""
        with self._wake:
            self.ended = True
            work, self._work = self._work, []
            return work
