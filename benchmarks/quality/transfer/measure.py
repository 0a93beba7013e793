"""Carries every concept from one model to the other, and measures what it reads and how far it steers, against native and random."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from benchmarks.quality.concepts import Profile, reporting_prompts
from benchmarks.quality.gates import DOSE
from benchmarks.quality.progress import progress_printer
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.plan.resolve import resolve
from steering.plan.types import SteeringPlan
from steering.quality import Estimate
from steering.spec import InterventionSpec, SteeringSpec
from steering.vectors import ConceptVector
from steering.workflows.comparison.text_metrics import estimate
from steering.workflows.evaluation.setup import UNGUARDED, GivenVectors, ReadBack, random_like
from steering.workflows.evaluation.statistics import shifts
from steering.workflows.evaluation.trials import run_trials
from steering.workflows.extraction.extract import ExtractionRequest, extract
from steering.workflows.extraction.texts import default_position
from steering.workflows.transfer.request import Transfer, TransferRequest, default_anchors
from steering.workflows.transfer.transfer import transfer

RANDOM = 3
"""Random directions whose effect is averaged for each prompt."""


async def transferred(target: Engine, source: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Returns the AUROC of each direction on held-out pairs and the shift of the answers at one relative dose, with intervals."""
    pairs = load_concept(concept)
    label = f"{concept}, {source.info.name} to {target.info.name}"
    anchors = default_anchors(pairs)
    anchors = anchors[:: max(1, len(anchors) // profile.anchors)][: profile.anchors]
    request = TransferRequest(concept, pairs, anchors)
    found = await transfer(target, source, request, progress=progress_printer(label))
    own = ExtractionRequest("native", pairs, layers=(found.to_layer,), position=default_position(pairs))
    native = await extract(target, own)
    return {
        "from": source.info.name,
        "to": target.info.name,
        "layers": [found.from_layer, found.to_layer],
        "anchors": found.anchors,
        "explained": found.explained,
        "cosine": found.cosine,
        "auroc": {name: _numbers(getattr(found, name)) for name in ("source", "native", "transferred", "random")},
        "dose": DOSE,
        "prompts": profile.reporting,
        "tokens": profile.tokens,
        "shift": await _effect(target, concept, native, found, profile),
    }


async def _effect(
    target: Engine, concept: str, native: ConceptVector, found: Transfer, profile: Profile
) -> Mapping[str, Any]:
    """Mean shift of the answers of the reporting prompts, in natural scales of the native vector, which reads all of them."""
    vectors = [native, found.vector, *(random_like(native, number + 1) for number in range(RANDOM))]
    plans = [await _plan(target, vector) for vector in vectors]
    prompts = reporting_prompts(target, concept, profile.reporting)
    reading = ReadBack(found.to_layer, native.at(found.to_layer))
    unsteered, trials = await run_trials(
        target, prompts, plans, reading, profile.sampling, progress=progress_printer(f"{concept}, steering")
    )
    moved = [shifts(trial, unsteered) if trial.broken is None else None for trial in trials]
    random = [one for one in moved[2:] if one is not None]
    rows = {
        "native": moved[0],
        "transferred": moved[1],
        "random": tuple(sum(one) / len(one) for one in zip(*random, strict=True)) if random else None,
    }
    return {name: None if row is None else _numbers(estimate(row)) for name, row in rows.items()}


async def _plan(target: Engine, vector: ConceptVector) -> SteeringPlan:
    stored = replace(vector, version=1)  # a plan names vectors by their version
    (layer,) = stored.layers
    strength = DOSE * target.info.typical_norms[layer] / stored.at(layer).scale
    item = InterventionSpec(vector=stored.name, strength=strength, layers=(layer,))
    return await resolve(SteeringSpec(interventions=(item,)), GivenVectors((stored,)), target.info, guard=UNGUARDED)


def _numbers(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
