"""Measures closed-loop control: how near the mean readout of each answer comes to the set point, held and at a fixed strength."""

from statistics import fmean
from typing import Any

from benchmarks.quality.concepts import Profile, reporting_prompts, vector_of
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import items_of, write_items
from steering.engine.api import Engine, GenerationRequest, Prompt, SamplingParams
from steering.injection.readings import Reading
from steering.lab.controls import planned
from steering.plan.types import SteeringPlan
from steering.schemas.evaluation import ScoresAnswer
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector
from steering.workflows.generate import Answer, background

SCORES = (-0.4, 0.0, 0.4)
PROMPTS, TOKENS = 20, 64
LIMIT = 3.0
"""Largest strength of the controller, in natural scales."""
NEAR = 0.15


async def held(engine: Engine, concept: str, profile: Profile) -> list[dict[str, Any]]:
    """Returns a row for each set point: deviations of the mean readout of an answer, as means over the prompts."""
    vector = await vector_of(engine, concept)
    prompts = reporting_prompts(engine, concept, min(PROMPTS, profile.judged))
    sampling = SamplingParams(max_tokens=min(TOKENS, 2 * profile.tokens), temperature=0.7, seed=0, ignore_eos=True)
    report = progress_printer(f"{concept}, holding")
    rows, items = [], list[ScoresAnswer]()
    for done, score in enumerate(SCORES):
        report(done, len(SCORES), f"score {score:g}")
        plan = await _plan(engine, vector, {"strength": LIMIT, "hold": {"score": score}})
        answers = await _answers(engine, vector, prompts, sampling, plan)
        strength = fmean(one.strength for answer in answers for one in answer.finish.steering.held[0].values())
        fixed = await _plan(engine, vector, {"strength": strength, "scope": {"tokens": "generated"}})
        others = await _answers(engine, vector, prompts, sampling, fixed)
        means, fixed_means = ([_mean_readout(answer) for answer in some] for some in (answers, others))
        items += [
            _readouts(f"held at {score:g}", LIMIT, means),
            _readouts(f"fixed for {score:g}", strength, fixed_means),
        ]
        rows.append(
            {
                "score": score,
                "prompts": len(prompts),
                "tokens": sampling.max_tokens,
                "mean": fmean(means),
                "deviation": fmean(abs(one - score) for one in means),
                "near": fmean(abs(one - score) <= NEAR for one in means),
                "strength": strength,
                "dose": fmean(answer.finish.steering.total for answer in answers),
                "fixed_deviation": fmean(abs(one - score) for one in fixed_means),
            }
        )
    write_items("holding", concept, items, items_of(engine))
    return rows


def _readouts(arm: str, strength: float, means: list[float]) -> ScoresAnswer:
    """Returns the mean readout of each answer as its score."""
    return ScoresAnswer(
        arm="steered",
        variation=arm,
        strength=strength,
        scores=[[one] for one in means],
        surprises=[[None] for _ in means],
    )


async def _plan(engine: Engine, vector: ConceptVector, fields: dict[str, Any]) -> SteeringPlan:
    item = InterventionSpec.model_validate({"vector": vector.name, **fields})
    return await planned(engine.info, vector, item)


async def _answers(
    engine: Engine, vector: ConceptVector, prompts: tuple[Prompt, ...], sampling: SamplingParams, plan: SteeringPlan
) -> tuple[Answer, ...]:
    (layer,) = vector.recommended_layers()
    entry = vector.at(layer)
    readings = (Reading(vector.name, layer, entry.direction, entry.scale, entry.middle),)
    return await background(engine, [GenerationRequest(prompt, sampling, plan, readings) for prompt in prompts])


def _mean_readout(answer: Answer) -> float:
    return fmean(value for event in answer.events for value in event.readout.values())
