"""Background work of the engine's thread: tasks that run in small pieces between the passes of live requests."""

from collections import deque
from time import perf_counter

from steering.engine.transformers.delivery import as_steering_error
from steering.engine.transformers.request import BackgroundTask
from steering.errors import Overloaded

MAX_WAITING = 64
"""Tasks in the queues; one more is refused, so that requests for background work cannot fill the memory."""
SHARE = 0.25
"""Share of the time that background work may take while requests run."""
SLICE_SECONDS = 0.02
"""Pieces run one after the other until this much time is used; one piece may take longer."""
PATIENT_TURN = 4
"""Every fourth slice is that of a task that is not urgent, so that urgent ones cannot starve it."""


class BackgroundQueue:
    """Tasks of the engine's thread: two queues, each first come first served, so that no task overtakes one of its kind that has
    begun. Urgent tasks come first, but for every PATIENT_TURN-th slice."""

    def __init__(self) -> None:
        self._urgent: deque[BackgroundTask] = deque()
        self._patient: deque[BackgroundTask] = deque()
        self._next_at = 0.0
        self._slices = 0

    @property
    def tasks(self) -> list[BackgroundTask]:
        """Returns those that have not ended, in the order in which they would be advanced."""
        turn = self._slices % PATIENT_TURN == PATIENT_TURN - 1
        return [*self._patient, *self._urgent] if turn else [*self._urgent, *self._patient]

    def __len__(self) -> int:
        """How many have not ended. Other threads ask."""
        return len(self._urgent) + len(self._patient)

    def enqueue(self, task: BackgroundTask) -> bool:
        """Adds a task. Returns False where the queues are full; the task's outbox then holds Overloaded."""
        if len(self) >= MAX_WAITING:
            task.pieces.close()
            task.end(Overloaded(f"{MAX_WAITING} background tasks are waiting already; try again shortly"))
            return False
        self._queue_of(task).append(task)
        return True

    def _queue_of(self, task: BackgroundTask) -> deque[BackgroundTask]:
        return self._urgent if task.urgent else self._patient

    def due(self, *, busy: bool) -> BackgroundTask | None:
        """Returns the task that may run now. busy: requests are running, which leaves it its share of the time."""
        for task in [one for one in self.tasks if one.stream.closed]:
            self._end(task)
        if not len(self) or (busy and perf_counter() < self._next_at):
            return None
        return self.tasks[0]

    def run(self, task: BackgroundTask) -> None:
        """Runs pieces of a task for one slice of time. An error ends that task, and no other; raises as `as_steering_error`."""
        began = perf_counter()
        try:
            while perf_counter() - began < SLICE_SECONDS and not task.stream.closed:
                if (progress := next(task.pieces)) is not None:
                    task.outbox.append(progress)
        except Exception as end:
            task.end(end.value if isinstance(end, StopIteration) else as_steering_error(end))
            self._end(task)
        now = perf_counter()
        self._slices += 1
        self._next_at = now + (now - began) * (1 - SHARE) / SHARE

    def _end(self, task: BackgroundTask) -> None:
        task.pieces.close()
        self._queue_of(task).remove(task)
