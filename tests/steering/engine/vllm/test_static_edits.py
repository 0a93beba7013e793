"""Edits as tensor operations of fixed shape, as they become part of vLLM's graphs: the same steering, without a break of the graph."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.vllm.messages import FailureMessage, RequestSteering
from steering.engine.vllm.worker_steering import StaticSize, StepView
from steering.injection.injector import Injector
from steering.injection.slots import NoRoom, Room, Slots
from steering.injection.static import COLUMNS, EDITS, is_static
from steering.plan.scope import computes_whole
from steering.plan.types import DoseGuard, SteeringPlan
from tests.families import FAMILIES
from tests.plans import plan_for, random_items, vectors_for
from tests.steering.engine.vllm.driven_model import DrivenModel
from tests.steering.engine.vllm.test_worker_steering import (
    COUNT,
    PROMPT,
    assert_reports_equal,
    expected,
    infinite_plan,
    info_of,
    steering_of,
)
from tests.steering.injection.passes import INFO, row_of

SIZE = StaticSize(requests=4, tokens=64)
GUARD = DoseGuard(bound=0.3, action="clamp")
PLANS: dict[str, list[dict[str, Any]]] = {
    "adds": [
        {"vector": "alpha", "layers": "all", "strength": 2.0},
        {"vector": "beta", "layers": [1], "scope": {"tokens": "generated"}},
    ],
    "relative": [{"vector": "beta", "layers": [0, 2], "unit": "relative", "strength": 0.3}],
    "ablate": [{"vector": "alpha", "operation": "ablate", "layers": "all"}],
    "clamp": [{"vector": "alpha", "operation": "clamp", "low": -0.1, "high": 0.1, "layers": [1, 2]}],
    "replace": [{"vector": "alpha", "operation": "replace", "to": "beta", "layers": [1]}],
    "schedule": [{"vector": "alpha", "layers": [1], "schedule": {"kind": "linear", "tokens": 5}}],
    "token ids": [{"vector": "alpha", "layers": [1], "strength": 3.0, "scope": {"token_ids": list(range(0, 256, 2))}}],
}
OTHERS: list[dict[str, Any]] = [
    {"vector": "alpha", "operation": "rotate", "degrees": 20.0, "layers": [1]},
    {"vector": "alpha", "layers": [1], "when": {"vector": "beta", "above": 0.0, "layer": 0, "at": "token"}},
    {"vector": "alpha", "layers": [1], "hold": {"score": 0.4}},
]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("guard", [None, GUARD])
async def test_they_steer_and_measure_as_the_transformers_engine(
    name: str, guard: DoseGuard | None, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nothing is left to the operation behind the layers; in pieces and after a preemption too."""
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    plan = await plan_for(PLANS[name], vectors_for(info, means=True), info, guard)
    assert is_static(plan)
    outcome, driven = await expected(model, hf_byte_tokenizer, plan), DrivenModel(model, SIZE)
    driven.steering.put_plan("plan", plan)
    kept = 0 if computes_whole(plan) else 14
    ways: list[dict[str, Any]] = [{}, {"piece": 7, "preempt_after": 6, "kept": kept}]
    for way in ways:
        assert driven.run(steering_of(plan), PROMPT, COUNT, **way) == outcome.tokens
        assert driven.failures() == []
        assert_reports_equal(driven, plan, outcome)
    assert driven.steering.in_graphs >= len(ways)


@pytest.mark.parametrize("seed", range(6))
async def test_requests_of_both_kinds_follow_each_other(seed: int, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """What is left in the tables by one request steers no other."""
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    driven, vectors = DrivenModel(model, SIZE), vectors_for(info)
    for items in (PLANS["adds"], random_items(seed, info.layer_count), [OTHERS[seed % 3]], [], PLANS["ablate"]):
        plan = await plan_for(items, vectors, info)
        outcome = await expected(model, hf_byte_tokenizer, plan)
        if not plan.empty:
            driven.steering.put_plan("plan", plan)
        assert driven.run(steering_of(plan), PROMPT, COUNT, piece=9) == outcome.tokens
        assert_reports_equal(driven, plan, outcome)


def test_an_infinite_plan_leaves_nothing_to_the_next_request() -> None:
    driven = DrivenModel(FAMILIES["llama"](), SIZE)
    plain = driven.run(RequestSteering("plain", prompt_length=len(PROMPT)), PROMPT, 2)
    driven.steering.put_plan("plan", infinite_plan(32))
    driven.run(RequestSteering("infinite", "plan", "", len(PROMPT)), PROMPT, 2)
    assert driven.steering.in_graphs == 1
    assert [one.finite for one in driven.tokens() if one.key == "infinite"] == [False, False]
    assert driven.run(RequestSteering("plain", prompt_length=len(PROMPT)), PROMPT, 2) == plain


async def test_a_request_that_graphs_cannot_steer_leaves_them_or_fails_alone(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model, length = FAMILIES["llama"](), 4
    info, steering = info_of(model, hf_byte_tokenizer), DrivenModel(model, SIZE).steering
    for name, items in (("in", PLANS["ablate"]), ("out", OTHERS[:1])):
        steering.put_plan(name, await plan_for(items, vectors_for(info), info))
        steering.admit(name, [1] * length, RequestSteering(name, name, "", length))
    steering.admit("plain", [1] * length, RequestSteering("plain", prompt_length=length))
    assert not steering.leaves_graphs(["in", "plain", "unknown"])
    assert steering.leaves_graphs(["in", "out"])
    view = StepView(["in", "out"], [0, length, 2 * length], [0, 0], torch.arange(length).repeat(2), in_graph=True)
    steering.begin(view)
    assert steering.step is not None
    assert [row.key for row in steering.step.rows] == ["in"]
    (failure,) = steering.outbox
    assert isinstance(failure, FailureMessage)
    assert (failure.key, "CUDA graph" in failure.reason) == ("out", True)


async def test_what_graphs_have_no_operations_for_is_left_out() -> None:
    vectors = vectors_for(INFO)
    for item in OTHERS:
        assert not is_static(await plan_for([item], vectors, INFO))
    names = ("alpha", "beta", "gamma", "delta")
    many = [{"vector": name, "operation": "clamp", "low": -0.1, "high": 0.1, "layers": [1]} for name in names]
    assert not is_static(await plan_for(many, vectors, INFO)), "two edits each"
    assert not is_static(SteeringPlan())


async def test_full_tables_take_no_request_and_stay_as_they_are() -> None:
    vectors, room = vectors_for(INFO), Room(slots=3, rows=6, edits=EDITS, columns=COLUMNS, fixed=True)
    injector = Injector(Slots(INFO.layer_count, INFO.d_model, torch.device("cpu"), room=room))
    plans = [await plan_for([{"vector": name, "layers": [0, 1]}], vectors, INFO) for name in ("alpha", "beta", "gamma")]
    first, second, third = (row_of(plan, 3, 8) for plan in plans)
    table = injector.slots.vectors
    injector.admit(first)
    injector.admit(second)
    for full in (third, row_of(plans[0], 3, 8)):  # no rows; no slot
        with pytest.raises(NoRoom):
            injector.admit(full)
    injector.release(first)
    injector.admit(third)
    assert injector.slots.vectors is table


def test_a_compiled_block_has_them_without_a_break() -> None:
    """In a process of its own: Dynamo cannot trace the checks of shapes that the tests add."""
    module = "tests.steering.engine.vllm.compiled_block"
    done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
