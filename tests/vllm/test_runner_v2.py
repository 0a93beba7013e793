"""Model runner V2 is steered as the transformers engine is. Its Triton kernels are interpreted: `make test-vllm-v2` sets the environment."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.vllm.engine import VllmEngine
from steering.errors import NonfiniteActivations
from steering.injection.readings import MonitorSet, Reading
from steering.model.loading import load
from tests.engines import random_requests, run, run_all, run_alone, sampling
from tests.plans import plan_adding, plan_for, vectors_for
from tests.steering.injection.test_monitors import monitor
from tests.vllm.conftest import LIMITS, opened
from tests.vllm.test_equal_tokens import assert_equal

PROMPTS = [tuple(range(10 + number, 110 + 7 * number)) for number in range(4)]
AT_TOKEN = {"vector": "beta", "above": 0.0, "layer": 2, "at": "token"}
PLANS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "all layers": [{"vector": "alpha", "layers": "all", "strength": 0.5}],
    "two in graphs": [
        {"vector": "beta", "operation": "ablate", "layers": "all"},
        {"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}, "unit": "relative", "strength": 0.3},
    ],
    "rotate": [{"vector": "alpha", "operation": "rotate", "degrees": 20.0, "layers": [1]}],
    "hook": [{"vector": "alpha", "operation": "ablate", "layers": "all", "hook": "attention"}],
    "token ids": [{"vector": "alpha", "layers": [1], "strength": 3.0, "scope": {"token_ids": list(range(0, 256, 2))}}],
    "late condition": [{"vector": "alpha", "layers": [0], "when": AT_TOKEN, "scope": {"tokens": "generated"}}],
    "hold": [{"vector": "beta", "strength": 3.0, "layers": [0, 1], "hold": {"score": 0.4}}],
}


@pytest.fixture(scope="module")
def engine(tiny_vllm_folder: Path) -> Iterator[VllmEngine]:
    """Computes at most 64 positions in a step, and its cache holds few sequences. Plain edits are operations of fixed shape."""
    limits = replace(LIMITS, idle_prefill_tokens=64, cache_bytes=3 * 3 * 2 * 128 * 2 * 32 * 4)
    engine = opened(str(tiny_vllm_folder), tiny_vllm_folder, limits=limits, edits_in_graphs=True)
    assert engine.client._llm.vllm_config.use_v2_model_runner
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def reference(tiny_vllm_folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(load(str(tiny_vllm_folder), cache_dir=tiny_vllm_folder, device="cpu", dtype="float32"))
    yield engine
    asyncio.run(engine.close())


async def test_tokens_doses_and_readouts_of_plans_together_equal_the_transformers_engine(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    """In pieces of prompts, and after preemptions: the cache does not hold them all."""
    vectors = vectors_for(engine.info)
    directions = torch.nn.functional.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)))
    readings = (Reading("early", 0, directions[0], 2.0, 0.5), Reading("late", 2, directions[1], 3.0))
    asked = [
        GenerationRequest(
            PROMPTS[number % 4],
            sampling(40, logprobs=1),
            await plan_for(items, vectors, engine.info),
            readings if number % 3 else (),
        )
        for number, items in enumerate(PLANS.values())
    ]
    before = engine.stats()
    for found, expected in zip(await run_all(engine, asked), await run_all(reference, asked), strict=True):
        assert_equal(found, expected)
    assert engine.stats().preemptions > before.preemptions
    assert (await engine.call_workers("steering_resumed"))[0] > 0
    assert (await engine.call_workers("steering_in_graphs"))[0] > 0
    assert (await engine.call_workers("steering_replays"))[0] > 0


async def test_random_plans_sampled_together_equal_each_alone(engine: VllmEngine) -> None:
    asked = await random_requests(engine.info, PROMPTS, 20, 9)
    together, alone = await run_all(engine, asked), await run_alone(engine, asked)
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    for one, its in zip(together, alone, strict=True):
        assert one.finish.steering.tokens == its.finish.steering.tokens
        assert one.finish.steering.total == pytest.approx(its.finish.steering.total, rel=1e-3, abs=1e-6)
        assert one.finish.steering.fired_at == its.finish.steering.fired_at


async def test_captures_and_their_logits_equal_the_transformers_engine(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    prompts = [CapturePrompt(prompt) for prompt in PROMPTS]
    for position in ("mean", "all"):
        spec = CaptureSpec((0, 1, 2), position, logits=position == "all", embeddings=True)
        both = zip(await engine.capture(prompts, spec), await reference.capture(prompts, spec), strict=True)
        for found, expected in both:
            torch.testing.assert_close(found.activations, expected.activations, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.embeddings, expected.embeddings)
            if expected.logits is not None:
                torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-2)


async def test_monitors_and_activations_that_are_not_finite_concern_their_request(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    vectors = vectors_for(engine.info, means=True)
    watched = MonitorSet([monitor(vectors["alpha"], layer, -inf, name=str(layer), action="flag") for layer in (0, 2)])
    request = GenerationRequest(PROMPTS[0], sampling(6), monitors=watched)
    infinite = plan_adding(1, torch.full((32,), torch.inf), "inf", prompt_fingerprint="inf")
    failing = asyncio.create_task(run(engine, GenerationRequest(PROMPTS[1], sampling(6), infinite)))
    found, expected = await run(engine, request), await run(reference, request)
    with pytest.raises(NonfiniteActivations):
        await failing
    assert found.tokens == expected.tokens
    for event, its in zip(found.events, expected.events, strict=True):
        scores = {one.monitor.name: one.score for one in event.raised}
        assert scores == pytest.approx({one.monitor.name: one.score for one in its.raised}, rel=1e-3, abs=1e-4)
    assert len(found.events[0].raised) == 2


async def test_a_cached_prompt_equals_its_cold_run(engine: VllmEngine) -> None:
    plan = await plan_for(PLANS["all layers"], vectors_for(engine.info), engine.info)
    prompt = tuple(one % 200 + 20 for one in range(140))
    first, second = [await run(engine, GenerationRequest(prompt, sampling(8), plan)) for _ in range(2)]
    assert (first.finish.cached_tokens, second.finish.cached_tokens) == (0, 128)
    assert second.tokens == first.tokens
    assert second.finish.steering.total == pytest.approx(first.finish.steering.total, rel=1e-3)
