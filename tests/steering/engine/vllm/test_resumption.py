"""Steering that follows the tokens one at a time goes on exactly as before when vLLM computes positions again together."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.vllm.messages import RequestSteering
from steering.plan.scope import follows_single_tokens
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.steering.engine.vllm.driven_model import DrivenModel
from tests.steering.engine.vllm.test_worker_steering import PROMPT, assert_reports_equal, expected, info_of

COUNT = 12


def late(layers: list[int], when: dict[str, Any], **settings: Any) -> dict[str, Any]:
    scope = {"tokens": "generated"}
    return {"vector": "alpha", "strength": 1.5, "layers": layers, "when": when, "scope": scope, **settings}


def held(score: float, **settings: Any) -> dict[str, Any]:
    return {"vector": "beta", "strength": 3.0, "layers": [0, 1], "hold": {"score": score}, **settings}


TOKEN = {"vector": "beta", "above": 0.0, "layer": 2, "at": "token"}
LATCHED = {"vector": "gamma", "above": 0.3, "until": -0.3, "layer": 2, "at": "token"}
PLANS: dict[str, list[dict[str, Any]]] = {
    "late": [late([0], TOKEN)],
    "late and latched": [late([0, 1], LATCHED)],
    "late, at the prompt's end": [late([0], {**TOKEN, "at": "prompt"}), late([1], TOKEN, operation="ablate")],
    "late, by the prompt's mean": [late([1], {**TOKEN, "at": "prompt_mean"}), late([0, 2], {"not": LATCHED})],
    "held": [held(0.4)],
    "held under a late condition": [held(-0.2, when=TOKEN), late([2], {"any": [LATCHED, {**TOKEN, "layer": 1}]})],
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("piece", "after"), [(100, 1), (100, 7), (5, 7), (1, 4)])
async def test_it_goes_on_after_a_preemption(
    name: str, piece: int, after: int, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    plan = await plan_for(PLANS[name], vectors_for(info), info)
    assert follows_single_tokens(plan)
    outcome = await expected(model, hf_byte_tokenizer, plan, COUNT)
    driven = DrivenModel(model)
    driven.steering.put_plan("plan", plan)
    request = RequestSteering("key", "plan", "", len(PROMPT))
    assert driven.run(request, PROMPT, COUNT, piece=piece, preempt_after=after) == outcome.tokens
    assert driven.failures() == []
    assert driven.steering.resumed > 0
    assert_reports_equal(driven, plan, outcome)


async def test_a_second_preemption_changes_nothing(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    plan = await plan_for([held(0.4), late([0], TOKEN)], vectors_for(info), info)
    outcome = await expected(model, hf_byte_tokenizer, plan, COUNT)
    driven = DrivenModel(model)
    driven.steering.put_plan("plan", plan)
    request = RequestSteering("key", "plan", "", len(PROMPT))
    assert driven.run(request, PROMPT, COUNT, piece=4, preempt_after=(3, 4, 9)) == outcome.tokens
    assert_reports_equal(driven, plan, outcome)
