"""Monitors are raised where the transformers engine raises them, with the same scores, and stop answers at the same token."""

from math import inf

import pytest

from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.engine.vllm.engine import VllmEngine
from steering.injection.readings import Monitor, MonitorSet
from steering.plan.types import UNSTEERED, SteeringPlan
from tests.engines import Outcome, run
from tests.plans import plan_for, vectors_for
from tests.steering.injection.test_monitors import monitor

pytestmark = pytest.mark.embedded

PROMPT = "The sea is"
SCALE = 30.0


def request(monitors: list[Monitor], plan: SteeringPlan = UNSTEERED) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=12, ignore_eos=True)
    return GenerationRequest(PROMPT, sampling, plan, monitors=MonitorSet(monitors), request_id="answer")


def raised(outcome: Outcome) -> list[tuple[int, str, object]]:
    return [
        (event.index, one.monitor.name, pytest.approx(one.score, rel=1e-3, abs=1e-3))
        for event in outcome.events
        for one in event.raised
    ]


def found(outcome: Outcome) -> list[tuple[int, str, float]]:
    return [(event.index, one.monitor.name, one.score) for event in outcome.events for one in event.raised]


async def test_flags_scores_and_stops_equal_the_transformers_engine(engine: VllmEngine, reference: Engine) -> None:
    vectors = vectors_for(engine.info, scale=SCALE, means=True)
    plan = await plan_for(
        [{"vector": "beta", "strength": 0.5, "layers": [10]}], vectors_for(engine.info, scale=SCALE), engine.info
    )
    every = [
        monitor(vectors["alpha"], 20, -inf, name="prompt", at="prompt", action="flag"),
        monitor(vectors["beta"], 12, -inf, name="flag", action="flag"),
        monitor(vectors["gamma"], 5, -inf, name="count"),
    ]
    ours, its = await run(engine, request(every, plan)), await run(reference, request(every, plan))
    assert found(ours) == raised(its)
    assert len(found(ours)) == 12 + 1
    assert every[2].statistics.count == 2 * 12
    scores = sorted(score for _, name, score in found(ours) if name == "flag")
    bound = (scores[-1] + scores[-2]) / 2
    stop = [monitor(vectors["beta"], 12, bound, action="stop")]
    ours, its = await run(engine, request(stop, plan)), await run(reference, request(stop, plan))
    assert (ours.tokens, ours.finish.reason, found(ours)) == (its.tokens, "monitor", raised(its))
    assert stop[0].statistics.answers == 2
    assert [one.request_id for one in stop[0].statistics.latest] == ["answer", "answer"]


async def test_a_monitor_of_the_prompt_stops_before_the_first_token(engine: VllmEngine) -> None:
    vectors = vectors_for(engine.info, scale=SCALE, means=True)
    stopped = await run(engine, request([monitor(vectors["alpha"], 3, -inf, name="early", at="prompt", action="stop")]))
    assert (stopped.tokens, stopped.finish.reason) == ([], "monitor")
    assert [name for _, name, _ in found(stopped)] == ["early"]
