"""The operating point with other vectors: random ones of the same dose, and one from half of the pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf

from steering.engine.api import Engine
from steering.extraction import METHODS
from steering.model.info import ModelInfo
from steering.pairs import PairSet
from steering.plan.dose import DoseGuard
from steering.plan.resolve import resolve
from steering.plan.types import SteeringPlan
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import GivenVectors, random_alike
from steering.workflows.extraction.extract import ExtractionRequest, extract

MEAN_DIFFERENCE = "mean_difference"


async def random_plans(
    info: ModelInfo, plan: SteeringPlan, vectors: Mapping[str, ConceptVector], numbers: Iterable[int]
) -> tuple[SteeringPlan, ...]:
    """A plan for each number, with random directions in place of the vectors, of the same dose also where several act together;
    none unless all interventions are plain adds.

    What other operations, conditions and held readouts do depends on the residual along the direction, so with a random
    one they have another dose.
    """
    if any(
        one.spec.operation != "add" or one.condition is not None or one.holds for one in plan.interventions[: plan.own]
    ):
        return ()
    found = []
    for number in numbers:
        found.append(await _with(info, plan, random_alike(vectors, number)))
    return tuple(found)


async def fewer_pairs_plan(
    engine: Engine, vector: ConceptVector, pairs: PairSet, plan: SteeringPlan, vectors: Mapping[str, ConceptVector]
) -> SteeringPlan:
    """The plan with the vector made again from every second topic of its pairs, at the layers where it acts."""
    topics = sorted(set(pairs.topics))[::2]
    kept = [index for index, topic in enumerate(pairs.topics) if topic in set(topics)]
    half = PairSet(
        tuple(pairs.positive[index] for index in kept),
        tuple(pairs.negative[index] for index in kept),
        tuple(pairs.topics[index] for index in kept),
    )
    layers = sorted(
        {layer for one in plan.interventions[: plan.own] if one.spec.vector == vector.id for layer in one.layers}
    )
    made = await extract(
        engine,
        ExtractionRequest(
            vector.name,
            half,
            method=vector.method if vector.method in METHODS else MEAN_DIFFERENCE,
            layers=tuple(layers or vector.recommended_layers()),
            position=vector.provenance.get("position", "last"),
            holdout=0.0,
        ),
    )
    other = replace(vector, layers={**vector.layers, **made.layers})
    return await _with(engine.info, plan, {**vectors, vector.id: other})


async def _with(info: ModelInfo, plan: SteeringPlan, vectors: Mapping[str, ConceptVector]) -> SteeringPlan:
    guard = DoseGuard(inf, "off") if plan.dose_bound is None else DoseGuard(plan.dose_bound, "clamp")
    spec = SteeringSpec(interventions=plan.spec.interventions[: plan.own])  # the engine adds what is mandatory
    return await resolve(spec, GivenVectors(tuple(vectors.values())), info, guard=guard)
