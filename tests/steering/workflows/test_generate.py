"""Answers: seeds of their own, one batch, and nothing left behind when a caller goes or a sample fails."""

import asyncio

import pytest

from steering.engine.api import Finish, GenerationRequest, SamplingParams, TokenEvent
from steering.errors import InternalError, InvalidRequest, NonfiniteActivations, SteeringError
from steering.injection.rows import SteeringReport
from steering.vectors import mix
from steering.workflows.generate import answer, answers, assemble
from tests.steering.workflows.linear import LinearEngine

SAMPLED = GenerationRequest("the road", SamplingParams(max_tokens=12, temperature=1.0, seed=7))


def test_first_choice_keeps_the_seed_and_others_differ() -> None:
    assert mix(7, 0) == 7
    seeds = {mix(7, j) for j in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 1 << 64 for seed in seeds)


def test_mixed_seeds_are_fixed_for_ever() -> None:
    """SplitMix64 from state 0 starts with this number in every implementation of it."""
    assert mix(0, 1) == 0xE220A8397B1DCDAF
    assert mix(0, 2) == 0x6E789E6AA1B965F4


def test_neighbouring_seeds_do_not_share_choices() -> None:
    assert not {mix(1, j) for j in range(1, 50)} & {mix(2, j) for j in range(1, 50)}


async def test_an_answer_joins_its_events(engine: LinearEngine) -> None:
    found = await answer(engine, SAMPLED)
    assert len(found.tokens) == found.finish.completion_tokens == 12
    assert found.text == engine.tokenizer.decode(found.tokens)
    assert tuple(event.token_id for event in found.events) == found.tokens


def test_last_characters_belong_to_the_text() -> None:
    finish = Finish("stop", 1, 1, 0, SteeringReport())
    found = assemble([TokenEvent(0, 5, "he"), TokenEvent(1, -1, "y", finish=finish)])
    assert (found.text, found.tokens, len(found.events)) == ("hey", (5,), 1)


def test_a_stream_without_an_end_is_a_defect() -> None:
    with pytest.raises(InternalError):
        assemble([TokenEvent(0, 5, "he")])


async def test_samples_run_together_and_replay(engine: LinearEngine) -> None:
    first = await answers(engine, SAMPLED, 4)
    assert engine.peak == 4
    assert len({one.text for one in first}) == 4
    assert [one.text for one in await answers(engine, SAMPLED, 4)] == [one.text for one in first]
    assert (await answer(engine, SAMPLED)).text == first[0].text


async def test_n_must_be_positive(engine: LinearEngine) -> None:
    with pytest.raises(InvalidRequest, match="at least 1"):
        await answers(engine, SAMPLED, 0)


async def test_a_cancelled_caller_frees_every_row() -> None:
    engine = LinearEngine()
    endless = GenerationRequest("the road", SamplingParams(max_tokens=10**6, temperature=1.0))
    task = asyncio.ensure_future(answers(engine, endless, 5))
    await engine.reached(10)
    assert engine.running == 5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


async def test_one_failed_sample_ends_the_others() -> None:
    def fails(request: GenerationRequest, index: int) -> SteeringError | None:
        return NonfiniteActivations("too much") if request.sampling.seed == mix(7, 2) and index == 3 else None

    engine = LinearEngine(fails=fails)
    with pytest.raises(NonfiniteActivations):
        await answers(engine, SAMPLED, 4)
    assert engine.running == 0
