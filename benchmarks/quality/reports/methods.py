"""Compares ways of making and applying a vector at one layer and one planned relative dose: the three gates of each."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from benchmarks.quality.concepts import MEAN_DIFFERENCE, Profile, strengths_of, vector_of
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.reports.gates import (
    keep_items,
    level_of,
    numbers,
    operating_strength,
    request_for,
)
from benchmarks.quality.training import SETTINGS, TRAINED_AT
from steering.engine.api import Engine
from steering.lab.controls import planned
from steering.lab.report import report
from steering.lab.trials import reading_layer
from steering.plan.types import SteeringPlan
from steering.spec import InterventionSpec, TokenScope
from steering.vectors import ConceptVector
from steering.workflows.extract import TRAINED

SHARED_DOSE, AFFINE = "shared_dose", "affine"
METHODS = (MEAN_DIFFERENCE, "probe", TRAINED, SHARED_DOSE, AFFINE)
READER = "whitened"
"""The method of the direction along which all answers are read: none of those compared."""
APART = 2
"""Layers between those of a shared dose."""
TRAINING = SETTINGS["kl_coefficient 0"]
"""The faster of the settings in docs/training.md, whose vectors are used again."""
SEED = 0
SAMPLES = 1
"""Answers to each prompt under each steering."""


async def compared(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Returns the report of each method. All answer the same prompts with the same noise.

    The dose is that of the mean difference at its operating strength, and so is its sign.
    """
    base = await vector_of(engine, concept)
    reader = await vector_of(engine, concept, method=READER)
    at = reading_layer(reader, engine.info.layer_count)
    found = dict[str, Any]()
    for method in METHODS:
        vector, plan = await _steering(engine, concept, base, method)
        request = replace(
            request_for(engine, concept, vector, plan, profile),
            reader=reader,
            reading_layer=at,
            samples=SAMPLES,
            varied=profile.judged // 2,
            seeds=(SEED,),
        )
        if method == TRAINED:  # fewer pairs would make a mean difference
            request = replace(request, pairs=None)
        made = await report(engine, request, progress=progress_printer(f"{concept}, {method}"))
        keep_items(engine, f"methods.{method}", concept, made)
        layers = sorted(plan.interventions[0].layers)
        found[method] = {"strength": level_of(plan), "layers": layers, **numbers(request, made)}
    return found


async def _steering(
    engine: Engine, concept: str, base: ConceptVector, method: str
) -> tuple[ConceptVector, SteeringPlan]:
    """The vector and its plan. affine: the projection of generated tokens is set to the level to which the add moves what is between
    the poles; with those of the prompt, whose first token lies far away, the text of formality breaks (perplexity 4.3 times)."""
    (layer,) = base.recommended_layers()
    strength = operating_strength(engine.info, base, (layer,))
    vector = base
    if method == TRAINED:
        low, high = strengths_of(engine, base, TRAINED_AT)
        training = replace(TRAINING, strengths=(low, high))
        vector = await vector_of(engine, concept, layers=(layer,), training=training)
    elif method not in (SHARED_DOSE, AFFINE):
        vector = await vector_of(engine, concept, method=method)
    vector = replace(vector, version=1)  # a plan names vectors by their version
    equal = round(strength * base.at(layer).scale / vector.at(layer).scale, 2)
    at = spread(layer, vector.layers) if method == SHARED_DOSE else (layer,)
    if method == AFFINE:
        item = InterventionSpec(
            vector=concept, operation="clamp", low=equal, high=equal, layers=at, scope=TokenScope(tokens="generated")
        )
    else:
        item = InterventionSpec(vector=concept, strength=equal, layers=at, share_dose=method == SHARED_DOSE or None)
    return vector, await planned(engine.info, vector, item)


def spread(layer: int, known: Collection[int]) -> tuple[int, ...]:
    """Returns the layer and those APART from it, as far as the vector has them."""
    return tuple(one for one in (layer - APART, layer, layer + APART) if one in known)
