"""What one request does is its own: cuts, preemption, slow readers, aborts, failures."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.options import EngineLimits
from steering.engine.vllm.engine import VllmEngine
from steering.errors import EngineDead, InternalError, InvalidRequest, NonfiniteActivations, Overloaded
from steering.plan.types import SteeringPlan
from tests.engines import random_requests, run, run_all, run_alone, sampling
from tests.plans import plan_adding, plan_for, vectors_for
from tests.polling import until
from tests.vllm.conftest import LIMITS, opened
from tests.vllm.models import save_tiny

PROMPTS = [tuple(range(10 + number, 110 + number)) for number in range(4)]


@pytest.fixture(scope="module")
def cramped(tiny_vllm_folder: Path) -> Iterator[VllmEngine]:
    """An engine that computes at most 64 positions in a step and whose cache holds few sequences."""
    limits = replace(LIMITS, idle_prefill_tokens=64, cache_bytes=3 * 3 * 2 * 128 * 2 * 32 * 4)
    engine = opened(str(tiny_vllm_folder), tiny_vllm_folder, limits=limits)
    yield engine
    asyncio.run(engine.close())


async def test_pieces_of_prompts_and_preemption_change_nothing(cramped: VllmEngine) -> None:
    asked = await random_requests(cramped.info, PROMPTS, 60, 12)
    vectors = vectors_for(cramped.info)
    when, scope = {"vector": "beta", "above": 0.0, "layer": 2, "at": "token"}, {"tokens": "generated"}
    late = {"vector": "alpha", "strength": 1.0, "layers": [0], "when": when, "scope": scope}
    held = {"vector": "beta", "strength": 3.0, "layers": [0, 1], "hold": {"score": 0.4}}
    following = [await plan_for(items, vectors, cramped.info) for items in ([late], [held], [late, held])]
    asked += [replace(asked[3 * number], plan=plan) for number, plan in enumerate(following)]
    alone = await run_alone(cramped, asked)
    before = cramped.stats()
    together = await run_all(cramped, asked)
    assert (await cramped.call_workers("steering_resumed"))[0] > 0
    assert cramped.stats().preemptions > before.preemptions
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    for one, its in zip(together, alone, strict=True):
        assert one.finish.steering.tokens == its.finish.steering.tokens
        assert one.finish.steering.total == pytest.approx(its.finish.steering.total, rel=1e-3, abs=1e-6)
        assert one.finish.steering.fired_at == its.finish.steering.fired_at


async def test_blocks_that_held_what_is_not_finite_harm_no_other_request(cramped: VllmEngine) -> None:
    plain = GenerationRequest(PROMPTS[1], sampling(60))
    expected = await run(cramped, plain)
    change = torch.full((cramped.info.d_model,), torch.inf)
    with pytest.raises(NonfiniteActivations):
        await run(cramped, replace(plain, plan=plan_adding(1, change, "inf", prompt_fingerprint="inf")))
    for salt in ("one", "two", "three"):  # together they have every block
        assert (await run(cramped, replace(plain, cache_salt=salt))).tokens == expected.tokens


async def test_numbers_of_the_scheduler_reach_the_metrics(cramped: VllmEngine) -> None:
    before = cramped.stats()
    long = GenerationRequest(PROMPTS[0], sampling(150))
    stream = cramped.generate(long)  # far from its end after ten tokens, also where this process was kept waiting
    for _ in range(10):
        await anext(stream)
    running = cramped.stats()
    assert running.busy
    assert 0 < running.blocks_used <= running.blocks_total
    await stream.aclose()
    await until(lambda: not cramped.stats().busy)
    after = cramped.stats()
    assert after.steps >= before.steps + 2 + 9  # two pieces of the prompt
    assert (after.blocks_used, after.admitted) == (0, before.admitted + 1)
    assert after.queue_seconds > before.queue_seconds  # vLLM's times of the request are known, and it was queued first
    await run(cramped, replace(long, sampling=sampling(1)))  # by its end the closed one takes no step any more
    settled = cramped.stats().steps
    await run_all(cramped, [GenerationRequest(prompt, sampling(30)) for prompt in PROMPTS])
    assert cramped.stats().steps < settled + 4 * 32  # a step computes several requests


@pytest.mark.embedded
async def test_a_slow_reader_gets_every_token_with_its_own_readout(engine: VllmEngine) -> None:
    plan = await plan_for([{"vector": "alpha", "strength": 0.5, "layers": [3]}], vectors_for(engine.info), engine.info)
    request = GenerationRequest(PROMPTS[0], SamplingParams(max_tokens=12, ignore_eos=True, logprobs=1), plan)
    expected = await run(engine, request)
    events = []
    async for event in engine.generate(request):
        await asyncio.sleep(0.05)
        events.append(event)
    assert [event.token_id for event in events[:-1]] == expected.tokens
    assert [event.logprob for event in events] == [event.logprob for event in expected.events]


def infinite(engine: VllmEngine) -> SteeringPlan:
    change = torch.full((engine.info.d_model,), torch.inf)
    return plan_adding(10, change, "inf", prompt_fingerprint="inf")


@pytest.mark.embedded
async def test_an_infinite_plan_ends_its_request_and_no_other(engine: VllmEngine) -> None:
    plain = GenerationRequest(PROMPTS[1], SamplingParams(max_tokens=20, ignore_eos=True))
    expected = await run(engine, plain)
    bystander = asyncio.create_task(run(engine, plain))
    for _ in range(3):
        with pytest.raises(NonfiniteActivations):
            await run(engine, replace(plain, plan=infinite(engine)))
    assert (await bystander).tokens == expected.tokens
    assert (await run(engine, replace(plain, cache_salt="again"))).tokens == expected.tokens


@pytest.mark.embedded
async def test_a_plan_that_a_worker_cannot_apply_ends_its_request_and_no_other(engine: VllmEngine) -> None:
    plain = GenerationRequest(PROMPTS[2], SamplingParams(max_tokens=20, ignore_eos=True))
    bystander = asyncio.create_task(run(engine, plain))
    broken = plan_adding(3, torch.ones(7), "broken")
    with pytest.raises(InternalError):
        await run(engine, replace(plain, plan=broken))
    assert len((await bystander).tokens) == 20


@pytest.mark.embedded
async def test_values_that_vllm_does_not_allow_are_refused(engine: VllmEngine) -> None:
    with pytest.raises(InvalidRequest, match="temperature"):
        await run(engine, GenerationRequest(PROMPTS[0], SamplingParams(max_tokens=2, temperature=3.0)))
    assert engine.stats().alive


@pytest.mark.embedded
async def test_stop_strings_and_eos_end_an_answer(engine: VllmEngine) -> None:
    free = await run(engine, GenerationRequest("Count: one, two, three,", SamplingParams(max_tokens=20)))
    middle = free.text[4:8]
    stopped = await run(
        engine, GenerationRequest("Count: one, two, three,", SamplingParams(max_tokens=20, stop=(middle,)))
    )
    assert (stopped.text, stopped.finish.reason) == (free.text[: free.text.index(middle)], "stop")
    await until(lambda: engine.stats().running == 0)


@pytest.mark.embedded
async def test_a_queue_that_is_full_refuses(engine: VllmEngine) -> None:
    request = GenerationRequest(PROMPTS[0], sampling(1000))
    streams = [engine.generate(request) for _ in range(3)]
    before = engine._limits
    engine._limits = EngineLimits(max_running=1, max_waiting=2)
    try:
        for stream in streams:
            await anext(stream)
        with pytest.raises(Overloaded):
            await run(engine, request)
    finally:
        engine._limits = before
        for stream in streams:
            await stream.aclose()


async def test_a_dead_worker_ends_every_request_and_is_seen(
    tmp_path: Path, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = save_tiny(tmp_path / "long", hf_byte_tokenizer, max_position_embeddings=8192)
    others = psutil.Process().children(
        recursive=True
    )  # of the engine of this module; the numbers of processes may begin anew
    engine = opened(str(folder), tmp_path)
    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    # so long that it has not ended when the worker is killed, however late that is
    task = asyncio.create_task(run(engine, GenerationRequest(PROMPTS[0], sampling(8000))))
    await until(lambda: engine.stats().generated_tokens > 5)
    worker = next(child for child in children if "Worker" in " ".join([child.name(), *child.cmdline()]))
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EngineDead):
        await task
    await until(lambda: not engine.stats().alive)
    with pytest.raises(EngineDead):
        await run(engine, GenerationRequest(PROMPTS[0], SamplingParams(max_tokens=2)))
    await engine.close()
