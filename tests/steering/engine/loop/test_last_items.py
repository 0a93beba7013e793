"""Every request gets exactly one last item, wherever the loop dies."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.answers import Stream
from steering.engine.options import EngineLimits
from steering.engine.transformers.loop import MAX_WAITING, EngineLoop
from steering.engine.transformers.request import BackgroundTask, Pieces
from steering.engine.transformers.runner import ModelRunner
from steering.errors import EngineDead, Overloaded
from steering.model.loading import LoadedModel, opened
from tests.families import FAMILIES
from tests.steering.engine.loop.driven import DrivenLoop, answer_of, open_stream, runner_of, sequence_of, tokens_of

DEAD = EngineDead("the engine has stopped after a defect")


@pytest.fixture
def model(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[ModelRunner, LoadedModel]]:
    """The tiny model, and a runner of it with 64 blocks."""
    loaded = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny")
    runner = runner_of(loaded, 64)
    yield runner, loaded
    runner.close()


def failing_at(call: int) -> Callable[[], float]:
    """A clock that one of its calls finds without memory."""
    calls = count(1)

    def clock() -> float:
        if next(calls) == call:
            raise MemoryError
        return 0.0

    return clock


class FailingOnce:
    """Stands for the event loop of callers: what is sent to them arrives at once, but the first time there is no memory."""

    def __init__(self) -> None:
        self._failed = False

    def call_soon_threadsafe(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls the function now."""
        if not self._failed:
            self._failed = True
            raise MemoryError
        function(*arguments)


def failing_stream() -> Stream:
    """Returns a stream to which the first items cannot be sent."""
    return Stream(cast(Any, FailingOnce()))


def pieces(result: object) -> Pieces:
    """Work that is done after its first piece."""
    yield None
    return result


def run(loop: EngineLoop) -> None:
    """Runs turns."""
    while loop.collect():
        loop.turn()


def dies(loop: EngineLoop) -> None:
    """Has the loop run until it dies."""
    with pytest.raises(MemoryError):
        run(loop)
    loop.end(DEAD)


def test_everybody_hears_once_of_a_loop_that_dies_while_requests_arrive(model: tuple[ModelRunner, LoadedModel]) -> None:
    for call in (1, 2, 3):
        loop = DrivenLoop(*model, EngineLimits(), clock=failing_at(call)).loop
        rows = [sequence_of(model[1], (1, 2, 3, n)) for n in range(3)]
        task = BackgroundTask(open_stream(), pieces("never"))
        loop.submit([*rows, task])
        with pytest.raises(MemoryError):
            loop.collect()
        loop.end(DEAD)
        assert [answer_of(row) for row in rows] == [DEAD] * 3
        assert list(task.stream._items) == [DEAD]


def test_everybody_hears_once_of_a_loop_that_dies_while_an_answer_is_sent(
    model: tuple[ModelRunner, LoadedModel],
) -> None:
    loop = DrivenLoop(*model, EngineLimits()).loop
    ended, going_on = sequence_of(model[1], (1, 2, 3), 1), sequence_of(model[1], (1, 2, 4), 8)
    ended.stream = failing_stream()
    loop.submit([ended, going_on])
    dies(loop)
    assert len(tokens_of(ended)) == 1
    assert answer_of(going_on) is DEAD


def test_everybody_hears_once_of_a_loop_that_dies_while_the_result_of_a_task_is_sent(
    model: tuple[ModelRunner, LoadedModel],
) -> None:
    loop = DrivenLoop(*model, EngineLimits()).loop
    ended, waiting = BackgroundTask(failing_stream(), pieces("found")), BackgroundTask(open_stream(), pieces("never"))
    loop.submit([ended, waiting])
    dies(loop)
    assert [list(task.stream._items) for task in (ended, waiting)] == [["found"], [DEAD]]


def test_everybody_hears_once_of_a_loop_that_dies_while_a_task_is_refused(
    model: tuple[ModelRunner, LoadedModel],
) -> None:
    loop = DrivenLoop(*model, EngineLimits()).loop
    tasks = [BackgroundTask(open_stream(), pieces("never")) for _ in range(MAX_WAITING)]
    refused, behind = BackgroundTask(failing_stream(), pieces("never")), sequence_of(model[1], (1, 2, 3))
    loop.submit([*tasks, refused, behind])
    dies(loop)
    (item,) = refused.stream._items
    assert isinstance(item, Overloaded)
    assert [list(task.stream._items) for task in tasks] == [[DEAD]] * MAX_WAITING
    assert answer_of(behind) is DEAD
