"""The prefix cache and steering: whatever is cached, a request's tokens are those of a cold run."""

from itertools import count
from typing import Any

import pytest

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.vllm.engine import VllmEngine
from steering.plan.types import UNSTEERED, SteeringPlan
from tests.engines import Outcome, run
from tests.plans import plan_for, vectors_for

pytestmark = pytest.mark.embedded

BLOCK = 128
LENGTH = 3 * BLOCK + 10


def prompt(number: int) -> tuple[int, ...]:
    """A prompt of three whole blocks that no other test begins with."""
    return tuple(1000 + number + 7 * at for at in range(LENGTH))


async def plan(engine: VllmEngine, vector: str = "alpha", **fields: Any) -> SteeringPlan:
    items = [{"vector": vector, "strength": 3.0, "layers": [10], **fields}]
    return await plan_for(items, vectors_for(engine.info, scale=60.0), engine.info)


SALTS = count()


async def answer(
    engine: VllmEngine,
    ids: tuple[int, ...],
    steering: SteeringPlan = UNSTEERED,
    *,
    cold: bool = False,
    tokens: int = 24,
) -> Outcome:
    """cold: under a salt of its own, so that nothing is cached."""
    salt = f"cold {next(SALTS)}" if cold else ""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return await run(engine, GenerationRequest(ids, sampling, steering, cache_salt=salt))


async def test_the_engine_knows_that_its_block_hashes_know_steering(engine: VllmEngine) -> None:
    assert engine.client.hashes_know_steering
    assert engine.client.block_size == BLOCK


async def test_a_steered_prompt_shares_nothing_with_a_plain_one_and_all_with_itself(engine: VllmEngine) -> None:
    ids, steering, other = prompt(1), await plan(engine), await plan(engine, "beta")
    cold_steered, cold_plain = await answer(engine, ids, steering, cold=True), await answer(engine, ids, cold=True)
    cold_other = await answer(engine, ids, other, cold=True)
    assert cold_steered.tokens != cold_plain.tokens != cold_other.tokens
    expected = [
        (steering, 0, cold_steered),
        (UNSTEERED, 0, cold_plain),
        (steering, 3, cold_steered),
        (other, 0, cold_other),
    ]
    for steered, blocks, cold in expected:
        found = await answer(engine, ids, steered)
        assert (found.finish.cached_tokens, found.tokens) == (blocks * BLOCK, cold.tokens)


async def test_steering_of_generated_tokens_shares_the_prompt_with_plain_requests(engine: VllmEngine) -> None:
    ids, steering = prompt(2), await plan(engine, scope={"tokens": "generated"})
    cold = await answer(engine, ids, steering, cold=True)
    await answer(engine, ids)
    found = await answer(engine, ids, steering)
    assert (found.finish.cached_tokens, found.tokens) == (3 * BLOCK, cold.tokens)


async def test_a_plain_second_turn_over_a_steered_answer_equals_its_cold_run(engine: VllmEngine) -> None:
    ids, steering = prompt(3), await plan(engine, scope={"tokens": "generated"})
    first = await answer(engine, ids, steering, tokens=2 * BLOCK)
    turn = (*ids, *first.tokens, 77, 78, 79, 80)
    cold, cold_steered = await answer(engine, turn, cold=True), await answer(engine, turn, steering, cold=True)
    for steered, its_cold in ((UNSTEERED, cold), (steering, cold_steered), (UNSTEERED, cold), (steering, cold_steered)):
        found = await answer(engine, turn, steered)
        assert found.tokens == its_cold.tokens
        assert found.finish.cached_tokens >= 3 * BLOCK


async def test_salts_keep_the_prompts_of_callers_apart(engine: VllmEngine) -> None:
    ids = prompt(4)
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    for salt, blocks in (("one", 0), ("two", 0), ("one", 3)):
        found = await run(engine, GenerationRequest(ids, sampling, cache_salt=salt))
        assert found.finish.cached_tokens == blocks * BLOCK


async def test_where_hashes_do_not_know_steering_salts_keep_plans_apart(engine: VllmEngine) -> None:
    ids, steering = prompt(5), await plan(engine, scope={"tokens": "generated"})
    cold, cold_plain = await answer(engine, ids, steering, cold=True), await answer(engine, ids, cold=True)
    engine.client.hashes_know_steering = False
    try:
        for steered, blocks, its_cold in ((steering, 0, cold), (UNSTEERED, 0, cold_plain), (steering, 3, cold)):
            found = await answer(engine, ids, steered)
            assert (found.finish.cached_tokens, found.tokens) == (blocks * BLOCK, its_cold.tokens)
    finally:
        engine.client.hashes_know_steering = True


async def test_the_report_does_not_depend_on_what_was_cached(engine: VllmEngine) -> None:
    ids, steering = prompt(6), await plan(engine)
    first, second = await answer(engine, ids, steering), await answer(engine, ids, steering)
    assert second.finish.cached_tokens == 3 * BLOCK
    assert second.finish.steering.tokens == first.finish.steering.tokens
    assert second.finish.steering.fired_at == first.finish.steering.fired_at
    assert second.finish.steering.total == pytest.approx(first.finish.steering.total, rel=1e-4)


async def test_a_window_that_counts_from_the_end_of_the_prompt_is_never_shared(engine: VllmEngine) -> None:
    ids, steering = prompt(7), await plan(engine, scope={"tokens": "prompt", "start": 1, "end": -5})
    first, second = await answer(engine, ids, steering), await answer(engine, ids, steering)
    assert second.finish.cached_tokens == 0
    assert second.tokens == first.tokens
