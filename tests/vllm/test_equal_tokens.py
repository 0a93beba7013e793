"""Greedy tokens in float32, doses and readouts equal those of the transformers engine, for plans of every kind."""

from dataclasses import astuple, replace
from typing import Any

import pytest
import torch

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, GenerationRequest, SamplingParams
from steering.engine.vllm.engine import VllmEngine
from steering.injection.readings import Reading
from steering.model.phases import PhaseRules
from steering.model.tool_calls import ToolFormat
from steering.pairs import ChatMessage
from steering.plan.types import DoseGuard
from tests.engines import Outcome, run, run_all, run_alone
from tests.plans import plan_for, random_items, vectors_for

PROMPTS = [
    (ChatMessage("user", "Tell me about the sea."),),
    (ChatMessage("user", "What is a good breakfast?"),),
    (ChatMessage("user", "Write a short poem about a cat and a dog, please, in two lines."),),
]
SCALE = 30.0
"""Natural scale of the vectors: a strength of 1 is a good part of a residual of this model."""
ITEMS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "one layer": [{"vector": "alpha", "strength": 2.0, "layers": [15]}],
    "every layer": [{"vector": "alpha", "strength": 0.1, "layers": "all"}],
    "prompt": [{"vector": "alpha", "strength": 2.0, "layers": [10], "scope": {"tokens": "prompt"}}],
    "generated": [{"vector": "alpha", "strength": 2.0, "layers": [10], "scope": {"tokens": "generated"}}],
    "last": [{"vector": "alpha", "strength": 2.0, "layers": [10], "scope": {"tokens": "last"}}],
    "schedule": [
        {"vector": "alpha", "strength": 2.0, "layers": [10], "schedule": {"kind": "linear", "tokens": 6, "to": 0.1}}
    ],
    "relative": [{"vector": "beta", "strength": 0.3, "unit": "relative", "layers": [12, 13]}],
    "ablate": [{"vector": "alpha", "operation": "ablate", "layers": [8, 9, 20]}],
    "joint ablation": [
        {"vector": name, "operation": "ablate", "layers": [8, 9, 20]} for name in ("alpha", "beta", "gamma")
    ],
    "clamp": [{"vector": "alpha", "operation": "clamp", "low": -0.02, "high": 0.02, "layers": [8, 9, 20]}],
    "rotate": [{"vector": "alpha", "operation": "rotate", "degrees": 20.0, "layers": [8, 9, 20]}],
    "replace": [{"vector": "alpha", "operation": "replace", "to": "beta", "layers": [8, 9, 20]}],
    "linear map": [{"vector": "gamma", "operation": "apply", "strength": 0.5, "layers": [8, 9, 20]}],
    "rectified maps": [
        {"vector": name, "operation": "apply", "strength": 0.5, "layers": [10], "scope": {"tokens": "generated"}}
        for name in ("beta", "delta")
    ],
    "condition": [
        {
            "vector": "alpha",
            "strength": 2.0,
            "layers": [12],
            "when": {"vector": "gamma", "above": 0.0, "layer": 6, "at": "token", "until": -0.1},
        }
    ],
    "late condition": [
        {"vector": "alpha", "strength": 2.0, "layers": [4], "when": {"vector": "gamma", "above": 0.0, "layer": 20}}
    ],
    "hold": [
        {
            "vector": "alpha",
            "strength": 2.0,
            "layers": [12, 18],
            "scope": {"tokens": "generated"},
            "hold": {"score": 0.8},
        }
    ],
    "token ids": [
        {"vector": "alpha", "strength": 1.0, "layers": [10], "scope": {"token_ids": list(range(28, 530, 2))}}
    ],
    "roles": [{"vector": "alpha", "strength": 1.0, "layers": [10], "scope": {"roles": ["user"]}}],
    **{f"random {seed}": [] for seed in range(8)},
}


async def requests(engine: Engine, kind: str) -> list[GenerationRequest]:
    vectors = vectors_for(engine.info, scale=SCALE)
    items = ITEMS[kind]
    if kind.startswith("random"):
        items = random_items(int(kind.split()[1]), engine.info.layer_count)
    plan = await plan_for(items, vectors, engine.info)
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(2, engine.info.d_model, generator=generator))
    readings = (Reading("early", 3, directions[0], 2.0, 0.5), Reading("late", 25, directions[1], 3.0))
    sampling = SamplingParams(max_tokens=16, ignore_eos=True, logprobs=1)
    return [GenerationRequest(prompt, sampling, plan, readings) for prompt in PROMPTS]


def assert_equal(found: Outcome, expected: Outcome) -> None:
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert found.finish.reason == expected.finish.reason
    for event, its in zip(found.events[:-1], expected.events[:-1], strict=True):
        assert event.logprob == pytest.approx(its.logprob, abs=1e-3)
        assert event.readout == pytest.approx(its.readout, abs=1e-2, rel=1e-3)
    report, its_report = found.finish.steering, expected.finish.steering
    assert (report.fired, report.fired_at, report.tokens) == (its_report.fired, its_report.fired_at, its_report.tokens)
    assert [set(one) for one in report.held] == [set(one) for one in its_report.held]
    for held, its_held in zip(report.held, its_report.held, strict=True):
        for layer, one in held.items():
            assert astuple(one) == pytest.approx(astuple(its_held[layer]), rel=1e-2, abs=1e-2)
    assert report.total == pytest.approx(its_report.total, rel=1e-3, abs=1e-6)
    for doses, its_doses in zip(report.doses, its_report.doses, strict=True):
        assert doses == pytest.approx(dict(its_doses), rel=1e-3, abs=1e-6)
    for score, its_score in zip(report.condition_scores, its_report.condition_scores, strict=True):
        assert score == (None if its_score is None else pytest.approx(its_score, abs=1e-2, rel=1e-3))


@pytest.mark.embedded
@pytest.mark.parametrize("kind", list(ITEMS))
async def test_tokens_doses_and_readouts_equal_the_transformers_engine(
    engine: VllmEngine, reference: Engine, kind: str
) -> None:
    asked = await requests(engine, kind)
    for found, expected in zip(await run_all(engine, asked), await run_all(reference, asked), strict=True):
        assert_equal(found, expected)


@pytest.mark.embedded
async def test_phases_of_generated_tokens_are_known_when_they_are_steered(
    engine: VllmEngine, reference: Engine
) -> None:
    """Words of the answers stand for markers, so that this model changes its phase in every answer."""
    form = ToolFormat("words", (), " the")
    rules = PhaseRules((" a", "."), form, tools=False, anywhere=True)
    asked, seen = list[GenerationRequest](), set[str]()
    for phase in ("answer", "tool", "thinking"):
        items = [{"vector": "alpha", "strength": 1.0, "layers": [10, 15], "scope": {"phase": [phase]}}]
        plan = await plan_for(items, vectors_for(engine.info, scale=SCALE), engine.info)
        sampling = SamplingParams(max_tokens=40, ignore_eos=True, logprobs=1)
        asked += [GenerationRequest(prompt, sampling, replace(plan, phases=rules)) for prompt in PROMPTS]
    for request, found, expected in zip(
        asked, await run_all(engine, asked), await run_all(reference, asked), strict=True
    ):
        assert_equal(found, expected)
        (one,) = request.plan.interventions
        seen.update(one.spec.scope.phase or () if found.finish.steering.fired[0] else ())
    assert seen == {"answer", "tool", "thinking"}


@pytest.mark.embedded
async def test_all_plans_at_once_equal_each_alone(engine: VllmEngine) -> None:
    asked = [one for kind in ITEMS for one in (await requests(engine, kind))[:1]]
    together, alone = await run_all(engine, asked), await run_alone(engine, asked)
    assert [one.tokens for one in together] == [one.tokens for one in alone]


@pytest.mark.embedded
async def test_the_dose_guard_bounds_the_change_as_in_the_transformers_engine(
    engine: VllmEngine, reference: Engine
) -> None:
    items = [{"vector": "alpha", "strength": 3.0, "layers": [10, 15, 20]}]
    guard = DoseGuard(action="clamp", bound=0.1)
    plan = await plan_for(items, vectors_for(engine.info, scale=SCALE), engine.info, guard)
    request = replace((await requests(engine, "none"))[0], plan=plan)
    found = await run(engine, request)
    assert found.finish.steering.clamped > 0
    assert found.finish.steering.clamped == (await run(reference, request)).finish.steering.clamped
    assert_equal(found, await run(reference, request))


@pytest.mark.embedded
async def test_the_model_is_the_same_and_its_activations_are(engine: VllmEngine, reference: Engine) -> None:
    info, its = engine.info, reference.info
    assert replace(info, typical_norms=()) == replace(its, typical_norms=())
    prompts = [CapturePrompt(prompt) for prompt in PROMPTS]
    layers = tuple(range(info.layer_count))
    for position in ("last", "mean", "all"):
        prompts = [replace(prompt, first=3 if position == "all" else 0) for prompt in prompts]
        spec = CaptureSpec(layers, position, logits=position != "mean", embeddings=True)
        both = zip(await engine.capture(prompts, spec), await reference.capture(prompts, spec), strict=True)
        for found, expected in both:
            gap = (found.activations - expected.activations).norm(dim=2) / expected.activations.norm(dim=2)
            assert float(gap.max()) < 1e-4
            torch.testing.assert_close(found.embeddings, expected.embeddings)
            if expected.logits is not None:
                torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-2)
