"""Compiled steps give the same tokens as the eager ones, for every kind of plan, and take over while the engine serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.injection.readings import Reading
from steering.model.layout import find_layout
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from tests.engines import eager_and_compiled, random_requests, run, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.reference import Reference

pytestmark = pytest.mark.timeout(1800)  # fixtures included, and they compile
PROMPTS = [tuple(b"Once upon a time"), tuple(b"Hm"), tuple(b"A longer prompt than the sliding window of the model is")]


@pytest.fixture(scope="module")
def family() -> str:
    """One with sliding windows and norms of its own. test_bfloat16.py has the family of Llama."""
    return "gemma3"


@pytest.fixture(scope="module")
def engines(
    family: str,
    tmp_path_factory: pytest.TempPathFactory,
    hf_byte_tokenizer: PreTrainedTokenizerFast,
    built_library: Path,
) -> Iterator[tuple[TransformersEngine, TransformersEngine]]:
    """(eager, compiled) over the same model."""
    folder = tmp_path_factory.mktemp(family)
    with eager_and_compiled(FAMILIES[family](), hf_byte_tokenizer, folder, "float32", built_library) as engines:
        yield engines


async def test_random_plans_agree_with_eager_and_with_themselves_alone(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    eager, compiled = engines
    requests = await random_requests(eager.info, PROMPTS, 8, 32)
    expected = await run_alone(eager, requests)
    together = await run_all(compiled, requests)
    alone = await run_alone(compiled, requests)
    assert [o.tokens for o in together] == [o.tokens for o in expected]
    assert [o.tokens for o in alone] == [o.tokens for o in expected]


async def test_additive_rows_and_their_dose(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    """The fused path: distinct adds at every layer, with the dose measured inside the graph."""
    eager, compiled = engines
    vectors = vectors_for(eager.info)
    requests = [
        GenerationRequest(
            PROMPTS[0],
            sampling(12),
            await plan_for(
                [{"vector": name, "strength": strength, "layers": "all"} for name in ("alpha", "beta")],
                vectors,
                eager.info,
            ),
        )
        for strength in (-1.0, -0.5, 0.0, 0.5, 1.0)
    ]
    for one, other in zip(await run_all(compiled, requests), await run_all(eager, requests), strict=True):
        assert one.tokens == other.tokens
        for dose, expected in zip(one.finish.steering.doses, other.finish.steering.doses, strict=True):
            assert dose == pytest.approx(expected, rel=1e-3)


async def test_it_agrees_with_the_slow_reference(
    family: str, engines: tuple[TransformersEngine, TransformersEngine]
) -> None:
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    compiled = engines[1]
    vectors = vectors_for(compiled.info)
    for seed in range(8):
        items = random_items(seed + 900, compiled.info.layer_count)
        plan = await plan_for(items, vectors, compiled.info)
        outcome = await run(compiled, GenerationRequest(PROMPTS[2], sampling(8), plan))
        spec = SteeringSpec.model_validate({"interventions": items})
        assert outcome.tokens == Reference(model, blocks, spec, vectors).generate(PROMPTS[2], 8), items


async def test_the_dose_guard_bounds_compiled_passes_too(
    family: str, engines: tuple[TransformersEngine, TransformersEngine]
) -> None:
    """Runs with rows whose static adds the graph applies itself."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    compiled = engines[1]
    vectors = vectors_for(compiled.info, scale=20.0)
    cases = [
        [{"vector": "alpha", "layers": "all"}],
        *(random_items(seed, compiled.info.layer_count) for seed in range(6)),
    ]
    plans = [await plan_for(items, vectors, compiled.info, DoseGuard(0.3, "clamp")) for items in cases]
    free = await plan_for(cases[0], vectors, compiled.info)
    requests = [GenerationRequest(PROMPTS[2], sampling(8), plan) for plan in (*plans, free)]
    outcomes = await run_all(compiled, requests)
    assert outcomes[0].finish.steering.clamped > 0
    assert outcomes[0].finish.steering.total <= 0.3001 < outcomes[-1].finish.steering.total
    for items, outcome in zip(cases, outcomes, strict=False):
        spec = SteeringSpec.model_validate({"interventions": items})
        assert outcome.tokens == Reference(model, blocks, spec, vectors, bound=0.3).generate(PROMPTS[2], 8), items


async def test_readouts_of_compiled_passes(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    eager, compiled = engines
    entry = vectors_for(eager.info)["alpha"].layers[1]
    request = GenerationRequest(PROMPTS[0], sampling(8), readings=(Reading("alpha", 1, entry.direction, entry.scale),))
    one, other = await run(compiled, request), await run(eager, request)
    for event, expected in zip(one.events[:-1], other.events[:-1], strict=True):
        assert event.readout["alpha"] == pytest.approx(expected.readout["alpha"], abs=1e-3)


async def test_a_request_with_a_hook_point_is_eager_by_itself(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    """The others in the batch stay in compiled passes, and nobody's tokens change."""
    eager, compiled = engines
    items = [{"vector": "alpha", "layers": [1], "hook": "mlp"}, {"vector": "beta", "layers": [1]}]
    head = {"operation": "ablate", "hook": "attention", "head": 1, "layers": [0]}
    plans = [
        await plan_for(one, vectors_for(eager.info), eager.info) for one in (items[:1], items, [head], items[1:], [])
    ]
    requests = [GenerationRequest(PROMPTS[0], sampling(8, logprobs=0), plan) for plan in plans]
    expected, found = await run_alone(eager, requests), await run_all(compiled, requests)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for one, other in zip(found, expected, strict=True):
        for event, theirs in zip(one.events[:-1], other.events[:-1], strict=True):
            assert event.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    assert compiled.stats().executor.startswith("compiled")


@pytest.mark.parametrize(
    "spec",
    [CaptureSpec((0, 2), "last"), CaptureSpec((1, 2), "all", logits=True), CaptureSpec((0,), "mean")],
    ids=["last layer", "logits too", "first layer alone, which stops early"],
)
async def test_texts_are_read_alike(spec: CaptureSpec, engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    """The compiled prompt step, with shared beginnings and steered texts among them."""
    eager, compiled = engines
    plan = await plan_for(random_items(7, eager.info.layer_count), vectors_for(eager.info), eager.info)
    prompts = [CapturePrompt(text) for text in (*PROMPTS, PROMPTS[2][:-3], PROMPTS[2])]
    prompts.append(CapturePrompt(PROMPTS[2], plan=plan))
    read, expected = await compiled.capture(prompts, spec), await eager.capture(prompts, spec)
    for one, other in zip(read, expected, strict=True):
        torch.testing.assert_close(one.activations, other.activations, rtol=1e-3, atol=1e-4)
        if spec.logits:
            torch.testing.assert_close(one.logits, other.logits, rtol=1e-3, atol=1e-3)


async def test_a_long_answer_outgrows_several_lengths(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    eager, compiled = engines
    request = GenerationRequest(PROMPTS[0], sampling(200))
    assert (await run(compiled, request)).tokens == (await run(eager, request)).tokens
