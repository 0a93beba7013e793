"""The reported doses are those the slow reference meets, whatever attention the model has and however passes are formed."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.engine.options import EngineLimits
from steering.injection.readings import Reading
from steering.model.layout import find_layout
from steering.spec import SteeringSpec
from tests.engines import family_engine, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference

PROMPT = tuple(b"The answer to that is not known yet")
CONDITION = {"vector": "beta", "at": "token", "layer": 0, "above": 0.0}
CASES: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": [1], "scope": {"tokens": "generated"}}],
    [{"vector": "alpha", "layers": [1], "scope": {"tokens": "prompt"}}],
    [{"vector": "alpha", "layers": [1], "scope": {"tokens": "last"}}],
    [{"vector": "alpha", "layers": [1]}],
    [{"vector": "alpha", "layers": [1], "operation": "ablate", "scope": {"tokens": "generated", "start": 2, "end": 5}}],
    [{"vector": "alpha", "layers": [1], "operation": "rotate", "degrees": 20.0, "when": CONDITION}],
    [
        {
            "vector": "alpha",
            "layers": [1],
            "unit": "relative",
            "strength": 0.2,
            "scope": {"tokens": "prompt", "start": 3},
        }
    ],
]
TOGETHER: list[list[dict[str, Any]]] = [
    [{"vector": "alpha", "layers": [1]}, {"vector": "beta", "layers": [1], "strength": -0.5}],
    [{"vector": "alpha", "layers": [1]}, {"vector": "beta", "layers": [1], "operation": "ablate"}],
    [{"vector": "alpha", "layers": [0]}, {"vector": "beta", "layers": [2], "operation": "rotate", "degrees": 15.0}],
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
async def test_doses_are_those_of_the_slow_reference(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(prefill_tokens=16)) as engine:
        vectors = vectors_for(engine.info)
        plans = [await plan_for(items, vectors, engine.info) for items in CASES]
        requests = [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans]
        outcomes = [*await run_all(engine, requests), *await run_alone(engine, requests)]
    for items, outcome in zip([*CASES, *CASES], outcomes, strict=True):
        reference = Reference(model, blocks, SteeringSpec.model_validate({"interventions": items}), vectors)
        reference.generate(PROMPT, 8)
        changed = [dose for dose in reference.spent.values() if dose > 0.0]
        expected = sum(changed) / len(changed)
        assert outcome.finish.steering.doses[0][1] == pytest.approx(expected, rel=1e-3), items
        assert outcome.finish.steering.total == pytest.approx(expected, rel=1e-3), items


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
async def test_the_total_of_several_interventions_is_that_of_the_slow_reference(
    family: str, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """At one layer they act on each other's result; over layers the doses of a token add up."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(prefill_tokens=16)) as engine:
        vectors = vectors_for(engine.info)
        plans = [await plan_for(items, vectors, engine.info) for items in TOGETHER]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans])
    for items, outcome in zip(TOGETHER, outcomes, strict=True):
        reference = Reference(model, blocks, SteeringSpec.model_validate({"interventions": items}), vectors)
        reference.generate(PROMPT, 8)
        changed = [dose for dose in reference.spent.values() if dose > 0.0]
        assert outcome.finish.steering.total == pytest.approx(sum(changed) / len(changed), rel=1e-3), items
        assert outcome.finish.steering.tokens == (len(reference.acted),) * len(items), items


@pytest.mark.parametrize("prompts", [1, 2], ids=["computed", "shared"])
async def test_the_total_is_over_the_tokens_that_changed_also_where_one_intervention_leaves_some_as_they_are(
    hf_byte_tokenizer: PreTrainedTokenizerFast, prompts: int
) -> None:
    """A cap that few tokens reach, alone and with another one that none reaches; and a controller, which begins at 0."""
    model, prompt = FAMILIES["llama"](), PROMPT * 2
    blocks = find_layout(model).blocks
    capped = {"vector": "alpha", "layers": [1], "operation": "clamp", "high": 0.5}
    never = {**capped, "high": 1e3}
    held = {"vector": "alpha", "layers": [1], "hold": {"score": 2.0}, "strength": 3.0}
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        plans = [await plan_for(items, vectors, engine.info) for items in ([capped], [capped, never], [held])]
        requests = [GenerationRequest(prompt, sampling(8), plan) for plan in plans]
        for _ in range(prompts):
            alone, both, controlled = [(await run_alone(engine, [one]))[0].finish for one in requests]
    reference = Reference(model, blocks, SteeringSpec.model_validate({"interventions": [capped]}), vectors)
    reference.generate(prompt, 8)
    changed = [dose for dose in reference.spent.values() if dose > 0.0]
    assert 0 < len(changed) < len(reference.acted) == alone.steering.tokens[0]
    assert (alone.cached_tokens > 0) == (prompts > 1)
    assert alone.steering.total == pytest.approx(sum(changed) / len(changed), rel=1e-3)
    assert both.steering.total == pytest.approx(alone.steering.total, rel=1e-6)
    assert alone.steering.doses[0][1] == pytest.approx(sum(changed) / len(reference.acted), rel=1e-3)
    count = controlled.steering.tokens[0]
    assert controlled.steering.total == pytest.approx(controlled.steering.doses[0][1] * count / (count - 1), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_every_token_has_its_readout(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Read at the position that predicts it, from the steered stream."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer, EngineLimits(prefill_tokens=16)) as engine:
        vectors = vectors_for(engine.info)
        entry = vectors["beta"].layers[2]
        plan = await plan_for(CASES[3], vectors, engine.info)
        readings = (Reading("beta", 2, entry.direction, entry.scale),)
        (outcome,) = await run_all(engine, [GenerationRequest(PROMPT, sampling(6), plan, readings=readings)])
    found = [event.readout["beta"] for event in outcome.events[:-1]]
    seen = []
    handle = blocks[2].register_forward_hook(lambda *args: seen.append(args[-1]))
    spec = SteeringSpec.model_validate({"interventions": CASES[3]})
    Reference(model, blocks, spec, vectors).generate(PROMPT, 6)
    handle.remove()
    residuals = [(one[0] if isinstance(one, tuple) else one)[0, -1] for one in seen]
    assert found == pytest.approx([float(r @ entry.direction) / entry.scale for r in residuals], rel=1e-3, abs=1e-4)


async def test_rounding_is_no_change(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Tokens whose residual changes by less than float32 can tell do not lower the mean of those that steering changed."""
    strong: dict[str, Any] = {"vector": "alpha", "layers": [1], "scope": {"tokens": "prompt"}}
    tiny: dict[str, Any] = {
        "vector": "beta",
        "layers": [1],
        "unit": "relative",
        "strength": 1e-9,
        "scope": {"tokens": "generated", "start": 1},
    }
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        plans = [await plan_for(items, vectors, engine.info) for items in ([strong], [strong, tiny])]
        alone, with_tiny = await run_all(engine, [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans])
    assert with_tiny.finish.steering.tokens[1] > 0
    assert with_tiny.finish.steering.total == pytest.approx(alone.finish.steering.total, rel=1e-5)
