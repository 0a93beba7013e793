"""Closed-loop control: the engine agrees with the slow reference, holds what it can, and refuses what makes no sense."""

import math
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest
from steering.engine.options import EngineLimits
from steering.errors import InvalidRequest, LimitExceeded
from steering.injection.readings import Reading
from steering.model.info import ModelInfo
from steering.model.layout import find_layout
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from tests.engines import Outcome, family_engine, run, run_all, run_alone, run_at_once, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference

INFO = ModelInfo("tiny", "Llama", "f" * 64, 16, 3, 100, 256, "float32", "cpu", 1000, True)
PROMPT = tuple(b"The answer to that question is")
HOLD: dict[str, Any] = {"vector": "alpha", "layers": [1], "strength": 3.0, "hold": {"score": 0.4}}
ALWAYS = {"vector": "beta", "score": "cosine", "above": -1.5, "layer": 0, "at": "token"}
SOMETIMES = {"vector": "beta", "above": 0.0, "layer": 0, "at": "token"}
CASES: list[list[dict[str, Any]]] = [
    [HOLD],
    [HOLD | {"hold": {"score": -0.7, "integral_gain": 1.0, "proportional_gain": 0.4}}],
    [HOLD | {"strength": 0.2}],
    [HOLD | {"layers": "all"}],
    [HOLD | {"scope": {"tokens": "generated", "start": 2, "end": 6}}],
    [HOLD | {"when": SOMETIMES}],
    [HOLD | {"when": ALWAYS}, {"vector": "alpha", "operation": "clamp", "high": 0.1, "layers": [1]}],
    [{"vector": "beta", "layers": [1]}, HOLD, {"vector": "beta", "operation": "rotate", "degrees": 9.0, "layers": [1]}],
    [HOLD, HOLD | {"vector": "beta", "hold": {"score": 1.0}}],
]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
@pytest.mark.parametrize("bound", [None, 0.2])
async def test_it_agrees_with_the_slow_reference(
    family: str, bound: float | None, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Token by token, and the measured means too; in a batch, and alone with the prompt taken from the cache."""
    model = FAMILIES[family]()
    blocks = find_layout(model).blocks
    guard = None if bound is None else DoseGuard(bound, "clamp")
    async with family_engine(family, hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        plans = [await plan_for(items, vectors, engine.info, guard) for items in CASES]
        requests = [GenerationRequest(PROMPT, sampling(12), plan) for plan in plans]
        outcomes, again = await run_all(engine, requests), await run_alone(engine, requests)
        plain = await run(engine, GenerationRequest(PROMPT, sampling(12)))
    assert any(outcome.tokens != plain.tokens for outcome in outcomes)
    for items, outcome, other in zip(CASES, outcomes, again, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, blocks, spec, vectors, math.inf if bound is None else bound)
        assert outcome.tokens == other.tokens == reference.generate(PROMPT, 12), items
        for index, item in enumerate(spec.interventions):
            again_held = other.finish.steering.held[index]
            for layer, found in outcome.finish.steering.held[index].items():
                assert found.score == pytest.approx(again_held[layer].score, rel=1e-3, abs=1e-4)
                readouts = reference.controllers.readouts[item, layer]
                assert found.score == pytest.approx(sum(readouts) / len(readouts), rel=1e-3, abs=1e-3)
                last = reference.controllers.strengths[item, layer]
                assert found.last_strength == pytest.approx(last, rel=1e-3, abs=1e-3)


async def test_a_preempted_answer_and_a_teacher_forced_one_take_the_same_steps(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Both compute generated tokens that are known already, which are still taken one by one."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        plan = await plan_for([HOLD], vectors, engine.info)
        entry = vectors["alpha"].layers[1]
        readings = (Reading("alpha", 1, entry.direction, entry.scale, entry.middle),)
        requests = [GenerationRequest(PROMPT, sampling(60), plan, readings) for _ in range(3)]
        alone = await run(engine, requests[0])
        text = CapturePrompt((*PROMPT, *alone.tokens), plan, len(PROMPT))
        (capture,) = await engine.capture([text], CaptureSpec((1,), "all"))
    forced = readings[0].scores(capture.activations[0])[len(PROMPT) - 1 : -1]
    assert forced.tolist() == pytest.approx(readouts_of(alone), rel=1e-3, abs=1e-3)
    block_bytes = 2 * 3 * 16 * 4 * 16
    limits = EngineLimits(cache_bytes=block_bytes * 14, share_prefixes=False)
    async with family_engine("llama", hf_byte_tokenizer, limits) as engine:
        outcomes = await run_at_once(engine, requests)
        assert engine.stats().preemptions > 0, "the cache of this test must be too small for all of them"
    for outcome in outcomes:
        assert outcome.tokens == alone.tokens
        assert readouts_of(outcome) == pytest.approx(readouts_of(alone), rel=1e-3, abs=1e-3)


def readouts_of(outcome: Outcome) -> list[float]:
    return [event.readout["alpha"] for event in outcome.events if event.finish is None]


async def test_the_mean_readout_is_held_and_the_strength_is_bounded(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Where the bound is wide enough the mean goes to the set point; a narrow one is never passed."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True, scale=1.0)
        for score in (-1.0, 0.4, 2.0):
            plan = await plan_for([HOLD | {"strength": 9.0, "hold": {"score": score}}], vectors, engine.info)
            held = (await run(engine, GenerationRequest(PROMPT, sampling(80), plan))).finish.steering.held[0][1]
            assert held.score == pytest.approx(score, abs=0.15)
        narrow = await plan_for([HOLD | {"strength": 0.1, "hold": {"score": 9.0}}], vectors, engine.info)
        report = (await run(engine, GenerationRequest(PROMPT, sampling(20), narrow))).finish.steering
    assert report.held[0][1].last_strength == pytest.approx(0.1)
    assert float(narrow.layers[1][0].numbers[0, 0]) == pytest.approx(0.1 * vectors["alpha"].layers[1].scale)


async def test_a_held_strength_is_in_the_plan() -> None:
    vectors = vectors_for(INFO)
    held = await plan_for([HOLD], vectors, INFO)
    assert held.spec.interventions[0].scope.tokens == "generated", "the default of a held strength"
    assert SteeringSpec.model_validate_json(held.spec.model_dump_json()) == held.spec
    others = [HOLD | {"hold": {"score": 0.5}}, HOLD | {"hold": {"score": 0.4, "integral_gain": 0.5}}]
    others += [HOLD | {"strength": 2.0}, {key: value for key, value in HOLD.items() if key != "hold"}]
    fingerprints = {(await plan_for([item], vectors, INFO)).fingerprint for item in others}
    assert len(fingerprints - {held.fingerprint}) == len(others)
    assert "no class means" in held.warnings[0]
    assert not (await plan_for([HOLD], vectors_for(INFO, means=True), INFO)).warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {"kind": "linear", "tokens": 4}}, "takes no schedule, got 'linear'"),
        ({"scope": {"tokens": "all"}}, "needs scope 'generated', got 'all'"),
        ({"unit": "relative"}, "axis of unit 'scale', got unit 'relative'"),
        ({"strength": -1.0}, "must be above 0, got -1"),
        ({"operation": "clamp", "low": 0.0}, "operation 'clamp' takes no hold"),
    ],
)
async def test_what_contradicts_a_controller_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await plan_for([HOLD | change], vectors_for(INFO), INFO)


async def test_the_number_of_controllers_is_bounded() -> None:
    with pytest.raises(LimitExceeded, match="66 strengths are held"):
        await plan_for([HOLD | {"layers": "all"}] * 22, vectors_for(INFO), INFO)
