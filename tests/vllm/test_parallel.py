"""Two processes that share each layer, and two that share the layers, give the tokens and reports of one."""

import asyncio
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from steering.engine import open_engine
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, GenerationRequest
from steering.engine.options import EngineOptions
from steering.engine.vllm.engine import VllmEngine
from steering.errors import UnsupportedParameter
from steering.injection.readings import MonitorSet
from tests.engines import random_requests, run, run_all, sampling
from tests.plans import plan_for, vectors_for
from tests.steering.injection.test_monitors import monitor
from tests.vllm.conftest import opened
from tests.vllm.test_equal_tokens import assert_equal

PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"What would you say about that?")]
# vLLM 0.32 fails an assertion with pipeline stages, a stated size of the cache and no compilation
SETTINGS = {
    "tensor": {"tensor_parallel_size": 2},
    "pipeline": {"pipeline_parallel_size": 2, "compiled": True, "edits_in_graphs": True},
}
IN_GRAPHS: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": "all", "strength": 0.5}],
    [{"vector": "beta", "operation": "ablate", "layers": "all"}, {"vector": "alpha", "layers": [1], "strength": -1.0}],
    [{"vector": "gamma", "operation": "clamp", "low": -0.1, "high": 0.1, "layers": [0]}],
    [{"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}, "unit": "relative", "strength": 0.3}],
]


@pytest.fixture(scope="module", params=list(SETTINGS))
def parallel(request: pytest.FixtureRequest, tiny_vllm_folder: Path) -> Iterator[VllmEngine]:
    engine = opened(str(tiny_vllm_folder), tiny_vllm_folder, **SETTINGS[request.param])
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def single(tiny_vllm_folder: Path) -> Iterator[Engine]:
    options = EngineOptions(str(tiny_vllm_folder), tiny_vllm_folder, device="cpu", dtype="float32", compiled=False)
    engine = open_engine("transformers", options)
    yield engine
    asyncio.run(engine.close())


async def test_edits_inside_compiled_graphs_equal_those_of_one_process(parallel: VllmEngine, single: Engine) -> None:
    vectors = vectors_for(parallel.info)
    plans = [await plan_for(items, vectors, parallel.info) for items in IN_GRAPHS]
    asked = [GenerationRequest(PROMPTS[n % 3], sampling(8, logprobs=1), plan) for n, plan in enumerate(plans)]
    before = await parallel.call_workers("steering_in_graphs")
    for found, expected in zip(await run_all(parallel, asked), await run_all(single, asked), strict=True):
        assert_equal(found, expected)
    counts = zip(before, await parallel.call_workers("steering_in_graphs"), strict=True)
    compiled = len(set(parallel.client.stages.values())) > 1
    assert {now > then for then, now in counts} == {compiled}


async def test_hook_points_equal_those_of_one_process(parallel: VllmEngine, single: Engine) -> None:
    """In compiled stages; two processes that share each layer have parts of a module's output, and no hook points."""
    at: dict[str, Any] = {"layers": "all", "hook": "attention"}
    items: list[list[dict[str, Any]]] = [
        [{"vector": "alpha", "operation": "ablate", **at}],
        [{"operation": "ablate", "head": 1, **at, "layers": [0, 2]}],
    ]
    vectors = vectors_for(single.info)
    plans = [await plan_for(one, vectors, single.info) for one in items]
    if len(set(parallel.client.stages.values())) == 1:
        with pytest.raises(UnsupportedParameter, match="has no hook point 'attention' on this engine"):
            await plan_for(items[0], vectors, parallel.info)
        return
    asked = [GenerationRequest(PROMPTS[0], sampling(8, logprobs=1), plan) for plan in plans]
    for found, expected in zip(await run_all(parallel, asked), await run_all(single, asked), strict=True):
        assert_equal(found, expected)


async def test_tokens_reports_and_captures_equal_those_of_one_process(parallel: VllmEngine, single: Engine) -> None:
    stages = parallel.client.stages
    asked = [
        one
        for one in await random_requests(parallel.info, PROMPTS, 10, 16)
        if one.sampling.temperature == 0 and all(stages[t.layer] == 0 for t in one.plan.thresholds)
    ]
    asked = [one for one in asked if not one.plan.thresholds or len(set(stages.values())) == 1]
    assert len(asked) >= 3
    for found, expected in zip(await run_all(parallel, asked), await run_all(single, asked), strict=True):
        assert found.tokens == expected.tokens
        report, its = found.finish.steering, expected.finish.steering
        assert (report.tokens, report.fired_at) == (its.tokens, its.fired_at)
        assert report.total == pytest.approx(its.total, rel=1e-3, abs=1e-6)
    spec = CaptureSpec(tuple(range(parallel.info.layer_count)), "all", logits=True, embeddings=True)
    prompts = [CapturePrompt(prompt) for prompt in PROMPTS]
    for found_one, its_one in zip(
        await parallel.capture(prompts, spec), await single.capture(prompts, spec), strict=True
    ):
        assert (found_one.activations - its_one.activations).abs().max() < 1e-3
        assert found_one.logits is not None
        assert its_one.logits is not None
        assert (found_one.logits - its_one.logits).abs().max() < 1e-2


async def test_a_condition_across_stages_is_refused(parallel: VllmEngine) -> None:
    when = {"vector": "beta", "above": 0.0, "layer": 0}
    items = [{"vector": "alpha", "strength": 1.0, "layers": [parallel.info.layer_count - 1], "when": when}]
    plan = await plan_for(items, vectors_for(parallel.info), parallel.info)
    request = GenerationRequest(PROMPTS[0], sampling(4), plan)
    read = [CapturePrompt(PROMPTS[0], plan)], CaptureSpec((), logits=True)
    if len(set(parallel.client.stages.values())) > 1:
        with pytest.raises(UnsupportedParameter, match="pipeline"):
            await run(parallel, request)
        with pytest.raises(UnsupportedParameter, match="pipeline"):
            await parallel.capture(*read)
    else:
        assert len((await run(parallel, request)).tokens) == 4
        assert len(await parallel.capture(*read)) == 1


async def test_monitors_of_every_stage_are_read(parallel: VllmEngine, single: Engine) -> None:
    vectors = vectors_for(parallel.info, means=True)
    watched = MonitorSet([
        monitor(vectors["alpha"], layer, -inf, name=f"layer {layer}", action="flag")
        for layer in range(parallel.info.layer_count)
    ])  # fmt: skip
    request = GenerationRequest(PROMPTS[0], sampling(6), monitors=watched)
    found, expected = await run(parallel, request), await run(single, request)
    for event, its in zip(found.events, expected.events, strict=True):
        scores = {one.monitor.name: one.score for one in event.raised}
        assert scores == pytest.approx({one.monitor.name: one.score for one in its.raised}, rel=1e-3, abs=1e-4)
    assert len(found.events[0].raised) == parallel.info.layer_count
