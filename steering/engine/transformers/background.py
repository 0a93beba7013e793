"""Background work of the engine's thread: tasks that run in small pieces between the passes of live requests."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeAlias

from steering.engine.transformers.delivery import as_steering_error
from steering.engine.transformers.sequence import Stream
from steering.errors import Overloaded

MAX_WAITING = 64
"""Tasks in the queue; one more is refused, so that requests for background work cannot fill the memory."""
SHARE = 0.25
"""Share of the time that background work may take while requests run."""
SLICE_SECONDS = 0.02
"""Pieces run one after the other until this much time is used; one piece may take longer."""

Pieces: TypeAlias = Generator[object, None, object]
"""Yields after each piece: None, or progress for the caller. Returns the result."""


@dataclass(slots=True, eq=False)
class BackgroundTask:
    """One task, from the queue to its result. urgent: a caller waits for it, so it goes before those that are not."""

    stream: Stream
    pieces: Pieces
    urgent: bool = False
    outbox: list[object] = field(default_factory=list)


class BackgroundQueue:
    """Tasks of the engine's thread, first come first served; the first is advanced by `run`."""

    def __init__(self) -> None:
        self._tasks: deque[BackgroundTask] = deque()
        self._next_at = 0.0

    def __len__(self) -> int:
        return len(self._tasks)

    def everyone(self) -> list[BackgroundTask]:
        """Returns the tasks that have not ended."""
        return list(self._tasks)

    def enqueue(self, task: BackgroundTask) -> bool:
        """Adds a task. Returns False where the queue is full; the task's outbox then holds Overloaded."""
        if len(self._tasks) >= MAX_WAITING:
            task.pieces.close()
            task.outbox.append(Overloaded(f"{MAX_WAITING} background tasks are waiting already; try again shortly"))
            return False
        if task.urgent:
            self._tasks.appendleft(task)
        else:
            self._tasks.append(task)
        return True

    def due(self, *, busy: bool) -> bool:
        """Returns whether a task may run now. busy: requests are running, which leaves it its share of the time."""
        for task in [one for one in self._tasks if one.stream.closed]:
            self._end(task)
        return bool(self._tasks) and not (busy and perf_counter() < self._next_at)

    def run(self) -> BackgroundTask:
        """Runs pieces of the first task for one slice of time and returns it. An error ends that task, and no other."""
        task = self._tasks[0]
        began = perf_counter()
        try:
            while perf_counter() - began < SLICE_SECONDS and not task.stream.closed:
                if (progress := next(task.pieces)) is not None:
                    task.outbox.append(progress)
        except StopIteration as ended:
            task.outbox.append(ended.value)
            self._end(task)
        except Exception as error:
            task.outbox.append(as_steering_error(error))
            self._end(task)
        now = perf_counter()
        self._next_at = now + (now - began) * (1 - SHARE) / SHARE
        return task

    def _end(self, task: BackgroundTask) -> None:
        task.pieces.close()
        self._tasks.remove(task)
