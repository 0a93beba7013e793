"""A pass that fails ends those in it, and nobody else keeps what it did not write."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.options import EngineLimits
from steering.engine.transformers.prefill_budget import PrefillBudget
from steering.engine.transformers.scheduler import BACKGROUND_TURN
from steering.engine.transformers.sequence import Sequence
from steering.errors import EngineDead, OutOfMemory
from steering.model.loading import LoadedModel, opened
from tests.families import FAMILIES
from tests.steering.engine.loop.driven import DrivenLoop, answer_of, runner_of, sequence_of, tokens_of

PROMPT = tuple((i * 7) % 200 for i in range(150))


@pytest.fixture
def driven(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[DrivenLoop, LoadedModel]]:
    """A loop over the tiny model with 64 blocks, and the model."""
    loaded = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny")
    runner = runner_of(loaded, 64)
    yield DrivenLoop(runner, loaded, EngineLimits()), loaded
    runner.close()


def fail(*_: object) -> None:
    """A hook of a model that has no memory left."""
    raise torch.OutOfMemoryError("out of memory: this pass was chosen to fail")


def test_who_waited_for_a_pass_that_failed_computes_the_prompt_itself(driven: tuple[DrivenLoop, LoadedModel]) -> None:
    """A live request with the prompt of a background one, whose smaller budget ends before the prompt does."""
    loop, loaded = driven
    alone = sequence_of(loaded, PROMPT, 8, salt="alone")
    loop.turn([alone])
    loop.finish()
    stream = sequence_of(loaded, (1, 2, 3), 40, salt="stream")
    loop.turn([stream])
    while (loop.scheduler._turn + 1) % BACKGROUND_TURN:
        loop.turn()
    loop.scheduler.budget = PrefillBudget(EngineLimits())
    loop.scheduler.budget.observe(320, 0, 1.0)  # 80 positions of a live prompt in a pass, 48 of a background one
    background, live = (sequence_of(loaded, PROMPT, 8, salt="k", priority=priority) for priority in (1, 0))
    failing = loaded.model.register_forward_pre_hook(fail)
    loop.turn([background, live])
    failing.remove()
    assert isinstance(answer_of(background), OutOfMemory)
    assert isinstance(answer_of(stream), OutOfMemory)
    loop.finish()
    later = sequence_of(loaded, PROMPT, 8, salt="k")
    loop.turn([later])
    loop.finish()
    assert [tokens_of(one) for one in (live, later)] == [tokens_of(alone)] * 2
    loop.assert_idle()


def test_everybody_hears_once_of_a_loop_that_dies_while_it_ends_those_of_a_failed_pass(
    driven: tuple[DrivenLoop, LoadedModel],
) -> None:
    """A device that is lost: the pass fails, and then giving back the second row."""
    runner, loaded = driven[0].runner, driven[1]
    released: list[Sequence] = []

    def release(sequence: Sequence) -> None:
        if released:
            raise RuntimeError("device lost")
        released.append(sequence)
        runner.release(sequence)

    loop = DrivenLoop(runner, loaded, EngineLimits(), release)
    rows = [sequence_of(loaded, (1, 2, 3, n), 4, salt=str(n)) for n in range(3)]
    loaded.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device lost"):
        loop.turn(rows)
    loop.loop.end(EngineDead("the engine has stopped after a defect"))
    assert [type(answer_of(row)) for row in rows] == [OutOfMemory if row in released else EngineDead for row in rows]
