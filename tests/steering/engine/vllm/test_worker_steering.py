"""Steering in a worker of vLLM equals the transformers engine, however vLLM cuts, preempts and resumes a request."""

from dataclasses import astuple, replace
from itertools import groupby
from math import inf
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.vllm.messages import (
    FailureMessage,
    MonitorReading,
    ReportMessage,
    RequestSteering,
    decode,
    doses_of,
    encode,
)
from steering.engine.vllm.worker_steering import StaticSize, StepView
from steering.injection.readings import MonitorSet, Reading
from steering.model.hook_points import points_of
from steering.model.info import ModelInfo
from steering.model.loading import opened
from steering.plan.scope import computes_whole
from steering.plan.types import SteeringPlan
from tests.engines import Outcome, engine_over, run, sampling
from tests.families import FAMILIES
from tests.plans import WORK, plan_adding, plan_for, random_items, vectors_for
from tests.steering.engine.loop.driven import FailingAllocator
from tests.steering.engine.vllm.driven_model import DrivenModel, capture_of
from tests.steering.injection.test_monitors import monitor
from tests.steering.injection.test_token_scopes import CHAT, SCOPES, item

PROMPT = tuple(b"Once upon a time there was")
COUNT = 10


def info_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> ModelInfo:
    return opened(model, tokenizer, name="tiny").info


async def expected(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, plan: SteeringPlan, count: int = COUNT
) -> Outcome:
    async with engine_over(FAMILIES["llama"](), tokenizer) as engine:
        return await run(engine, GenerationRequest(PROMPT, sampling(count), plan))


def steering_of(plan: SteeringPlan, readings: str = "") -> RequestSteering:
    return RequestSteering("key", "" if plan.empty else "plan", readings, len(PROMPT))


def assert_reports_equal(driven: DrivenModel, plan: SteeringPlan, outcome: Outcome) -> None:
    report, its = doses_of(plan, [driven.report()]).report(), outcome.finish.steering
    assert (report.fired, report.fired_at, report.tokens) == (its.fired, its.fired_at, its.tokens)
    assert report.total == pytest.approx(its.total, rel=1e-4, abs=1e-7)
    for doses, its_doses in zip(report.doses, its.doses, strict=True):
        assert doses == pytest.approx(dict(its_doses), rel=1e-4, abs=1e-7)
    scores = [None if score is None else pytest.approx(score, rel=1e-3, abs=1e-4) for score in its.condition_scores]
    assert list(report.condition_scores) == scores
    for held, its_held in zip(report.held, its.held, strict=True):
        assert held.keys() == its_held.keys()
        for layer, one in held.items():
            assert astuple(one) == pytest.approx(astuple(its_held[layer]), rel=1e-3, abs=1e-4)


@pytest.mark.usefixtures("loaded_library")
@pytest.mark.parametrize("seed", range(24))
async def test_random_plans_in_pieces_and_after_a_preemption_equal_the_transformers_engine(
    seed: int, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    plan = await plan_for(random_items(seed, info.layer_count), vectors_for(info), info)
    outcome = await expected(model, hf_byte_tokenizer, plan)
    driven = DrivenModel(model, halves=bool(seed % 2))
    if not plan.empty:
        driven.steering.put_plan("plan", plan)
    kept = 0 if computes_whole(plan) else 7 * (seed % 4)
    ways: list[dict[str, Any]] = [{}, {"piece": 7}, {"piece": 7, "preempt_after": 6, "kept": kept}]
    for kernel, way in (*((False, way) for way in ways), (True, ways[-1])):
        driven.steering.uses_kernel = kernel
        assert driven.run(steering_of(plan), PROMPT, COUNT, **way) == outcome.tokens
        assert driven.failures() == []
        assert_reports_equal(driven, plan, outcome)


async def test_scopes_by_token_id_and_role_equal_the_transformers_engine(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """One plan serves two conversations, whose tokens have other roles."""
    model, driven = FAMILIES["llama"](), DrivenModel(FAMILIES["llama"]())
    info = info_of(model, hf_byte_tokenizer)
    async with engine_over(model, hf_byte_tokenizer) as engine:
        for number, scope in enumerate(SCOPES):
            plan = await plan_for([item(scope)], vectors_for(info), info)
            driven.steering.put_plan(f"plan {number}", replace(plan, prompt_roles=None))
            for chat in (CHAT, CHAT[1:]):
                outcome = await run(engine, GenerationRequest(chat, sampling(COUNT), plan))
                ids, roles = engine.tokenizer.encode_with_roles(chat)
                runs = tuple((role, len(list(tokens))) for role, tokens in groupby(roles))
                request = RequestSteering("key", f"plan {number}", "", len(ids), roles=runs)
                for piece, preempted in ((100, ()), (7, 6)):
                    found = driven.run(request, ids, COUNT, piece=piece, preempt_after=preempted)
                    assert found == outcome.tokens
                    assert driven.failures() == []
                    assert_reports_equal(driven, plan, outcome)


@pytest.mark.parametrize("hook", ["attention", "mlp", "head"])
async def test_hook_points_equal_the_transformers_engine(hook: str, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Every operation beside one of the residual, or the ablation of two heads; and what is read there, in pieces."""
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    residual = {"vector": "gamma", "strength": 0.5, "layers": [1]}
    at: dict[str, Any] = {"layers": [0, 2], "hook": "attention" if hook == "head" else hook}
    works = [{"vector": "alpha", **work} for work in WORK.values()]
    if hook == "head":
        works = [{"operation": "ablate", "strength": 0.9, "head": head} for head in (1, 3)]
    for work in works:
        plan = await plan_for([{**at, **work}, residual], vectors_for(info), info)
        outcome = await expected(model, hf_byte_tokenizer, plan)
        for static in (None, StaticSize(4, 64)):  # which has no operations at these points
            driven = DrivenModel(FAMILIES["llama"](), static)
            driven.steering.put_plan("plan", plan)
            for piece, preempted in ((100, ()), (7, 6)):
                found = driven.run(steering_of(plan), PROMPT, COUNT, piece=piece, preempt_after=preempted)
                assert found == outcome.tokens
                assert (driven.failures(), driven.steering.in_graphs) == ([], 0)
                assert_reports_equal(driven, plan, outcome)
    head = 0 if hook == "head" else None
    points = points_of(range(info.layer_count), info, at["hook"], head)
    async with engine_over(FAMILIES["llama"](), hf_byte_tokenizer) as engine:
        (whole,) = await engine.capture([CapturePrompt(PROMPT)], CaptureSpec(points, "all"))
    driven = DrivenModel(model)
    driven.run(capture_of(points, len(PROMPT), reduce=False), PROMPT, 0, piece=6)
    read = torch.stack([driven.report().activations[point] for point in points])
    torch.testing.assert_close(read, whole.activations, rtol=1e-4, atol=1e-4)


async def test_readouts_come_once_for_each_token_at_its_position(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    info = info_of(model, hf_byte_tokenizer)
    direction = torch.nn.functional.normalize(torch.arange(1.0, info.d_model + 1), dim=0)
    reading = Reading("up", 1, direction, 2.0, 0.5)
    async with engine_over(FAMILIES["llama"](), hf_byte_tokenizer) as engine:
        outcome = await run(engine, GenerationRequest(PROMPT, sampling(COUNT), readings=(reading,)))
    driven = DrivenModel(model)
    driven.steering.put_readings("up", (reading,))
    driven.run(replace(steering_of(SteeringPlan()), readings="up"), PROMPT, COUNT, piece=5)
    found = {message.index: message.readout for message in driven.tokens()}
    assert sorted(found) == list(range(COUNT))
    for index, readout in found.items():
        assert readout == pytest.approx(outcome.events[index].readout, rel=1e-4, abs=1e-5)


async def test_monitors_are_scored_as_in_the_transformers_engine(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    model = FAMILIES["llama"]()
    vectors = vectors_for(info_of(model, hf_byte_tokenizer), means=True)
    always = {"above": True, "action": "flag"}
    watched = MonitorSet([
        monitor(vectors["alpha"], 1, -inf, name="alpha", at="prompt", **always),
        monitor(vectors["beta"], 2, -inf, name="beta", **always),
        monitor(vectors["gamma"], 0, -inf, name="gamma", **always),
    ])  # fmt: skip
    async with engine_over(FAMILIES["llama"](), hf_byte_tokenizer) as engine:
        outcome = await run(engine, GenerationRequest(PROMPT, sampling(COUNT), monitors=watched))
    driven = DrivenModel(model)
    driven.steering.put_monitors("watch", tuple(MonitorReading(one.reading, one.at) for one in watched.ordered))
    driven.run(replace(steering_of(SteeringPlan()), monitors="watch"), PROMPT, COUNT, piece=5, preempt_after=3)
    assert [message.index for message in driven.tokens()] == list(range(COUNT))
    for message, event in zip(driven.tokens(), outcome.events, strict=False):
        names = [one.name for one in watched.read_at(first=message.index == 0)]
        found = {names[place]: score for place, score in message.scores.items()}
        expected = {one.monitor.name: one.score for one in event.raised}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def infinite_plan(d_model: int) -> SteeringPlan:
    return plan_adding(1, torch.full((d_model,), torch.inf), "inf")


def test_an_infinite_plan_is_reported_at_the_first_token() -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    driven.steering.put_plan("plan", infinite_plan(32))
    driven.run(RequestSteering("key", "plan", "", len(PROMPT)), PROMPT, 2)
    assert [message.finite for message in driven.tokens()] == [False, False]


def test_a_plan_that_cannot_be_applied_is_refused_when_it_is_sent() -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    with pytest.raises(ValueError, match="32 numbers wide, got 31"):
        driven.steering.put_plan("plan", plan_adding(1, torch.ones(31)))
    broken = replace(plan_adding(1, torch.ones(32)), interventions=())
    with pytest.raises(IndexError):
        driven.steering.put_plan("plan", broken)


def test_a_request_with_an_unknown_plan_fails_alone() -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    plain = driven.run(RequestSteering("plain", prompt_length=len(PROMPT)), PROMPT, 4)
    failed = driven.run(RequestSteering("failed", "no such plan", "", len(PROMPT)), PROMPT, 4)
    assert failed == plain
    assert [message.key for message in driven.failures()] == ["failed"]


def test_a_report_that_cannot_be_built_is_a_failure_and_no_report() -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    driven.steering.admit("request", list(PROMPT), capture_of((0,), len(PROMPT), reduce=False))
    capture = driven.steering._rows["request"].capture
    assert capture is not None
    capture.pieces[0] = [torch.ones(1, 3), torch.ones(1, 4)]
    driven.steering.release(["request"])
    assert [type(message) for message in driven.steering.outbox] == [FailureMessage]


async def test_measurements_that_another_request_lost_for_lack_of_memory_are_reported_as_incomplete(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Both are steered by one pass, whose sums are still on the device when the first leaves."""
    driven = DrivenModel(FAMILIES["llama"]())
    info = info_of(driven.model, hf_byte_tokenizer)
    plan = await plan_for([{"vector": "alpha", "layers": [1]}], vectors_for(info), info)
    steering = driven.steering
    steering.put_plan("plan", plan)
    for name in ("leaving", "staying", "joining"):
        steering.admit(name, [1, 2], RequestSteering(name, "plan", "", 2))
    for first, length in ((0, 2), (2, 1)):
        positions = torch.arange(first, first + length).repeat(2)
        steering.begin(StepView(["leaving", "staying"], [0, length, 2 * length], [first, first], positions))
        for layer in range(info.layer_count):
            steering.act(layer, torch.ones(2 * length, info.d_model), None)
        steering.end()
    with FailingAllocator(range(1, 40)) as memory:
        steering.release(["leaving"])
    assert memory.failed
    steering.release(["staying", "joining"])
    (failure,) = driven.failures()
    reports = [message for message in steering.outbox if isinstance(message, ReportMessage)]
    assert failure.key == "leaving"
    assert [(one.key, one.incomplete) for one in reports] == [("staying", True), ("joining", False)]
    found = [doses_of(plan, [decode(encode(one), ReportMessage)]).report().incomplete for one in reports]
    assert found == [True, False]
    assert doses_of(plan, reports).report().incomplete, "one stage of two is enough"


@pytest.mark.parametrize("piece", [4, 100])
def test_captures_hold_each_layer_over_all_pieces(piece: int) -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    with torch.inference_mode():
        states = driven.model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    driven.run(capture_of((0, 1), len(PROMPT), reduce=False), PROMPT, 0, piece=piece)
    for layer in (0, 1):
        torch.testing.assert_close(driven.report().activations[layer], states[layer + 1][0], rtol=1e-4, atol=1e-5)
    driven.run(capture_of((1,), len(PROMPT), reduce=True), PROMPT, 0, piece=piece)
    mean = states[2][0].mean(0, keepdim=True)
    torch.testing.assert_close(driven.report().activations[1], mean, rtol=1e-4, atol=1e-5)


async def test_a_request_whose_prompt_was_cached_reports_as_if_it_had_computed_it(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    driven = DrivenModel(FAMILIES["llama"]())
    info = info_of(driven.model, hf_byte_tokenizer)
    items = [
        {"vector": "alpha", "strength": 0.5, "layers": "all"},
        {"vector": "beta", "operation": "rotate", "degrees": 10.0, "layers": [1]},
    ]
    plan = await plan_for(items, vectors_for(info), info)
    driven.steering.put_plan("plan", plan)
    prompt = tuple(range(40))
    request = RequestSteering("key", "plan", "", len(prompt))
    tokens = driven.run(request, prompt, 5, piece=9)
    first = doses_of(plan, [driven.report()]).report()
    assert driven.run(request, prompt, 5, cached=32) == tokens
    second = doses_of(plan, [driven.report()]).report()
    assert second.tokens == first.tokens == (44, 44)
    assert (second.fired_at, first.fired_at) == ((-1, -1), (-1, -1))
    assert second.total == pytest.approx(first.total, rel=1e-4)
    for doses, its_doses in zip(second.doses, first.doses, strict=True):
        assert doses == pytest.approx(dict(its_doses), rel=1e-4)
