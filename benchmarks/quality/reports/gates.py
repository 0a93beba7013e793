"""Runs the deployment report of every concept at its largest measured strength, or at one planned dose, with its side effects."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.quality.concepts import Profile, judging_prompts, neutral_prompts, vector_of
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import PARTS, items_of, write_items
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.lab.controls import planned
from steering.lab.report import PLAIN, ReportRequest, report
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan
from steering.schemas.evaluation import ReportAnswer
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector

DOSE = 0.15
"""Planned relative dose, summed over the layers, where nothing is measured: on half of the concepts text breaks at 0.2."""
SAMPLES = (4, 12)
"""Answers to each prompt under each steering; the second number where the seeds disagree with the first, which says that a check lies within
the noise of its threshold. With two, the seeds disagreed on three of seven concepts, with four on one."""
SAMPLES_OF = {"formality": SAMPLES[1:]}
"""Of concepts whose seeds have disagreed: leaves out the report that would not count, 2.4 minutes."""
SHOWN = 2
"""Prompts whose texts are saved."""


async def gates(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Returns the verdict of each gate and seed, the checks, the side effects on all concepts, and texts."""
    vector = replace(await vector_of(engine, concept), version=1)  # a plan names vectors by their version
    layers = vector.recommended_layers()
    strength = operating_strength(engine.info, vector, layers)
    plan = await planned(engine.info, vector, InterventionSpec(vector=concept, strength=strength, layers=tuple(layers)))
    readers = {name: await vector_of(engine, name) for name in CONCEPTS}

    async def judge(samples: int) -> dict[str, Any]:
        request = replace(request_for(engine, concept, vector, plan, profile), readers=readers, samples=samples)
        progress = progress_printer(f"{concept}, report")
        found = await report(engine, request, progress=progress)
        keep_items(engine, "gates", concept, found)
        return {"strength": strength, "layers": list(layers), **numbers(request, found)}

    return await until_agreed(judge, SAMPLES_OF.get(concept, SAMPLES))


def keep_items(engine: Engine, part: str, concept: str, found: ReportAnswer) -> None:
    """Writes the scores of every answer of a report, a file for each seed."""
    for one in found.seeds:
        write_items(f"{part}.seed{one.seed}", concept, one.scores, items_of(engine))


async def until_agreed(judge: Callable[[int], Awaitable[dict[str, Any]]], samples: Sequence[int]) -> dict[str, Any]:
    """Judges with each of these numbers of answers until the seeds agree: the last report counts."""
    for count in samples[:-1]:
        found = await judge(count)
        if found["seeds_agree"]:
            return found
    return await judge(samples[-1])


def request_for(
    engine: Engine, concept: str, vector: ConceptVector, plan: SteeringPlan, profile: Profile
) -> ReportRequest:
    """Returns what all reports of a concept have in common."""
    return ReportRequest(
        vector=vector,
        plan=plan,
        vectors={vector.id: vector},
        prompts=judging_prompts(engine, concept, profile.judged),
        neutral=neutral_prompts(engine, profile.neutral),
        direction=1 if level_of(plan) > 0.0 else -1,
        sampling=profile.sampling,
        varied=profile.judged,
        pairs=load_concept(concept),
        checkpoints=PARTS,
    )


def level_of(plan: SteeringPlan) -> float:
    """Returns the strength of the plan's only intervention, or the level to which it sets the projection."""
    (item,) = plan.spec.interventions
    return item.strength if item.low is None else item.low


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


def numbers(request: ReportRequest, found: ReportAnswer) -> dict[str, Any]:
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
                    gate.name: {"passed": gate.passed, "checks": [check.model_dump() for check in gate.checks]}
                    for gate in one.gates
                },
                "side_effects": {effect.vector: asdict(effect.shift) for effect in one.side_effects},
                "texts": [text.model_dump() for text in one.texts if text.variation == PLAIN][:SHOWN],
            }
            for one in found.seeds
        ],
    }
