"""The engine agrees token for token with the slow reference, for every operation and scope, on very different models."""

import os

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.model.layout import find_layout
from steering.spec import SteeringSpec
from tests.engines import family_engine, run, run_all, sampling
from tests.families import FAMILIES
from tests.plans import PLACES, WORK, plan_for, random_items, vectors_for
from tests.reference import Reference

# full attention with rotary positions; a sliding window; learned positions; attention of its own with alibi
MODELS = ["llama", "gemma3", "gpt2", "bloom"]
CASES = int(os.environ.get("REFERENCE_CASES", "12"))
"""Random plans of each model; `make fuzz` draws more."""
PROMPT = tuple(b"The answer to that is")
MIDDLE = {"operation": "ablate", "strength": 0.9, "target": "middle"}
LONG = tuple(b"A prompt that is longer than the sliding window of the model, so that it matters")


@pytest.mark.parametrize("family", MODELS)
async def test_every_operation_and_scope_agrees(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        cases = [
            [{"vector": "alpha", **work, "layers": [1], "scope": scope}]
            for work in (*WORK.values(), MIDDLE)
            for scope in PLACES.values()
        ]
        plans = [await plan_for(items, vectors, engine.info) for items in cases]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(6), plan) for plan in plans])
        plain = await run(engine, GenerationRequest(PROMPT, sampling(6)))
    changed = 0
    for items, outcome in zip(cases, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        expected = Reference(model, blocks, spec, vectors).generate(PROMPT, 6)
        assert outcome.tokens == expected, items
        changed += expected != plain.tokens
    assert changed > len(cases) // 5, "the plans of this test must steer, or their agreement says nothing"


@pytest.mark.parametrize("family", MODELS)
async def test_random_plans_agree(family: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """1 to 4 interventions with conditions and schedules, greedy and sampled, on a prompt longer than any window."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        cases = [random_items(seed, engine.info.layer_count) for seed in range(CASES)]
        requests = [
            GenerationRequest(
                LONG, sampling(8, temperature=seed % 2 * 0.9, seed=seed), await plan_for(items, vectors, engine.info)
            )
            for seed, items in enumerate(cases)
        ]
        outcomes = await run_all(engine, requests)
    for seed, (items, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, blocks, spec, vectors)
        assert outcome.tokens == reference.generate(LONG, 8, temperature=seed % 2 * 0.9, seed=seed), (seed, items)
        for number, doses in enumerate(outcome.finish.steering.doses):
            theirs = {layer: sum(of) / len(of) for (index, layer), of in reference.doses.items() if index == number}
            assert doses == pytest.approx(theirs, rel=1e-2, abs=1e-4), (seed, items)


def _late(**fields: object) -> dict[str, object]:
    """Read at the last layer, so that the first hears of it one token later."""
    return {"vector": "beta", "score": "cosine", "layer": 2, **fields}


ALWAYS, NEVER = {"above": -1.5}, {"above": 1.5}
LATE = [
    {"not": _late(at="prompt", **ALWAYS)},
    {"not": _late(at="prompt", **NEVER)},
    {"not": _late(at="token", **ALWAYS)},
    {"not": _late(at="token", above=0.0)},
    _late(at="token", below=0.0),
    {"any": [_late(at="prompt", **NEVER), {"not": _late(at="token", above=0.0)}]},
    {"all": [{"not": _late(at="prompt", **NEVER)}, {"vector": "alpha", "layer": 0, "above": -9.0, "at": "token"}]},
    {"any": [{"not": _late(at="prompt", **ALWAYS)}, {"vector": "alpha", "layer": 0, "above": -9.0, "at": "token"}]},
]


async def test_conditions_that_are_read_at_a_later_layer_agree(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """What is not decided yet does not act, and neither does its `not`."""
    model = FAMILIES["llama"]()
    blocks = find_layout(model).blocks
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        item = {"vector": "alpha", "layers": [0], "strength": 3.0, "scope": {"tokens": "generated"}}
        cases = [[{**item, "when": when}] for when in LATE]
        plans = [await plan_for(items, vectors, engine.info) for items in cases]
        outcomes = await run_all(engine, [GenerationRequest(PROMPT, sampling(8), plan) for plan in plans])
    for items, outcome in zip(cases, outcomes, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        assert outcome.tokens == Reference(model, blocks, spec, vectors).generate(PROMPT, 8), items
    reports = [outcome.finish.steering for outcome in outcomes]
    assert not reports[0].fired[0], "its test never lets it act"
    assert reports[1].fired_at == (1,), "decided at the prompt's end, after the layer where it acts"
