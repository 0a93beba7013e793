"""Runs the deployment report of every concept at its largest measured strength, or at one planned dose, with its side effects."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.quality.concepts import Profile, neutral_prompts, reporting_prompts, vector_of
from benchmarks.quality.progress import progress_printer
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.model.info import ModelInfo
from steering.plan.resolve import resolve
from steering.plan.types import SteeringPlan
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import UNGUARDED, GivenVectors
from steering.workflows.reporting.report import PLAIN, report
from steering.workflows.reporting.results import Report, ReportRequest, Unsteered

DOSE = 0.15
"""Planned relative dose, summed over the layers, where nothing is measured: on half of the concepts text breaks at 0.2."""
SAMPLES, MORE_SAMPLES = 4, 12
"""Answers to each prompt under each steering; more where the seeds disagree, which says that a check lies within the noise of its threshold.
With two, the seeds disagreed on three of seven concepts, with four on one."""
BEGINS_WITH_MORE = ("formality",)
"""Concepts whose seeds have disagreed with SAMPLES. To begin with MORE_SAMPLES saves the report that would not count, 2.4 minutes."""
SHOWN = 2
"""Prompts whose texts are saved."""


async def gates(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Returns the verdict of each gate and seed, the checks, the side effects on all concepts, and texts."""
    vector = replace(await vector_of(engine, concept), version=1)  # a plan names vectors by their version
    layers = vector.recommended_layers()
    strength = operating_strength(engine.info, vector, layers)
    plan = await planned(engine, vector, InterventionSpec(vector=concept, strength=strength, layers=tuple(layers)))
    readers = {name: await vector_of(engine, name) for name in CONCEPTS}
    unsteered = Unsteered(accuracy=_KNOWN.get(engine.info.fingerprint))

    async def judge(samples: int) -> dict[str, Any]:
        request = replace(request_for(engine, concept, vector, plan, profile), readers=readers, samples=samples)
        shared = replace(unsteered, trials={})  # those of another number of samples do not count
        found = await report(engine, request, unsteered=shared, progress=progress_printer(f"{concept}, report"))
        unsteered.accuracy = _KNOWN[engine.info.fingerprint] = shared.accuracy
        return {"strength": strength, "layers": list(layers), **numbers(request, found)}

    return await judge(MORE_SAMPLES) if concept in BEGINS_WITH_MORE else await until_agreed(judge)


_KNOWN: dict[str, float | None] = {}
"""Share of the questions answered rightly without steering, by the model's fingerprint: all reports of a run share it."""


async def until_agreed(judge: Callable[[int], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """Judges with SAMPLES answers to each prompt, and again with MORE_SAMPLES where the seeds disagree: the second report counts."""
    found = await judge(SAMPLES)
    return found if found["seeds_agree"] else await judge(MORE_SAMPLES)


async def planned(engine: Engine, vector: ConceptVector, item: InterventionSpec) -> SteeringPlan:
    """Resolves one intervention with the vector."""
    return await resolve(SteeringSpec(interventions=(item,)), GivenVectors((vector,)), engine.info, guard=UNGUARDED)


def request_for(
    engine: Engine, concept: str, vector: ConceptVector, plan: SteeringPlan, profile: Profile
) -> ReportRequest:
    """Returns what all reports of a concept have in common."""
    return ReportRequest(
        vector=vector,
        plan=plan,
        vectors={vector.id: vector},
        prompts=reporting_prompts(engine, concept, profile.judged),
        neutral=neutral_prompts(engine, profile.neutral),
        direction=direction_of(plan),
        sampling=profile.sampling,
        varied=profile.judged,
        pairs=load_concept(concept),
    )


def direction_of(plan: SteeringPlan) -> int:
    """Returns how the plan's only intervention moves the concept: by the sign of its strength, or of the level that it sets."""
    (item,) = plan.spec.interventions
    return 1 if (item.strength if item.low is None else item.low) > 0.0 else -1


def operating_strength(info: ModelInfo, vector: ConceptVector, layers: Sequence[int]) -> float:
    """Returns the largest measured strength where the concept claims to steer, below zero if it holds there only; otherwise the
    strength that plans DOSE."""
    claimed = vector.recommended
    if claimed is not None and tuple(layers) == claimed.layers:
        if claimed.strength is not None:
            return claimed.strength[1]
        if claimed.negative is not None:
            return min(claimed.negative)
    return round(DOSE / sum(vector.at(layer).scale / info.typical_norms[layer] for layer in layers), 2)


def numbers(request: ReportRequest, found: Report) -> dict[str, Any]:
    """Returns a report and its counts as JSON values."""
    return {
        "prompts": len(request.prompts),
        "varied": request.varied,
        "samples": request.samples,
        "neutral": len(request.neutral),
        "tokens": request.sampling.max_tokens,
        "passed": found.passed,
        "seeds_agree": found.seeds_agree,
        "seeds": [
            {
                "seed": one.seed,
                "chance": one.chance,
                "gates": {
                    gate.name: {"passed": gate.passed, "checks": [asdict(c) for c in gate.checks]} for gate in one.gates
                },
                "side_effects": {effect.vector: asdict(effect.shift) for effect in one.side_effects},
                "texts": [asdict(text) for text in one.texts if text.variation == PLAIN][:SHOWN],
            }
            for one in found.seeds
        ],
    }
