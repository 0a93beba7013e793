"""Runs the deployment report of every concept by several methods, each at its largest measured strength or at one planned dose."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from benchmarks.quality.concepts import MEAN_DIFFERENCE, Profile, neutral_prompts, reporting_prompts, vector_of
from benchmarks.quality.progress import progress_printer
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.model.info import ModelInfo
from steering.plan.resolve import resolve
from steering.plan.types import UNSTEERED
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.evaluation.setup import UNGUARDED, GivenVectors
from steering.workflows.reporting.questions import accuracy, load_questions
from steering.workflows.reporting.report import PLAIN, report
from steering.workflows.reporting.results import Report, ReportRequest
from steering.workflows.training.train import TrainingSettings

DOSE = 0.15
"""Planned relative dose, summed over the layers, where nothing is measured: on half of the concepts text breaks at 0.2."""
METHODS = (MEAN_DIFFERENCE, "probe", "trained", "three_layers", "shared_dose")
SEVERAL = ("three_layers", "shared_dose")
SAMPLES, MORE_SAMPLES = 4, 12
"""Answers to each prompt under each steering; more where the seeds disagree, which says that a check lies within the noise of its threshold.
With two, the seeds disagreed on three of seven concepts, with four on one."""
Judging: TypeAlias = Awaitable[dict[str, Any]]
SHOWN = 2
"""Prompts whose texts are saved."""


async def gates(engine: Engine, concept: str, profile: Profile, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Returns by method the verdict of each gate and seed, the checks, and texts."""
    found = {}
    for method in methods:
        vector, layers = await _vector(engine, concept, method)

        def judge(samples: int, v: ConceptVector = vector, at: Sequence[int] = layers, by: str = method) -> Judging:
            return judged(engine, concept, v, at, profile, by, samples=samples)

        found[method] = await until_agreed(judge)
    return found


async def until_agreed(judge: Callable[[int], Judging]) -> dict[str, Any]:
    """Judges with SAMPLES answers to each prompt, and again with MORE_SAMPLES where the seeds disagree: the second report counts."""
    found = await judge(SAMPLES)
    return found if found["seeds_agree"] else await judge(MORE_SAMPLES)


async def _vector(engine: Engine, concept: str, method: str) -> tuple[ConceptVector, Sequence[int]]:
    """The vector and the layers where it acts.

    three_layers: mean difference at its layer and those two before and after, at one strength; shared_dose: at one dose.
    """
    if method == "trained":
        vector = await vector_of(engine, concept, training=TrainingSettings())
    else:
        vector = await vector_of(engine, concept, method=MEAN_DIFFERENCE if method in SEVERAL else method)
    layers = vector.recommended_layers()
    if method in SEVERAL:
        (middle,) = layers
        layers = tuple(layer for layer in (middle - 2, middle, middle + 2) if layer in vector.layers)
    return vector, layers


_KNOWN: dict[str, float] = {}
"""Share of the questions answered rightly without steering, by the model's fingerprint: all reports of a run share it."""


async def _unsteered_accuracy(engine: Engine) -> float:
    model = engine.info.fingerprint
    if model not in _KNOWN:
        _KNOWN[model] = await accuracy(engine, load_questions(), UNSTEERED)
    return _KNOWN[model]


async def judged(
    engine: Engine,
    concept: str,
    vector: ConceptVector,
    layers: Sequence[int],
    profile: Profile,
    method: str,
    *,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Runs one report and returns its numbers as JSON values."""
    share = method == "shared_dose" or None
    strength = operating_strength(engine.info, vector, vector.recommended_layers() if share else layers)
    stored = replace(vector, version=1)  # a plan names vectors by their version
    item = InterventionSpec(vector=stored.name, strength=strength, layers=tuple(layers), share_dose=share)
    plan = await resolve(SteeringSpec(interventions=(item,)), GivenVectors((stored,)), engine.info, guard=UNGUARDED)
    request = ReportRequest(
        vector=stored,
        plan=plan,
        vectors={stored.id: stored},
        prompts=reporting_prompts(engine, concept, profile.judged),
        neutral=neutral_prompts(engine, profile.neutral),
        direction=1 if strength > 0.0 else -1,
        sampling=profile.sampling,
        varied=profile.judged,
        samples=samples,
        pairs=load_concept(concept),
        known=await _unsteered_accuracy(engine),
    )
    found = await report(engine, request, progress=progress_printer(f"{concept}, {method}"))
    counts = {"prompts": len(request.prompts), "samples": request.samples, "neutral": len(request.neutral)}
    return {"strength": strength, "layers": list(layers), **counts, "tokens": profile.tokens, **_numbers(found)}


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


def _numbers(found: Report) -> dict[str, Any]:
    return {
        "passed": found.passed,
        "seeds_agree": found.seeds_agree,
        "seeds": [
            {
                "seed": one.seed,
                "chance": one.chance,
                "gates": {
                    gate.name: {"passed": gate.passed, "checks": [asdict(c) for c in gate.checks]} for gate in one.gates
                },
                "texts": [asdict(text) for text in one.texts if text.variation == PLAIN][:SHOWN],
            }
            for one in found.seeds
        ],
    }
