"""Prompt KV is shared where, and only where, a later prompt would compute the same (T1)."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.scheduler import PrefillBudget
from steering.errors import NonfiniteActivations
from steering.injection.rows import SteeringReport
from steering.plan.types import DoseGuard, SteeringPlan
from tests.engines import family_engine, run, run_all, run_alone, run_at_once, sampling
from tests.plans import plan_for, random_items, vectors_for

SYSTEM = tuple(b"You are a helpful assistant who answers all questions in a friendly and short way. ")
COLD = EngineLimits(share_prefixes=False)


def prompt(text: str) -> tuple[int, ...]:
    return (*SYSTEM, *text.encode())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
async def test_steered_plain_steered_on_one_prompt(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Random orders of plans over one prompt: each equals its cold run, and plain text is computed once."""
    async with family_engine(family, hf_byte_tokenizer, COLD) as cold:
        vectors = vectors_for(cold.info)
        plans = [await plan_for(random_items(seed, cold.info.layer_count), vectors, cold.info) for seed in range(8)]
        plans += [await plan_for([], vectors, cold.info)] * 2
        requests = [GenerationRequest(prompt(f"What is {n % 2}?"), sampling(6), plan) for n, plan in enumerate(plans)]
        expected = await run_all(cold, requests)
        assert cold.stats().cached_tokens == 0
    async with family_engine(family, hf_byte_tokenizer) as engine:
        rng = random.Random(1)
        for _ in range(3):
            order = list(range(len(requests)))
            rng.shuffle(order)
            for index in order:
                assert (await run(engine, requests[index])).tokens == expected[index].tokens
        assert engine.stats().cached_tokens > 0


def assert_same_report(one: SteeringReport, other: SteeringReport) -> None:
    assert (one.fired, one.fired_at) == (other.fired, other.fired_at)
    assert [doses.keys() for doses in one.doses] == [doses.keys() for doses in other.doses]
    for doses, others in zip(one.doses, other.doses, strict=True):
        assert doses == pytest.approx(others, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
async def test_a_shared_prompt_is_reported_as_a_computed_one(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Doses, and whether and when each intervention acted: over random plans, alone and together."""
    async with family_engine(family, hf_byte_tokenizer, COLD) as cold:
        vectors = vectors_for(cold.info)
        plans = [await plan_for(random_items(seed, cold.info.layer_count), vectors, cold.info) for seed in range(24)]
        requests = [GenerationRequest(prompt("What is it?"), sampling(5), plan) for plan in plans]
        expected = await run_alone(cold, requests)
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(prefill_tokens=24)) as engine:
        first = await run_alone(engine, requests)
        shared = [*await run_alone(engine, requests), *await run_all(engine, requests)]
    for outcome, expected_outcome in zip([*first, *shared], expected * 3, strict=True):
        assert_same_report(outcome.finish.steering, expected_outcome.finish.steering)
    steered_prompts = [index for index, plan in enumerate(plans) if plan.prompt_fingerprint and plan.reusable]
    assert len(steered_prompts) >= 5
    assert all(shared[index].finish.cached_tokens > 0 for index in steered_prompts)


LATER = {"tokens": "generated"}
SAME_PROMPT: list[list[dict[str, object]]] = [
    [{"vector": "alpha", "layers": [1]}, {"vector": "beta", "layers": [1], "operation": "ablate"}],
    [
        {"vector": "gamma", "layers": [1], "operation": "clamp", "high": 0.1, "scope": LATER},
        {"vector": "beta", "layers": [1], "operation": "ablate", "scope": {"tokens": "prompt"}},
        {"vector": "alpha", "layers": [1], "schedule": {"kind": "linear", "tokens": 3}},
        {"vector": "delta", "layers": [0, 1], "scope": LATER},
    ],
]


@pytest.mark.parametrize("bound", [None, DoseGuard(0.3, "clamp")])
async def test_steering_that_overflows_acts_where_it_acts_alone(
    bound: DoseGuard | None, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """0 times infinity is no number. In the keys of a prompt that is shared it would end every later request."""
    item = {"vector": "alpha", "layers": [1], "unit": "relative", "strength": 3e38}
    never = {"vector": "beta", "above": 1e6, "layer": 0, "at": "token"}
    asked = prompt("And now?")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        later = await plan_for([item | {"scope": LATER}], vectors, engine.info, bound)
        with pytest.raises(NonfiniteActivations):
            await run(engine, GenerationRequest(asked, sampling(4), later))
        free = await run(engine, GenerationRequest(asked, sampling(4)))
        unmet = await plan_for([item | {"when": never}], vectors, engine.info, bound)
        assert (await run(engine, GenerationRequest(asked, sampling(4), unmet))).tokens == free.tokens
        assert free.finish.cached_tokens > 0
    async with family_engine("llama", hf_byte_tokenizer, COLD) as cold:
        assert free.tokens == (await run(cold, GenerationRequest(asked, sampling(4)))).tokens


async def test_measures_are_shared_between_plans_that_number_their_steps_differently(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer, COLD) as cold:
        vectors = vectors_for(cold.info)
        plans = [await plan_for(items, vectors, cold.info) for items in SAME_PROMPT]
        assert plans[0].prompt_fingerprint == plans[1].prompt_fingerprint
        requests = [GenerationRequest(prompt("And now?"), sampling(4), plan) for plan in plans]
        expected = await run_alone(cold, requests)
    for order in ((0, 1), (1, 0)):
        async with family_engine("llama", hf_byte_tokenizer) as engine:
            outcomes = [await run(engine, requests[index]) for index in order]
        assert outcomes[1].finish.cached_tokens > 0
        for index, outcome in zip(order, outcomes, strict=True):
            assert_same_report(outcome.finish.steering, expected[index].finish.steering)


async def test_adds_that_cancel_on_the_prompt_are_measured_there(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Their sum changes nothing, but each has a dose: unsteered requests, which measure none, share nothing with them."""
    items = [{"vector": "alpha", "layers": [1], "strength": s, "scope": {"tokens": "prompt"}} for s in (1.0, -1.0)]
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plan = await plan_for(items, vectors_for(engine.info), engine.info)
        await run(engine, GenerationRequest(prompt("Why?"), sampling(2)))
        outcomes = [await run(engine, GenerationRequest(prompt("Why?"), sampling(2), plan)) for _ in range(2)]
    assert [outcome.finish.cached_tokens > 0 for outcome in outcomes] == [False, True]
    assert_same_report(outcomes[0].finish.steering, outcomes[1].finish.steering)


async def test_who_shares_with_whom(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)

        async def plan(**scope: object) -> SteeringPlan:
            return await plan_for([{"vector": "alpha", "layers": [1], "scope": scope}], vectors, engine.info)

        plain = GenerationRequest(prompt("Why?"), sampling(4))
        later = GenerationRequest(prompt("Why?"), sampling(4), await plan(tokens="generated"))
        prompts = GenerationRequest(prompt("Why?"), sampling(4), await plan(tokens="prompt"))
        everywhere = GenerationRequest(prompt("Why?"), sampling(4), await plan(tokens="all"))
        tail = GenerationRequest(prompt("Why?"), sampling(4), await plan(tokens="prompt", start=-20))
        salted = GenerationRequest(prompt("Why?"), sampling(4), cache_salt="another key")
        order = [plain, later, prompts, everywhere, tail, tail, salted, plain]
        counts = [(await run(engine, request)).finish.cached_tokens for request in order]
    whole = (len(prompt("Why?")) - 1) // BLOCK * BLOCK
    # the generated scope shares with plain; prompt and all steer the prompt alike; a window from the end, nobody
    assert counts == [0, whole, 0, whole, 0, 0, 0, whole]


async def test_a_shared_system_prompt_is_computed_once(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        requests = [GenerationRequest(prompt(f"Question {n}"), sampling(4)) for n in range(10)]
        outcomes = await run_all(engine, requests)
        shared = len(SYSTEM) // BLOCK * BLOCK
        assert sum(outcome.finish.cached_tokens == 0 for outcome in outcomes) == 1
        assert sum(outcome.finish.cached_tokens >= shared for outcome in outcomes) == 9
        assert engine.stats().prompt_tokens == sum(len(r.prompt) for r in requests) - engine.stats().cached_tokens


async def test_a_conversation_continues_from_its_own_answer(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        first = await run(engine, GenerationRequest(prompt("Tell me more"), sampling(40)))
        longer = (*prompt("Tell me more"), *first.tokens, *b" and then?")
        again = await run(engine, GenerationRequest(longer, sampling(8)))
        assert again.finish.cached_tokens > len(prompt("Tell me more"))
    async with family_engine("llama", hf_byte_tokenizer, COLD) as cold:
        assert (await run(cold, GenerationRequest(longer, sampling(8)))).tokens == again.tokens


async def test_a_steered_answer_is_measured_again_when_it_comes_back_as_a_prompt(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        plan = await plan_for([{"vector": "alpha", "layers": [1]}], vectors_for(engine.info), engine.info)
        asked = prompt("Tell me more")
        first = await run(engine, GenerationRequest(asked, sampling(40), plan))
        longer = (*asked, *first.tokens, *b" and then?")
        again = await run(engine, GenerationRequest(longer, sampling(8), plan))
        assert again.finish.cached_tokens == (len(asked) - 1) // BLOCK * BLOCK
    async with family_engine("llama", hf_byte_tokenizer, COLD) as cold:
        expected_outcome = await run(cold, GenerationRequest(longer, sampling(8), plan))
    assert again.tokens == expected_outcome.tokens
    assert_same_report(again.finish.steering, expected_outcome.finish.steering)


async def test_hysteresis_reads_the_whole_prompt_wherever_it_acts(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Its state at the first generated token depends on every prompt position, so no position is taken over."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        when = {"vector": "beta", "at": "token", "layer": 0}
        for above in (0.1, 0.2, 0.3):
            item = {"vector": "alpha", "layers": [1], "strength": 3.0, "scope": {"tokens": "generated"}}
            plan = await plan_for([{**item, "when": {**when, "above": above, "until": -9.0}}], vectors, engine.info)
            one, other = [await run(engine, GenerationRequest(prompt("And?"), sampling(6), plan)) for _ in range(2)]
            assert one.tokens == other.tokens
            assert one.finish.steering.fired_at == other.finish.steering.fired_at
            assert other.finish.cached_tokens == 0


async def test_the_least_recently_used_prompt_goes_first(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    block_bytes = 2 * 3 * 2 * BLOCK * 8 * 4
    async with family_engine("llama", hf_byte_tokenizer, EngineLimits(cache_bytes=16 * block_bytes)) as engine:
        for number in range(20):
            await run(engine, GenerationRequest(tuple(f"{number:03d}".encode()) + SYSTEM, sampling(2)))
            assert engine.stats().blocks_cached <= 16
        hit = await run(engine, GenerationRequest(tuple(b"019") + SYSTEM, sampling(2)))
        miss = await run(engine, GenerationRequest(tuple(b"000") + SYSTEM, sampling(2)))
        assert (hit.finish.cached_tokens > 0, miss.finish.cached_tokens) == (True, 0)


class Unhurried(PrefillBudget):
    """Gives a pass all positions that the limits allow, however long earlier passes took."""

    def positions(self, streams: int, *, background: bool) -> int:
        """See PrefillBudget.positions."""
        del streams, background
        return EngineLimits().idle_prefill_tokens


async def test_equal_prompts_are_computed_once_in_one_pass(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Sixteen answers to one prompt: the first computes it, the others share its blocks in the same pass."""
    asked = prompt("What is it?")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        requests = [GenerationRequest(asked, sampling(2, temperature=1.0, seed=n)) for n in range(16)]
        engine._scheduler.budget = Unhurried(EngineLimits())
        steps = engine.stats().steps
        await run_at_once(engine, requests)
        shared = (len(asked) - 1) // BLOCK * BLOCK
        assert engine.stats().prompt_tokens == len(asked) + 15 * (len(asked) - shared)
        assert engine.stats().cached_tokens == 15 * shared
        assert engine.stats().steps - steps <= 4  # one of them has no pass; one each would be 16
    async with family_engine("llama", hf_byte_tokenizer, COLD) as cold:
        cold._scheduler.budget = Unhurried(EngineLimits())
        steps = cold.stats().steps
        await run_at_once(cold, requests)
        assert cold.stats().steps - steps <= 4  # nobody waits for blocks that will not be shared


async def test_a_long_prompt_in_pieces_is_computed_once_for_all_who_ask(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    asked = (*tuple(range(200)), 7)
    limits = EngineLimits(prefill_tokens=32, idle_prefill_tokens=32)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        await run_all(engine, [GenerationRequest(asked, sampling(2, temperature=1.0, seed=n)) for n in range(4)])
        assert engine.stats().prompt_tokens == 201 + 3 * (201 - 192)


async def test_nothing_is_shared_that_was_computed_before_something_faster_arrived(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Its last bits may differ from those of what would be computed now."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        request = GenerationRequest(prompt("Who?"), sampling(2))
        before = [(await run(engine, request)).finish.cached_tokens for _ in range(2)]
        engine._install(lambda: None)
        after = [(await run(engine, request)).finish.cached_tokens for _ in range(2)]
        assert [cached > 0 for cached in (*before, *after)] == [False, True, False, True]
