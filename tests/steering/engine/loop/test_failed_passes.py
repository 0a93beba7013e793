"""A pass that fails ends those in it, and nobody else keeps what it did not write. One that does not fit into memory is computed again in
smaller ones; a device that has failed ends the engine."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from app.core.watchdog import Watchdog
from steering.engine.api import CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.loop import MOST_FAILED
from steering.engine.transformers.request import Request
from steering.engine.transformers.scheduler import BACKGROUND_TURN, PrefillBudget
from steering.errors import EngineDead, InternalError, OutOfMemory
from steering.model.loading import LoadedModel, opened
from tests.engines import engine_over, run, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.polling import until
from tests.steering.engine.loop.driven import (
    DrivenLoop,
    answer_of,
    finish_of,
    runner_of,
    sequence_of,
    tokens_of,
)

PROMPT = tuple((i * 7) % 200 for i in range(150))


@pytest.fixture
def driven(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[DrivenLoop, LoadedModel]]:
    """A loop over the tiny model with 64 blocks, and the model."""
    loaded = opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny")
    runner = runner_of(loaded, 64)
    yield DrivenLoop(runner, loaded, EngineLimits()), loaded
    runner.close()


def fail(*_: object) -> None:
    """A hook of a model with a defect."""
    raise ValueError("this pass was chosen to fail")


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
    assert isinstance(answer_of(background), InternalError)
    assert isinstance(answer_of(stream), InternalError)
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
    released: list[Request] = []

    def release(sequence: Request) -> None:
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
    assert [type(answer_of(row)) for row in rows] == [InternalError if row in released else EngineDead for row in rows]


ILLEGAL = "CUDA error: an illegal memory access was encountered"


class FailingModel:
    """Raises an error in every pass of a model while it is `on`, or in those with more rows than fit. passes: how many were begun."""

    def __init__(self, model: Any, error: Exception, *, fitting: int = 0) -> None:
        self.passes, self.on = 0, True
        self._error, self._fitting = error, fitting
        layers = model.model.layers
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        layers[1].register_forward_pre_hook(self._fail)

    def _begin(self, _: Any, args: Any, kwargs: Any) -> None:
        self.passes += 1
        positions = kwargs["position_ids"][0]
        self._rows = 1 + int((positions[1:] != positions[:-1] + 1).sum())

    def _fail(self, *_: Any) -> None:
        """After the first layer has been steered and has written its keys and values."""
        if self.on and self._rows > self._fitting:
            raise self._error


async def test_an_error_of_the_device_ends_the_engine(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Engine A6, N2: the context of the device answers nothing any more, and a server that seems healthy would keep its load."""
    model = FAMILIES["llama"]()
    async with engine_over(model, hf_byte_tokenizer) as engine:
        FailingModel(model, torch.AcceleratorError(ILLEGAL))
        outcomes = await asyncio.gather(
            *(run(engine, GenerationRequest((1, 2, n), sampling(4))) for n in range(3)), return_exceptions=True
        )
        assert [type(one) for one in outcomes] == [EngineDead] * 3
        await until(lambda: not engine.stats().alive)
        assert Watchdog(120.0).failure(engine.stats()) is not None
        with pytest.raises(EngineDead):
            await run(engine, GenerationRequest((1, 2), sampling(2)))


async def test_an_error_of_the_device_in_background_work_ends_the_engine(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = FAMILIES["llama"]()
    async with engine_over(model, hf_byte_tokenizer) as engine:

        def lost(*_: object) -> None:
            raise torch.AcceleratorError(ILLEGAL)

        model.register_forward_pre_hook(lost)
        with pytest.raises(EngineDead):
            await engine.unembed(torch.zeros(3, engine.info.d_model))
        await until(lambda: not engine.stats().alive)


def test_passes_that_fail_one_after_the_other_end_the_loop(driven: tuple[DrivenLoop, LoadedModel]) -> None:
    """Libraries raise errors of the device as RuntimeError. One pass that succeeds in between shows that it is none."""
    loop, loaded = driven
    failing = FailingModel(loaded.model, RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))

    def ask() -> object:
        row = sequence_of(loaded, (1, 2, 3), 1)
        loop.turn([row])
        return answer_of(row)

    assert all(isinstance(ask(), InternalError) for _ in range(MOST_FAILED - 1))
    failing.on = False
    assert not isinstance(ask(), InternalError)
    failing.on = True
    assert all(isinstance(ask(), InternalError) for _ in range(MOST_FAILED - 1))
    last = sequence_of(loaded, (1, 2, 3), 1)
    with pytest.raises(EngineDead, match="one after the other") as death:
        loop.turn([last])
    loop.loop.end(death.value)
    assert isinstance(answer_of(last), EngineDead)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["allocator", "device"])
def test_a_pass_that_does_not_fit_is_computed_again_in_smaller_ones(
    error: Exception, driven: tuple[DrivenLoop, LoadedModel]
) -> None:
    """Two rows fit, four do not: every answer, its report, and a text that is read are those of a device with more memory."""
    loop, loaded = driven
    vectors = vectors_for(loaded.info)
    plans = [asyncio.run(plan_for(random_items(seed, 3), vectors, loaded.info)) for seed in (3, 5, 8)]

    def ask() -> list[Request]:
        rows = [sequence_of(loaded, (*PROMPT[n : n + 20],), 6, plan=plan, salt=str(n)) for n, plan in enumerate(plans)]
        return [*rows, sequence_of(loaded, PROMPT[:30], capture=CaptureSpec((0, 2), "all"))]

    expected, rows = ask(), ask()
    for row in expected:
        loop.turn([row])
        loop.finish()
    failing = FailingModel(loaded.model, error, fitting=2)
    loop.turn(rows)
    loop.finish()
    loop.assert_idle()
    assert failing.passes > 1
    for row, alone in zip(rows[:-1], expected[:-1], strict=True):
        assert tokens_of(row) == tokens_of(alone)
        ours, theirs = finish_of(row).steering, finish_of(alone).steering
        assert (ours.fired_at, ours.tokens, ours.incomplete) == (theirs.fired_at, theirs.tokens, False)
        for doses, others in zip(ours.doses, theirs.doses, strict=True):
            assert doses == pytest.approx(others, rel=1e-4, abs=1e-6)
    read, alone_read = answer_of(rows[-1]), answer_of(expected[-1])
    torch.testing.assert_close(read.activations, alone_read.activations, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


def test_what_does_not_fit_a_second_time_ends(driven: tuple[DrivenLoop, LoadedModel]) -> None:
    """Nothing is tried for ever, and the engine serves on."""
    loop, loaded = driven
    failing = FailingModel(loaded.model, torch.OutOfMemoryError("out of memory"))
    rows = [sequence_of(loaded, PROMPT[n : n + 12], 3, salt=str(n)) for n in range(4)]
    loop.turn(rows)
    loop.finish()
    assert all(isinstance(answer_of(row), OutOfMemory) for row in rows)
    assert failing.passes == 4, "one for all four, one for half of them, and then one for each that is left"
    failing.on = False
    later = sequence_of(loaded, PROMPT[:40], 3)
    loop.turn([later])
    loop.finish()
    assert len(tokens_of(later)) == 3
    loop.assert_idle()
