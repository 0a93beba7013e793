"""Background work of the engine's thread: tasks that run in small pieces between the passes of live requests."""

from collections import deque
from time import perf_counter

from steering.engine.transformers.delivery import as_steering_error
from steering.engine.transformers.sequence import BackgroundTask
from steering.errors import Overloaded

MAX_WAITING = 64
"""Tasks in the queue; one more is refused, so that requests for background work cannot fill the memory."""
SHARE = 0.25
"""Share of the time that background work may take while requests run."""
SLICE_SECONDS = 0.02
"""Pieces run one after the other until this much time is used; one piece may take longer."""


class BackgroundQueue:
    """Tasks of the engine's thread, first come first served; the first is advanced by `run`. tasks: those that have not ended."""

    def __init__(self) -> None:
        self.tasks: deque[BackgroundTask] = deque()
        self._next_at = 0.0

    def enqueue(self, task: BackgroundTask) -> bool:
        """Adds a task. Returns False where the queue is full; the task's outbox then holds Overloaded."""
        if len(self.tasks) >= MAX_WAITING:
            task.pieces.close()
            task.end(Overloaded(f"{MAX_WAITING} background tasks are waiting already; try again shortly"))
            return False
        if task.urgent:
            self.tasks.appendleft(task)
        else:
            self.tasks.append(task)
        return True

    def due(self, *, busy: bool) -> bool:
        """Returns whether a task may run now. busy: requests are running, which leaves it its share of the time."""
        for task in [one for one in self.tasks if one.stream.closed]:
            self._end(task)
        return bool(self.tasks) and not (busy and perf_counter() < self._next_at)

    def run(self) -> BackgroundTask:
        """Runs pieces of the first task for one slice of time and returns it. An error ends that task, and no other."""
        task = self.tasks[0]
        began = perf_counter()
        try:
            while perf_counter() - began < SLICE_SECONDS and not task.stream.closed:
                if (progress := next(task.pieces)) is not None:
                    task.outbox.append(progress)
        except Exception as end:
            task.end(end.value if isinstance(end, StopIteration) else as_steering_error(end))
            self._end(task)
        now = perf_counter()
        self._next_at = now + (now - began) * (1 - SHARE) / SHARE
        return task

    def _end(self, task: BackgroundTask) -> None:
        task.pieces.close()
        self.tasks.remove(task)
