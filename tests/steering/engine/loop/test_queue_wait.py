"""The time that requests wait for a row of the batch."""

from steering.engine.options import EngineLimits
from tests.steering.engine.loop.scheduled import World, request


def test_the_time_until_a_row_is_counted_once_for_each_live_request() -> None:
    world = World(blocks=4, limits=EngineLimits(max_running=1))
    first, second = request(4, 1), request(4, 1)
    first.arrived -= 5.0
    second.arrived -= 7000.0  # far longer than the test may be held up
    world.put([first, second])
    queue = world.scheduler.live
    assert (queue.admitted, queue.wait_seconds) == (0, 0.0)
    world.scheduler.admit()
    assert queue.admitted == 1
    assert 5.0 <= queue.wait_seconds < 7000.0
    world.scheduler.preempt(first)
    world.scheduler.release(first)
    world.scheduler.admit()
    assert queue.admitted == 1, "a preempted request is not counted again"
    world.scheduler.release(first)
    world.scheduler.admit()
    assert queue.admitted == 2
    assert queue.wait_seconds >= 7005.0
