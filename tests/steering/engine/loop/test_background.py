"""Background tasks: urgent ones first, each kind in the order in which it came."""

from collections.abc import Iterator

import pytest
import torch

from steering.engine.transformers.loop import MAX_WAITING, PATIENT_TURN, BackgroundQueue
from steering.engine.transformers.request import BackgroundTask
from steering.errors import EngineDead, InternalError, Overloaded
from tests.steering.engine.loop.driven import open_stream


def task(*, urgent: bool = True, error: Exception | None = None) -> BackgroundTask:
    """A task without end, each of whose pieces closes its slice; or one that fails."""
    stream = open_stream()

    def pieces() -> Iterator[object]:
        while True:
            if error is not None:
                raise error
            stream.closed = True  # ends the slice, whatever time it took
            yield None

    return BackgroundTask(stream, pieces(), urgent)  # type: ignore[arg-type]


def advanced(queue: BackgroundQueue) -> BackgroundTask:
    """Runs one slice and returns whose it was; the task goes on."""
    chosen = queue.due(busy=False)
    assert chosen is not None
    queue.run(chosen)
    chosen.stream.closed = False
    return chosen


def test_urgent_tasks_do_not_overtake_one_that_has_begun() -> None:
    """Engine A9, N3: 1,600 that came later ended before the first."""
    queue, first = BackgroundQueue(), task()
    assert queue.enqueue(first)
    assert advanced(queue) is first
    later = [task() for _ in range(5)]
    assert all(queue.enqueue(one) for one in later)
    assert all(advanced(queue) is first for _ in range(2 * PATIENT_TURN))
    for ended, following in zip([first, *later], [*later, None], strict=True):
        ended.stream.closed = True
        assert queue.due(busy=False) is following


def test_who_is_waited_for_comes_before_a_fit_that_has_begun_and_leaves_it_its_turns() -> None:
    queue, fit, urgent = BackgroundQueue(), task(urgent=False), task()
    queue.enqueue(fit)
    assert advanced(queue) is fit
    queue.enqueue(urgent)
    turns = [advanced(queue) for _ in range(4 * PATIENT_TURN)]
    assert turns.count(fit) == 4
    assert turns.count(urgent) == 4 * (PATIENT_TURN - 1)


def test_both_queues_together_are_bounded() -> None:
    queue = BackgroundQueue()
    assert all(queue.enqueue(task(urgent=bool(n % 2))) for n in range(MAX_WAITING))
    refused = task()
    assert not queue.enqueue(refused)
    assert isinstance(refused.outbox[-1], Overloaded)
    assert len(queue) == MAX_WAITING


def test_an_error_ends_its_task_and_one_of_the_device_the_loop() -> None:
    queue, bad, good = BackgroundQueue(), task(error=ValueError("no")), task()
    queue.enqueue(bad)
    queue.enqueue(good)
    queue.run(bad)
    assert isinstance(bad.outbox[-1], InternalError)
    assert queue.tasks == [good]
    lost = task(error=torch.AcceleratorError("CUDA error: unspecified launch failure"))
    queue.enqueue(lost)
    with pytest.raises(EngineDead):
        queue.run(lost)
    assert lost in queue.tasks, "the loop that ends tells all who are here"
